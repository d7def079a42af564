//! The documents of a file: which of them is the VM.

use crate::near::{is_placeholder, near};
use crate::problem::{Position, plain, quoted};
use crate::reader::{Reader, Value};
use crate::yaml::{Kind, Link, Node};

/// The API group of KubeVirt. Its versions (v1, v1alpha3) have the same fields.
const GROUP: &str = "kubevirt.io";
const KINDS: [&str; 2] = ["VirtualMachine", "VirtualMachineInstance"];
/// The most documents and VMs that a message lists.
const MAX_LISTED: usize = 8;

/// A document that is a VM.
pub struct Document {
    pub root: Value,
    /// Whether it is a VirtualMachine, which has the instance as its template.
    pub is_template: bool,
    name: Option<String>,
    namespace: Option<String>,
}

impl Document {
    fn is_called(&self, wanted: &str) -> bool {
        let name = self.name.as_deref();
        match wanted.split_once('/') {
            Some((namespace, wanted)) => name == Some(wanted) && self.namespace.as_deref() == Some(namespace),
            None => name == Some(wanted),
        }
    }

    fn describe(&self) -> String {
        let name = match (&self.namespace, &self.name) {
            (Some(namespace), Some(name)) => quoted(&format!("{namespace}/{name}")),
            (None, Some(name)) => quoted(name),
            (_, None) => "one without a name".to_owned(),
        };
        format!("{name} (line {})", self.root.position().line)
    }
}

/// Something else than a VM.
struct Other {
    position: Position,
    path: String,
    /// `Deployment of apps/v1`.
    what: String,
    message: String,
    /// Whether it is an error also beside a VM: it may be the one that is meant, or a part of one.
    is_wrong: bool,
}

/// The VM of the file, if there is one, or one of that name.
pub fn choose(reader: &mut Reader<'_, '_>, vm: Option<&str>) -> Option<Document> {
    let (mut found, others) = collect(reader);
    if found.is_empty() {
        refuse(reader, &others);
        return None;
    }
    refuse_wrong(reader, &others);
    let all = list(found.iter().map(Document::describe));
    if let Some(vm) = vm {
        found.retain(|document| document.is_called(vm));
    }
    match (found.len(), vm) {
        (1, _) => found.pop(),
        (0, vm) => {
            let vm = quoted(vm.unwrap_or_default());
            reader.report.error(Position::START, "", format!("no VM is called {vm}: the file has {all}"));
            None
        }
        (_, None) => {
            let message = format!("several VMs, choose one by its name: {all}");
            reader.report.error(found[1].root.position(), "", message);
            None
        }
        (_, Some(vm)) => {
            let message =
                format!("several VMs are called {}: {}", quoted(vm), list(found.iter().map(Document::describe)));
            reader.report.error(found[1].root.position(), "", message);
            None
        }
    }
}

/// No document is a VM: says what they are.
fn refuse(reader: &mut Reader<'_, '_>, others: &[Other]) {
    if let [other] = others {
        reader.report.error(other.position, &other.path, other.message.as_str());
        return;
    }
    refuse_wrong(reader, others);
    if !reader.report.has_errors() {
        let all = list(others.iter().map(|other| format!("{} (line {})", other.what, other.position.line)));
        let found = if others.is_empty() { "no documents".to_owned() } else { all };
        let message = format!("no VM in this file, which has {found}: accepted are {} of {GROUP}", KINDS.join(", "));
        reader.report.error(Position::START, "", message);
    }
}

fn refuse_wrong(reader: &mut Reader<'_, '_>, others: &[Other]) {
    for Other { position, path, message, .. } in others.iter().filter(|other| other.is_wrong) {
        reader.report.error(*position, path, message.as_str());
    }
}

/// The VMs and the other documents. A List is taken apart.
fn collect(reader: &mut Reader<'_, '_>) -> (Vec<Document>, Vec<Other>) {
    let (mut found, mut others) = (Vec::new(), Vec::new());
    let tree = reader.tree;
    for &link in &tree.documents {
        let root = Value { link, path: String::new() };
        if !reader.report.visit(1, link.position, "") {
            break;
        }
        let is_list = scalar(reader, link, "kind") == Some("List");
        match field(reader, link, "items").filter(|_| is_list) {
            Some(items) => {
                let items = reader.items(&Value { link: items, path: "items".to_owned() });
                for item in items.unwrap_or_default() {
                    sort(reader, item, &mut found, &mut others);
                }
            }
            None if tree.is_null(link) => {}
            None => sort(reader, root, &mut found, &mut others),
        }
    }
    (found, others)
}

fn sort(reader: &mut Reader<'_, '_>, root: Value, found: &mut Vec<Document>, others: &mut Vec<Other>) {
    let (kind, version) = (scalar(reader, root.link, "kind"), scalar(reader, root.link, "apiVersion"));
    let group = version.map(|version| version.split_once('/').map_or("", |(group, _)| group));
    if let Some(kind) = kind.filter(|kind| KINDS.contains(kind) && group == Some(GROUP)) {
        let metadata = field(reader, root.link, "metadata");
        let name = |name| metadata.and_then(|metadata| scalar(reader, metadata, name)).map(str::to_owned);
        let (name, namespace) = (name("name"), name("namespace"));
        found.push(Document { root, is_template: kind == KINDS[0], name, namespace });
        return;
    }
    let stranger = stranger(reader, &root, kind, version);
    if others.len() <= MAX_LISTED || stranger.is_wrong {
        others.push(stranger.at(reader, &root));
    }
}

/// What a document is that is no VM.
struct Stranger {
    /// The field that shows it.
    field: &'static str,
    what: String,
    message: String,
    is_wrong: bool,
}

impl Stranger {
    fn at(self, reader: &Reader<'_, '_>, root: &Value) -> Other {
        let Self { field: name, what, message, is_wrong } = self;
        let position = field(reader, root.link, name).map_or(root.position(), |link| link.position);
        let path = match (root.path.as_str(), name) {
            (path, "") => path.to_owned(),
            ("", name) => name.to_owned(),
            (path, name) => format!("{path}.{name}"),
        };
        Other { position, path, what, message, is_wrong }
    }
}

fn stranger(reader: &Reader<'_, '_>, root: &Value, kind: Option<&str>, version: Option<&str>) -> Stranger {
    let kinds = KINDS.join(", ");
    let Node::Mapping(pairs) = reader.tree.node(root.link) else {
        let message = "neither a manifest of KubeVirt (YAML or JSON), nor XML of libvirt, nor options of QEMU";
        let what = "text that is no manifest".to_owned();
        return Stranger { field: "", what, message: message.to_owned(), is_wrong: true };
    };
    let near_key = |wanted| {
        let keys = pairs.iter().take(64).filter_map(|(key, _)| reader.tree.scalar(*key));
        keys.map(|key| &*key.text).find(|key| near(key, [wanted]).is_some())
    };
    let Some(kind) = kind else {
        let message = match near_key("kind") {
            Some(key) => format!("unknown field {}: did you mean kind?", quoted(key)),
            None => {
                let is_first = reader.tree.documents.first().is_some_and(|first| first.position == root.position());
                let after = if is_first || !root.path.is_empty() {
                    ""
                } else {
                    ", which begins after a line of dots or hyphens,"
                };
                format!("the document{after} has no kind: accepted are {kinds} of {GROUP}")
            }
        };
        return Stranger { field: "", what: "a document without a kind".to_owned(), message, is_wrong: true };
    };
    let of = version.map(|version| format!(" of {}", plain(version, b"./"))).unwrap_or_default();
    let what = format!("{}{of}", plain(kind, b""));
    let is_ours = version.is_none_or(|version| version.starts_with(GROUP));
    let group = version.and_then(|version| version.split('/').next()).unwrap_or_default();
    let (field, message, is_wrong) = if is_placeholder(kind) {
        ("kind", format!("{} is a placeholder: accepted are {kinds}", quoted(kind)), true)
    } else if let Some(meant) = near(kind, KINDS).filter(|_| is_ours) {
        ("kind", format!("unknown kind {}: did you mean {meant}?", quoted(kind)), true)
    } else if !KINDS.contains(&kind) {
        ("kind", format!("{what} is not a VM: accepted are {kinds} of {GROUP}"), false)
    } else if let Some(key) = near_key("apiVersion") {
        ("", format!("unknown field {}: did you mean apiVersion?", quoted(key)), true)
    } else if version.is_none() {
        ("", format!("the document has no apiVersion: accepted is {GROUP}/v1"), true)
    } else if near(group, [GROUP]).is_some() {
        let message = format!("unknown API {}: did you mean {GROUP}/v1?", quoted(version.unwrap_or_default()));
        ("apiVersion", message, true)
    } else {
        let message = format!("{what} is not a VM of KubeVirt: accepted are {kinds} of {GROUP}/v1");
        ("apiVersion", message, false)
    };
    Stranger { field, what, message, is_wrong }
}

/// The value of a field, without any complaint.
fn field(reader: &Reader<'_, '_>, mapping: Link, name: &str) -> Option<Link> {
    let Node::Mapping(pairs) = reader.tree.node(mapping) else { return None };
    let is_name = |key: Link| reader.tree.scalar(key).is_some_and(|key| key.text == name);
    pairs.iter().find(|(key, _)| is_name(*key)).map(|&(_, value)| value)
}

/// The text of a field, without any complaint.
fn scalar<'t>(reader: &Reader<'t, '_>, mapping: Link, name: &str) -> Option<&'t str> {
    let scalar = reader.tree.scalar(field(reader, mapping, name)?)?;
    (scalar.kind != Kind::Null).then_some(&*scalar.text)
}

fn list(items: impl Iterator<Item = String>) -> String {
    let mut items = items.peekable();
    let mut text = items.by_ref().take(MAX_LISTED).collect::<Vec<_>>().join(", ");
    if items.peek().is_some() {
        text.push_str(" and more");
    }
    text
}

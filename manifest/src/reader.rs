//! Reads the fields of YAML mappings, and reports what is wrong with them.

use crate::near::{is_elision, is_placeholder, near};
use crate::problem::{Position, Report, plain, quoted};
use crate::yaml::{Kind, Link, Node, Tree};

/// The longest text that is read, in bytes: Linux allows no argument of a command that is longer than 128 KiB.
const MAX_TEXT: usize = 16 << 10;
/// The longest name, in bytes, as in Kubernetes.
const MAX_NAME: usize = 253;
/// The most items of a list.
const MAX_ITEMS: usize = 256;
/// The largest whole number of a field: that of the 32-bit integers of Kubernetes.
const MAX_NUMBER: u32 = i32::MAX as u32;

/// Fields that have an effect at one place of a VM only, and where, below its spec. An empty path is the spec itself.
const PLACES: [(&str, &str); 5] = [
    ("livenessProbe", ""),
    ("readinessProbe", ""),
    ("terminationGracePeriodSeconds", ""),
    ("domain", ""),
    ("watchdog", ".domain.devices"),
];

/// Reads the values of a tree.
pub struct Reader<'t, 'r> {
    pub tree: &'t Tree<'t>,
    pub report: &'r mut Report,
    /// The path of the spec of a VM, which depends on its kind.
    pub spec: &'static str,
}

/// A value with its path.
#[derive(Clone, Debug)]
pub struct Value {
    pub link: Link,
    pub path: String,
}

impl Value {
    pub fn position(&self) -> Position {
        self.link.position
    }
}

/// The fields of a mapping that are known and not null.
#[derive(Debug)]
pub struct Fields {
    pub position: Position,
    pub path: String,
    found: Vec<(&'static str, Value)>,
    /// Known fields without a value, by their keys.
    pub nulls: Vec<(&'static str, Position)>,
    /// Fields that are not known, and their names, in bounds.
    pub unknown: Vec<(String, Position)>,
    /// Whether a field of it was an error, so that what is missing may be that one.
    pub has_reported: bool,
}

impl Fields {
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.found.iter().find(|(found, _)| *found == name).map(|(_, value)| value)
    }

    /// The path of a field.
    pub fn path(&self, name: &str) -> String {
        join(&self.path, name)
    }
}

/// What becomes of unknown fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// They are none of ours.
    Ignored,
    /// All fields of KubeVirt are known here: a warning.
    Warned,
}

impl Reader<'_, '_> {
    pub fn error(&mut self, value: &Value, message: impl Into<String>) {
        self.report.error(value.position(), &value.path, message);
    }

    /// The known fields of a mapping. A field that is almost a known one, a placeholder, a field that is given twice or at a
    /// place where it has no effect, is an error.
    pub fn fields(&mut self, value: &Value, known: &[&'static str], others: Others) -> Option<Fields> {
        let pairs = match self.tree.node(value.link) {
            Node::Mapping(pairs) => pairs,
            _ => {
                self.mismatch(value, "a mapping with fields");
                return None;
            }
        };
        if !self.report.visit(pairs.len(), value.position(), &value.path) {
            return None;
        }
        let mut fields = Fields {
            position: value.position(),
            path: value.path.clone(),
            found: Vec::new(),
            nulls: Vec::new(),
            unknown: Vec::new(),
            has_reported: false,
        };
        let errors = self.report.error_count();
        for &(key, field) in pairs {
            let Some(name) = self.tree.scalar(key).map(|scalar| &*scalar.text) else { continue };
            let Some(&name) = known.iter().find(|known| **known == name) else {
                self.unknown(&mut fields, name, key.position, known, others);
                continue;
            };
            if fields.get(name).is_some() || fields.nulls.iter().any(|(null, _)| *null == name) {
                self.report.error(key.position, &fields.path(name), "given twice");
            } else if self.tree.is_null(field) {
                fields.nulls.push((name, key.position));
            } else {
                // What spans lines is found by its name.
                let position = self.tree.scalar(field).map_or(key.position, |_| field.position);
                fields.found.push((name, Value { link: field.at(position), path: fields.path(name) }));
            }
        }
        fields.has_reported = self.report.error_count() > errors;
        Some(fields)
    }

    fn unknown(&mut self, fields: &mut Fields, name: &str, at: Position, known: &[&'static str], others: Others) {
        let path = join(&fields.path, &plain(name, b"<>"));
        if is_elision(name) {
            self.report.error(at, &path, "stands for lines that a guide has left out: write them, or remove it");
        } else if is_placeholder(name) {
            let left: Vec<_> = known.iter().filter(|name| fields.get(name).is_none()).copied().collect();
            let message = format!("is a placeholder of a guide: accepted here are {}", left.join(", "));
            self.report.error(at, &path, message);
        } else if name == "<<" {
            self.report.error(at, &path, "merge keys are not supported: write the fields here");
        } else if let Some(meant) = near(name, known.iter().copied()) {
            self.report.error(at, &path, format!("unknown field: did you mean {meant}?"));
        } else if let Some((_, place)) = PLACES.iter().find(|(placed, _)| *placed == name) {
            let message = format!("has no effect here: it belongs in {}{place}", self.spec);
            self.report.error(at, &path, message);
        } else {
            if others == Others::Warned {
                self.report.warn(at, &path, format!("unknown field, ignored: accepted are {}", known.join(", ")));
            }
            if fields.unknown.len() < known.len() {
                fields.unknown.push((plain(name, b"<>"), at));
            }
        }
    }

    /// The value is not what it has to be.
    fn mismatch(&mut self, value: &Value, wanted: &str) {
        let message = match self.tree.node(value.link) {
            Node::Scalar(scalar) if is_elision(&scalar.text) => {
                format!("{} stands for what a guide has left out: write {wanted}", scalar.text)
            }
            Node::Scalar(scalar) if is_placeholder(&scalar.text) => {
                format!("{} is a placeholder of a guide: write {wanted}", quoted(&scalar.text))
            }
            Node::Scalar(scalar) if scalar.kind == Kind::Null => format!("has no value: accepted is {wanted}"),
            Node::Scalar(scalar) => format!("invalid value {}: accepted is {wanted}", quoted(&scalar.text)),
            Node::List(_) => format!("is a list: accepted is {wanted}"),
            Node::Mapping(_) | Node::Open => format!("is a mapping with fields: accepted is {wanted}"),
        };
        self.error(value, message);
    }

    /// The items of a list.
    pub fn items(&mut self, value: &Value) -> Option<Vec<Value>> {
        let Node::List(links) = self.tree.node(value.link) else {
            self.mismatch(value, "a list");
            return None;
        };
        if links.len() > MAX_ITEMS {
            self.error(value, format!("has {} items: accepted are at most {MAX_ITEMS}", links.len()));
            return None;
        }
        if !self.report.visit(links.len(), value.position(), &value.path) {
            return None;
        }
        let item = |(index, &link): (usize, &Link)| Value { link, path: format!("{}[{index}]", value.path) };
        Some(links.iter().enumerate().map(item).collect())
    }

    /// Text that may have any character except NUL.
    pub fn text(&mut self, value: &Value) -> Option<String> {
        let Some(scalar) = self.tree.scalar(value.link) else {
            self.mismatch(value, "text");
            return None;
        };
        let text = &*scalar.text;
        match scalar.kind {
            Kind::Text if is_placeholder(text) || is_elision(text) => {
                self.mismatch(value, "the value that it stands for")
            }
            Kind::Text if text.len() > MAX_TEXT => {
                self.error(value, format!("has {} bytes: accepted are at most {MAX_TEXT}", text.len()));
            }
            Kind::Text if text.contains('\0') => self.error(value, "a NUL character is not accepted"),
            Kind::Text => return Some(text.to_owned()),
            Kind::Null => self.mismatch(value, "text"),
            Kind::Boolean => self.error(value, format!("{text} is a boolean, not text: write \"{text}\"")),
            Kind::Number => self.error(value, format!("{} is a number, not text: put it in quotes", short(text))),
            Kind::Tagged => self.error(value, "a tag is not accepted: write text"),
        }
        None
    }

    /// Text without control characters.
    pub fn line(&mut self, value: &Value) -> Option<String> {
        let text = self.text(value)?;
        if text.contains(|char: char| char.is_control()) {
            self.error(value, format!("invalid value {}: control characters are not accepted", quoted(&text)));
            return None;
        }
        Some(text)
    }

    /// Text without control characters that is neither empty nor longer than names are in Kubernetes.
    pub fn name(&mut self, value: &Value) -> Option<String> {
        let text = self.line(value)?;
        if text.is_empty() || text.len() > MAX_NAME {
            let message = format!("invalid value {}: accepted are names of 1 to {MAX_NAME} bytes", quoted(&text));
            self.error(value, message);
            return None;
        }
        Some(text)
    }

    /// Whether the value is a number, as opposed to text.
    pub fn is_number(&self, value: &Value) -> bool {
        self.tree.scalar(value.link).is_some_and(|scalar| scalar.kind == Kind::Number)
    }

    /// A whole number within the limits.
    pub fn number(&mut self, value: &Value, least: u32, most: u32) -> Option<u32> {
        let Some(scalar) = self.tree.scalar(value.link) else {
            self.mismatch(value, "a whole number");
            return None;
        };
        let text = &*scalar.text;
        let digits = text.strip_prefix('-').unwrap_or(text);
        let is_whole = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let is_decimal = is_whole && (digits == "0" || !digits.starts_with('0'));
        match scalar.kind {
            Kind::Number if is_decimal => {
                let number = text.parse().ok().filter(|number| (least..=most).contains(number));
                if number.is_none() {
                    let message =
                        format!("invalid value {}: accepted are whole numbers from {least} to {most}", short(text));
                    self.error(value, message);
                }
                return number;
            }
            Kind::Text if is_decimal => {
                self.error(value, format!("{} is text: write the number without quotes", quoted(text)));
            }
            _ => self.mismatch(value, "a whole number"),
        }
        None
    }

    /// A number of seconds, or of times. Which of them a probe accepts is the matter of [`vm_watchdog_probes`].
    pub fn count(&mut self, value: &Value) -> Option<u32> {
        self.number(value, 0, MAX_NUMBER)
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// A number of the file, for messages: as it is, unless it is long.
fn short(number: &str) -> String {
    if number.len() <= 64 { number.to_owned() } else { quoted(number) }
}

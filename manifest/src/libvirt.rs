//! libvirt's `<watchdog model= action=/>`, alone or in the XML of a domain.
//!
//! <https://libvirt.org/formatdomain.html#watchdog-devices>

use quick_xml::escape::unescape;
use quick_xml::events::{BytesStart, Event};
use quick_xml::name::QName;
use quick_xml::{Reader, XmlVersion};
use vm_watchdog::{Action, DeviceModel};
use vm_watchdog_timeline::bounded;

use crate::actions::{MODEL_NAMES, action, model};
use crate::manifest::{Dialect, Located, Manifest, Watchdog};
use crate::near::near;
use crate::problem::{Position, Report, plain, quoted};
use crate::text;

const ACTIONS: [Action; 7] =
    [Action::Reset, Action::Shutdown, Action::Poweroff, Action::Pause, Action::None, Action::Dump, Action::InjectNmi];
/// libvirt's models that this project does not have.
const OTHER_MODELS: [&str; 2] = ["itco", "ib700"];
/// How deep elements may be in each other.
const MAX_DEPTH: usize = 64;
const MAX_WATCHDOGS: usize = 16;
/// The most attributes of a watchdog, and of its alias.
const MAX_ATTRIBUTES: usize = 32;
/// The longest name, in bytes.
const MAX_NAME: usize = 253;

/// An element, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Element {
    Domain,
    Name,
    Devices,
    Watchdog,
    Other,
}

/// Reads the watchdogs of a domain.
pub fn parse(text: &str, report: &mut Report) -> Manifest {
    let mut parser = Parser {
        text,
        report,
        manifest: Manifest::new(Dialect::Libvirt),
        open: Vec::new(),
        name: None,
        others: Vec::new(),
        count: 0,
        has_last: false,
        has_domain: false,
    };
    if let Err((offset, message)) = parser.run() {
        let position = text::position(text, offset);
        parser.report.error(position, "", message);
    }
    parser.finish()
}

struct Parser<'t, 'r> {
    text: &'t str,
    report: &'r mut Report,
    manifest: Manifest,
    /// The elements that have begun and not ended.
    open: Vec<Element>,
    /// The name of the domain, and where it begins.
    name: Option<(String, usize)>,
    /// Watchdogs of models that this project does not have.
    others: Vec<(Position, String)>,
    /// How many watchdogs there were so far.
    count: usize,
    /// Whether the last of them is in the manifest.
    has_last: bool,
    has_domain: bool,
}

/// What ends the parsing, and the byte offset.
type Stop = (usize, String);

impl Parser<'_, '_> {
    fn run(&mut self) -> Result<(), Stop> {
        let mut reader = Reader::from_str(self.text);
        reader.config_mut().expand_empty_elements = true;
        loop {
            let offset = usize::try_from(reader.buffer_position()).unwrap_or(self.text.len());
            let event = reader.read_event().map_err(|error| {
                let offset = usize::try_from(reader.error_position()).unwrap_or(self.text.len());
                (offset, format!("not valid XML: {}", bounded(&error)))
            })?;
            match event {
                Event::Start(element) => self.begin(&element, offset)?,
                Event::End(_) => drop(self.open.pop()),
                Event::Text(text) => self.characters(&text, offset)?,
                Event::CData(text) => self.characters(&text, offset)?,
                Event::GeneralRef(name) if self.open.last() == Some(&Element::Name) => {
                    let text = format!("&{};", String::from_utf8_lossy(&name));
                    let text =
                        unescape(&text).map_err(|error| (offset, format!("not valid XML: {}", bounded(&error))))?;
                    self.append(&text, offset)?;
                }
                Event::DocType(_) => {
                    return Err((offset, "a document type is not accepted, nor entities of its own".to_owned()));
                }
                Event::Eof if self.open.is_empty() => return Ok(()),
                Event::Eof => {
                    return Err((
                        self.text.len(),
                        format!("not valid XML: {} elements are not closed", self.open.len()),
                    ));
                }
                _ => {}
            }
        }
    }

    fn begin(&mut self, element: &BytesStart<'_>, offset: usize) -> Result<(), Stop> {
        if self.open.len() >= MAX_DEPTH {
            return Err((offset, format!("elements nested deeper than {MAX_DEPTH}, which is the limit")));
        }
        let name = String::from_utf8_lossy(QName::as_ref(&element.name())).into_owned();
        let known: &[&str] = match self.open[..] {
            [] => &["domain", "watchdog"],
            [Element::Domain] => &["devices", "name"],
            [Element::Domain, Element::Devices] => &["watchdog"],
            _ => &[],
        };
        let kind = match &*name {
            "alias" if matches!(self.open[..], [.., Element::Watchdog]) => {
                self.alias(element, offset)?;
                Element::Other
            }
            "watchdog" if matches!(self.open[..], [Element::Domain]) => {
                return Err((offset, "<watchdog> has no effect here: it belongs in domain/devices".to_owned()));
            }
            "domain" if known.contains(&"domain") => {
                if self.has_domain {
                    return Err((offset, "several domains: accepted is one".to_owned()));
                }
                self.has_domain = true;
                Element::Domain
            }
            "name" if known.contains(&"name") => Element::Name,
            "devices" if known.contains(&"devices") => Element::Devices,
            "watchdog" if known.contains(&"watchdog") => {
                self.watchdog(element, offset)?;
                Element::Watchdog
            }
            _ => {
                self.other(&name, known, offset)?;
                Element::Other
            }
        };
        self.open.push(kind);
        Ok(())
    }

    /// An element that is none of ours.
    fn other(&self, name: &str, known: &[&str], offset: usize) -> Result<(), Stop> {
        if let Some(meant) = near(name, known.iter().copied()) {
            return Err((offset, format!("unknown element {}: did you mean {meant}?", quoted(name))));
        }
        if self.open.is_empty() {
            return Err((offset, format!("unknown element {}: accepted are {}", quoted(name), known.join(", "))));
        }
        Ok(())
    }

    fn watchdog(&mut self, element: &BytesStart<'_>, offset: usize) -> Result<(), Stop> {
        self.count += 1;
        if self.count > MAX_WATCHDOGS {
            return Err((offset, format!("more than {MAX_WATCHDOGS} watchdogs, which is the limit")));
        }
        self.has_last = false;
        let position = text::position(self.text, offset);
        let path = if self.open.is_empty() { "watchdog" } else { "domain/devices/watchdog" };
        let attributes = attributes(element, offset)?;
        let mut found = [None, None];
        for (key, value) in &attributes {
            let path = format!("{path}/@{}", plain(key, b":."));
            match &**key {
                "model" => found[0] = Some(value),
                "action" => found[1] = Some(value),
                key => {
                    if let Some(meant) = near(key, ["model", "action"]) {
                        self.report.error(position, &path, format!("unknown attribute: did you mean {meant}?"));
                    } else {
                        self.report.warn(position, &path, "unknown attribute, ignored: accepted are model, action");
                    }
                }
            }
        }
        let action = match found[1].map_or(Ok(Action::default()), |name| action(name, &ACTIONS)) {
            Ok(action) => Some(action),
            Err(message) => {
                self.report.error(position, &format!("{path}/@action"), message);
                None
            }
        };
        match found[0] {
            Some(name) if OTHER_MODELS.contains(&name.as_str()) => self.others.push((position, name.clone())),
            Some(name) => match model(name) {
                Ok(model) => {
                    let watchdog = Watchdog::new(model, action.unwrap_or_default(), None);
                    self.manifest.watchdogs.push(Located::new(watchdog, position, path));
                    self.has_last = true;
                }
                Err(message) => self.report.error(position, &format!("{path}/@model"), message),
            },
            None => {
                let message = format!("missing: accepted are {}", MODEL_NAMES.join(", "));
                self.report.error(position, &format!("{path}/@model"), message);
            }
        }
        Ok(())
    }

    /// `<alias name='ua-wd'/>` in a watchdog.
    fn alias(&mut self, element: &BytesStart<'_>, offset: usize) -> Result<(), Stop> {
        let name = attributes(element, offset)?.into_iter().find(|(key, _)| key == "name").map(|(_, name)| name);
        let Some(name) = name else { return Ok(()) };
        check_name(&name).map_err(|message| (offset, message))?;
        if let Some(watchdog) = self.manifest.watchdogs.last_mut().filter(|_| self.has_last) {
            watchdog.value.name = Some(name);
        }
        Ok(())
    }

    fn characters(&mut self, text: &[u8], offset: usize) -> Result<(), Stop> {
        match self.open.last() {
            None if !text.trim_ascii().is_empty() => {
                Err((offset, "not valid XML: text outside of an element".to_owned()))
            }
            Some(Element::Name) => self.append(&String::from_utf8_lossy(text), offset),
            _ => Ok(()),
        }
    }

    /// Text of the domain's name.
    fn append(&mut self, text: &str, offset: usize) -> Result<(), Stop> {
        let (name, _) = self.name.get_or_insert_with(|| (String::new(), offset));
        if name.len() + text.len() > MAX_NAME {
            return Err((
                offset,
                format!("the name of the domain is longer than {MAX_NAME} bytes, which is the limit"),
            ));
        }
        name.push_str(text);
        Ok(())
    }

    fn finish(mut self) -> Manifest {
        if let Some((name, offset)) = self.name.take() {
            let position = text::position(self.text, offset);
            match check_name(name.trim()) {
                Ok(()) => self.manifest.name = Some(name.trim().to_owned()),
                Err(message) => self.report.error(position, "domain/name", message),
            }
        }
        let has_ours = !self.manifest.watchdogs.is_empty();
        for (position, model) in &self.others {
            if has_ours {
                self.report.warn(*position, "watchdog", format!("{model} is left to the VMM"));
            } else {
                let part =
                    if model == "itco" { " (a part of QEMU's machine q35, which libvirt lists by itself)" } else { "" };
                let message =
                    format!("model {model:?}{part} is not available: accepted are {}", MODEL_NAMES.join(", "));
                self.report.error(*position, "watchdog/@model", message);
            }
        }
        let models = self.manifest.watchdogs.iter().filter(|watchdog| watchdog.value.model == DeviceModel::Diag288);
        if let Some(second) = models.skip(1).map(|watchdog| watchdog.position).next() {
            self.report.error(second, "watchdog", "a second diag288: a VM has at most one");
        }
        self.manifest
    }
}

/// The attributes of an element, in bounds, without the check of all against all.
fn attributes(element: &BytesStart<'_>, offset: usize) -> Result<Vec<(String, String)>, Stop> {
    let mut found: Vec<(String, String)> = Vec::new();
    for attribute in element.attributes().with_checks(false) {
        let attribute = attribute.map_err(|error| (offset, format!("not valid XML: {}", bounded(&error))))?;
        if found.len() >= MAX_ATTRIBUTES {
            return Err((offset, format!("more than {MAX_ATTRIBUTES} attributes, which is the limit")));
        }
        let key = String::from_utf8_lossy(QName::as_ref(&attribute.key)).into_owned();
        if found.iter().any(|(known, _)| *known == key) {
            return Err((offset, format!("not valid XML: attribute {} is given twice", quoted(&key))));
        }
        let value = attribute.normalized_value(XmlVersion::Explicit1_0);
        let value = value.map_err(|error| (offset, format!("not valid XML: {}", bounded(&error))))?;
        found.push((key, value.into_owned()));
    }
    Ok(found)
}

fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > MAX_NAME || name.contains(|char: char| char.is_control()) {
        let message = "accepted are names of 1 to";
        return Err(format!("invalid name {}: {message} {MAX_NAME} bytes without control characters", quoted(name)));
    }
    Ok(())
}

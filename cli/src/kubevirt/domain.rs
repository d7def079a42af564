//! What is in the XML of a libvirt domain, with the places where ours goes.
//!
//! <https://libvirt.org/formatdomain.html>, <https://libvirt.org/drvqemu.html#pass-through-of-arbitrary-qemu-commands>

use std::ops::Range;

use quick_xml::events::{BytesStart, Event};
use quick_xml::name::QName;
use quick_xml::{Reader, XmlVersion};
use vm_watchdog_timeline::bounded;

use crate::kubevirt::MAX_LENGTH;
use crate::kubevirt::error::{HookError, quoted};

/// The namespace of options for QEMU.
pub const QEMU: &str = "http://libvirt.org/schemas/domain/qemu/1.0";
/// How deep elements may be in each other.
const MAX_DEPTH: usize = 64;
/// The most attributes of an element.
const MAX_ATTRIBUTES: usize = 32;
/// The most options for QEMU.
const MAX_OPTIONS: usize = 1024;
/// How many slots a PCI bus has.
pub const SLOTS: usize = 32;

/// A domain.
#[derive(Debug)]
pub struct Domain<'x> {
    pub xml: &'x str,
    /// Where a further attribute of the root may be written.
    pub attributes_at: usize,
    /// Where the end tag of the root begins.
    pub end: usize,
    /// The prefixes that the root declares, and whether each means [`QEMU`]. The default namespace has an empty one.
    pub prefixes: Vec<(String, bool)>,
    /// Of `os/type`.
    pub architecture: Option<String>,
    pub machine: Option<String>,
    /// The models of the watchdogs, and where they are.
    pub watchdogs: Vec<(String, usize)>,
    /// The slots of the first PCI bus that devices use.
    pub slots: [bool; SLOTS],
    /// The elements with options for QEMU; libvirt accepts several.
    pub commandlines: Vec<Commandline>,
}

/// An element with options for QEMU.
#[derive(Debug)]
pub struct Commandline {
    /// Its name with the prefix.
    pub name: String,
    /// Its start tag, which is the whole element if it `is_empty`.
    pub start: Range<usize>,
    pub is_empty: bool,
    pub options: Vec<QemuOption>,
}

/// A word of QEMU's command line.
#[derive(Debug)]
pub struct QemuOption {
    /// The whole element.
    pub range: Range<usize>,
    pub value: String,
}

impl Commandline {
    /// Its prefix with the colon, if it has one.
    pub fn prefix(&self) -> &str {
        self.name.split_once(':').map_or("", |(prefix, _)| &self.name[..=prefix.len()])
    }
}

/// An element that has begun, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Element {
    Domain,
    Os,
    Devices,
    Device,
    Commandline,
    QemuOption,
    Other,
}

impl<'x> Domain<'x> {
    /// Reads the XML of a domain.
    ///
    /// # Errors
    ///
    /// The place of what is no XML, no domain, or beyond a limit.
    pub fn parse(xml: &'x str) -> Result<Self, HookError> {
        if xml.len() > MAX_LENGTH {
            return Err(HookError::TooLong { argument: "domain", length: xml.len() });
        }
        let domain = Self {
            xml,
            attributes_at: 0,
            end: 0,
            prefixes: Vec::new(),
            architecture: None,
            machine: None,
            watchdogs: Vec::new(),
            slots: [false; SLOTS],
            commandlines: Vec::new(),
        };
        let mut parser = Parser { domain, open: Vec::new(), declared: Vec::new() };
        parser.run().map_err(|(offset, message)| HookError::domain(xml, offset, message))?;
        Ok(parser.domain)
    }
}

/// What ends the parsing, and the byte offset.
type Stop = (usize, String);

struct Parser<'x> {
    domain: Domain<'x>,
    /// The elements that have begun and not ended.
    open: Vec<Element>,
    /// The prefixes that the root and the open element in it declare.
    declared: Vec<Vec<(String, bool)>>,
}

impl Parser<'_> {
    fn run(&mut self) -> Result<(), Stop> {
        let xml = self.domain.xml;
        let mut reader = Reader::from_str(xml);
        let offset = |position: u64| usize::try_from(position).unwrap_or(xml.len());
        let mut has_ended = false;
        loop {
            let begin = offset(reader.buffer_position());
            let event = reader
                .read_event()
                .map_err(|error| (offset(reader.error_position()), format!("not valid XML: {}", bounded(&error))))?;
            let end = offset(reader.buffer_position());
            match event {
                Event::Start(_) | Event::Empty(_) if has_ended => {
                    return Err((begin, "not valid XML: a second root element".to_owned()));
                }
                Event::Start(element) => {
                    let element = self.begin(&element, begin..end, false)?;
                    self.open.push(element);
                }
                Event::Empty(element) => {
                    let is_root = self.begin(&element, begin..end, true)? == Element::Domain;
                    if is_root {
                        return Err((begin, "the domain is empty".to_owned()));
                    }
                }
                Event::End(_) => {
                    match self.open.pop() {
                        Some(Element::Domain) => (self.domain.end, has_ended) = (begin, true),
                        Some(Element::QemuOption) => {
                            let commandline = self.domain.commandlines.last_mut();
                            if let Some(option) = commandline.and_then(|commandline| commandline.options.last_mut()) {
                                option.range.end = end;
                            }
                        }
                        _ => {}
                    }
                    self.declared.truncate(self.open.len());
                }
                Event::Text(text) if self.open.is_empty() && !text.trim_ascii().is_empty() => {
                    return Err((begin, "not valid XML: text outside of an element".to_owned()));
                }
                Event::DocType(_) => {
                    return Err((begin, "a document type is not accepted, nor entities of its own".to_owned()));
                }
                Event::Eof if has_ended => return Ok(()),
                Event::Eof => {
                    let message = format!("not valid XML: {} elements are not closed", self.open.len());
                    return Err((xml.len(), if self.open.is_empty() { "no XML".to_owned() } else { message }));
                }
                _ => {}
            }
        }
    }

    fn begin(&mut self, element: &BytesStart<'_>, range: Range<usize>, is_empty: bool) -> Result<Element, Stop> {
        if self.open.len() >= MAX_DEPTH {
            return Err((range.start, format!("elements nested deeper than {MAX_DEPTH}, which is the limit")));
        }
        let name = String::from_utf8_lossy(QName::as_ref(&element.name())).into_owned();
        let attributes = attributes(element, range.start)?;
        let attribute = |name: &str| attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let declared = if self.open.len() <= 2 { declared(&attributes) } else { Vec::new() };
        let begun = match (&self.open[..], &*name) {
            ([], "domain") => {
                self.domain.attributes_at = range.start + "<domain".len();
                self.domain.prefixes = declared.clone();
                Element::Domain
            }
            ([], _) => return Err((range.start, format!("the root is {}: accepted is domain", quoted(&name)))),
            ([Element::Domain], "os") => Element::Os,
            ([Element::Domain], "devices") => Element::Devices,
            ([Element::Domain], _) if self.is_of_qemu(&name, "commandline", &declared) => {
                self.domain.commandlines.push(Commandline { name, start: range, is_empty, options: Vec::new() });
                Element::Commandline
            }
            ([Element::Domain, Element::Os], "type") => {
                self.domain.architecture = attribute("arch").map(str::to_owned);
                self.domain.machine = attribute("machine").map(str::to_owned);
                Element::Other
            }
            ([Element::Domain, Element::Devices], _) => {
                if name == "watchdog" {
                    self.domain.watchdogs.push((attribute("model").unwrap_or_default().to_owned(), range.start));
                }
                Element::Device
            }
            // The address of the device in the guest. That of a host's device is in <source>.
            ([Element::Domain, Element::Devices, Element::Device], "address") => {
                let is_zero = |name| attribute(name).is_none_or(|value| number(value) == Some(0));
                let slot = attribute("slot").and_then(number).filter(|_| attribute("type") == Some("pci"));
                if is_zero("domain") && is_zero("bus") {
                    slot.and_then(|slot| self.domain.slots.get_mut(slot)).into_iter().for_each(|used| *used = true);
                }
                Element::Other
            }
            ([Element::Domain, Element::Commandline], _) if self.is_of_qemu(&name, "arg", &declared) => {
                let value = attribute("value").unwrap_or_default().to_owned();
                let count: usize = self.domain.commandlines.iter().map(|commandline| commandline.options.len()).sum();
                if count >= MAX_OPTIONS {
                    return Err((range.start, format!("more than {MAX_OPTIONS} options, which is the limit")));
                }
                if let Some(commandline) = self.domain.commandlines.last_mut() {
                    commandline.options.push(QemuOption { range, value });
                }
                Element::QemuOption
            }
            _ => Element::Other,
        };
        if !is_empty && self.open.len() < 2 {
            self.declared.push(declared);
        }
        Ok(begun)
    }

    /// Whether it is this element of QEMU's namespace.
    fn is_of_qemu(&self, name: &str, local: &str, own: &[(String, bool)]) -> bool {
        let (prefix, found) = name.split_once(':').unwrap_or(("", name));
        let outer = self.declared.iter().rev().flatten();
        let declaration = own.iter().chain(outer).find(|(declared, _)| declared == prefix);
        found == local && declaration.is_some_and(|(_, is_qemu)| *is_qemu)
    }
}

/// The prefixes that an element declares.
fn declared(attributes: &[(String, String)]) -> Vec<(String, bool)> {
    let prefix = |key: &str| match key {
        "xmlns" => Some(String::new()),
        key => key.strip_prefix("xmlns:").map(str::to_owned),
    };
    attributes.iter().filter_map(|(key, value)| Some((prefix(key)?, value == QEMU))).collect()
}

/// A number of libvirt: decimal, or hexadecimal with 0x.
fn number(text: &str) -> Option<usize> {
    match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        Some(digits) => usize::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
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

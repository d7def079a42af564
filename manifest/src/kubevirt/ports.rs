//! Ports that have names: those of the interfaces of a VM.

use crate::problem::quoted;
use crate::reader::{Others, Reader, Value};

/// The named TCP ports of a VM, which are read when a probe has the name of one.
pub struct Ports {
    interfaces: Option<Value>,
    names: Option<Vec<(String, u16)>>,
}

impl Ports {
    pub fn new(interfaces: Option<&Value>) -> Self {
        Self { interfaces: interfaces.cloned(), names: None }
    }

    /// The number of a port: a number, or the name of a port of an interface.
    pub fn resolve(&mut self, reader: &mut Reader<'_, '_>, value: &Value) -> Option<u16> {
        if reader.is_number(value) {
            return number(reader, value);
        }
        let name = reader.line(value)?;
        if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit()) {
            reader.error(value, format!("{} is text: write the number without quotes", quoted(&name)));
            return None;
        }
        let names = self.names.get_or_insert_with(|| read(reader, self.interfaces.as_ref()));
        let mut numbers: Vec<u16> =
            names.iter().filter(|(known, _)| *known == name).map(|(_, number)| *number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        match numbers[..] {
            [number] => Some(number),
            [] => {
                let list = names.iter().take(8).map(|(name, _)| quoted(name)).collect::<Vec<_>>();
                let known = if list.is_empty() { "which have no named TCP port".to_owned() } else { list.join(", ") };
                let message = format!(
                    "unknown port {}: accepted are 1 to 65535 and the ports of the interfaces, {known}",
                    quoted(&name)
                );
                reader.error(value, message);
                None
            }
            _ => {
                let numbers: Vec<_> = numbers.iter().take(8).map(u16::to_string).collect();
                reader.error(value, format!("several ports are called {}: {}", quoted(&name), numbers.join(", ")));
                None
            }
        }
    }
}

fn number(reader: &mut Reader<'_, '_>, value: &Value) -> Option<u16> {
    reader.number(value, 1, u16::MAX.into()).and_then(|number| u16::try_from(number).ok())
}

fn read(reader: &mut Reader<'_, '_>, interfaces: Option<&Value>) -> Vec<(String, u16)> {
    let mut found = Vec::new();
    for interface in interfaces.and_then(|interfaces| reader.items(interfaces)).unwrap_or_default() {
        let Some(interface) = reader.fields(&interface, &["name", "ports"], Others::Ignored) else { continue };
        for port in interface.get("ports").and_then(|ports| reader.items(ports)).unwrap_or_default() {
            let Some(port) = reader.fields(&port, &["name", "port", "protocol"], Others::Ignored) else { continue };
            let (Some(name), Some(value)) = (port.get("name"), port.get("port")) else { continue };
            let protocol = port.get("protocol").and_then(|protocol| reader.line(protocol));
            let (name, number) = (reader.name(name), number(reader, value));
            if let (Some(name), Some(number), None | Some("TCP")) = (name, number, protocol.as_deref()) {
                found.push((name, number));
            }
        }
    }
    found
}

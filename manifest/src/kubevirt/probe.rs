//! The probes of a VM. Which values they may have is the matter of [`vm_watchdog_probes`]; here are their positions.

use vm_watchdog_probes::{Handler, Probe, ProbeKind, Scheme};

use super::ports::Ports;
use crate::manifest::Located;
use crate::near::hint;
use crate::problem::{Position, quoted};
use crate::reader::{Fields, Others, Reader, Value};

const HANDLERS: [&str; 4] = ["httpGet", "tcpSocket", "exec", "guestAgentPing"];
const FIELDS: [&str; 10] = [
    HANDLERS[0],
    HANDLERS[1],
    HANDLERS[2],
    HANDLERS[3],
    "initialDelaySeconds",
    "periodSeconds",
    "timeoutSeconds",
    "successThreshold",
    "failureThreshold",
    "terminationGracePeriodSeconds",
];

pub fn read(reader: &mut Reader<'_, '_>, value: &Value, kind: ProbeKind, ports: &mut Ports) -> Option<Located<Probe>> {
    let errors = reader.report.error_count();
    let fields = reader.fields(value, &FIELDS, Others::Warned)?;
    let mut at = Positions { fields: Vec::new(), probe: value.clone() };
    let handler = handler(reader, &fields, ports, &mut at);
    let mut count = |name: &str| {
        let value = fields.get(name)?;
        at.fields.push((name.to_owned(), value.position()));
        reader.count(value)
    };
    let (initial_delay, period) = (count("initialDelaySeconds"), count("periodSeconds"));
    let (timeout, failures) = (count("timeoutSeconds"), count("failureThreshold"));
    let (successes, grace) = (count("successThreshold"), count("terminationGracePeriodSeconds"));
    if reader.report.error_count() > errors {
        return None;
    }
    let default = Probe::new(handler?);
    let probe = Probe {
        initial_delay_s: initial_delay.unwrap_or(default.initial_delay_s),
        period_s: period.unwrap_or(default.period_s),
        timeout_s: timeout.unwrap_or(default.timeout_s),
        failure_threshold: failures.unwrap_or(default.failure_threshold),
        success_threshold: successes.unwrap_or(default.success_threshold),
        termination_grace_period_s: grace,
        handler: default.handler,
    };
    match probe.checked(kind) {
        Ok(probe) => {
            for warning in probe.warnings() {
                let (field, message) = warning.split_once(": ").unwrap_or(("", &warning));
                let (position, path) = at.find(field);
                reader.report.warn(position, &path, message);
            }
            Some(Located::new(probe, value.position(), value.path.as_str()))
        }
        Err(error) => {
            for field in error.fields() {
                let (position, path) = at.find(field.field());
                let text: String = field.value().chars().take(100).collect();
                reader.report.error(position, &path, format!("invalid value {text}: {}", field.accepted()));
            }
            None
        }
    }
}

/// Where the fields of a probe stand, by their paths in it.
struct Positions {
    fields: Vec<(String, Position)>,
    probe: Value,
}

impl Positions {
    /// Where a field stands, and its path in the document. A field that is absent is at its probe.
    fn find(&self, field: &str) -> (Position, String) {
        let found = self.fields.iter().find(|(known, _)| known == field).map(|(_, position)| *position);
        let dot = if field.is_empty() { "" } else { "." };
        (found.unwrap_or(self.probe.position()), format!("{}{dot}{field}", self.probe.path))
    }

    fn add(&mut self, value: &Value) {
        let field = value.path.strip_prefix(&self.probe.path).unwrap_or_default().trim_start_matches('.');
        self.fields.push((field.to_owned(), value.position()));
    }
}

/// Exactly one handler.
fn handler(reader: &mut Reader<'_, '_>, probe: &Fields, ports: &mut Ports, at: &mut Positions) -> Option<Handler> {
    let present: Vec<_> = HANDLERS.into_iter().filter_map(|name| Some((name, probe.get(name)?))).collect();
    if let Some((name, position)) = probe.nulls.iter().find(|(name, _)| HANDLERS.contains(name)) {
        let message = format!("has no value, which means no handler: write {name}: {{}} or its fields");
        reader.report.error(*position, &probe.path(name), message);
        return None;
    }
    let (name, value) = match present[..] {
        [one] => one,
        [] => {
            if !probe.has_reported {
                let message = format!("no handler: accepted is exactly one of {}", HANDLERS.join(", "));
                reader.report.error(probe.position, &probe.path, message);
            }
            return None;
        }
        [..] => {
            let names: Vec<_> = present.iter().map(|(name, _)| *name).collect();
            reader.report.error(
                present[1].1.position(),
                &probe.path,
                format!("{}: accepted is exactly one handler", names.join(" and ")),
            );
            return None;
        }
    };
    match name {
        "httpGet" => http_get(reader, value, ports, at),
        "tcpSocket" => {
            let fields = reader.fields(value, &["host", "port"], Others::Warned)?;
            let port = port(reader, &fields, ports);
            Some(Handler::TcpSocket { host: host(reader, &fields, at), port: port? })
        }
        "exec" => {
            let fields = reader.fields(value, &["command"], Others::Warned)?;
            let command = match fields.get("command") {
                Some(command) => {
                    at.add(command);
                    let items = reader.items(command)?;
                    items.iter().for_each(|item| at.add(item));
                    items.iter().map(|item| reader.text(item)).collect::<Option<_>>()?
                }
                None => Vec::new(),
            };
            Some(Handler::Exec { command })
        }
        _ => reader.fields(value, &[], Others::Warned).map(|_| Handler::GuestAgentPing),
    }
}

fn http_get(reader: &mut Reader<'_, '_>, value: &Value, ports: &mut Ports, at: &mut Positions) -> Option<Handler> {
    let fields = reader.fields(value, &["host", "httpHeaders", "path", "port", "scheme"], Others::Warned)?;
    let port = port(reader, &fields, ports);
    let host = host(reader, &fields, at);
    let path = fields.get("path").and_then(|path| reader.line(path)).filter(|path| !path.is_empty());
    let scheme = fields.get("scheme").and_then(|scheme| Some((reader.line(scheme)?, scheme)));
    let scheme = match scheme.filter(|(name, _)| !name.is_empty()) {
        None => Scheme::default(),
        Some((name, value)) => name.parse().unwrap_or_else(|_| {
            let hint = hint(&name, &[Scheme::Http.as_str(), Scheme::Https.as_str()]);
            reader.error(value, format!("unknown scheme {}: {hint}", quoted(&name)));
            Scheme::default()
        }),
    };
    let mut headers = Vec::new();
    for header in fields.get("httpHeaders").and_then(|headers| reader.items(headers)).unwrap_or_default() {
        let header = reader.fields(&header, &["name", "value"], Others::Warned)?;
        let mut part = |name: &str| match header.get(name) {
            Some(value) => {
                at.add(value);
                reader.text(value)
            }
            None => {
                reader.report.error(header.position, &header.path(name), "missing");
                None
            }
        };
        let (name, value) = (part("name"), part("value"));
        headers.push((name?, value?));
    }
    Some(Handler::HttpGet { scheme, host, port: port?, path: path.unwrap_or_else(|| "/".to_owned()), headers })
}

fn port(reader: &mut Reader<'_, '_>, fields: &Fields, ports: &mut Ports) -> Option<u16> {
    let Some(port) = fields.get("port") else {
        if !fields.has_reported {
            let message = "missing: accepted are 1 to 65535 and the name of a port of an interface";
            reader.report.error(fields.position, &fields.path("port"), message);
        }
        return None;
    };
    ports.resolve(reader, port)
}

/// Empty text is the same as none.
fn host(reader: &mut Reader<'_, '_>, fields: &Fields, at: &mut Positions) -> Option<String> {
    let host = fields.get("host")?;
    at.add(host);
    reader.line(host).filter(|host| !host.is_empty())
}

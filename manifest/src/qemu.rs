//! QEMU's options, as text of a command line: `-device i6300esb -action watchdog=poweroff`.
//!
//! <https://www.qemu.org/docs/master/system/invocation.html>

use vm_watchdog::{Action, DeviceModel};

use crate::actions::{MODEL_NAMES, action, model};
use crate::manifest::{Dialect, Located, Manifest, Watchdog};
use crate::near::{is_placeholder, near};
use crate::problem::{Position, Report, quoted};
use crate::reader::{Others, Reader, Value};
use crate::shell::{Word, words};
use crate::yaml::Tree;

const ACTIONS: [Action; 7] =
    [Action::Reset, Action::Shutdown, Action::Poweroff, Action::InjectNmi, Action::Pause, Action::Debug, Action::None];
/// QEMU's watchdogs that this project does not have.
const OTHER_MODELS: [&str; 2] = ["ib700", "spapr-wdt"];
/// The most words of a file. A command line that libvirt makes has some hundreds.
const MAX_WORDS: usize = 20_000;
const MAX_WATCHDOGS: usize = 16;
/// The longest name, in bytes.
const MAX_NAME: usize = 253;

/// Reads the watchdogs of a command line.
pub fn parse(text: &str, report: &mut Report) -> Manifest {
    let mut parser = Parser { report, manifest: Manifest::new(Dialect::Qemu), action: None };
    match words(text) {
        Ok(words) => match words.get(MAX_WORDS) {
            None => parser.options(&words),
            Some(word) => {
                let message = format!("more than {MAX_WORDS} words, which is the limit");
                parser.report.error(word.position, "", message);
            }
        },
        Err(unclosed) => parser.report.error(unclosed.0, "", "a quote begins here and does not end"),
    }
    parser.finish()
}

struct Parser<'r> {
    report: &'r mut Report,
    manifest: Manifest,
    /// The action that was given last, and where.
    action: Option<(Action, Position)>,
}

const OPTIONS: [&str; 4] = ["device", "action", "watchdog", "watchdog-action"];

impl Parser<'_> {
    fn options(&mut self, words: &[Word]) {
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let Some(option) = word.text.strip_prefix('-') else { continue };
            let option = option.strip_prefix('-').unwrap_or(option);
            if !OPTIONS.contains(&option) && option != "name" {
                // `-device=VALUE` is not how QEMU takes it.
                let stem = option.split('=').next().unwrap_or_default();
                if let Some(meant) = near(stem, OPTIONS).or(OPTIONS.into_iter().find(|known| *known == stem)) {
                    let message = format!("unknown option {}: did you mean -{meant} VALUE?", quoted(&word.text));
                    self.report.error(word.position, "", message);
                }
                continue;
            }
            let path = format!("-{option}");
            let Some(value) = words.next() else {
                self.report.error(word.position, &path, "has no value");
                return;
            };
            match option {
                "device" if value.text.starts_with('{') => self.json_device(value, &path),
                "device" => self.device(value, &path),
                "watchdog" => self.watchdog(&value.text, None, value.position, &path, true),
                "watchdog-action" => self.action(&value.text, value.position, &path),
                "action" => self.events(value, &path),
                _ => self.name(value),
            }
        }
    }

    /// `-device i6300esb,id=wd0`
    fn device(&mut self, value: &Word, path: &str) {
        let properties = properties(&value.text);
        let of = |name: &str| properties.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let driver = match properties.first() {
            Some((driver, first)) if first.is_empty() => driver,
            _ => of("driver").unwrap_or_default(),
        };
        if self.watchdog_device(driver, of("action").is_some(), value.position, path) {
            self.watchdog(driver, of("id"), value.position, path, false);
        }
    }

    /// `-device '{"driver": "i6300esb", "id": "wd0"}'`
    fn json_device(&mut self, value: &Word, path: &str) {
        let tree = match Tree::parse(&value.text) {
            Ok(tree) => tree,
            Err(problem) => {
                let message = problem.message().replace("YAML", "JSON");
                self.report.error(value.position, path, message);
                return;
            }
        };
        let Some(&root) = tree.documents.first() else { return };
        let mut report = Report::default();
        let mut reader = Reader { tree: &tree, report: &mut report, spec: "" };
        let root = Value { link: root, path: String::new() };
        let Some(fields) = reader.fields(&root, &["driver", "id", "action"], Others::Ignored) else { return };
        let mut text = |name| fields.get(name).and_then(|value| reader.line(value));
        let (driver, id) = (text("driver").unwrap_or_default(), text("id"));
        let is_ours = self.watchdog_device(&driver, fields.get("action").is_some(), value.position, path);
        if is_ours {
            for problem in report.finish().err().unwrap_or_default() {
                self.report.error(value.position, path, format!("{}: {}", problem.path(), problem.message()));
            }
            self.watchdog(&driver, id.as_deref(), value.position, path, false);
        }
    }

    /// Whether the device is a watchdog, or nearly one.
    fn watchdog_device(&mut self, driver: &str, has_action: bool, position: Position, path: &str) -> bool {
        let is_ours = MODEL_NAMES.contains(&driver);
        if is_ours && has_action {
            let message = format!("{driver} has no property action: write -action watchdog=ACTION");
            self.report.error(position, path, message);
        }
        is_ours || OTHER_MODELS.contains(&driver) || is_placeholder(driver) || near(driver, MODEL_NAMES).is_some()
    }

    /// A watchdog; `-watchdog`, which QEMU had until version 7.1, lists what it accepts for `help`.
    fn watchdog(&mut self, name: &str, id: Option<&str>, position: Position, path: &str, is_option: bool) {
        if self.manifest.watchdogs.len() >= MAX_WATCHDOGS {
            self.report.error(position, path, format!("more than {MAX_WATCHDOGS} watchdogs, which is the limit"));
            return;
        }
        if let Some(id) = id.filter(|id| !is_name(id)) {
            self.report.error(position, path, invalid_name("id", id));
            return;
        }
        match model(name) {
            Ok(DeviceModel::Diag288)
                if self.manifest.watchdogs.iter().any(|one| one.value.model == DeviceModel::Diag288) =>
            {
                self.report.error(position, path, "a second diag288: a VM has at most one");
            }
            Ok(model) => {
                let watchdog = Watchdog::new(model, Action::default(), id.map(str::to_owned));
                self.manifest.watchdogs.push(Located::new(watchdog, position, path));
                if is_option {
                    self.report.warn(
                        position,
                        path,
                        format!("QEMU 7.2 and newer have no -watchdog: write -device {name}"),
                    );
                }
            }
            Err(message) => self.report.error(position, path, message),
        }
    }

    /// `-action watchdog=poweroff,reboot=shutdown`
    fn events(&mut self, value: &Word, path: &str) {
        for (event, name) in properties(&value.text) {
            let path = format!("{path} watchdog");
            if event == "watchdog" {
                self.action(&name, value.position, &path);
            } else if near(&event, ["watchdog"]).is_some() {
                let message = format!("unknown event {}: did you mean watchdog?", quoted(&event));
                self.report.error(value.position, "-action", message);
            }
        }
    }

    fn action(&mut self, name: &str, position: Position, path: &str) {
        match action(name, &ACTIONS) {
            Ok(action) => {
                if let Some((first, at)) = self.action.filter(|(first, _)| *first != action) {
                    self.report.warn(position, path, format!("{action} replaces {first} of line {}", at.line));
                }
                self.action = Some((action, position));
            }
            Err(message) => self.report.error(position, path, message),
        }
    }

    /// `-name guest=NAME` or `-name NAME`
    fn name(&mut self, value: &Word) {
        let properties = properties(&value.text);
        let name = match properties.first() {
            Some((name, first)) if first.is_empty() => name.as_str(),
            _ => match properties.iter().find(|(key, _)| key == "guest") {
                Some((_, name)) => name,
                None => return,
            },
        };
        if is_name(name) {
            self.manifest.name = Some(name.to_owned());
        } else {
            self.report.error(value.position, "-name", invalid_name("name", name));
        }
    }

    fn finish(mut self) -> Manifest {
        if let Some((action, position)) = self.action {
            for watchdog in &mut self.manifest.watchdogs {
                watchdog.value.action = action;
            }
            if self.manifest.watchdogs.is_empty() && !self.report.has_errors() {
                self.report.warn(position, "", "an action without a watchdog: add -device i6300esb");
            }
        }
        self.manifest
    }
}

/// The parts of `a,b=c`, where `,,` is a comma. A part without a value has an empty one.
fn properties(text: &str) -> Vec<(String, String)> {
    let (mut parts, mut part) = (Vec::new(), String::new());
    let mut rest = text.chars().peekable();
    while let Some(char) = rest.next() {
        match char {
            ',' if rest.peek() == Some(&',') => part.extend(rest.next()),
            ',' => parts.push(std::mem::take(&mut part)),
            char => part.push(char),
        }
    }
    parts.push(part);
    let pair = |part: String| match part.split_once('=') {
        Some((key, value)) => (key.to_owned(), value.to_owned()),
        None => (part, String::new()),
    };
    parts.into_iter().map(pair).collect()
}

fn is_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len()) && !name.contains(|char: char| char.is_control())
}

fn invalid_name(what: &str, name: &str) -> String {
    format!("invalid {what} {}: accepted are 1 to {MAX_NAME} bytes without control characters", quoted(name))
}

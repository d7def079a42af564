//! Text of an operator: configurations of watchdogs, and the values of single options.
//!
//! A configuration that parses prints as text that parses back to it, does not depend on the order of its options, and
//! says what the text says. An error names the option, has no control characters, and is not much longer than the text.
//!
//! From the top of the repository, after `cargo install --locked cargo-fuzz`. New inputs go to `corpus`, which is not
//! in git:
//!
//! ```text
//! mkdir -p fuzz/corpus/configuration
//! cargo +nightly fuzz run configuration fuzz/corpus/configuration fuzz/seeds/configuration -- -max_total_time=30
//! ```

#![no_main]

use std::fmt::{Debug, Display};
use std::str::FromStr;
use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vm_watchdog::{Action, ConfigError, DeviceModel, WatchdogConfig};
use vm_watchdog_cli::fuzzing::option_values;
use vm_watchdog_probes::{GuestAddress, Scheme};
use vm_watchdog_vmm::MemorySize;

const KEYS: [&str; 13] = [
    "action",
    "pretimeout",
    "before",
    "grace",
    "then",
    "action-interval",
    "action-burst",
    "steal-limit",
    "id",
    "interrupt",
    "zvm",
    "period",
    "clock-frequency",
];
const WORDS: [&str; 9] = ["none", "intx", "msi", "refuse", "accept", "1ms", "1s", "0", ""];
const UNITS: [&str; 4] = ["ms", "s", "m", ""];

#[derive(Arbitrary, Debug)]
enum Input<'a> {
    /// A configuration of options that exist.
    Options { model: u8, options: Vec<(u8, Value<'a>)> },
    /// Text for every parser.
    Text(&'a str),
}

#[derive(Arbitrary, Debug)]
enum Value<'a> {
    Action(u8),
    Time(u64, u8),
    Number(u16),
    Word(u8),
    Text(&'a str),
}

fn one_of<T: Copy>(list: &[T], index: u8) -> T {
    list[usize::from(index) % list.len()]
}

impl Value<'_> {
    fn text(&self) -> String {
        match self {
            Self::Action(index) => one_of(&Action::ALL, *index).to_string(),
            Self::Time(number, unit) => format!("{number}{}", one_of(&UNITS, *unit)),
            Self::Number(number) => number.to_string(),
            Self::Word(index) => one_of(&WORDS, *index).to_owned(),
            Self::Text(text) => (*text).to_owned(),
        }
    }
}

fuzz_target!(|input: Input<'_>| {
    match input {
        Input::Options { model, options } => {
            let options = options.iter().map(|(key, value)| format!(",{}={}", one_of(&KEYS, *key), value.text()));
            configuration(&format!("{}{}", one_of(&DeviceModel::ALL, model), options.collect::<String>()));
        }
        Input::Text(text) => {
            configuration(text);
            values(text);
        }
    }
});

fn configuration(text: &str) {
    let config = match text.parse::<WatchdogConfig>() {
        Ok(config) => config,
        Err(error) => return refusal(text, &error),
    };
    let printed = config.to_string();
    assert_eq!(printed.parse().as_ref(), Ok(&config), "{text:?} prints as {printed:?}");
    let json = serde_json::to_string(&config).expect("text");
    assert_eq!(serde_json::from_str::<WatchdogConfig>(&json).expect("the same text"), config);

    let (model, options) = text.split_once(',').unwrap_or((text, ""));
    assert_eq!(config.model().as_str(), model);
    if options.is_empty() {
        return;
    }
    let reversed: Vec<&str> = options.split(',').rev().collect();
    assert_eq!(format!("{model},{}", reversed.join(",")).parse().as_ref(), Ok(&config), "the order matters");

    let value = |name: &str| {
        let mut words = options.split(',').filter_map(|word| word.split_once('='));
        words.find(|(key, _)| *key == name).map(|(_, value)| value)
    };
    let action = |name: &str| value(name).map(|value| value.parse::<Action>().expect("an action"));
    let policy = config.policy();
    assert_eq!(policy.timeout, action("action").unwrap_or_default());
    assert_eq!(policy.pretimeout, action("pretimeout").unwrap_or(Action::None));
    assert_eq!(policy.pretimeout_before, value("before").map(time));
    assert_eq!(policy.escalation.map(|escalation| escalation.action), action("then"));
    assert_eq!(policy.escalation.map(|escalation| escalation.grace), value("grace").map(time));
    assert_eq!(config.id(), value("id"));
    assert!(config.steal_limit().is_none_or(|times| (2..=1000).contains(&times)));
    if let Some(rate) = policy.action_rate {
        assert_eq!(Some(rate.interval), value("action-interval").map(time));
        assert!((1..=1000).contains(&rate.burst) && !rate.interval.is_zero());
        assert!(rate.burst > 1 || policy.pretimeout == Action::None);
    }
}

/// A time, by other means.
fn time(text: &str) -> Duration {
    let number = |unit: &str| text.strip_suffix(unit).map(|number| number.parse::<u64>().expect("a number"));
    if let Some(millis) = number("ms") {
        Duration::from_millis(millis)
    } else if let Some(minutes) = number("m") {
        Duration::from_secs(minutes) * 60
    } else {
        Duration::from_secs(number("s").expect("a unit"))
    }
}

/// The message names what is wrong.
fn refusal(text: &str, error: &ConfigError) {
    let message = error.to_string();
    bounded(text, &message);
    let mut words = text.split(',');
    let model = words.next().unwrap_or_default();
    let names_model = message.starts_with(&format!("unknown watchdog model {model:?}"));
    let names_option = |word: &str| {
        let key = word.split_once('=').map_or(word, |(key, _)| key);
        let is_known = KEYS.contains(&key);
        message.starts_with(&format!("unknown watchdog option {word:?}"))
            || is_known && [": ", "=... "].iter().any(|end| message.starts_with(&format!("{key}{end}")))
    };
    assert!(names_model || words.any(names_option), "{text:?}: {message}");
}

fn bounded(text: &str, message: &str) {
    // A character is escaped by at most six.
    assert!(message.len() <= 6 * text.len() + 400, "{message}");
    assert!(!message.contains(char::is_control), "{message:?}");
}

/// Parses a value that has a text form, which parses back to it.
fn round_trip<T: FromStr<Err: Display> + Display + Debug + PartialEq>(text: &str) {
    match text.parse::<T>() {
        Ok(value) => assert_eq!(value.to_string().parse::<T>().ok().as_ref(), Some(&value), "{text:?}"),
        Err(error) => {
            let message = error.to_string();
            bounded(text, &message);
            assert!(message.contains("accepted"), "{message}");
            assert!(message.contains(&format!("{text:?}")), "{message}");
        }
    }
}

fn values(text: &str) {
    round_trip::<Action>(text);
    round_trip::<GuestAddress>(text);
    round_trip::<Scheme>(text);
    match text.parse::<MemorySize>() {
        Ok(size) => {
            assert_eq!(size.bytes() % 4096, 0);
            assert_eq!(MemorySize::try_from(size.bytes()), Ok(size));
        }
        Err(error) => assert!(error.to_string().contains("accepted")),
    }
    for (option, value) in option_values(text) {
        match (option, value) {
            (_, Err(message)) => assert!(message.contains("accepted"), "{message}"),
            ("--socket-mode", Ok(mode)) => {
                let number = u32::from_str_radix(&mode, 8).expect("octal");
                assert!(number <= 0o777 && u32::from_str_radix(text, 8) == Ok(number));
            }
            ("--name", Ok(name)) => assert!((1..256).contains(&name.len()) && name == text),
            ("--dump-size", Ok(size)) => {
                assert_ne!(size, "0");
                let (_, again) = option_values(&size).into_iter().find(|(name, _)| *name == option).expect("it");
                assert_eq!(again, Ok(size));
            }
            (_, Ok(_)) => {}
        }
    }
}

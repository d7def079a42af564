//! The arguments of `vm-watchdog`, of an operator.
//!
//! They are accepted, or refused with one line. `--manifest` is left out: it opens files, and the target `manifest` has
//! their content.
//!
//! From the top of the repository, after `cargo install --locked cargo-fuzz`. New inputs go to `corpus`, which is not
//! in git:
//!
//! ```text
//! mkdir -p fuzz/corpus/command_line
//! cargo +nightly fuzz run command_line fuzz/corpus/command_line fuzz/seeds/command_line -- -max_total_time=30
//! ```

#![no_main]

use std::sync::LazyLock;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vm_watchdog_cli::definition;
use vm_watchdog_cli::fuzzing::command_line;

/// Values that options take, or nearly take.
const VALUES: [&str; 25] = [
    "i6300esb",
    "i6300esb,action=poweroff,id=wd",
    "diag288,action=reset",
    "wdat,period=1s",
    "sbsa,clock-frequency=62500000",
    "i6300esb,interrupt=msi,pretimeout=inject-nmi,before=5s",
    "i6300esb,action=dump,grace=1s,then=reset",
    "/run/a",
    "/run/b",
    "unix:/run/m",
    "9560",
    "[::1]:0",
    "64G",
    "256M",
    "660",
    "none",
    "reset",
    "json",
    "on",
    "off",
    "vm.shutdown",
    "web-01",
    "fe80::1%tap0",
    "5",
    "",
];

/// The names of the commands and of their options, from their definition.
static NAMES: LazyLock<(Vec<String>, Vec<String>)> = LazyLock::new(|| {
    let definition = definition();
    let commands = definition.get_subcommands().map(|command| command.get_name().to_owned()).collect();
    let options = definition.get_subcommands().flat_map(|command| command.get_arguments());
    let options = options.filter_map(|option| option.get_long().map(|name| format!("--{name}")));
    (commands, options.filter(|option| option != "--manifest").collect())
});

#[derive(Arbitrary, Debug)]
enum Word<'a> {
    Option(u8),
    Value(u8),
    OptionWithValue(u8, u8),
    OptionWithText(u8, &'a str),
    Text(&'a str),
}

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    command: u8,
    words: Vec<Word<'a>>,
}

fuzz_target!(|input: Input<'_>| {
    let (commands, options) = &*NAMES;
    let command = &commands[usize::from(input.command) % commands.len()];
    let option = |index: u8| options[usize::from(index) % options.len()].clone();
    let value = |index: u8| VALUES[usize::from(index) % VALUES.len()];
    let words: Vec<String> = input
        .words
        .iter()
        .map(|word| match word {
            Word::Option(index) => option(*index),
            Word::Value(index) => value(*index).to_owned(),
            Word::OptionWithValue(index, of_value) => format!("{}={}", option(*index), value(*of_value)),
            Word::OptionWithText(index, text) => format!("{}={text}", option(*index)),
            Word::Text(text) => (*text).to_owned(),
        })
        .collect();
    if words.len() > 64 || words.iter().any(|word| word.starts_with("--manifest")) {
        return;
    }
    let line: Vec<&str> = ["vm-watchdog", command].into_iter().chain(words.iter().map(String::as_str)).collect();
    let outcome = command_line(&line);
    if let Err(message) = &outcome {
        assert!(!message.is_empty() && !message.contains('\n'), "{message:?}");
        let length: usize = words.iter().map(String::len).sum();
        assert!(message.len() <= 6 * length + 1000, "{message}");
    }
    assert_eq!(command_line(&line), outcome);
});

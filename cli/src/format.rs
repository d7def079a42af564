//! The argument `--events`, which both commands have.

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use vm_watchdog_timeline::Format;

/// Parses a [`Format`].
pub fn parser() -> impl TypedValueParser<Value = Format> {
    let values = [
        PossibleValue::new("text").help("One line of text for each event"),
        PossibleValue::new("json").help("One JSON object a line"),
    ];
    PossibleValuesParser::new(values).try_map(|name| name.parse::<Format>())
}

//! Names that are almost a known one.

/// The longest name that is compared, in bytes.
const LONGEST: usize = 64;

/// The accepted name that `given` probably means: it differs in case, hyphens or underscores, in one or two letters, or is its
/// beginning. `None` if it is an accepted name.
pub fn near<'a>(given: &str, accepted: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if given.len() > LONGEST {
        return None;
    }
    let plain = |name: &str| name.to_lowercase().replace(['-', '_'], "");
    let given_plain = plain(given);
    let distance = |name: &'a str| {
        let plain_name = plain(name);
        let limit = match plain_name.len() {
            0..=3 => 0,
            4..=7 => 1,
            _ => 2,
        };
        let distance = strsim::osa_distance(&given_plain, &plain_name);
        let is_beginning = given_plain.len() >= 6 && plain_name.starts_with(&given_plain);
        (distance <= limit || is_beginning).then_some((distance, name))
    };
    let best = accepted.into_iter().filter_map(distance).min()?;
    (best.1 != given).then_some(best.1)
}

/// What a message about an unknown name ends with: the name that is probably meant, or all that are accepted.
pub fn hint(given: &str, accepted: &[&str]) -> String {
    match near(given, accepted.iter().copied()) {
        Some(name) => format!("did you mean {name}?"),
        None => format!("accepted are {}", accepted.join(", ")),
    }
}

/// Whether the text is a placeholder of a guide: `<vm-name>`.
pub fn is_placeholder(text: &str) -> bool {
    text.len() > 2 && text.starts_with('<') && text.ends_with('>') && !text.contains('\n')
}

/// Whether the text is what a guide writes for what it leaves out.
pub fn is_elision(text: &str) -> bool {
    matches!(text, "..." | "\u{2026}" | "[...]" | "<...>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_nearly_known_are_found() {
        let fields = ["livenessProbe", "readinessProbe", "periodSeconds", "port", "exec"];
        let cases = [
            ("livenessProve", Some("livenessProbe")),
            ("LivenessProbe", Some("livenessProbe")),
            ("liveness_probe", Some("livenessProbe")),
            ("liveness", Some("livenessProbe")),
            ("readynessProbe", Some("readinessProbe")),
            ("periodSecond", Some("periodSeconds")),
            ("period", Some("periodSeconds")),
            ("perio", None),
            ("Port", Some("port")),
            ("ports", Some("port")),
            ("post", Some("port")),
            ("sort of", None),
            ("volumes", None),
            ("livenessProbe", None),
            ("", None),
        ];
        for (given, expected) in cases {
            assert_eq!(near(given, fields), expected, "{given}");
        }
        assert_eq!(near(&"livenessProbe".repeat(5), fields), None);
    }
}

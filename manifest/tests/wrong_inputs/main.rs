//! Files that cannot be used, and all that is said about each.

mod dialects;
mod documents;
mod fields;

use vm_watchdog_manifest::Manifest;

/// The message, without the name of the file.
fn refusal(text: &str, vm: Option<&str>) -> String {
    match Manifest::parse("f", text.as_bytes(), vm) {
        Ok(manifest) => panic!("accepted as {manifest:?}:\n{text}"),
        Err(error) => {
            error.to_string().lines().map(|line| line.strip_prefix("f:").unwrap()).collect::<Vec<_>>().join("\n")
        }
    }
}

fn assert_refused(cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        assert_eq!(refusal(text, None), *expected, "of:\n{text}");
    }
}

/// The spec of a VirtualMachineInstance, which begins in line 4.
fn assert_spec_refused(cases: &[(&str, &str)]) {
    for (spec, expected) in cases {
        let text = format!("apiVersion: kubevirt.io/v1\nkind: VirtualMachineInstance\nspec:\n{spec}\n");
        assert_eq!(refusal(&text, None), *expected, "of:\n{text}");
    }
}

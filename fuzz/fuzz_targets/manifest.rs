//! Parses arbitrary bytes as a manifest: it is refused with messages of bounded length, or its probes are valid.
//!
//! From the top of the repository:
//!
//! ```text
//! mkdir -p fuzz/corpus/manifest
//! cargo +nightly fuzz run manifest fuzz/corpus/manifest fuzz/seeds/manifest -- -max_total_time=30 -timeout=5
//! ```

#![no_main]

use libfuzzer_sys::fuzz_target;
use vm_watchdog_manifest::{Manifest, ManifestError, Problem};
use vm_watchdog_probes::ProbeKind;

fuzz_target!(|bytes: &[u8]| {
    match Manifest::parse("fuzz", bytes, None) {
        Ok(manifest) => {
            check_problems(&manifest.warnings);
            assert!(manifest.watchdogs.len() <= 16);
            let probes = [(&manifest.liveness, ProbeKind::Liveness), (&manifest.readiness, ProbeKind::Readiness)];
            for (probe, kind) in probes {
                let Some(probe) = probe else { continue };
                assert_eq!(probe.value.clone().checked(kind).as_ref(), Ok(&probe.value));
            }
            let names = manifest.watchdogs.iter().map(|watchdog| watchdog.value.name.as_ref());
            for name in names.chain([manifest.name.as_ref(), manifest.namespace.as_ref()]).flatten() {
                assert!((1..=253).contains(&name.len()) && !name.contains(|char: char| char.is_control()));
            }
            // The VM that was found is found by its name.
            if let Some(name) = manifest.name.as_deref().filter(|name| !name.contains('/')) {
                let named = Manifest::parse("fuzz", bytes, Some(name)).expect("the same VM");
                assert_eq!(named, manifest);
            }
        }
        Err(ManifestError::Invalid { problems, .. }) => {
            assert!(!problems.is_empty());
            check_problems(&problems);
        }
        Err(error) => panic!("{error}"),
    }
});

fn check_problems(problems: &[Problem]) {
    assert!(problems.len() <= 21);
    assert!(problems.is_sorted_by_key(Problem::position));
    for problem in problems {
        let text = problem.to_string();
        assert!(text.len() < 2000 && !text.contains(|char: char| char.is_control()), "{text}");
    }
}

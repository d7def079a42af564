//! What the documents name exists.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The files with this extension below `folder`, without build output and files that tests fetch.
fn files(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the folder can be read") {
        let path = entry.expect("the folder can be read").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            files(&path, extension, found);
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
}

fn files_of(extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    files(Path::new(ROOT), extension, &mut found);
    assert!(!found.is_empty());
    found
}

/// The parts of a text between two marks.
fn between<'a>(text: &'a str, start: &'a str, end: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(start).skip(1).filter_map(move |rest| rest.split_once(end)).map(|(part, _)| part)
}

#[test]
fn every_link_to_a_file_leads_to_one() {
    for document in files_of("md") {
        let text = fs::read_to_string(&document).expect("the document is text");
        for link in between(&text, "](", ")") {
            let path = link.split('#').next().unwrap_or_default();
            let is_elsewhere = path.contains("://") || path.contains("::") || path.is_empty();
            let target = document.parent().expect("a file has a folder").join(path);
            assert!(is_elsewhere || target.exists(), "{}: no file {link}", document.display());
        }
    }
}

#[test]
fn the_threat_model_names_tests_that_exist() {
    let text = fs::read_to_string(Path::new(ROOT).join("docs/threat-model.md")).expect("the threat model is text");
    let mut functions = HashSet::new();
    for file in files_of("rs") {
        let source = fs::read_to_string(file).expect("source is text");
        functions.extend(between(&source, "fn ", "(").map(str::to_owned));
    }
    let mut tests = 0;
    for code in text.lines().flat_map(|line| line.split('`').skip(1).step_by(2)) {
        if code.contains('/') && !code.contains(' ') {
            assert!(Path::new(ROOT).join(code).exists(), "no file {code}");
        } else if code.matches('_').count() >= 3 {
            assert!(functions.contains(code), "no test is called {code}");
            tests += 1;
        }
    }
    assert!(tests > 40, "{tests} tests found");
}

#[test]
fn every_fuzz_target_is_in_the_threat_model_and_in_the_evidence() {
    let read = |path: &str| fs::read_to_string(Path::new(ROOT).join(path)).expect("it is text");
    let threats = read("docs/threat-model.md");
    let named: HashSet<_> =
        between(&threats, "fuzz target", "|").flat_map(|part| part.split('`').skip(1).step_by(2)).collect();
    let mut targets = Vec::new();
    files(&Path::new(ROOT).join("fuzz/fuzz_targets"), "rs", &mut targets);
    let targets: HashSet<_> = targets.iter().filter_map(|path| path.file_stem()?.to_str()).collect();
    assert_eq!(named, targets, "in the threat model, and in fuzz/fuzz_targets");
    let evidence = read("docs/evidence.md");
    for target in targets {
        assert!(evidence.contains(&format!("| `{target}` |")), "docs/evidence.md has no row of {target}");
        assert!(read("fuzz/Cargo.toml").contains(&format!("name = \"{target}\"")), "fuzz/Cargo.toml has no {target}");
        let seeds = Path::new(ROOT).join("fuzz/seeds").join(target);
        assert!(fs::read_dir(&seeds).is_ok_and(|seeds| seeds.count() > 0), "no {}", seeds.display());
    }
}

//! The units, checked by systemd's own tool, of the release of this machine and of Debian 13.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use vm_watchdog_test_support::skip;
use vm_watchdog_test_support::systemd::Systemd;

/// The units of a VM.
const UNITS: [&str; 2] = ["vm-watchdog@web.service", "vm-watchdog@web.socket"];
/// The exposure that the units may have, from 0 to 10 (systemd-analyze security).
const MOST_EXPOSED: f64 = 2.0;

/// An example, and where its first line says that it belongs.
type DropIn = (&'static str, &'static str);
const EXEC: DropIn = ("exec.conf", "vm-watchdog@web.service.d/exec.conf");
const USER: [DropIn; 2] = [
    ("user-of-service.conf", "vm-watchdog@web.service.d/user.conf"),
    ("user-of-socket.conf", "vm-watchdog@web.socket.d/user.conf"),
];

/// Runs a test with each systemd, or reports it as skipped.
fn with_each_systemd(test: &str, run: impl Fn(&Systemd)) {
    for systemd in [Systemd::of_machine(), Systemd::trixie()] {
        match systemd {
            Ok(systemd) => run(&systemd),
            Err(why) => skip::loudly(test, &why),
        }
    }
}

/// A path in the folder of the workspace.
pub fn workspace(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// A path in the folder of what is packaged.
pub fn packaging(path: &str) -> PathBuf {
    workspace("packaging").join(path)
}

/// A root file system as far as the check of a unit looks at it.
struct Root {
    folder: TempDir,
}

impl Root {
    fn new(systemd: &Systemd, drop_ins: &[DropIn]) -> Self {
        let root = Self { folder: tempfile::tempdir().unwrap() };
        fs::create_dir_all(root.units()).unwrap();
        let copied = Command::new("cp").arg("-r").arg(systemd.units().join(".")).arg(root.units()).status().unwrap();
        assert!(copied.success());
        for unit in ["vm-watchdog@.service", "vm-watchdog@.socket"] {
            fs::copy(packaging("systemd").join(unit), root.units().join(unit)).unwrap();
        }
        for program in ["usr/bin/vm-watchdog", "usr/bin/true", "bin/sh"] {
            let program = root.path(program);
            fs::create_dir_all(program.parent().unwrap()).unwrap();
            fs::copy("/bin/true", program).unwrap();
        }
        for (example, place) in drop_ins {
            let place = root.path("etc/systemd/system").join(place);
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            fs::copy(packaging("systemd/examples").join(example), place).unwrap();
        }
        root
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn units(&self) -> PathBuf {
        self.path("usr/lib/systemd/system")
    }

    /// What systemd says about the units: nothing, if it accepts all of their lines.
    fn verify(&self, systemd: &Systemd) -> String {
        let mut command = systemd.command("systemd-analyze");
        command.args(["verify", "--man=no"]).arg(self.root_option()).args(UNITS);
        said(&mut command)
    }

    /// The table of the service's exposure, and the number in its last line.
    fn exposure(&self, systemd: &Systemd) -> (String, f64) {
        let mut command = systemd.command("systemd-analyze");
        command.args(["security", "--offline=true", "--no-pager"]).arg(self.root_option()).arg(UNITS[0]);
        let table = said(&mut command);
        let (_, level) = table.rsplit_once("Overall exposure level for ").expect(&table);
        let number = level.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect(&table);
        (table, number)
    }

    fn root_option(&self) -> String {
        format!("--root={}", self.folder.path().display())
    }
}

/// What a program that must succeed wrote. The output of the test has it, too.
pub fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
    println!("{command:?}\n{text}");
    assert!(output.status.success(), "{command:?}: {}: {text}", output.status);
    text
}

#[test]
fn systemd_accepts_every_line_of_the_units() {
    with_each_systemd("units", |systemd| {
        assert_eq!(Root::new(systemd, &[]).verify(systemd), "");
        assert_eq!(Root::new(systemd, &[EXEC]).verify(systemd), "");
        assert_eq!(Root::new(systemd, &USER).verify(systemd), "");
    });
}

/// The status of systemd-analyze is 0 then.
#[test]
fn a_key_that_systemd_does_not_know_is_noticed() {
    with_each_systemd("an unknown key", |systemd| {
        for (unit, section) in [("vm-watchdog@.service", "[Service]"), ("vm-watchdog@.socket", "[Socket]")] {
            let root = Root::new(systemd, &[]);
            let path = root.units().join(unit);
            let content = fs::read_to_string(&path).unwrap();
            fs::write(path, content.replace(section, &format!("{section}\nNoSuchKey=yes"))).unwrap();
            assert!(root.verify(systemd).contains("NoSuchKey"));
        }
    });
}

#[test]
fn the_service_is_exposed_less_than_two_of_ten() {
    with_each_systemd("exposure", |systemd| {
        for (drop_ins, most) in [(&[][..], MOST_EXPOSED), (&USER, MOST_EXPOSED), (&[EXEC], 3.0)] {
            let (table, exposure) = Root::new(systemd, drop_ins).exposure(systemd);
            assert!(exposure < most, "{exposure}: {table}");
        }
    });
}

#[test]
fn an_example_names_its_place() {
    for (example, place) in USER.into_iter().chain([EXEC]) {
        let content = fs::read_to_string(packaging("systemd/examples").join(example)).unwrap();
        let place = format!("# /etc/systemd/system/{}: ", place.replace("web", "NAME"));
        assert!(content.starts_with(&place), "{example} does not begin with {place:?}");
    }
}

//! The Debian package: built, installed into a root of its own, and checked by lintian. Its program runs there.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::{env, fs};

use vm_watchdog_test_support::systemd::Systemd;
use vm_watchdog_test_support::{Unavailable, skip};

use crate::units::{said, workspace};

/// Paths and modes of the files, except manual pages and other documentation.
const FILES: [(&str, &str); 10] = [
    ("etc/needrestart/conf.d/vm-watchdog.conf", "-rw-r--r--"),
    ("etc/vm-watchdog/example.conf", "-rw-r--r--"),
    ("usr/bin/vm-watchdog", "-rwxr-xr-x"),
    ("usr/lib/systemd/system/vm-watchdog@.service", "-rw-r--r--"),
    ("usr/lib/systemd/system/vm-watchdog@.socket", "-rw-r--r--"),
    ("usr/lib/sysusers.d/vm-watchdog.conf", "-rw-r--r--"),
    ("usr/share/bash-completion/completions/vm-watchdog", "-rw-r--r--"),
    ("usr/share/fish/vendor_completions.d/vm-watchdog.fish", "-rw-r--r--"),
    ("usr/share/lintian/overrides/vm-watchdog", "-rw-r--r--"),
    ("usr/share/zsh/vendor-completions/_vm-watchdog", "-rw-r--r--"),
];

/// What has to be in the folder of its documentation. There are more pages.
const DOCUMENTATION: [&str; 9] = [
    "README.md",
    "changelog.Debian.gz",
    "changelog.gz",
    "copyright",
    "crates.gz",
    "examples/exec.conf",
    "examples/user-of-service.conf",
    "operators.md",
    "serve.md",
];

/// The sizes in bytes that may not be exceeded: both are about a third less today.
const LARGEST_PACKAGE: u64 = 2_700_000;
const LARGEST_PROGRAM: u64 = 8_000_000;

/// The package, built once for all tests, by the script that a maintainer runs.
fn package() -> Result<PathBuf, Unavailable> {
    static PACKAGE: OnceLock<Result<PathBuf, Unavailable>> = OnceLock::new();
    let build = || {
        needs("cargo", &["deb", "--version"], "cargo install --locked cargo-deb")?;
        needs("dpkg-deb", &["--version"], "apt-get install dpkg")?;
        let output = outside_of_cargo(Command::new(workspace("packaging/build-deb")))
            .output()
            .map_err(Unavailable::while_doing("packaging/build-deb"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        // If it cannot be built where its tools are, the test fails.
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        Ok(PathBuf::from(text.lines().last().expect("the path of the package")))
    };
    PACKAGE.get_or_init(build).clone()
}

/// Removes what cargo tells a test: build scripts that depend on such variables would run anew, and then their dependents
/// be compiled anew.
fn outside_of_cargo(mut command: Command) -> Command {
    const OF_TESTS: [&str; 5] = ["CARGO_BIN_", "CARGO_CRATE_", "CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_TARGET_"];
    for (name, _) in env::vars_os() {
        if OF_TESTS.iter().any(|start| name.to_string_lossy().starts_with(start)) {
            command.env_remove(name);
        }
    }
    command
}

/// Runs a test with the package, or reports it as skipped.
fn with_package(test: &str, run: impl FnOnce(&Path) -> Result<(), Unavailable>) {
    if let Err(why) = package().and_then(|package| run(&package)) {
        skip::loudly(test, &why);
    }
}

fn needs(program: &str, arguments: &[&str], remedy: &str) -> Result<(), Unavailable> {
    let found = Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success());
    if found { Ok(()) } else { Err(Unavailable::new(format!("there is no {program} {}: {remedy}", arguments[0]))) }
}

#[test]
fn the_package_has_the_program_its_units_pages_and_completions() {
    with_package("contents of the package", |package| {
        let listing = said(Command::new("dpkg-deb").arg("--contents").arg(package));
        // Mode, owner, size, date, time, path.
        let entry = |line: &str| {
            let fields: Vec<_> = line.split_whitespace().collect();
            assert_eq!(fields[1], "0/0", "{line}");
            (fields[5].trim_start_matches("./").to_owned(), (fields[0].to_owned(), fields[2].parse().unwrap()))
        };
        let files: BTreeMap<String, (String, u64)> =
            listing.lines().filter(|line| !line.starts_with('d')).map(entry).collect();
        let documentation = "usr/share/doc/vm-watchdog/";
        for page in DOCUMENTATION {
            assert!(files.contains_key(&format!("{documentation}{page}")), "{page}: {listing}");
        }
        let definition = vm_watchdog_cli::definition();
        let commands = definition.get_subcommands().filter(|command| !command.is_hide_set());
        let pages = commands.map(|command| format!("-{}", command.get_name()));
        for page in pages.chain([String::new()]) {
            assert!(files.contains_key(&format!("usr/share/man/man1/vm-watchdog{page}.1.gz")), "{page}: {listing}");
        }
        let others =
            files.iter().filter(|(path, _)| ![documentation, "usr/share/man/"].iter().any(|at| path.starts_with(at)));
        let others: Vec<_> = others.map(|(path, (mode, _))| (path.as_str(), mode.as_str())).collect();
        assert_eq!(others, FILES);

        let (package, program) = (fs::metadata(package).unwrap().len(), files["usr/bin/vm-watchdog"].1);
        println!("The package has {package} bytes, its program {program}.");
        assert!(package < LARGEST_PACKAGE && program < LARGEST_PROGRAM, "{package}, {program}");
        Ok(())
    });
}

#[test]
fn the_installed_program_runs() {
    with_package("installation of the package", |package| {
        if !rustix::process::geteuid().is_root() {
            return Err(Unavailable::new("dpkg installs as root"));
        }
        let root = tempfile::tempdir().unwrap();
        let [database, tools] = ["var/lib/dpkg/info", "tools"].map(|path| root.path().join(path));
        for folder in [&database, &tools, &root.path().join("etc")] {
            fs::create_dir_all(folder).unwrap();
        }
        fs::write(database.with_file_name("status"), "").unwrap();
        // The script of the package calls this program, which not every machine has.
        let sysusers = Systemd::trixie()?.command("systemd-sysusers");
        let arguments = sysusers.get_args().map(|argument| argument.to_str().unwrap()).collect::<Vec<_>>().join(" ");
        let script = format!("#!/bin/sh\nexec {} {arguments} \"$@\"\n", sysusers.get_program().display());
        fs::write(tools.join("systemd-sysusers"), script).unwrap();
        fs::set_permissions(tools.join("systemd-sysusers"), fs::Permissions::from_mode(0o755)).unwrap();

        let path = format!("{}:{}", tools.display(), env::var("PATH").unwrap());
        // Its scripts know DPKG_ROOT, so that they do not need a shell in the root.
        let dpkg = || {
            let mut dpkg = Command::new("dpkg");
            dpkg.arg(format!("--root={}", root.path().display())).env("PATH", &path);
            dpkg.args(["--force-script-chrootless", "--force-depends"]);
            dpkg
        };
        said(dpkg().arg("--install").arg(package));
        assert!(said(dpkg().args(["--status", "vm-watchdog"])).contains("Status: install ok installed"));
        let users = fs::read_to_string(root.path().join("etc/passwd")).unwrap();
        assert!(users.contains("vm-watchdog:x:"), "{users}");

        let program = root.path().join("usr/bin/vm-watchdog");
        let version = said(Command::new(&program).arg("--version"));
        assert_eq!(version, format!("vm-watchdog {}\n", env!("CARGO_PKG_VERSION")));
        // The guest inside the program, which is reset by its watchdog.
        let timeline = said(Command::new(&program).args(["boot", "--events", "json", "--kvm-device", "/nonexistent"]));
        assert!(timeline.contains(r#""event":"reset""#), "{timeline}");

        let state = root.path().join("var/lib/vm-watchdog/web/state");
        fs::create_dir_all(state.parent().unwrap()).unwrap();
        fs::write(&state, "{}").unwrap();
        said(dpkg().args(["--remove", "vm-watchdog"]));
        assert!(!program.exists() && state.exists() && root.path().join("etc/vm-watchdog/example.conf").exists());
        said(dpkg().args(["--purge", "vm-watchdog"]));
        assert!(!state.exists() && !root.path().join("etc/vm-watchdog/example.conf").exists());
        Ok(())
    });
}

#[test]
fn lintian_has_no_error_and_no_warning() {
    with_package("lintian", |package| {
        needs("lintian", &["--version"], "apt-get install lintian")?;
        let mut lintian = Command::new("lintian");
        // CI is root, about which lintian has a remark.
        lintian.args(["--allow-root", "--display-info", "--pedantic", "--fail-on", "error,warning"]);
        let text = said(lintian.arg(package));
        assert!(!text.contains("E: ") && !text.contains("W: "), "{text}");
        Ok(())
    });
}

#[test]
fn bash_accepts_the_completions() {
    with_package("completions", |_| {
        let file = workspace("target/packaging/completions/vm-watchdog.bash");
        let script = r#"set -eu
            source "$1"
            complete -p vm-watchdog
            completer=$(complete -p vm-watchdog | sed 's/.* -F \([^ ]*\) .*/\1/')
            COMP_WORDS=(vm-watchdog serve --any) COMP_CWORD=2 COMPREPLY=()
            "$completer" vm-watchdog --any serve
            echo "${COMPREPLY[@]}""#;
        let completed = said(Command::new("bash").args(["-c", script, "bash"]).arg(file));
        assert!(completed.ends_with("--any-control-process\n"), "{completed}");
        Ok(())
    });
}

/// It uses what the package was built from, so it takes seconds.
#[test]
fn cargo_installs_the_command() {
    with_package("cargo install", |_| {
        let root = tempfile::tempdir().unwrap();
        let mut cargo = outside_of_cargo(Command::new("cargo"));
        cargo.args(["install", "--quiet", "--locked", "--offline", "--path"]).arg(workspace("cli"));
        said(cargo.arg("--root").arg(root.path()));
        let version = said(Command::new(root.path().join("bin/vm-watchdog")).arg("--version"));
        assert!(version.starts_with("vm-watchdog "), "{version}");
        Ok(())
    });
}

//! systemd: unpacked into a folder, as PID 1 of a guest, and for its programs.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Unavailable;
use crate::debian::{Keep, Packages, Suite};
use crate::libraries::Libraries;

const TRIXIE: Packages = Packages {
    folder: "systemd",
    suite: Suite::Trixie,
    architecture: "amd64",
    install: &["systemd"],
    keep: Keep::Everything,
};

const MACHINE: Packages = Packages { folder: "systemd-stable", suite: Suite::Machine, ..TRIXIE };

/// The unpacked systemd, with all that it depends on.
#[derive(Clone, Debug)]
pub struct Systemd {
    root: PathBuf,
}

impl Systemd {
    /// That of Debian 13 (257). Fetches it on first use.
    pub fn trixie() -> Result<Self, Unavailable> {
        Self::fetch(&TRIXIE)
    }

    /// That of this machine's release, which is 252 on Debian 12. Fetches it on first use.
    pub fn of_machine() -> Result<Self, Unavailable> {
        Self::fetch(&MACHINE)
    }

    fn fetch(packages: &Packages) -> Result<Self, Unavailable> {
        if env::consts::ARCH != "x86_64" {
            return Err(Unavailable::new(format!("systemd is fetched for x86_64, and this is {}", env::consts::ARCH)));
        }
        Ok(Self { root: packages.fetch()? })
    }

    /// The root of its files.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of its own units.
    pub fn units(&self) -> PathBuf {
        let places = ["usr/lib/systemd/system", "lib/systemd/system"].map(|place| self.root.join(place));
        places.iter().rfind(|place| place.exists()).unwrap_or(&places[0]).clone()
    }

    /// A command for one of its programs. The caller adds its arguments.
    pub fn command(&self, program: &str) -> Command {
        let libraries = Libraries::of(&self.root);
        let own = ["usr/lib", "lib"].map(|place| self.root.join(place).join("x86_64-linux-gnu/systemd"));
        let [own, own_unmerged] = own.map(|place| place.display().to_string());
        let mut command = Command::new(libraries.loader());
        command.args(["--library-path", &[libraries.search_path(), own, own_unmerged].join(":")]);
        let places = ["usr/bin", "bin"].map(|place| self.root.join(place).join(program));
        command.arg(places.iter().find(|place| place.exists()).unwrap_or(&places[0]));
        command.env("LC_ALL", "C").env("SYSTEMD_COLORS", "0").env("SYSTEMD_PAGER", "");
        command
    }
}

//! Prometheus' promtool, from the package of this machine's Debian release.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use crate::Unavailable;
use crate::debian::{Keep, Packages, Suite};

/// It needs no library but that of C, which this machine has.
const PACKAGES: Packages = Packages {
    folder: "prometheus",
    suite: Suite::Machine,
    architecture: "amd64",
    install: &["prometheus"],
    keep: Keep::NamesStartingWith(&["prometheus"]),
};

/// The unpacked promtool.
#[derive(Clone, Debug)]
pub struct Promtool {
    program: PathBuf,
}

impl Promtool {
    /// Fetches it on first use.
    pub fn fetch() -> Result<Self, Unavailable> {
        if env::consts::ARCH != "x86_64" {
            return Err(Unavailable::new(format!("promtool is fetched for x86_64, and this is {}", env::consts::ARCH)));
        }
        Ok(Self { program: PACKAGES.fetch()?.join("usr/bin/promtool") })
    }

    /// A command for it.
    pub fn command(&self) -> Command {
        Command::new(&self.program)
    }
}

//! A current QEMU, whatever the machine has: unpacked into a folder and run with its own libraries.
//!
//! It runs guests by emulation (TCG), among them an x86 one that has KVM itself, since TCG emulates AMD's SVM.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use crate::Unavailable;
use crate::debian::{Keep, Packages, Suite};
use crate::process;

const PACKAGES: Packages = Packages {
    folder: "qemu",
    suite: Suite::Testing,
    architecture: "amd64",
    install: &["qemu-system-x86", "qemu-system-s390x"],
    keep: Keep::Everything,
};

/// The unpacked QEMU.
#[derive(Clone, Debug)]
pub struct Qemu {
    root: PathBuf,
}

impl Qemu {
    /// Fetches it the first time.
    pub fn fetch() -> Result<Self, Unavailable> {
        if env::consts::ARCH != "x86_64" {
            return Err(Unavailable::new(format!("QEMU is fetched for x86_64, and this is {}", env::consts::ARCH)));
        }
        Ok(Self { root: PACKAGES.fetch()? })
    }

    /// A command that starts `qemu-system-TARGET` and dies with the test; the caller adds the machine.
    pub fn system(&self, target: &str) -> Command {
        let program = format!("qemu-system-{target}");
        let libraries = self.root.join("usr/lib/x86_64-linux-gnu");
        let mut command = process::that_dies_with_us(&libraries.join("ld-linux-x86-64.so.2"));
        command
            .env("QEMU_MODULE_DIR", libraries.join("qemu"))
            .arg("--library-path")
            .arg(&libraries)
            .args(["--argv0", &program])
            .arg(self.root.join("usr/bin").join(&program));
        for data in ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] {
            command.arg("-L").arg(self.root.join(data));
        }
        command
    }
}

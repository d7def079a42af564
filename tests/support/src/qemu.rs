//! QEMU without root: unpacked into a folder and run with its own libraries.
//!
//! It emulates guests with TCG, including x86 guests with nested KVM, since TCG emulates AMD's SVM.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use crate::Unavailable;
use crate::debian::{Keep, Packages, Suite};
use crate::libraries::Libraries;
use crate::process;

const CURRENT: Packages = Packages {
    folder: "qemu",
    suite: Suite::Testing,
    architecture: "amd64",
    install: &["qemu-system-x86", "qemu-system-s390x"],
    keep: Keep::Everything,
};

const ARM: Packages = Packages { folder: "qemu-arm", install: &["qemu-system-arm"], ..CURRENT };

const STABLE: Packages = Packages {
    folder: "qemu-stable",
    suite: Suite::Machine,
    architecture: "amd64",
    install: &["qemu-system-x86"],
    keep: Keep::Everything,
};

/// The unpacked QEMU.
#[derive(Clone, Debug)]
pub struct Qemu {
    root: PathBuf,
}

impl Qemu {
    /// A current QEMU (11 or newer), for its devices and its vfio-user client. Fetches it on first use.
    pub fn current() -> Result<Self, Unavailable> {
        Self::fetch(&CURRENT)
    }

    /// The same for arm64 guests. Few tests have one, so it is a folder of its own, which the others do not fetch.
    pub fn for_arm64() -> Result<Self, Unavailable> {
        Self::fetch(&ARM)
    }

    /// The QEMU of this machine's release, for guests with nested KVM. Fetches it on first use.
    ///
    /// QEMU 11.1's emulation of SVM stalls a nested guest: in most boots, interrupts of its PIC stay pending forever.
    /// With QEMU 7.2 of Debian 12 this was not observed.
    pub fn for_nested_kvm() -> Result<Self, Unavailable> {
        Self::fetch(&STABLE)
    }

    fn fetch(packages: &Packages) -> Result<Self, Unavailable> {
        if env::consts::ARCH != "x86_64" {
            return Err(Unavailable::new(format!("QEMU is fetched for x86_64, and this is {}", env::consts::ARCH)));
        }
        Ok(Self { root: packages.fetch()? })
    }

    /// A command for `qemu-system-TARGET`, which is killed when the test ends. The caller adds the machine's arguments.
    pub fn system(&self, target: &str) -> Command {
        let program = format!("qemu-system-{target}");
        let libraries = Libraries::of(&self.root);
        let mut command = process::that_dies_with_us(&libraries.loader());
        command
            .env("QEMU_MODULE_DIR", self.root.join("usr/lib/x86_64-linux-gnu/qemu"))
            .args(["--library-path", &libraries.search_path()])
            .args(["--argv0", &program])
            .arg(self.root.join("usr/bin").join(&program));
        for data in ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] {
            command.arg("-L").arg(self.root.join(data));
        }
        command
    }
}

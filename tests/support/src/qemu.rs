//! QEMU without root: unpacked into a folder and run with its own libraries.
//!
//! It runs guests by emulation (TCG), among them an x86 one that has KVM itself, since TCG emulates AMD's SVM.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use crate::Unavailable;
use crate::debian::{Keep, Packages, Suite};
use crate::process;

const CURRENT: Packages = Packages {
    folder: "qemu",
    suite: Suite::Testing,
    architecture: "amd64",
    install: &["qemu-system-x86", "qemu-system-s390x"],
    keep: Keep::Everything,
};

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
    /// A current one (11 or newer), for its devices and its vfio-user client. Fetches it the first time.
    pub fn current() -> Result<Self, Unavailable> {
        Self::fetch(&CURRENT)
    }

    /// The one of this machine's release, for guests that have KVM themselves. Fetches it the first time.
    ///
    /// QEMU 11.1's emulation of SVM stalls a guest in a guest: interrupts of its PIC stay pending for ever in most
    /// boots. 7.2, of Debian 12, was never seen to.
    pub fn for_nested_kvm() -> Result<Self, Unavailable> {
        Self::fetch(&STABLE)
    }

    fn fetch(packages: &Packages) -> Result<Self, Unavailable> {
        if env::consts::ARCH != "x86_64" {
            return Err(Unavailable::new(format!("QEMU is fetched for x86_64, and this is {}", env::consts::ARCH)));
        }
        Ok(Self { root: packages.fetch()? })
    }

    /// A command that starts `qemu-system-TARGET` and dies with the test; the caller adds the machine.
    pub fn system(&self, target: &str) -> Command {
        let program = format!("qemu-system-{target}");
        // Where /usr is not merged yet, the C library and its loader are in /lib.
        let places = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|place| self.root.join(place));
        let mut loaders = places.iter().map(|place| place.join("ld-linux-x86-64.so.2"));
        let loader = loaders.rfind(|loader| loader.exists()).unwrap_or_else(|| places[0].clone());
        let libraries = places.each_ref().map(|place| place.display().to_string()).join(":");
        let mut command = process::that_dies_with_us(&loader);
        command
            .env("QEMU_MODULE_DIR", places[0].join("qemu"))
            .args(["--library-path", &libraries])
            .args(["--argv0", &program])
            .arg(self.root.join("usr/bin").join(&program));
        for data in ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] {
            command.arg("-L").arg(self.root.join(data));
        }
        command
    }
}

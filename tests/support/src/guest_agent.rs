//! QEMU's guest agent, from the package of this machine's Debian release, for guests that have no other program than
//! busybox.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Unavailable;
use crate::debian::{Keep, Packages, Suite};
use crate::initramfs::Initramfs;
use crate::libraries::Libraries;

/// The agent and libraries. (Its dependencies also have the programs of a system that is booted.)
const PACKAGES: Packages = Packages {
    folder: "guest-agent",
    suite: Suite::Machine,
    architecture: "amd64",
    install: &["qemu-guest-agent"],
    keep: Keep::NamesStartingWith(&["qemu-guest-agent", "lib"]),
};

/// The unpacked agent.
#[derive(Clone, Debug)]
pub struct GuestAgent {
    root: PathBuf,
}

impl GuestAgent {
    /// Fetches it on first use.
    pub fn fetch() -> Result<Self, Unavailable> {
        Ok(Self { root: PACKAGES.fetch()? })
    }

    /// Adds it to an image as `/bin/qemu-ga`, with its libraries where its loader looks for them.
    pub fn add_to(&self, image: Initramfs) -> Result<Initramfs, Unavailable> {
        let libraries = Libraries::of(&self.root);
        let program = self.root.join("usr/sbin/qemu-ga");
        let image = image.program("bin/qemu-ga", &read(&program)?);
        let mut image = image.program("lib64/ld-linux-x86-64.so.2", &read(&libraries.loader())?);
        for library in libraries.needed_by(&program)? {
            let name = library.file_name().unwrap_or_default().to_string_lossy();
            image = image.program(&format!("lib/x86_64-linux-gnu/{name}"), &read(&library)?);
        }
        Ok(image)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Unavailable> {
    fs::read(path).map_err(Unavailable::while_doing(path.display()))
}

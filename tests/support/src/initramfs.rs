//! Initramfs images: cpio archives in the "newc" format, as `Documentation/driver-api/early-userspace/
//! buffer-format.rst` of Linux describes them. Writing one needs no root: the guest mounts devtmpfs for device nodes.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use cpio::newc;

use crate::channel;
use crate::kernel::Module;

const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_644;
const PROGRAM: u32 = 0o100_755;
const SYMBOLIC_LINK: u32 = 0o120_777;

/// The start of every init: mounts the kernel's file systems, and installs busybox' commands.
const PROLOGUE: &str = "\
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
export PATH=/bin
. /guest.sh
";

/// Builder of an initramfs image. It adds parent folders itself; paths are relative to the root.
///
/// ```
/// use vm_watchdog_test_support::initramfs::Initramfs;
///
/// let image = Initramfs::new().program("init", b"#!/bin/sh\n").file("etc/motd", b"hello\n").build();
/// assert!(image.starts_with(b"070701"));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Initramfs {
    archive: Vec<u8>,
    folders: BTreeSet<String>,
    entries: u32,
}

impl Initramfs {
    /// An empty image.
    pub fn new() -> Self {
        Self::default()
    }

    /// An image with busybox. Its init mounts the kernel's file systems and then runs `script`, which can use the
    /// functions of [`channel::GUEST`]; other scripts source them from `/guest.sh`.
    pub fn with_busybox(busybox: &[u8], script: &str) -> Self {
        Self::new()
            .program("init", [PROLOGUE, script].concat().as_bytes())
            .program("bin/busybox", busybox)
            .file("guest.sh", channel::GUEST.as_bytes())
    }

    /// Adds kernel modules, as `/lib/NAME.ko`.
    #[must_use]
    pub fn modules(self, modules: &[Module]) -> Self {
        let add = |image: Self, module: &Module| image.file(&format!("lib/{}.ko", module.name), &module.content);
        modules.iter().fold(self, add)
    }

    /// Adds an executable file.
    #[must_use]
    pub fn program(self, path: &str, content: &[u8]) -> Self {
        self.with_folders_of(path).entry(path, PROGRAM, content)
    }

    /// Adds a file.
    #[must_use]
    pub fn file(self, path: &str, content: &[u8]) -> Self {
        self.with_folders_of(path).entry(path, FILE, content)
    }

    /// Adds a folder.
    #[must_use]
    pub fn folder(self, path: &str) -> Self {
        self.with_folders_of(&format!("{path}/"))
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn link(self, path: &str, target: &Path) -> Self {
        self.with_folders_of(path).entry(path, SYMBOLIC_LINK, target.as_os_str().as_bytes())
    }

    /// Adds what is in the folder `source`, at the same paths: files, programs, symbolic links and folders.
    ///
    /// # Errors
    ///
    /// If a part of it cannot be read.
    pub fn tree(self, source: &Path) -> io::Result<Self> {
        self.tree_at("", source)
    }

    fn tree_at(mut self, prefix: &str, source: &Path) -> io::Result<Self> {
        for entry in fs::read_dir(source)? {
            let entry = entry?;
            let (path, metadata) = (format!("{prefix}{}", entry.file_name().to_string_lossy()), entry.metadata()?);
            let source = entry.path();
            self = match metadata.permissions().mode() & 0o111 {
                _ if metadata.is_symlink() => self.link(&path, &fs::read_link(source)?),
                _ if metadata.is_dir() => self.folder(&path).tree_at(&format!("{path}/"), &source)?,
                0 => self.file(&path, &fs::read(source)?),
                _ => self.program(&path, &fs::read(source)?),
            };
        }
        Ok(self)
    }

    /// Returns the image, uncompressed: a guest on an emulated CPU unpacks slowly.
    pub fn build(self) -> Vec<u8> {
        let mut archive = newc::trailer(self.archive).expect("writing to memory does not fail");
        archive.resize(archive.len().next_multiple_of(512), 0);
        archive
    }

    fn with_folders_of(mut self, path: &str) -> Self {
        for (end, _) in path.match_indices('/') {
            if self.folders.insert(path[..end].to_owned()) {
                self = self.entry(&path[..end], FOLDER, &[]);
            }
        }
        self
    }

    fn entry(mut self, name: &str, mode: u32, content: &[u8]) -> Self {
        self.entries += 1;
        let size = u32::try_from(content.len()).expect("newc holds files below 4 GiB");
        let mut entry = newc::Builder::new(name).ino(self.entries).mode(mode).write(&mut self.archive, size);
        let written = entry.write_all(content).and_then(|()| entry.finish().map(drop));
        written.expect("writing to memory does not fail");
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assets;

    #[test]
    fn headers_and_contents_are_aligned() {
        let image = Initramfs::new().program("a/b/init", b"12345").file("a/b/c", b"").build();
        assert_eq!(names(&image), ["a", "a/b", "a/b/init", "a/b/c", "TRAILER!!!"]);
    }

    #[test]
    fn a_tree_keeps_its_links_and_empty_folders() {
        let source = assets::target_folder().join(format!("self-test-of-trees-{}", std::process::id()));
        fs::create_dir_all(source.join("a/empty")).unwrap();
        std::os::unix::fs::symlink("a/nothing", source.join("link")).unwrap();
        let image = Initramfs::new().tree(&source).unwrap().build();
        fs::remove_dir_all(source).unwrap();
        let mut names = names(&image);
        names.sort();
        assert_eq!(names, ["TRAILER!!!", "a", "a/empty", "link"]);
        assert!(image.windows(9).any(|part| part == b"a/nothing"));
    }

    /// The names in an image whose parts are aligned.
    fn names(image: &[u8]) -> Vec<String> {
        let mut names = Vec::new();
        let mut at = 0;
        loop {
            assert_eq!(&image[at..at + 6], b"070701", "at {at}");
            let field = |n: usize| {
                let digits = &image[at + 6 + 8 * n..at + 14 + 8 * n];
                usize::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap()
            };
            let (size, name_size) = (field(6), field(11));
            let name = std::str::from_utf8(&image[at + 110..at + 110 + name_size - 1]).unwrap();
            names.push(name.to_owned());
            if name == "TRAILER!!!" {
                return names;
            }
            at = (at + 110 + name_size).next_multiple_of(4);
            at = (at + size).next_multiple_of(4);
        }
    }
}

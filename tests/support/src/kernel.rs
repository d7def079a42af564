//! Debian's unmodified kernel: the image, its modules, and a static busybox.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use lzma_rust2::XzReader;

use crate::debian::{Keep, Packages, Suite};
use crate::{Unavailable, assets};

/// A kernel package and busybox, unpacked.
#[derive(Clone, Debug)]
pub struct Kernel {
    root: PathBuf,
    release: String,
}

/// A kernel module.
#[derive(Clone, Debug)]
pub struct Module {
    /// The name of its file without extension, such as `kvm-amd`.
    pub name: String,
    /// The ELF file.
    pub content: Vec<u8>,
}

impl Kernel {
    /// The kernel of this machine's Debian release, for x86 guests.
    pub fn x86() -> Result<Self, Unavailable> {
        Self::of(Packages {
            folder: "linux-amd64",
            suite: Suite::Machine,
            architecture: "amd64",
            install: &["linux-image-amd64", "busybox-static"],
            keep: Keep::NamesStartingWith(&["linux-image-", "busybox-static"]),
        })
    }

    /// The cloud flavour of the same kernel: without a driver for the i6300esb, and with one for the ACPI watchdog table.
    pub fn x86_cloud() -> Result<Self, Unavailable> {
        Self::of(Packages {
            folder: "linux-amd64-cloud",
            suite: Suite::Machine,
            architecture: "amd64",
            install: &["linux-image-cloud-amd64", "busybox-static"],
            keep: Keep::NamesStartingWith(&["linux-image-", "busybox-static"]),
        })
    }

    /// The kernel of the same release, for s390x guests.
    pub fn s390x() -> Result<Self, Unavailable> {
        Self::of(Packages {
            folder: "linux-s390x",
            suite: Suite::Machine,
            architecture: "s390x",
            install: &["linux-image-s390x", "busybox-static"],
            keep: Keep::NamesStartingWith(&["linux-image-", "busybox-static"]),
        })
    }

    /// The kernel of Debian 13 (Linux 6.12), for arm64 guests. Its watchdog core is not a module.
    pub fn arm64() -> Result<Self, Unavailable> {
        Self::of(Packages {
            folder: "linux-arm64",
            suite: Suite::Trixie,
            architecture: "arm64",
            install: &["linux-image-arm64", "busybox-static"],
            keep: Keep::NamesStartingWith(&["linux-image-", "busybox-static"]),
        })
    }

    fn of(packages: Packages) -> Result<Self, Unavailable> {
        let root = packages.fetch()?;
        let boot = root.join("boot");
        let release = fs::read_dir(&boot)
            .map_err(Unavailable::while_doing(boot.display()))?
            .filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.strip_prefix("vmlinuz-")?.to_owned()))
            .next()
            .ok_or_else(|| Unavailable::new(format!("no kernel in {}", boot.display())))?;
        Ok(Self { root, release })
    }

    /// The kernel's release, such as `6.1.0-50-amd64`.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// The image for a boot loader.
    pub fn image(&self) -> PathBuf {
        self.root.join("boot").join(format!("vmlinuz-{}", self.release))
    }

    /// The ELF file inside the image. A guest on an emulated CPU is slow to unpack it itself.
    pub fn elf(&self) -> Result<PathBuf, Unavailable> {
        let folder = assets::asset(&format!("vmlinux-{}", self.release), "1", |folder| {
            let image = read(&self.image())?;
            let elf = payload(&image).and_then(unpack)?;
            fs::write(folder.join("vmlinux"), elf).map_err(Unavailable::while_doing(folder.display()))
        })?;
        Ok(folder.join("vmlinux"))
    }

    /// A module, after the modules that it depends on.
    pub fn module(&self, name: &str) -> Result<Vec<Module>, Unavailable> {
        self.modules(&[name])
    }

    /// Several modules, each after the modules that it depends on.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<Module>, Unavailable> {
        let mut found = Vec::new();
        for name in names {
            self.add_module(name, &mut found)?;
        }
        Ok(found)
    }

    /// The busybox of the package `busybox-static`.
    pub fn busybox(&self) -> Result<Vec<u8>, Unavailable> {
        ["usr/bin/busybox", "bin/busybox"]
            .iter()
            .map(|path| self.root.join(path))
            .find(|path| path.exists())
            .ok_or_else(|| Unavailable::new("busybox-static has no busybox"))
            .and_then(|path| read(&path))
    }

    fn add_module(&self, name: &str, found: &mut Vec<Module>) -> Result<(), Unavailable> {
        if found.iter().any(|module| same_module(&module.name, name)) {
            return Ok(());
        }
        let modules = ["usr/lib/modules", "lib/modules"].map(|path| self.root.join(path).join(&self.release));
        let path = modules
            .iter()
            .find_map(|folder| find_module(folder, name))
            .ok_or_else(|| Unavailable::new(format!("Linux {} has no module {name}", self.release)))?;
        let content = read(&path)?;
        let content = if path.extension().is_some_and(|xz| xz == "xz") { unxz(&content)? } else { content };
        for dependency in dependencies(&content) {
            self.add_module(&dependency, found)?;
        }
        found.push(Module { name: module_name(&path).to_owned(), content });
        Ok(())
    }
}

/// The compressed kernel inside a bzImage: `payload_offset` and `payload_length` of the x86 boot protocol.
fn payload(image: &[u8]) -> Result<&[u8], Unavailable> {
    let word = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?) as usize);
    let setup_sectors = image.get(0x1f1).map(|&sectors| if sectors == 0 { 4 } else { usize::from(sectors) });
    (|| {
        let start = (setup_sectors? + 1) * 512 + word(0x248)?;
        image.get(start..start + word(0x24c)?)
    })()
    .ok_or_else(|| Unavailable::new("the kernel image is not a bzImage"))
}

fn unpack(packed: &[u8]) -> Result<Vec<u8>, Unavailable> {
    match packed.strip_prefix(&LZ4_LEGACY) {
        Some(blocks) => unlz4(blocks),
        None => unxz(packed),
    }
}

/// The magic number of LZ4's legacy frame, which is what kernels are packed in (lz4_Frame_format.md of LZ4).
const LZ4_LEGACY: [u8; 4] = 0x184C_2102_u32.to_le_bytes();
/// What a block of such a frame unpacks to at most.
const LZ4_BLOCK: usize = 8 << 20;

/// The blocks, each after its length; the unpacked length of the kernel is behind them.
fn unlz4(blocks: &[u8]) -> Result<Vec<u8>, Unavailable> {
    let (mut content, mut rest) = (Vec::new(), blocks);
    while let Some((length, after)) = rest.split_first_chunk().filter(|(_, after)| !after.is_empty()) {
        let block = after.split_at_checked(u32::from_le_bytes(*length) as usize);
        let (block, after) = block.ok_or_else(|| Unavailable::new("unpacking lz4: a block is cut off"))?;
        content.extend(lz4_flex::decompress(block, LZ4_BLOCK).map_err(Unavailable::while_doing("unpacking lz4"))?);
        rest = after;
    }
    Ok(content)
}

fn unxz(packed: &[u8]) -> Result<Vec<u8>, Unavailable> {
    let mut content = Vec::new();
    XzReader::new(packed, false).read_to_end(&mut content).map_err(Unavailable::while_doing("unpacking xz"))?;
    Ok(content)
}

/// The dependencies that a module lists in its section `.modinfo`.
fn dependencies(module: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(at) = module.windows(key.len()).position(|window| window == key) else {
        return Vec::new();
    };
    let value = module[at + key.len()..].split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value).split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn find_module(folder: &Path, name: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths.into_iter().find_map(|path| {
        if path.is_dir() { find_module(&path, name) } else { same_module(module_name(&path), name).then_some(path) }
    })
}

fn module_name(path: &Path) -> &str {
    let file = path.file_name().and_then(|file| file.to_str()).unwrap_or_default();
    file.split_once(".ko").map_or("", |(name, _)| name)
}

/// Compares module names: files may have dashes where other places have underscores.
fn same_module(one: &str, other: &str) -> bool {
    one.replace('-', "_") == other.replace('-', "_")
}

fn read(path: &Path) -> Result<Vec<u8>, Unavailable> {
    fs::read(path).map_err(Unavailable::while_doing(path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_in_blocks_of_lz4_is_unpacked_whole() {
        let halves = [vec![1_u8; 100_000], vec![2; 50_000]];
        let mut packed = LZ4_LEGACY.to_vec();
        for half in &halves {
            let block = lz4_flex::compress(half);
            packed.extend((block.len() as u32).to_le_bytes());
            packed.extend(block);
        }
        packed.extend(150_000_u32.to_le_bytes());
        assert_eq!(unpack(&packed).unwrap(), halves.concat());
        assert!(unpack(&packed[..packed.len() - 5]).is_err());
    }
}

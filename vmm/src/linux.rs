//! Loads a Linux kernel (bzImage or 64-bit ELF) by the 64-bit boot protocol
//! (Documentation/arch/x86/boot.rst and zero-page.rst).

use std::fs::File;
use std::io::{self, Seek};
use std::path::PathBuf;

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::{BzImage, Cmdline, Elf, KernelLoader, KernelLoaderResult, load_cmdline};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vm_watchdog::wdat::WdatConfig;

use crate::acpi;
use crate::devices::wdat;
use crate::error::BootError;
use crate::kvm::entry::{EntryPoint, GDT64};
use crate::memory::GuestMemory;
use crate::memory_size::MemorySize;

const GDT: u64 = 0x500;
const BOOT_PARAMS: u64 = 0x7000;
const STACK: u64 = 0x8FF0;
const LEVEL_4_TABLE: u64 = 0x9000;
const LEVEL_3_TABLE: u64 = 0xA000;
const LEVEL_2_TABLE: u64 = 0xB000;
const COMMAND_LINE: u64 = 0x2_0000;
const COMMAND_LINE_CAPACITY: usize = 0x1000;
const LOW_MEMORY_END: u64 = 0x9_FC00;
const HIGH_MEMORY: u64 = 0x10_0000;
const PAGE: u64 = 0x1000;

const E820_RAM: u32 = 1;
const BOOT_FLAG: u16 = 0xAA55;
const HEADER_MAGIC: u32 = 0x5372_6448;
const LOADER_UNDEFINED: u8 = 0xFF;
const KERNEL_ALIGNMENT: u32 = 0x100_0000;
/// `xloadflags`: the kernel has a 64-bit entry, 200h behind its start.
const HAS_64_BIT_ENTRY: u16 = 1 << 0;
const ENTRY_64_OFFSET: u64 = 0x200;
/// The highest address of an initrd for a kernel that does not name one.
const INITRD_LIMIT: u64 = 0x37FF_FFFF;
/// A kernel is linked to run at 16 MiB; memory below does not help it.
const KERNEL_PLACE: u64 = 16 << 20;

const PRESENT_WRITABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7;

/// A kernel with its initrd and command line, opened once and loaded at every boot.
pub struct LinuxGuest {
    kernel: (PathBuf, File),
    initrd: Option<(PathBuf, File)>,
    cmdline: String,
    size: MemorySize,
    wdat: Option<WdatConfig>,
}

impl LinuxGuest {
    /// Opens the files, and checks what can be checked before there is a VM. A guest with a wdat
    /// gets its table.
    pub fn open(
        kernel: PathBuf,
        initrd: Option<PathBuf>,
        cmdline: String,
        size: MemorySize,
        wdat: Option<WdatConfig>,
    ) -> Result<Self, BootError> {
        let kernel_file = match open_file(&kernel) {
            Ok(file) => file,
            Err(source) => return Err(BootError::KernelUnreadable { path: kernel, source }),
        };
        let initrd = match initrd.map(|path| (open_file(&path), path)) {
            None => None,
            Some((Ok(file), path)) => Some((path, file)),
            Some((Err(source), path)) => return Err(BootError::InitrdUnreadable { path, source }),
        };
        if cmdline.len() >= COMMAND_LINE_CAPACITY {
            return Err(BootError::Usage(format!("a command line of {} bytes: at most 4095 fit", cmdline.len())));
        }
        let guest = Self { kernel: (kernel, kernel_file), initrd, cmdline, size, wdat };
        guest.check_size()?;
        Ok(guest)
    }

    /// The path of the kernel, for messages.
    pub fn name(&self) -> String {
        self.kernel.0.display().to_string()
    }

    /// The files have to fit as they are, above the place where kernels begin.
    fn check_size(&self) -> Result<(), BootError> {
        let mut needed = KERNEL_PLACE;
        for (_, file) in [Some(&self.kernel), self.initrd.as_ref()].into_iter().flatten() {
            let length = file.metadata().map_err(BootError::host("measure the kernel and initrd"))?.len();
            needed = needed.saturating_add(length);
        }
        self.check_end(needed)
    }

    fn check_end(&self, end: u64) -> Result<(), BootError> {
        if end > self.size.bytes() {
            let needed = format!("the kernel and initrd take at least {} MiB", end.div_ceil(1 << 20));
            return Err(BootError::TooLittleMemory { size: self.size, needed });
        }
        Ok(())
    }

    /// Loads everything into memory that reads zero, and returns the entry point of the kernel.
    pub fn load(&mut self, memory: &GuestMemory) -> Result<EntryPoint, BootError> {
        let loaded = self.load_kernel(memory)?;
        let header = loaded.setup_header.unwrap_or_default();
        let ip = match loaded.setup_header {
            None => loaded.kernel_load.raw_value(),
            Some(header) if header.xloadflags & HAS_64_BIT_ENTRY != 0 => {
                loaded.kernel_load.raw_value().saturating_add(ENTRY_64_OFFSET)
            }
            Some(_) => return Err(self.unusable("no 64-bit entry".into())),
        };
        let end = loaded.kernel_end.max(header.pref_address.saturating_add(header.init_size.into()));
        self.check_end(end)?;
        let initrd = self.load_initrd(memory, &header, end)?;

        let mut cmdline = Cmdline::new(COMMAND_LINE_CAPACITY).map_err(load_error)?;
        cmdline.insert_str(&self.cmdline).map_err(|error| BootError::Usage(format!("command line: {error}")))?;
        load_cmdline(memory, GuestAddress(COMMAND_LINE), &cmdline).map_err(load_error)?;
        let params = boot_parameters(memory, header, self.cmdline.len(), initrd);
        memory.write_obj(params, GuestAddress(BOOT_PARAMS)).map_err(load_error)?;
        write_tables(memory).map_err(load_error)?;
        let wdat = self.wdat.map(|config| wdat::table(&config));
        acpi::write(memory, wdat.as_ref()).map_err(load_error)?;
        Ok(EntryPoint::Linux64 { ip, boot_params: BOOT_PARAMS, stack: STACK, page_table: LEVEL_4_TABLE, gdt: GDT })
    }

    fn load_kernel(&mut self, memory: &GuestMemory) -> Result<KernelLoaderResult, BootError> {
        let high = Some(GuestAddress(HIGH_MEMORY));
        let file = &mut self.kernel.1;
        let as_elf = Elf::load(memory, None, file, high);
        let outcome = as_elf
            .or_else(|elf| BzImage::load(memory, None, file, high).map_err(|bzimage| format!("{elf}; {bzimage}")));
        outcome.map_err(|reason| self.unusable(reason))
    }

    /// Puts the initrd as high as the kernel can reach.
    fn load_initrd(
        &mut self,
        memory: &GuestMemory,
        header: &setup_header,
        kernel_end: u64,
    ) -> Result<Option<(u64, u64)>, BootError> {
        let Some((path, file)) = &mut self.initrd else {
            return Ok(None);
        };
        let unreadable = |source| BootError::InitrdUnreadable { path: path.clone(), source };
        let length = file.metadata().map_err(unreadable)?.len();
        let limit = if header.initrd_addr_max == 0 { INITRD_LIMIT } else { header.initrd_addr_max.into() };
        let low_memory_end = memory.iter().next().map_or(0, |region| region.last_addr().raw_value());
        let start = (limit.min(low_memory_end) + 1).checked_sub(length).map(|start| start & !(PAGE - 1));
        let Some(start) = start.filter(|start| *start >= kernel_end) else {
            let end = kernel_end.saturating_add(length);
            let needed = format!("the kernel and initrd take at least {} MiB", end.div_ceil(1 << 20));
            return Err(BootError::TooLittleMemory { size: self.size, needed });
        };
        file.rewind().map_err(unreadable)?;
        let bytes = usize::try_from(length).map_err(|error| unreadable(io::Error::other(error)))?;
        let read = memory.read_exact_volatile_from(GuestAddress(start), file, bytes);
        read.map_err(|error| unreadable(io::Error::other(error)))?;
        Ok(Some((start, length)))
    }

    fn unusable(&self, reason: String) -> BootError {
        BootError::KernelUnusable { path: self.kernel.0.clone(), reason }
    }
}

/// Opens a regular file; others have no length.
fn open_file(path: &PathBuf) -> io::Result<File> {
    let file = File::open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("not a regular file")),
    }
}

fn load_error<E: std::fmt::Display>(error: E) -> BootError {
    BootError::Load(error.to_string())
}

fn boot_parameters(
    memory: &GuestMemory,
    header: setup_header,
    cmdline_length: usize,
    initrd: Option<(u64, u64)>,
) -> boot_params {
    let mut params = boot_params { hdr: header, ..Default::default() };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER_MAGIC;
    params.hdr.cmd_line_ptr = COMMAND_LINE as u32;
    params.hdr.cmdline_size = cmdline_length as u32;
    if params.hdr.kernel_alignment == 0 {
        params.hdr.kernel_alignment = KERNEL_ALIGNMENT;
    }
    // Both are below 4 GiB: the initrd lies below the hole.
    let (start, length) = initrd.unwrap_or_default();
    params.hdr.ramdisk_image = start as u32;
    params.hdr.ramdisk_size = length as u32;
    params.acpi_rsdp_addr = acpi::ROOT_POINTER;
    let map = memory_map(memory);
    params.e820_entries = map.len() as u8;
    params.e820_table[..map.len()].copy_from_slice(&map);
    params
}

/// All memory but what a PC keeps below 1 MiB for firmware.
fn memory_map(memory: &GuestMemory) -> Vec<boot_e820_entry> {
    let ram = |start, end| boot_e820_entry { addr: start, size: end - start, r#type: E820_RAM };
    let mut map = vec![ram(0, LOW_MEMORY_END)];
    for region in memory.iter() {
        let start = region.start_addr().raw_value().max(HIGH_MEMORY);
        map.push(ram(start, region.last_addr().raw_value() + 1));
    }
    map
}

/// Page tables that map the first GiB onto itself, and the descriptor table.
fn write_tables(memory: &GuestMemory) -> Result<(), vm_memory::GuestMemoryError> {
    memory.write_obj(LEVEL_3_TABLE | PRESENT_WRITABLE, GuestAddress(LEVEL_4_TABLE))?;
    memory.write_obj(LEVEL_2_TABLE | PRESENT_WRITABLE, GuestAddress(LEVEL_3_TABLE))?;
    for index in 0..512_u64 {
        let page = index << 21 | PRESENT_WRITABLE | LARGE_PAGE;
        memory.write_obj(page, GuestAddress(LEVEL_2_TABLE + index * 8))?;
    }
    memory.write_obj(GDT64, GuestAddress(GDT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::ExitStatus;
    use crate::memory::allocate;

    fn temporary(name: &str, bytes: &[u8]) -> PathBuf {
        let path = std::env::temp_dir().join(format!("vm-watchdog-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn the_memory_map_leaves_the_hole_out() {
        let memory = allocate("4G".parse().unwrap()).unwrap();
        let map: Vec<_> = memory_map(&memory).iter().map(|entry| ({ entry.addr }, { entry.size })).collect();
        assert_eq!(map, [(0, 0x9_FC00), (0x10_0000, 0xBFF0_0000), (0x1_0000_0000, 0x4000_0000)]);
    }

    #[test]
    fn a_file_that_is_no_kernel_is_refused() {
        let size = MemorySize::mib(64);
        for (name, bytes) in [("empty", vec![]), ("text", b"not a kernel".to_vec()), ("zeros", vec![0; 1 << 20])] {
            let path = temporary(name, &bytes);
            let mut guest = LinuxGuest::open(path.clone(), None, String::new(), size, None).unwrap();
            let error = guest.load(&allocate(size).unwrap()).expect_err(name);
            assert_eq!(error.exit_status(), ExitStatus::BadImage, "{name}: {error}");
            assert!(!error.to_string().contains('\n'));
            std::fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn a_kernel_larger_than_memory_is_refused_before_it_is_loaded() {
        let path = temporary("large", &vec![0; 32 << 20]);
        let error = LinuxGuest::open(path.clone(), None, String::new(), MemorySize::mib(32), None).err().unwrap();
        assert_eq!(error.exit_status(), ExitStatus::NoMemory);
        assert_eq!(error.to_string(), "32 MiB of memory is too little: the kernel and initrd take at least 48 MiB");
        std::fs::remove_file(path).unwrap();
    }
}

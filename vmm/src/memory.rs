//! Guest memory: where it lies, and clearing it at a reset.

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::error::BootError;
use crate::memory_size::MemorySize;

/// Guest memory, anonymous and private to this process.
pub type GuestMemory = GuestMemoryMmap<()>;

/// Addresses from here to 4 GiB belong to devices; memory that does not fit below continues at 4 GiB.
pub const MMIO_HOLE: u64 = 0xC000_0000;
const FOUR_GIB: u64 = 1 << 32;

/// Allocates guest memory around the hole that devices use.
pub fn allocate(size: MemorySize) -> Result<GuestMemory, BootError> {
    let unavailable = |reason: String| BootError::MemoryUnavailable { size, reason };
    let mut ranges = Vec::new();
    let low = size.bytes().min(MMIO_HOLE);
    for (start, length) in [(0, low), (FOUR_GIB, size.bytes() - low)] {
        if length > 0 {
            let length = usize::try_from(length).map_err(|error| unavailable(error.to_string()))?;
            ranges.push((GuestAddress(start), length));
        }
    }
    GuestMemory::from_ranges(&ranges).map_err(|error| unavailable(error.to_string()))
}

/// Returns every page to the host, so that the guest reads zeros as after a power cycle.
pub fn clear(memory: &GuestMemory) -> std::io::Result<()> {
    for region in memory.iter() {
        let length = usize::try_from(region.len()).map_err(std::io::Error::other)?;
        // SAFETY: the range is one whole mapping of ours, anonymous and private, and vm-memory hands out no references
        // into it: an access at the same time sees either the old bytes or zeros.
        if unsafe { libc::madvise(region.as_ptr().cast(), length, libc::MADV_DONTNEED) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn memory_goes_around_the_hole() {
        let memory = allocate(MemorySize::try_from(MMIO_HOLE + (1 << 20)).unwrap()).unwrap();
        assert!(memory.address_in_range(GuestAddress(MMIO_HOLE - 1)));
        assert!(!memory.address_in_range(GuestAddress(MMIO_HOLE)));
        assert!(memory.address_in_range(GuestAddress(FOUR_GIB + (1 << 20) - 1)));
        assert_eq!(memory.num_regions(), 2);
    }

    #[test]
    fn cleared_memory_reads_zero() {
        let memory = allocate(MemorySize::mib(1)).unwrap();
        memory.write_obj(0x1234_5678_u32, GuestAddress(0x8000)).unwrap();
        clear(&memory).unwrap();
        assert_eq!(memory.read_obj::<u32>(GuestAddress(0x8000)).unwrap(), 0);
    }
}

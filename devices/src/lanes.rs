//! Splits a guest access of a device with 32-bit registers into the dwords that it touches.
//!
//! PCI transfers dwords with a byte enable for each of four lanes. Handling every access this way, also those of other
//! buses, treats all widths and offsets alike, and fixes the byte order to little-endian on every host.

/// The part of a write that falls into one dword.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DwordWrite {
    /// Offset of the dword, a multiple of four.
    pub offset: u64,
    /// The bytes in their lanes, zero in lanes not enabled.
    pub value: u32,
    /// All ones in each enabled lane.
    pub mask: u32,
}

impl DwordWrite {
    /// `old` with the enabled lanes replaced.
    pub fn merged_into(self, old: u32) -> u32 {
        (old & !self.mask) | self.value
    }

    /// Whether the write sets any of `bits`.
    pub fn sets(self, bits: u32) -> bool {
        self.value & bits != 0
    }
}

/// The dwords that a write of `data` at `offset` touches, in ascending order.
pub(crate) fn dword_writes(offset: u64, data: &[u8]) -> impl Iterator<Item = DwordWrite> + '_ {
    let mut offset = offset;
    let mut rest = data;
    core::iter::from_fn(move || {
        let lane = (offset % 4) as usize;
        let (bytes, after) = rest.split_at(rest.len().min(4 - lane));
        if bytes.is_empty() {
            return None;
        }
        let mut write = DwordWrite { offset: offset - lane as u64, value: 0, mask: 0 };
        for (lane, byte) in (lane..).zip(bytes) {
            write.value |= u32::from(*byte) << (8 * lane);
            write.mask |= 0xFF << (8 * lane);
        }
        // Stop at the largest offset instead of wrapping to 0. The device ends far below it.
        rest = if offset > u64::MAX - 4 { &[] } else { after };
        offset = write.offset.wrapping_add(4);
        Some(write)
    })
}

/// Fills `data` with the bytes at `offset`, each from its dword; all ones where `dword` returns `None`.
///
/// Returns whether any byte comes from a dword.
pub(crate) fn read_dwords(offset: u64, data: &mut [u8], dword: impl Fn(u64) -> Option<u32>) -> bool {
    let mut any = false;
    let mut at = Some(offset);
    for byte in data {
        let known = at.and_then(|at| Some(dword(at & !3)?.to_le_bytes()[(at % 4) as usize]));
        *byte = known.unwrap_or(0xFF);
        any |= known.is_some();
        at = at.and_then(|at| at.checked_add(1));
    }
    any
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    #[test]
    fn a_write_is_split_at_dwords() {
        let writes = |offset, data| dword_writes(offset, data).collect::<Vec<_>>();
        let dword = |offset, value, mask| DwordWrite { offset, value, mask };
        assert_eq!(writes(0x0D, &[3]), [dword(0x0C, 0x0300, 0xFF00)]);
        assert_eq!(writes(3, &[1, 2, 3]), [dword(0, 0x0100_0000, 0xFF00_0000), dword(4, 0x0302, 0xFFFF)]);
        assert_eq!(writes(0, &[1, 0, 0, 0, 2, 0, 0, 0]), [dword(0, 1, !0), dword(4, 2, !0)]);
        assert_eq!(writes(0, &[]), []);
    }

    #[test]
    fn the_last_offsets_do_not_wrap_around() {
        assert_eq!(dword_writes(u64::MAX, &[1, 2, 3]).count(), 1);
        assert_eq!(dword_writes(u64::MAX - 4, &[1, 2, 3]).count(), 2, "the last byte of a dword, and the last dword");
        assert_eq!(dword_writes(u64::MAX / 2, &[1, 2, 3]).count(), 2, "far from the largest offset");
        let mut data = [0; 4];
        let only_zero = |at| (at == 0).then_some(0);
        assert!(!read_dwords(u64::MAX, &mut data, only_zero));
        assert_eq!(data, [0xFF; 4]);
    }
}

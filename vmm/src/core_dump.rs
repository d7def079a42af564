//! Guest memory as an ELF core file: a load segment for each region, and the registers of the vCPU as a note.
//!
//! Debuggers and `crash` read it. Addresses are physical ones. Pages of zeros become holes in the file. The three headers
//! are fixed structures, so they are written here instead of by an ELF crate.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;

use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::memory::GuestMemory;
use crate::processor::Registers;

const HEADER_SIZE: u64 = 64;
const PROGRAM_HEADER_SIZE: u64 = 56;
const TYPE_CORE: u16 = 4;
const MACHINE_X86_64: u16 = 62;
const SEGMENT_LOAD: u32 = 1;
const SEGMENT_NOTE: u32 = 4;
const READ_WRITE_EXECUTE: u32 = 7;
const NOTE_STATUS: u32 = 1;
/// Size of `elf_prstatus` of x86-64, and where the registers lie in it.
const STATUS_SIZE: usize = 336;
const STATUS_REGISTERS: usize = 112;
const PAGE: u64 = 0x1000;
const CHUNK: usize = 1 << 16;

/// Writes the core file, over what was there, and gives its size.
pub fn write(path: &Path, memory: &GuestMemory, registers: Option<&Registers>) -> io::Result<u64> {
    let mut file = File::create(path)?;
    let note = registers.map(status_note).unwrap_or_default();
    let note_offset = HEADER_SIZE + PROGRAM_HEADER_SIZE * (memory.num_regions() as u64 + 1);
    let mut offset = (note_offset + note.len() as u64).next_multiple_of(PAGE);

    let mut headers = file_header(memory.num_regions() as u16 + 1);
    headers.extend(program_header(SEGMENT_NOTE, note_offset, 0, note.len() as u64));
    for region in memory.iter() {
        headers.extend(program_header(SEGMENT_LOAD, offset, region.start_addr().raw_value(), region.len()));
        offset += region.len();
    }
    headers.extend(note);
    file.write_all(&headers)?;

    let mut offset = (headers.len() as u64).next_multiple_of(PAGE);
    for region in memory.iter() {
        write_region(&mut file, offset, memory, region.start_addr(), region.len())?;
        offset += region.len();
    }
    file.set_len(offset)?;
    Ok(offset)
}

fn write_region(
    file: &mut File,
    offset: u64,
    memory: &GuestMemory,
    start: GuestAddress,
    length: u64,
) -> io::Result<()> {
    let zeros = vec![0; CHUNK];
    let mut chunk = vec![0; CHUNK];
    for at in (0..length).step_by(CHUNK) {
        let size = (length - at).min(CHUNK as u64) as usize;
        let chunk = &mut chunk[..size];
        memory.read_slice(chunk, start.unchecked_add(at)).map_err(io::Error::other)?;
        if *chunk != zeros[..size] {
            file.seek(SeekFrom::Start(offset + at))?;
            file.write_all(chunk)?;
        }
    }
    Ok(())
}

fn file_header(segments: u16) -> Vec<u8> {
    let mut header = vec![0x7F, b'E', b'L', b'F', 2, 1, 1];
    header.resize(16, 0);
    header.extend(TYPE_CORE.to_le_bytes());
    header.extend(MACHINE_X86_64.to_le_bytes());
    header.extend(1_u32.to_le_bytes());
    header.extend(0_u64.to_le_bytes()); // entry
    header.extend(HEADER_SIZE.to_le_bytes()); // program headers
    header.extend(0_u64.to_le_bytes()); // section headers
    header.extend(0_u32.to_le_bytes()); // flags
    for field in [HEADER_SIZE as u16, PROGRAM_HEADER_SIZE as u16, segments, 0, 0, 0] {
        header.extend(field.to_le_bytes());
    }
    header
}

fn program_header(kind: u32, offset: u64, address: u64, size: u64) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(kind.to_le_bytes());
    header.extend(if kind == SEGMENT_LOAD { READ_WRITE_EXECUTE } else { 0 }.to_le_bytes());
    for field in [offset, address, address, size, size, if kind == SEGMENT_LOAD { PAGE } else { 4 }] {
        header.extend(field.to_le_bytes());
    }
    header
}

/// The note that debuggers take for a thread.
fn status_note(registers: &Registers) -> Vec<u8> {
    let mut note = Vec::new();
    for field in [5, STATUS_SIZE as u32, NOTE_STATUS] {
        note.extend(field.to_le_bytes());
    }
    note.extend(b"CORE\0\0\0\0");
    let status = note.len();
    note.resize(status + STATUS_REGISTERS, 0);
    note[status + 32..status + 36].copy_from_slice(&1_u32.to_le_bytes()); // thread id
    for register in registers.user {
        note.extend(register.to_le_bytes());
    }
    note.resize(status + STATUS_SIZE, 0);
    note
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_region_and_register_is_found_again() {
        let high = GuestAddress(0x1_0000_0000);
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20), (high, 2 << 20)]).unwrap();
        memory.write_slice(b"low", GuestAddress(0x1_2345)).unwrap();
        memory.write_slice(b"high", GuestAddress(0x1_0010_0000)).unwrap();
        let registers = Registers { user: std::array::from_fn(|index| 100 + index as u64) };
        let path = std::env::temp_dir().join(format!("vm-watchdog-{}.core", std::process::id()));
        let size = write(&path, &memory, Some(&registers)).unwrap();

        let file = File::open(&path).unwrap();
        assert_eq!(file.metadata().unwrap().len(), size);
        let at = |offset: u64, length: usize| {
            use std::os::unix::fs::FileExt;
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, offset).unwrap();
            bytes
        };
        let u64_at = |offset| u64::from_le_bytes(at(offset, 8).try_into().unwrap());
        assert_eq!(at(0, 4), b"\x7FELF");
        let (note, low, high) = (u64_at(64 + 8), u64_at(120 + 8), u64_at(176 + 8));
        assert_eq!((u64_at(120 + 24), u64_at(120 + 32)), (0, 1 << 20));
        assert_eq!((u64_at(176 + 24), u64_at(176 + 32)), (0x1_0000_0000, 2 << 20));
        assert_eq!(at(low + 0x1_2345, 3), b"low");
        assert_eq!(at(high + 0x10_0000, 4), b"high");
        let first_register = note + 12 + 8 + 112;
        assert_eq!((u64_at(first_register), u64_at(first_register + 26 * 8)), (100, 126));
        std::fs::remove_file(path).unwrap();
    }
}

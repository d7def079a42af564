//! PCI configuration mechanism 1: the ports CF8h and CFCh, and the functions of bus 0.
//!
//! Source: PCI Local Bus Specification 3.0, section 3.2.2.3.2. Only a dword at CF8h is the address register; narrower
//! accesses there belong to other devices. The data port forwards bytes, words and dwords within the addressed dword.

/// The port of the address register.
pub const CONFIG_ADDRESS: u16 = 0xCF8;
/// The first of the four data ports.
pub const CONFIG_DATA: u16 = 0xCFC;
/// The last of the four data ports.
pub const CONFIG_DATA_END: u16 = 0xCFF;

const ADDRESS_ENABLE: u32 = 1 << 31;
/// Bits 30:24 and 1:0 of the address register are reserved and read as zero.
const ADDRESS_MASK: u32 = 0x80FF_FFFC;

/// One PCI function.
pub trait PciFunction: Send {
    /// Reads configuration space.
    fn read_config(&mut self, offset: u16, data: &mut [u8]);
    /// Writes configuration space.
    fn write_config(&mut self, offset: u16, data: &[u8]);
    /// Answers a read of memory if the function decodes all of it.
    fn read_memory(&mut self, _address: u64, _data: &mut [u8]) -> bool {
        false
    }
    /// Takes a write of memory if the function decodes all of it.
    fn write_memory(&mut self, _address: u64, _data: &[u8]) -> bool {
        false
    }
    /// A platform reset.
    fn reset(&mut self) {}
}

/// Bus 0, its functions and the address register.
#[derive(Default)]
pub struct PciBus {
    address: u32,
    functions: Vec<(u8, Box<dyn PciFunction>)>,
}

impl PciBus {
    /// Puts a single-function device into a slot.
    ///
    /// # Panics
    ///
    /// When the slot is not below 32 or is taken: both are mistakes of the VMM.
    pub fn insert(&mut self, slot: u8, function: Box<dyn PciFunction>) {
        let devfn = slot << 3;
        assert!(slot < 32 && self.functions.iter().all(|(taken, _)| *taken != devfn), "PCI slot {slot}");
        self.functions.push((devfn, function));
    }

    /// A platform reset: of the address register and of every function.
    pub fn reset(&mut self) {
        self.address = 0;
        for (_, function) in &mut self.functions {
            function.reset();
        }
    }

    /// The address register, which selects what the data port means.
    pub fn address(&self) -> u32 {
        self.address
    }

    /// Writes the address register.
    pub fn set_address(&mut self, address: u32) {
        self.address = address & ADDRESS_MASK;
    }

    /// A read of the ports CF8h to CFFh.
    pub fn read_port(&mut self, port: u16, data: &mut [u8]) {
        data.fill(0xFF);
        if let (CONFIG_ADDRESS, Ok(data)) = (port, <&mut [u8; 4]>::try_from(&mut *data)) {
            *data = self.address.to_le_bytes();
        } else if let Some((function, offset)) = self.addressed(port, data.len()) {
            function.read_config(offset, data);
        }
    }

    /// A write of the ports CF8h to CFFh.
    pub fn write_port(&mut self, port: u16, data: &[u8]) {
        if let (CONFIG_ADDRESS, Ok(data)) = (port, <[u8; 4]>::try_from(data)) {
            self.set_address(u32::from_le_bytes(data));
        } else if let Some((function, offset)) = self.addressed(port, data.len()) {
            function.write_config(offset, data);
        }
    }

    /// A read of memory. What no function decodes reads all ones.
    pub fn read_memory(&mut self, address: u64, data: &mut [u8]) {
        if !self.functions.iter_mut().any(|(_, function)| function.read_memory(address, data)) {
            data.fill(0xFF);
        }
    }

    /// A write of memory. What no function decodes is dropped.
    pub fn write_memory(&mut self, address: u64, data: &[u8]) {
        let _ = self.functions.iter_mut().any(|(_, function)| function.write_memory(address, data));
    }

    /// The function and offset that a data port access means.
    fn addressed(&mut self, port: u16, length: usize) -> Option<(&mut dyn PciFunction, u16)> {
        let lane = port.checked_sub(CONFIG_DATA)?;
        let within_dword = matches!(length, 1 | 2 | 4) && usize::from(lane) + length <= 4;
        let [register, devfn, bus, enable] = self.address.to_le_bytes();
        if !within_dword || bus != 0 || u32::from(enable) << 24 != ADDRESS_ENABLE {
            return None;
        }
        let (_, function) = self.functions.iter_mut().find(|(at, _)| *at == devfn)?;
        Some((function.as_mut(), u16::from(register) + lane))
    }
}

/// The host bridge at 00:00.0, with the identity of an Intel 82441FX and nothing to configure. Linux uses configuration
/// mechanism 1 only if it finds a host bridge.
pub struct HostBridge;

impl HostBridge {
    const IDENTITY: [u8; 12] = {
        let [v0, v1] = 0x8086_u16.to_le_bytes();
        let [d0, d1] = 0x1237_u16.to_le_bytes();
        // Vendor, device; command and status; revision and class 06 00 00.
        [v0, v1, d0, d1, 0, 0, 0, 0, 0, 0x00, 0x00, 0x06]
    };
}

impl PciFunction for HostBridge {
    fn read_config(&mut self, offset: u16, data: &mut [u8]) {
        let registers = Self::IDENTITY.iter().chain(std::iter::repeat(&0));
        for (byte, register) in data.iter_mut().zip(registers.skip(offset.into())) {
            *byte = *register;
        }
    }

    fn write_config(&mut self, _offset: u16, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 256 bytes of plain configuration space and one page of memory at 1000h, seen from outside too.
    #[derive(Clone)]
    struct Storage(std::sync::Arc<std::sync::Mutex<[u8; 256]>>);

    impl PciFunction for Storage {
        fn read_config(&mut self, offset: u16, data: &mut [u8]) {
            let start = usize::from(offset);
            data.copy_from_slice(&self.0.lock().unwrap()[start..start + data.len()]);
        }
        fn write_config(&mut self, offset: u16, data: &[u8]) {
            let start = usize::from(offset);
            self.0.lock().unwrap()[start..start + data.len()].copy_from_slice(data);
        }
        fn read_memory(&mut self, address: u64, data: &mut [u8]) -> bool {
            data.fill(0x5A);
            (0x1000..0x2000).contains(&address)
        }
    }

    const SLOT: u8 = 3;

    fn bus() -> (PciBus, Storage) {
        let counting = std::array::from_fn(|index| u8::try_from(index).unwrap());
        let storage = Storage(std::sync::Arc::new(std::sync::Mutex::new(counting)));
        let mut bus = PciBus::default();
        bus.insert(0, Box::new(HostBridge));
        bus.insert(SLOT, Box::new(storage.clone()));
        (bus, storage)
    }

    fn read<const N: usize>(bus: &mut PciBus, port: u16) -> [u8; N] {
        let mut data = [0; N];
        bus.read_port(port, &mut data);
        data
    }

    fn select(bus: &mut PciBus, address: u32) {
        bus.write_port(0xCF8, &address.to_le_bytes());
    }

    fn register(offset: u8) -> u32 {
        0x8000_0000 | u32::from(SLOT) << 11 | u32::from(offset)
    }

    #[test]
    fn a_dword_at_cf8_is_the_address_and_narrower_accesses_are_not() {
        let (mut bus, _) = bus();
        select(&mut bus, 0x8000_1860);
        bus.write_port(0xCF8, &[0xFF]);
        bus.write_port(0xCFB, &[0x01]);
        bus.write_port(0xCF8, &[0xFF, 0xFF]);
        assert_eq!(read(&mut bus, 0xCF8), 0x8000_1860_u32.to_le_bytes());
        assert_eq!(read(&mut bus, 0xCFB), [0xFF]);
    }

    #[test]
    fn reserved_address_bits_read_zero() {
        let (mut bus, _) = bus();
        select(&mut bus, u32::MAX);
        assert_eq!(read(&mut bus, 0xCF8), 0x80FF_FFFC_u32.to_le_bytes());
    }

    #[test]
    fn bytes_and_words_reach_their_lanes() {
        let (mut bus, _) = bus();
        select(&mut bus, register(0x60));
        assert_eq!(read(&mut bus, 0xCFC), [0x60, 0x61, 0x62, 0x63]);
        assert_eq!(read(&mut bus, 0xCFD), [0x61]);
        assert_eq!(read(&mut bus, 0xCFD), [0x61, 0x62]);
        assert_eq!(read(&mut bus, 0xCFE), [0x62, 0x63]);
        bus.write_port(0xCFF, &[0xAB]);
        assert_eq!(read(&mut bus, 0xCFC), [0x60, 0x61, 0x62, 0xAB]);
    }

    #[test]
    fn an_access_across_the_dword_reads_ones_and_writes_nothing() {
        let (mut bus, storage) = bus();
        select(&mut bus, register(0xFC));
        assert_eq!(read(&mut bus, 0xCFF), [0xFF; 2]);
        assert_eq!(read(&mut bus, 0xCFE), [0xFF; 4]);
        bus.write_port(0xCFF, &[0, 0]);
        bus.write_port(0xCFC, &[0; 64]);
        assert_eq!(storage.0.lock().unwrap()[0xFC..], [0xFC, 0xFD, 0xFE, 0xFF]);
    }

    #[test]
    fn missing_functions_read_all_ones() {
        let (mut bus, _) = bus();
        let absent = [
            ("not enabled", 0x0000_1800),
            ("empty slot", 0x8000_2000),
            ("another function of the device", 0x8000_1900),
            ("another bus", 0x8001_1800),
        ];
        for (what, address) in absent {
            select(&mut bus, address);
            assert_eq!(read(&mut bus, 0xCFC), [0xFF; 4], "{what}");
            bus.write_port(0xCFC, &[0; 4]);
        }
        select(&mut bus, register(0));
        assert_eq!(read(&mut bus, 0xCFC), [0, 1, 2, 3], "no write reached the function");
    }

    #[test]
    fn the_host_bridge_is_found_and_ignores_writes() {
        let (mut bus, _) = bus();
        select(&mut bus, 0x8000_0000);
        bus.write_port(0xCFC, &[0; 4]);
        assert_eq!(read(&mut bus, 0xCFC), 0x1237_8086_u32.to_le_bytes());
        select(&mut bus, 0x8000_0008);
        assert_eq!(read(&mut bus, 0xCFE), 0x0600_u16.to_le_bytes());
        select(&mut bus, 0x8000_00FC);
        assert_eq!(read(&mut bus, 0xCFC), [0; 4]);
    }

    #[test]
    fn a_reset_clears_the_address() {
        let (mut bus, _) = bus();
        select(&mut bus, register(0));
        bus.reset();
        assert_eq!(read(&mut bus, 0xCFC), [0xFF; 4]);
    }

    #[test]
    fn memory_that_no_function_decodes_reads_all_ones() {
        let (mut bus, _) = bus();
        let mut data = [0; 4];
        bus.read_memory(0x1000, &mut data);
        assert_eq!(data, [0x5A; 4]);
        bus.read_memory(0x9000, &mut data);
        assert_eq!(data, [0xFF; 4]);
        bus.write_memory(u64::MAX, &data);
    }
}

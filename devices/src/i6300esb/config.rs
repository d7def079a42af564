//! The configuration of the device.

/// Configuration of the device, which the VMM sets before a guest accesses it.
///
/// `bar0`, `command` and `interrupt_line` are what firmware has assigned. A new device starts with them, and
/// [`reset`](crate::Model::reset) restores them, so that a VMM without firmware has nothing to write after a reset. Read-only
/// bits are masked.
///
/// ```
/// use vm_watchdog_devices::Model;
/// use vm_watchdog_devices::i6300esb::{I6300esb, I6300esbConfig, InterruptPin, MEMORY_ENABLE};
///
/// let config = I6300esbConfig::default()
///     .with_interrupt_pin(InterruptPin::IntA)
///     .with_interrupt_line(11)
///     .with_bar0(0xFEB0_0000)
///     .with_command(MEMORY_ENABLE);
/// let mut watchdog = I6300esb::new(config);
/// assert_eq!(watchdog.bar0(), Some(0xFEB0_0000));
/// watchdog.reset();
/// assert_eq!(watchdog.bar0(), Some(0xFEB0_0000));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct I6300esbConfig {
    /// The interrupt pin of the function. If it has one, the VMM must connect the line.
    pub interrupt_pin: InterruptPin,
    /// Whether the function has the MSI capability. If it has, the VMM must send its [messages](crate::MsiMessage).
    pub msi: bool,
    /// Subsystem vendor at 2Ch; zero means none.
    pub subsystem_vendor_id: u16,
    /// Subsystem id at 2Eh.
    pub subsystem_id: u16,
    /// BAR0 (10h) after a reset. Bits 3:0 are ignored. Zero means not assigned.
    pub bar0: u32,
    /// The command register (04h) after a reset: bits 0507h, all others are ignored.
    pub command: u16,
    /// The interrupt line register (3Ch) after a reset. The device does not use it; guests without ACPI tables do.
    pub interrupt_line: u8,
}

impl I6300esbConfig {
    /// The same configuration with this interrupt pin.
    pub const fn with_interrupt_pin(self, interrupt_pin: InterruptPin) -> Self {
        Self { interrupt_pin, ..self }
    }

    /// The same configuration with an MSI capability at [40h](super::MSI_CAPABILITY): one message, a 64-bit address, no mask.
    ///
    /// The real chip has none. A guest that enables it gets a message in place of the interrupt pin. It can be combined
    /// with a pin, for guests that do not enable it.
    ///
    /// ```
    /// use vm_watchdog_devices::i6300esb::{I6300esb, I6300esbConfig};
    /// use vm_watchdog_devices::{Model, MsiMessage, VmInstant};
    ///
    /// let mut watchdog = I6300esb::new(I6300esbConfig::default().with_msi());
    /// let mut write = |offset, data: &[u8]| watchdog.write_config(offset, data, VmInstant::ZERO);
    /// write(0x04, &[0x04]); // bus master enable: a message is a write by the device
    /// write(0x44, &0xFEE0_0000_u64.to_le_bytes());
    /// write(0x4C, &[0x41, 0x00]);
    /// write(0x42, &[0x01, 0x00]); // MSI enable
    /// write(0x68, &[0x02]); // WDT_ENABLE
    ///
    /// assert_eq!(watchdog.message(), None);
    /// let end_of_stage_one = watchdog.poll_at().expect("it runs");
    /// watchdog.poll(end_of_stage_one);
    /// assert_eq!(watchdog.message(), Some(MsiMessage::new(0xFEE0_0000, 0x41)));
    /// ```
    pub const fn with_msi(self) -> Self {
        Self { msi: true, ..self }
    }

    /// The same configuration with these ids at 2Ch and 2Eh.
    pub const fn with_subsystem(self, subsystem_vendor_id: u16, subsystem_id: u16) -> Self {
        Self { subsystem_vendor_id, subsystem_id, ..self }
    }

    /// The same configuration with BAR0 at this guest-physical address, as firmware assigns it. The device decodes it
    /// when memory is enabled in the command register. Bits 3:0 are masked.
    pub const fn with_bar0(self, address: u32) -> Self {
        Self { bar0: address, ..self }
    }

    /// The same configuration with this command register after a reset, such as [`MEMORY_ENABLE`](super::MEMORY_ENABLE).
    /// Bits outside 0507h are masked.
    pub const fn with_command(self, command: u16) -> Self {
        Self { command, ..self }
    }

    /// The same configuration with this number in the interrupt line register (3Ch) after a reset.
    pub const fn with_interrupt_line(self, interrupt_line: u8) -> Self {
        Self { interrupt_line, ..self }
    }
}

/// The PCI interrupt pin of the function (configuration register 3Dh).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum InterruptPin {
    /// No pin: a guest can poll WDT_INT_ACT instead, or enable MSI if the device has it.
    #[default]
    None,
    /// INTA#, level triggered.
    IntA,
}

impl InterruptPin {
    /// The value of the interrupt pin register at 3Dh: 0, or 1 for INTA#.
    pub const fn register(self) -> u8 {
        match self {
            Self::None => 0,
            Self::IntA => 1,
        }
    }
}

//! Where BAR0 decodes: what firmware assigns, what guests size and move, and what a VMM maps.

use vm_watchdog_devices::Model;
use vm_watchdog_devices::i6300esb::{BarMove, I6300esbConfig, I6300esbStateV1, MEMORY_ENABLE};

use crate::guest::Guest;

const COMMAND: u16 = 0x04;
const BAR0: u16 = 0x10;
const X: u32 = 0xFEB0_0000;
const Y: u32 = 0xC000_1230;

type Move = (Option<u32>, Option<u32>);

/// A guest on a VMM that maps BAR0 by moves alone.
struct Mapped {
    guest: Guest,
    mapped: Option<u32>,
}

impl Mapped {
    /// Firmware has assigned X.
    fn new(command: u16) -> Self {
        Self::with_config(I6300esbConfig::default().with_bar0(X).with_command(command))
    }

    fn with_config(config: I6300esbConfig) -> Self {
        let guest = Guest::with_config(config);
        Self { mapped: guest.device.bar0(), guest }
    }

    /// Does something, and returns the move of BAR0.
    fn moves(&mut self, act: impl FnOnce(&mut Guest)) -> Option<Move> {
        let before = self.guest.device.bar0();
        act(&mut self.guest);
        let moved = BarMove::between(before, self.guest.device.bar0())?;
        assert_eq!(moved.from, self.mapped, "a move begins where the last one ended");
        self.mapped = moved.to;
        Some((moved.from, moved.to))
    }

    fn write_bar0(&mut self, value: u32) -> Option<Move> {
        self.moves(|guest| {
            guest.set_config32(BAR0, value);
        })
    }

    fn write_command(&mut self, value: u16) -> Option<Move> {
        self.moves(|guest| {
            guest.set_config16(COMMAND, value);
        })
    }

    fn read_bar0(&mut self) -> u32 {
        self.guest.config32(BAR0)
    }
}

#[test]
fn linux_sizes_with_decoding_off_and_finds_the_address_of_the_firmware() {
    let mut linux = Mapped::new(MEMORY_ENABLE);
    let command = linux.guest.config16(COMMAND);
    assert_eq!(linux.write_command(command & !0x0003), Some((Some(X), None)));
    assert_eq!(linux.read_bar0(), X);
    assert_eq!(linux.write_bar0(0xFFFF_FFFF), None);
    assert_eq!(linux.read_bar0(), 0xFFFF_FFF0);
    assert_eq!(linux.write_bar0(X), None);
    assert_eq!(linux.write_command(command), Some((None, Some(X))));
    assert_eq!(linux.read_bar0(), X);
}

#[test]
fn sizing_with_decoding_on_does_not_move_the_device() {
    let mut guest = Mapped::new(MEMORY_ENABLE);
    for sizing in [0xFFFF_FFFF, 0xFFFF_FFF0] {
        assert_eq!(guest.write_bar0(sizing), None);
        assert_eq!(guest.read_bar0(), 0xFFFF_FFF0);
        assert_eq!(guest.guest.device.bar0(), Some(X), "never the pattern");
        assert_eq!(guest.write_bar0(X), None);
        assert_eq!(guest.read_bar0(), X);
    }
}

#[test]
fn another_address_after_sizing_is_one_move() {
    let mut guest = Mapped::new(MEMORY_ENABLE);
    assert_eq!(guest.write_bar0(0xFFFF_FFFF), None);
    assert_eq!(guest.write_bar0(Y), Some((Some(X), Some(Y))));
    assert_eq!(guest.write_bar0(0xFFFF_FFFF), None);
    assert_eq!(guest.write_bar0(0xFFFF_FFFF), None, "twice");
    assert_eq!(guest.write_bar0(Y | 0xF), None, "the type bits are read-only");
}

/// SeaBIOS and edk2 size and assign a device that nothing has enabled yet, and enable it in the end.
#[test]
fn firmware_assigns_an_address_and_then_enables_memory() {
    let mut firmware = Mapped::with_config(I6300esbConfig::default());
    assert_eq!(firmware.read_bar0(), 0);
    assert_eq!(firmware.write_bar0(0xFFFF_FFFF), None);
    assert_eq!(firmware.read_bar0(), 0xFFFF_FFF0);
    assert_eq!(firmware.write_bar0(0), None, "the old value is written back");
    assert_eq!(firmware.write_bar0(Y), None);
    assert_eq!(firmware.write_command(0x0107), Some((None, Some(Y))));
    assert_eq!(firmware.write_command(0x0507), None, "only memory enable matters");
    assert_eq!(firmware.write_command(0x0505), Some((Some(Y), None)));
}

#[test]
fn memory_that_is_enabled_during_sizing_decodes_once_there_is_an_address() {
    let mut guest = Mapped::new(0);
    assert_eq!(guest.write_bar0(0xFFFF_FFFF), None);
    assert_eq!(guest.write_command(MEMORY_ENABLE), None);
    assert_eq!(guest.write_bar0(X), Some((None, Some(X))));

    assert_eq!(guest.write_bar0(0xFFFF_FFFF), None);
    assert_eq!(guest.write_command(0), Some((Some(X), None)));
    assert_eq!(guest.write_command(MEMORY_ENABLE), None, "the register holds no address");
    assert_eq!(guest.write_bar0(X), Some((None, Some(X))));
}

#[test]
fn address_zero_is_not_assigned() {
    let mut guest = Mapped::with_config(I6300esbConfig::default().with_command(MEMORY_ENABLE));
    assert_eq!(guest.mapped, None);
    assert_eq!(guest.write_bar0(X), Some((None, Some(X))));
    assert_eq!(guest.write_bar0(0x0000_000F), Some((Some(X), None)));
    assert_eq!(guest.write_bar0(0xFFFF_FFFF), None);
    assert_eq!(guest.write_bar0(0x10), Some((None, Some(0x10))), "the lowest address");
    assert_eq!(guest.write_bar0(0xFFFF_FFE0), Some((Some(0x10), Some(0xFFFF_FFE0))), "the highest");
}

#[test]
fn bytes_and_words_move_bar0_at_once_and_end_at_the_same_address() {
    let mut words = Mapped::new(MEMORY_ENABLE);
    let mut word = |offset, value: u16| {
        words.moves(|guest| {
            guest.set_config16(offset, value);
        })
    };
    assert_eq!(word(BAR0, 0x1230), Some((Some(X), Some(0xFEB0_1230))));
    assert_eq!(word(BAR0 + 2, 0xC000), Some((Some(0xFEB0_1230), Some(0xC000_1230))));
    // Sized by halves: the second write completes the pattern.
    assert_eq!(word(BAR0, 0xFFFF), Some((Some(Y), Some(0xC000_FFF0))));
    assert_eq!(word(BAR0 + 2, 0xFFFF), None);
    assert_eq!(words.read_bar0(), 0xFFFF_FFF0);

    let mut bytes = Mapped::new(MEMORY_ENABLE);
    for (lane, byte) in (0..).zip(Y.to_le_bytes()) {
        bytes.moves(|guest| {
            guest.set_config8(BAR0 + lane, byte);
        });
    }
    assert_eq!(bytes.mapped, Some(Y));
    for lane in 0..4 {
        bytes.moves(|guest| {
            guest.set_config8(BAR0 + lane, 0xFF);
        });
    }
    assert_ne!(bytes.mapped, Some(0xFFFF_FFF0));
    assert_eq!(bytes.write_bar0(X), Some((Some(0xC0FF_FFF0), Some(X))));
}

#[test]
fn a_reset_restores_what_firmware_assigned() {
    let config = I6300esbConfig::default().with_bar0(X).with_command(0x0102).with_interrupt_line(11);
    let mut guest = Mapped::with_config(config);
    for _ in 0..2 {
        assert_eq!(guest.mapped, Some(X));
        assert_eq!((guest.guest.config16(COMMAND), guest.guest.config8(0x3C)), (0x0102, 11));
        guest.guest.set_config8(0x3C, 0xFF);
        assert_eq!(guest.write_bar0(Y), Some((Some(X), Some(Y))));
        assert_eq!(guest.write_command(0), Some((Some(Y), None)));
        assert_eq!(guest.moves(|guest| guest.device.reset()), Some((None, Some(X))));
        assert_eq!(guest.write_bar0(0xFFFF_FFFF), None);
        assert_eq!(guest.moves(|guest| guest.device.reset()), None, "a reset ends the sizing");
        assert_eq!(guest.read_bar0(), X);
    }
}

#[test]
fn the_configuration_is_masked_like_a_write_of_the_guest() {
    let config = I6300esbConfig::default().with_bar0(0xFEB0_001F).with_command(0xFFFF);
    let mut guest = Mapped::with_config(config);
    assert_eq!(guest.mapped, Some(0xFEB0_0010));
    assert_eq!((guest.read_bar0(), guest.guest.config16(COMMAND)), (0xFEB0_0010, 0x0507));
    let config = I6300esbConfig::default().with_bar0(0xFFFF_FFFF).with_command(MEMORY_ENABLE);
    assert_eq!(Mapped::with_config(config).mapped, None, "the pattern is no address");
}

#[test]
fn a_guest_saved_while_it_sizes_continues_elsewhere() {
    for command in [0, MEMORY_ENABLE] {
        let mut source = Mapped::new(command);
        source.write_bar0(0xFFFF_FFFF);
        let state = source.guest.device.save(source.guest.at());
        let mut target = Mapped::with_config(I6300esbConfig::default());
        target.moves(|guest| guest.device = guest.device.restored(&state, guest.at()).unwrap());
        assert_eq!(target.mapped, source.mapped);
        assert_eq!(target.read_bar0(), 0xFFFF_FFF0);
        assert_eq!(target.write_bar0(X), None);
        assert_eq!(target.read_bar0(), X);
    }
}

#[test]
fn a_saved_guest_continues_with_bar0_where_it_was() {
    let mut source = Mapped::new(MEMORY_ENABLE);
    source.write_bar0(Y);
    let state = source.guest.device.save(source.guest.at());
    assert_eq!(state.bar0_while_sizing, None);
    let mut target = Mapped::with_config(I6300esbConfig::default());
    assert_eq!(
        target.moves(|guest| guest.device = guest.device.restored(&state, guest.at()).unwrap()),
        Some((None, Some(Y)))
    );
}

#[test]
fn a_saved_address_that_sizing_cannot_leave_behind_is_refused() {
    let mut guest = Mapped::new(MEMORY_ENABLE);
    guest.write_bar0(0xFFFF_FFFF);
    let possible = guest.guest.device.save(guest.guest.at());
    assert_eq!(possible.bar0_while_sizing, Some(X));
    let refused = [
        I6300esbStateV1 { bar0_while_sizing: Some(0), ..possible },
        I6300esbStateV1 { bar0_while_sizing: Some(X | 8), ..possible },
        I6300esbStateV1 { bar0_while_sizing: Some(0xFFFF_FFF0), ..possible },
        I6300esbStateV1 { command: 0, ..possible },
        I6300esbStateV1 { bar0: Y, ..possible },
    ];
    for state in refused {
        let error = guest.guest.device.restored(&state, guest.guest.at()).expect_err("impossible");
        assert_eq!(error.field, "bar0_while_sizing");
    }
    let unknown = I6300esbStateV1 { bar0_while_sizing: None, ..possible };
    let restored = guest.guest.device.restored(&unknown, guest.guest.at()).expect("of an older version");
    assert_eq!(restored.bar0(), None);
}

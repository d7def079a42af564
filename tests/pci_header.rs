//! The PCI header as a VMM sees it: where BAR0 is to be mapped.

mod common;

use common::recorder;
use vm_watchdog::i6300esb::{BarMove, I6300esb, I6300esbConfig, MEMORY_ENABLE};
use vm_watchdog::{VmClock, Watchdog};

const X: u32 = 0xFEB0_0000;
const Y: u32 = 0xC000_0000;

fn watchdog() -> Watchdog<I6300esb> {
    let config = I6300esbConfig::default().with_bar0(X).with_interrupt_line(11);
    Watchdog::builder("wd", I6300esb::new(config)).build(recorder().0).unwrap()
}

fn ends(moved: Option<BarMove>) -> Option<(Option<u32>, Option<u32>)> {
    moved.map(|moved| (moved.from, moved.to))
}

#[test]
fn a_write_says_where_bar0_has_moved() {
    let watchdog = watchdog();
    let write = |offset, value: u32| ends(watchdog.write_config(offset, &value.to_le_bytes()));
    assert_eq!(write(0x10, 0xFFFF_FFFF), None, "decoding is off");
    assert_eq!(write(0x10, X), None);
    assert_eq!(write(0x04, MEMORY_ENABLE.into()), Some((None, Some(X))));
    assert_eq!(write(0x10, 0xFFFF_FFFF), None, "decoding is on");
    assert_eq!(watchdog.bar0(), Some(X));
    assert_eq!(write(0x10, X), None);
    assert_eq!(write(0x10, Y), Some((Some(X), Some(Y))));
    assert_eq!(write(0x60, 0x03), None);
    assert_eq!(write(0x04, 0), Some((Some(Y), None)));
}

#[test]
fn a_reset_puts_bar0_where_firmware_put_it() {
    let watchdog = watchdog();
    assert_eq!(ends(watchdog.write_config(0x10, &Y.to_le_bytes())), None);
    assert_eq!(ends(watchdog.write_config(0x04, &[0x02])), Some((None, Some(Y))));
    let before = watchdog.bar0();
    watchdog.reset();
    assert_eq!(ends(BarMove::between(before, watchdog.bar0())), Some((Some(Y), None)));
    let mut header = [0; 0x40];
    watchdog.read_config(0, &mut header);
    assert_eq!((&header[0x10..0x14], header[0x3C]), (&X.to_le_bytes()[..], 11));
}

#[test]
fn a_restore_while_the_guest_sizes_bar0_maps_it_where_it_was() {
    let source = watchdog();
    assert_eq!(ends(source.write_config(0x04, &[0x02])), Some((None, Some(X))));
    assert_eq!(ends(source.write_config(0x10, &[0xFF; 4])), None);
    let (clock, _time) = VmClock::manual();
    let builder = Watchdog::builder("wd", I6300esb::new(I6300esbConfig::default())).clock(clock);
    let target = builder.build(recorder().0).unwrap();
    let before = target.bar0();
    target.restore(&source.save()).unwrap();
    assert_eq!(ends(BarMove::between(before, target.bar0())), Some((None, Some(X))));
    assert_eq!(ends(target.write_config(0x10, &X.to_le_bytes())), None);
}

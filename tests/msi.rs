//! Interrupt messages: one for each interrupt of a guest that has enabled MSI.

mod common;

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};

use common::{Driver, UNIT, recorder};
use vm_watchdog::i6300esb::{I6300esb, I6300esbConfig, InterruptPin};
use vm_watchdog::{ManualClock, MsiMessage, MsiSender, VmClock, Watchdog, WatchdogBuilder};

const MESSAGE: MsiMessage = MsiMessage::new(0xFEE0_0000, 0x41);

/// A VMM with a device that has a pin and MSI.
fn builder(clock: VmClock) -> WatchdogBuilder<I6300esb> {
    let config = I6300esbConfig::default().with_interrupt_pin(InterruptPin::IntA).with_msi();
    Watchdog::builder("wd", I6300esb::new(config)).clock(clock)
}

fn watchdog(sender: impl MsiSender + 'static) -> (Watchdog<I6300esb>, ManualClock) {
    let (clock, time) = VmClock::manual();
    let watchdog = builder(clock).msi(sender).build(recorder().0).unwrap();
    enable_msi(&watchdog);
    (watchdog, time)
}

/// What a guest's driver writes.
fn enable_msi(watchdog: &Watchdog<I6300esb>) {
    watchdog.write_config(0x04, &[0x06, 0x00]);
    watchdog.write_config(0x44, &MESSAGE.address.to_le_bytes());
    watchdog.write_config(0x4C, &MESSAGE.data.to_le_bytes()[..2]);
    watchdog.write_config(0x42, &[0x01, 0x00]);
}

fn sender() -> (impl MsiSender + 'static, Receiver<MsiMessage>) {
    let (sender, messages) = channel();
    (sending(sender), messages)
}

fn sending(sender: Sender<MsiMessage>) -> impl MsiSender + 'static {
    let sender = Mutex::new(sender);
    move |message| sender.lock().unwrap().send(message).map_err(io::Error::other)
}

#[test]
fn the_end_of_stage_one_is_one_message_and_leaves_the_line_low() {
    let (levels, changes) = channel();
    let levels = Mutex::new(levels);
    let (to_vmm, messages) = sender();
    let (clock, time) = VmClock::manual();
    let builder = builder(clock)
        .msi(to_vmm)
        .interrupt_line(move |high: bool| levels.lock().unwrap().send(high).map_err(io::Error::other));
    let watchdog = builder.build(recorder().0).unwrap();
    enable_msi(&watchdog);
    watchdog.start(512);
    time.advance(UNIT * 512);
    watchdog.on_readable();
    watchdog.on_readable();
    watchdog.read_bar(0x08, &mut [0]);
    assert_eq!(messages.try_iter().collect::<Vec<_>>(), [MESSAGE]);
    assert_eq!(changes.try_iter().count(), 0);
    watchdog.write_bar(0x08, &[0x01]);
    watchdog.ping();
    time.advance(UNIT * 512);
    watchdog.on_readable();
    assert_eq!(messages.try_iter().collect::<Vec<_>>(), [MESSAGE], "the next interrupt");
}

#[test]
fn a_guest_that_enables_msi_with_an_interrupt_pending_changes_from_the_line_to_a_message() {
    let (to_vmm, calls) = channel();
    let (levels, messages) = (Mutex::new(to_vmm.clone()), Mutex::new(to_vmm));
    let (clock, time) = VmClock::manual();
    let builder = builder(clock)
        .interrupt_line(move |high: bool| levels.lock().unwrap().send(Err(high)).map_err(io::Error::other))
        .msi(move |message| messages.lock().unwrap().send(Ok(message)).map_err(io::Error::other));
    let watchdog = builder.build(recorder().0).unwrap();
    watchdog.start(512);
    time.advance(UNIT * 512);
    watchdog.on_readable();
    enable_msi(&watchdog);
    assert_eq!(calls.try_iter().collect::<Vec<_>>(), [Err(true), Err(false), Ok(MESSAGE)]);
}

#[test]
fn a_message_of_a_paused_vm_is_sent_when_the_vm_runs() {
    let (to_vmm, messages) = sender();
    let (watchdog, time) = watchdog(to_vmm);
    watchdog.start(512);
    time.advance(UNIT * 512);
    watchdog.clock().pause();
    watchdog.on_readable();
    watchdog.read_bar(0x08, &mut [0]);
    assert_eq!(messages.try_iter().count(), 0);
    watchdog.clock().resume();
    watchdog.on_readable();
    assert_eq!(messages.try_iter().collect::<Vec<_>>(), [MESSAGE]);
}

#[test]
fn a_message_that_was_due_in_a_snapshot_is_sent_where_it_is_restored() {
    for is_sent in [false, true] {
        let (to_vmm, messages) = sender();
        let (old, time) = watchdog(to_vmm);
        old.start(512);
        time.advance(UNIT * 512);
        if is_sent {
            old.on_readable();
        }
        old.clock().pause();
        let state = old.save();
        assert_eq!(messages.try_iter().count(), usize::from(is_sent));

        let (to_vmm, messages) = sender();
        let (clock, _time) = VmClock::manual();
        let new = builder(clock).msi(to_vmm).build(recorder().0).unwrap();
        new.restore(&state).unwrap();
        new.on_readable();
        let expected: &[MsiMessage] = if is_sent { &[] } else { &[MESSAGE] };
        assert_eq!(messages.try_iter().collect::<Vec<_>>(), expected, "sent before the snapshot: {is_sent}");
    }
}

#[test]
fn a_sender_that_fails_or_panics_is_counted_and_called_again_at_the_next_access() {
    let (to_vmm, messages) = channel();
    let failures = Mutex::new(vec![true, false]);
    let to_vmm = sending(to_vmm);
    let (watchdog, time) = watchdog(move |message| {
        to_vmm.send(message)?;
        let failure = failures.lock().unwrap().pop();
        match failure {
            Some(true) => panic!("no interrupt controller"),
            Some(false) => Err(io::ErrorKind::NotFound.into()),
            None => Ok(()),
        }
    });
    watchdog.start(512);
    time.advance(UNIT * 512);
    watchdog.on_readable();
    watchdog.on_readable();
    assert_eq!(messages.try_iter().count(), 1);
    for failures in [2, 2, 2] {
        watchdog.read_bar(0x08, &mut [0]);
        assert_eq!(watchdog.stats().interrupt_failures, failures);
    }
    assert_eq!(messages.try_iter().count(), 2, "until one was sent");
}

#[test]
fn a_sender_may_call_its_watchdog() {
    let itself: Arc<OnceLock<Watchdog<I6300esb>>> = Arc::default();
    let (to_vmm, messages) = channel();
    let sender = {
        let (itself, to_vmm) = (itself.clone(), sending(to_vmm));
        move |message| {
            itself.get().ok_or(io::ErrorKind::NotFound)?.write_bar(0x08, &[0x01]);
            to_vmm.send(message)
        }
    };
    let (watchdog, time) = watchdog(sender);
    assert!(itself.set(watchdog.clone()).is_ok());
    watchdog.start(512);
    time.advance(UNIT * 512);
    watchdog.on_readable();
    assert_eq!(messages.try_iter().collect::<Vec<_>>(), [MESSAGE]);
    let mut gintsr = [0];
    watchdog.read_bar(0x08, &mut gintsr);
    assert_eq!(gintsr, [0], "the guest of that VMM has cleared it");
}

#[test]
fn a_reset_ends_what_the_guest_has_programmed() {
    let (to_vmm, messages) = sender();
    let (watchdog, time) = watchdog(to_vmm);
    watchdog.start(512);
    time.advance(UNIT * 512);
    watchdog.reset();
    watchdog.on_readable();
    watchdog.start(512);
    time.advance(UNIT * 512);
    watchdog.on_readable();
    assert_eq!(messages.try_iter().count(), 0);
}

/// A guest that sizes BAR0 has an interrupt whose message is due.
#[cfg(feature = "serde")]
#[test]
fn a_device_with_msi_is_saved_as_the_golden_file_says_and_restored_from_it() {
    const FIRST_GOLDEN: &str = include_str!("golden/i6300esb-v1-msi.json");
    const GOLDEN: &str = include_str!("golden/i6300esb-v1-msi-action-rate.json");
    let (to_vmm, _messages) = sender();
    let (old, time) = watchdog(to_vmm);
    old.write_config(0x10, &0xFEB0_0000_u32.to_le_bytes());
    old.write_config(0x10, &[0xFF; 4]);
    old.start(512);
    time.advance(UNIT * 600);
    old.clock().pause();
    assert_eq!(serde_json::to_string_pretty(&old.save()).unwrap() + "\n", GOLDEN);

    for golden in [FIRST_GOLDEN, GOLDEN] {
        let (to_vmm, messages) = sender();
        let (clock, _time) = VmClock::manual();
        let new = builder(clock).msi(to_vmm).build(recorder().0).unwrap();
        new.restore(&serde_json::from_str(golden).unwrap()).unwrap();
        new.on_readable();
        assert_eq!(messages.try_iter().collect::<Vec<_>>(), [MESSAGE]);
        assert_eq!(new.bar0(), Some(0xFEB0_0000));
    }
}

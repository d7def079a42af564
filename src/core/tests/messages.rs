//! Interrupt messages: one for each interrupt, whatever happens to the call that sends it.

use vm_watchdog_devices::i6300esb::{I6300esb, I6300esbConfig};
use vm_watchdog_devices::{Model, MsiMessage};

use super::{Bench, UNIT};
use crate::core::{Call, Connections};
use crate::policy::Policy;

const MESSAGE: MsiMessage = MsiMessage::new(0xFEE0_0000, 0x41);

/// A guest that has enabled MSI, with a host that sends messages.
fn bench() -> Bench<I6300esb> {
    let device = I6300esb::new(I6300esbConfig::default().with_msi().with_command(0x0006));
    let connections = Connections { sends_messages: true, ..Connections::default() };
    let mut bench = Bench::of(device, Policy::default(), connections);
    bench.config(0x44, &MESSAGE.address.to_le_bytes());
    bench.config(0x4C, &MESSAGE.data.to_le_bytes());
    bench.config(0x42, &[0x01, 0x00]);
    bench
}

impl Bench<I6300esb> {
    fn config(&mut self, offset: u16, data: &[u8]) {
        self.access(|device, now| device.write_config(offset, data, now));
    }

    /// The guest clears the interrupt.
    fn clear(&mut self) {
        self.bar(0x08, 1);
    }

    /// The timer goes off at the end of stage 1, and a call to send the message begins.
    fn begin_to_send(&mut self) {
        self.start(512);
        self.now = self.now + UNIT * 512;
        self.core.wake(self.now);
        assert_eq!(self.core.next_call(self.now), Some(Call::SendMessage(MESSAGE)));
        assert_eq!(self.core.next_call(self.now), None, "one call at a time");
    }
}

#[test]
fn an_interrupt_is_one_message_at_the_end_of_stage_one() {
    let mut bench = bench();
    bench.start(512);
    bench.run(UNIT * 512 - UNIT / 2);
    assert_eq!(bench.messages, []);
    bench.run(UNIT * 400);
    bench.ping();
    bench.run(UNIT * 600);
    assert_eq!(bench.messages, [MESSAGE], "the guest has not cleared it");
    bench.clear();
    bench.ping();
    bench.run(UNIT * 600);
    assert_eq!(bench.messages, [MESSAGE; 2]);
}

#[test]
fn a_message_that_fails_is_counted_and_sent_again_at_the_next_access() {
    let mut bench = bench();
    bench.sends = false;
    bench.start(512);
    bench.run(UNIT * 600);
    assert_eq!(bench.messages, [MESSAGE], "not again and again");
    assert_eq!(bench.core.stats(bench.now).interrupt_failures, 1);
    bench.sends = true;
    bench.access(|device, now| device.read_bar(0x08, &mut [0], now));
    bench.access(|device, now| device.read_bar(0x08, &mut [0], now));
    assert_eq!(bench.messages, [MESSAGE; 2]);
    assert_eq!(bench.core.stats(bench.now).interrupt_failures, 1);
}

#[test]
fn a_message_that_failed_is_not_sent_after_its_interrupt_is_cleared() {
    let mut bench = bench();
    bench.sends = false;
    bench.start(512);
    bench.run(UNIT * 600);
    bench.clear();
    assert_eq!(bench.messages, [MESSAGE]);
}

#[test]
fn a_message_that_a_pause_prevents_is_due_when_the_vm_runs() {
    let mut bench = bench();
    bench.begin_to_send();
    bench.core.put_back(Call::SendMessage(MESSAGE));
    assert!(bench.core.next_wake().is_some_and(|wake| wake <= bench.now + UNIT * 2));
    bench.run(UNIT * 2);
    assert_eq!(bench.messages, [MESSAGE]);
}

#[test]
fn an_interrupt_that_comes_while_the_last_one_is_sent_has_its_own_message() {
    let mut bench = bench();
    bench.begin_to_send();
    bench.clear();
    bench.start(0);
    bench.ping();
    assert_eq!(bench.messages, [], "the first call is in progress");
    bench.core.message_sent(true);
    bench.run(UNIT * 2);
    assert_eq!(bench.messages, [MESSAGE]);
}

#[test]
fn a_reset_or_a_restore_beside_a_message_ends_with_what_the_device_has() {
    for is_sent in [false, true] {
        let mut bench = bench();
        bench.begin_to_send();
        bench.core.reset();
        bench.core.message_sent(is_sent);
        bench.run(UNIT * 2);
        assert_eq!(bench.messages, []);
        assert_eq!(bench.core.next_wake(), None);
    }
    for is_sent in [false, true] {
        let mut bench = bench();
        bench.begin_to_send();
        // Saved with the message on its way, which counts as sent.
        let state = bench.core.save(bench.now);
        bench.core.restore(&state, bench.now).unwrap();
        bench.core.message_sent(is_sent);
        bench.run(UNIT);
        assert_eq!(bench.messages, [], "the interrupt of the saved device had its message");
    }
}

#[test]
fn a_message_that_was_due_at_the_save_is_sent_after_the_restore() {
    let mut source = bench();
    source.begin_to_send();
    source.core.put_back(Call::SendMessage(MESSAGE));
    let state = source.core.save(source.now);
    let mut target = bench();
    target.core.restore(&state, target.now).unwrap();
    target.run(UNIT);
    assert_eq!(target.messages, [MESSAGE]);
}

#[test]
fn without_a_sender_nothing_waits_for_it() {
    let device = I6300esb::new(I6300esbConfig::default().with_msi().with_command(0x0006));
    let mut bench = Bench::of(device, Policy::default(), Connections::default());
    bench.config(0x42, &[0x01, 0x00]);
    bench.start(512);
    bench.run(UNIT * 2000);
    assert!(bench.core.model().message().is_some());
    assert_eq!(bench.core.next_wake(), None);
}

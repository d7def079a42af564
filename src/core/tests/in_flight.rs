//! What happens while the handler is being called, and what follows from one escalation after another.

use super::*;

impl Bench<I6300esb> {
    /// Time passes until the handler is called; the call has not returned.
    fn begin_to_perform(&mut self) -> Delivery {
        for _ in 0..1000 {
            self.now = self.now.max(self.core.next_wake().expect("something is to come"));
            self.core.wake(self.now);
            while let Some(call) = self.core.next_call(self.now) {
                match call {
                    Call::Perform(delivery) => return delivery,
                    call => self.make(call),
                }
            }
        }
        panic!("the handler is not called");
    }

    /// The call returns.
    fn end(&mut self, is_performed: bool) {
        self.core.performed(is_performed, self.now);
    }
}

fn shutdown_then_poweroff() -> Policy {
    Policy::new(Action::Shutdown).with_escalation(SECOND * 30, Action::Poweroff)
}

#[test]
fn a_pretimeout_that_fails_is_tried_again_until_the_timeout() {
    let mut bench = Bench::new(Policy::new(Action::Reset).with_pretimeout(Action::InjectNmi));
    bench.start(512);
    assert_eq!(bench.begin_to_perform().stage, Stage::Pretimeout);
    bench.end(false);
    let second = bench.begin_to_perform();
    assert_eq!((second.stage, second.attempt), (Stage::Pretimeout, 2));
    // The watchdog times out during the call.
    bench.now = VmInstant::ZERO + TIMEOUT;
    bench.bar(0x08, 1);
    bench.end(false);
    bench.performs = false;
    bench.run(SECOND);
    assert!(bench.told().iter().all(|(stage, ..)| *stage == Stage::Timeout));
}

#[test]
fn a_heartbeat_during_a_call_that_fails_ends_what_would_be_tried_again() {
    let policy = nmi_then_poweroff().with_pretimeout(Action::InjectNmi);
    for stage in [Stage::Pretimeout, Stage::Timeout, Stage::Escalation] {
        let mut bench = Bench::new(policy);
        bench.start(512);
        while bench.begin_to_perform().stage != stage {
            bench.end(true);
        }
        bench.ping();
        bench.end(false);
        bench.lock_register(0);
        bench.run(SECOND * 60);
        assert_eq!(bench.told(), [], "{stage:?}");
    }
}

#[test]
fn an_escalation_that_fails_is_tried_again() {
    for (policy, feeds) in [(shutdown_then_poweroff(), true), (nmi_then_poweroff(), false)] {
        let mut bench = Bench::new(policy);
        bench.start(512);
        assert_eq!(bench.begin_to_perform().stage, Stage::Timeout);
        bench.end(true);
        assert_eq!(bench.begin_to_perform().stage, Stage::Escalation);
        if feeds {
            // A guest that is shutting down; its heartbeat shows nothing.
            bench.ping();
        }
        bench.end(false);
        bench.run(MILLISECOND * 100);
        assert_eq!(bench.told(), [(Stage::Escalation, Action::Poweroff, 2)]);
    }
}

#[test]
fn the_handler_is_not_called_again_before_a_call_returns_that_a_reset_has_overtaken() {
    let drops: [fn(&mut Core<I6300esb>); 2] = [Core::reset, Core::acknowledge];
    for drop in drops {
        let mut bench = Bench::new(Policy::new(Action::Reset));
        bench.start(512);
        bench.begin_to_perform();
        drop(&mut bench.core);
        bench.start(512);
        bench.ping();
        bench.run(TIMEOUT * 2);
        assert_eq!(bench.told(), [], "one call at a time");
        bench.end(true);
        bench.serve();
        assert_eq!(bench.told(), [(Stage::Timeout, Action::Reset, 1)]);
    }
}

/// A guest that runs freely, with a timeout about every second.
fn free_running(policy: Policy) -> Bench<I6300esb> {
    free_running_with(512, policy)
}

fn free_running_with(units: u32, policy: Policy) -> Bench<I6300esb> {
    let mut bench = Bench::new(policy);
    bench.unlocked(0x00, units);
    bench.unlocked(0x04, units);
    bench.lock_register(6);
    bench
}

#[test]
fn a_later_timeout_does_not_begin_an_escalation_anew_that_is_due_at_the_same_time() {
    // A timeout every 79 ms.
    let policy = Policy::new(Action::InjectNmi).with_escalation(MILLISECOND * 30, Action::Poweroff);
    let mut bench = free_running_with(40, policy);
    assert_eq!(bench.begin_to_perform().stage, Stage::Timeout);
    let first = bench.now;
    bench.end(true);
    assert_eq!(bench.begin_to_perform().stage, Stage::Escalation);
    bench.end(false);
    assert_eq!(bench.begin_to_perform().stage, Stage::Timeout);
    bench.now = first + MILLISECOND * 100;
    bench.end(true);
    let escalation = bench.begin_to_perform();
    assert_eq!((escalation.stage, escalation.attempt), (Stage::Escalation, 2));
    assert_eq!(bench.now, first + MILLISECOND * 130);
}

#[test]
fn a_later_timeout_does_not_put_an_escalation_off() {
    let mut bench = free_running(nmi_then_poweroff());
    bench.run(TIMEOUT + SECOND * 30);
    let (at, last) = *bench.told.last().expect("it has timed out");
    assert_eq!((last.stage, last.deadline), (Stage::Escalation, VmInstant::ZERO + TIMEOUT + SECOND * 30));
    assert_eq!(at, last.deadline);
    assert!(bench.told().len() > 30);
}

#[test]
fn a_handler_that_fails_later_has_a_pending_escalation_come_at_once() {
    for (policy, ends_with_heartbeat) in [(nmi_then_poweroff(), true), (shutdown_then_poweroff(), false)] {
        let mut bench = free_running(policy);
        bench.run(TIMEOUT);
        assert_eq!(bench.told().len(), 1);
        bench.performs = false;
        bench.run(SECOND * 10);
        let told = bench.told();
        assert!(told.contains(&(Stage::Escalation, Action::Poweroff, 1)), "{told:?}");
        // The call for the escalation fails too. A heartbeat ends it, unless the guest was told to shut down.
        bench.ping();
        bench.lock_register(0);
        bench.run(SECOND * 60);
        assert_eq!(bench.told().is_empty(), ends_with_heartbeat);
    }
}

#[test]
fn a_heartbeat_does_not_end_the_escalation_of_a_shutdown_that_follows_an_nmi() {
    let mut bench = free_running(nmi_then_poweroff());
    bench.run(TIMEOUT);
    let first = bench.now;
    bench.core.set_policy(shutdown_then_poweroff(), bench.now);
    bench.run(TIMEOUT);
    assert_eq!(bench.told(), [(Stage::Timeout, Action::InjectNmi, 1), (Stage::Timeout, Action::Shutdown, 1)]);
    bench.ping();
    bench.lock_register(0);
    bench.run(SECOND * 60);
    let [(_, escalation)] = bench.told[..] else { panic!("{:?}", bench.told) };
    assert_eq!((escalation.stage, escalation.deadline), (Stage::Escalation, first + SECOND * 30));
}

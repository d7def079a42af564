//! Actions that the guest chooses, with a command for z/VM.

use vm_watchdog_devices::diag288::UnknownCommands;

use super::*;

/// "IPL", "VMDUMP" and "MSG", in EBCDIC. The last one has no meaning here, so that the policy's action counts.
const IPL: &[u8] = &[0xC9, 0xD7, 0xD3];
const VMDUMP: &[u8] = &[0xE5, 0xD4, 0xC4, 0xE4, 0xD4, 0xD7];
const MSG: &[u8] = &[0xD4, 0xE2, 0xC7];

const FIFTEEN: Duration = Duration::from_secs(15);

fn bench(policy: Policy) -> Bench<Diag288> {
    Bench::of(Diag288::zvm(UnknownCommands::Accepted), policy, Connections::default())
}

impl Bench<Diag288> {
    /// The function INIT with this command and a timeout of 15 s.
    fn arm(&mut self, command: &[u8]) {
        let mut gprs = [0; 16];
        (gprs[3], gprs[5]) = (15, command.len() as u64);
        let init = Diagnose::from_intercept(4, 0x8324, 0x0288_0000, &gprs).expect("it is DIAGNOSE X'288'");
        self.access(|device, now| {
            device.diagnose_with_command(&init, Some(command), now).expect("a call that is accepted")
        });
    }
}

#[test]
fn a_new_policy_does_not_change_what_the_guest_has_chosen() {
    for (command, retried) in [(IPL, Action::Reset), (MSG, Action::Pause)] {
        let mut bench = bench(Policy::new(Action::InjectNmi));
        bench.performs = false;
        bench.arm(command);
        bench.run(FIFTEEN);
        let chosen = if command == IPL { Action::Reset } else { Action::InjectNmi };
        assert_eq!(bench.told(), [(Stage::Timeout, chosen, 1)]);
        bench.core.set_policy(Policy::new(Action::Pause), bench.now);
        bench.performs = true;
        bench.run(SECOND);
        assert_eq!(bench.told(), [(Stage::Timeout, retried, 2)]);
    }
}

#[test]
fn the_command_of_the_first_of_two_timeouts_counts_if_the_host_is_late() {
    let mut bench = bench(Policy::new(Action::InjectNmi));
    bench.arm(IPL);
    bench.now = bench.now + FIFTEEN;
    bench.arm(VMDUMP);
    bench.now = bench.now + FIFTEEN;
    bench.serve();
    assert_eq!(bench.told(), [(Stage::Timeout, Action::Reset, 1)]);
}

/// Two timeouts beyond a rate of one action in 60 s, which is spent: the later one is covered by the delay of the first.
fn covered(first: &[u8], later: &[u8]) -> Bench<Diag288> {
    let mut bench = bench(Policy::new(Action::InjectNmi).with_action_rate(SECOND * 60, 1));
    bench.arm(IPL);
    bench.run(FIFTEEN);
    assert_eq!(bench.told(), [(Stage::Timeout, Action::Reset, 1)]);
    for command in [first, later] {
        bench.arm(command);
        bench.run(FIFTEEN);
        assert_eq!(bench.told(), []);
    }
    bench
}

#[test]
fn the_command_of_the_last_timeout_counts_if_the_rate_delays_the_action() {
    for (first, later, action) in
        [(IPL, VMDUMP, Action::Dump), (MSG, VMDUMP, Action::Dump), (IPL, MSG, Action::InjectNmi)]
    {
        let mut bench = covered(first, later);
        bench.run(SECOND * 60);
        assert_eq!(bench.told(), [(Stage::Timeout, action, 1)]);
    }
}

#[test]
fn a_new_policy_counts_for_a_delayed_action_unless_the_last_timeout_has_its_own() {
    for (first, later, action) in [(IPL, MSG, Action::Pause), (MSG, VMDUMP, Action::Dump)] {
        let mut bench = covered(first, later);
        bench.core.set_policy(Policy::new(Action::Pause), bench.now);
        bench.run(SECOND);
        assert_eq!(bench.told(), [(Stage::Timeout, action, 1)]);
    }
}

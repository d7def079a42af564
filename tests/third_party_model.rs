//! A complete model outside this library: the watchdog of the IB700 single board computer as its Linux driver sees it.
//!
//! A write to port 443h starts or feeds it, with a timeout of 30 s less two for each unit of the low four bits; a write
//! to port 441h stops it. It is made of public items only: the [`Model`], a front end of its own, and the runtime.

mod common;

use std::time::Duration;

use common::{arrived, recorder};
use vm_watchdog::{
    Access, Action, AnyWatchdog, Expired, ManualClock, Model, Policy, Stage, StateError, VmClock, VmInstant, Watchdog,
    WatchdogState,
};

const STOP: u16 = 0x441;
const START: u16 = 0x443;

const SECOND: Duration = Duration::from_secs(1);

/// The device.
#[derive(Clone, Debug, Default)]
struct Ib700 {
    /// The low four bits of the last write to the start port.
    setting: u8,
    /// When it times out, while it runs.
    deadline: Option<VmInstant>,
    /// A timeout that was not polled yet.
    expired: Option<VmInstant>,
    /// It has timed out and was not stopped or started since.
    has_expired: bool,
}

/// Its saved state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
struct Ib700State {
    setting: u8,
    left_ns: Option<u64>,
    expired_ns_ago: Option<u64>,
    has_expired: bool,
}

impl Ib700 {
    fn timeout(&self) -> Duration {
        SECOND * (30 - 2 * u32::from(self.setting))
    }

    fn write_port(&mut self, port: u16, value: u8, now: VmInstant) -> Access {
        self.advance(now);
        let is_heartbeat = self.is_armed();
        match port {
            START => {
                self.setting = value & 0x0F;
                self.deadline = Some(now + self.timeout());
            }
            STOP => self.deadline = None,
            _ => return Access::Ignored,
        }
        self.has_expired = false;
        if port == START && is_heartbeat { Access::Heartbeat } else { Access::Accepted }
    }

    /// A timeout stays latched until it is polled, whatever the guest does in between.
    fn advance(&mut self, now: VmInstant) {
        if let Some(deadline) = self.deadline.take_if(|deadline| *deadline <= now) {
            self.expired.get_or_insert(deadline);
            self.has_expired = true;
        }
    }
}

impl Model for Ib700 {
    type State = Ib700State;

    fn poll_at(&self) -> Option<VmInstant> {
        self.expired.or(self.deadline)
    }

    fn timeout_at(&self) -> Option<VmInstant> {
        self.deadline
    }

    fn poll(&mut self, now: VmInstant) -> Expired {
        self.advance(now);
        Expired::new(None, self.expired.take())
    }

    fn is_armed(&self) -> bool {
        self.deadline.is_some() || self.has_expired
    }

    fn reset(&mut self) {
        *self = Self::default();
    }

    fn save(&mut self, now: VmInstant) -> Ib700State {
        self.advance(now);
        let nanos = |duration: Duration| duration.as_nanos() as u64;
        Ib700State {
            setting: self.setting,
            left_ns: self.deadline.map(|deadline| nanos(deadline.saturating_duration_since(now))),
            expired_ns_ago: self.expired.map(|expired| nanos(now.saturating_duration_since(expired))),
            has_expired: self.has_expired,
        }
    }

    fn restored(&self, state: &Ib700State, now: VmInstant) -> Result<Self, StateError> {
        let Ib700State { setting, left_ns, expired_ns_ago, has_expired } = *state;
        StateError::unless(setting <= 0x0F, "setting", setting, "at most 0xf")?;
        let device = Self { setting, has_expired, ..Self::default() };
        let left = left_ns.unwrap_or_default();
        let is_possible = Duration::from_nanos(left) <= device.timeout();
        StateError::unless(is_possible, "left_ns", left, "at most the timeout")?;
        Ok(Self {
            deadline: left_ns.map(|left| now + Duration::from_nanos(left)),
            expired: expired_ns_ago.map(|ago| now - Duration::from_nanos(ago)),
            ..device
        })
    }
}

/// What a VMM's port bus calls.
trait PortIo {
    fn outb(&self, port: u16, value: u8);
    fn timeout(&self) -> Duration;
}

impl PortIo for Watchdog<Ib700> {
    fn outb(&self, port: u16, value: u8) {
        self.access(|device, now| (device.write_port(port, value, now), ()));
    }

    fn timeout(&self) -> Duration {
        self.inspect(Ib700::timeout)
    }
}

type Events = std::sync::mpsc::Receiver<vm_watchdog::Event>;

fn watchdog(policy: Policy) -> (Watchdog<Ib700>, ManualClock, Events) {
    let (clock, time) = VmClock::manual();
    let (handler, events) = recorder();
    let builder = Watchdog::builder("ib700", Ib700::default()).clock(clock).policy(policy);
    (builder.build(handler).unwrap(), time, events)
}

#[test]
fn a_guest_that_stops_feeding_times_out_to_the_nanosecond() {
    let (watchdog, time, events) = watchdog(Policy::new(Action::Poweroff));
    watchdog.outb(START, 0x0A);
    assert_eq!((watchdog.timeout(), watchdog.stats().time_left), (SECOND * 10, Some(SECOND * 10)));
    for _ in 0..3 {
        time.advance(SECOND * 9);
        watchdog.on_readable();
        watchdog.outb(START, 0x0A);
    }
    time.advance(SECOND * 10 - Duration::from_nanos(1));
    watchdog.on_readable();
    assert_eq!(arrived(&events), []);
    time.advance(Duration::from_nanos(1));
    watchdog.on_readable();
    let event = events.try_recv().expect("an event");
    assert_eq!((event.stage, event.action), (Stage::Timeout, Action::Poweroff));
    assert_eq!(event.deadline, VmInstant::ZERO + SECOND * 37);
    assert_eq!(event.last_heartbeat, Some(VmInstant::ZERO + SECOND * 27));
    let stats = watchdog.stats();
    assert_eq!((stats.heartbeats, stats.expiries, stats.armed), (3, 1, true));
    watchdog.outb(0x442, 0);
    assert_eq!(watchdog.stats().ignored_accesses, 1);
}

#[test]
fn a_timeout_is_reported_though_the_guest_has_stopped_the_watchdog_since() {
    let (watchdog, time, events) = watchdog(Policy::default());
    watchdog.outb(START, 0x0A);
    time.advance(SECOND * 10);
    watchdog.outb(STOP, 0);
    watchdog.on_readable();
    assert_eq!(arrived(&events), [(Stage::Timeout, Action::Reset)]);
    time.advance(SECOND * 100);
    watchdog.on_readable();
    assert_eq!(arrived(&events), []);
    assert!(!watchdog.stats().armed);
}

#[test]
fn a_heartbeat_ends_the_grace_period() {
    let policy = Policy::new(Action::InjectNmi).with_escalation(SECOND * 5, Action::Reset);
    for recovers in [false, true] {
        let (watchdog, time, events) = watchdog(policy);
        watchdog.outb(START, 0x0A);
        time.advance(SECOND * 10);
        watchdog.on_readable();
        assert_eq!(arrived(&events), [(Stage::Timeout, Action::InjectNmi)]);
        if recovers {
            watchdog.outb(START, 0x0A);
        }
        time.advance(SECOND * 5);
        watchdog.on_readable();
        let expected: &[_] = if recovers { &[] } else { &[(Stage::Escalation, Action::Reset)] };
        assert_eq!(arrived(&events), expected);
    }
}

#[test]
fn time_stops_in_a_pause_and_a_reset_stops_the_watchdog() {
    let (watchdog, time, events) = watchdog(Policy::default());
    watchdog.outb(START, 0x0A);
    time.advance(SECOND * 4);
    watchdog.clock().pause();
    time.advance(SECOND * 3600);
    watchdog.on_readable();
    watchdog.clock().resume();
    assert_eq!(watchdog.stats().time_left, Some(SECOND * 6));
    watchdog.reset();
    assert_eq!(watchdog.timeout(), SECOND * 30, "the setting of a device after its reset");
    time.advance(SECOND * 3600);
    watchdog.on_readable();
    assert_eq!(arrived(&events), []);
}

#[test]
fn a_restored_watchdog_keeps_its_remaining_time() {
    let (old, time, _) = watchdog(Policy::new(Action::Poweroff));
    old.outb(START, 0x0A);
    time.advance(SECOND * 4);
    let state: WatchdogState<Ib700State> = old.save();
    #[cfg(feature = "serde")]
    let state: WatchdogState<Ib700State> = serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap();

    let (new, time, events) = watchdog(Policy::default());
    // Its clock continues at the saved time.
    time.advance(state.vm_time().saturating_duration_since(VmInstant::ZERO));
    new.restore_with_policy(&state).unwrap();
    assert_eq!(new.save(), state);
    time.advance(SECOND * 6 - Duration::from_nanos(1));
    new.on_readable();
    assert_eq!(arrived(&events), []);
    time.advance(Duration::from_nanos(1));
    new.on_readable();
    assert_eq!(arrived(&events), [(Stage::Timeout, Action::Poweroff)]);
}

#[test]
fn a_state_that_no_device_can_be_in_is_refused_by_its_field() {
    let (old, _, _) = watchdog(Policy::default());
    old.outb(START, 0x0F);
    old.outb(STOP, 0);
    let refused = |state: Ib700State| {
        let error = Ib700::default().restored(&state, VmInstant::ZERO).unwrap_err();
        (error.field, error.value)
    };
    let good = Ib700State { setting: 0x0A, left_ns: Some(10_000_000_000), expired_ns_ago: None, has_expired: false };
    assert!(Ib700::default().restored(&good, VmInstant::ZERO).is_ok());
    assert_eq!(refused(Ib700State { setting: 0x10, ..good }), ("setting", 0x10));
    assert_eq!(refused(Ib700State { left_ns: Some(10_000_000_001), ..good }), ("left_ns", 10_000_000_001));
}

#[test]
fn a_list_of_watchdogs_gives_its_typed_handle() {
    let (watchdog, time, events) = watchdog(Policy::default());
    let list = [AnyWatchdog::from(watchdog)];
    list[0].downcast::<Ib700>().expect("the same model").outb(START, 0x0A);
    let state = list[0].save();
    time.advance(SECOND * 10);
    list[0].on_readable();
    assert_eq!(arrived(&events), [(Stage::Timeout, Action::Reset)]);
    list[0].restore(&state).unwrap();
    assert_eq!(list[0].stats().time_left, Some(SECOND * 10));
}

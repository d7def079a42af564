//! Random sequences of what a guest, the host and time can do, against what must always hold.
//!
//! A reference that knows only when the guest last fed says when a timeout and a pretimeout are right; the rest are
//! rules about the order of what the handler is told.

use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

use super::*;
use crate::core::MIN_WAKE_INTERVAL;
use crate::core::steal_time::READING_INTERVAL;
use crate::policy::ActionRate;

#[derive(Clone, Debug)]
enum Step {
    /// Time passes, and the timer is served whenever it goes off.
    Run(Duration),
    /// Time passes, and nothing is served: the host is late.
    Late(Duration),
    Ping,
    Start,
    Stop,
    Reset,
    Acknowledge,
    /// From here on the handler succeeds, or fails.
    Perform(bool),
    /// The VM is saved, and goes on in another process.
    Move,
    /// A vCPU waits for a processor while time passes.
    Steal(usize, Duration),
}

/// What the guest has done, and what follows from it.
#[derive(Default)]
struct Reference {
    /// When the period began that runs.
    fed: Option<VmInstant>,
    /// When the guest last fed or started the watchdog.
    last_heartbeat: Option<VmInstant>,
    /// The first timeout that the host was too late to deliver before the period ended.
    undelivered: Option<VmInstant>,
}

impl Reference {
    /// The period ends at `now`, with or without a timeout.
    fn end_period(&mut self, now: VmInstant) {
        let timeout = self.fed.take().map(|fed| fed + TIMEOUT).filter(|timeout| *timeout <= now);
        self.undelivered = self.undelivered.or(timeout);
    }

    /// The deadline of the timeout that is delivered at `now`.
    fn take_timeout(&mut self, now: VmInstant) -> Option<VmInstant> {
        if self.fed.is_some_and(|fed| fed + TIMEOUT <= now) {
            self.end_period(now);
        }
        self.undelivered.take()
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let time = || {
        prop_oneof![
            3 => (0..400_u64).prop_map(Duration::from_millis),
            2 => (400..3000_u64).prop_map(Duration::from_millis),
            1 => (0..3_u64).prop_map(Duration::from_nanos),
            1 => (3..60_u64).prop_map(Duration::from_secs),
            1 => Just(TIMEOUT / 2),
            1 => Just(TIMEOUT),
        ]
    };
    let step = prop_oneof![
        8 => time().prop_map(Step::Run),
        2 => time().prop_map(Step::Late),
        5 => Just(Step::Ping),
        3 => Just(Step::Start),
        1 => Just(Step::Stop),
        1 => Just(Step::Reset),
        1 => Just(Step::Acknowledge),
        2 => any::<bool>().prop_map(Step::Perform),
        1 => Just(Step::Move),
        2 => (0..2_usize, time()).prop_map(|(vcpu, time)| Step::Steal(vcpu, time)),
    ];
    proptest::collection::vec(step, 4..24)
}

fn policies() -> impl Strategy<Value = Policy> {
    let action =
        || prop_oneof![Just(Action::Reset), Just(Action::Shutdown), Just(Action::InjectNmi), Just(Action::None),];
    let escalation = proptest::option::of((0..5_u64, action()));
    let rate = proptest::option::of((1..6000_u64, 0..4_u32));
    (action(), action(), escalation, proptest::option::of(0..2000_u64), rate).prop_map(
        |(timeout, pretimeout, escalation, before, rate)| {
            let mut policy = Policy::new(timeout).with_pretimeout(pretimeout);
            policy.pretimeout_before = before.map(Duration::from_millis);
            policy.action_rate = rate.map(|(interval, burst)| ActionRate::new(MILLISECOND * interval as u32, burst));
            match escalation {
                Some((grace, action)) => policy.with_escalation(SECOND * grace as u32, action),
                None => policy,
            }
        },
    )
}

fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(100_000);
    let failure_persistence = Some(Box::new(FileFailurePersistence::WithSource("regressions")) as _);
    ProptestConfig { cases, failure_persistence, ..ProptestConfig::default() }
}

struct World {
    bench: Bench<I6300esb>,
    policy: Policy,
    steal_limit: Option<u32>,
    reference: Reference,
    /// The deadlines of first attempts, which never come twice.
    last_timeout: Option<VmInstant>,
    /// When an action for the timeout was last performed, and whether it leaves the guest running.
    performed: Option<(VmInstant, bool)>,
    /// Calls for timeouts that failed in a row.
    failures: u32,
    /// A heartbeat came after the last call for a timeout.
    heartbeat_since_call: bool,
    /// What was stolen in all.
    stolen: Duration,
    /// By how much deadlines may have been put off without a measurement.
    postponed: Duration,
    /// When the actions began that count towards the rate.
    begun: Vec<VmInstant>,
    /// The deadline of the timeout whose action is delayed, and until when.
    delayed: Option<(VmInstant, VmInstant)>,
    /// Every call of the handler to perform an action.
    calls: Vec<(VmInstant, Delivery)>,
}

impl World {
    fn new(policy: Policy, steal_limit: Option<u32>) -> Self {
        let mut bench = Bench::with_steal_limit(policy, steal_limit);
        bench.delays = vec![VcpuDelay::new(0, Duration::ZERO), VcpuDelay::new(1, Duration::ZERO)];
        Self {
            bench,
            policy,
            steal_limit,
            reference: Reference::default(),
            last_timeout: None,
            performed: None,
            failures: 0,
            heartbeat_since_call: false,
            stolen: Duration::ZERO,
            postponed: Duration::ZERO,
            begun: Vec::new(),
            delayed: None,
            calls: Vec::new(),
        }
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match *step {
            Step::Run(time) => self.run(time)?,
            Step::Late(time) => self.bench.now = self.bench.now + time,
            Step::Steal(vcpu, time) => {
                self.bench.delays[vcpu].delay += time;
                self.stolen += time;
                self.bench.now = self.bench.now + time;
            }
            Step::Ping => {
                let heartbeats = self.bench.core.stats(self.bench.now).heartbeats;
                self.bench.ping();
                if self.bench.core.stats(self.bench.now).heartbeats > heartbeats {
                    self.episode_begins();
                }
            }
            Step::Start => {
                let was_running = self.bench.core.model().timeout_at().is_some();
                self.bench.start(512);
                if !was_running && self.bench.core.model().timeout_at().is_some() {
                    self.episode_begins();
                }
            }
            Step::Stop => {
                self.bench.lock_register(0);
                self.reference.end_period(self.bench.now);
            }
            Step::Reset => {
                self.bench.core.reset();
                self.forget();
            }
            Step::Acknowledge => {
                if self.delayed.is_some() {
                    // Everything that has expired is told.
                    self.run(MIN_WAKE_INTERVAL * 2)?;
                }
                if self.delayed.take().is_some() {
                    self.reference.take_timeout(self.bench.now);
                }
                self.bench.core.acknowledge();
                self.performed = None;
                self.failures = 0;
            }
            Step::Perform(performs) => self.bench.performs = performs,
            Step::Move => self.move_vm()?,
        }
        Ok(())
    }

    fn episode_begins(&mut self) {
        self.reference.end_period(self.bench.now);
        self.reference.fed = Some(self.bench.now);
        self.reference.last_heartbeat = Some(self.bench.now);
        self.heartbeat_since_call = true;
        self.failures = 0;
        if self.performed.is_some_and(|(_, leaves_guest_running)| leaves_guest_running) {
            self.performed = None;
        }
    }

    fn forget(&mut self) {
        self.reference = Reference::default();
        self.delayed = None;
        self.performed = None;
        self.failures = 0;
        self.heartbeat_since_call = true;
    }

    /// Saves the VM and goes on with what was saved: the invariants do not notice.
    fn move_vm(&mut self) -> Result<(), TestCaseError> {
        if self.steal_limit.is_some() {
            // A deadline that waits for a reading is saved as one that is about to come.
            self.run(Duration::ZERO)?;
            self.postponed += READING_INTERVAL;
        }
        let state = self.bench.core.save(self.bench.now);
        let mut moved = Bench::with_steal_limit(Policy::default(), self.steal_limit);
        moved.now = self.bench.now;
        moved.delays = self.bench.delays.clone();
        moved.performs = self.bench.performs;
        prop_assert_eq!(moved.core.restore(&state, moved.now), Ok(()));
        prop_assert_eq!(moved.core.save(moved.now), state);
        self.bench = moved;
        Ok(())
    }

    fn run(&mut self, time: Duration) -> Result<(), TestCaseError> {
        let end = self.bench.now + time;
        let mut wakes = 0;
        while let Some(wake) = self.bench.core.next_wake().filter(|wake| *wake <= end) {
            self.bench.now = self.bench.now.max(wake);
            self.bench.serve();
            self.judge()?;
            wakes += 1;
            prop_assert!(wakes < 100_000, "the timer goes off for ever");
            let next = self.bench.core.next_wake();
            prop_assert!(next.is_none_or(|next| next > self.bench.now), "something that is due was left");
        }
        self.bench.now = end;
        Ok(())
    }

    fn judge(&mut self) -> Result<(), TestCaseError> {
        // In the order in which they came: what is withheld after a call of the same instant follows from it.
        let withheld = std::mem::take(&mut self.bench.withheld);
        for (at, delivery) in std::mem::take(&mut self.bench.told) {
            self.calls.push((at, delivery));
            prop_assert!(delivery.due <= at && delivery.deadline <= at, "early: {:?} at {}", delivery, at);
            self.judge_rate(&delivery, at)?;
            match delivery.stage {
                Stage::Timeout => self.judge_timeout(&delivery, at)?,
                Stage::Pretimeout => self.judge_pretimeout(&delivery, at)?,
                Stage::Escalation => self.judge_escalation(&delivery, at)?,
            }
        }
        for (at, delivery, until) in withheld {
            prop_assert!(delivery.attempt == 1 && delivery.action != Action::None && delivery.deadline <= at);
            prop_assert!(!self.permits(delivery.stage, at), "needlessly withheld: {:?}", delivery);
            match until {
                None => prop_assert_eq!(delivery.stage, Stage::Pretimeout),
                Some(until) => {
                    let interval = self.policy.limit().expect("a rate").interval;
                    prop_assert!(at < until && until <= at + interval, "delayed for too long: {:?}", delivery);
                    prop_assert_eq!(self.delayed.replace((delivery.deadline, until)), None, "delayed twice");
                }
            }
        }
        Ok(())
    }

    /// Whether the rate permits another action at this instant: in every time that ends with it there are at most the burst
    /// and one for each interval. A pretimeout leaves one for a timeout.
    fn permits(&self, stage: Stage, at: VmInstant) -> bool {
        let Some(ActionRate { interval, burst }) = self.policy.limit() else {
            return true;
        };
        let burst = burst.max(1) as usize - usize::from(stage == Stage::Pretimeout);
        let mut times = self.begun.iter().rev().chain([&at]).enumerate();
        let is_within = |count: usize, since: VmInstant| {
            let intervals = at.saturating_duration_since(since).as_nanos() / interval.as_nanos();
            count as u128 <= burst as u128 + intervals
        };
        burst > 0
            && times.all(|(later, begun)| if later == self.begun.len() { true } else { is_within(later + 2, *begun) })
    }

    fn judge_rate(&mut self, delivery: &Delivery, at: VmInstant) -> Result<(), TestCaseError> {
        let (stage, deadline) = (delivery.stage, delivery.deadline);
        if stage == Stage::Timeout && delivery.attempt == 1 {
            let delayed = self.delayed.take();
            prop_assert_eq!(delayed.is_some(), delivery.is_delayed, "a delay is told before");
            if let Some((of, until)) = delayed {
                prop_assert!(of == deadline && until <= at, "{:?} before {} or of {}", delivery, until, of);
            }
        }
        if stage != Stage::Escalation && delivery.attempt == 1 && delivery.action != Action::None {
            prop_assert!(self.permits(stage, at), "beyond the rate: {:?}, after {:?}", delivery, self.begun);
            self.begun.push(at);
        }
        Ok(())
    }

    fn judge_timeout(&mut self, delivery: &Delivery, at: VmInstant) -> Result<(), TestCaseError> {
        if delivery.attempt == 1 {
            prop_assert!(self.last_timeout.is_none_or(|last| delivery.deadline > last), "told twice: {:?}", delivery);
            self.last_timeout = Some(delivery.deadline);
            if self.steal_limit.is_none() {
                prop_assert_eq!(Some(delivery.deadline), self.reference.take_timeout(at));
            }
            // A timeout of an earlier period, which the host was too late to deliver, stands for both.
            let fed = self.reference.fed.filter(|fed| *fed < delivery.deadline);
            if let (Some(steal_limit), Some(fed)) = (self.steal_limit, fed) {
                let waited = delivery.deadline.saturating_duration_since(fed);
                prop_assert!(waited >= TIMEOUT, "early: {:?}", waited);
                let most = (TIMEOUT + self.stolen).min(TIMEOUT * steal_limit) + self.postponed;
                prop_assert!(waited <= most, "{:?} is more than was measured, or than the limit allows", waited);
            }
            if self.steal_limit.is_some() && !delivery.has_recovered {
                self.reference.fed = None;
            }
        } else {
            prop_assert!(!delivery.is_delayed, "a retry is not delayed by the rate: {:?}", delivery);
            prop_assert!(!self.heartbeat_since_call, "a retry after a heartbeat: {:?}", delivery);
        }
        self.heartbeat_since_call = false;
        if self.bench.performs {
            let leaves_guest_running = delivery.action.leaves_guest_running();
            self.failures = 0;
            if !(delivery.has_recovered && leaves_guest_running) && self.performed.is_none() {
                self.performed = Some((at, leaves_guest_running));
            }
        } else {
            self.failures += 1;
        }
        Ok(())
    }

    fn judge_pretimeout(&mut self, delivery: &Delivery, at: VmInstant) -> Result<(), TestCaseError> {
        let fed = self.reference.last_heartbeat.expect("a period");
        prop_assert!(delivery.deadline > fed, "a pretimeout of an episode that is over: {:?}", delivery);
        prop_assert_ne!(delivery.action, Action::None);
        prop_assert!(delivery.deadline >= fed + TIMEOUT / 2, "before the end of stage 1");
        if self.steal_limit.is_none() && delivery.attempt == 1 {
            let before = self.policy.pretimeout_before.unwrap_or(TIMEOUT / 4).min(TIMEOUT / 2);
            prop_assert_eq!(delivery.deadline, fed + TIMEOUT - before);
            prop_assert!(at >= delivery.deadline);
        }
        Ok(())
    }

    fn judge_escalation(&mut self, delivery: &Delivery, at: VmInstant) -> Result<(), TestCaseError> {
        let escalation = self.policy.escalation.expect("an escalation in the policy");
        let after_grace = self.performed.is_some_and(|(when, _)| at >= when + escalation.grace);
        let after_failures = self.failures >= crate::event::MAX_ATTEMPTS;
        prop_assert!(after_grace || after_failures || delivery.attempt > 1, "an escalation without a cause");
        if delivery.attempt > 1 {
            prop_assert!(delivery.ends_with_heartbeat || self.performed.is_some() || after_failures);
        }
        if self.bench.performs {
            self.performed = None;
            self.failures = 0;
        }
        Ok(())
    }

    /// However it came here, a guest that does nothing from now on has timed out after a period, if it is watched.
    fn end(&mut self) -> Result<(), TestCaseError> {
        self.bench.performs = true;
        let ends = self.bench.now;
        let is_watched = self.bench.core.model().timeout_at().is_some();
        let expiries = self.bench.core.stats(self.bench.now).expiries;
        self.run(TIMEOUT * self.steal_limit.unwrap_or(1) + SECOND)?;
        let has_timed_out = self.bench.core.stats(self.bench.now).expiries > expiries;
        prop_assert_eq!(has_timed_out, is_watched, "no timeout is lost, and none invented");
        prop_assert_eq!(self.bench.core.is_line_stale(), false);
        self.run(SECOND * 60)?;
        let is_told =
            self.calls.iter().any(|(at, call)| *at >= ends && (call.stage, call.attempt) == (Stage::Timeout, 1));
        prop_assert!(is_told || !has_timed_out, "a timeout is told although the rate delays it");
        prop_assert_eq!(self.delayed, None);
        prop_assert_eq!(self.bench.core.next_wake(), None, "everything comes to rest");
        Ok(())
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_rules_hold_in_random_sequences(
        policy in policies(),
        steal_limit in prop_oneof![2 => Just(None), 1 => (2..5_u32).prop_map(Some)],
        steps in steps(),
    ) {
        let mut world = World::new(policy, steal_limit);
        for step in &steps {
            world.step(step)?;
        }
        world.end()?;
    }

    #[test]
    fn a_rate_that_nothing_exceeds_changes_nothing(
        policy in policies(),
        steal_limit in prop_oneof![2 => Just(None), 1 => (2..5_u32).prop_map(Some)],
        steps in steps(),
    ) {
        let rates = [None, Some(ActionRate::new(Duration::ZERO, 1)), Some(ActionRate::new(MILLISECOND, u32::MAX))];
        let [unlimited, off, wide] = rates.map(|action_rate| {
            let mut world = World::new(Policy { action_rate, ..policy }, steal_limit);
            steps.iter().try_for_each(|step| world.step(step)).and_then(|()| world.end()).map(|()| world.calls)
        });
        let unlimited = unlimited?;
        prop_assert_eq!(&unlimited, &off?);
        prop_assert_eq!(&unlimited, &wide?);
    }
}

//! Steal-time compensation: the watchdog's time, which lies behind the VM's by the time that was stolen from the guest.
//!
//! The delay given never exceeds what was [measured](crate::run_delay::RunDelay), and a period never lasts longer than
//! `limit` times the timeout. Measuring is slow, so a deadline that comes is not acted on before a reading has looked
//! at it; between two readings lie 100 ms.

use std::time::Duration;

use vm_watchdog_devices::VmInstant;

use crate::run_delay::VcpuDelay;

/// The least time between two readings, so that a guest with a fast timer does not keep the host reading.
pub(crate) const READING_INTERVAL: Duration = Duration::from_millis(100);

/// How far the watchdog's time lies behind the VM's, and why.
#[derive(Clone, Debug)]
pub(crate) struct StealTime {
    /// How many times the timeout a period may last.
    limit: u32,
    /// By how much the watchdog's time lies behind the VM's.
    offset: Duration,
    /// How much of that was measured.
    pub compensated: Duration,
    /// How much was measured since the period began.
    compensated_in_period: Duration,
    /// When the period began, on the watchdog's time.
    period_began: VmInstant,
    /// The latest instant that the model was told: time does not go back behind it.
    seen: VmInstant,
    last_delays: Vec<VcpuDelay>,
    /// When the last reading that counts was begun, on the watchdog's time.
    read_at: Option<VmInstant>,
    /// When the last reading was begun, on the VM's time.
    begun: VmInstant,
    /// When the next may be begun, on the VM's time.
    next_reading: VmInstant,
}

impl StealTime {
    pub fn new(limit: u32) -> Self {
        Self {
            limit,
            offset: Duration::ZERO,
            compensated: Duration::ZERO,
            compensated_in_period: Duration::ZERO,
            period_began: VmInstant::ZERO,
            seen: VmInstant::ZERO,
            last_delays: Vec::new(),
            read_at: None,
            begun: VmInstant::ZERO,
            next_reading: VmInstant::ZERO,
        }
    }

    /// The watchdog's time.
    pub fn time(&self, vm_now: VmInstant) -> VmInstant {
        vm_now - self.offset
    }

    /// When the watchdog's time is, or was, this.
    pub fn vm_time(&self, time: VmInstant) -> VmInstant {
        time + self.offset
    }

    /// The time to tell a model with these deadlines: the watchdog's time, but not yet that of a deadline that no
    /// reading has looked at.
    pub fn model_time(
        &self,
        vm_now: VmInstant,
        deadline: Option<VmInstant>,
        timeout_at: Option<VmInstant>,
    ) -> VmInstant {
        let now = self.time(vm_now);
        match self.first_unread(deadline, timeout_at) {
            Some(unread) if now < self.limit_ends(timeout_at) => now.min(unread - Duration::from_nanos(1)),
            _ => now,
        }
    }

    /// When to act on a deadline, on the VM's time: as it comes, or with the reading that has to look at it.
    pub fn wake_for(&self, deadline: VmInstant, timeout_at: Option<VmInstant>) -> VmInstant {
        let comes = self.vm_time(deadline);
        match self.first_unread(Some(deadline), timeout_at) {
            Some(_) => comes.max(self.next_reading.min(self.vm_time(self.limit_ends(timeout_at)))),
            None => comes,
        }
    }

    /// Whether a reading has to look at a deadline that has come.
    pub fn has_unread(&self, vm_now: VmInstant, deadline: Option<VmInstant>, timeout_at: Option<VmInstant>) -> bool {
        self.first_unread(deadline, timeout_at).is_some_and(|unread| unread <= self.time(vm_now))
    }

    /// The first deadline that no reading has looked at. A watchdog without a timeout is not read for.
    fn first_unread(&self, deadline: Option<VmInstant>, timeout_at: Option<VmInstant>) -> Option<VmInstant> {
        let timeout_at = timeout_at?;
        let is_unread = |deadline: &VmInstant| self.read_at.is_none_or(|read_at| *deadline > read_at.max(self.seen));
        deadline.into_iter().chain([timeout_at]).filter(is_unread).min()
    }

    /// When the period has lasted as long as it may, on the watchdog's time.
    fn limit_ends(&self, timeout_at: Option<VmInstant>) -> VmInstant {
        let longest = self.timeout(timeout_at).saturating_mul(self.limit);
        self.period_began + longest.saturating_sub(self.compensated_in_period)
    }

    fn timeout(&self, timeout_at: Option<VmInstant>) -> Duration {
        timeout_at.unwrap_or_default().saturating_duration_since(self.period_began)
    }

    /// A VM was restored at `now` in a period that began before: nothing has been read for it here.
    pub fn restore(&mut self, now: VmInstant, period_began: VmInstant, compensated_in_period: Duration) {
        self.last_delays.clear();
        self.read_at = None;
        self.see(now);
        (self.period_began, self.compensated_in_period) = (period_began, compensated_in_period);
    }

    /// How much was measured since the period began.
    pub fn compensated_in_period(&self) -> Duration {
        self.compensated_in_period
    }

    /// Notes that the model is told that it is `now`.
    pub fn see(&mut self, now: VmInstant) {
        self.seen = self.seen.max(now);
    }

    /// A period begins at `now`: the guest has started or fed the watchdog, or it has timed out.
    pub fn begin_period(&mut self, now: VmInstant) {
        self.compensated_in_period = Duration::ZERO;
        self.period_began = now;
        self.see(now);
    }

    /// The guest has started or fed the watchdog. If a deadline was held back for a reading, then time goes on from
    /// there, so that the guest has a whole period from here on.
    pub fn restart(&mut self, vm_now: VmInstant, now: VmInstant) {
        self.offset += self.time(vm_now).saturating_duration_since(now);
        self.begin_period(now);
    }

    /// Whether a reading may be taken; then it is the caller's to take.
    pub fn begin_reading(&mut self, vm_now: VmInstant) -> bool {
        let begins = vm_now >= self.next_reading;
        if begins {
            self.next_reading = vm_now + READING_INTERVAL;
        }
        begins
    }

    /// The reading was not taken after all: the next one need not wait.
    pub fn put_back_reading(&mut self) {
        self.next_reading = VmInstant::ZERO;
    }

    /// Takes a reading into account that was begun at `begun`, on the VM's time. Gives what was compensated.
    ///
    /// The most delayed vCPU counts: the process that feeds the watchdog may have been on any of them, and the guest
    /// cannot move it off a vCPU that does not run. The compensation is no more than the time since the model was last
    /// told the time, and the whole period no more than `limit` times the timeout.
    ///
    /// While a vCPU waits since an unknown moment the reading does not count as one that has looked at a deadline:
    /// when the wait is over, its length is known.
    pub fn grant(&mut self, delays: Vec<VcpuDelay>, begun: VmInstant, timeout_at: Option<VmInstant>) {
        // A reading that was overtaken by a later one says nothing new.
        if begun < self.begun {
            return;
        }
        let is_certain = !delays.iter().any(|vcpu| vcpu.waits);
        let stolen = self.greatest_growth(delays);

        let unseen = self.time(begun).saturating_duration_since(self.seen);
        let longest = self.timeout(timeout_at).saturating_mul(self.limit.saturating_sub(1));
        let most = longest.saturating_sub(self.compensated_in_period);
        let granted = stolen.min(unseen).min(most);
        self.offset += granted;
        self.compensated += granted;
        self.compensated_in_period += granted;
        self.end_reading(begun, is_certain);
    }

    /// Notes that a reading failed: deadlines come as they are.
    pub fn grant_nothing(&mut self, begun: VmInstant) {
        self.last_delays.clear();
        self.end_reading(begun, true);
    }

    fn end_reading(&mut self, begun: VmInstant, is_certain: bool) {
        self.begun = begun;
        if is_certain {
            self.read_at = Some(self.time(begun));
        }
    }

    /// By how much the delay of the most delayed vCPU has grown. A vCPU that has come since the last reading has none
    /// to compare; a delay that seems to have shrunk, as a measuring error has it, does not grow twice.
    fn greatest_growth(&mut self, mut delays: Vec<VcpuDelay>) -> Duration {
        let mut greatest = Duration::ZERO;
        for now in &mut delays {
            if let Some(then) = self.last_delays.iter().find(|then| then.vcpu == now.vcpu) {
                greatest = greatest.max(now.delay.saturating_sub(then.delay));
                now.delay = now.delay.max(then.delay);
            }
        }
        self.last_delays = delays;
        greatest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const TIMEOUT: Option<VmInstant> = Some(VmInstant::from_nanos(14_000_000_000));

    fn at(seconds: u32) -> VmInstant {
        VmInstant::ZERO + SECOND * seconds
    }

    /// The watchdog was fed at 10 s and times out at 14 s. A reading before that found these delays.
    fn fed_at_ten(before: &[u32]) -> StealTime {
        let mut steal_time = StealTime::new(4);
        assert!(steal_time.begin_reading(at(9)));
        steal_time.grant(seconds(before), at(9), TIMEOUT);
        steal_time.restart(at(10), at(10));
        steal_time
    }

    fn seconds(delays: &[u32]) -> Vec<VcpuDelay> {
        (0..).zip(delays).map(|(vcpu, &delay)| VcpuDelay::new(vcpu, SECOND * delay)).collect()
    }

    #[test]
    fn the_most_delayed_vcpu_counts() {
        for (before, after, granted) in [(&[5, 5], &[8, 6], 3), (&[5, 5], &[5, 5], 0), (&[1, 9], &[3, 9], 2)] {
            let mut steal_time = fed_at_ten(before);
            steal_time.grant(seconds(after), at(14), TIMEOUT);
            assert_eq!(steal_time.compensated, SECOND * granted);
        }
    }

    #[test]
    fn a_vcpu_is_compared_with_itself_only() {
        let mut steal_time = fed_at_ten(&[1]);
        let another = VcpuDelay::new(7, SECOND * 3);
        steal_time.grant(vec![another], at(13), TIMEOUT);
        assert_eq!(steal_time.compensated, Duration::ZERO);
        steal_time.grant(vec![], at(14), TIMEOUT);
        assert_eq!(steal_time.compensated, Duration::ZERO);
    }

    #[test]
    fn time_does_not_go_back_behind_what_the_device_has_seen() {
        let mut steal_time = fed_at_ten(&[0]);
        steal_time.see(at(13));
        steal_time.grant(seconds(&[4]), at(14), TIMEOUT);
        assert_eq!(steal_time.compensated, SECOND);
    }

    #[test]
    fn a_period_lasts_no_longer_than_the_limit() {
        let mut steal_time = fed_at_ten(&[0]);
        for second in 14..200 {
            steal_time.grant(seconds(&[second]), at(second), TIMEOUT);
        }
        // 4 s of the guest's own time, and three times that of steal time.
        assert_eq!(steal_time.compensated, SECOND * 12);
        steal_time.begin_period(at(100));
        steal_time.grant(seconds(&[300]), at(300), Some(at(104)));
        assert_eq!(steal_time.compensated, SECOND * 24);
    }

    #[test]
    fn readings_are_few() {
        let mut steal_time = fed_at_ten(&[0]);
        assert!(!steal_time.begin_reading(at(9) + READING_INTERVAL / 2));
        assert!(steal_time.begin_reading(at(9) + READING_INTERVAL));
        assert!(!steal_time.begin_reading(at(9) + READING_INTERVAL));
    }

    #[test]
    fn a_deadline_that_no_reading_has_looked_at_waits_for_one() {
        let mut steal_time = fed_at_ten(&[0]);
        assert!(steal_time.begin_reading(at(14)));
        steal_time.grant(seconds(&[0]), at(14), TIMEOUT);
        assert_eq!(steal_time.model_time(at(14), TIMEOUT, TIMEOUT), at(14), "the reading was taken for it");

        let deadline = at(14) + READING_INTERVAL / 2;
        let soon = Some(deadline);
        let next = at(14) + READING_INTERVAL;
        let just_before = deadline - Duration::from_nanos(1);
        assert_eq!(steal_time.wake_for(deadline, soon), next);
        assert_eq!(steal_time.model_time(just_before, soon, soon), just_before);
        assert_eq!(steal_time.model_time(next, soon, soon), just_before);
        assert_eq!(steal_time.wake_for(at(15), Some(at(15))), at(15));

        // A guest that feeds before the reading does so in time, and has a whole period from there.
        steal_time.restart(next, just_before);
        assert_eq!(steal_time.time(next), just_before);
        assert_eq!(steal_time.compensated, Duration::ZERO, "nothing was measured");
    }

    #[test]
    fn a_guest_that_only_looks_gains_nothing() {
        let mut steal_time = fed_at_ten(&[0]);
        for millis in 0..100 {
            let now = at(14) + Duration::from_millis(millis);
            let told = steal_time.model_time(now, TIMEOUT, TIMEOUT);
            steal_time.see(told);
        }
        steal_time.grant(seconds(&[0]), at(14) + READING_INTERVAL, TIMEOUT);
        assert!(steal_time.time(at(14) + READING_INTERVAL) >= at(14));
    }

    #[test]
    fn a_wait_of_unknown_length_holds_the_deadline_back_up_to_the_limit() {
        let mut steal_time = fed_at_ten(&[0]);
        let waiting = || vec![VcpuDelay::new(0, Duration::ZERO).waiting()];
        for second in 14..50 {
            steal_time.grant(waiting(), at(second), TIMEOUT);
            let told = steal_time.model_time(at(second), TIMEOUT, TIMEOUT);
            assert_eq!(told >= at(14), second >= 10 + 4 * 4, "at {second} s");
        }
        // The wait is over after 20 s, and its length is known.
        let mut steal_time = fed_at_ten(&[0]);
        steal_time.grant(waiting(), at(20), TIMEOUT);
        steal_time.grant(seconds(&[9]), at(20), TIMEOUT);
        assert_eq!(steal_time.model_time(at(20), TIMEOUT, TIMEOUT), at(11));
    }
}

//! What is left of the policy's rate: a token bucket on the VM's time.

use std::time::Duration;

use vm_watchdog_devices::VmInstant;

use crate::policy::ActionRate;

/// How much of the burst of an [`ActionRate`] is spent. A change of the device, or of what is pending, does not change it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Budget {
    /// How many actions count towards the burst.
    spent: u32,
    /// When one fewer does, unless none does.
    refill_at: VmInstant,
}

impl Budget {
    /// The budget of a saved state: so many spent, and one fewer after `refill`.
    pub fn restored(spent: u32, refill: Duration, now: VmInstant) -> Self {
        Self { spent, refill_at: now + refill }
    }

    /// How many are spent, and the time until one fewer is.
    pub fn left_of(mut self, rate: Option<ActionRate>, now: VmInstant) -> (u32, Duration) {
        let Some(rate) = rate else {
            return (0, Duration::ZERO);
        };
        self.refill(rate, now);
        match self.spent {
            0 => (0, Duration::ZERO),
            spent => (spent, self.refill_at.saturating_duration_since(now)),
        }
    }

    /// Spends one, if more than `reserve` are left.
    pub fn take(&mut self, rate: ActionRate, reserve: u32, now: VmInstant) -> bool {
        self.refill(rate, now);
        let is_left = self.spent.saturating_add(reserve) < burst(rate);
        if is_left {
            if self.spent == 0 {
                self.refill_at = now + rate.interval;
            }
            self.spent += 1;
        }
        is_left
    }

    /// When the next one can be taken, after [`take`](Self::take) has found none.
    pub fn refill_at(&self) -> VmInstant {
        self.refill_at
    }

    /// Keeps within a new rate.
    pub fn limit_to(&mut self, rate: Option<ActionRate>, now: VmInstant) {
        if let Some(rate) = rate {
            self.spent = self.spent.min(burst(rate));
            self.refill_at = self.refill_at.min(now + rate.interval);
        }
    }

    /// The one of which less is left.
    pub fn lesser(self, other: Self) -> Self {
        Self { spent: self.spent.max(other.spent), refill_at: self.refill_at.max(other.refill_at) }
    }

    fn refill(&mut self, rate: ActionRate, now: VmInstant) {
        if self.spent == 0 || now < self.refill_at {
            return;
        }
        let since = now.saturating_duration_since(self.refill_at);
        let refills = 1 + since.as_nanos() / rate.interval.as_nanos().max(1);
        let refills = u32::try_from(refills).unwrap_or(u32::MAX);
        self.spent = self.spent.saturating_sub(refills);
        self.refill_at = self.refill_at + rate.interval.saturating_mul(refills);
    }
}

/// A burst of none would never perform a timeout's action.
fn burst(rate: ActionRate) -> u32 {
    rate.burst.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(seconds: u32) -> VmInstant {
        VmInstant::ZERO + SECOND * seconds
    }

    #[test]
    fn a_burst_and_then_one_in_each_interval() {
        let rate = ActionRate::new(SECOND * 10, 3);
        let mut budget = Budget::default();
        let mut taken = Vec::new();
        for second in 5..60 {
            for _ in 0..5 {
                if budget.take(rate, 0, at(second)) {
                    taken.push(second);
                }
            }
        }
        assert_eq!(taken, [5, 5, 5, 15, 25, 35, 45, 55]);
        assert_eq!(budget.refill_at(), at(65));
        assert_eq!(budget.left_of(Some(rate), at(70)), (2, SECOND * 5));
        assert_eq!(budget.left_of(Some(rate), at(1000)), (0, Duration::ZERO));
    }

    #[test]
    fn a_new_rate_shortens_the_time_to_the_next_and_never_extends_it() {
        let mut budget = Budget::restored(5, SECOND * 10, at(1));
        let rate = ActionRate::new(SECOND * 2, 3);
        budget.limit_to(Some(rate), at(4));
        assert_eq!(budget.left_of(Some(rate), at(4)), (3, SECOND * 2));
        let longer = ActionRate::new(SECOND * 60, 3);
        budget.limit_to(Some(longer), at(5));
        assert_eq!(budget.left_of(Some(longer), at(5)), (3, SECOND));
        budget.limit_to(None, at(5));
        assert_eq!(budget.left_of(Some(longer), at(5)), (3, SECOND));
        assert_eq!(budget.left_of(None, at(5)), (0, Duration::ZERO));
    }

    #[test]
    fn a_reserve_is_left_and_extreme_rates_do_not_overflow() {
        let rate = ActionRate::new(SECOND * 10, 2);
        let mut budget = Budget::default();
        assert_eq!([1, 1, 0, 0].map(|reserve| budget.take(rate, reserve, at(1))), [true, false, true, false]);

        let mut budget = Budget::default();
        let rate = ActionRate::new(Duration::MAX, 0);
        assert_eq!([0, 0].map(|reserve| budget.take(rate, reserve, at(1))), [true, false], "a burst of 0 is one of 1");
        assert_eq!(budget.refill_at(), VmInstant::MAX);
        assert!(!budget.take(rate, u32::MAX, VmInstant::MAX));
        let mut budget = Budget::restored(u32::MAX, Duration::MAX, at(1));
        budget.limit_to(Some(ActionRate::new(SECOND, u32::MAX)), at(1));
        assert!(budget.take(ActionRate::new(Duration::from_nanos(1), u32::MAX), 0, VmInstant::MAX));
    }
}

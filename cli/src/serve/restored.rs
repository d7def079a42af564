//! Recognizes a guest that QEMU has restored without the address of its watchdog, so that its heartbeats cannot arrive.
//!
//! QEMU 11.1 does not save the PCI registers of a device of another process. After it has loaded a snapshot, and at the end of
//! a migration, BAR0 is not mapped: the guest feeds its watchdog, and nothing of that is sent. What shows it is what does
//! not happen. A guest that boots asks for the size of BAR0, and a restored one never does.

use std::time::Duration;

use vm_watchdog::VmInstant;

/// How long a guest may run after a reset until its firmware has enumerated PCI. SeaBIOS takes a second without KVM.
const BOOT_LIMIT: Duration = Duration::from_secs(20);

/// How long the guest has run out of reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// When that began, on the VM's time. `None` if the guest can reach its watchdog, or has no reason to.
    since: Option<VmInstant>,
    is_found: bool,
}

impl Restored {
    /// Notes whether the watchdog was armed before its last reset, and the guest has neither booted since nor can it reach the
    /// watchdog. True once, when this has lasted too long.
    pub fn observe(&mut self, is_out_of_reach: bool, now: VmInstant) -> bool {
        if !is_out_of_reach {
            *self = Self::default();
            return false;
        }
        let since = *self.since.get_or_insert(now);
        let is_found = now.saturating_duration_since(since) >= BOOT_LIMIT;
        is_found && !std::mem::replace(&mut self.is_found, is_found)
    }

    /// Whether the guest runs out of reach.
    pub fn is_found(&self) -> bool {
        self.is_found
    }

    /// The time of the VM until there is something to find, if nothing changes.
    pub fn due_in(&self, now: VmInstant) -> Option<Duration> {
        let since = self.since.filter(|_| !self.is_found)?;
        Some((since + BOOT_LIMIT).saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> VmInstant {
        VmInstant::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn a_guest_out_of_reach_is_found_once_after_a_while_of_its_time() {
        let mut restored = Restored::default();
        assert_eq!(restored.due_in(at(5)), None);
        assert!(!restored.observe(true, at(5)));
        assert_eq!(restored.due_in(at(10)), Some(Duration::from_secs(15)));
        assert!(!restored.observe(true, at(24)) && !restored.is_found());
        assert!(restored.observe(true, at(25)) && restored.is_found());
        assert!(!restored.observe(true, at(26)), "once");
        assert_eq!(restored.due_in(at(26)), None);
        assert!(!restored.observe(false, at(27)) && !restored.is_found());
        // Anew after the next reset.
        assert!(!restored.observe(true, at(30)));
        assert!(restored.observe(true, at(50)));
    }

    #[test]
    fn a_guest_that_boots_in_time_is_not_found() {
        let mut restored = Restored::default();
        assert!(!restored.observe(true, at(5)));
        assert!(!restored.observe(false, at(24)));
        assert!(!restored.observe(true, at(25)));
        assert!(!restored.observe(true, at(44)));
        assert_eq!(restored.due_in(at(44)), Some(Duration::from_secs(1)));
    }
}

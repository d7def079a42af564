//! What the targets of the models have in common: a device under a hostile guest, and a VMM that polls at arbitrary times.

use std::fmt::Debug;

use vm_watchdog_devices::{Access, Expired, Model, StateError, VmInstant};

/// Far enough from the end of the clock that no instant of a restored device is beyond it.
const LATEST_TO_RESTORE: u64 = u64::MAX / 2;

/// A device, and the clock of its VM.
pub struct Machine<M> {
    fresh: M,
    pub device: M,
    now: u64,
}

impl<M: Model<State: Debug + PartialEq> + Clone + Debug + PartialEq> Machine<M> {
    pub fn new(fresh: M, start: u64) -> Self {
        Self { device: fresh.clone(), fresh, now: start }
    }

    pub fn now(&self) -> VmInstant {
        VmInstant::from_nanos(self.now)
    }

    pub fn save(&mut self) -> M::State {
        self.device.save(self.now())
    }

    pub fn wait(&mut self, nanos: u64) {
        self.wait_until(self.now.saturating_add(nanos));
    }

    pub fn wait_seconds(&mut self, seconds: u16) {
        self.wait(u64::from(seconds) * 1_000_000_000);
    }

    pub fn wait_for_deadline(&mut self, further: i8) {
        let deadline = self.device.poll_at().map_or(self.now, VmInstant::as_nanos);
        self.wait_until(deadline.saturating_add_signed(further.into()));
    }

    /// Advances the time without a poll, after a check on copies that a poll on the way changes nothing.
    ///
    /// The copies have no latched expiry: that would be taken by the poll on the way, and the next one latched in its place.
    fn wait_until(&mut self, later: u64) {
        let begin = self.now;
        let mut whole = self.device.clone();
        whole.poll(self.now());
        let mut cut = whole.clone();
        self.now = later.max(begin);
        cut.poll(VmInstant::from_nanos(begin + (self.now - begin) / 3));
        cut.poll(self.now());
        whole.poll(self.now());
        assert_eq!(cut, whole, "a poll on the way changed the device");
    }

    /// Polls twice. An expiry was announced, is not early, and is reported once.
    pub fn poll(&mut self) -> Expired {
        let now = self.now();
        let announced = self.device.poll_at();
        let expired = self.device.poll(now);
        for instant in expired.pretimeout.into_iter().chain(expired.timeout) {
            assert!(instant <= now, "{instant} is in the future");
            assert!(announced.is_some_and(|announced| announced <= instant), "{instant} was not announced");
        }
        let next = self.device.poll_at();
        if announced.is_some_and(|announced| announced > now) {
            assert_eq!(next, announced, "an early poll changed something");
        }
        assert!(next.is_none_or(|next| next > now || next == VmInstant::MAX), "a poll left something to poll");
        assert!(self.device.poll(now).is_empty(), "an expiry was reported twice");
        expired
    }

    /// Polls a model that reports an expiry whenever it has announced that something is due: the first one is what was due.
    pub fn poll_exact(&mut self) {
        let due = self.device.poll_at().filter(|due| *due <= self.now() && *due < VmInstant::MAX);
        let expired = self.poll();
        assert_eq!(expired.pretimeout.into_iter().chain(expired.timeout).min(), due, "an expiry was lost");
    }

    pub fn reset(&mut self) {
        let last = self.device.last_reset();
        self.device.reset();
        assert!(!self.device.is_armed() && !self.device.interrupt_level());
        assert_eq!((self.device.poll_at(), self.device.timeout_at()), (None, None));
        assert_eq!(self.device.last_reset(), last);
    }

    /// Reads into so many bytes, which changes nothing. What is not in a register reads as ones.
    pub fn read(&mut self, length: u8, read: impl FnOnce(&mut M, &mut [u8], VmInstant) -> Access) {
        let before = self.save();
        let now = self.now();
        let mut data = vec![0; length.into()];
        if read(&mut self.device, &mut data, now) == Access::Ignored {
            assert!(data.iter().all(|byte| *byte == 0xFF));
        }
        assert_eq!(self.save(), before, "a read changed the state");
    }

    /// Writes. A write that is ignored changes nothing.
    pub fn write(&mut self, write: impl FnOnce(&mut M, VmInstant) -> Access) -> Access {
        let before = self.save();
        let now = self.now();
        let access = write(&mut self.device, now);
        if access == Access::Ignored {
            assert_eq!(self.save(), before, "an ignored write changed the state");
        }
        access
    }

    pub fn save_and_restore(&mut self) {
        let state = self.save();
        let before = self.device.clone();
        if let Some(restored) = self.restore(&state) {
            restored.expect("a state that a device was in");
            assert_eq!(self.device, before, "saved and restored");
        }
    }

    /// Restores any state, unless the clock shows too much. The error has to be about one of the fields that can be wrong.
    pub fn restore_anything(&mut self, state: &M::State, refused: &[&str], ages: &[Option<u64>]) {
        match self.restore(state) {
            Some(Err(error)) => assert!(refused.contains(&error.field), "{error}"),
            // An expiry from before the clock began is due at its beginning.
            Some(Ok(())) if ages.iter().flatten().all(|age| *age <= self.now) => assert_eq!(&self.save(), state),
            _ => {}
        }
    }

    fn restore(&mut self, state: &M::State) -> Option<Result<(), StateError>> {
        let restored = (self.now < LATEST_TO_RESTORE).then(|| self.fresh.restored(state, self.now()))?;
        Some(restored.map(|restored| self.device = restored))
    }
}

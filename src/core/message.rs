//! The interrupt message: whether it is being sent, and whether it is to be tried again. The model knows whether one is due.

/// What is known of sending messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Messages {
    /// The call in progress.
    sending: Option<Sending>,
    /// The last call failed. The next access or expiry tries again.
    has_failed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sending {
    /// Of the device as it is.
    Current,
    /// Of a device that has been replaced since. Its outcome changes nothing.
    Outdated,
}

impl Messages {
    /// Whether a message that is due is to be sent now.
    pub fn is_free(&self) -> bool {
        self.sending.is_none() && !self.has_failed
    }

    /// A message is being sent from here on, until [`finished`](Self::finished) or [`put_back`](Self::put_back).
    pub fn begin(&mut self) {
        self.sending = Some(Sending::Current);
    }

    /// The message was not sent after all. Returns whether it is due again.
    pub fn put_back(&mut self) -> bool {
        self.sending.take() == Some(Sending::Current)
    }

    /// Notes the outcome of the call. Returns whether the message is due again.
    pub fn finished(&mut self, is_sent: bool) -> bool {
        self.has_failed = !is_sent;
        self.put_back() && !is_sent
    }

    /// Tries again after a failure.
    pub fn try_again(&mut self) {
        self.has_failed = false;
    }

    /// The device was replaced by a saved one.
    pub fn restore(&mut self) {
        *self = Self { sending: self.sending.map(|_| Sending::Outdated), has_failed: false };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_fails_waits_until_something_happens() {
        let mut messages = Messages::default();
        assert!(messages.is_free());
        messages.begin();
        assert!(!messages.is_free(), "one thread sends at a time");
        assert!(messages.finished(false));
        assert!(!messages.is_free());
        messages.try_again();
        assert!(messages.is_free());
        messages.begin();
        assert!(!messages.finished(true));
        assert!(messages.is_free());
    }

    #[test]
    fn the_outcome_for_a_device_that_was_replaced_changes_nothing() {
        for is_sent in [false, true] {
            let mut messages = Messages::default();
            messages.begin();
            messages.restore();
            assert!(!messages.is_free(), "the call is in progress");
            assert!(!messages.finished(is_sent));
        }
    }
}

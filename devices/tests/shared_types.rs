//! Types that all models share: saturating instants, and the default methods of `Model`.

use std::time::Duration;

use vm_watchdog_devices::{Access, Expired, LastReset, Model, StateError, VmInstant};

const SEVEN: VmInstant = VmInstant::from_nanos(7);

#[test]
fn instants_add_and_subtract_and_saturate() {
    assert_eq!(SEVEN + Duration::from_nanos(3), VmInstant::from_nanos(10));
    assert_eq!(SEVEN - Duration::from_nanos(3), VmInstant::from_nanos(4));
    assert_eq!(SEVEN - Duration::from_nanos(8), VmInstant::ZERO);
    assert_eq!(SEVEN - Duration::MAX, VmInstant::ZERO);
    assert_eq!(SEVEN + Duration::MAX, VmInstant::MAX);
    assert_eq!(VmInstant::MAX + Duration::from_nanos(1), VmInstant::MAX);
    assert_eq!(VmInstant::MAX.as_nanos(), u64::MAX);
    assert_eq!(SEVEN.saturating_duration_since(VmInstant::from_nanos(4)), Duration::from_nanos(3));
    assert_eq!(VmInstant::from_nanos(4).saturating_duration_since(SEVEN), Duration::ZERO);
}

#[test]
fn an_instant_prints_in_seconds() {
    for (nanos, printed) in [
        (0, "0.000000000s"),
        (1, "0.000000001s"),
        (4_026_531_840, "4.026531840s"),
        (u64::MAX, "18446744073.709551615s"),
    ] {
        assert_eq!(VmInstant::from_nanos(nanos).to_string(), printed);
    }
}

#[test]
fn an_expiry_of_either_kind_is_not_empty() {
    let nothing = Expired::default();
    assert!(nothing.is_empty());
    assert!(!Expired::new(Some(SEVEN), None).is_empty());
    assert!(!Expired::new(None, Some(SEVEN)).is_empty());
    assert!(!Expired::new(Some(SEVEN), Some(SEVEN)).is_empty());
}

#[test]
fn a_model_with_one_stage_and_no_line_uses_the_defaults() {
    struct Plain;
    impl Model for Plain {
        type State = ();
        fn poll_at(&self) -> Option<VmInstant> {
            Some(SEVEN)
        }
        fn poll(&mut self, _: VmInstant) -> Expired {
            Expired::default()
        }
        fn is_armed(&self) -> bool {
            true
        }
        fn reset(&mut self) {}
        fn save(&mut self, _: VmInstant) {}
        fn restored(&self, (): &(), _: VmInstant) -> Result<Self, StateError> {
            Ok(Self)
        }
    }
    assert_eq!(Plain.timeout_at(), Some(SEVEN), "the next poll is the timeout");
    assert_eq!(Plain.timeout_request(), None);
    assert!(!Plain.interrupt_level());
    assert_eq!(Plain.message(), None);
    assert_eq!(Plain.last_reset(), LastReset::new(false));
    assert!(!Plain.guest_may_predate_reset(), "its guests notice that it is disarmed");
    assert_eq!(Plain.rearm_timeout(), None);
    assert!(!Plain.rearm(SEVEN));
}

#[test]
fn accesses_order_as_ignored_accepted_heartbeat() {
    assert!(Access::Ignored < Access::Accepted);
    assert!(Access::Accepted < Access::Heartbeat);
}

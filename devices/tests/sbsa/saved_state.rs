//! Saving and restoring, on another clock.

use vm_watchdog_devices::Model;
use vm_watchdog_devices::sbsa::SbsaStateV1;

use crate::guest::*;

const RUNNING: SbsaStateV1 = SbsaStateV1 {
    enabled: true,
    ws0: false,
    ws1: false,
    wor: 10,
    wcv: 10,
    counter: 3,
    counter_fraction: 0,
    pretimeout_age_ns: None,
    timeout_age_ns: None,
};

#[test]
fn a_restored_watchdog_behaves_as_the_saved_one() {
    for hz in [HZ, 24_000_000, u32::MAX] {
        let mut guest = Guest::with_frequency(hz);
        guest.set_offset(u64::from(hz) * 5);
        guest.start();
        let end = guest.timeout_at().unwrap();
        for now in [0, 1, 5 * SECOND, 5 * SECOND + 1_000, 10 * SECOND, end - 1] {
            let state = guest.device.save(at(now));
            let shift = 50_000_000_007;
            let mut restored =
                Guest { device: device(hz).restored(&state, at(now + shift)).unwrap(), now: now + shift, hz };
            guest.at(now);
            assert_eq!(restored.read(WCS), guest.read(WCS), "at {now}");
            assert_eq!((restored.wor(), restored.wcv()), (guest.wor(), guest.wcv()), "at {now}");
            assert_eq!(restored.timeout_at(), Some(end + shift), "at {now}, {hz} Hz");
            restored.at(end + shift - 1).poll();
            assert_eq!(restored.at(end + shift).poll(), [None, Some(end + shift)]);
        }
    }
}

#[test]
fn what_is_not_polled_is_restored() {
    let mut guest = Guest::started(10);
    let state = guest.device.save(at(30 * TICK));
    let expected = SbsaStateV1 {
        ws0: true,
        ws1: true,
        wcv: 21,
        counter: 30,
        pretimeout_age_ns: Some(19 * TICK),
        timeout_age_ns: Some(8 * TICK),
        ..RUNNING
    };
    assert_eq!(state, expected);
    let device = device(HZ).restored(&state, at(1_000 * TICK)).unwrap();
    let mut restored = Guest { device, now: 1_000 * TICK, hz: HZ };
    assert!(restored.device.interrupt_level());
    assert_eq!(restored.poll(), [Some(981 * TICK), Some(992 * TICK)]);
    assert_eq!(restored.poll_at(), None);
}

#[test]
fn an_impossible_state_is_refused_with_the_name_of_its_field() {
    let refused = [
        (SbsaStateV1 { enabled: false, ws0: true, ..RUNNING }, "ws0"),
        (SbsaStateV1 { enabled: false, ws0: true, ws1: true, ..RUNNING }, "ws0"),
        (SbsaStateV1 { ws1: true, ..RUNNING }, "ws1"),
        (SbsaStateV1 { wor: 1 << 48, ..RUNNING }, "wor"),
        (SbsaStateV1 { counter_fraction: 1_000_000_000, ..RUNNING }, "counter_fraction"),
        (SbsaStateV1 { wcv: 2, ..RUNNING }, "wcv"),
        (SbsaStateV1 { ws0: true, wcv: 2, ..RUNNING }, "wcv"),
    ];
    for (state, field) in refused {
        let error = device(HZ).restored(&state, at(0)).unwrap_err();
        assert!(error.to_string().starts_with(&format!("{field} is ")), "{error}");
        assert!(error.to_string().contains("accepted is "), "{error}");
    }
    let accepted = [
        RUNNING,
        SbsaStateV1 { wcv: 3, ..RUNNING },
        SbsaStateV1 { enabled: false, ws1: true, wcv: 0, ..RUNNING },
        SbsaStateV1 { enabled: false, wcv: 0, ..RUNNING },
        SbsaStateV1 { ws0: true, ws1: true, wcv: 0, ..RUNNING },
        SbsaStateV1 { wor: 0xFFFF_FFFF_FFFF, wcv: u64::MAX, counter_fraction: 999_999_999, ..RUNNING },
        SbsaStateV1 { counter: u64::MAX, wcv: u64::MAX, ..RUNNING },
    ];
    for state in accepted {
        assert_eq!(device(HZ).restored(&state, at(7)).unwrap().save(at(7)), state);
    }
}

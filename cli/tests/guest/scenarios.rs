//! What guests do, and what the tests expect.

use std::time::Duration;

use crate::transcript::Transcript;

/// What one guest does, and what the test expects.
#[derive(Debug)]
pub struct Scenario {
    /// The name of the test: what must hold.
    pub name: &'static str,
    /// The kernel that the guest boots.
    pub kernel: Flavour,
    /// The options of the watchdogs.
    pub watchdogs: &'static [&'static str],
    /// What the guest does: a shell script with the functions of `init.sh` and `guest.sh`.
    pub guest: &'static str,
    /// What the guest reports with `say` until its end, on any implementation of the device.
    pub guest_says: &'static [&'static str],
    /// What else must hold on ours.
    pub check: fn(&Transcript),
    /// Whether to run it on QEMU's device as well.
    pub compare: bool,
}

/// A kernel of Debian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// With drivers for the i6300esb and the ACPI watchdog table.
    Stock,
    /// The flavour for clouds: with a driver for the ACPI watchdog table only.
    Cloud,
}

/// What `-T 4` means to a wdat, which counts milliseconds.
const FOUR_SECONDS: Duration = Duration::from_secs(4);

/// What `-T 4` means to an i6300esb: Linux loads `seconds << 9` into both stages, which count it times 2^15 in ticks of 30 ns.
const FOUR_SECONDS_I6300ESB: Duration = Duration::from_nanos(2 * ((4 << 9) << 15) * 30);

/// How late an expiry may be on a loaded machine that emulates the whole computer around it. It is never early.
const LATEST: Duration = Duration::from_secs(10);

/// Documented exit statuses of `vm-watchdog boot`.
const GUEST_POWERED_OFF: i32 = 0;
const WATCHDOG_POWERED_OFF: i32 = 3;

/// Every scenario.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "a_guest_that_stops_feeding_times_out_on_time",
        kernel: Flavour::Stock,
        watchdogs: &["i6300esb,action=poweroff"],
        guest: r#"
            load_driver
            feed 1 4
            sleep 3
            say killing
            end_feeder KILL
            sleep 20
            say survived
        "#,
        guest_says: &["killing"],
        check: |run| {
            assert_eq!(run.status, Some(WATCHDOG_POWERED_OFF));
            let timeout = run.timeout();
            assert_eq!(timeout["action"], "poweroff");
            assert!(timeout["heartbeats"].as_u64().unwrap() >= 4, "heartbeats arrive: {timeout}");
            assert!(!run.events("heartbeat").is_empty());
            assert_timeout_on_time(run, FOUR_SECONDS_I6300ESB);
        },
        compare: false,
    },
    Scenario {
        name: "after_a_reset_the_guest_reads_the_cause",
        kernel: Flavour::Stock,
        watchdogs: &["i6300esb,action=reset"],
        guest: r#"
            load_driver
            say bootstatus $(bootstatus)
            if [ $(bootstatus) = 32 ]; then poweroff -f; fi
            feed 1 4
            say killing
            end_feeder KILL
            sleep 20
            say survived
        "#,
        // 32 is WDIOF_CARDRESET: the watchdog caused the last boot.
        guest_says: &["bootstatus 0", "killing", "bootstatus 32"],
        check: |run| {
            assert_eq!(run.status, Some(GUEST_POWERED_OFF));
            assert_eq!(run.timeout()["action"], "reset");
            assert_eq!(run.only("reset")["cause"], "watchdog");
            assert_timeout_on_time(run, FOUR_SECONDS_I6300ESB);
        },
        compare: true,
    },
    Scenario {
        name: "a_guest_that_closes_with_the_magic_character_does_not_time_out",
        kernel: Flavour::Stock,
        watchdogs: &["i6300esb,action=poweroff"],
        guest: r#"
            load_driver
            feed 1 4
            end_feeder TERM
            say closed
            sleep 6
            say survived
            poweroff -f
        "#,
        guest_says: &["closed", "survived"],
        check: |run| {
            assert_eq!(run.status, Some(GUEST_POWERED_OFF));
            assert!(!run.events("heartbeat").is_empty());
            assert_eq!(run.events("expiry").len(), 0);
            assert_eq!(run.events("armed").len(), 1);
            assert_eq!(run.events("disarmed").len(), 1);
        },
        compare: true,
    },
    Scenario {
        name: "with_nowayout_a_magic_close_does_not_stop_the_watchdog",
        kernel: Flavour::Stock,
        watchdogs: &["i6300esb,action=poweroff"],
        guest: r#"
            load_driver nowayout=1
            feed 1 4
            say closing
            end_feeder TERM
            sleep 20
            say survived
        "#,
        guest_says: &["closing"],
        check: |run| {
            assert_eq!(run.status, Some(WATCHDOG_POWERED_OFF));
            assert_eq!(run.events("disarmed").len(), 0);
            assert_timeout_on_time(run, FOUR_SECONDS_I6300ESB);
        },
        compare: true,
    },
    Scenario {
        name: "the_watchdog_test_of_kubevirt_powers_off_the_vm",
        kernel: Flavour::Stock,
        watchdogs: &["i6300esb,action=poweroff"],
        guest: r#"
            load_driver
            watchdog -t 2000ms -T 4000ms /dev/watchdog
            sleep 5
            say killing
            killall -9 watchdog
            sleep 40
            say survived
        "#,
        guest_says: &["killing"],
        check: |run| {
            assert_eq!(run.status, Some(WATCHDOG_POWERED_OFF));
            let end = Transcript::time(run.only("exit"), "vm_time_ns");
            let killed = Transcript::time(run.timeout(), "last_heartbeat_ns");
            assert!(end - killed < Duration::from_secs(10), "ended {:?} after the kill", end - killed);
        },
        compare: false,
    },
    Scenario {
        name: "an_injected_nmi_is_in_the_guests_log",
        kernel: Flavour::Stock,
        watchdogs: &["i6300esb,action=inject-nmi"],
        guest: r#"
            load_driver
            feed 1 4
            say killing
            end_feeder KILL
            until dmesg | grep -q 'NMI received for unknown reason'; do sleep 0.1; done
            say saw the nmi
            poweroff -f
        "#,
        guest_says: &["killing", "saw the nmi"],
        check: |run| {
            assert_eq!(run.status, Some(GUEST_POWERED_OFF));
            assert_eq!(run.timeout()["action"], "inject-nmi");
            run.only("nmi");
            assert_timeout_on_time(run, FOUR_SECONDS_I6300ESB);
        },
        compare: false,
    },
    Scenario {
        name: "a_guest_asked_to_shut_down_powers_itself_off",
        kernel: Flavour::Stock,
        watchdogs: &["i6300esb,action=shutdown,grace=30s,then=poweroff"],
        guest: r#"
            load_driver
            obey_power_button
            feed 1 4
            say killing
            end_feeder KILL
            sleep 60
            say survived
        "#,
        guest_says: &["killing", "power button"],
        check: |run| {
            assert_eq!(run.status, Some(GUEST_POWERED_OFF));
            assert_eq!(run.timeout()["action"], "shutdown");
            run.only("power-button");
            assert!(run.events("expiry").iter().all(|expiry| expiry["stage"] != "escalation"));
            assert_timeout_on_time(run, FOUR_SECONDS_I6300ESB);
        },
        compare: true,
    },
    Scenario {
        name: "a_hung_guest_asked_to_shut_down_is_powered_off_after_the_grace",
        kernel: Flavour::Stock,
        watchdogs: &["i6300esb,action=shutdown,grace=5s,then=poweroff"],
        // With `panic` 0 the panic never reboots: interrupts still arrive, and no process runs again.
        guest: r#"
            load_driver
            obey_power_button
            feed 1 4
            say hanging
            echo 0 >/proc/sys/kernel/panic
            echo c >/proc/sysrq-trigger
            say survived
        "#,
        guest_says: &["hanging"],
        check: |run| {
            assert_eq!(run.status, Some(WATCHDOG_POWERED_OFF));
            assert_eq!(run.timeout()["action"], "shutdown");
            run.only("power-button");
            let forced = run.events("expiry").into_iter().find(|expiry| expiry["stage"] == "escalation");
            let forced = forced.expect("an escalation");
            assert_eq!(forced["action"], "poweroff");
            let waited = Transcript::time(forced, "observed_ns") - Transcript::time(run.timeout(), "observed_ns");
            let grace = Duration::from_secs(5);
            assert!((grace..grace + LATEST).contains(&waited), "{waited:?} of {grace:?}");
            assert_timeout_on_time(run, FOUR_SECONDS_I6300ESB);
        },
        compare: false,
    },
    Scenario {
        name: "a_cloud_kernel_without_a_driver_for_the_i6300esb_reads_the_cause_after_a_reset",
        kernel: Flavour::Cloud,
        watchdogs: &["wdat,action=reset"],
        guest: r#"
            load_wdat_driver
            say $(identity watchdog0)
            say bootstatus $(bootstatus)
            if [ $(bootstatus) = 32 ]; then poweroff -f; fi
            feed 1 4
            say killing
            end_feeder KILL
            sleep 30
            say survived
        "#,
        guest_says: &["wdat_wdt", "bootstatus 0", "killing", "wdat_wdt", "bootstatus 32"],
        check: |run| {
            assert_eq!(run.status, Some(GUEST_POWERED_OFF));
            assert_eq!(run.events("armed").len(), 1);
            assert!(!run.events("heartbeat").is_empty());
            assert_eq!(run.timeout()["action"], "reset");
            assert_eq!(run.only("reset")["cause"], "watchdog");
            assert_timeout_on_time(run, FOUR_SECONDS);
        },
        compare: true,
    },
    Scenario {
        name: "a_cloud_kernel_that_closes_with_the_magic_character_does_not_time_out",
        kernel: Flavour::Cloud,
        watchdogs: &["wdat,action=poweroff"],
        guest: r#"
            load_wdat_driver
            feed 1 4
            end_feeder TERM
            say closed
            sleep 10
            say survived
            poweroff -f
        "#,
        guest_says: &["closed", "survived"],
        check: |run| {
            assert_eq!(run.status, Some(GUEST_POWERED_OFF));
            assert_eq!(run.events("expiry").len(), 0);
            assert_eq!((run.events("armed").len(), run.events("disarmed").len()), (1, 1));
        },
        compare: true,
    },
    Scenario {
        name: "a_cloud_kernel_reads_the_time_left",
        kernel: Flavour::Cloud,
        // The unit of Hyper-V's firmware, which Windows knows.
        watchdogs: &["wdat,action=poweroff,period=1s"],
        // A feeder that is killed leaves the watchdog running.
        guest: r#"
            load_wdat_driver
            timeleft() {
                cat /sys/class/watchdog/watchdog0/timeleft
            }
            say timeleft $(timeleft)
            feed 1 60
            end_feeder KILL
            first=$(timeleft)
            sleep 3
            second=$(timeleft)
            passed=$((first - second))
            if [ $first -gt 40 ] && [ $first -le 60 ] && [ $passed -ge 2 ] && [ $passed -le 20 ]; then
                say counted down
            else
                say $first and then $second
            fi
            poweroff -f
        "#,
        guest_says: &["timeleft 0", "counted down"],
        check: |run| {
            assert_eq!(run.status, Some(GUEST_POWERED_OFF));
            assert_eq!(run.events("expiry").len(), 0);
        },
        compare: false,
    },
    Scenario {
        name: "of_two_watchdogs_of_different_models_the_one_that_is_not_fed_times_out",
        kernel: Flavour::Stock,
        watchdogs: &["i6300esb,action=poweroff", "wdat,action=reset"],
        guest: r#"
            load_driver
            load_wdat_driver
            say $(identity watchdog0), $(identity watchdog1)
            say bootstatus $(bootstatus watchdog0) $(bootstatus watchdog1)
            if [ $(bootstatus watchdog1) = 32 ]; then poweroff -f; fi
            feed 1 30 watchdog0
            feed 1 4 watchdog1
            say killing
            end_feeder KILL
            sleep 30
            say survived
        "#,
        guest_says: &[
            "i6300ESB timer, wdat_wdt",
            "bootstatus 0 0",
            "killing",
            "i6300ESB timer, wdat_wdt",
            "bootstatus 0 32",
        ],
        check: |run| {
            assert_eq!(run.status, Some(GUEST_POWERED_OFF));
            assert_eq!(run.timeout()["id"], "watchdog1");
            assert_eq!(run.only("reset")["cause"], "watchdog");
            let fed = |id: &str| run.events("heartbeat").into_iter().any(|event| event["id"] == id);
            assert!(fed("watchdog0") && fed("watchdog1"));
            assert_timeout_on_time(run, FOUR_SECONDS);
        },
        compare: false,
    },
];

/// The timeout is a period after the last heartbeat: never earlier, and not much later.
fn assert_timeout_on_time(run: &Transcript, period: Duration) {
    let timeout = run.timeout();
    let waited = Transcript::time(timeout, "observed_ns") - Transcript::time(timeout, "last_heartbeat_ns");
    assert!(waited >= period, "{waited:?} is too early, expected is {period:?}");
    let at = Transcript::time(timeout, "observed_ns");
    assert!(run.took >= at, "{at:?} after the start of a run that took {:?} by the clock of the test", run.took);
    assert!(waited <= period + LATEST, "{waited:?} is too late, expected is {period:?}");
}

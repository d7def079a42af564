//! The text form, its defaults and its errors.

use super::*;

fn parse(text: &str) -> Result<WatchdogConfig, String> {
    text.parse().map_err(|error: ConfigError| error.to_string())
}

#[test]
fn the_model_alone_selects_the_defaults_of_libvirt() {
    let config = parse("i6300esb").unwrap();
    assert_eq!(config.policy(), Policy::new(Action::Reset));
    assert_eq!((config.id(), config.device()), (None, DeviceConfig::I6300esb(I6300esbConfig::default())));
}

#[test]
fn options_parse_in_any_order() {
    let config = parse(
        "i6300esb,then=poweroff,grace=1500ms,before=2s,id=wd,interrupt=intx,steal-limit=4,action=shutdown,pretimeout=dump",
    );
    let config = config.unwrap();
    let policy = Policy::new(Action::Shutdown)
        .with_pretimeout(Action::Dump)
        .with_pretimeout_before(Duration::from_secs(2))
        .with_escalation(Duration::from_millis(1500), Action::Poweroff);
    let device = DeviceConfig::I6300esb(I6300esbConfig::default().with_interrupt_pin(InterruptPin::IntA));
    assert_eq!((config.device(), config.policy()), (device, policy));
    assert_eq!((config.id(), config.steal_limit()), (Some("wd"), Some(4)));
}

#[test]
fn diag288_accepts_the_options_that_apply_to_it() {
    let config = parse("diag288,action=shutdown,grace=5m,then=poweroff,id=wd").unwrap();
    let policy = Policy::new(Action::Shutdown).with_escalation(Duration::from_secs(300), Action::Poweroff);
    assert_eq!((config.device(), config.policy()), (DeviceConfig::Diag288(None), policy));
    let device = |text| parse(text).unwrap().device();
    assert_eq!(device("diag288,zvm=refuse"), DeviceConfig::Diag288(Some(UnknownCommands::Refused)));
    assert_eq!(device("diag288,zvm=accept"), DeviceConfig::Diag288(Some(UnknownCommands::Accepted)));
}

#[test]
fn sbsa_has_two_stages_and_the_frequency_of_a_counter() {
    let config = parse("sbsa,pretimeout=inject-nmi,clock-frequency=62500000").unwrap();
    assert_eq!(config.device(), DeviceConfig::Sbsa(NonZeroU32::new(62_500_000)));
    assert_eq!(config.policy(), Policy::new(Action::Reset).with_pretimeout(Action::InjectNmi));
    assert_eq!(parse("sbsa").unwrap().device(), DeviceConfig::Sbsa(None), "the VMM knows it");
}

#[test]
fn a_configuration_prints_as_the_text_it_parses_from() {
    for text in [
        "i6300esb,action=reset",
        "i6300esb,action=reset,interrupt=msi",
        "i6300esb,action=shutdown,pretimeout=dump,before=2000ms,grace=1500ms,then=poweroff,steal-limit=4,id=wd,interrupt=intx",
        "i6300esb,action=dump,action-interval=10000ms,action-burst=3,id=wd",
        "i6300esb,action=dump,action-interval=none",
        "diag288,action=none,action-interval=1ms,action-burst=1000",
        "diag288,action=reset,zvm=refuse",
        "diag288,action=reset,zvm=accept",
        "wdat,action=reset",
        "wdat,action=shutdown,grace=1500ms,then=poweroff,id=wd,period=1s",
        "sbsa,action=reset",
        "sbsa,action=shutdown,pretimeout=dump,before=2000ms,grace=1500ms,then=poweroff,steal-limit=4,id=wd,clock-frequency=62500000",
        "i6300esb,action=reset,pretimeout=none,before=2000ms",
        "diag288,action=reset,grace=18446744073709551615s,then=poweroff",
    ] {
        assert_eq!(parse(text).unwrap().to_string(), text);
    }
}

#[test]
fn no_compensation_of_steal_time_has_one_form() {
    for text in ["diag288,steal-limit=1", "diag288,steal-limit=01", "diag288,steal-limit=+1"] {
        assert_eq!(parse(text), parse("diag288"), "{text}");
    }
}

#[test]
fn a_message_names_the_option_the_value_and_what_is_accepted() {
    for (text, message) in [
        ("", r#"unknown watchdog model "": accepted are i6300esb, diag288, wdat, sbsa"#),
        ("ib700", r#"unknown watchdog model "ib700": accepted are i6300esb, diag288, wdat, sbsa"#),
        (
            "i6300esb,colour=red",
            r#"unknown watchdog option "colour=red": accepted are action=..., pretimeout=..., before=..., grace=..., then=..., action-interval=..., action-burst=..., steal-limit=..., id=..., interrupt=..., zvm=..., period=..., clock-frequency=..."#,
        ),
        (
            "i6300esb,action",
            r#"unknown watchdog option "action": accepted are action=..., pretimeout=..., before=..., grace=..., then=..., action-interval=..., action-burst=..., steal-limit=..., id=..., interrupt=..., zvm=..., period=..., clock-frequency=..."#,
        ),
        (
            "i6300esb,pretimeout=nmi",
            r#"pretimeout: unknown watchdog action "nmi": accepted are reset, shutdown, poweroff, pause, inject-nmi, dump, none, debug"#,
        ),
        ("i6300esb,action=none,action=reset", "action: given twice"),
        ("i6300esb,grace=30s", "grace=... requires then=..., which is missing"),
        ("i6300esb,before=1s", "before=... requires pretimeout=..., which is missing"),
        (
            "i6300esb,pretimeout=dump,before=soon",
            r#"before: unknown value "soon": accepted are a time like 500ms, 30s or 5m"#,
        ),
        (
            "diag288,before=1s",
            "before=... does not apply to diag288: accepted are action=..., grace=..., then=..., action-interval=..., action-burst=..., steal-limit=..., id=..., zvm=...",
        ),
        ("i6300esb,then=reset", "then=... requires grace=..., which is missing"),
        ("i6300esb,grace=30,then=reset", r#"grace: unknown value "30": accepted are a time like 500ms, 30s or 5m"#),
        (
            "i6300esb,grace=99999999999999999999s,then=reset",
            r#"grace: unknown value "99999999999999999999s": accepted are a time like 500ms, 30s or 5m"#,
        ),
        (
            "i6300esb,zvm=refuse",
            "zvm=... does not apply to i6300esb: accepted are action=..., pretimeout=..., before=..., grace=..., then=..., action-interval=..., action-burst=..., steal-limit=..., id=..., interrupt=...",
        ),
        (
            "wdat,zvm=refuse",
            "zvm=... does not apply to wdat: accepted are action=..., grace=..., then=..., action-interval=..., action-burst=..., steal-limit=..., id=..., period=...",
        ),
        ("wdat,period=10ms", r#"period: unknown value "10ms": accepted are 1ms, 1s"#),
        (
            "sbsa,interrupt=intx",
            "interrupt=... does not apply to sbsa: accepted are action=..., pretimeout=..., before=..., grace=..., then=..., action-interval=..., action-burst=..., steal-limit=..., id=..., clock-frequency=...",
        ),
        (
            "sbsa,clock-frequency=0",
            r#"clock-frequency: unknown value "0": accepted are a frequency in Hz, 1 to 4294967295"#,
        ),
        (
            "sbsa,clock-frequency=4294967296",
            r#"clock-frequency: unknown value "4294967296": accepted are a frequency in Hz, 1 to 4294967295"#,
        ),
        ("diag288,zvm=yes", r#"zvm: unknown value "yes": accepted are refuse, accept"#),
        ("i6300esb,interrupt=apic", r#"interrupt: unknown value "apic": accepted are none, intx, msi"#),
        ("i6300esb,steal-limit=0", r#"steal-limit: unknown value "0": accepted are 1 to 1000"#),
        (
            "diag288,pretimeout=none",
            "pretimeout=... does not apply to diag288: accepted are action=..., grace=..., then=..., action-interval=..., action-burst=..., steal-limit=..., id=..., zvm=...",
        ),
        (
            "diag288,interrupt=none",
            "interrupt=... does not apply to diag288: accepted are action=..., grace=..., then=..., action-interval=..., action-burst=..., steal-limit=..., id=..., zvm=...",
        ),
        ("i6300esb,action-burst=3", "action-burst=... requires action-interval=..., which is missing"),
        (
            "i6300esb,action-interval=10",
            r#"action-interval: unknown value "10": accepted are a time like 500ms, 30s or 5m, or none"#,
        ),
        ("i6300esb,action-interval=1s,action-burst=0", r#"action-burst: unknown value "0": accepted are 1 to 1000"#),
        (
            "i6300esb,pretimeout=dump,action-interval=1s,action-burst=1",
            r#"action-burst: unknown value "1": accepted are 2 to 1000 with pretimeout=..., because one is kept for a timeout"#,
        ),
        ("i6300esb,id=", r#"id: unknown value "": accepted are a non-empty name"#),
    ] {
        assert_eq!(parse(text), Err(message.to_owned()), "{text}");
    }
}

#[test]
fn a_rate_of_actions_is_off_by_default_and_by_request() {
    let rate = |text| parse(text).unwrap().policy().action_rate;
    let seconds = |seconds, burst| Some(ActionRate::new(Duration::from_secs(seconds), burst));
    for (text, expected) in [
        ("i6300esb", None),
        ("i6300esb,action-interval=none", None),
        ("i6300esb,action-interval=0", None),
        ("i6300esb,action-interval=0s,action-burst=5", None),
        ("i6300esb,action-interval=10s", seconds(10, 3)),
        ("diag288,action-burst=1,action-interval=1m", seconds(60, 1)),
    ] {
        assert_eq!(rate(text), expected, "{text}");
        let with_default =
            parse(text).unwrap().policy_with_rate(ActionRate::new(Duration::from_secs(7), 7)).action_rate;
        assert_eq!(with_default, if text == "i6300esb" { seconds(7, 7) } else { expected }, "{text}");
    }
}

use super::*;
use clap::Parser;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    options: ServeOptions,
}

fn parse(line: &str) -> Result<ServeOptions, String> {
    let words = std::iter::once("serve").chain(line.split_whitespace());
    Cli::try_parse_from(words).map(|cli| cli.options).map_err(|error| error.to_string())
}

#[test]
fn each_watchdog_belongs_to_the_socket_of_the_same_number() {
    let two = "--watchdog i6300esb,action=pause --socket a --socket b --watchdog i6300esb,action=dump,id=second";
    let options = parse(&format!("{two} --qmp q --dump-folder d --state s")).unwrap();
    let watchdogs: Vec<_> =
        options.watchdogs.iter().map(|it| (it.socket.to_str().unwrap(), it.id.as_str(), it.policy.timeout)).collect();
    assert_eq!(watchdogs, [("a", "watchdog0", Action::Pause), ("b", "second", Action::Dump)]);
    let ids = vec!["watchdog0".to_owned(), "second".to_owned()];
    let dumps = DumpOptions { folder: "d".into(), ids, most: 5, size: None };
    assert_eq!(options.control, ControlOptions::Qmp { path: "q".into(), dumps: Some(dumps) });
    assert_eq!(options.state, Some("s".into()));
}

#[test]
fn one_watchdog_or_none_holds_for_every_socket() {
    for (line, action) in [("--watchdog i6300esb,action=pause", Action::Pause), ("", Action::Reset)] {
        let options = parse(&format!("--qmp q --socket a --socket b {line}")).unwrap();
        let ids: Vec<_> = options.watchdogs.iter().map(|it| it.id.as_str()).collect();
        assert_eq!(ids, ["watchdog0", "watchdog1"]);
        assert!(options.watchdogs.iter().all(|it| it.policy.timeout == action));
    }
}

#[test]
fn invalid_options_are_refused_with_a_reason() {
    for (line, reason) in [
        ("", "--socket"),
        ("--socket a", "the action reset needs one of --qmp, --cloud-hypervisor, --exec"),
        ("--socket a --qmp q --socket a", "socket a: given twice"),
        ("--socket a --qmp q --qmp r", "'--qmp <PATH>' cannot be used multiple times"),
        ("--socket a --qmp q --state s --state t", "'--state <FILE>' cannot be used multiple times"),
        (
            "--socket a --socket b --socket c --qmp q --watchdog i6300esb --watchdog i6300esb",
            "--watchdog: given 2 times with 3 --socket, accepted are once or 3 times",
        ),
        ("--socket a --qmp q --name=", "accepted are 1 to 255 bytes without control characters"),
        ("--socket a --exec=", "--exec: an empty command does nothing"),
        ("--socket a --exec x --dump-folder d", "--dump-folder goes with --qmp and without --exec"),
        ("--qmp q --watchdog i6300esb,id=x --socket a --socket b", "two watchdogs are called \"x\""),
        ("--socket a --qmp q --cloud-hypervisor c", "goes with neither"),
        ("--socket a --qmp q --poweroff vm.shutdown", "which is missing"),
        ("--socket a --cloud-hypervisor c --poweroff reboot", "vmm.shutdown"),
        ("--socket a --exec x --any-control-process", "--any-control-process goes with --qmp or --cloud-hypervisor"),
        ("--socket a --cloud-hypervisor c --watchdog i6300esb,action=dump", "--exec"),
        ("--socket a --qmp q --watchdog i6300esb,pretimeout=dump", "--dump-folder"),
        ("--socket a --qmp q --watchdog diag288", "diag288"),
        ("--socket a --qmp q --watchdog sbsa,clock-frequency=62500000", "sbsa is no PCI device"),
        ("--socket a --qmp q --watchdog i6300esb,steal-limit=2", "steal-limit"),
        ("--socket a --qmp q --socket-mode 999", "octal"),
        ("--socket a --qmp q --dump-limit 3", "--dump-folder"),
        ("--socket a --qmp q --dump-folder d --dump-limit 0", "0 is not in 1.."),
        ("--socket a --qmp q --dump-folder d --dump-size 64g", "accepted are sizes like 512M, 64G or 1T"),
        ("--socket a --qmp q --dump-folder d --dump-size 99999999T", "accepted are sizes like"),
        ("--socket a --qmp q --metrics nowhere", "a port"),
    ] {
        let error = parse(line).expect_err(line);
        assert!(error.contains(reason), "{line}: {error}");
    }
}

#[test]
fn a_watchdog_that_only_reports_needs_no_control_channel() {
    let options = parse("--socket a --watchdog i6300esb,action=none --metrics 9560").unwrap();
    assert_eq!(options.metrics, Some(MetricsAddress::Tcp(([127, 0, 0, 1], 9560).into())));
    assert_eq!(options.socket_mode, Mode::RUSR | Mode::WUSR);
}

#[test]
fn actions_have_a_rate_unless_the_operator_says_otherwise() {
    for (watchdog, rate) in [
        ("", Some(ACTION_RATE)),
        ("--watchdog i6300esb,action=pause", Some(ACTION_RATE)),
        ("--watchdog i6300esb,action-interval=1m", Some(ActionRate::new(Duration::from_secs(60), 3))),
        ("--watchdog i6300esb,action-interval=none", None),
    ] {
        let options = parse(&format!("--qmp q --socket a {watchdog}")).unwrap();
        assert_eq!(options.watchdogs[0].policy.action_rate, rate, "{watchdog}");
    }
}

#[test]
fn the_size_of_dumps_has_units_of_1024() {
    for (text, size) in [("1", 1), ("3K", 3 << 10), ("512M", 512 << 20), ("64G", 64 << 30), ("2T", 2 << 40)] {
        assert_eq!(parse_size(text), Ok(size));
    }
}

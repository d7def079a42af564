//! QEMU's options.

use vm_watchdog::{Action, DeviceModel};
use vm_watchdog_manifest::{Dialect, Manifest};

fn parse(text: &str) -> Manifest {
    Manifest::parse("run.sh", text.as_bytes(), None).unwrap_or_else(|error| panic!("{error}"))
}

fn watchdogs(manifest: &Manifest) -> Vec<(DeviceModel, Action, Option<&str>)> {
    let watchdogs = manifest.watchdogs.iter().map(|watchdog| &watchdog.value);
    watchdogs.map(|watchdog| (watchdog.model, watchdog.action, watchdog.name.as_deref())).collect()
}

fn warnings(manifest: &Manifest) -> Vec<String> {
    manifest.warnings.iter().map(ToString::to_string).collect()
}

#[test]
fn a_script_that_starts_qemu_is_read() {
    let manifest = parse(include_str!("fixtures/run-vm.sh"));
    assert_eq!((manifest.dialect, manifest.name.as_deref()), (Dialect::Qemu, Some("mail")));
    let expected = [
        (DeviceModel::I6300esb, Action::InjectNmi, Some("guard")),
        (DeviceModel::I6300esb, Action::InjectNmi, Some("second")),
    ];
    assert_eq!(watchdogs(&manifest), expected);
    assert_eq!(manifest.watchdogs[1].problem("x").to_string(), "9:13: -device: x");
    assert_eq!(warnings(&manifest), Vec::<String>::new());
}

#[test]
fn options_alone_are_read() {
    let cases = [
        ("-device i6300esb", Action::Reset),
        ("-device i6300esb -action watchdog=poweroff", Action::Poweroff),
        ("-watchdog-action poweroff -device i6300esb", Action::Poweroff),
        ("--device driver=i6300esb --action watchdog=pause", Action::Pause),
        ("-device 'i6300esb' -action reboot=shutdown,watchdog=none,panic=pause", Action::None),
        ("qemu-kvm -device i6300esb \\\n  -watchdog-action \\\n  debug", Action::Debug),
        ("-device \"i6300esb\" -action watchdog=shutdown", Action::Shutdown),
        ("-device i6300esb -action watchdog=inject-nmi", Action::InjectNmi),
        ("-device virtio-net-pci -device $NIC -device i6300esb", Action::Reset),
    ];
    for (text, action) in cases {
        let manifest = parse(text);
        assert_eq!(watchdogs(&manifest), [(DeviceModel::I6300esb, action, None)], "{text}");
        assert_eq!(warnings(&manifest), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn two_commas_are_one_in_a_value() {
    let manifest = parse("-name guest=a,,b,debug-threads=on -device i6300esb,id=,,x,,,,y");
    assert_eq!(manifest.name.as_deref(), Some("a,b"));
    assert_eq!(watchdogs(&manifest), [(DeviceModel::I6300esb, Action::Reset, Some(",x,,y"))]);
}

#[test]
fn the_last_action_counts_and_old_options_are_noted() {
    let manifest = parse("-watchdog i6300esb\n-watchdog-action pause -action watchdog=poweroff\n");
    assert_eq!(watchdogs(&manifest), [(DeviceModel::I6300esb, Action::Poweroff, None)]);
    let expected = [
        "1:11: -watchdog: QEMU 7.2 and newer have no -watchdog: write -device i6300esb",
        "2:32: -action watchdog: poweroff replaces pause of line 2",
    ];
    assert_eq!(warnings(&manifest), expected);
}

#[test]
fn a_command_line_without_a_watchdog_is_a_warning() {
    let manifest = parse("qemu-system-x86_64 -name 'a, b' -action watchdog=pause");
    let expected =
        ["1:1: this VM has no watchdog and no probe", "1:41: an action without a watchdog: add -device i6300esb"];
    assert_eq!(warnings(&manifest), expected);
}

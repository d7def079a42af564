//! Command lines that are refused: one line that says why, and an exit status for each kind of error.

use crate::support::{Temporary, boot};

const USAGE: i32 = 2;
const BAD_IMAGE: i32 = 4;
const NO_KVM: i32 = 5;
const NO_MEMORY: i32 = 6;

fn assert_refused(arguments: &[&str], status: i32, mentions: &[&str]) {
    let run = boot(arguments);
    assert_eq!(run.status, Some(status), "{arguments:?}: {}", run.messages);
    assert_eq!(run.messages.lines().count(), 1, "{}", run.messages);
    assert!(run.messages.starts_with("vm-watchdog: "), "{}", run.messages);
    for mention in mentions {
        assert!(run.messages.contains(mention), "{mention:?} in {}", run.messages);
    }
}

#[test]
fn unknown_watchdogs_are_refused() {
    assert_refused(&["--watchdog=i6300esb,action=explode"], USAGE, &["explode", "poweroff"]);
    assert_refused(&["--watchdog=wdat", "--watchdog=wdat,id=b"], USAGE, &["wdat given 2 times", "one watchdog table"]);
    assert_refused(&["--watchdog=wdat"], USAGE, &["drives i6300esb: add --watchdog i6300esb, or a --kernel"]);
    assert_refused(&["--built-in=wdat"], USAGE, &["drives wdat: add --watchdog wdat"]);
    assert_refused(&["--watchdog=wdat,pretimeout=nmi"], USAGE, &["pretimeout=... does not apply to wdat"]);
    assert_refused(&["--watchdog=sbsa"], USAGE, &["this VMM has no sbsa, only i6300esb and wdat"]);
    assert_refused(&["--watchdog=wdt9000"], USAGE, &["wdt9000", "i6300esb"]);
    assert_refused(&["--watchdog=i6300esb,colour=red"], USAGE, &["colour"]);
    assert_refused(&["--watchdog=i6300esb,id=a", "--watchdog=i6300esb,id=a"], USAGE, &["\"a\""]);
}

#[test]
fn invalid_and_too_small_memory_sizes_are_refused() {
    assert_refused(&["--memory=plenty"], USAGE, &["plenty", "256M"]);
    assert_refused(&["--memory=99999999999G"], USAGE, &["99999999999G"]);
    assert_refused(&["--memory=0"], NO_MEMORY, &["16 MiB"]);
    assert_refused(&["--memory=4M"], NO_MEMORY, &["4 MiB", "16 MiB"]);
    assert_refused(&["--memory=17179869183G"], NO_MEMORY, &["17592186043392 MiB"]);
    let kernel = Temporary::with("larger-than-memory", &vec![0; 8 << 20]);
    assert_refused(&["--memory=20M", "--kernel", kernel.path()], NO_MEMORY, &["20 MiB", "24 MiB"]);
}

#[test]
fn missing_unreadable_and_invalid_images_are_refused() {
    let text = Temporary::with("text", b"not a kernel");
    assert_refused(&["--kernel=/nonexistent/vmlinux"], BAD_IMAGE, &["/nonexistent/vmlinux", "No such file"]);
    assert_refused(&["--kernel=/"], BAD_IMAGE, &["not a regular file"]);
    assert_refused(&["--kernel", text.path(), "--initrd=/nonexistent/initrd"], BAD_IMAGE, &["initrd", "No such file"]);
}

#[test]
fn a_kernel_without_kvm_is_refused() {
    let kernel = Temporary::with("some-kernel", b"\x7FELF");
    let not_kvm = Temporary::with("not-kvm", b"");
    let reason = ["a kernel needs KVM", "No such file or directory"];
    assert_refused(&["--kernel", kernel.path(), "--kvm-device=/nonexistent/kvm"], NO_KVM, &reason);
    assert_refused(&["--kernel", kernel.path(), "--kvm-device", not_kvm.path()], NO_KVM, &["cannot be used"]);
}

#[test]
fn unknown_and_conflicting_options_are_refused() {
    assert_refused(&["--turbo"], USAGE, &["--turbo"]);
    assert_refused(&["--initrd=x"], USAGE, &["--kernel"]);
    assert_refused(&["--events=xml"], USAGE, &["xml", "json"]);
    assert_refused(&["--events-file=/nonexistent/events"], USAGE, &["/nonexistent/events"]);
    let kernel = Temporary::with("any-kernel", b"\x7FELF");
    assert_refused(&["--kernel", kernel.path(), "--cmdline", &"x".repeat(5000)], USAGE, &["5000", "4095"]);
}

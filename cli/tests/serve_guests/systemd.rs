//! systemd as the guest's PID 1, which feeds the watchdog itself (`RuntimeWatchdogSec=`).

use std::path::Path;
use std::time::{Duration, Instant};

use vm_watchdog_test_support::Unavailable;
use vm_watchdog_test_support::initramfs::Initramfs;
use vm_watchdog_test_support::kernel::Kernel;
use vm_watchdog_test_support::systemd::Systemd;

use crate::guest::Pieces;
use crate::{CARD_RESET, expect_timeout_of, seconds, start, with};

/// Its timeout in seconds.
const TIMEOUT: u64 = 10;

/// systemd takes the place of this script.
const INIT: &str = "exec /usr/lib/systemd/systemd\n";

/// The only unit: what loads the driver and obeys the test.
const UNIT: &str = "\
[Unit]
DefaultDependencies=no
[Service]
ExecStart=/bin/busybox sh /obey.sh
";

/// systemd does not feed while it starts, which may take longer than the timeout on a loaded machine. So the driver is
/// loaded after the start, as udev does it, and systemd opens the watchdog when it next looks for one.
const OBEY: &str = "\
export PATH=/bin
. /guest.sh
insmod /lib/watchdog.ko
insmod /lib/i6300esb.ko
obey /dev/ttyS1 \"$(cat /sys/class/watchdog/watchdog0/bootstatus)\"
";

fn pieces() -> Result<Pieces, Unavailable> {
    let (kernel, systemd) = (Kernel::x86()?, Systemd::trixie()?);
    let initramfs = Initramfs::with_busybox(&kernel.busybox()?, INIT).modules(&kernel.module("i6300esb")?);
    let initramfs = initramfs.tree(systemd.root()).map_err(Unavailable::while_doing(systemd.root().display()))?;
    let configuration = format!("[Manager]\nRuntimeWatchdogSec={TIMEOUT}\n");
    let initramfs = initramfs
        .link("lib64", Path::new("usr/lib64"))
        // Without it this is a first boot, in which systemd is busy with the defaults of all its units.
        .file("etc/machine-id", b"0123456789abcdef0123456789abcdef\n")
        .file("etc/systemd/system.conf.d/watchdog.conf", configuration.as_bytes())
        .file("etc/systemd/system/default.target", b"[Unit]\nWants=obey.service\n")
        .file("etc/systemd/system/obey.service", UNIT.as_bytes())
        .file("obey.sh", OBEY.as_bytes());
    Pieces::x86_with("serve-guest-systemd.cpio", &kernel, initramfs)
}

#[test]
fn systemd_feeds_the_watchdog_and_its_guest_is_reset_when_it_has_crashed() {
    with("systemd", pieces, |pieces| {
        let (server, mut guest) = start(pieces, "i6300esb,action=reset");
        assert_eq!(guest.boot_status(), "0");
        server.expect("armed");
        assert_eq!(guest.run("cat /proc/1/comm /sys/class/watchdog/watchdog0/timeout"), format!("systemd\n{TIMEOUT}"));
        server.expect_none("expiry", Duration::from_secs(5 * TIMEOUT / 2));

        // systemd catches the signal, closes its files, and does nothing more. The guest runs on. Linux sends a last
        // heartbeat when the watchdog is closed.
        let alive = Instant::now();
        guest.run("kill -SEGV 1; until dmesg | grep -q 'watchdog did not stop'; do sleep 0.1; done");
        expect_timeout_of(seconds(TIMEOUT), &server, alive);
        assert_eq!(server.expect("performed")["action"], "reset");
        assert_eq!(guest.boot_status(), CARD_RESET);
    });
}

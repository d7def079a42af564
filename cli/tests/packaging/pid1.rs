//! The units under a real systemd: PID 1 of a guest, in which the server runs as the service.

use std::fs;
use std::path::Path;
use std::time::Duration;

use vm_watchdog_test_support::initramfs::Initramfs;
use vm_watchdog_test_support::kernel::Kernel;
use vm_watchdog_test_support::systemd::Systemd;
use vm_watchdog_test_support::{Unavailable, assets, skip};

use crate::guest::{Guest, Pieces};
use crate::stand_in;
use crate::units::packaging;

/// systemd takes the place of this script.
const INIT: &str = "exec /usr/lib/systemd/systemd\n";

/// The only unit that starts at the boot: what obeys the test.
const OBEYS: &str = "\
[Unit]
DefaultDependencies=no
[Service]
ExecStart=/bin/busybox sh /obey.sh
";

const OBEY: &str = "\
export PATH=/usr/bin:/bin LC_ALL=C
. /guest.sh
obey /dev/ttyS1
";

/// alice runs VMs, and is in the group of their watchdogs; bob runs VMs that are none of alice's business.
const USERS: &str = "\
u alice - \"Runs VMs\"
m alice vm-watchdog
u bob - \"Runs other VMs\"
";

/// A VMM of alice, or of another user by a drop-in.
const VMM: &str = "\
[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
User=alice
UMask=0007
ExecStart=/packaging --exact --ignored --nocapture stand_in::qemu
";

const WEB: &str = "OPTIONS=--watchdog i6300esb,action=reset,id=web --qmp /run/vm-watchdog/web/qmp --events json\n";
const TENANT: &str = "OPTIONS=--watchdog i6300esb,action=reset --qmp /run/vm-watchdog/tenant/qmp\n";
const COMMAND: &str = "OPTIONS=--exec 'id -un >/run/vm-watchdog/command/acted'\n";
const MISTAKEN: &str = "OPTIONS=--watchdog i6300esb,action=explode\n";

/// What systemd waits for the heartbeat of the server, here shorter than in the unit.
const HEARTBEAT: &str = "[Service]\\nWatchdogSec=4\\n";

fn pieces() -> Result<Pieces, Unavailable> {
    let (kernel, systemd) = (Kernel::x86()?, Systemd::trixie()?);
    let read = |path: &Path| fs::read(path).map_err(Unavailable::while_doing(path.display()));
    let this_program = std::env::current_exe().map_err(Unavailable::while_doing("the path of this program"))?;
    let vmm = |folder: &str| format!("[Service]\nEnvironment={}=/run/vm-watchdog/{folder}\n", stand_in::FOLDER);
    let mut initramfs = Initramfs::with_busybox(&kernel.busybox()?, INIT)
        .tree(systemd.root())
        .map_err(Unavailable::while_doing(systemd.root().display()))?
        .link("lib64", Path::new("usr/lib64"))
        .link("usr/bin/true", Path::new("/bin/busybox"))
        // Without it this is a first boot, in which systemd is busy with the defaults of all its units.
        .file("etc/machine-id", b"0123456789abcdef0123456789abcdef\n")
        .file("etc/systemd/system/default.target", b"[Unit]\nWants=obey.service\n")
        .file("etc/systemd/system/obey.service", OBEYS.as_bytes())
        .file("obey.sh", OBEY.as_bytes())
        .program("usr/bin/vm-watchdog", &read(Path::new(env!("CARGO_BIN_EXE_vm-watchdog")))?)
        .program("packaging", &read(&this_program)?)
        .file("usr/lib/sysusers.d/vm-watchdog.conf", &read(&packaging("sysusers.d/vm-watchdog.conf"))?)
        .file("usr/lib/sysusers.d/vm-watchdog-users.conf", USERS.as_bytes());
    for unit in ["vm-watchdog@.service", "vm-watchdog@.socket"] {
        let place = format!("usr/lib/systemd/system/{unit}");
        initramfs = initramfs.file(&place, &read(&packaging("systemd").join(unit))?);
    }
    for (name, options) in [("web", WEB), ("tenant", TENANT), ("command", COMMAND), ("mistaken", MISTAKEN)] {
        initramfs = initramfs
            .file(&format!("etc/vm-watchdog/{name}.conf"), options.as_bytes())
            .file(&format!("etc/systemd/system/vmm-{name}.service"), VMM.as_bytes())
            .file(&format!("etc/systemd/system/vmm-{name}.service.d/folder.conf"), vmm(name).as_bytes());
    }
    let as_bob = |example: &str| -> Result<Vec<u8>, Unavailable> {
        let text =
            String::from_utf8_lossy(&read(&packaging("systemd/examples").join(example))?).replace("alice", "bob");
        Ok(text.into_bytes())
    };
    initramfs = initramfs
        .file("etc/systemd/system/vm-watchdog@tenant.service.d/user.conf", &as_bob("user-of-service.conf")?)
        .file("etc/systemd/system/vm-watchdog@tenant.socket.d/user.conf", &as_bob("user-of-socket.conf")?)
        // The umask of most users.
        .file("etc/systemd/system/vmm-tenant.service.d/user.conf", b"[Service]\nUser=bob\nUMask=0022\n")
        .file(
            "etc/systemd/system/vmm-command.service.d/exec.conf",
            b"[Service]\nExecStart=\nExecStart=/packaging --exact --ignored --nocapture stand_in::other_vmm\n",
        );
    Pieces::x86_with("packaging-systemd.cpio", &kernel, initramfs)
}

/// Properties of a unit, a line for each.
fn show(guest: &mut Guest, unit: &str, properties: &str) -> String {
    guest.run(&format!("systemctl show {unit} --property {properties}"))
}

/// The number of the server's process.
fn main_pid(guest: &mut Guest, unit: &str) -> String {
    guest.run(&format!("systemctl show {unit} --property MainPID --value"))
}

/// Whether a command of the guest fails, and what it says.
fn fails(guest: &mut Guest, command: &str) -> String {
    guest.run(&format!("! {{ {command}; }}"))
}

#[test]
fn systemd_starts_watches_and_stops_the_servers_of_vms() {
    let pieces = assets::machine_for_this_process().and_then(|()| pieces());
    let pieces = match pieces {
        Ok(pieces) => pieces,
        Err(why) => return skip::loudly("the units under systemd", &why),
    };
    let folder = tempfile::tempdir().unwrap();
    let mut machine = pieces.machine_without_watchdog(folder.path());
    machine.args(["-m", "1024"]);
    let mut guest = Guest::boot(machine);
    guest.boot_status();
    guest.run("systemd-sysusers");

    a_vmm_that_is_started_first_has_its_folder_and_starts_the_server(&mut guest);
    the_server_has_no_privileges(&mut guest);
    a_server_that_hangs_is_restarted(&mut guest);
    a_stop_leaves_the_sockets_of_the_vmm(&mut guest);
    a_tenant_has_a_user_of_its_own(&mut guest);
    a_command_runs_as_the_user_of_the_service(&mut guest);
    a_mistake_in_the_options_is_not_tried_again(&mut guest);
}

fn a_vmm_that_is_started_first_has_its_folder_and_starts_the_server(guest: &mut Guest) {
    guest.run("systemctl start vm-watchdog@web.socket");
    assert_eq!(
        guest.run("stat -c '%n %a %U %G' /run/vm-watchdog/web /run/vm-watchdog/web/watchdog"),
        "/run/vm-watchdog/web 2770 vm-watchdog vm-watchdog\n/run/vm-watchdog/web/watchdog 660 vm-watchdog vm-watchdog"
    );
    assert_eq!(show(guest, "vm-watchdog@web.service", "ActiveState"), "ActiveState=inactive");
    guest.run("systemctl start vmm-web.service || { journalctl --no-pager; false; }");
    let state = show(guest, "vm-watchdog@web.service", "Type,ActiveState,SubState,User,NRestarts,StatusText");
    for line in ["ActiveState=active", "SubState=running", "User=vm-watchdog", "NRestarts=0", "StatusText=1 watchdogs"]
    {
        assert!(state.lines().any(|shown| shown == line), "{line}: {state}");
    }
    let events = guest.run("journalctl --no-pager --output cat --unit vm-watchdog@web.service");
    for event in [r#""event":"connected""#, r#""event":"expiry""#, r#""event":"performed""#] {
        assert!(events.contains(event), "{event}: {events}");
    }
    // alice may read the metrics.
    assert_eq!(guest.run("stat -c '%a %G' /run/vm-watchdog/web/metrics"), "660 vm-watchdog");
}

fn the_server_has_no_privileges(guest: &mut Guest) {
    let pid = main_pid(guest, "vm-watchdog@web.service");
    let status = guest.run(&format!("cat /proc/{pid}/status"));
    for line in ["CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.lines().any(|shown| shown == line), "{line}: {status}");
    }
    let limits = guest.run(&format!("grep 'open files' /proc/{pid}/limits; cat /proc/{pid}/oom_score_adj"));
    assert_eq!(
        limits.split_whitespace().collect::<Vec<_>>(),
        ["Max", "open", "files", "1024", "1024", "files", "-900"]
    );
    assert_eq!(
        guest.run("stat -c '%a %U' /var/lib/vm-watchdog/web /var/lib/vm-watchdog/web/state"),
        "700 vm-watchdog\n600 vm-watchdog"
    );
}

fn a_server_that_hangs_is_restarted(guest: &mut Guest) {
    let unit = "vm-watchdog@web.service";
    guest.run("mkdir -p /run/systemd/system/vm-watchdog@web.service.d");
    guest.run(&format!("printf '{HEARTBEAT}' >/run/systemd/system/vm-watchdog@web.service.d/heartbeat.conf"));
    guest.run(&format!("systemctl daemon-reload; systemctl restart {unit}"));
    let first = main_pid(guest, unit);
    // Three times its limit.
    guest.run("sleep 12");
    assert_eq!(main_pid(guest, unit), first, "its heartbeats arrive");
    guest.run(&format!("systemctl reload {unit}; kill -STOP {first}"));
    guest.run(&format!("until [ $(systemctl show {unit} -p NRestarts --value) = 1 ]; do sleep 0.1; done"));
    guest.run(&format!("until systemctl is-active {unit}; do sleep 0.1; done"));
    let journal = guest.run(&format!("journalctl --no-pager --output cat --unit {unit}"));
    assert!(journal.contains("Watchdog timeout (limit 4s)!"), "{journal}");
    assert!(journal.contains("Failed with result 'watchdog'."), "{journal}");
    assert_ne!(main_pid(guest, unit), first);
    // The next QEMU is served by the next server.
    guest.run("systemctl start vmm-web.service");
}

fn a_stop_leaves_the_sockets_of_the_vmm(guest: &mut Guest) {
    assert_eq!(guest.run("ls /run/vm-watchdog/web"), "metrics\nqmp\nwatchdog");
    guest.run("systemctl restart vm-watchdog@web.service");
    assert_eq!(guest.run("ls /run/vm-watchdog/web"), "metrics\nqmp\nwatchdog");
    guest.run("systemctl stop vm-watchdog@web.socket");
    assert_eq!(show(guest, "vm-watchdog@web.service", "ActiveState,Result"), "Result=success\nActiveState=inactive");
    assert_eq!(guest.run("ls /run/vm-watchdog/web"), "qmp");
    assert_eq!(guest.run("stat -c %U /run/vm-watchdog/web/qmp"), "alice");
    // A service without its socket unit would leave no socket to connect to.
    guest.run("systemctl start vm-watchdog@web.service && systemctl is-active vm-watchdog@web.socket");
    guest.run("systemctl start vmm-web.service");
}

fn a_tenant_has_a_user_of_its_own(guest: &mut Guest) {
    guest.run("systemctl start vm-watchdog@tenant.service");
    let paths = "/run/vm-watchdog/tenant /run/vm-watchdog/tenant/watchdog /var/lib/vm-watchdog/tenant";
    assert_eq!(guest.run(&format!("stat -c '%a %U %G' {paths}")), "2770 bob bob\n660 bob bob\n700 bob bob");
    guest.run("systemctl start vmm-tenant.service || { journalctl --no-pager; false; }");
    // alice is in the group of the other servers.
    let as_alice = "printf '[Service]\\nUser=alice\\n' >/run/systemd/system/vmm-tenant.service.d/user2.conf";
    guest.run(&format!("mkdir -p /run/systemd/system/vmm-tenant.service.d; {as_alice}; systemctl daemon-reload"));
    fails(guest, "systemctl start vmm-tenant.service");
    let journal = guest.run("journalctl --no-pager --output cat --unit vmm-tenant.service | tail -n 20");
    assert!(journal.contains("PermissionDenied"), "{journal}");
}

fn a_command_runs_as_the_user_of_the_service(guest: &mut Guest) {
    guest.run("systemctl start vm-watchdog@command.service");
    guest.run("systemctl start vmm-command.service || { journalctl --no-pager; false; }");
    assert_eq!(guest.run("cat /run/vm-watchdog/command/acted"), "vm-watchdog");
}

fn a_mistake_in_the_options_is_not_tried_again(guest: &mut Guest) {
    fails(guest, "systemctl start vm-watchdog@mistaken.service");
    std::thread::sleep(Duration::from_secs(7));
    let state = show(guest, "vm-watchdog@mistaken.service", "ExecMainStatus,NRestarts,ActiveState");
    assert_eq!(state, "NRestarts=0\nExecMainStatus=2\nActiveState=failed");
    let journal = guest.run("journalctl --no-pager --output cat --unit vm-watchdog@mistaken.service");
    assert!(journal.contains("explode"), "{journal}");
}

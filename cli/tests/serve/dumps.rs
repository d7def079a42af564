//! The action dump by QMP: how many dumps there may be, how much of the disk they may take, and what is left of a failed one.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::fakes::{FakeQmp, QmpClient};
use crate::server::{Builder, Server};
use crate::tenants::Vmm;

/// Less than any file system has free.
const SMALL: u64 = 1 << 20;

/// A server whose dumps go to the folder `dumps`, in which these files are already, and its QEMU.
fn with_dumps(options: &str, files: &[&str]) -> (Server, QmpClient, PathBuf) {
    let builder = Builder::new().options("--socket s --qmp q --watchdog").options(options);
    let folder = builder.path().join("dumps");
    fs::create_dir(&folder).unwrap();
    for file in files {
        fs::write(folder.join(file), file).unwrap();
    }
    let qmp = FakeQmp::listen(&builder.path().join("q"));
    let server = builder.option("--dump-folder", folder.to_str().unwrap()).start();
    let qmp = qmp.accept(&server, true);
    (server, qmp, folder)
}

/// A QEMU that no libvirt has started.
fn answer_owner(qmp: &mut QmpClient) {
    qmp.answer("query-chardev", json!([{"label": "compat_monitor0", "filename": "unix:q", "frontend-open": true}]));
}

fn answer_memory(qmp: &mut QmpClient, memory: Value) {
    answer_owner(qmp);
    qmp.answer("query-dump", json!({"status": "none", "completed": 0, "total": 0}));
    qmp.answer("query-memory-size-summary", memory);
}

/// The path at which QEMU is asked to write a dump.
fn path(arguments: &Value) -> PathBuf {
    arguments["protocol"].as_str().unwrap().strip_prefix("file:").expect("a file").into()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_dump_is_written_by_qemu_to_the_folder() {
    let (server, mut qmp, folder) = with_dumps("i6300esb,action=dump,id=wd", &[]);
    let mut client = server.client();
    client.arm(1);
    answer_memory(&mut qmp, json!({"base-memory": SMALL, "plugged-memory": SMALL}));
    let arguments = qmp.answer("dump-guest-memory", json!({}));
    assert_eq!(server.expect("performed")["action"], "dump");
    let path = path(&arguments);
    let name = path.file_name().unwrap().to_str().unwrap();
    assert!(path.parent() == Some(&folder) && name.starts_with("wd-") && name.ends_with(".elf"), "{path:?}");
    assert_eq!((&arguments["detach"], &arguments["paging"]), (&json!(true), &json!(false)));
}

/// libvirtd 9.0 crashes at the end of a dump that it has not begun.
#[test]
fn a_dump_of_a_qemu_that_belongs_to_libvirt_is_refused_and_escalated() {
    let (server, mut qmp, folder) = with_dumps("i6300esb,action=dump,id=wd,grace=1m,then=poweroff", &[]);
    let mut client = server.client();
    client.arm(1);
    for _ in 0..5 {
        let devices =
            [("charserial0", "file"), ("charmonitor", "unix:/var/lib/libvirt/qemu/domain-1-web/monitor.sock")];
        let devices = devices.map(|(label, name)| json!({"label": label, "filename": name, "frontend-open": true}));
        qmp.answer("query-chardev", json!(devices));
        let reason = "this QEMU belongs to libvirt, whose daemon (9.0) crashes at a dump that it has not begun: \
                      use --exec 'virsh dump --memory-only ...'";
        assert_eq!(server.expect("action-failed")["reason"], reason);
    }
    qmp.answer("quit", json!({}));
    assert_eq!(names(&folder), [""; 0]);
}

#[test]
fn a_dump_beyond_the_limit_is_refused_and_escalated_and_the_older_ones_stay() {
    // The second watchdog of the VM has caused the older dumps. The other files are none of its dumps.
    let older = ["second-1700000000.001.elf", "second-1700000001.002.elf"];
    let files = [&older[..], &["neighbour-1700000000.001.elf", "wd-1700000000.001.elf.kept"]].concat();
    let options = "i6300esb,action=dump,id=wd,grace=60s,then=reset --dump-limit 2 \
                   --socket t --watchdog i6300esb,action=none,id=second";
    let (server, mut qmp, folder) = with_dumps(options, &files);
    let mut client = server.client();
    client.arm(1);
    for _ in 0..5 {
        answer_memory(&mut qmp, json!({"base-memory": SMALL}));
        let reason = server.expect("action-failed")["reason"].as_str().unwrap().to_owned();
        assert!(reason.ends_with("2 dumps are in it, and --dump-limit is 2"), "{reason}");
    }
    qmp.answer("system_reset", json!({}));
    for file in files {
        assert_eq!(fs::read_to_string(folder.join(file)).unwrap(), file);
    }
}

#[test]
fn a_dump_for_which_the_disk_has_no_room_is_refused() {
    let (server, mut qmp, folder) = with_dumps("i6300esb,action=dump --dump-size 9999999T", &[]);
    let disk = rustix::fs::statvfs(&folder).unwrap();
    let mut client = server.client();
    client.arm(1);
    let free = disk.f_bavail * disk.f_frsize;
    for (plugged, expected) in [(free, "bytes are free"), (u64::MAX, "its dumps have 0 bytes and may have")] {
        answer_memory(&mut qmp, json!({"base-memory": SMALL, "plugged-memory": plugged}));
        let reason = server.expect("action-failed")["reason"].as_str().unwrap().to_owned();
        assert!(reason.contains(expected), "{reason}");
    }
    for answer in [json!({}), json!({"base-memory": "all of it"})] {
        answer_memory(&mut qmp, answer);
        let reason = server.expect("action-failed")["reason"].as_str().unwrap().to_owned();
        assert_eq!(reason, "QEMU does not say how much memory the guest has");
    }
}

#[test]
fn what_a_dump_that_fails_has_left_is_removed() {
    let (server, mut qmp, folder) = with_dumps("i6300esb,action=dump,id=wd", &["wd-1.000.elf"]);
    let mut client = server.client();
    client.arm(1);
    // QEMU opens the file and refuses.
    answer_memory(&mut qmp, json!({"base-memory": SMALL}));
    let command = qmp.command();
    let file = path(&command["arguments"]);
    fs::write(&file, "a part").unwrap();
    qmp.say(json!({"error": {"class": "GenericError", "desc": "no"}, "id": command["id"]}));
    server.expect("action-failed");
    assert_eq!(names(&folder), ["wd-1.000.elf"]);

    // At the next attempt it begins, and fails later.
    answer_memory(&mut qmp, json!({"base-memory": SMALL}));
    let file = path(&qmp.answer("dump-guest-memory", json!({})));
    fs::write(&file, "a part").unwrap();
    server.expect("performed");
    let result = json!({"total": 9, "status": "failed", "completed": 5});
    qmp.say(json!({"event": "DUMP_COMPLETED", "data": {"result": result, "error": "No space left on device"}}));
    let log = server.expect("log")["message"].as_str().unwrap().to_owned();
    assert!(log.contains(file.to_str().unwrap()) && log.ends_with("No space left on device"), "{log}");
    assert_eq!(names(&folder), ["wd-1.000.elf"]);
}

#[test]
fn what_another_process_says_of_a_dump_removes_nothing() {
    let (server, mut qmp, folder) = with_dumps("i6300esb,action=dump,id=wd", &[]);
    let mut client = server.client();
    client.arm(1);
    answer_memory(&mut qmp, json!({"base-memory": SMALL}));
    let file = path(&qmp.answer("dump-guest-memory", json!({})));
    fs::write(file, "whole").unwrap();
    server.expect("performed");
    drop(client);
    server.expect("disconnected");
    // From now on QMP is not the VMM's.
    let _vmm = Vmm::start(&server, "s");
    server.expect("foreign-control");
    let result = json!({"total": 9, "status": "failed", "completed": 5});
    qmp.say(json!({"event": "DUMP_COMPLETED", "data": {"result": result, "error": "no"}}));
    qmp.no_command(Duration::from_millis(300));
    assert_eq!(names(&folder).len(), 1);
}

#[test]
fn a_dump_that_is_complete_stays_and_one_in_progress_is_not_disturbed() {
    let (server, mut qmp, folder) = with_dumps("i6300esb,action=dump,id=wd,action-interval=none", &[]);
    let mut client = server.client();
    client.arm(1);
    answer_memory(&mut qmp, json!({"base-memory": SMALL}));
    let file = path(&qmp.answer("dump-guest-memory", json!({})));
    fs::write(&file, "whole").unwrap();
    server.expect("performed");
    client.arm(1);
    answer_owner(&mut qmp);
    qmp.answer("query-dump", json!({"status": "active", "completed": 3, "total": 5}));
    assert_eq!(server.expect("action-failed")["reason"], "QEMU is writing an earlier dump");
    let result = json!({"total": 5, "status": "completed", "completed": 5});
    qmp.say(json!({"event": "DUMP_COMPLETED", "data": {"result": result}}));
    answer_memory(&mut qmp, json!({"base-memory": SMALL}));
    qmp.refuse("dump-guest-memory", "not now");
    server.expect("action-failed");
    assert_eq!(names(&folder).len(), 1);
    assert_eq!(fs::read_to_string(file).unwrap(), "whole");
}

#[test]
fn a_folder_that_is_not_there_is_an_error_at_the_start() {
    let builder = Builder::new().options("--socket s --qmp q --dump-folder nowhere --watchdog i6300esb,action=dump");
    let (status, message) = builder.fail();
    assert_eq!(status, 1);
    assert!(message.starts_with("vm-watchdog: dump folder nowhere: No such file or directory"), "{message}");
}

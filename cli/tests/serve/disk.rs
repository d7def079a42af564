//! How the state file is written: atomically, synced, and at a bounded rate.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use rustix::fs::inotify;
use rustix::process::Signal;
use serde_json::Value;
use vm_watchdog_test_support::{Unavailable, skip};

use crate::client::{CONFIG, Client};
use crate::server::{Builder, Server, TIMEOUT, traces};

const OPTIONS: &str = "--socket s --watchdog i6300esb,action=none --state state";
/// The least time between two writes that a guest causes.
const INTERVAL: Duration = Duration::from_secs(1);

/// Waits until the state in the file is that of an armed watchdog.
fn wait_until_armed(server: &Server) {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let saved: Value = serde_json::from_slice(&fs::read(server.path("state")).unwrap()).expect("a whole state");
        if saved["watchdogs"]["watchdog0"]["device"]["wdt_lock"] == 2 {
            return;
        }
        assert!(Instant::now() < deadline, "{saved}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_new_state_is_a_new_file_and_never_changes_the_old_one() {
    let server = Builder::new().options(OPTIONS).start();
    let mut old = File::open(server.path("state")).unwrap();
    let content = fs::read(server.path("state")).unwrap();
    let mut client = server.client();
    client.arm(60_000);
    wait_until_armed(&server);
    assert_ne!(fs::metadata(server.path("state")).unwrap().ino(), old.metadata().unwrap().ino());
    let mut bytes = Vec::new();
    old.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, content);
}

#[test]
fn a_state_is_synced_before_the_rename_and_its_folder_after() {
    const TEST: &str = "a state is synced before it takes the place of the old one";
    if let Err(error) = std::process::Command::new("strace").arg("--version").output() {
        return skip::loudly(TEST, &Unavailable::new(format!("strace: {error}")));
    }
    let calls = "openat,open,creat,write,pwrite64,fsync,fdatasync,rename,renameat,renameat2";
    let mut server = Builder::traced(calls).options(OPTIONS).start();
    let mut client = server.client();
    client.arm(60_000);
    wait_until_armed(&server);
    assert!(server.signal(Signal::TERM).success());

    let mut replacements = 0;
    for trace in traces(&server) {
        // Whether the content of the new file, and the folder after the rename, are still to be synced.
        let (mut unsynced, mut unlinked) = (false, false);
        for call in trace.lines() {
            let is_new = call.contains("/.state.");
            match call.split('(').next().unwrap() {
                "write" | "pwrite64" if is_new => unsynced = true,
                "fsync" | "fdatasync" if is_new => unsynced = false,
                "fsync" if !call.contains("/state") => unlinked = false,
                "rename" | "renameat" | "renameat2" if call.contains("\"state\"") => {
                    assert!(call.contains("/.state.") && !unsynced, "{call} in\n{trace}");
                    unlinked = true;
                    replacements += 1;
                }
                "open" | "openat" | "creat" if call.contains("\"state\"") => {
                    assert!(call.contains("O_RDONLY"), "written in place: {call} in\n{trace}");
                }
                _ => {}
            }
        }
        assert!(!unlinked, "the folder is not synced in\n{trace}");
    }
    assert!(replacements >= 2, "{replacements}: one at the start, and one at least of what the guest did");
}

/// A guest that does this for a while causes a bounded rate of writes.
fn writes_are_bounded(mut act: impl FnMut(&mut Client)) {
    // In memory, where only the server's own limit slows it down.
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let state = folder.path().join("state");
    let options = "--socket s --watchdog i6300esb,action=none";
    let server = Builder::new().options(options).option("--state", state.to_str().unwrap()).start();
    let mut client = server.client();
    let watch = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
    inotify::add_watch(&watch, folder.path(), inotify::WatchFlags::MOVE).unwrap();
    let started = Instant::now();
    let mut changes = 0;
    while started.elapsed() < 5 * INTERVAL {
        act(&mut client);
        changes += 1;
    }
    let mut replacements = 0;
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut events = inotify::Reader::new(watch, &mut buffer);
    // Both ends of each rename are watched, since equal events that follow each other are reported as one.
    while let Ok(event) = events.next() {
        replacements += u128::from(event.events().contains(inotify::ReadFlags::MOVED_TO));
    }
    // One at once, one for each interval that has begun, and one that may have begun before.
    let most = 3 + started.elapsed().as_millis() / INTERVAL.as_millis();
    assert!((1..=most).contains(&replacements), "{replacements} for {changes} changes, {most} are allowed");
    assert!(changes > 10 * replacements, "{changes} changes show nothing");
}

#[test]
fn a_guest_that_arms_and_disarms_repeatedly_causes_a_bounded_rate_of_writes() {
    writes_are_bounded(|client| {
        client.write(CONFIG, 0x68, &[2]).unwrap();
        client.write(CONFIG, 0x68, &[0]).unwrap();
    });
}

#[test]
fn a_guest_that_lets_its_watchdog_expire_repeatedly_causes_a_bounded_rate_of_writes() {
    // Two stages of a millisecond, without an action.
    writes_are_bounded(|client| {
        client.arm(1);
        std::thread::sleep(Duration::from_millis(3));
    });
}

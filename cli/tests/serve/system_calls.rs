//! What a message of a VMM costs the server in system calls, counted by strace.

use std::process::Command;

use rustix::process::Signal;
use vm_watchdog_test_support::{Unavailable, skip};

use crate::client::{BAR0, Client, NO_REPLY, REGION_WRITE, access, message};
use crate::server::{Builder, traces};

/// The system calls of a server whose client does this, in all threads.
fn calls_of(act: impl FnOnce(&mut Client)) -> usize {
    let mut server = Builder::traced("all").options("--socket s --watchdog i6300esb,action=none").start();
    let mut client = server.client();
    client.arm(0xF_FFFF);
    act(&mut client);
    drop(client);
    assert!(server.signal(Signal::TERM).success());
    traces(&server).iter().map(|trace| trace.lines().count()).sum()
}

#[test]
fn a_message_is_waited_for_received_and_answered_by_one_system_call_each() {
    const TEST: &str = "a message is waited for, received and answered by one system call each";
    if let Err(error) = Command::new("strace").arg("-V").output() {
        return skip::loudly(TEST, &Unavailable::while_doing("strace")(error));
    }
    const MESSAGES: usize = 500;
    let pings =
        |count: usize| calls_of(|client| (0..count).for_each(|_| client.write(BAR0, 0x0C, &[0x80, 0]).unwrap()));
    let (few, many) = (pings(10), pings(10 + MESSAGES));
    // Threads start and stop with a few calls more or less.
    assert!(many < few + 3 * MESSAGES + 100, "{few} system calls with 10 messages, {many} with {MESSAGES} more");

    let posted = |count: usize| {
        calls_of(|client| {
            let write = message(0xFFFF, REGION_WRITE, NO_REPLY, &access(BAR0, 0x0C, 2, &[0x80, 0]));
            client.send(&write.repeat(count));
            client.ping();
        })
    };
    let (few, many) = (posted(10), posted(10 + MESSAGES));
    assert!(many < few + MESSAGES / 2, "{few} system calls with 10 posted messages, {many} with {MESSAGES} more");
}

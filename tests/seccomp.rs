//! The system calls of each thread: every test runs one thread under a seccomp filter with exactly the calls that
//! `docs/embedding/threads.md` lists for it. Any other call kills the process.
#![cfg(target_arch = "x86_64")]

mod common;

use std::collections::BTreeMap;
use std::env;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use common::{Driver, device, recorder};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};
use vm_watchdog::i6300esb::{I6300esb, InterruptPin};
use vm_watchdog::{Action, Event, HandlerError, Policy, Stage, VmClock, Watchdog};

/// A vCPU thread, for all accesses of a guest.
const VCPU: &[i64] = &[libc::SYS_write, libc::SYS_futex];
/// A thread of the VMM that pauses, resumes, resets, saves, restores or changes a watchdog.
const CONTROL: &[i64] = &[libc::SYS_write, libc::SYS_futex];
/// The thread that serves a watchdog, or the event loop that does.
const SERVING: &[i64] = &[libc::SYS_epoll_pwait, libc::SYS_read, libc::SYS_timerfd_settime, libc::SYS_futex];
/// Building a watchdog with a clock that exists.
const BUILDING: &[i64] = &[libc::SYS_epoll_create1, libc::SYS_timerfd_create, libc::SYS_eventfd2, libc::SYS_epoll_ctl];
/// Dropping one. With debug assertions the standard library checks each descriptor that it closes.
const DROPPING: &[i64] = if cfg!(debug_assertions) { &[libc::SYS_close, libc::SYS_fcntl] } else { &[libc::SYS_close] };

/// What the allocator calls when it grows.
const ALLOCATOR: &[i64] = &[libc::SYS_brk, libc::SYS_mmap, libc::SYS_munmap, libc::SYS_mprotect, libc::SYS_madvise];
/// What Rust's standard library calls when a thread ends.
const THREAD_END: &[i64] =
    &[libc::SYS_sigaltstack, libc::SYS_munmap, libc::SYS_madvise, libc::SYS_rt_sigprocmask, libc::SYS_exit];

const LIMIT: Duration = Duration::from_secs(30);
/// In the environment of a process that runs one test under its filter.
const FILTERED: &str = "VM_WATCHDOG_FILTERED";

/// From here on, any other system call of this thread kills the process.
fn allow(lists: &[&[i64]]) -> io::Result<()> {
    let rules: BTreeMap<i64, Vec<_>> = lists.iter().copied().flatten().map(|call| (*call, Vec::new())).collect();
    let filter = SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, TargetArch::x86_64);
    let program: BpfProgram = filter.and_then(TryInto::try_into).map_err(io::Error::other)?;
    apply_filter(&program).map_err(io::Error::other)
}

/// Runs `work` in a process of its own, whose threads it filters, and gives how that ended.
fn in_a_process(test: &str, work: impl FnOnce()) -> Output {
    if env::var_os(FILTERED).is_some() {
        work();
        std::process::exit(0);
    }
    let arguments = [test, "--exact", "--nocapture"];
    Command::new(env::current_exe().unwrap()).args(arguments).env(FILTERED, "1").output().unwrap()
}

fn passes_its_filter(test: &str, work: impl FnOnce()) {
    let Output { status, stderr, .. } = in_a_process(test, work);
    let output = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{status}: `{FILTERED}=1 strace -f` shows the system call that killed it\n{output}");
}

/// Does `work` on a thread under a filter, which then waits for the process to end.
fn filtered(lists: &'static [&'static [i64]], work: impl FnOnce() + Send + 'static) {
    let (told, is_told): (SyncSender<()>, Receiver<()>) = sync_channel(1);
    thread::spawn(move || {
        allow(lists).unwrap();
        work();
        told.send(()).unwrap();
        loop {
            thread::park();
        }
    });
    is_told.recv().unwrap();
}

/// What a guest does to a watchdog.
fn be_a_guest(watchdog: &Watchdog<I6300esb>) {
    watchdog.start(0xF_FFFF);
    for units in [1000, 100, 20] {
        watchdog.set_preloads(units);
        watchdog.ping();
        watchdog.disable();
        watchdog.enable();
    }
    watchdog.read_config(0x68, &mut [0; 4]);
    watchdog.read_bar(0x08, &mut [0; 4]);
    for _ in 0..1000 {
        watchdog.ping();
    }
}

#[test]
fn a_vcpu_thread_needs_write_and_futex() {
    passes_its_filter("a_vcpu_thread_needs_write_and_futex", || {
        let (handler, events) = recorder();
        let builder = Watchdog::builder("wd", device(InterruptPin::IntA)).interrupt_line(|_| Ok(()));
        let watchdog = builder.build(handler).unwrap();
        let _thread = watchdog.spawn().unwrap();
        filtered(&[VCPU], move || be_a_guest(&watchdog));
        while events.recv_timeout(LIMIT).expect("the timeout of a guest that stops").stage != Stage::Timeout {}
    });
}

#[test]
fn a_thread_that_serves_a_watchdog_needs_little_more() {
    passes_its_filter("a_thread_that_serves_a_watchdog_needs_little_more", || {
        let main = thread::current();
        let policy = Policy::default().with_pretimeout(Action::InjectNmi);
        let handler = move |_: &Event| -> Result<(), HandlerError> {
            main.unpark();
            Err("tried again".into())
        };
        let builder = Watchdog::builder("wd", device(InterruptPin::IntA)).interrupt_line(|_| Ok(()));
        let watchdog = builder.policy(policy).build(handler).unwrap();
        let serving = watchdog.spawn_with(|| allow(&[SERVING, ALLOCATOR, THREAD_END])).unwrap();
        be_a_guest(&watchdog);
        while watchdog.stats().action_failures < 3 {
            thread::park_timeout(LIMIT);
        }
        drop(serving);
    });
}

#[test]
fn a_thread_that_controls_a_watchdog_needs_write_and_futex() {
    passes_its_filter("a_thread_that_controls_a_watchdog_needs_write_and_futex", || {
        let (handler, events) = recorder();
        let watchdog = Watchdog::builder("wd", device(InterruptPin::IntA)).interrupt_line(|_| Ok(()));
        let watchdog = watchdog.build(handler).unwrap();
        let _thread = watchdog.spawn().unwrap();
        be_a_guest(&watchdog);
        filtered(&[CONTROL, ALLOCATOR], move || {
            watchdog.clock().pause();
            assert!(watchdog.clock().quiesce(LIMIT));
            let state = watchdog.save();
            watchdog.reset();
            watchdog.restore(&state).unwrap();
            watchdog.set_policy(Policy::new(Action::Poweroff));
            watchdog.acknowledge();
            watchdog.clock().resume();
            watchdog.start(1);
        });
        while events.recv_timeout(LIMIT).expect("the timeout of a restored guest").action != Action::Poweroff {}
    });
}

#[test]
fn a_watchdog_is_built_and_dropped_with_five_system_calls() {
    passes_its_filter("a_watchdog_is_built_and_dropped_with_five_system_calls", || {
        let clock = VmClock::monotonic();
        let (built, is_built) = sync_channel(1);
        filtered(&[BUILDING, ALLOCATOR, &[libc::SYS_futex]], move || {
            let builder = Watchdog::builder("wd", device(InterruptPin::None)).clock(clock);
            built.send(builder.build(|_: &Event| Ok(())).unwrap()).unwrap();
        });
        let watchdog = is_built.recv().unwrap();
        filtered(&[DROPPING, ALLOCATOR, &[libc::SYS_futex]], move || drop(watchdog));
    });
}

#[test]
fn a_filter_kills_a_vcpu_thread_that_sets_a_timer() {
    let outcome = in_a_process("a_filter_kills_a_vcpu_thread_that_sets_a_timer", || {
        let (handler, _events) = recorder();
        let watchdog = Watchdog::builder("wd", device(InterruptPin::None)).build(handler).unwrap();
        filtered(&[VCPU], move || {
            be_a_guest(&watchdog);
            // The work of the serving thread.
            watchdog.on_readable();
        });
    });
    assert_eq!(outcome.status.signal(), Some(libc::SIGSYS), "the filters of this file have no effect");
}

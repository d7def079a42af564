//! Event loops: level-triggered and edge-triggered ones get every expiry, though the descriptor is never read.

mod common;
/// The example itself checks what its guest sees.
#[path = "../examples/minimal_vmm.rs"]
mod minimal_vmm;
/// The example itself waits for a hundred timeouts.
#[path = "../examples/tokio.rs"]
mod tokio;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use common::{Driver, device, sending};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_watchdog::i6300esb::{I6300esb, InterruptPin};
use vm_watchdog::{Action, Event, Policy, Stage, Watchdog};

/// The limit of a wait for another thread or process, also on a busy machine.
const LIMIT: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };
const EXPIRIES: u64 = 200;

fn watchdog() -> (Watchdog<I6300esb>, Receiver<Event>) {
    let (sender, events) = channel();
    let builder = Watchdog::builder("wd", device(InterruptPin::None)).policy(Policy::new(Action::InjectNmi));
    (builder.build(sending(sender)).unwrap(), events)
}

/// An edge-triggered epoll of one watchdog.
struct Edges(OwnedFd);

impl Edges {
    fn of(watchdog: &Watchdog<I6300esb>) -> Self {
        let epoll = epoll::create(CreateFlags::CLOEXEC).unwrap();
        epoll::add(&epoll, watchdog, EventData::new_u64(0), EventFlags::IN | EventFlags::ET).unwrap();
        Self(epoll)
    }

    fn wait(&self) {
        let mut ready = Vec::with_capacity(1);
        let count = epoll::wait(&self.0, spare_capacity(&mut ready), Some(&LIMIT)).unwrap();
        assert_eq!(count, 1, "no edge");
    }
}

fn wait_until_readable(descriptor: impl AsFd) {
    let mut ready = [PollFd::new(&descriptor, PollFlags::IN)];
    assert_eq!(poll(&mut ready, Some(&LIMIT)), Ok(1));
}

/// Serves the watchdog until the handler has received a timeout.
fn serve_until_timeout(watchdog: &Watchdog<I6300esb>, events: &Receiver<Event>, mut wait: impl FnMut()) {
    loop {
        wait();
        watchdog.on_readable();
        if events.try_iter().any(|event| event.stage == Stage::Timeout) {
            return;
        }
    }
}

#[test]
fn an_edge_triggered_loop_gets_each_timeout_of_a_guest_that_recovers_each_time() {
    let (watchdog, events) = watchdog();
    let edges = Edges::of(&watchdog);
    watchdog.start(1);
    for _ in 0..EXPIRIES {
        serve_until_timeout(&watchdog, &events, || edges.wait());
        watchdog.ping();
    }
    assert_eq!(watchdog.stats().expiries, EXPIRIES);
}

#[test]
fn an_edge_triggered_loop_gets_each_timeout_of_a_free_running_watchdog() {
    let (watchdog, events) = watchdog();
    let edges = Edges::of(&watchdog);
    watchdog.set_preloads(1);
    watchdog.write_config(0x68, &[0x06]);
    for _ in 0..EXPIRIES {
        serve_until_timeout(&watchdog, &events, || edges.wait());
    }
}

#[test]
fn an_edge_triggered_loop_gets_each_timeout_while_another_thread_feeds_and_rearms() {
    let (watchdog, events) = watchdog();
    let edges = Edges::of(&watchdog);
    let (told, is_told) = channel();
    thread::scope(|scope| {
        let watchdog = &watchdog;
        scope.spawn(move || {
            watchdog.start(1);
            for () in is_told {
                watchdog.ping();
                watchdog.disable();
                // Each of these sets the timer, which may have gone off before.
                watchdog.start(1);
                watchdog.set_policy(watchdog.policy());
            }
        });
        for _ in 0..EXPIRIES {
            serve_until_timeout(watchdog, &events, || edges.wait());
            told.send(()).unwrap();
        }
        drop(told);
    });
}

#[test]
fn a_timer_that_another_thread_rearms_after_the_edge_gives_an_edge_again() {
    let (watchdog, events) = watchdog();
    let edges = Edges::of(&watchdog);
    watchdog.start(1);
    // The loop has been woken, and has not served the watchdog yet.
    wait_until_readable(&edges.0);
    thread::scope(|scope| {
        scope.spawn(|| watchdog.set_policy(Policy::new(Action::Dump)));
    });
    serve_until_timeout(&watchdog, &events, || edges.wait());
    watchdog.ping();
    wait_until_readable(&edges.0);
    edges.wait();
    // The loop has received the edge, and another thread sets the timer before the loop serves it.
    watchdog.disable();
    watchdog.start(1);
    watchdog.on_readable();
    watchdog.clock().pause();
    watchdog.on_readable();
    watchdog.clock().resume();
    serve_until_timeout(&watchdog, &events, || edges.wait());
}

#[test]
fn a_watchdog_that_is_added_to_an_edge_triggered_loop_while_it_is_readable_is_served() {
    let (watchdog, events) = watchdog();
    watchdog.start(1);
    wait_until_readable(&watchdog);
    let edges = Edges::of(&watchdog);
    for _ in 0..3 {
        serve_until_timeout(&watchdog, &events, || edges.wait());
        watchdog.ping();
    }
}

#[test]
fn a_loop_that_polls_gets_each_timeout() {
    let (watchdog, events) = watchdog();
    watchdog.start(1);
    for _ in 0..EXPIRIES {
        serve_until_timeout(&watchdog, &events, || wait_until_readable(&watchdog));
        watchdog.ping();
    }
}

#[test]
fn the_watchdogs_own_thread_gets_each_timeout() {
    let (watchdog, events) = watchdog();
    let _thread = watchdog.spawn().unwrap();
    watchdog.start(1);
    let limit = Duration::from_secs(LIMIT.tv_sec as u64);
    for _ in 0..EXPIRIES {
        while events.recv_timeout(limit).expect("an event").stage != Stage::Timeout {}
        watchdog.ping();
    }
}

#[test]
fn an_async_fd_of_tokio_gets_each_timeout() {
    tokio::main().unwrap();
}

#[test]
fn the_loop_of_the_smallest_vmm_gets_its_timeout() {
    minimal_vmm::main().unwrap();
}

#[cfg(feature = "event-manager")]
#[test]
fn an_event_manager_gets_each_timeout() {
    use event_manager::{EventManager, SubscriberOps};
    use vm_watchdog::WatchdogSubscriber;

    let (watchdog, events) = watchdog();
    let mut manager = EventManager::<WatchdogSubscriber>::new().unwrap();
    manager.add_subscriber(WatchdogSubscriber::new(watchdog.clone()));
    watchdog.start(1);
    for _ in 0..EXPIRIES {
        while !events.try_iter().any(|event| event.stage == Stage::Timeout) {
            let served = manager.run_with_timeout(LIMIT.tv_sec as i32 * 1000).unwrap();
            assert_eq!(served, 1, "nothing to serve");
        }
        watchdog.ping();
    }
}

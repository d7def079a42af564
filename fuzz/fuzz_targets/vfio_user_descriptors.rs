//! A hostile VMM that sends descriptors: eventfds that it fills and makes blocking, sockets, its own end of the connection,
//! files and pipes, with any byte of a message, over a real Unix socket.
//!
//! The server must not panic, block, or keep anything: when the connection has ended, every descriptor and every thread of
//! it is gone. Only an eventfd is signalled, and each reply is a whole message for a command that asks for one.
//!
//! From the top of the repository, after `cargo install --locked cargo-fuzz`. New inputs go to `corpus`, which is not
//! in git:
//!
//! ```text
//! mkdir -p fuzz/corpus/vfio_user_descriptors
//! cargo +nightly fuzz run vfio_user_descriptors fuzz/corpus/vfio_user_descriptors fuzz/seeds/vfio_user_descriptors -- \
//!     -max_total_time=30
//! ```

#![no_main]

use std::fs::{self, File};
use std::io::{self, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::OFlags;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use vm_watchdog::i6300esb::{I6300esb, I6300esbConfig, InterruptPin};
use vm_watchdog::{Event, ManualClock, VmClock, Watchdog};
use vm_watchdog_cli::fuzzing::{Pauses, WatchdogDevice};
use vm_watchdog_vfio_user::{CloseReason, Connection, Disposer, Intx, MAX_MESSAGE, Msi, Session};

/// The most descriptors that a run has, so that it does not reach the limit of the process.
const MOST_DESCRIPTORS: usize = 300;
/// How long the threads that close descriptors and signal eventfds may take, on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);
const GREETING: [u8; 20] = [0, 0, 1, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
/// Commands of the protocol, with numbers that are none.
const COMMANDS: [u16; 12] = [1, 2, 3, 4, 5, 7, 8, 9, 10, 13, 16, 0xFFFF];
/// Flags of SET_IRQS: data none, bool or eventfd with action mask, unmask or trigger.
const IRQ_FLAGS: [u32; 7] = [0x21, 0x22, 0x24, 0x09, 0x11, 0x0C, 0x14];

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Descriptor {
    Eventfd,
    /// Its counter is full.
    FullEventfd,
    /// Its counter is full, and a write to it waits.
    BlockingEventfd,
    /// The one that was made last, once more.
    SameEventfd,
    Socket,
    OwnEnd,
    File,
    Pipe,
}

#[derive(Arbitrary, Debug)]
enum Step<'a> {
    /// Any bytes, and descriptors with the first of them.
    Bytes {
        bytes: &'a [u8],
        descriptors: Vec<Descriptor>,
    },
    /// A message in two pieces, with descriptors at the second one.
    Message {
        command: u8,
        flags: u8,
        body: &'a [u8],
        cut: u8,
        descriptors: Vec<Descriptor>,
    },
    /// A SET_IRQS with the descriptor at one of its bytes.
    SetIrqs {
        is_msi: bool,
        flags: u8,
        count: bool,
        descriptor: Option<Descriptor>,
        at: u8,
    },
    /// The guest arms the watchdog, and its first stage ends.
    Interrupt,
    /// The guest enables MSI.
    EnableMsi,
    /// The client takes O_NONBLOCK away from its eventfds.
    TakeFlagsAway,
    ReadEventfds,
}

#[derive(Arbitrary, Debug)]
struct Run<'a> {
    is_greeted: bool,
    steps: Vec<Step<'a>>,
}

static DISPOSER: LazyLock<Disposer> = LazyLock::new(|| Disposer::spawn().expect("a thread"));

struct Harness {
    client: UnixStream,
    connection: Connection,
    session: Session<WatchdogDevice>,
    watchdog: Watchdog<I6300esb>,
    time: ManualClock,
    eventfds: Vec<OwnedFd>,
    others: Vec<OwnedFd>,
    is_closed: Option<CloseReason>,
}

fuzz_target!(|run: Run<'_>| {
    LazyLock::force(&DISPOSER);
    let before = resources();
    let mut harness = Harness::new();
    if run.is_greeted {
        harness.send(&GREETING, &[]);
        assert_eq!(harness.is_closed, None);
    }
    for step in run.steps.iter().take(200) {
        harness.take(step);
    }
    harness.end(before);
});

/// How many descriptors and threads the process has.
fn resources() -> (usize, usize) {
    let count = |folder| fs::read_dir(folder).expect("/proc").count();
    (count("/proc/self/fd"), count("/proc/self/task"))
}

impl Harness {
    fn new() -> Self {
        let (client, server) = UnixStream::pair().expect("sockets");
        client.set_nonblocking(true).expect("a flag");
        let (intx, msi) = (Arc::<Intx>::default(), Arc::<Msi>::default());
        let device = I6300esb::new(I6300esbConfig::default().with_interrupt_pin(InterruptPin::IntA).with_msi());
        let (clock, time) = VmClock::manual();
        let (line, sender) = (intx.clone(), msi.clone());
        let watchdog = Watchdog::builder("fuzz", device)
            .clock(clock.clone())
            .interrupt_line(move |high: bool| line.set_level(high))
            .msi(move |_: vm_watchdog::MsiMessage| sender.send())
            .build(|_: &Event| Ok(()))
            .expect("a timer");
        let pauses = Arc::new(Pauses::of(clock));
        let device = WatchdogDevice {
            watchdog: watchdog.clone(),
            intx: Some(intx),
            msi: Some(msi),
            is_in_reach: Arc::default(),
            pauses,
        };
        let connection = Connection::new(server, DISPOSER.clone()).expect("a socket");
        let session = Session::new(device);
        let (eventfds, others) = (Vec::new(), Vec::new());
        Self { client, connection, session, watchdog, time, eventfds, others, is_closed: None }
    }

    fn take(&mut self, step: &Step<'_>) {
        match step {
            Step::Bytes { bytes, descriptors } => self.send(bytes, descriptors),
            Step::Message { command, flags, body, cut, descriptors } => {
                let command = COMMANDS[usize::from(*command) % COMMANDS.len()];
                let message = message(command, (*flags & 0x30).into(), body);
                let (first, second) = message.split_at(usize::from(*cut) % message.len());
                self.send(first, &[]);
                self.send(second, descriptors);
            }
            Step::SetIrqs { is_msi, flags, count, descriptor, at } => {
                let flags = IRQ_FLAGS[usize::from(*flags) % IRQ_FLAGS.len()];
                let words = [20, flags, u32::from(*is_msi), 0, u32::from(*count)];
                let message = message(8, 0, &words.map(u32::to_ne_bytes).concat());
                let (first, second) = message.split_at(usize::from(*at) % message.len());
                self.send(first, &[]);
                self.send(second, descriptor.as_slice());
            }
            Step::Interrupt => {
                for unlock in [0x80_u16, 0x86] {
                    self.watchdog.write_bar(0x0C, &unlock.to_le_bytes());
                }
                self.watchdog.write_bar(0, &1_u32.to_le_bytes());
                self.watchdog.write_config(0x60, &[4, 0]);
                self.watchdog.write_config(0x68, &[2]);
                self.time.advance(Duration::from_micros(2));
                self.watchdog.on_readable();
            }
            Step::EnableMsi => {
                for offset in (0x40..0x100).step_by(4) {
                    let mut id = [0; 4];
                    self.watchdog.read_config(offset, &mut id);
                    if id[0] == 5 {
                        self.watchdog.write_config(offset + 2, &[1, 0]);
                    }
                }
            }
            Step::TakeFlagsAway => {
                for eventfd in &self.eventfds {
                    rustix::fs::fcntl_setfl(eventfd, OFlags::empty()).expect("a flag");
                }
            }
            Step::ReadEventfds => self.read_eventfds(),
        }
        self.serve();
    }

    fn descriptor(&mut self, kind: Descriptor) -> Option<OwnedFd> {
        let eventfd_with = |count: u64, flags| {
            let new = eventfd(0, flags).expect("an eventfd");
            rustix::io::write(&new, &count.to_ne_bytes()).expect("it is empty");
            new
        };
        let full = u64::MAX - 1;
        let new = match kind {
            Descriptor::Eventfd => eventfd_with(0, EventfdFlags::NONBLOCK),
            Descriptor::FullEventfd => eventfd_with(full, EventfdFlags::NONBLOCK),
            Descriptor::BlockingEventfd => eventfd_with(full, EventfdFlags::empty()),
            Descriptor::SameEventfd => return self.eventfds.last().map(|last| last.try_clone().expect("a copy")),
            Descriptor::Socket => {
                let (one, other) = UnixStream::pair().expect("sockets");
                self.others.push(other.into());
                return Some(one.into());
            }
            Descriptor::OwnEnd => return Some(self.client.try_clone().expect("a copy").into()),
            Descriptor::File => return Some(File::open("/dev/null").expect("it is there").into()),
            Descriptor::Pipe => {
                let (reader, writer) = io::pipe().expect("a pipe");
                self.others.push(reader.into());
                return Some(writer.into());
            }
        };
        let copy = new.try_clone().expect("a copy");
        self.eventfds.push(new);
        Some(copy)
    }

    /// Sends bytes with descriptors, and lets the server answer.
    fn send(&mut self, mut bytes: &[u8], kinds: &[Descriptor]) {
        if self.is_closed.is_some() {
            return;
        }
        let room = MOST_DESCRIPTORS.saturating_sub(self.eventfds.len() + self.others.len()).min(253);
        let descriptors: Vec<OwnedFd> = kinds.iter().take(room).filter_map(|kind| self.descriptor(*kind)).collect();
        let mut borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
        while !bytes.is_empty() && self.is_closed.is_none() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !borrowed.is_empty() {
                assert!(control.push(SendAncillaryMessage::ScmRights(&borrowed)));
            }
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match rustix::net::sendmsg(&self.client, &[IoSlice::new(bytes)], &mut control, flags) {
                Ok(sent) => {
                    bytes = &bytes[sent..];
                    borrowed.clear();
                }
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::TOOMANYREFS) => {}
                Err(errno) => panic!("{errno}"),
            }
            self.serve();
        }
    }

    /// Lets the server answer all that there is, and reads its replies.
    fn serve(&mut self) {
        let deadline = Instant::now() + LIMIT;
        while self.is_closed.is_none() {
            assert!(Instant::now() < deadline, "the server does not come to an end");
            let (session, connection) = (&mut self.session, &mut self.connection);
            self.is_closed = connection.serve(|message, descriptors, reply| {
                let next = session.answer(message, descriptors, reply);
                let wants_reply = message.header.flags & 0x10 == 0;
                assert_eq!(wants_reply, !reply.is_empty());
                assert!(reply.len() <= MAX_MESSAGE);
                next
            });
            let mut replies = [0; 64 << 10];
            // What the replies are is checked by the target vfio_user.
            while self.client.read(&mut replies).is_ok_and(|count| count > 0) {}
            if self.connection.waits_for_disposal() {
                thread::sleep(Duration::from_millis(1));
            } else if !self.connection.has_something_to_receive() {
                break;
            }
        }
    }

    fn read_eventfds(&self) {
        for eventfd in &self.eventfds {
            rustix::fs::fcntl_setfl(eventfd, OFlags::NONBLOCK).expect("a flag");
            let _ = rustix::io::read(eventfd, &mut [0; 8]);
        }
    }

    /// The client goes. What waits for its eventfds ends when they are read, and nothing of it is left.
    fn end(self, before: (usize, usize)) {
        let Self { client, connection, session, watchdog, time, eventfds, others, .. } = self;
        drop((client, connection, session));
        assert!(!watchdog.stats().armed);
        drop((watchdog, time, others));
        let deadline = Instant::now() + LIMIT;
        let left = eventfds.len();
        loop {
            for eventfd in &eventfds {
                rustix::fs::fcntl_setfl(eventfd, OFlags::NONBLOCK).expect("a flag");
                let _ = rustix::io::read(eventfd, &mut [0; 8]);
            }
            let now = resources();
            if (now.0 - left, now.1) == before {
                break;
            }
            assert!(Instant::now() < deadline, "{before:?} before, {now:?} now, and {left} eventfds");
            thread::sleep(Duration::from_micros(50));
        }
    }
}

fn message(command: u16, flags: u32, body: &[u8]) -> Vec<u8> {
    let size = (16 + body.len()) as u32;
    let words = [size, flags, 0].map(u32::to_ne_bytes).concat();
    [&7_u16.to_ne_bytes()[..], &command.to_ne_bytes(), &words, body].concat()
}

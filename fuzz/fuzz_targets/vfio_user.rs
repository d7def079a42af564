//! A hostile VMM: an arbitrary byte stream, in arbitrary chunks, for the vfio-user session that
//! `vm-watchdog serve` uses.
//!
//! The server must not panic, hang or grow. Every reply must be one whole message of bounded size, for a command that
//! asks for a reply. An access that starts in a region must succeed. Whatever one client sends, the next client must
//! find the device as after power-on.
//!
//! From the top of the repository, after `cargo install --locked cargo-fuzz`. New inputs go to `corpus`, which is not
//! in git:
//!
//! ```text
//! mkdir -p fuzz/corpus/vfio_user
//! cargo +nightly fuzz run vfio_user fuzz/corpus/vfio_user fuzz/seeds/vfio_user -- -max_total_time=30 -timeout=5
//! ```

#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use vm_watchdog::i6300esb::{I6300esb, I6300esbConfig, InterruptPin};
use vm_watchdog::{Event, VmClock, Watchdog};
use vm_watchdog_cli::fuzzing::{Pauses, WatchdogDevice};
use vm_watchdog_vfio_user::{Descriptors, Framer, Header, Intx, MAX_MESSAGE, Message, Msi, Next, Session};

const REGION_READ: u16 = 9;
const REGION_WRITE: u16 = 10;
const NO_REPLY: u32 = 0x10;
const ERROR: u32 = 0x20;

fuzz_target!(|input: &[u8]| {
    let [choices, piece, stream @ ..] = input else {
        return;
    };
    let (has_pin, is_greeted, has_msi) = (choices & 1 != 0, choices & 2 != 0, choices & 4 != 0);
    let intx = has_pin.then(Arc::<Intx>::default);
    let msi = has_msi.then(Arc::<Msi>::default);
    let interrupt_pin = if has_pin { InterruptPin::IntA } else { InterruptPin::None };
    let config = I6300esbConfig::default().with_interrupt_pin(interrupt_pin);
    let device = I6300esb::new(if has_msi { config.with_msi() } else { config });
    let (clock, _time) = VmClock::manual();
    let watchdog = Watchdog::builder("fuzz", device).clock(clock.clone()).build(|_: &Event| Ok(())).expect("a timer");

    let (is_in_reach, pauses) = (Arc::default(), Arc::new(Pauses::of(clock.clone())));
    let device = WatchdogDevice { watchdog: watchdog.clone(), intx, msi, is_in_reach, pauses };
    let mut session = Session::new(device);
    let greeting = [[20u32, 0, 0, 0].map(u32::to_ne_bytes).concat(), vec![0; 4]].concat();
    if is_greeted {
        let mut hello = vec![0; 2];
        hello.extend(1u16.to_ne_bytes());
        hello.extend(greeting);
        assert_eq!(converse(&mut session, &hello, 255, false), Next::Continue);
    }
    let _ = converse(&mut session, stream, (*piece).max(1), is_greeted);
    drop(session);

    assert!(!watchdog.stats().armed);
    assert!(!clock.is_paused(), "a client that has stopped the device has gone");
    let mut id = [0; 4];
    watchdog.read_config(0, &mut id);
    assert_eq!(id, [0x86, 0x80, 0xAB, 0x25]);
    let mut preload = [0; 4];
    watchdog.read_bar(0, &mut preload);
    assert_eq!(preload, [0xFF, 0xFF, 0x0F, 0]);
});

/// Sends all of `stream`, until the server closes the connection.
fn converse(session: &mut Session<WatchdogDevice>, mut stream: &[u8], piece: u8, is_greeted: bool) -> Next {
    let mut framer = Framer::new();
    let mut reply = Vec::new();
    while !stream.is_empty() {
        let space = framer.space();
        let count = space.len().min(piece.into()).min(stream.len());
        assert_ne!(count, 0, "a framer has space left, or a message");
        space[..count].copy_from_slice(&stream[..count]);
        framer.filled(count);
        stream = &stream[count..];
        while let Some(message) = framer.take() {
            let next = session.answer(message, Descriptors::default(), &mut reply);
            check(&message, &reply, is_greeted);
            if next == Next::Close {
                return next;
            }
            assert!(!message.is_last);
        }
    }
    Next::Continue
}

fn check(message: &Message<'_>, reply: &[u8], is_greeted: bool) {
    let Message { header, body, .. } = message;
    if header.flags & NO_REPLY != 0 {
        assert!(reply.is_empty());
        return;
    }
    assert!((Header::SIZE..=MAX_MESSAGE).contains(&reply.len()));
    let word = |at: usize| u32::from_ne_bytes(reply[at..at + 4].try_into().expect("four bytes"));
    assert_eq!(word(4) as usize, reply.len());
    assert_eq!(word(0), u32::from(header.id) | u32::from(header.command) << 16);
    let is_error = word(8) & ERROR != 0;
    assert_eq!(is_error, word(12) != 0);
    assert!(!is_error || reply.len() == Header::SIZE);
    if !matches!(header.command, REGION_READ | REGION_WRITE) || header.flags != 0 || !is_greeted {
        return;
    }
    if let Some(body @ [_, _, _, _, _, _, _, _, 0 | 7, 0, 0, 0, _, _, _, _, ..]) = body {
        let offset = u64::from_ne_bytes(body[..8].try_into().expect("eight bytes"));
        let count = u32::from_ne_bytes(body[12..16].try_into().expect("four bytes")) as usize;
        let length = if header.command == REGION_READ { 0 } else { count };
        let can_be_a_guests = offset < 16 && (1..=8).contains(&count) && body.len() == 16 + length;
        assert!(!(can_be_a_guests && is_error));
    }
}

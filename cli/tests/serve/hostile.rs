//! Broken and hostile clients: each gets an error or is disconnected, and the next one is served.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd};
use rustix::fs::OFlags;

use crate::client::*;
use crate::server::{Builder, Server, TIMEOUT};

const DATA_NONE: u32 = 1;
const DATA_EVENTFD: u32 = 4;
const UNMASK: u32 = 16;
const TRIGGER: u32 = 32;

/// How an exchange ends.
#[derive(Clone, Copy, Debug)]
enum End {
    /// An error, and the session continues.
    Error(u32),
    /// An error, and then the server closes.
    ErrorAndClose(u32),
    /// The server closes without a reply.
    Close,
    /// No reply, and the session continues.
    Silence,
}
use End::{Close, Error, ErrorAndClose, Silence};

/// What a client sends after VERSION, or instead of it.
struct Exchange {
    name: &'static str,
    negotiated: bool,
    bytes: Vec<u8>,
    /// How many descriptors it carries.
    fds: usize,
    end: End,
}

/// What a client sends first.
fn first(name: &'static str, bytes: Vec<u8>, end: End) -> Exchange {
    Exchange { name, negotiated: false, bytes, fds: 0, end }
}

/// A command that a client sends after VERSION.
fn then(name: &'static str, command: u16, body: Vec<u8>, end: End) -> Exchange {
    raw(name, message(7, command, 0, &body), end)
}

/// Bytes that a client sends after VERSION.
fn raw(name: &'static str, bytes: Vec<u8>, end: End) -> Exchange {
    Exchange { name, negotiated: true, bytes, fds: 0, end }
}

fn with_fds(fds: usize, exchange: Exchange) -> Exchange {
    Exchange { fds, ..exchange }
}

fn version(data: &[u8]) -> Vec<u8> {
    message(7, VERSION, 0, &[b"\0\0\0\0", data].concat())
}

fn set_irqs(argsz: u32, flags: u32, index: u32, start: u32, count: u32) -> Vec<u8> {
    words(&[argsz, flags, index, start, count])
}

fn exchanges() -> Vec<Exchange> {
    let map = |flags: u32, address: u64, size: u64| {
        [words(&[32, flags]), [0, address, size].map(u64::to_ne_bytes).concat()].concat()
    };
    vec![
        // The start of a session.
        first("a size of 0", with_size(7, VERSION, 0, 0, &[]), ErrorAndClose(EINVAL)),
        first("a size of 15", with_size(7, VERSION, 15, 0, &[]), ErrorAndClose(EINVAL)),
        first("a size of 2^32-1", with_size(7, VERSION, u32::MAX, 0, &[]), ErrorAndClose(EINVAL)),
        first("VERSION of 16 bytes", message(7, VERSION, 0, &[]), ErrorAndClose(EINVAL)),
        first("VERSION of 19 bytes", message(7, VERSION, 0, &[0, 0, 0]), ErrorAndClose(EINVAL)),
        first("capabilities without NUL", version(b"{\"capabilities\":{}}"), ErrorAndClose(EINVAL)),
        first("capabilities with a NUL within", version(b"{\"capa\0bilities\":{}}\0"), ErrorAndClose(EINVAL)),
        first("capabilities that are no JSON", version(b"hello\0"), ErrorAndClose(EINVAL)),
        first("capabilities that are no UTF-8", version(b"{\"\xFF\":1}\0"), ErrorAndClose(EINVAL)),
        first("capabilities that are no object", version(b"{\"capabilities\":[]}\0"), ErrorAndClose(EINVAL)),
        first(
            "a negative capability",
            version(b"{\"capabilities\":{\"max_data_xfer_size\":-1}}\0"),
            ErrorAndClose(EINVAL),
        ),
        first("JSON of two thousand levels", version(&[&[b'['; 2000][..], b"\0"].concat()), ErrorAndClose(EINVAL)),
        first("capabilities of 4,000 bytes", version(&[&[b' '; 4000][..], b"{}\0"].concat()), ErrorAndClose(EMSGSIZE)),
        first(
            "capabilities of 100,000 bytes",
            version(&[&[b' '; 100_000][..], b"{}\0"].concat()),
            ErrorAndClose(EMSGSIZE),
        ),
        first("another major version", message(7, VERSION, 0, &[1, 0, 0, 0]), ErrorAndClose(EPROTONOSUPPORT)),
        first("a command before VERSION", message(7, GET_INFO, 0, &words(&[16, 0, 0, 0])), ErrorAndClose(EINVAL)),
        first("a reply instead of VERSION", message(7, VERSION, REPLY, PROPOSAL), ErrorAndClose(EINVAL)),
        first("VERSION that is an error", message(7, VERSION, ERROR, PROPOSAL), ErrorAndClose(EINVAL)),
        first("a bad VERSION without reply", message(7, VERSION, NO_REPLY, &[]), Close),
        with_fds(1, first("VERSION with a descriptor", message(7, VERSION, 0, PROPOSAL), ErrorAndClose(EINVAL))),
        // Framing.
        raw("a size of 0 later", with_size(7, RESET, 0, 0, &[]), ErrorAndClose(EINVAL)),
        raw("a size of 2^32-1 later", with_size(7, REGION_WRITE, u32::MAX, 0, &[0; 64]), ErrorAndClose(EINVAL)),
        raw("a reply", message(7, RESET, REPLY, &[]), ErrorAndClose(EINVAL)),
        raw("a type that is none", message(7, RESET, 0xF, &[]), ErrorAndClose(EINVAL)),
        raw("a command that is an error", message(7, RESET, ERROR, &[]), Error(EINVAL)),
        raw("a flag that is none", message(7, RESET, 1 << 31, &[]), Error(EINVAL)),
        raw("a bad message without reply", message(7, GET_INFO, NO_REPLY, &[1]), Silence),
        raw("a broken stream without reply", with_size(7, RESET, 3, NO_REPLY, &[]), Close),
        then("a message of a megabyte", RESET, vec![0; 1 << 20], Error(EMSGSIZE)),
        then("VERSION again", VERSION, PROPOSAL.to_vec(), Error(EINVAL)),
        // Commands.
        then("command 0", 0, vec![], Error(EOPNOTSUPP)),
        then("command 65535", 0xFFFF, vec![0; 100], Error(EOPNOTSUPP)),
        then("GET_REGION_IO_FDS", GET_REGION_IO_FDS, words(&[16, 0, 0, 0]), Error(EOPNOTSUPP)),
        then("a command of the server's", DMA_READ, words(&[0, 0, 4, 0]), Error(EOPNOTSUPP)),
        then("a capability that was not offered", WRITE_MULTI, words(&[1, 0]), Error(EOPNOTSUPP)),
        then("GET_INFO without body", GET_INFO, vec![], Error(EINVAL)),
        then("GET_INFO with too much", GET_INFO, words(&[16, 0, 0, 0, 0]), Error(EINVAL)),
        then("GET_INFO with room for nothing", GET_INFO, words(&[15, 0, 0, 0]), Error(EINVAL)),
        then("GET_INFO with a flag", GET_INFO, words(&[16, 1, 0, 0]), Error(EINVAL)),
        then("GET_REGION_INFO of region 9", GET_REGION_INFO, words(&[32, 0, 9, 0, 0, 0, 0, 0]), Error(EINVAL)),
        then("GET_REGION_INFO of the last", GET_REGION_INFO, words(&[32, 0, u32::MAX, 0, 0, 0, 0, 0]), Error(EINVAL)),
        then("GET_REGION_INFO cut short", GET_REGION_INFO, words(&[32, 0, 0]), Error(EINVAL)),
        then("GET_IRQ_INFO of interrupt 5", GET_IRQ_INFO, words(&[16, 0, 5, 0]), Error(EINVAL)),
        then("RESET with a body", RESET, vec![0], Error(EINVAL)),
        // Accesses.
        then("a read of region 1", REGION_READ, access(1, 0, 4, &[]), Error(EINVAL)),
        then("a read of region 2^32-1", REGION_READ, access(u32::MAX, 0, 4, &[]), Error(EINVAL)),
        then("a read past the BAR", REGION_READ, access(BAR0, 16, 4, &[]), Error(EINVAL)),
        then("a read at the end of all", REGION_READ, access(CONFIG, u64::MAX, 4, &[]), Error(EINVAL)),
        then("a read of nothing", REGION_READ, access(BAR0, 0, 0, &[]), Error(EINVAL)),
        then("a read of 4097 bytes", REGION_READ, access(CONFIG, 0, 4097, &[]), Error(EINVAL)),
        then("a read of 2^32-1 bytes", REGION_READ, access(CONFIG, 0, u32::MAX, &[]), Error(EINVAL)),
        then("a read with data", REGION_READ, access(BAR0, 0, 4, &[0; 4]), Error(EINVAL)),
        then("a read cut short", REGION_READ, vec![0; 15], Error(EINVAL)),
        then("a write of more than there is", REGION_WRITE, access(BAR0, 0, 4, &[0; 3]), Error(EINVAL)),
        then("a write of less than there is", REGION_WRITE, access(BAR0, 0, 4, &[0; 5]), Error(EINVAL)),
        then("a write of 2^32-1 bytes", REGION_WRITE, access(BAR0, 0, u32::MAX, &[0; 4]), Error(EINVAL)),
        then("a write of 4097 bytes", REGION_WRITE, access(CONFIG, 0, 4097, &[0; 4097]), Error(EMSGSIZE)),
        then("a write past the BAR", REGION_WRITE, access(BAR0, 1 << 40, 4, &[0; 4]), Error(EINVAL)),
        then("a write cut short", REGION_WRITE, vec![0; 8], Error(EINVAL)),
        with_fds(1, then("a write with a descriptor", REGION_WRITE, access(BAR0, 0, 4, &[0; 4]), Error(EINVAL))),
        // DMA.
        then("DMA_MAP cut short", DMA_MAP, vec![0; 31], Error(EINVAL)),
        then("DMA_MAP of nothing", DMA_MAP, map(3, 0, 0), Error(EINVAL)),
        then("DMA_MAP around the end of all", DMA_MAP, map(3, u64::MAX, 2), Error(EINVAL)),
        then("DMA_MAP with a flag that is none", DMA_MAP, map(1 << 5, 0, 4096), Error(EINVAL)),
        with_fds(2, then("DMA_MAP with two descriptors", DMA_MAP, map(3, 0, 4096), Error(EINVAL))),
        with_fds(60, then("DMA_MAP with sixty descriptors", DMA_MAP, map(3, 0, 4096), Error(EINVAL))),
        then("DMA_UNMAP cut short", DMA_UNMAP, vec![0; 23], Error(EINVAL)),
        then("DMA_UNMAP that asks for dirty pages", DMA_UNMAP, words(&[24, 1, 0, 0, 0, 0]), Error(EINVAL)),
        then("DMA_UNMAP with an unknown flag", DMA_UNMAP, words(&[24, 4, 0, 0, 0, 0]), Error(EINVAL)),
        // Interrupts.
        then("SET_IRQS cut short", SET_IRQS, vec![0; 19], Error(EINVAL)),
        then("SET_IRQS of interrupt 5", SET_IRQS, set_irqs(20, DATA_NONE | TRIGGER, 5, 0, 0), Error(EINVAL)),
        then("SET_IRQS of MSI", SET_IRQS, set_irqs(20, DATA_EVENTFD | TRIGGER, 1, 0, 1), Error(EINVAL)),
        then("SET_IRQS of a second INTx", SET_IRQS, set_irqs(20, DATA_NONE | TRIGGER, 0, 1, 1), Error(EINVAL)),
        then("SET_IRQS of 2^32-1", SET_IRQS, set_irqs(20, DATA_EVENTFD | TRIGGER, 0, 0, u32::MAX), Error(EINVAL)),
        then("SET_IRQS with a small argsz", SET_IRQS, set_irqs(19, DATA_NONE | TRIGGER, 0, 0, 1), Error(EINVAL)),
        then("SET_IRQS that does nothing", SET_IRQS, set_irqs(20, 0, 0, 0, 1), Error(EINVAL)),
        then("SET_IRQS that does everything", SET_IRQS, set_irqs(20, 0x3F, 0, 0, 1), Error(EINVAL)),
        then("SET_IRQS with a flag that is none", SET_IRQS, set_irqs(20, 1 << 9 | TRIGGER, 0, 0, 1), Error(EINVAL)),
        with_fds(
            1,
            then(
                "SET_IRQS with a descriptor that is no eventfd",
                SET_IRQS,
                set_irqs(20, DATA_EVENTFD | TRIGGER, 0, 0, 1),
                Error(EINVAL),
            ),
        ),
        with_fds(2, then("SET_IRQS with two", SET_IRQS, set_irqs(20, DATA_EVENTFD | TRIGGER, 0, 0, 1), Error(EINVAL))),
        with_fds(
            1,
            then("SET_IRQS with one for nothing", SET_IRQS, set_irqs(20, DATA_NONE | UNMASK, 0, 0, 1), Error(EINVAL)),
        ),
        then(
            "SET_IRQS with an eventfd for unmasking",
            SET_IRQS,
            set_irqs(20, DATA_EVENTFD | UNMASK, 0, 0, 1),
            Error(EOPNOTSUPP),
        ),
    ]
}

/// Sends the exchange in pieces and checks how it ends.
fn hold(server: &Server, exchange: &Exchange, piece: usize) {
    let mut client = Client::new(server.stream());
    if exchange.negotiated {
        client.negotiate();
    }
    let no_eventfd = tempfile::tempfile().unwrap();
    let fds = vec![no_eventfd.as_fd(); exchange.fds];
    for (index, bytes) in exchange.bytes.chunks(piece).enumerate() {
        let sent = match index {
            0 if !fds.is_empty() => {
                client.send_with_fds(bytes, &fds);
                Ok(())
            }
            _ => client.stream.write_all(bytes),
        };
        if sent.is_err() {
            // The server has closed the connection.
            break;
        }
    }
    let error = |reply: Option<Reply>, errno: u32| {
        let reply = reply.expect("a reply");
        assert_eq!((reply.id, reply.flags, reply.error), (7, REPLY | ERROR, errno));
        assert!(reply.body.is_empty());
    };
    match exchange.end {
        Error(errno) => {
            error(client.receive(), errno);
            assert_eq!(client.read(CONFIG, 0, 2), Ok(vec![0x86, 0x80]), "the session continues");
        }
        ErrorAndClose(errno) => {
            error(client.receive(), errno);
            assert_eq!(client.receive(), None);
        }
        Close => assert_eq!(client.receive(), None),
        Silence => assert_eq!(client.read(CONFIG, 0, 2), Ok(vec![0x86, 0x80])),
    }
}

#[test]
fn every_broken_message_is_an_error_or_a_close_and_the_next_client_is_served() {
    let mut server = Builder::new().options("--socket s --watchdog i6300esb,action=none,interrupt=intx").start();
    let exchanges = exchanges();
    assert!(exchanges.len() >= 25);
    for piece in [usize::MAX, 1000, 16, 5] {
        for exchange in &exchanges {
            println!("{}, in pieces of {piece}", exchange.name);
            if exchange.bytes.len() / piece > 10_000 {
                continue;
            }
            hold(&server, exchange, piece);
            let mut next = server.client();
            assert_eq!(next.read(CONFIG, 0, 2), Ok(vec![0x86, 0x80]));
        }
    }
    assert!(server.is_running());
    assert!(peak_memory(&server) < 64 << 20, "{} bytes", peak_memory(&server));
}

/// The peak memory of the process.
fn peak_memory(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn a_client_that_disconnects_within_a_message_leaves_nothing_behind() {
    let server = Server::harmless();
    let whole = [message(1, VERSION, 0, PROPOSAL), message(2, REGION_WRITE, 0, &access(BAR0, 0, 4, &[0; 4]))].concat();
    for length in 0..whole.len() {
        let mut stream = server.stream();
        stream.write_all(&whole[..length]).unwrap();
        if length.is_multiple_of(2) {
            drop(stream);
        } else {
            stream.shutdown(Shutdown::Write).unwrap();
            // It may have replied before it closes.
            stream.read_to_end(&mut Vec::new()).unwrap();
        }
    }
    server.client();
}

#[test]
fn a_reply_is_sent_in_one_piece() {
    let server = Server::harmless();
    let mut client = server.client();
    let request = access(CONFIG, 0, 4096, &[]);
    for id in 0..100 {
        client.send(&message(id, REGION_READ, 0, &request));
        // When the header has arrived, the body has, too: QEMU reports anything less as a short header.
        let mut bytes = [0; 8192];
        assert_eq!(client.stream.read(&mut bytes).unwrap(), 16 + 16 + 4096, "reply {id}");
    }
}

/// Sends reads without ever reading a reply, until the server takes no more.
fn never_read(stream: &mut UnixStream) -> usize {
    stream.set_nonblocking(true).unwrap();
    let request = message(1, REGION_READ, 0, &access(CONFIG, 0, 4096, &[]));
    stream.set_nonblocking(false).unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut sent = 0;
    while stream.write_all(&request).is_ok() {
        sent += 1;
        assert!(sent < 1_000_000, "the server buffers without limit");
    }
    sent
}

#[test]
fn a_client_that_never_reads_delays_neither_other_sockets_nor_the_end() {
    let options = "--watchdog i6300esb,action=none --socket s --socket t";
    let mut server = Builder::new().options(options).start();
    let mut greedy = server.client();
    greedy.arm(30);
    never_read(&mut greedy.stream);
    // Its own watchdog still works, too.
    server.expect_where("expiry", |event| event["id"] == "watchdog0" && event["stage"] == "timeout");

    let mut other = server.client_of("t");
    other.arm(30);
    server.expect_where("expiry", |event| event["id"] == "watchdog1" && event["stage"] == "timeout");
    assert!(server.signal(rustix::process::Signal::TERM).success());
    drop(greedy);
}

#[test]
fn a_client_that_reads_late_gets_every_reply() {
    let server = Server::harmless();
    let mut client = server.client();
    let mut sender = client.stream.try_clone().unwrap();
    let requests = 2_000;
    let sending = std::thread::spawn(move || {
        for id in 0..requests {
            sender.write_all(&message(id, REGION_READ, 0, &access(CONFIG, 0, 4096, &[]))).unwrap();
        }
    });
    std::thread::sleep(Duration::from_millis(300));
    for id in 0..requests {
        let reply = client.receive().expect("a reply");
        assert_eq!((reply.id, reply.flags, reply.body.len()), (id, REPLY, 16 + 4096));
    }
    sending.join().unwrap();
}

#[test]
fn a_full_eventfd_does_not_block_the_server() {
    let server = Builder::new().options("--socket s --watchdog i6300esb,action=none,interrupt=intx").start();
    let mut client = server.client();
    // Blocking, and full: a write to it would wait for ever.
    let full: OwnedFd = eventfd(0, EventfdFlags::empty()).unwrap();
    rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    client.ask_with_fds(SET_IRQS, &set_irqs(20, DATA_EVENTFD | TRIGGER, 0, 0, 1), &[full.as_fd()]).unwrap();
    client.ask(SET_IRQS, &set_irqs(20, DATA_NONE | TRIGGER, 0, 0, 1)).unwrap();
    client.arm(1);
    server.expect_where("expiry", |event| event["stage"] == "timeout");
    assert!(client.timed_out());
}

#[test]
fn a_full_eventfd_made_blocking_again_does_not_block_the_server() {
    let server = Builder::new().options("--socket s --watchdog i6300esb,action=none,interrupt=intx").start();
    let mut client = server.client();
    let full: OwnedFd = eventfd(0, EventfdFlags::empty()).unwrap();
    client.ask_with_fds(SET_IRQS, &set_irqs(20, DATA_EVENTFD | TRIGGER, 0, 0, 1), &[full.as_fd()]).unwrap();
    // The flags belong to the open file, which the server and the test share.
    rustix::fs::fcntl_setfl(&full, OFlags::empty()).unwrap();
    rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    client.ask(SET_IRQS, &set_irqs(20, DATA_NONE | TRIGGER, 0, 0, 1)).unwrap();
    client.arm(1);
    server.expect_where("expiry", |event| event["stage"] == "timeout");
    assert!(client.timed_out());
}

#[test]
fn an_eventfd_over_the_descriptor_limit_is_an_error() {
    let server = Builder::new().options("--socket s --watchdog i6300esb,action=none,interrupt=intx").start();
    let mut client = server.client();
    let ours: OwnedFd = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    let mut offer = || client.ask_with_fds(SET_IRQS, &set_irqs(20, DATA_EVENTFD | TRIGGER, 0, 0, 1), &[ours.as_fd()]);
    server.limit_files(Some(4));
    assert_eq!(offer(), Err(EMFILE));
    server.limit_files(None);
    assert_eq!(offer(), Ok(vec![]));
    client.ask(SET_IRQS, &set_irqs(20, DATA_NONE | TRIGGER, 0, 0, 1)).unwrap();
    let timeout = Timespec { tv_sec: TIMEOUT.as_secs() as i64, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut [PollFd::new(&ours, PollFlags::IN)], Some(&timeout)), Ok(1), "no signal");
}

#[test]
fn descriptors_that_arrive_with_every_byte_are_closed() {
    let server = Server::harmless();
    let count = || std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count();
    let mut client = server.client();
    let before = count();
    let (pipe, _other) = UnixStream::pair().unwrap();
    for byte in message(7, RESET, 0, &[]).chunks(1).cycle().take(16 * 50) {
        client.send_with_fds(byte, &[pipe.as_fd(); 30]);
    }
    for _ in 0..50 {
        assert_eq!(client.receive().unwrap().error, EINVAL);
    }
    // Another thread closes them.
    let deadline = Instant::now() + TIMEOUT;
    while count() != before {
        assert!(Instant::now() < deadline, "{} descriptors, before {before}", count());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn messages_may_be_split_anywhere() {
    let server = Server::harmless();
    let mut client = server.client();
    let request = message(9, REGION_READ, 0, &access(CONFIG, 0, 2, &[]));
    for at in 1..request.len() {
        client.send(&request[..at]);
        std::thread::sleep(Duration::from_millis(2));
        client.send(&request[at..]);
        assert_eq!(client.receive().unwrap().body[16..], [0x86, 0x80]);
    }
}

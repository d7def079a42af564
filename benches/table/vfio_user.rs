//! A guest's access over vfio-user, as QEMU's request and its reply, beside a request and a reply of the same sizes
//! between two processes that do nothing else.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::measure::{Row, in_turns, print};

/// The argument by which this program answers requests instead of measuring.
pub const ECHO: &str = "--echo";

const VERSION: u16 = 1;
const REGION_READ: u16 = 9;
const REGION_WRITE: u16 = 10;
const CONFIG: u32 = 7;
const NO_REPLY: u32 = 0x10;
/// A write of two bytes: header, region access, data; and its reply.
const REQUEST: usize = 34;
const REPLY: usize = 32;

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Answers requests of one size with replies of another, until the other side leaves.
pub fn echo(socket: &Path) {
    let (mut stream, _) = UnixListener::bind(socket).expect("a socket").accept().expect("a client");
    while stream.read_exact(&mut [0; REQUEST]).is_ok() && stream.write_all(&[0; REPLY]).is_ok() {}
}

fn connect(mut command: Command, socket: &Path) -> (Process, UnixStream) {
    let started = Instant::now();
    let process = Process(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a process"));
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return (process, stream),
            Err(_) if started.elapsed() < Duration::from_secs(10) => sleep(Duration::from_micros(200)),
            Err(error) => panic!("{}: {error}", socket.display()),
        }
    }
}

fn message(command: u16, flags: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = [1_u16, command].map(u16::to_ne_bytes).concat();
    bytes.extend([16 + body.len() as u32, flags, 0].map(u32::to_ne_bytes).concat());
    bytes.extend(body);
    bytes
}

fn access(region: u32, offset: u64, count: u32, data: &[u8]) -> Vec<u8> {
    [&offset.to_ne_bytes()[..], &region.to_ne_bytes(), &count.to_ne_bytes(), data].concat()
}

fn ask(stream: &mut UnixStream, request: &[u8], reply: usize) {
    stream.write_all(request).expect("the server");
    stream.read_exact(&mut vec![0; reply]).expect("a reply");
}

/// A connection to the server, with the watchdog armed.
fn armed(stream: &mut UnixStream) {
    stream.write_all(&message(VERSION, 0, b"\0\0\0\0{}\0")).expect("the server");
    let mut header = [0; 16];
    stream.read_exact(&mut header).expect("a reply");
    let size = u32::from_ne_bytes(header[4..8].try_into().expect("four bytes")) as usize;
    stream.read_exact(&mut vec![0; size - header.len()]).expect("a reply");
    ask(stream, &message(REGION_WRITE, 0, &access(CONFIG, 0x68, 1, &[0x02])), REPLY);
}

pub fn measure(program: &Path) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let mut echo = Command::new(std::env::current_exe().expect("this program"));
    echo.arg(ECHO).arg(path("raw"));
    let (echo, mut raw) = connect(echo, &path("raw"));
    let mut serve = Command::new(program);
    serve.args(["serve", "--watchdog", "i6300esb,action=none", "--socket"]).arg(path("serve"));
    let (serve, mut single) = connect(serve, &path("serve"));
    armed(&mut single);
    let mut reading = single.try_clone().expect("the socket");
    let mut posting = single.try_clone().expect("the socket");

    let [key1, key2, reload] = [0x80_u16, 0x86, 0x100].map(|value| access(0, 0x0C, 2, &value.to_le_bytes()));
    let request = message(REGION_WRITE, 0, &key1);
    let read = message(REGION_READ, 0, &access(0, 0x0C, 2, &[]));
    let posted = [message(REGION_WRITE, NO_REPLY, &key1), message(REGION_WRITE, NO_REPLY, &key2)];
    let reload = message(REGION_WRITE, 0, &reload);
    let rows = vec![
        Row::new("a raw request and reply", move || {
            let _process = &echo;
            ask(&mut raw, &[0; REQUEST], REPLY);
        }),
        Row::new("a write with a reply", move || {
            let _process = &serve;
            ask(&mut single, &request, REPLY);
        }),
        Row::new("a read", move || ask(&mut reading, &read, REPLY + 2)),
        Row::new("a reload: two posted writes, one with a reply", move || {
            for write in &posted {
                posting.write_all(write).expect("the server");
            }
            ask(&mut posting, &reload, REPLY);
        }),
    ];
    print("vfio-user, between two processes", "a raw request and reply", &in_turns(rows));
}

//! A VM whose guest has a network, an HTTP server as its application, and QEMU's guest agent.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with, sockopt};
use vm_watchdog_test_support::Unavailable;
use vm_watchdog_test_support::channel::Message;
use vm_watchdog_test_support::guest_agent::GuestAgent;
use vm_watchdog_test_support::initramfs::Initramfs;
use vm_watchdog_test_support::kernel::{Kernel, Module};

use crate::guest::{Guest, Pieces};

/// How long an answer may take, on a loaded machine.
pub const LIMIT: Duration = Duration::from_secs(30);

/// What guests with an application are made of: fetched and built once for all tests.
pub fn pieces() -> Result<Pieces, Unavailable> {
    static PIECES: OnceLock<Result<Pieces, Unavailable>> = OnceLock::new();
    PIECES.get_or_init(make).clone()
}

fn make() -> Result<Pieces, Unavailable> {
    let kernel = Kernel::x86()?;
    let modules = kernel.modules(&["i6300esb", "virtio_pci", "virtio_net", "virtio_console"])?;
    let names: String = modules.iter().map(|Module { name, .. }| format!("{name}\n")).collect();
    let script = include_bytes!("cgi.sh");
    let image = Initramfs::with_busybox(&kernel.busybox()?, include_str!("init.sh"))
        .modules(&modules)
        .file("modules", names.as_bytes())
        .program("www/cgi-bin/liveness", script)
        .program("www/cgi-bin/readiness", script);
    Pieces::x86_with("serve-guest-health.cpio", &kernel, GuestAgent::fetch()?.add_to(image)?)
}

/// Gives a machine the network and the agent: the guest's application is at `port` of this machine, and the agent at
/// `folder/agent`.
pub fn connect_application(machine: &mut Command, folder: &Path, port: &Port) {
    let forward = format!("hostfwd=tcp:127.0.0.1:{}-10.0.2.15:8080", port.number);
    machine.arg("-netdev").arg(format!("user,id=net,restrict=on,{forward}"));
    // Without the ROM of its boot loader, which a kernel that QEMU loads does not need.
    machine.args(["-device", "virtio-net-pci,netdev=net,romfile="]);
    let agent = folder.join("agent");
    machine.arg("-chardev").arg(format!("socket,id=agent,path={},server=on,wait=off", agent.display()));
    machine.args(["-device", "virtio-serial-pci"]);
    machine.args(["-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"]);
}

/// A TCP port of 127.0.0.1 for QEMU to listen on.
///
/// The port is bound here and does not listen, so that the kernel gives it to no other process. QEMU can listen on it
/// because both sockets have SO_REUSEADDR.
pub struct Port {
    _held: OwnedFd,
    pub number: u16,
}

impl Port {
    pub fn reserve() -> io::Result<Self> {
        let held = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        sockopt::set_socket_reuseaddr(&held, true)?;
        bind(&held, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))?;
        let address = SocketAddr::try_from(getsockname(&held)?)?;
        Ok(Self { _held: held, number: address.port() })
    }
}

/// The status and the body of the answer to a request at this port.
pub fn get(port: u16, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no end of the headers: {answer:?}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("no status: {answer:?}")), body.to_owned())
}

/// An answer of the application to a probe, as the guest reports it.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// `liveness` or `readiness`.
    pub probe: String,
    pub status: u16,
}

impl Answer {
    /// The next answer of the guest, before it does anything else.
    pub fn next(guest: &mut Guest) -> Self {
        match guest.message() {
            Message::Said(text) => Self::parse(&text).unwrap_or_else(|| panic!("{text:?}")),
            message => panic!("{message:?} instead of an answer"),
        }
    }

    /// The probe that was answered, and the status.
    pub fn what(&self) -> (&str, u16) {
        (&self.probe, self.status)
    }

    /// The answers of the guest until it has booted anew.
    pub fn until_boot(guest: &mut Guest) -> Vec<Self> {
        let mut answers = Vec::new();
        loop {
            match guest.message() {
                Message::Said(text) => answers.push(Self::parse(&text).unwrap_or_else(|| panic!("{text:?}"))),
                Message::Ready(_) => return answers,
                message => panic!("{message:?} instead of an answer or a boot"),
            }
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let probe = words.next()?.to_owned();
        let status = words.next()?.parse().ok()?;
        Some(Self { probe, status })
    }
}

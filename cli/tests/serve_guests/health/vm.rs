//! A VM whose guest has a network, an HTTP server as its application, and QEMU's guest agent.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with, sockopt};
use serde_json::Value;
use vm_watchdog_test_support::Unavailable;
use vm_watchdog_test_support::channel::Message;
use vm_watchdog_test_support::guest_agent::GuestAgent;
use vm_watchdog_test_support::initramfs::Initramfs;
use vm_watchdog_test_support::kernel::{Kernel, Module};

use crate::guest::{Guest, Pieces};
use crate::server::{Builder, Server};

/// How long an answer may take, on a loaded machine.
pub const LIMIT: Duration = Duration::from_secs(30);

/// How long a probe may take to notice something. A request that begins while the guest boots may wait for more than 30 s
/// after the boot, because QEMU sends its first packet again less and less often.
pub const NOTICED: Duration = Duration::from_secs(120);

/// The options of every server.
const OPTIONS: &str = "--manifest vmi.yaml --address 127.0.0.1 --qmp qmp --metrics 0";

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

    /// Writes a manifest that has PORT for the number.
    fn write_manifest(&self, folder: &Path, manifest: &str) {
        fs::write(folder.join("vmi.yaml"), manifest.replace("PORT", &self.number.to_string())).unwrap();
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

/// A VM with an application, and the server that looks after it.
pub struct Vm {
    pub server: Server,
    pub guest: Guest,
    pub port: Port,
    /// The port of the server's metrics, `/readyz` and `/livez`.
    reports: u16,
}

impl Vm {
    /// Starts a server with this manifest and these options, and then the VM. A VM with a socket `s` has a watchdog.
    pub fn start(pieces: &Pieces, manifest: &str, options: &str) -> Self {
        let port = Port::reserve().unwrap();
        let builder = Builder::new();
        port.write_manifest(builder.path(), manifest);
        let server = builder.options(OPTIONS).options(options).start();
        let reports = metrics_port(&server);
        let (folder, socket) = (server.folder.path(), server.path("s"));
        let mut machine = match socket.exists() {
            true => pieces.machine(folder, &socket),
            false => pieces.machine_without_watchdog(folder),
        };
        connect_application(&mut machine, folder, &port);
        let guest = Guest::boot(machine);
        server.await_control();
        Self { server, guest, port, reports }
    }

    /// Kills the server and starts one with another manifest.
    pub fn served_by_another(self, manifest: &str, options: &str) -> Self {
        self.port.write_manifest(self.server.folder.path(), manifest);
        let server = self.server.replaced_by(&format!("{OPTIONS} {options}"));
        let reports = metrics_port(&server);
        server.await_control();
        Self { server, reports, ..self }
    }

    /// Waits until a probe has this result, and checks that nothing is done before.
    pub fn expect_result(&self, probe: &str, result: &str) -> Value {
        let is_result = |event: &Value| event["id"] == probe && event["result"] == result;
        let (before, event) = self.server.find_within(NOTICED, "probe", is_result);
        assert!(before.iter().all(|event| event["event"] != "expiry"), "{before:#?}");
        event
    }

    /// The status of `/readyz`, which must agree with the metrics.
    pub fn readyz(&self) -> u16 {
        let (status, report) = get(self.reports, "/readyz");
        let success = self.metric("probe_success{probe=\"readiness\"}");
        assert_eq!(success, f64::from(u8::from(status == 200)), "{status} {report}");
        status
    }

    /// The value of a metric without its prefix.
    pub fn metric(&self, name: &str) -> f64 {
        let metrics = get(self.reports, "/metrics").1;
        let value =
            metrics.lines().find_map(|line| line.strip_prefix("vm_watchdog_")?.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name}: {metrics}")).parse().unwrap()
    }
}

/// The port of a server with `--metrics 0`.
fn metrics_port(server: &Server) -> u16 {
    let address = server.expect("metrics")["address"].as_str().unwrap().to_owned();
    address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap()
}

/// An answer of the application to a probe, as the guest reports it.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// `liveness` or `readiness`.
    pub probe: String,
    pub status: u16,
    /// The guest's time since its boot.
    pub uptime: Duration,
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
        let uptime = Duration::from_secs_f64(words.next()?.parse().ok()?);
        Some(Self { probe, status, uptime })
    }
}

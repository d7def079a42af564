//! From a host to a connection.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::address::GuestAddress;
use crate::handlers::deadline::Deadline;

/// How many addresses of a name are tried.
const MOST_ADDRESSES: usize = 8;

/// A host: an address or a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    Address(GuestAddress),
    Name(String),
}

impl Host {
    pub fn new(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Name(text.to_ascii_lowercase()), Self::Address)
    }

    /// Whether both are the same host. The scope of an address is the host's, and does not count.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Address(one), Self::Address(other)) => one.ip() == other.ip(),
            (Self::Name(one), Self::Name(other)) => one == other,
            _ => false,
        }
    }
}

/// As in a URL: an IPv6 address has brackets, and no scope.
impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(address) if address.ip().is_ipv6() => write!(f, "[{}]", address.ip()),
            Self::Address(address) => write!(f, "{}", address.ip()),
        }
    }
}

/// Looks up the addresses of hosts, in place of the resolver of the system, which cannot run in a sandbox.
///
/// ```
/// use std::io;
/// use std::net::{IpAddr, Ipv4Addr, TcpListener};
/// use std::sync::Arc;
/// use vm_watchdog_probes::handlers::{Guest, Prober, Resolve};
/// use vm_watchdog_probes::{Handler, Outcome, Probe, ProbeKind};
///
/// #[derive(Debug)]
/// struct Localhost;
///
/// impl Resolve for Localhost {
///     fn resolve(&self, _name: &str) -> io::Result<Vec<IpAddr>> {
///         Ok(vec![Ipv4Addr::LOCALHOST.into()])
///     }
/// }
///
/// let listener = TcpListener::bind("127.0.0.1:0")?;
/// let probe = Probe::new(Handler::TcpSocket { host: Some("guest.example".into()), port: listener.local_addr()?.port() });
/// let prober = Prober::new(ProbeKind::Readiness, &probe, &Guest::default())?;
/// assert_eq!(prober.with_resolver(Arc::new(Localhost)).attempt(), Outcome::Success);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Resolve: fmt::Debug + Send + Sync {
    /// The addresses of a name, best first. Called on a thread of its own; an attempt does not wait for it longer than for
    /// anything else.
    ///
    /// # Errors
    ///
    /// Why it has none. [`io::ErrorKind::Unsupported`] says that the host cannot look up any names, which is an error of the
    /// attempt. With another kind the attempt fails.
    fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>>;
}

/// The resolver of the system.
#[derive(Debug)]
struct OfSystem;

impl Resolve for OfSystem {
    fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        Ok((name, 0).to_socket_addrs()?.map(|address| address.ip()).collect())
    }
}

/// Connects to hosts. A resolver has no deadline: it runs on a thread, one at a time.
#[derive(Debug)]
pub struct Connector {
    resolver: Arc<dyn Resolve>,
    lookup: Option<(String, Receiver<io::Result<Vec<IpAddr>>>)>,
}

impl Default for Connector {
    fn default() -> Self {
        Self { resolver: Arc::new(OfSystem), lookup: None }
    }
}

impl Connector {
    pub fn resolve_by(&mut self, resolver: Arc<dyn Resolve>) {
        self.resolver = resolver;
    }

    /// Connects to the first address of the host that accepts.
    ///
    /// # Errors
    ///
    /// Why its last address does not, or why it has none.
    pub fn connect(&mut self, host: &Host, port: u16, deadline: Deadline) -> io::Result<TcpStream> {
        let addresses = match host {
            Host::Address(address) => vec![socket_address(address, port)?],
            Host::Name(name) => {
                let addresses = self.look_up(name, deadline)?;
                addresses.into_iter().map(|ip| SocketAddr::new(ip, port)).collect()
            }
        };
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for (tried, address) in addresses.iter().enumerate() {
            // An address that does not answer leaves time for the others.
            let share = deadline.left()? / (addresses.len() - tried) as u32;
            match TcpStream::connect_timeout(address, share) {
                Ok(stream) => return Ok(stream),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => last = deadline.timed_out(),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn look_up(&mut self, name: &str, deadline: Deadline) -> io::Result<Vec<IpAddr>> {
        let (_, answer) = match self.lookup.take() {
            // The thread of the last attempt has the answer now, or does not have it yet.
            Some(lookup) if lookup.0 == name => self.lookup.insert(lookup),
            _ => self.lookup.insert((name.to_owned(), spawn_lookup(self.resolver.clone(), name.to_owned())?)),
        };
        let answer = match answer.recv_timeout(deadline.left()?) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => {
                let message = format!("the lookup of {name} {}", deadline.timed_out());
                return Err(io::Error::new(io::ErrorKind::TimedOut, message));
            }
            Err(RecvTimeoutError::Disconnected) => Err(io::Error::other("the lookup has ended without an answer")),
        };
        self.lookup = None;
        answer
    }
}

fn spawn_lookup(resolver: Arc<dyn Resolve>, name: String) -> io::Result<Receiver<io::Result<Vec<IpAddr>>>> {
    let (sender, receiver) = mpsc::channel();
    let look_up = move || {
        let mut answer = resolver.resolve(&name);
        if let Ok(addresses) = &mut answer {
            addresses.truncate(MOST_ADDRESSES);
        }
        // The receiver is gone if the probe has ended.
        let _ = sender.send(answer);
    };
    thread::Builder::new().name("probe-lookup".into()).spawn(look_up)?;
    Ok(receiver)
}

fn socket_address(address: &GuestAddress, port: u16) -> io::Result<SocketAddr> {
    match (address.ip(), address.scope()) {
        (IpAddr::V6(ip), Some(scope)) => Ok(SocketAddrV6::new(ip, port, 0, interface(scope)?).into()),
        (ip, _) => Ok(SocketAddr::new(ip, port)),
    }
}

/// The number of a network interface, which changes when it is made anew.
fn interface(scope: &str) -> io::Result<u32> {
    if let Ok(number) = scope.parse() {
        return Ok(number);
    }
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    Ok(rustix::net::netdevice::name_to_index(&socket, scope)?)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, TcpListener};
    use std::sync::mpsc;
    use std::time::Duration;

    use super::{Connector, Host};
    use crate::handlers::deadline::Deadline;

    #[test]
    fn a_slow_lookup_ends_an_attempt_in_time_and_serves_the_next_one() {
        let (sender, receiver) = mpsc::channel();
        let lookup = Some(("slow.example".to_owned(), receiver));
        let mut connector = Connector { lookup, ..Connector::default() };
        let host = Host::new("slow.example");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("an address").port();

        let error = connector.connect(&host, port, Deadline::after(Duration::from_millis(20))).unwrap_err();
        assert_eq!(error.to_string(), "the lookup of slow.example timed out after 20ms");

        sender.send(Ok(vec![IpAddr::from(Ipv4Addr::LOCALHOST)])).expect("the lookup is waited for");
        let stream = connector.connect(&host, port, Deadline::after(Duration::from_secs(60)));
        assert!(stream.is_ok(), "{stream:?}");
        assert!(connector.lookup.is_none());
    }

    #[test]
    fn the_next_address_is_tried_where_one_refuses() {
        let (sender, receiver) = mpsc::channel();
        let lookup = Some(("two.example".to_owned(), receiver));
        let mut connector = Connector { lookup, ..Connector::default() };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let refuses = IpAddr::from([127, 0, 0, 9]);
        sender.send(Ok(vec![refuses, Ipv4Addr::LOCALHOST.into()])).expect("the lookup is waited for");
        let stream = connector.connect(&Host::new("two.example"), port, Deadline::after(Duration::from_secs(60)));
        assert!(stream.is_ok(), "{stream:?}");
    }
}

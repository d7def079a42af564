//! Where a guest is reached: an IP address, with the interface of the host for a link-local one.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// The longest name of a network interface: `IFNAMSIZ` of Linux without the NUL.
const LONGEST_INTERFACE: usize = 15;
/// The longest DNS name in text.
const LONGEST_NAME: usize = 253;

/// The IP address of a guest: `192.168.122.7`, `fd00::7`, `fe80::7%tap0`.
///
/// The scope after `%` is the host's network interface, by name or number; link-local IPv6 addresses need it.
///
/// ```
/// use vm_watchdog_probes::GuestAddress;
///
/// let address: GuestAddress = "fe80::5054:ff:fe12:3456%tap0".parse()?;
/// assert!(address.ip().is_ipv6());
/// assert_eq!(address.scope(), Some("tap0"));
/// assert_eq!(address.to_string(), "fe80::5054:ff:fe12:3456%tap0");
/// assert!("192.168.122.7%tap0".parse::<GuestAddress>().is_err());
/// # Ok::<(), vm_watchdog_probes::InvalidAddress>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GuestAddress {
    ip: IpAddr,
    scope: Option<String>,
}

impl GuestAddress {
    /// The address without its scope.
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    /// The name or number of the host's network interface.
    pub fn scope(&self) -> Option<&str> {
        self.scope.as_deref()
    }
}

impl From<IpAddr> for GuestAddress {
    fn from(ip: IpAddr) -> Self {
        Self { ip, scope: None }
    }
}

impl FromStr for GuestAddress {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let parsed = match text.split_once('%') {
            None => text.parse().ok().map(|ip| Self { ip, scope: None }),
            Some((ip, scope)) => {
                let ip = ip.parse::<Ipv6Addr>().ok().filter(|_| is_interface(scope));
                ip.map(|ip| Self { ip: ip.into(), scope: Some(scope.to_owned()) })
            }
        };
        parsed.ok_or_else(|| InvalidAddress(text.to_owned()))
    }
}

impl fmt::Display for GuestAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.scope {
            None => write!(f, "{}", self.ip),
            Some(scope) => write!(f, "{}%{scope}", self.ip),
        }
    }
}

/// The text is not a [`GuestAddress`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid address {0:?}: accepted are an IPv4 address, an IPv6 address, and an IPv6 address with %INTERFACE")]
pub struct InvalidAddress(pub String);

/// Whether the text can be a `host`: an IP address or a DNS name.
pub(crate) fn is_host(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    let is_name = |name: &str| name.len() <= LONGEST_NAME && name.split('.').all(is_label);
    text.parse::<GuestAddress>().is_ok() || is_name(text.strip_suffix('.').unwrap_or(text))
}

fn is_interface(name: &str) -> bool {
    let forbidden = |byte: u8| byte == b'/' || byte == b'%' || byte.is_ascii_whitespace() || byte.is_ascii_control();
    (1..=LONGEST_INTERFACE).contains(&name.len()) && !name.bytes().any(forbidden)
}

//! Looks up names in a process of its own: the resolver of the system loads whatever modules the host is configured with.

use std::net::{IpAddr, ToSocketAddrs};

use landlock::{ABI, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetError, Scope};

/// How many names are looked up at a time.
pub const MOST_LOOKUPS: usize = 8;
/// How many addresses of a name are of use.
const MOST_ADDRESSES: usize = 8;

/// The addresses of a name.
///
/// # Errors
///
/// Why it has none.
pub fn look_up(name: &str) -> Result<Vec<IpAddr>, String> {
    let addresses = (name, 0).to_socket_addrs().map_err(|error| error.to_string())?;
    Ok(addresses.map(|address| address.ip()).take(MOST_ADDRESSES).collect())
}

/// From now on this process writes no file, listens on no TCP port and signals no other process, as far as the host has
/// Landlock. What it reads and calls is up to the resolver.
///
/// # Errors
///
/// The host has Landlock and refuses.
pub fn restrict() -> Result<(), RulesetError> {
    Ruleset::default()
        .handle_access(AccessFs::from_write(ABI::V6))?
        .handle_access(AccessNet::BindTcp)?
        .scope(Scope::Signal)?
        .create()?
        .restrict_self()
        .map(drop)
}

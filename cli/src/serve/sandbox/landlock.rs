//! The files, TCP ports and processes that a server reaches: rules of Landlock, as far as the kernel has them.

use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, NetPort, PathBeneath, PathFd, PathFdError,
    RestrictionStatus, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, make_bitflags,
};

use crate::serve::sandbox::needs::{Folder, Needs, Network};

/// The newest interface whose rights are asked for, and on which the tests have run. Later ones add nothing but the
/// connection to Unix sockets (9), which the server has to find out for a VMM that starts after it.
const NEWEST: ABI = ABI::V6;

/// Why there are no rules.
#[derive(Debug, thiserror::Error)]
pub enum LandlockError {
    /// A folder cannot be opened.
    #[error("the folder {}: {source}", path.display())]
    Folder { path: PathBuf, source: PathFdError },
    /// The host refuses.
    #[error("Landlock: {0}")]
    Rules(#[from] RulesetError),
}

/// What is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Landlock {
    /// full, partial or none.
    pub status: &'static str,
    /// The interface of the kernel, as a number.
    pub abi: Option<i32>,
}

/// From now on this thread, and those that it starts, reach only what the server needs.
///
/// # Errors
///
/// The kernel has Landlock and refuses.
pub fn restrict(needs: &Needs) -> Result<Landlock, LandlockError> {
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::BindTcp)?
        .scope(Scope::Signal)?;
    if needs.network != Network::Any {
        rules = rules.handle_access(AccessNet::ConnectTcp)?;
    }
    if !needs.notifies_abstract {
        rules = rules.scope(Scope::AbstractUnixSocket)?;
    }
    let mut rules = rules.create()?;
    for (path, folder) in &needs.folders {
        let opened = PathFd::new(path).map_err(|source| LandlockError::Folder { path: path.clone(), source })?;
        rules = rules.add_rule(PathBeneath::new(opened, rights(*folder)))?;
    }
    if let Network::Ports(ports) = &needs.network {
        for port in ports {
            rules = rules.add_rule(NetPort::new(*port, AccessNet::ConnectTcp))?;
        }
    }
    Ok(Landlock::of(&rules.restrict_self()?))
}

fn rights(folder: Folder) -> BitFlags<AccessFs> {
    match folder {
        Folder::Socket => AccessFs::RemoveFile.into(),
        Folder::Replaced => make_bitflags!(AccessFs::{ReadFile | WriteFile | ReadDir | MakeReg | RemoveFile}),
        Folder::Appended => make_bitflags!(AccessFs::{ReadFile | WriteFile | MakeReg}),
        Folder::Dumps => make_bitflags!(AccessFs::{ReadDir | RemoveFile}),
    }
}

impl Landlock {
    fn of(status: &RestrictionStatus) -> Self {
        let abi = match status.landlock {
            LandlockStatus::Available { effective_abi, kernel_abi } => Some(kernel_abi.unwrap_or(effective_abi as i32)),
            _ => None,
        };
        let status = match status.ruleset {
            RulesetStatus::FullyEnforced => "full",
            RulesetStatus::PartiallyEnforced => "partial",
            RulesetStatus::NotEnforced => "none",
        };
        Self { status, abi }
    }
}

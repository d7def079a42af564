//! The filter of system calls.

mod calls;
mod trap;

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter_all_threads,
};
use syscalls::Sysno;

use crate::serve::sandbox::needs::{Needs, Network};
use crate::serve::sandbox::seccomp::calls::{GROUPS, Group, Limit, When};

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// The handler for forbidden calls.
    #[error("catch SIGSYS: {0}")]
    Trap(#[from] std::io::Error),
    /// The filter cannot be built.
    #[error("the filter of system calls: {0}")]
    Build(#[from] BackendError),
    /// The host refuses it.
    #[error("the filter of system calls: {0}")]
    Apply(#[from] seccompiler::Error),
}

/// What each rule is for one system call; none permits it with any arguments.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// From now on every thread of this process makes only the calls that it needs. Another one ends the process with a message.
/// True: there is a filter for this architecture.
///
/// # Errors
///
/// [`SeccompError`] if the host refuses.
pub fn restrict(needs: &Needs) -> Result<bool, SeccompError> {
    trap::install()?;
    for program in programs(needs)? {
        apply_filter_all_threads(&program)?;
    }
    Ok(true)
}

/// Two filters, because the calls that fail and those that are forbidden differ in what happens. The stricter verdict counts. The
/// second forbids to install another one.
fn programs(needs: &Needs) -> Result<[BpfProgram; 2], BackendError> {
    let target: TargetArch = std::env::consts::ARCH.try_into()?;
    let (mut failing, mut permitted) = (Rules::new(), Rules::new());
    for Group { calls, limit, when, .. } in GROUPS {
        if !is_needed(*when, needs) {
            continue;
        }
        // Those that this architecture does not have are left out.
        for call in calls.iter().filter_map(|call| call.parse::<Sysno>().ok()) {
            let number = i64::from(call.id());
            if matches!(limit, Limit::NotThere) {
                failing.insert(number, Vec::new());
            }
            permitted.entry(number).or_default().extend(rules(limit)?);
        }
    }
    let enosys = SeccompAction::Errno(libc::ENOSYS as u32);
    let failing = SeccompFilter::new(failing, SeccompAction::Allow, enosys, target)?;
    let permitted = SeccompFilter::new(permitted, SeccompAction::Trap, SeccompAction::Allow, target)?;
    Ok([failing.try_into()?, permitted.try_into()?])
}

fn is_needed(when: When, needs: &Needs) -> bool {
    match when {
        When::Always => true,
        When::Network => needs.network != Network::None,
        When::Helper => needs.has_helper,
        When::Vsock => needs.notifies_vsock,
        When::Musl => cfg!(target_env = "musl"),
    }
}

/// One of these has to hold; none permits any arguments.
fn rules(limit: &Limit) -> Result<Vec<SeccompRule>, BackendError> {
    use SeccompCmpOp::{Eq, MaskedEq};
    let condition = |argument: &u8, operator, value| {
        // The kernel takes all of them as 32 bits, or as flags of which the upper half is not used.
        SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, operator, value)
    };
    let conditions = match limit {
        Limit::None | Limit::NotThere => Vec::new(),
        Limit::OneOf { argument, values, .. } => {
            values.iter().map(|value| condition(argument, Eq, *value)).collect::<Result<_, _>>()?
        }
        Limit::Without { argument, bits, .. } => vec![condition(argument, MaskedEq(*bits), 0)?],
        Limit::With { argument, bits, .. } => vec![condition(argument, MaskedEq(*bits), *bits)?],
        Limit::ThisProcess { argument } => vec![condition(argument, Eq, std::process::id().into())?],
    };
    conditions.into_iter().map(|condition| SeccompRule::new(vec![condition])).collect()
}

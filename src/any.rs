//! A handle to a watchdog of any model.

use std::any::Any;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;

use vm_watchdog_devices::diag288::Diag288StateV1;
use vm_watchdog_devices::i6300esb::I6300esbStateV1;
use vm_watchdog_devices::sbsa::SbsaStateV1;
use vm_watchdog_devices::wdat::WdatStateV1;
use vm_watchdog_devices::{LastReset, Model, StateError};

use crate::clock::VmClock;
use crate::error::Error;
use crate::policy::Policy;
use crate::runtime::Runtime;
use crate::state::WatchdogState;
use crate::stats::Stats;
use crate::thread::{self, Served, WatchdogThread};
use crate::watchdog::Watchdog;

/// A handle to a watchdog of any model, for a VMM that holds several models in one list.
///
/// It has everything but the guest's accesses, which differ from model to model.
///
/// ```
/// use vm_watchdog::diag288::Diag288;
/// use vm_watchdog::i6300esb::I6300esb;
/// use vm_watchdog::{AnyWatchdog, Event, Watchdog};
///
/// let pci = Watchdog::builder("wd0", I6300esb::new(Default::default())).build(|_: &Event| Ok(()))?;
/// let call = Watchdog::builder("wd1", Diag288::new()).build(|_: &Event| Ok(()))?;
/// let watchdogs: Vec<AnyWatchdog> = vec![pci.into(), call.into()];
///
/// // When the platform resets:
/// watchdogs.iter().for_each(AnyWatchdog::reset);
/// // A snapshot:
/// let saved: Vec<_> = watchdogs.iter().map(AnyWatchdog::save).collect();
/// for (watchdog, state) in watchdogs.iter().zip(&saved) {
///     watchdog.restore(state)?;
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct AnyWatchdog(Arc<dyn Erased>);

/// The saved state of a watchdog of any model: what [`AnyWatchdog::save`] gives.
///
/// With the feature `serde` it is the [`WatchdogState`] with a field `model` before it, for formats that name their
/// fields, such as JSON. The state of a typed watchdog can be written in any format.
#[derive(Clone, Debug)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(tag = "model", rename_all = "lowercase")
)]
#[non_exhaustive]
pub enum AnyWatchdogState {
    /// Of an i6300esb.
    I6300esb(Box<WatchdogState<I6300esbStateV1>>),
    /// Of a diag288.
    Diag288(Box<WatchdogState<Diag288StateV1>>),
    /// Of a wdat.
    Wdat(Box<WatchdogState<WdatStateV1>>),
    /// Of an sbsa.
    Sbsa(Box<WatchdogState<SbsaStateV1>>),
    /// Of a model outside this library. It cannot be serialized: [save](Watchdog::save) the typed watchdog for that.
    #[cfg_attr(feature = "serde", serde(skip))]
    Other(OtherState),
}

/// The saved state of a watchdog of a model outside this library.
#[derive(Clone)]
pub struct OtherState(Arc<dyn Any + Send + Sync>);

impl AnyWatchdog {
    /// The name that the VMM gave it.
    pub fn id(&self) -> &str {
        self.0.id()
    }

    /// The clock of its VM.
    pub fn clock(&self) -> &VmClock {
        self.0.clock()
    }

    /// See [`Watchdog::stats`].
    pub fn stats(&self) -> Stats {
        self.0.stats()
    }

    /// See [`Watchdog::policy`].
    pub fn policy(&self) -> Policy {
        self.0.policy()
    }

    /// See [`Watchdog::set_policy`].
    pub fn set_policy(&self, policy: Policy) {
        self.0.set_policy(policy);
    }

    /// See [`Watchdog::reset`].
    pub fn reset(&self) {
        self.0.reset();
    }

    /// See [`Watchdog::acknowledge`].
    pub fn acknowledge(&self) {
        self.0.acknowledge();
    }

    /// See [`Watchdog::on_readable`].
    pub fn on_readable(&self) {
        self.0.on_readable();
    }

    /// See [`Watchdog::resample_interrupt`].
    pub fn resample_interrupt(&self) {
        self.0.resample_interrupt();
    }

    /// See [`Watchdog::spawn`].
    ///
    /// # Errors
    ///
    /// [`Error::Thread`] if the host gives no thread or descriptor.
    pub fn spawn(&self) -> Result<WatchdogThread, Error> {
        self.spawn_with(|| Ok(()))
    }

    /// See [`Watchdog::spawn_with`].
    ///
    /// # Errors
    ///
    /// As [`Watchdog::spawn_with`].
    pub fn spawn_with(
        &self,
        init: impl FnOnce() -> std::io::Result<()> + Send + 'static,
    ) -> Result<WatchdogThread, Error> {
        thread::spawn(self.0.clone().into_served(), init)
    }

    /// See [`Watchdog::keep_fds`].
    pub fn keep_fds(&self) -> Vec<RawFd> {
        self.0.keep_fds()
    }

    /// See [`Watchdog::last_reset`].
    pub fn last_reset(&self) -> LastReset {
        self.0.last_reset()
    }

    /// See [`Watchdog::save`].
    pub fn save(&self) -> AnyWatchdogState {
        self.0.save()
    }

    /// See [`Watchdog::restore`].
    ///
    /// # Errors
    ///
    /// [`StateError`] names the first field that holds what no watchdog can be in, or `model` if the state is of
    /// another model. Then nothing has changed.
    pub fn restore(&self, state: &AnyWatchdogState) -> Result<(), StateError> {
        self.0.restore(state, false)
    }

    /// See [`Watchdog::restore_with_policy`].
    ///
    /// # Errors
    ///
    /// As [`restore`](Self::restore).
    pub fn restore_with_policy(&self, state: &AnyWatchdogState) -> Result<(), StateError> {
        self.0.restore(state, true)
    }

    /// The typed handle, None if the watchdog is of another model.
    ///
    /// ```
    /// # use vm_watchdog::{AnyWatchdog, Event, Watchdog, diag288::Diag288, i6300esb::I6300esb};
    /// let watchdog = Watchdog::builder("wd", Diag288::new()).build(|_: &Event| Ok(()))?;
    /// let any = AnyWatchdog::from(watchdog);
    /// assert!(any.downcast::<Diag288>().is_some());
    /// assert!(any.downcast::<I6300esb>().is_none());
    /// # Ok::<(), vm_watchdog::Error>(())
    /// ```
    pub fn downcast<M: Model + Send + 'static>(&self) -> Option<Watchdog<M>> {
        self.0.clone().into_any().downcast().ok().map(Watchdog::from_runtime)
    }
}

impl<M: Model + Send + 'static> From<Watchdog<M>> for AnyWatchdog {
    fn from(watchdog: Watchdog<M>) -> Self {
        Self(watchdog.runtime().clone())
    }
}

/// The descriptor to poll, as of [`Watchdog`].
impl AsFd for AnyWatchdog {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.timer()
    }
}

/// The descriptor to poll, as of [`Watchdog`].
impl AsRawFd for AnyWatchdog {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl fmt::Debug for AnyWatchdog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnyWatchdog").field("id", &self.id()).field("stats", &self.stats()).finish()
    }
}

impl fmt::Debug for OtherState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OtherState")
    }
}

/// What does not depend on the model.
trait Erased: Served {
    fn clock(&self) -> &VmClock;
    fn stats(&self) -> Stats;
    fn policy(&self) -> Policy;
    fn set_policy(&self, policy: Policy);
    fn reset(&self);
    fn acknowledge(&self);
    fn resample_interrupt(&self);
    fn save(&self) -> AnyWatchdogState;
    fn restore(&self, state: &AnyWatchdogState, with_policy: bool) -> Result<(), StateError>;
    fn last_reset(&self) -> LastReset;
    fn keep_fds(&self) -> Vec<RawFd>;
    fn into_served(self: Arc<Self>) -> Arc<dyn Served>;
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

impl<M: Model + Send + 'static> Erased for Runtime<M> {
    fn clock(&self) -> &VmClock {
        &self.clock
    }

    fn stats(&self) -> Stats {
        self.inspect(|core, now| core.stats(now))
    }

    fn policy(&self) -> Policy {
        self.inspect(|core, _| core.policy())
    }

    fn set_policy(&self, policy: Policy) {
        self.with_core(|core, now| core.set_policy(policy, now));
    }

    fn reset(&self) {
        self.reset();
    }

    fn acknowledge(&self) {
        self.with_core(|core, _| core.acknowledge());
    }

    fn resample_interrupt(&self) {
        self.resample_interrupt();
    }

    fn save(&self) -> AnyWatchdogState {
        let state = WatchdogState::V1(self.with_core(|core, now| core.save(now)));
        let state: Arc<dyn Any + Send + Sync> = Arc::new(state);
        if let Some(state) = state.downcast_ref() {
            AnyWatchdogState::I6300esb(Box::new(*state))
        } else if let Some(state) = state.downcast_ref() {
            AnyWatchdogState::Diag288(Box::new(*state))
        } else if let Some(state) = state.downcast_ref() {
            AnyWatchdogState::Wdat(Box::new(*state))
        } else if let Some(state) = state.downcast_ref() {
            AnyWatchdogState::Sbsa(Box::new(*state))
        } else {
            AnyWatchdogState::Other(OtherState(state))
        }
    }

    fn restore(&self, state: &AnyWatchdogState, with_policy: bool) -> Result<(), StateError> {
        let state: &dyn Any = match state {
            AnyWatchdogState::I6300esb(state) => &**state,
            AnyWatchdogState::Diag288(state) => &**state,
            AnyWatchdogState::Wdat(state) => &**state,
            AnyWatchdogState::Sbsa(state) => &**state,
            AnyWatchdogState::Other(OtherState(state)) => &**state,
        };
        let Some(state) = state.downcast_ref::<WatchdogState<M::State>>() else {
            return Err(StateError::new("model", 0, "the model that the state is restored into"));
        };
        if with_policy { self.restore_with_policy(state) } else { self.restore(state) }
    }

    fn last_reset(&self) -> LastReset {
        self.inspect(|core, _| core.model().last_reset())
    }

    fn keep_fds(&self) -> Vec<RawFd> {
        self.timer.descriptors()
    }

    fn into_served(self: Arc<Self>) -> Arc<dyn Served> {
        self
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

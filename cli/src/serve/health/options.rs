//! What a manifest and the command line say about the probes of a VM.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use vm_watchdog::i6300esb::I6300esbConfig;
use vm_watchdog::{Action, DeviceModel, Policy};
use vm_watchdog_manifest::{Located, Manifest};
use vm_watchdog_probes::handlers::{Guest, GuestAgent, Prober, ProberError};
use vm_watchdog_probes::{GuestAddress, Probe, ProbeKind};

/// The options of a manifest.
#[derive(Clone, Debug, Args)]
pub struct ManifestFlags {
    /// Take the watchdog and the probes of the VM from its manifest
    ///
    /// A manifest of KubeVirt (VirtualMachine or VirtualMachineInstance, as YAML or JSON), XML of libvirt, or text with
    /// the options of a QEMU. "vm-watchdog check FILE" says what it means.
    #[arg(long = "manifest", value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// The VM, if the manifest has several
    #[arg(long = "vm", value_name = "[NAMESPACE/]NAME", requires = "file")]
    vm: Option<String>,

    /// Where httpGet and tcpSocket reach the guest, unless they name a host
    #[arg(long = "address", value_name = "IP[%INTERFACE]", requires = "file")]
    address: Option<GuestAddress>,

    /// The socket of the guest agent, for exec and guestAgentPing
    #[arg(long = "agent", value_name = "PATH", requires = "file")]
    agent: Option<PathBuf>,

    /// What is done when the liveness probe has failed [default: shutdown, then poweroff]
    ///
    /// shutdown asks the guest to shut down, and poweroff follows after terminationGracePeriodSeconds, as in KubeVirt.
    #[arg(long = "liveness-action", value_name = "ACTION", requires = "file")]
    liveness_action: Option<Action>,
}

/// A manifest, as far as `serve` needs it.
#[derive(Clone, Debug)]
pub struct ManifestOptions {
    pub watchdogs: Vec<ManifestWatchdog>,
    pub health: Option<HealthOptions>,
    /// What is accepted in it, but probably not meant.
    pub warnings: Vec<String>,
}

/// A watchdog of a manifest.
#[derive(Clone, Debug)]
pub struct ManifestWatchdog {
    pub id: Option<String>,
    pub device: I6300esbConfig,
    pub action: Action,
}

/// What the probes of a VM are, and what follows from a liveness failure.
#[derive(Clone, Debug)]
pub struct HealthOptions {
    pub liveness: Option<Probe>,
    pub readiness: Option<Probe>,
    /// Where the probes reach the guest.
    pub guest: Guest,
    /// What follows from a liveness failure.
    pub policy: Policy,
    /// How long a guest that was asked to shut down may take. After that it runs on.
    pub shutdown_limit: Duration,
}

impl ManifestFlags {
    /// Reads the manifest.
    ///
    /// # Errors
    ///
    /// What is wrong in the manifest, or missing beside it.
    pub fn read(&self) -> Result<Option<ManifestOptions>, String> {
        let Some(file) = &self.file else {
            return Ok(None);
        };
        let manifest = Manifest::open(file, self.vm.as_deref()).map_err(|error| error.to_string())?;
        let located = |problem| format!("{}:{problem}", file.display());
        let watchdogs = manifest.watchdogs.iter().map(|watchdog| match watchdog.value.model {
            DeviceModel::I6300esb => Ok(ManifestWatchdog {
                id: watchdog.value.name.clone(),
                device: I6300esbConfig::default(),
                action: watchdog.value.action,
            }),
            model => Err(located(watchdog.problem(format!("{model} is no PCI device")))),
        });
        let watchdogs = watchdogs.collect::<Result<Vec<_>, _>>()?;
        let health = self.health(file, &manifest)?;
        if watchdogs.is_empty() && health.is_none() {
            return Err(format!("{}: the VM has neither a watchdog nor a probe", file.display()));
        }
        let warnings = manifest.warnings.into_iter().map(located).collect();
        Ok(Some(ManifestOptions { watchdogs, health, warnings }))
    }

    fn health(&self, file: &Path, manifest: &Manifest) -> Result<Option<HealthOptions>, String> {
        let agent = self.agent.as_ref().map(|path| Arc::new(GuestAgent::new(path)));
        let guest = Guest { address: self.address.clone(), agent };
        let probe = |kind, probe: &Option<Located<Probe>>| {
            let Some(probe) = probe else {
                return Ok(None);
            };
            Prober::new(kind, &probe.value, &guest).map_err(|error| {
                let option = match error {
                    ProberError::NoAddress { .. } => ": give --address",
                    ProberError::NoAgent { .. } => ": give --agent",
                    _ => "",
                };
                format!("{}:{}", file.display(), probe.problem(format!("{error}{option}")))
            })?;
            Ok::<_, String>(Some(probe.value.clone()))
        };
        let liveness = probe(ProbeKind::Liveness, &manifest.liveness)?;
        let readiness = probe(ProbeKind::Readiness, &manifest.readiness)?;
        if liveness.is_none() && readiness.is_none() {
            return Ok(None);
        }
        let of_probe = liveness.as_ref().and_then(|probe| probe.termination_grace_period_s);
        let of_vm = manifest.termination_grace_period_s.as_ref().map(|period| period.value);
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        let default = seconds(Manifest::DEFAULT_TERMINATION_GRACE_PERIOD_S);
        let grace = of_probe.or(of_vm).map_or(default, seconds);
        let shutdown_limit = if grace.is_zero() { default } else { grace };
        let policy = self.policy(grace);
        Ok(Some(HealthOptions { liveness, readiness, guest, policy, shutdown_limit }))
    }

    fn policy(&self, grace: Duration) -> Policy {
        match self.liveness_action {
            None | Some(Action::Shutdown) if grace.is_zero() => Policy::new(Action::Poweroff),
            None | Some(Action::Shutdown) => Policy::new(Action::Shutdown).with_escalation(grace, Action::Poweroff),
            Some(action) => Policy::new(action),
        }
    }
}

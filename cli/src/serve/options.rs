//! The options of `vm-watchdog serve`.

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{ArgMatches, Args, Command, FromArgMatches};
use rustix::fs::Mode;
use vm_watchdog::i6300esb::I6300esbConfig;
use vm_watchdog::{Action, ActionRate, DeviceConfig, Policy, WatchdogConfig};
use vm_watchdog_timeline::Format;

use crate::format::parser;
use crate::serve::health::options::{HealthOptions, ManifestFlags, ManifestOptions, ManifestWatchdog};
use crate::serve::sandbox::mode::SandboxMode;

/// How often the actions of a watchdog are performed, unless its --watchdog says otherwise.
const ACTION_RATE: ActionRate = ActionRate::new(Duration::from_secs(10), 3);
/// How many dumps a VM may have, unless --dump-limit says otherwise.
const MOST_DUMPS: u64 = 5;
/// The longest name of a VM, in bytes: that of a folder.
const LONGEST_NAME: usize = 255;

/// Puts watchdogs into a VM of QEMU 10.1 or newer, Cloud Hypervisor, or any other VMM that speaks vfio-user.
///
/// One process serves one VM, with all of its watchdogs. Each --socket is one watchdog; the n-th --watchdog belongs to the n-th
/// --socket, and a single one to each. Everything else belongs to the VM.
///
/// A new connection, and the end of one, is a power-on reset of the watchdog: it is disarmed, and keeps only whether it
/// caused the last reset. When the server ends, the guest is not protected until its VM connects again.
#[derive(Clone, Debug, Args)]
struct Flags {
    /// Where the VMM connects; once for each watchdog
    #[arg(long = "socket", value_name = "PATH", required_unless_present = "file")]
    sockets: Vec<PathBuf>,

    /// The watchdog that the guest sees [default: i6300esb,action=reset]
    ///
    /// action=, pretimeout= and then= take reset, shutdown, poweroff, pause, inject-nmi, dump, none or debug (as none).
    /// The pretimeout action is due before=TIME before the timeout, by default a quarter of the period: a guest that
    /// feeds later than that (systemd and the watchdog daemon feed at half of it, busybox as -t says) is acted on
    /// although it is healthy. grace=30s with then= acts again when the action did not help, or could not be done.
    /// action-interval=10s,action-burst=3 is the default rate of the actions: three at once, and one in ten seconds. An action
    /// of a timeout beyond it is delayed, that of a pretimeout is left out. action-interval=none turns it off.
    /// interrupt=intx gives the device an interrupt pin, which it raises at the end of its first stage, at the price of a
    /// second round trip for each access of the guest. interrupt=msi adds MSI, which has no such price for a guest that
    /// enables it.
    #[arg(
        long = "watchdog",
        value_name = "MODEL[,action=ACTION][,pretimeout=ACTION[,before=TIME]][,grace=TIME,then=ACTION][,action-interval=TIME|none[,action-burst=NUMBER]][,id=NAME][,interrupt=intx|msi]"
    )]
    watchdogs: Vec<WatchdogConfig>,

    #[command(flatten)]
    manifest: ManifestFlags,

    /// The name of the VM, which becomes the label "vm" of every metric
    ///
    /// Give each VM of a host a name of its own if node_exporter collects the metrics of several from files.
    #[arg(long = "name", value_name = "NAME", value_parser = parse_name)]
    name: Option<String>,

    /// Act on a QEMU through this QMP socket, and stop the clock while QEMU says that the VM is paused
    ///
    /// QEMU serves one client a QMP socket, so this one should be the watchdog's own.
    #[arg(long = "qmp", value_name = "PATH")]
    qmp: Option<PathBuf>,

    /// Act on a Cloud Hypervisor through its API socket
    #[arg(long = "cloud-hypervisor", value_name = "PATH")]
    cloud_hypervisor: Option<PathBuf>,

    /// What the action poweroff asks a Cloud Hypervisor for [default: vmm.shutdown]
    ///
    /// vmm.shutdown ends its process, vm.shutdown ends the VM alone.
    #[arg(long = "poweroff", value_name = "CALL", value_parser = ["vmm.shutdown", "vm.shutdown"])]
    poweroff: Option<String>,

    /// Act through a control socket of any process [default: only of the process that has connected as the VMM]
    #[arg(long = "any-control-process")]
    any_control_process: bool,

    /// Act by running COMMAND in a shell
    ///
    /// The event is in the variables WATCHDOG_ID, WATCHDOG_SOCKET, WATCHDOG_STAGE, WATCHDOG_ACTION, WATCHDOG_ATTEMPT,
    /// WATCHDOG_DEADLINE_NS, WATCHDOG_OBSERVED_NS and WATCHDOG_LATENESS_NS, and as one JSON object on its standard
    /// input. It has 30 s. A status other than 0 means that the action was not done: it is tried again. With --qmp, QMP
    /// is followed and COMMAND acts.
    #[arg(long = "exec", value_name = "COMMAND")]
    exec: Option<String>,

    /// Where the action dump has QEMU write the guest's memory
    ///
    /// A dump that does not fit beside the older ones is refused: the older ones are kept. So is one that would leave less
    /// than 5 % of the file system free.
    #[arg(long = "dump-folder", value_name = "PATH")]
    dump_folder: Option<PathBuf>,

    /// How many dumps of this VM may be in the folder [default: 5]
    #[arg(long = "dump-limit", value_name = "NUMBER", requires = "dump_folder", value_parser = clap::value_parser!(u64).range(1..))]
    dump_limit: Option<u64>,

    /// How large the dumps of this VM in the folder may be together [default: half of the file system]
    #[arg(long = "dump-size", value_name = "SIZE", requires = "dump_folder", value_parser = parse_size)]
    dump_size: Option<u64>,

    /// Keep the state of the watchdogs in this file across restarts of the server
    #[arg(long = "state", value_name = "FILE")]
    state: Option<PathBuf>,

    /// Leave a guest unprotected that does not know that its watchdog was reset
    ///
    /// QEMU 11.1 resets the watchdog after it has loaded a snapshot, and connects anew at the end of a migration, although the
    /// guest runs on and goes on feeding. Unless this option is given, the server arms the watchdog again as it was, with
    /// a full timeout, at the third heartbeat and a second after the first. With --qmp and an x86 QEMU, which does not
    /// restore the address of the device either, it stops the VM for a moment and puts the address back. The event
    /// "unprotected" and the metric vm_watchdog_unprotected say where it cannot.
    #[arg(long)]
    no_rearm: bool,

    /// Whether the server gives up what it does not need once it has started
    ///
    /// It then makes only the system calls that it needs, and reaches only the files that options name (where the kernel
    /// has Landlock). A forbidden system call ends it with status 159. The command of --exec runs outside.
    #[arg(long, value_name = "MODE", value_enum, default_value_t = SandboxMode::On)]
    sandbox: SandboxMode,

    /// Permissions of the sockets, in octal
    #[arg(long, value_name = "MODE", default_value = "600", value_parser = parse_mode)]
    socket_mode: Mode,

    /// Serve Prometheus metrics at http://ADDRESS/metrics, or on a Unix socket
    ///
    /// The same address has /status for "vm-watchdog status", and /livez and /readyz for the probes.
    /// A port alone is a port of 127.0.0.1; port 0 is a free one, which the event "metrics" names. The socket has the
    /// permissions of --socket-mode.
    #[arg(long, value_name = "[ADDRESS:]PORT|unix:PATH", value_parser = parse_address)]
    metrics: Option<MetricsAddress>,

    /// Write Prometheus metrics to this file, for the textfile collector of node_exporter
    ///
    /// It is replaced every 15 s and after an expiry, and removed at the end. node_exporter reads names that end in .prom.
    #[arg(long, value_name = "FILE")]
    metrics_file: Option<PathBuf>,

    /// How events are written to standard output
    ///
    /// json writes one object a line. "event" names it, "id" is the watchdog, "vm_time_ns" when it was written, on the
    /// clock of the VM, which is paused with it.
    #[arg(long, value_name = "FORMAT", value_parser = parser(), default_value = "text")]
    events: Format,

    /// Append events to this file instead [default: standard output]
    ///
    /// SIGHUP opens it anew, for programs that rotate logs.
    #[arg(long, value_name = "FILE")]
    events_file: Option<PathBuf>,
}

/// The options of `vm-watchdog serve`.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// The name of the VM.
    pub name: Option<String>,
    pub watchdogs: Vec<WatchdogOptions>,
    /// The probes, if the VM has any.
    pub health: Option<HealthOptions>,
    /// What is accepted in the manifest, but probably not meant.
    pub warnings: Vec<String>,
    pub control: ControlOptions,
    /// Whether the control socket may be that of another process than the VMM.
    pub any_control_process: bool,
    pub state: Option<PathBuf>,
    pub sandbox: SandboxMode,
    pub socket_mode: Mode,
    pub metrics: Option<MetricsAddress>,
    pub metrics_file: Option<PathBuf>,
    pub events: Format,
    /// Where events go, if not to standard output.
    pub events_file: Option<PathBuf>,
}

/// Where metrics are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetricsAddress {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// A watchdog and its socket.
#[derive(Clone, Debug)]
pub struct WatchdogOptions {
    pub socket: PathBuf,
    /// The name of the watchdog.
    pub id: String,
    pub device: I6300esbConfig,
    pub policy: Policy,
    /// Whether a guest that does not know of a reset gets its watchdog back.
    pub rearms: bool,
}

/// The control channel of a VM, which performs the actions of its watchdogs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlOptions {
    /// None: the watchdog only reports.
    None,
    /// QEMU, and where its dumps go.
    Qmp { path: PathBuf, dumps: Option<DumpOptions> },
    /// Cloud Hypervisor, and the call for the action poweroff.
    CloudHypervisor { path: PathBuf, poweroff: String },
    /// A command. QMP, if given, only reports the events of the VM.
    Exec { command: String, qmp: Option<PathBuf> },
}

/// The dumps of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DumpOptions {
    pub folder: PathBuf,
    /// The names of the VM's watchdogs, with which the names of its dumps begin.
    pub ids: Vec<String>,
    /// How many there may be.
    pub most: u64,
    /// How many bytes they may have together; `None` is half of the file system.
    pub size: Option<u64>,
}

impl ServeOptions {
    /// Whether a probe has to look up the name of its host.
    pub fn looks_up_names(&self) -> bool {
        let probes = self.health.iter().flat_map(|health| [&health.liveness, &health.readiness]).flatten();
        probes.into_iter().any(|probe| probe.host_name().is_some())
    }
}

impl Args for ServeOptions {
    fn augment_args(command: Command) -> Command {
        Flags::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Flags::augment_args_for_update(command)
    }
}

impl FromArgMatches for ServeOptions {
    fn from_arg_matches(matches: &ArgMatches) -> clap::error::Result<Self> {
        let flags = Flags::from_arg_matches(matches)?;
        flags.parse().map_err(|message| clap::Error::raw(ErrorKind::ValueValidation, format!("{message}\n")))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> clap::error::Result<()> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Flags {
    /// Refuses what cannot work together, before any socket is created.
    fn parse(self) -> Result<ServeOptions, String> {
        let manifest = self.manifest.read()?;
        let watchdogs = self.watchdogs(manifest.as_ref())?;
        let control = self.control(&watchdogs)?;
        for (index, WatchdogOptions { socket, id, policy, .. }) in watchdogs.iter().enumerate() {
            let others = &watchdogs[..index];
            if others.iter().any(|other| other.socket == *socket) {
                return Err(of_socket(socket, "given twice"));
            }
            if others.iter().any(|other| other.id == *id) {
                return Err(format!("--watchdog: two watchdogs are called {id:?}"));
            }
            for action in policy.actions() {
                control.check(action).map_err(|message| of_socket(socket, &message))?;
            }
        }
        let (health, warnings) = manifest.map_or((None, Vec::new()), |manifest| (manifest.health, manifest.warnings));
        if let Some(health) = health.as_ref().filter(|health| health.liveness.is_some()) {
            for action in health.policy.actions() {
                control.check(action).map_err(|message| format!("the liveness probe: {message}"))?;
            }
        }
        let Self {
            name,
            any_control_process,
            state,
            sandbox,
            socket_mode,
            metrics,
            metrics_file,
            events,
            events_file,
            ..
        } = self;
        Ok(ServeOptions {
            name,
            watchdogs,
            health,
            warnings,
            control,
            any_control_process,
            state,
            sandbox,
            socket_mode,
            metrics,
            metrics_file,
            events,
            events_file,
        })
    }

    fn watchdogs(&self, manifest: Option<&ManifestOptions>) -> Result<Vec<WatchdogOptions>, String> {
        let of_manifest = manifest.map_or(&[][..], |manifest| &manifest.watchdogs);
        if !of_manifest.is_empty() {
            return self.watchdogs_of_manifest(of_manifest);
        }
        if manifest.is_some() && self.watchdogs.is_empty() && !self.sockets.is_empty() {
            return Err("the manifest has no watchdog, so --socket needs --watchdog".into());
        }
        let (sockets, configs) = (self.sockets.len(), self.watchdogs.len());
        let default = default_watchdog();
        let config = |index: usize| match configs {
            0 => Ok(&default),
            1 => Ok(&self.watchdogs[0]),
            _ if configs == sockets => Ok(&self.watchdogs[index]),
            _ => Err(format!(
                "--watchdog: given {configs} times with {sockets} --socket, accepted are once or {sockets} times"
            )),
        };
        let watchdog = |(index, socket): (usize, &PathBuf)| {
            let config = config(index)?;
            Ok(WatchdogOptions {
                socket: socket.clone(),
                id: config.id().map_or_else(|| format!("watchdog{index}"), str::to_owned),
                device: pci_device(config).map_err(|message| of_socket(socket, &message))?,
                policy: config.policy_with_rate(ACTION_RATE),
                rearms: !self.no_rearm,
            })
        };
        self.sockets.iter().enumerate().map(watchdog).collect()
    }

    fn watchdogs_of_manifest(&self, watchdogs: &[ManifestWatchdog]) -> Result<Vec<WatchdogOptions>, String> {
        if !self.watchdogs.is_empty() {
            return Err("--watchdog: the manifest has a watchdog already".into());
        }
        if watchdogs.len() != self.sockets.len() {
            return Err(match watchdogs.len() {
                1 => "the manifest has a watchdog, so it needs one --socket".into(),
                count => format!("the manifest has {count} watchdogs, so it needs {count} --socket"),
            });
        }
        let watchdog = |(index, (socket, watchdog)): (usize, (&PathBuf, &ManifestWatchdog))| WatchdogOptions {
            socket: socket.clone(),
            id: watchdog.id.clone().unwrap_or_else(|| format!("watchdog{index}")),
            device: watchdog.device,
            policy: Policy::new(watchdog.action).with_action_rate(ACTION_RATE.interval, ACTION_RATE.burst),
            rearms: !self.no_rearm,
        };
        Ok(self.sockets.iter().zip(watchdogs).enumerate().map(watchdog).collect())
    }

    fn control(&self, watchdogs: &[WatchdogOptions]) -> Result<ControlOptions, String> {
        let Self { qmp, cloud_hypervisor, poweroff, any_control_process, exec, dump_folder, .. } = self.clone();
        if cloud_hypervisor.is_some() && (qmp.is_some() || exec.is_some()) {
            return Err("--cloud-hypervisor goes with neither --qmp nor --exec".into());
        }
        if exec.as_ref().is_some_and(|command| command.trim().is_empty()) {
            return Err("--exec: an empty command does nothing".into());
        }
        if dump_folder.is_some() && (qmp.is_none() || exec.is_some()) {
            return Err("--dump-folder goes with --qmp and without --exec".into());
        }
        if poweroff.is_some() && cloud_hypervisor.is_none() {
            return Err("--poweroff goes with --cloud-hypervisor, which is missing".into());
        }
        if any_control_process && qmp.is_none() && cloud_hypervisor.is_none() {
            return Err("--any-control-process goes with --qmp or --cloud-hypervisor".into());
        }
        Ok(match (exec, qmp, cloud_hypervisor) {
            (Some(command), qmp, _) => ControlOptions::Exec { command, qmp },
            (None, Some(path), _) => {
                let ids = watchdogs.iter().map(|watchdog| watchdog.id.clone()).collect();
                let most = self.dump_limit.unwrap_or(MOST_DUMPS);
                let dumps = dump_folder.map(|folder| DumpOptions { folder, ids, most, size: self.dump_size });
                ControlOptions::Qmp { path, dumps }
            }
            (None, None, Some(path)) => {
                let poweroff = poweroff.unwrap_or_else(|| "vmm.shutdown".to_owned());
                ControlOptions::CloudHypervisor { path, poweroff }
            }
            (None, None, None) => ControlOptions::None,
        })
    }
}

/// The device of a watchdog, if vfio-user can have it and another process than the VMM can run it.
fn pci_device(watchdog: &WatchdogConfig) -> Result<I6300esbConfig, String> {
    if watchdog.steal_limit().is_some() {
        return Err("steal-limit= needs the run delay of the guest, which is in another process".into());
    }
    match watchdog.device() {
        DeviceConfig::I6300esb(device) => Ok(device),
        _ => Err(format!("{} is no PCI device", watchdog.model())),
    }
}

fn of_socket(socket: &Path, message: &str) -> String {
    format!("socket {}: {message}", socket.display())
}

impl ControlOptions {
    /// Refuses an action that the control channel cannot perform.
    fn check(&self, action: Action) -> Result<(), String> {
        match (self, action) {
            (_, Action::None | Action::Debug) => Ok(()),
            (Self::None, _) => Err(format!("the action {action} needs one of --qmp, --cloud-hypervisor, --exec")),
            (Self::CloudHypervisor { .. }, Action::Dump) => {
                Err("Cloud Hypervisor has no action dump: use --exec".into())
            }
            (Self::Qmp { dumps: None, .. }, Action::Dump) => Err("the action dump needs --dump-folder".into()),
            _ => Ok(()),
        }
    }
}

fn default_watchdog() -> WatchdogConfig {
    // The model alone is always valid.
    "i6300esb".parse().unwrap_or_else(|error| unreachable!("{error}"))
}

pub fn parse_mode(text: &str) -> Result<Mode, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    mode.map(Mode::from_raw_mode).ok_or_else(|| "accepted are octal permissions like 600 or 660".to_owned())
}

pub fn parse_name(text: &str) -> Result<String, String> {
    let is_name = (1..=LONGEST_NAME).contains(&text.len()) && !text.contains(char::is_control);
    let accepted = || format!("accepted are 1 to {LONGEST_NAME} bytes without control characters");
    is_name.then(|| text.to_owned()).ok_or_else(accepted)
}

/// Bytes, or a number with a unit of 1024.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = match unit {
        "" => Some(1),
        "K" => Some(1 << 10),
        "M" => Some(1 << 20),
        "G" => Some(1 << 30),
        "T" => Some(1 << 40),
        _ => None,
    };
    let size = unit.and_then(|unit: u64| number.parse::<u64>().ok()?.checked_mul(unit)).filter(|size| *size > 0);
    size.ok_or_else(|| "accepted are sizes like 512M, 64G or 1T".to_owned())
}

pub fn parse_address(text: &str) -> Result<MetricsAddress, String> {
    if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
        return Ok(MetricsAddress::Unix(path.into()));
    }
    if let Ok(port) = text.parse::<u16>() {
        return Ok(MetricsAddress::Tcp(([127, 0, 0, 1], port).into()));
    }
    let accepted = "accepted are a port, an address and a port like 127.0.0.1:9560, or a socket like unix:/run/metrics";
    text.parse().map(MetricsAddress::Tcp).map_err(|_| accepted.to_owned())
}

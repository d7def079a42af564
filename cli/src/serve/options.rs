//! The options of `vm-watchdog serve`, and which of them belong to which socket.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{ArgMatches, Args, Command, FromArgMatches};
use rustix::fs::Mode;
use vm_watchdog::i6300esb::I6300esbConfig;
use vm_watchdog::{Action, DeviceConfig, Policy, WatchdogConfig};
use vm_watchdog_timeline::Format;

use crate::format::parser;

/// Puts watchdogs into VMs of Cloud Hypervisor, QEMU 10.1 or newer, and any other VMM that speaks vfio-user.
///
/// Each --socket is one watchdog. The options --watchdog, --qmp, --cloud-hypervisor, --poweroff, --exec, --dump-folder
/// and --state belong to the --socket before them; those before the first --socket hold for every one that does not
/// have its own. Sockets with the same --qmp or --cloud-hypervisor are watchdogs of the same VM.
///
/// A new connection, and the end of one, is a power-on reset of the watchdog: it is disarmed, and keeps only whether it
/// caused the last reset. When the server ends, the guest is not protected until its VM connects again.
#[derive(Clone, Debug, Args)]
struct Flags {
    /// Where the VMM connects; once for each watchdog
    #[arg(long = "socket", value_name = "PATH", required = true)]
    sockets: Vec<PathBuf>,

    /// The watchdog that the guest sees [default: i6300esb,action=reset]
    ///
    /// action=, pretimeout= and then= take reset, shutdown, poweroff, pause, inject-nmi, dump, none or debug (as none).
    /// The pretimeout action is due before=TIME before the timeout, by default a quarter of the period: a guest that
    /// feeds later than that (systemd and the watchdog daemon feed at half of it, busybox as -t says) is acted on
    /// although it is healthy. grace=30s with then= acts again when the action did not help, or could not be done.
    /// interrupt=intx gives the device an interrupt pin, which it raises at the end of its first stage, at the price of a
    /// second round trip for each access of the guest. interrupt=msi adds MSI, which has no such price for a guest that
    /// enables it.
    #[arg(
        long = "watchdog",
        value_name = "MODEL[,action=ACTION][,pretimeout=ACTION[,before=TIME]][,grace=TIME,then=ACTION][,id=NAME][,interrupt=intx|msi]"
    )]
    watchdogs: Vec<WatchdogConfig>,

    /// Act on a QEMU through this QMP socket, and stop the clock while QEMU says that the VM is paused
    ///
    /// QEMU serves one client a QMP socket, so this one should be the watchdog's own.
    #[arg(long = "qmp", value_name = "PATH")]
    qmp: Vec<PathBuf>,

    /// Act on a Cloud Hypervisor through its API socket
    #[arg(long = "cloud-hypervisor", value_name = "PATH")]
    cloud_hypervisor: Vec<PathBuf>,

    /// What the action poweroff asks a Cloud Hypervisor for [default: vmm.shutdown]
    ///
    /// vmm.shutdown ends its process, vm.shutdown ends the VM alone.
    #[arg(long = "poweroff", value_name = "CALL", value_parser = ["vmm.shutdown", "vm.shutdown"])]
    poweroff: Vec<String>,

    /// Act by running COMMAND in a shell
    ///
    /// The event is in the variables WATCHDOG_ID, WATCHDOG_SOCKET, WATCHDOG_STAGE, WATCHDOG_ACTION, WATCHDOG_ATTEMPT,
    /// WATCHDOG_DEADLINE_NS, WATCHDOG_OBSERVED_NS and WATCHDOG_LATENESS_NS, and as one JSON object on its standard
    /// input. It has 30 s. A status other than 0 means that the action was not done: it is tried again. With --qmp, QMP
    /// is followed and COMMAND acts.
    #[arg(long = "exec", value_name = "COMMAND")]
    exec: Vec<String>,

    /// Where the action dump has QEMU write the guest's memory
    #[arg(long = "dump-folder", value_name = "PATH")]
    dump_folder: Vec<PathBuf>,

    /// Keep the watchdog's state in this file across restarts of the server
    #[arg(long = "state", value_name = "FILE")]
    state: Vec<PathBuf>,

    /// Permissions of the sockets, in octal
    #[arg(long, value_name = "MODE", default_value = "600", value_parser = parse_mode)]
    socket_mode: Mode,

    /// Serve Prometheus metrics at http://ADDRESS/metrics
    ///
    /// A port alone is a port of 127.0.0.1; port 0 is a free one, which the event "metrics" names.
    #[arg(long, value_name = "[ADDRESS:]PORT", value_parser = parse_address)]
    metrics: Option<SocketAddr>,

    /// How events are written to standard output
    ///
    /// json writes one object a line. "event" names it, "id" is the watchdog, "vm_time_ns" when it was written, on the
    /// clock of the VM, which is paused with it.
    #[arg(long, value_name = "FORMAT", value_parser = parser(), default_value = "text")]
    events: Format,
}

/// The options of `vm-watchdog serve`.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    pub endpoints: Vec<EndpointOptions>,
    pub socket_mode: Mode,
    pub metrics: Option<SocketAddr>,
    pub events: Format,
}

/// What belongs to one socket.
#[derive(Clone, Debug)]
pub struct EndpointOptions {
    pub socket: PathBuf,
    /// The name of the watchdog.
    pub id: String,
    pub device: I6300esbConfig,
    pub policy: Policy,
    pub control: ControlOptions,
    pub state: Option<PathBuf>,
}

/// The control channel of a VM, which performs the actions of its watchdogs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlOptions {
    /// None: the watchdog only reports.
    None,
    /// QEMU, and the folder for its dumps.
    Qmp { path: PathBuf, dump_folder: Option<PathBuf> },
    /// Cloud Hypervisor, and the call for the action poweroff.
    CloudHypervisor { path: PathBuf, poweroff: String },
    /// A command. QMP, if given, only reports the events of the VM.
    Exec { command: String, qmp: Option<PathBuf> },
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
        pair(flags, matches).map_err(|message| clap::Error::raw(ErrorKind::ValueValidation, format!("{message}\n")))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> clap::error::Result<()> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Gives each option to the socket before it.
fn pair(flags: Flags, matches: &ArgMatches) -> Result<ServeOptions, String> {
    let sockets: Vec<usize> = matches.indices_of("sockets").into_iter().flatten().collect();
    let positions = Positions { matches, sockets: &sockets };
    let watchdogs = positions.pair("watchdogs", "--watchdog", flags.watchdogs)?;
    let qmp = positions.pair("qmp", "--qmp", flags.qmp)?;
    let cloud_hypervisor = positions.pair("cloud_hypervisor", "--cloud-hypervisor", flags.cloud_hypervisor)?;
    let poweroff = positions.pair("poweroff", "--poweroff", flags.poweroff)?;
    let exec = positions.pair("exec", "--exec", flags.exec)?;
    let dump_folder = positions.pair("dump_folder", "--dump-folder", flags.dump_folder)?;
    let state = positions.pair("state", "--state", flags.state)?;

    let mut endpoints = Vec::new();
    for (index, socket) in flags.sockets.into_iter().enumerate() {
        let watchdog = watchdogs[index].clone().unwrap_or_else(default_watchdog);
        let device = pci_device(&watchdog).map_err(|message| of_socket(&socket, &message))?;
        let control = ControlFlags {
            qmp: qmp[index].clone(),
            cloud_hypervisor: cloud_hypervisor[index].clone(),
            poweroff: poweroff[index].clone(),
            exec: exec[index].clone(),
            dump_folder: dump_folder[index].clone(),
        };
        let control = control.parse().map_err(|message| of_socket(&socket, &message))?;
        endpoints.push(EndpointOptions {
            socket,
            id: watchdog.id().map_or_else(|| format!("watchdog{index}"), str::to_owned),
            device,
            policy: watchdog.policy(),
            control,
            state: state[index].clone(),
        });
    }
    let Flags { socket_mode, metrics, events, .. } = flags;
    check(&endpoints)?;
    Ok(ServeOptions { endpoints, socket_mode, metrics, events })
}

/// Where on the command line the sockets are.
struct Positions<'a> {
    matches: &'a ArgMatches,
    sockets: &'a [usize],
}

impl Positions<'_> {
    /// The value that each socket has: its own, or the one before the first socket.
    fn pair<T: Clone>(&self, argument: &str, name: &str, values: Vec<T>) -> Result<Vec<Option<T>>, String> {
        let indices = self.matches.indices_of(argument).into_iter().flatten();
        let mut common = None;
        let mut own = vec![None; self.sockets.len()];
        for (index, value) in indices.zip(values) {
            let before = self.sockets.partition_point(|&socket| socket < index);
            let place = before.checked_sub(1).map_or(&mut common, |last| &mut own[last]);
            if place.replace(value).is_some() {
                return Err(format!("{name}: given twice for the same --socket"));
            }
        }
        Ok(own.into_iter().map(|own| own.or_else(|| common.clone())).collect())
    }
}

/// Refuses watchdogs that cannot work together, before any socket is created.
fn check(endpoints: &[EndpointOptions]) -> Result<(), String> {
    for (index, endpoint) in endpoints.iter().enumerate() {
        let EndpointOptions { socket, id, device: _, policy, control, state } = endpoint;
        let others = &endpoints[..index];
        let of_socket = |message: &str| Err(of_socket(socket, message));
        if others.iter().any(|other| other.socket == *socket) {
            return of_socket("given twice");
        }
        if others.iter().any(|other| other.id == *id) {
            return Err(format!("--watchdog: two watchdogs are called {id:?}"));
        }
        if state.is_some() && others.iter().any(|other| other.state == *state) {
            return of_socket("another watchdog has the same --state file");
        }
        for action in policy.actions() {
            control.check(action).or_else(|message| of_socket(&message))?;
        }
    }
    Ok(())
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

/// The options for the control channel of one socket, as they were given.
struct ControlFlags {
    qmp: Option<PathBuf>,
    cloud_hypervisor: Option<PathBuf>,
    poweroff: Option<String>,
    exec: Option<String>,
    dump_folder: Option<PathBuf>,
}

impl ControlFlags {
    fn parse(self) -> Result<ControlOptions, String> {
        let Self { qmp, cloud_hypervisor, poweroff, exec, dump_folder } = self;
        if cloud_hypervisor.is_some() && (qmp.is_some() || exec.is_some()) {
            return Err("--cloud-hypervisor goes with neither --qmp nor --exec".into());
        }
        if poweroff.is_some() && cloud_hypervisor.is_none() {
            return Err("--poweroff goes with --cloud-hypervisor, which is missing".into());
        }
        Ok(match (exec, qmp, cloud_hypervisor) {
            (Some(command), qmp, _) => ControlOptions::Exec { command, qmp },
            (None, Some(path), _) => ControlOptions::Qmp { path, dump_folder },
            (None, None, Some(path)) => {
                let poweroff = poweroff.unwrap_or_else(|| "vmm.shutdown".to_owned());
                ControlOptions::CloudHypervisor { path, poweroff }
            }
            (None, None, None) => ControlOptions::None,
        })
    }
}

impl ControlOptions {
    /// The QMP socket, if there is one.
    pub fn qmp(&self) -> Option<&Path> {
        match self {
            Self::Qmp { path, .. } => Some(path),
            Self::Exec { qmp, .. } => qmp.as_deref(),
            Self::CloudHypervisor { .. } | Self::None => None,
        }
    }

    /// The control socket of the VM, if there is one.
    pub fn socket(&self) -> Option<&Path> {
        match self {
            Self::CloudHypervisor { path, .. } => Some(path),
            Self::None | Self::Qmp { .. } | Self::Exec { .. } => self.qmp(),
        }
    }

    /// Refuses an action that the control channel cannot perform.
    fn check(&self, action: Action) -> Result<(), String> {
        match (self, action) {
            (_, Action::None | Action::Debug) => Ok(()),
            (Self::None, _) => Err(format!("the action {action} needs one of --qmp, --cloud-hypervisor, --exec")),
            (Self::CloudHypervisor { .. }, Action::Dump) => {
                Err("Cloud Hypervisor has no action dump: use --exec".into())
            }
            (Self::Qmp { dump_folder: None, .. }, Action::Dump) => Err("the action dump needs --dump-folder".into()),
            _ => Ok(()),
        }
    }
}

fn default_watchdog() -> WatchdogConfig {
    // The model alone is always valid.
    "i6300esb".parse().unwrap_or_else(|error| unreachable!("{error}"))
}

fn parse_mode(text: &str) -> Result<Mode, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    mode.map(Mode::from_raw_mode).ok_or_else(|| "accepted are octal permissions like 600 or 660".to_owned())
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.parse::<u16>() {
        return Ok(([127, 0, 0, 1], port).into());
    }
    text.parse().map_err(|_| "accepted are a port, or an address and a port like 127.0.0.1:9560".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        options: ServeOptions,
    }

    fn parse(line: &str) -> Result<ServeOptions, String> {
        let words = std::iter::once("serve").chain(line.split_whitespace());
        Cli::try_parse_from(words).map(|cli| cli.options).map_err(|error| error.to_string())
    }

    #[test]
    fn an_option_belongs_to_the_socket_before_it() {
        let options = parse(
            "--socket a --watchdog i6300esb,action=poweroff --qmp qa --socket b --qmp qb --state sb --socket c --exec x",
        )
        .unwrap();
        let [a, b, c] = &options.endpoints[..] else { panic!() };
        let qmp = |path: &str| ControlOptions::Qmp { path: path.into(), dump_folder: None };
        assert_eq!((a.policy.timeout, &a.control), (Action::Poweroff, &qmp("qa")));
        assert_eq!((b.policy.timeout, &b.control), (Action::Reset, &qmp("qb")));
        assert_eq!((&b.state, &a.state), (&Some("sb".into()), &None));
        assert_eq!(c.control, ControlOptions::Exec { command: "x".into(), qmp: None });
        assert_eq!((a.id.as_str(), c.id.as_str()), ("watchdog0", "watchdog2"));
    }

    #[test]
    fn an_option_before_the_first_socket_is_the_default_of_all() {
        let options = parse("--qmp q --watchdog i6300esb,action=pause --socket a --socket b --qmp qb").unwrap();
        let qmp: Vec<_> = options.endpoints.iter().map(|endpoint| endpoint.control.qmp().unwrap()).collect();
        assert_eq!(qmp, [Path::new("q"), Path::new("qb")]);
        assert!(options.endpoints.iter().all(|endpoint| endpoint.policy.timeout == Action::Pause));
    }

    #[test]
    fn invalid_options_are_refused_with_a_reason() {
        for (line, reason) in [
            ("", "--socket"),
            ("--socket a", "the action reset needs one of --qmp, --cloud-hypervisor, --exec"),
            ("--socket a --qmp q --socket a --qmp q", "socket a: given twice"),
            ("--socket a --qmp q --qmp r", "--qmp: given twice"),
            ("--qmp q --state s --socket a --socket b", "same --state"),
            ("--qmp q --watchdog i6300esb,id=x --socket a --socket b", "two watchdogs are called \"x\""),
            ("--socket a --qmp q --cloud-hypervisor c", "goes with neither"),
            ("--socket a --qmp q --poweroff vm.shutdown", "which is missing"),
            ("--socket a --cloud-hypervisor c --poweroff reboot", "vmm.shutdown"),
            ("--socket a --cloud-hypervisor c --watchdog i6300esb,action=dump", "--exec"),
            ("--socket a --qmp q --watchdog i6300esb,pretimeout=dump", "--dump-folder"),
            ("--socket a --qmp q --watchdog diag288", "diag288"),
            ("--socket a --qmp q --watchdog i6300esb,steal-limit=2", "steal-limit"),
            ("--socket a --qmp q --socket-mode 999", "octal"),
            ("--socket a --qmp q --metrics nowhere", "a port"),
        ] {
            let error = parse(line).expect_err(line);
            assert!(error.contains(reason), "{line}: {error}");
        }
    }

    #[test]
    fn a_watchdog_that_only_reports_needs_no_control_channel() {
        let options = parse("--socket a --watchdog i6300esb,action=none --metrics 9560").unwrap();
        assert_eq!(options.metrics, Some(([127, 0, 0, 1], 9560).into()));
        assert_eq!(options.socket_mode, Mode::RUSR | Mode::WUSR);
    }
}

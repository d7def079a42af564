//! The text form of a watchdog's configuration: one line.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use vm_watchdog_devices::i6300esb::{I6300esbConfig, InterruptPin};

use crate::action::{Action, UnknownAction};
use crate::diag288::UnknownCommands;
use crate::policy::{Escalation, Policy};

/// Configuration of one watchdog, parsed from text: `i6300esb,action=shutdown,grace=30s,then=poweroff`.
///
/// The device model comes first. The options are optional and come in any order:
///
/// | key | value | default |
/// |---|---|---|
/// | `action` | [`Action`] on timeout | `reset` |
/// | `pretimeout` | [`Action`] on pretimeout | `none` |
/// | `before` | time from the pretimeout to the timeout; the pretimeout never precedes the end of the first stage | a quarter of the period |
/// | `grace`, `then` | escalation: time to wait for the guest to recover, and the [`Action`] that follows | no escalation |
/// | `steal-limit` | how many times the timeout a period may last in all when [steal time](crate::WatchdogBuilder::compensate_steal_time) extends it | 1: no compensation |
/// | `id` | the watchdog's name in events and logs | the VMM chooses it |
/// | `interrupt` | interrupt of the device: `none`, `intx` (a pin), or `msi` (a pin, and messages for guests that enable them) | `none` |
/// | `zvm` | z/VM flavour: `refuse` or `accept` commands that [have no meaning for a VMM](UnknownCommands) | off |
///
/// `diag288` has one stage and no interrupt, and refuses `pretimeout`, `before` and `interrupt`. Only `diag288` accepts
/// `zvm`: the guest's command then selects the action, and `action` applies to commands without a meaning for a VMM.
///
/// Only parsing makes one, so each holds options that its model has, and prints as text that parses back to it.
///
/// ```
/// use vm_watchdog::i6300esb::{I6300esb, InterruptPin};
/// use vm_watchdog::{Action, DeviceConfig, WatchdogConfig};
///
/// let config: WatchdogConfig = "i6300esb,action=poweroff,pretimeout=inject-nmi,interrupt=intx".parse()?;
/// assert_eq!(config.policy().timeout, Action::Poweroff);
/// let DeviceConfig::I6300esb(device) = config.device() else { panic!("not an i6300esb") };
/// assert_eq!(device.interrupt_pin, InterruptPin::IntA);
/// let device = I6300esb::new(device);
/// # drop(device);
///
/// let error = "i6300esb,action=explode".parse::<WatchdogConfig>().unwrap_err();
/// assert!(error.to_string().starts_with("action: unknown watchdog action \"explode\""));
/// # Ok::<(), vm_watchdog::ConfigError>(())
/// ```
///
/// With the feature `serde` it is serialized as this text.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(try_from = "String", into = "String")
)]
pub struct WatchdogConfig {
    device: DeviceConfig,
    id: Option<String>,
    policy: Policy,
    steal_limit: Option<u32>,
}

impl WatchdogConfig {
    /// The device to build: its model, and what only that model has.
    pub fn device(&self) -> DeviceConfig {
        self.device
    }

    /// The device model that the guest sees.
    pub fn model(&self) -> DeviceModel {
        self.device.model()
    }

    /// The watchdog's name in events and logs, if the text gives one.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// The action for each expiry.
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// How many times the timeout a period may last in all when steal time extends it, for
    /// [`WatchdogBuilder::compensate_steal_time`](crate::WatchdogBuilder::compensate_steal_time); `None`: no compensation.
    pub fn steal_limit(&self) -> Option<u32> {
        self.steal_limit
    }
}

/// The device of a [`WatchdogConfig`]: its model, and the configuration that only this model has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceConfig {
    /// Intel 6300ESB, for [`I6300esb::new`](crate::i6300esb::I6300esb::new).
    I6300esb(I6300esbConfig),
    /// DIAGNOSE X'288', for [`Diag288::new`](crate::diag288::Diag288::new); with `Some`, for
    /// [`Diag288::zvm`](crate::diag288::Diag288::zvm): how it treats unknown commands.
    Diag288(Option<UnknownCommands>),
}

impl DeviceConfig {
    /// The model.
    pub const fn model(self) -> DeviceModel {
        match self {
            Self::I6300esb(_) => DeviceModel::I6300esb,
            Self::Diag288(_) => DeviceModel::Diag288,
        }
    }
}

/// The supported watchdog devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum DeviceModel {
    /// Intel 6300ESB, a PCI function.
    I6300esb,
    /// DIAGNOSE X'288', the watchdog of s390x.
    Diag288,
}

impl DeviceModel {
    /// Every model, in the order in which messages list them.
    pub const ALL: [Self; 2] = [Self::I6300esb, Self::Diag288];

    /// The model's name in libvirt, QEMU and KubeVirt.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::I6300esb => "i6300esb",
            Self::Diag288 => "diag288",
        }
    }

    /// The option keys that the model accepts.
    const fn keys(self) -> &'static [&'static str] {
        match self {
            Self::I6300esb => &["action", "pretimeout", "before", "grace", "then", "steal-limit", "id", "interrupt"],
            Self::Diag288 => &["action", "grace", "then", "steal-limit", "id", "zvm"],
        }
    }
}

impl fmt::Display for DeviceModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Error from parsing a [`WatchdogConfig`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The first word does not name a device model.
    #[error("unknown watchdog model {0:?}: accepted are {models}", models = DeviceModel::ALL.map(DeviceModel::as_str).join(", "))]
    UnknownModel(String),
    /// A word is not `key=value`, or its key is unknown.
    #[error("unknown watchdog option {0:?}: accepted are {keys}", keys = key_list(&KEYS))]
    UnknownOption(String),
    /// A known key does not apply to the model.
    #[error("{key}=... does not apply to {model}: accepted are {keys}", keys = key_list(model.keys()))]
    Inapplicable {
        /// The key.
        key: &'static str,
        /// The model.
        model: DeviceModel,
    },
    /// A key is given twice.
    #[error("{0}: given twice")]
    Repeated(&'static str),
    /// A value does not name an action.
    #[error("{key}: {source}")]
    Action {
        /// The key of the value.
        key: &'static str,
        /// The error in the value.
        source: UnknownAction,
    },
    /// A value is not among those accepted.
    #[error("{key}: unknown value {value:?}: accepted are {accepted}")]
    Value {
        /// The key of the value.
        key: &'static str,
        /// The value.
        value: String,
        /// The accepted values.
        accepted: &'static str,
    },
    /// A key is given without the key that it requires.
    #[error("{given}=... requires {missing}=..., which is missing")]
    Incomplete {
        /// The key that is given.
        given: &'static str,
        /// The missing key.
        missing: &'static str,
    },
}

const KEYS: [&str; 9] = ["action", "pretimeout", "before", "grace", "then", "steal-limit", "id", "interrupt", "zvm"];

/// Writes text that parses back to this configuration: the model, the action, and every option that is not the default.
impl fmt::Display for WatchdogConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, id, policy, steal_limit } = self;
        write!(f, "{},action={}", device.model(), policy.timeout)?;
        if policy.pretimeout != Action::None {
            write!(f, ",pretimeout={}", policy.pretimeout)?;
        }
        if let Some(before) = policy.pretimeout_before {
            write!(f, ",before={}ms", before.as_millis())?;
        }
        if let Some(Escalation { grace, action }) = policy.escalation {
            write!(f, ",grace={}ms,then={action}", grace.as_millis())?;
        }
        if let Some(limit) = steal_limit {
            write!(f, ",steal-limit={limit}")?;
        }
        if let Some(id) = id {
            write!(f, ",id={id}")?;
        }
        match device {
            DeviceConfig::I6300esb(config) if config.msi => f.write_str(",interrupt=msi"),
            DeviceConfig::I6300esb(config) if config.interrupt_pin == InterruptPin::IntA => {
                f.write_str(",interrupt=intx")
            }
            DeviceConfig::Diag288(Some(UnknownCommands::Refused)) => f.write_str(",zvm=refuse"),
            DeviceConfig::Diag288(Some(UnknownCommands::Accepted)) => f.write_str(",zvm=accept"),
            DeviceConfig::I6300esb(_) | DeviceConfig::Diag288(None) => Ok(()),
        }
    }
}

impl FromStr for WatchdogConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let mut words = text.split(',');
        let name = words.next().unwrap_or_default();
        let model = DeviceModel::ALL.into_iter().find(|model| model.as_str() == name);
        let model = model.ok_or_else(|| ConfigError::UnknownModel(name.to_owned()))?;
        let options = Options::parse(words)?;
        if let Some(key) = options.keys().find(|key| !model.keys().contains(key)) {
            return Err(ConfigError::Inapplicable { key, model });
        }

        let policy = Policy::new(options.action("action")?.unwrap_or_default());
        let policy = match (options.action("pretimeout")?, options.duration("before")?) {
            (None, None) => policy,
            (Some(action), None) => policy.with_pretimeout(action),
            (Some(action), Some(before)) => policy.with_pretimeout(action).with_pretimeout_before(before),
            (None, Some(_)) => return Err(ConfigError::Incomplete { given: "before", missing: "pretimeout" }),
        };
        let policy = match (options.duration("grace")?, options.action("then")?) {
            (None, None) => policy,
            (Some(grace), Some(action)) => policy.with_escalation(grace, action),
            (Some(_), None) => return Err(ConfigError::Incomplete { given: "grace", missing: "then" }),
            (None, Some(_)) => return Err(ConfigError::Incomplete { given: "then", missing: "grace" }),
        };
        let id = match options.value("id") {
            Some("") => return Err(value_error("id", "", "a non-empty name")),
            id => id.map(str::to_owned),
        };
        let steal_limit = match options.value("steal-limit") {
            None | Some("1") => None,
            Some(value) => {
                let times = value.parse().ok().filter(|times| (1..=1000).contains(times));
                Some(times.ok_or_else(|| value_error("steal-limit", value, "1 to 1000"))?)
            }
        };
        let device = match model {
            DeviceModel::I6300esb => DeviceConfig::I6300esb(options.i6300esb()?),
            DeviceModel::Diag288 => DeviceConfig::Diag288(options.zvm()?),
        };
        Ok(Self { device, id, policy, steal_limit })
    }
}

impl TryFrom<String> for WatchdogConfig {
    type Error = ConfigError;

    fn try_from(text: String) -> Result<Self, ConfigError> {
        text.parse()
    }
}

impl From<WatchdogConfig> for String {
    fn from(config: WatchdogConfig) -> Self {
        config.to_string()
    }
}

/// The values of the options, in the order of [`KEYS`].
struct Options<'a>([Option<&'a str>; KEYS.len()]);

impl<'a> Options<'a> {
    fn parse(words: impl Iterator<Item = &'a str>) -> Result<Self, ConfigError> {
        let mut values = [None; KEYS.len()];
        for word in words {
            let known = word.split_once('=').and_then(|(key, value)| Some((position(key)?, value)));
            let (index, value) = known.ok_or_else(|| ConfigError::UnknownOption(word.to_owned()))?;
            if values[index].replace(value).is_some() {
                return Err(ConfigError::Repeated(KEYS[index]));
            }
        }
        Ok(Self(values))
    }

    fn keys(&self) -> impl Iterator<Item = &'static str> + '_ {
        KEYS.into_iter().filter(|key| self.value(key).is_some())
    }

    fn value(&self, key: &str) -> Option<&'a str> {
        position(key).and_then(|index| self.0[index])
    }

    fn action(&self, key: &'static str) -> Result<Option<Action>, ConfigError> {
        let action = self.value(key).map(str::parse).transpose();
        action.map_err(|source| ConfigError::Action { key, source })
    }

    fn duration(&self, key: &'static str) -> Result<Option<Duration>, ConfigError> {
        let parse =
            |value| parse_duration(value).ok_or_else(|| value_error(key, value, "a time like 500ms, 30s or 5m"));
        self.value(key).map(parse).transpose()
    }

    fn i6300esb(&self) -> Result<I6300esbConfig, ConfigError> {
        let config = I6300esbConfig::default();
        match self.value("interrupt") {
            None | Some("none") => Ok(config),
            Some("intx") => Ok(config.with_interrupt_pin(InterruptPin::IntA)),
            Some("msi") => Ok(config.with_interrupt_pin(InterruptPin::IntA).with_msi()),
            Some(value) => Err(value_error("interrupt", value, "none, intx, msi")),
        }
    }

    fn zvm(&self) -> Result<Option<UnknownCommands>, ConfigError> {
        match self.value("zvm") {
            None => Ok(None),
            Some("refuse") => Ok(Some(UnknownCommands::Refused)),
            Some("accept") => Ok(Some(UnknownCommands::Accepted)),
            Some(value) => Err(value_error("zvm", value, "refuse, accept")),
        }
    }
}

fn position(key: &str) -> Option<usize> {
    KEYS.iter().position(|&known| known == key)
}

fn key_list(keys: &[&str]) -> String {
    keys.iter().map(|key| format!("{key}=...")).collect::<Vec<_>>().join(", ")
}

fn value_error(key: &'static str, value: &str, accepted: &'static str) -> ConfigError {
    ConfigError::Value { key, value: value.to_owned(), accepted }
}

fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<WatchdogConfig, String> {
        text.parse().map_err(|error: ConfigError| error.to_string())
    }

    #[test]
    fn the_model_alone_selects_the_defaults_of_libvirt() {
        let config = parse("i6300esb").unwrap();
        assert_eq!(config.policy(), Policy::new(Action::Reset));
        assert_eq!((config.id(), config.device()), (None, DeviceConfig::I6300esb(I6300esbConfig::default())));
    }

    #[test]
    fn options_parse_in_any_order() {
        let config = parse(
            "i6300esb,then=poweroff,grace=1500ms,before=2s,id=wd,interrupt=intx,steal-limit=4,action=shutdown,pretimeout=dump",
        );
        let config = config.unwrap();
        let policy = Policy::new(Action::Shutdown)
            .with_pretimeout(Action::Dump)
            .with_pretimeout_before(Duration::from_secs(2))
            .with_escalation(Duration::from_millis(1500), Action::Poweroff);
        let device = DeviceConfig::I6300esb(I6300esbConfig::default().with_interrupt_pin(InterruptPin::IntA));
        assert_eq!((config.device(), config.policy()), (device, policy));
        assert_eq!((config.id(), config.steal_limit()), (Some("wd"), Some(4)));
    }

    #[test]
    fn diag288_accepts_the_options_that_apply_to_it() {
        let config = parse("diag288,action=shutdown,grace=5m,then=poweroff,id=wd").unwrap();
        let policy = Policy::new(Action::Shutdown).with_escalation(Duration::from_secs(300), Action::Poweroff);
        assert_eq!((config.device(), config.policy()), (DeviceConfig::Diag288(None), policy));
        let device = |text| parse(text).unwrap().device();
        assert_eq!(device("diag288,zvm=refuse"), DeviceConfig::Diag288(Some(UnknownCommands::Refused)));
        assert_eq!(device("diag288,zvm=accept"), DeviceConfig::Diag288(Some(UnknownCommands::Accepted)));
    }

    #[test]
    fn a_configuration_prints_as_the_text_it_parses_from() {
        for text in [
            "i6300esb,action=reset",
            "i6300esb,action=reset,interrupt=msi",
            "i6300esb,action=shutdown,pretimeout=dump,before=2000ms,grace=1500ms,then=poweroff,steal-limit=4,id=wd,interrupt=intx",
            "diag288,action=none",
            "diag288,action=reset,zvm=refuse",
            "diag288,action=reset,zvm=accept",
        ] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_message_names_the_option_the_value_and_what_is_accepted() {
        for (text, message) in [
            ("", r#"unknown watchdog model "": accepted are i6300esb, diag288"#),
            ("ib700", r#"unknown watchdog model "ib700": accepted are i6300esb, diag288"#),
            (
                "i6300esb,colour=red",
                r#"unknown watchdog option "colour=red": accepted are action=..., pretimeout=..., before=..., grace=..., then=..., steal-limit=..., id=..., interrupt=..., zvm=..."#,
            ),
            (
                "i6300esb,action",
                r#"unknown watchdog option "action": accepted are action=..., pretimeout=..., before=..., grace=..., then=..., steal-limit=..., id=..., interrupt=..., zvm=..."#,
            ),
            (
                "i6300esb,pretimeout=nmi",
                r#"pretimeout: unknown watchdog action "nmi": accepted are reset, shutdown, poweroff, pause, inject-nmi, dump, none, debug"#,
            ),
            ("i6300esb,action=none,action=reset", "action: given twice"),
            ("i6300esb,grace=30s", "grace=... requires then=..., which is missing"),
            ("i6300esb,before=1s", "before=... requires pretimeout=..., which is missing"),
            (
                "i6300esb,pretimeout=dump,before=soon",
                r#"before: unknown value "soon": accepted are a time like 500ms, 30s or 5m"#,
            ),
            (
                "diag288,before=1s",
                "before=... does not apply to diag288: accepted are action=..., grace=..., then=..., steal-limit=..., id=..., zvm=...",
            ),
            ("i6300esb,then=reset", "then=... requires grace=..., which is missing"),
            ("i6300esb,grace=30,then=reset", r#"grace: unknown value "30": accepted are a time like 500ms, 30s or 5m"#),
            (
                "i6300esb,grace=99999999999999999999s,then=reset",
                r#"grace: unknown value "99999999999999999999s": accepted are a time like 500ms, 30s or 5m"#,
            ),
            (
                "i6300esb,zvm=refuse",
                "zvm=... does not apply to i6300esb: accepted are action=..., pretimeout=..., before=..., grace=..., then=..., steal-limit=..., id=..., interrupt=...",
            ),
            ("diag288,zvm=yes", r#"zvm: unknown value "yes": accepted are refuse, accept"#),
            ("i6300esb,interrupt=apic", r#"interrupt: unknown value "apic": accepted are none, intx, msi"#),
            ("i6300esb,steal-limit=0", r#"steal-limit: unknown value "0": accepted are 1 to 1000"#),
            (
                "diag288,pretimeout=none",
                "pretimeout=... does not apply to diag288: accepted are action=..., grace=..., then=..., steal-limit=..., id=..., zvm=...",
            ),
            (
                "diag288,interrupt=none",
                "interrupt=... does not apply to diag288: accepted are action=..., grace=..., then=..., steal-limit=..., id=..., zvm=...",
            ),
            ("i6300esb,id=", r#"id: unknown value "": accepted are a non-empty name"#),
        ] {
            assert_eq!(parse(text), Err(message.to_owned()), "{text}");
        }
    }
}

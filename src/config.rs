//! The text form of a watchdog's configuration: one line.

mod model;
#[cfg(test)]
mod tests;

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use vm_watchdog_devices::i6300esb::{I6300esbConfig, InterruptPin};
use vm_watchdog_devices::wdat::{TimerPeriod, WdatConfig};

use crate::action::{Action, UnknownAction};
use crate::diag288::UnknownCommands;
use crate::policy::{ActionRate, Escalation, Policy};
use model::all_keys;
pub use model::{DeviceConfig, DeviceModel};

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
/// | `action-interval`, `action-burst` | [rate of the actions](ActionRate): the time in which one may be performed, or `none`, and how many at once (1 to 1000, 3 if it is left out) | any rate |
/// | `steal-limit` | how many times the timeout a period may last in all when [steal time](crate::WatchdogBuilder::compensate_steal_time) extends it | 1: no compensation |
/// | `id` | the watchdog's name in events and logs | the VMM chooses it |
/// | `interrupt` | interrupt of the device: `none`, `intx` (a pin), or `msi` (a pin, and messages for guests that enable them) | `none` |
/// | `period` | unit in which the guest of a `wdat` counts: `1ms`, or `1s` for Windows ([`TimerPeriod`]) | `1ms` |
/// | `clock-frequency` | of an `sbsa`: the frequency of the guest's system counter in Hz, 1 to 4294967295 | what the guest reads in CNTFRQ_EL0 |
/// | `zvm` | z/VM flavour: `refuse` or `accept` commands that [have no meaning for a VMM](UnknownCommands) | off |
///
/// `diag288` and `wdat` have one stage and no interrupt, and refuse `pretimeout`, `before` and `interrupt`. An `sbsa` always
/// has its interrupt, and refuses `interrupt`. Only `wdat` accepts `period`, and only `sbsa` accepts `clock-frequency`. Only
/// `diag288` accepts `zvm`: the guest's command then selects the action, and `action` applies to commands without a meaning
/// for a VMM.
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
    /// The text says whether actions have a rate.
    has_rate: bool,
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

    /// The same, with this rate of the actions if the text says nothing about it: for a VMM that has a default.
    ///
    /// ```
    /// use std::time::Duration;
    /// use vm_watchdog::{ActionRate, WatchdogConfig};
    ///
    /// let default = ActionRate::new(Duration::from_secs(10), 3);
    /// let rate = |text: &str| -> Result<_, vm_watchdog::ConfigError> {
    ///     Ok(text.parse::<WatchdogConfig>()?.policy_with_rate(default).action_rate)
    /// };
    /// assert_eq!(rate("i6300esb,action=dump")?, Some(default));
    /// assert_eq!(rate("i6300esb,action=dump,action-interval=1m,action-burst=2")?, Some(ActionRate::new(Duration::from_secs(60), 2)));
    /// assert_eq!(rate("i6300esb,action=dump,action-interval=none")?, None);
    /// # Ok::<(), vm_watchdog::ConfigError>(())
    /// ```
    pub fn policy_with_rate(&self, default: ActionRate) -> Policy {
        match self.has_rate {
            true => self.policy,
            false => self.policy.with_action_rate(default.interval, default.burst),
        }
    }

    /// How many times the timeout a period may last in all when steal time extends it, for
    /// [`WatchdogBuilder::compensate_steal_time`](crate::WatchdogBuilder::compensate_steal_time); `None`: no compensation.
    pub fn steal_limit(&self) -> Option<u32> {
        self.steal_limit
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
    #[error("unknown watchdog option {0:?}: accepted are {keys}", keys = key_list(&all_keys()))]
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

/// The burst if only the interval is given.
const DEFAULT_BURST: u32 = 3;

/// Writes text that parses back to this configuration: the model, the action, and every option that is not the default.
impl fmt::Display for WatchdogConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, id, policy, has_rate, steal_limit } = self;
        write!(f, "{},action={}", device.model(), policy.timeout)?;
        if policy.pretimeout != Action::None || policy.pretimeout_before.is_some() {
            write!(f, ",pretimeout={}", policy.pretimeout)?;
        }
        if let Some(before) = policy.pretimeout_before {
            write!(f, ",before={}", time(before))?;
        }
        if let Some(Escalation { grace, action }) = policy.escalation {
            write!(f, ",grace={},then={action}", time(grace))?;
        }
        match policy.action_rate {
            Some(ActionRate { interval, burst }) => {
                write!(f, ",action-interval={},action-burst={burst}", time(interval))?;
            }
            None if *has_rate => f.write_str(",action-interval=none")?,
            None => {}
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
            DeviceConfig::Wdat(WdatConfig { period: TimerPeriod::OneSecond, .. }) => f.write_str(",period=1s"),
            DeviceConfig::Sbsa(Some(frequency)) => write!(f, ",clock-frequency={frequency}"),
            DeviceConfig::I6300esb(_)
            | DeviceConfig::Diag288(None)
            | DeviceConfig::Wdat(_)
            | DeviceConfig::Sbsa(None) => Ok(()),
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
        let policy = match options.action_rate()? {
            None => policy,
            Some(ActionRate { burst: 1, .. }) if policy.pretimeout != Action::None => {
                return Err(value_error(
                    "action-burst",
                    "1",
                    "2 to 1000 with pretimeout=..., because one is kept for a timeout",
                ));
            }
            Some(ActionRate { interval, burst }) => policy.with_action_rate(interval, burst),
        };
        let has_rate = options.value("action-interval").is_some();
        let id = match options.value("id") {
            Some("") => return Err(value_error("id", "", "a non-empty name")),
            id => id.map(str::to_owned),
        };
        let steal_limit = match options.value("steal-limit") {
            None => None,
            Some(value) => {
                let times = value.parse().ok().filter(|times| (1..=1000).contains(times));
                let times: u32 = times.ok_or_else(|| value_error("steal-limit", value, "1 to 1000"))?;
                (times > 1).then_some(times)
            }
        };
        let device = match model {
            DeviceModel::I6300esb => DeviceConfig::I6300esb(options.i6300esb()?),
            DeviceModel::Diag288 => DeviceConfig::Diag288(options.zvm()?),
            DeviceModel::Wdat => DeviceConfig::Wdat(options.wdat()?),
            DeviceModel::Sbsa => DeviceConfig::Sbsa(options.clock_frequency()?),
        };
        Ok(Self { device, id, policy, has_rate, steal_limit })
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

/// Every key with its value, if the text has one.
struct Options<'a>(Vec<(&'static str, Option<&'a str>)>);

impl<'a> Options<'a> {
    fn parse(words: impl Iterator<Item = &'a str>) -> Result<Self, ConfigError> {
        let mut options: Vec<_> = all_keys().into_iter().map(|key| (key, None)).collect();
        for word in words {
            let unknown = || ConfigError::UnknownOption(word.to_owned());
            let (key, value) = word.split_once('=').ok_or_else(unknown)?;
            let option = options.iter_mut().find(|(known, _)| *known == key);
            let (key, old) = option.ok_or_else(unknown)?;
            if old.replace(value).is_some() {
                return Err(ConfigError::Repeated(key));
            }
        }
        Ok(Self(options))
    }

    /// The keys that the text has.
    fn keys(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.0.iter().filter(|(_, value)| value.is_some()).map(|(key, _)| *key)
    }

    fn value(&self, key: &str) -> Option<&'a str> {
        self.0.iter().find(|(known, _)| *known == key).and_then(|(_, value)| *value)
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

    fn action_rate(&self) -> Result<Option<ActionRate>, ConfigError> {
        let burst = match self.value("action-burst") {
            None => DEFAULT_BURST,
            Some(value) => {
                let burst = value.parse().ok().filter(|burst| (1..=1000).contains(burst));
                burst.ok_or_else(|| value_error("action-burst", value, "1 to 1000"))?
            }
        };
        let interval = match self.value("action-interval") {
            None if self.value("action-burst").is_some() => {
                return Err(ConfigError::Incomplete { given: "action-burst", missing: "action-interval" });
            }
            None | Some("none" | "0") => return Ok(None),
            Some(value) => parse_duration(value)
                .ok_or_else(|| value_error("action-interval", value, "a time like 500ms, 30s or 5m, or none"))?,
        };
        Ok(Some(ActionRate::new(interval, burst)).filter(|rate| !rate.interval.is_zero()))
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

    fn wdat(&self) -> Result<WdatConfig, ConfigError> {
        let period = match self.value("period") {
            None | Some("1ms") => TimerPeriod::OneMillisecond,
            Some("1s") => TimerPeriod::OneSecond,
            Some(value) => return Err(value_error("period", value, "1ms, 1s")),
        };
        Ok(WdatConfig::default().with_period(period))
    }

    fn clock_frequency(&self) -> Result<Option<NonZeroU32>, ConfigError> {
        let parse = |value: &str| {
            value.parse().map_err(|_| value_error("clock-frequency", value, "a frequency in Hz, 1 to 4294967295"))
        };
        self.value("clock-frequency").map(parse).transpose()
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

fn key_list(keys: &[&str]) -> String {
    keys.iter().map(|key| format!("{key}=...")).collect::<Vec<_>>().join(", ")
}

fn value_error(key: &'static str, value: &str, accepted: &'static str) -> ConfigError {
    ConfigError::Value { key, value: value.to_owned(), accepted }
}

/// Text that [`parse_duration`] parses. A time beyond its milliseconds was given in whole seconds or minutes.
fn time(duration: Duration) -> String {
    match u64::try_from(duration.as_millis()) {
        Ok(millis) => format!("{millis}ms"),
        Err(_) => format!("{}s", duration.as_secs()),
    }
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

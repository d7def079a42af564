//! The `--watchdog` options: checks, names and summaries.

use vm_watchdog::wdat::WdatConfig;
use vm_watchdog::{DeviceConfig, DeviceModel, WatchdogConfig};

use crate::builtin::table::BuiltInGuest;
use crate::error::BootError;

/// How many watchdogs a VM can have: as many as there are free interrupts.
pub const MOST_WATCHDOGS: usize = 4;

/// Refuses watchdogs that this VMM does not have.
pub fn check(configs: &[WatchdogConfig]) -> Result<(), BootError> {
    let usage = |message: String| Err(BootError::Usage(message));
    if configs.len() > MOST_WATCHDOGS {
        return usage(format!("--watchdog: given {} times, at most {}", configs.len(), MOST_WATCHDOGS));
    }
    let ids = ids(configs);
    for (index, (config, id)) in configs.iter().zip(&ids).enumerate() {
        if ids[..index].contains(id) {
            return usage(format!("--watchdog: two watchdogs are called {id:?}"));
        }
        if !matches!(config.device(), DeviceConfig::I6300esb(_) | DeviceConfig::Wdat(_)) {
            return Err(no_such_model(config));
        }
    }
    let tables = configs.iter().filter(|config| config.model() == DeviceModel::Wdat).count();
    if tables > 1 {
        return usage(format!("--watchdog: wdat given {tables} times, at most 1: a VM has one watchdog table"));
    }
    Ok(())
}

/// Refuses a built-in guest without a watchdog that it drives.
pub fn check_built_in(guest: BuiltInGuest, configs: &[WatchdogConfig]) -> Result<(), BootError> {
    let model = guest.drives();
    if configs.iter().any(|config| config.model() == model) {
        return Ok(());
    }
    Err(BootError::Usage(format!(
        "--watchdog: the built-in guest drives {model}: add --watchdog {model}, or a --kernel"
    )))
}

/// The error for a watchdog of a model that this VMM does not have.
pub fn no_such_model(config: &WatchdogConfig) -> BootError {
    BootError::Usage(format!("--watchdog: this VMM has no {}, only i6300esb and wdat", config.model()))
}

/// The watchdog of the ACPI watchdog table, if there is one.
pub fn wdat(configs: &[WatchdogConfig]) -> Option<WdatConfig> {
    configs.iter().find_map(|config| match config.device() {
        DeviceConfig::Wdat(device) => Some(device),
        _ => None,
    })
}

/// Each watchdog in words.
pub fn summaries(configs: &[WatchdogConfig]) -> Vec<String> {
    let summary = |(config, id): (&WatchdogConfig, String)| {
        let policy = config.policy();
        let escalation = policy.escalation.map_or(String::new(), |next| format!(", then {}", next.action));
        format!("{id}: {}, pretimeout {}, timeout {}{escalation}", config.model(), policy.pretimeout, policy.timeout)
    };
    configs.iter().zip(ids(configs)).map(summary).collect()
}

/// The name of each watchdog.
pub fn ids(configs: &[WatchdogConfig]) -> Vec<String> {
    let id = |(index, config): (usize, &WatchdogConfig)| {
        config.id().map_or_else(|| format!("watchdog{index}"), str::to_owned)
    };
    configs.iter().enumerate().map(id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::ExitStatus;

    fn configs(texts: &[&str]) -> Vec<WatchdogConfig> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn watchdogs_that_this_vmm_does_not_have_are_refused_in_one_line() {
        let refused: [&[&str]; 5] = [
            &["diag288"],
            &["sbsa,clock-frequency=62500000"],
            &["i6300esb,id=a", "wdat,id=a"],
            &["i6300esb"; 5],
            &["wdat", "i6300esb", "wdat,id=b"],
        ];
        for texts in refused {
            let error = check(&configs(texts)).expect_err(texts[0]);
            assert_eq!(error.exit_status(), ExitStatus::Usage);
            assert!(!error.to_string().contains('\n'));
        }
        let error = check(&configs(&["i6300esb", "sbsa"])).expect_err("a watchdog of arm64");
        assert_eq!(error.to_string(), "--watchdog: this VMM has no sbsa, only i6300esb and wdat");
        check(&configs(&["i6300esb"; 4])).unwrap();
        check(&configs(&["i6300esb", "wdat", "i6300esb", "i6300esb"])).unwrap();
    }
}

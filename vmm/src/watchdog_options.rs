//! The `--watchdog` options: checks, names and summaries.

use vm_watchdog::i6300esb::I6300esbConfig;
use vm_watchdog::{DeviceConfig, WatchdogConfig};

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
        i6300esb(config)?;
    }
    Ok(())
}

/// The device of a watchdog, which this VMM has on its PCI bus only.
pub fn i6300esb(config: &WatchdogConfig) -> Result<I6300esbConfig, BootError> {
    match config.device() {
        DeviceConfig::I6300esb(device) => Ok(device),
        _ => Err(BootError::Usage(format!("--watchdog: this VMM has no {}", config.model()))),
    }
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
        let refused: [&[&str]; 3] = [&["diag288"], &["i6300esb,id=a", "i6300esb,id=a"], &["i6300esb"; 5]];
        for texts in refused {
            let error = check(&configs(texts)).expect_err(texts[0]);
            assert_eq!(error.exit_status(), ExitStatus::Usage);
            assert!(!error.to_string().contains('\n'));
        }
        check(&configs(&["i6300esb"; 4])).unwrap();
    }
}

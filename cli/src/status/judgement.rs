//! Whether a VM is as it should be, and why not.

use serde::Serialize;

use crate::status::document::{ActionOutcome, ActionStatus, ProbeStatus, StatusV1, WatchdogStatus};

/// How well a VM is; the alerts of packaging/prometheus use the same words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    #[default]
    Ok,
    /// The guest is not protected, or not ready, and that may be as its operator wants it.
    Warning,
    /// A person has to look at it.
    Critical,
}

/// What is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub severity: Severity,
    /// A sentence without its subject.
    pub text: String,
    /// Whether the text says more than the table.
    pub is_detail: bool,
}

impl Finding {
    fn new(severity: Severity, text: impl Into<String>) -> Self {
        Self { severity, text: text.into(), is_detail: false }
    }

    /// With more than the table has room for.
    fn detailed(severity: Severity, text: impl Into<String>) -> Self {
        Self { is_detail: true, ..Self::new(severity, text) }
    }

    /// With the reason that a server gives.
    fn because(severity: Severity, text: String, reason: Option<&str>) -> Self {
        match reason {
            Some(reason) => Self::detailed(severity, format!("{text}: {reason}")),
            None => Self::new(severity, text),
        }
    }
}

/// What is not as it should be with a watchdog.
pub fn of_watchdog(status: &StatusV1, watchdog: &WatchdogStatus) -> Vec<Finding> {
    let WatchdogStatus { connected, armed, unprotected, time_left_ms, last_heartbeat_ms, last_action, .. } = watchdog;
    let mut findings = Vec::new();
    if *unprotected {
        findings
            .push(Finding::detailed(Severity::Critical, "the guest believes in a protection that it does not have"));
    }
    match (*connected, status.qmp_connected) {
        (false, Some(true)) => {
            findings.push(Finding::detailed(Severity::Critical, "QEMU runs and has lost its watchdog"));
        }
        (false, _) => findings.push(Finding::new(Severity::Warning, "no VMM is connected")),
        (true, Some(false)) => {
            findings.push(Finding::detailed(Severity::Critical, "QMP is not connected, so actions fail"));
        }
        (true, _) => {}
    }
    if *armed && time_left_ms.is_none() {
        findings.push(Finding::new(Severity::Critical, "the guest has timed out and has not recovered"));
    }
    if *connected && !armed && !unprotected {
        findings.push(Finding::new(Severity::Warning, "the guest has not armed its watchdog"));
    }
    let has_recovered =
        |action: &ActionStatus| last_heartbeat_ms.is_some_and(|heartbeat| *armed && heartbeat < action.age_ms);
    findings.extend(last_action.as_ref().and_then(|action| of_action(action, has_recovered(action))));
    findings
}

/// What is not as it should be with a probe.
pub fn of_probe(probe: &ProbeStatus) -> Vec<Finding> {
    let mut findings = Vec::new();
    let reason = probe.reason.as_ref().map(|reason| reason.as_str());
    if is_liveness(probe) && is_failure(probe) {
        findings.push(Finding::because(Severity::Critical, "not alive".to_owned(), reason));
    } else if is_failure(probe) {
        findings.push(Finding::because(Severity::Warning, "not ready".to_owned(), reason));
    }
    let has_recovered = !is_failure(probe);
    findings.extend(probe.last_action.as_ref().and_then(|action| of_action(action, has_recovered)));
    findings
}

pub fn is_liveness(probe: &ProbeStatus) -> bool {
    probe.probe.as_str() == "liveness"
}

pub fn is_failure(probe: &ProbeStatus) -> bool {
    probe.result.as_str() != "success"
}

fn of_action(last: &ActionStatus, has_recovered: bool) -> Option<Finding> {
    let ActionStatus { action, outcome, reason, .. } = last;
    let severity = if has_recovered { Severity::Warning } else { Severity::Critical };
    let reason = reason.as_ref().map(|reason| reason.as_str());
    match outcome {
        ActionOutcome::Failed => Some(Finding::because(severity, format!("{action} failed"), reason)),
        ActionOutcome::Delayed => {
            let text = format!("{action} is delayed, because the guest times out too often");
            Some(Finding::new(Severity::Warning, text))
        }
        ActionOutcome::Started | ActionOutcome::Performed | ActionOutcome::Unknown => None,
    }
}

//! The results of the probes for load balancers and people: `/livez` and `/readyz`.

use serde::Serialize;
use vm_watchdog_probes::{Phase, ProbeResult};

use crate::serve::health::runner::Snapshot;

/// The JSON form of a probe.
#[derive(Serialize)]
struct Report<'a> {
    probe: &'static str,
    result: &'static str,
    /// Why the result is this one; absent before the first change.
    reason: Option<&'a str>,
    /// What the probe does: waiting, probing, on-hold, shutting-down, stopped.
    phase: &'static str,
    paused: bool,
    /// How many attempts in a row have succeeded, or failed.
    successes: u32,
    failures: u32,
}

/// The HTTP status and the body for a probe; `None` is a VM without it.
pub fn report(probe: Option<&Snapshot>) -> (&'static str, String) {
    let Some(probe) = probe else {
        return ("404 Not Found", "{\"error\":\"the VM has no such probe\"}\n".to_owned());
    };
    let status = match probe.result {
        ProbeResult::Success => "200 OK",
        ProbeResult::Failure => "503 Service Unavailable",
    };
    let report = Report {
        probe: probe.kind.as_str(),
        result: probe.result.as_str(),
        reason: probe.reason.as_deref(),
        phase: phase(probe.phase),
        paused: probe.is_paused,
        successes: probe.streak.successes,
        failures: probe.streak.failures,
    };
    // Strings and numbers always have a JSON form.
    (status, serde_json::to_string(&report).unwrap_or_default() + "\n")
}

fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Waiting => "waiting",
        Phase::Probing => "probing",
        Phase::OnHold => "on-hold",
        Phase::ShuttingDown => "shutting-down",
        Phase::Stopped => "stopped",
        _ => "unknown",
    }
}

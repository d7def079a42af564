//! Prometheus metrics, over HTTP and in a file.

pub mod file;
pub mod http;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime};

use prometheus::{Encoder, GaugeVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder};

use vm_watchdog::i6300esb::I6300esb;
use vm_watchdog_probes::{ProbeKind, ProbeResult};

use crate::serve::endpoint::Endpoint;
use crate::serve::health::Health;
use crate::serve::health::runner::Attempts;
use crate::serve::vm::Vm;

/// What the metrics are about.
#[derive(Clone)]
pub struct Subjects {
    /// The name of the VM, for the label `vm`.
    pub name: Option<String>,
    /// When the server started.
    pub started: Instant,
    /// The same as the time of day.
    pub started_at: SystemTime,
    pub vm: Arc<Vm>,
    pub endpoints: Vec<Arc<Endpoint>>,
    pub health: Option<Arc<Health>>,
}

/// Every metric as of now.
pub fn render(subjects: &Subjects) -> prometheus::Result<String> {
    let labels = subjects.name.as_ref().map(|name| HashMap::from([("vm".to_owned(), name.clone())]));
    let metrics = Metrics { registry: Registry::new_custom(None, labels)?, endpoints: &subjects.endpoints };
    metrics.count("heartbeats", "Heartbeats of the guest", |e| e.watchdog.stats().heartbeats)?;
    metrics.count("pretimeouts", "First stages that ended", |e| e.watchdog.stats().pretimeouts)?;
    metrics.count("timeouts", "Timeouts", |e| e.watchdog.stats().expiries)?;
    metrics.count("actions", "Actions performed", |e| e.watchdog.stats().actions)?;
    metrics
        .count("action_failures", "Tries to perform an action that failed", |e| e.watchdog.stats().action_failures)?;
    metrics.count("delayed_actions", "Actions that the rate of the actions has delayed", |e| {
        e.watchdog.stats().delayed_actions
    })?;
    metrics.count("suppressed_actions", "Actions that were left out", |e| e.watchdog.stats().suppressed_actions)?;
    metrics.count("ignored_accesses", "Accesses that hardware ignores", |e| e.watchdog.stats().ignored_accesses)?;
    metrics.count("heartbeats_while_disarmed", "Heartbeats of a disarmed watchdog, which have no effect", |e| {
        e.watchdog.stats().heartbeats_while_disarmed
    })?;
    metrics.count("rearmed", "Watchdogs armed again for guests that did not know of a reset", |e| {
        e.watchdog.stats().rearmed
    })?;
    metrics.count("interrupt_failures", "Interrupts that could not be signalled", |e| {
        e.watchdog.stats().interrupt_failures
    })?;
    metrics.count("timer_wakes", "Wakes of the thread that serves the timer", |e| e.watchdog.stats().wakes)?;
    metrics.count("connections", "VMMs that have connected", |e| load(&e.clients.connections))?;
    metrics.count("refused_clients", "VMMs refused because another one was connected", |e| load(&e.clients.refused))?;
    metrics.count("protocol_errors", "Connections that ended in an error", |e| load(&e.clients.protocol_errors))?;
    metrics.state("armed", "Whether the guest has the watchdog running", |e| Some(e.watchdog.stats().armed))?;
    metrics.state("unprotected", "Whether the guest believes in a protection that it does not have", |e| {
        Some(e.is_unprotected())
    })?;
    metrics.state("timed_out", "WDT_TIMEOUT: whether the last reset came from the watchdog", |e| {
        Some(e.watchdog.timed_out())
    })?;
    metrics
        .state("connected", "Whether a VMM is connected", |e| Some(e.clients.is_connected.load(Ordering::Relaxed)))?;
    metrics.state("paused", "Whether the VM is known to be paused", |e| Some(e.vm.clock.is_paused()))?;
    metrics.state("qmp_connected", "Whether QMP is connected", |e| Some(e.vm.control.qmp()?.is_connected()))?;
    metrics.seconds("last_heartbeat_age", "Time of the VM since its last heartbeat, absent before the first", |e| {
        let stats = e.watchdog.stats();
        stats.last_heartbeat.map(|last| stats.now.saturating_duration_since(last).as_secs_f64())
    })?;
    let help = "Time of the VM until the timeout, absent while disarmed, and from a timeout to the next heartbeat";
    metrics.seconds("time_left", help, |e| e.watchdog.stats().time_left.map(|left| left.as_secs_f64()))?;
    let help = "Time from a heartbeat to the timeout as the guest has set it, absent while disarmed";
    metrics.seconds("period", help, |e| e.watchdog.inspect(I6300esb::period).map(|period| period.as_secs_f64()))?;
    let started = subjects.started_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    metrics.seconds("start_time", "Unix time when the server started", |_| Some(started))?;
    metrics.info(subjects.vm.control.as_str())?;
    if let Some(health) = &subjects.health {
        metrics.health(health)?;
    }
    let mut text = Vec::new();
    TextEncoder::new().encode(&metrics.registry.gather(), &mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

struct Metrics<'a> {
    registry: Registry,
    endpoints: &'a [Arc<Endpoint>],
}

impl Metrics<'_> {
    fn count(&self, name: &str, help: &str, value: impl Fn(&Endpoint) -> u64) -> prometheus::Result<()> {
        let counters = IntCounterVec::new(Opts::new(format!("vm_watchdog_{name}_total"), help), &["id"])?;
        for endpoint in self.endpoints {
            counters.get_metric_with_label_values(&[endpoint.watchdog.id()])?.inc_by(value(endpoint));
        }
        self.registry.register(Box::new(counters))
    }

    fn state(&self, name: &str, help: &str, value: impl Fn(&Endpoint) -> Option<bool>) -> prometheus::Result<()> {
        let gauges = IntGaugeVec::new(Opts::new(format!("vm_watchdog_{name}"), help), &["id"])?;
        for endpoint in self.endpoints {
            if let Some(value) = value(endpoint) {
                gauges.get_metric_with_label_values(&[endpoint.watchdog.id()])?.set(value.into());
            }
        }
        self.registry.register(Box::new(gauges))
    }

    fn health(&self, health: &Health) -> prometheus::Result<()> {
        let help = "Result of the probe: 1 is alive, or ready";
        let results = IntGaugeVec::new(Opts::new("vm_watchdog_probe_success", help), &["probe"])?;
        let help = "Attempts of the probe, by their outcome";
        let attempts = IntCounterVec::new(Opts::new("vm_watchdog_probe_attempts_total", help), &["probe", "outcome"])?;
        for kind in [ProbeKind::Liveness, ProbeKind::Readiness] {
            let Some(probe) = health.probe(kind) else { continue };
            let is_success = probe.result == ProbeResult::Success;
            results.get_metric_with_label_values(&[kind.as_str()])?.set(is_success.into());
            let Attempts { successes, warnings, failures, errors } = probe.attempts;
            for (outcome, count) in
                [("success", successes), ("warning", warnings), ("failure", failures), ("error", errors)]
            {
                attempts.get_metric_with_label_values(&[kind.as_str(), outcome])?.inc_by(count);
            }
        }
        self.registry.register(Box::new(results))?;
        self.registry.register(Box::new(attempts))?;
        if let Some(stats) = health.liveness_stats() {
            self.total("liveness_failures", "Failures of the liveness probe", stats.expiries)?;
            self.total("liveness_actions", "Actions performed after them", stats.actions)?;
            self.total("liveness_action_failures", "Tries to perform one that failed", stats.action_failures)?;
        }
        Ok(())
    }

    fn total(&self, name: &str, help: &str, value: u64) -> prometheus::Result<()> {
        let counter = IntCounter::new(format!("vm_watchdog_{name}_total"), help)?;
        counter.inc_by(value);
        self.registry.register(Box::new(counter))
    }

    fn seconds(&self, name: &str, help: &str, value: impl Fn(&Endpoint) -> Option<f64>) -> prometheus::Result<()> {
        let gauges = GaugeVec::new(Opts::new(format!("vm_watchdog_{name}_seconds"), help), &["id"])?;
        for endpoint in self.endpoints {
            if let Some(value) = value(endpoint) {
                gauges.get_metric_with_label_values(&[endpoint.watchdog.id()])?.set(value);
            }
        }
        self.registry.register(Box::new(gauges))
    }

    /// The version and the actions as labels of a gauge that is always 1.
    fn info(&self, actions_by: &str) -> prometheus::Result<()> {
        let help = "Version of the server, and what performs its actions";
        let gauges = IntGaugeVec::new(Opts::new("vm_watchdog_info", help), &["id", "version", "actions_by"])?;
        for endpoint in self.endpoints {
            let labels = [endpoint.watchdog.id(), env!("CARGO_PKG_VERSION"), actions_by];
            gauges.get_metric_with_label_values(&labels)?.set(1);
        }
        self.registry.register(Box::new(gauges))
    }
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

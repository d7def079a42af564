//! `GET /status`: the VM and its watchdogs as of now, as JSON.

use std::sync::atomic::Ordering;

use vm_watchdog::i6300esb::I6300esb;
use vm_watchdog_probes::ProbeKind;

use crate::serve::endpoint::Endpoint;
use crate::serve::health::Health;
use crate::serve::metrics::Subjects;
use crate::status::document::{ProbeStatus, StatusV1, Text, VERSION, WatchdogStatus, millis};

/// The document of `GET /status`.
pub fn status(subjects: &Subjects) -> StatusV1 {
    let Subjects { vm, endpoints, health, name, started, .. } = subjects;
    StatusV1 {
        version: VERSION,
        name: name.as_deref().map(Text::new),
        server_version: env!("CARGO_PKG_VERSION").into(),
        uptime_ms: millis(started.elapsed()),
        actions_by: vm.control.as_str().into(),
        qmp_connected: vm.control.qmp().map(|qmp| qmp.is_connected()),
        paused: vm.clock.is_paused(),
        watchdogs: endpoints.iter().map(|endpoint| watchdog(endpoint)).collect(),
        probes: health.as_ref().map(|health| probes(health)).unwrap_or_default(),
    }
}

fn watchdog(endpoint: &Endpoint) -> WatchdogStatus {
    let stats = endpoint.watchdog.stats();
    WatchdogStatus {
        id: endpoint.watchdog.id().into(),
        socket: Text::new(&endpoint.socket.to_string_lossy()),
        connected: endpoint.clients.is_connected.load(Ordering::Relaxed),
        armed: stats.armed,
        unprotected: endpoint.is_unprotected(),
        timed_out: endpoint.watchdog.timed_out(),
        period_ms: endpoint.watchdog.inspect(I6300esb::period).map(millis),
        time_left_ms: stats.time_left.map(millis),
        heartbeats: stats.heartbeats,
        last_heartbeat_ms: stats.last_heartbeat.map(|last| millis(stats.now.saturating_duration_since(last))),
        timeouts: stats.expiries,
        last_action: endpoint.last_action.status(),
    }
}

fn probes(health: &Health) -> Vec<ProbeStatus> {
    let probe = |kind| {
        let probe = health.probe(kind)?;
        Some(ProbeStatus {
            probe: kind.as_str().into(),
            result: probe.result.as_str().into(),
            reason: probe.reason.as_deref().map(Text::new),
            last_action: health.last_action.status().filter(|_| kind == ProbeKind::Liveness),
        })
    };
    [ProbeKind::Liveness, ProbeKind::Readiness].into_iter().filter_map(probe).collect()
}

//! Prometheus metrics over HTTP, for one scraper at a time. One fixed path does not need an HTTP server; `httparse` parses
//! the request.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use prometheus::{Encoder, GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder};

use crate::serve::endpoint::Endpoint;

/// How long a scraper may take to send its request, and to receive the answer.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(2);
/// The delay before the next accept after the host refused one.
const ACCEPT_DELAY: Duration = Duration::from_secs(2);
/// The longest request that is read.
const LONGEST_REQUEST: usize = 8 << 10;
/// How many header lines it may have.
const MOST_HEADERS: usize = 64;

/// Serves the metrics of `endpoints` for ever.
///
/// # Errors
///
/// The error of the host if it cannot start a thread.
pub fn spawn(listener: TcpListener, endpoints: Vec<Arc<Endpoint>>) -> io::Result<SocketAddr> {
    let address = listener.local_addr()?;
    thread::Builder::new().name("metrics".into()).spawn(move || {
        loop {
            match listener.accept() {
                // A scraper that disconnects early gets no answer.
                Ok((stream, _)) => drop(answer(stream, &endpoints)),
                Err(error) => {
                    log::error!("no scraper can be accepted: {error}");
                    thread::sleep(ACCEPT_DELAY);
                }
            }
        }
    })?;
    Ok(address)
}

fn answer(mut stream: TcpStream, endpoints: &[Arc<Endpoint>]) -> io::Result<()> {
    stream.set_write_timeout(Some(SCRAPE_TIMEOUT))?;
    let (status, body) = match read_path(&mut stream)?.as_deref() {
        Some("/metrics") => match render(endpoints) {
            Ok(body) => ("200 OK", body),
            Err(error) => ("500 Internal Server Error", error.to_string()),
        },
        Some(_) => ("404 Not Found", "the metrics are at /metrics\n".to_owned()),
        None => ("400 Bad Request", "only GET /metrics is supported\n".to_owned()),
    };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n",
        prometheus::TEXT_FORMAT
    );
    stream.write_all((head + &body).as_bytes())
}

/// The path of a GET request; `None` for another request.
fn read_path(stream: &mut TcpStream) -> io::Result<Option<String>> {
    let deadline = Instant::now() + SCRAPE_TIMEOUT;
    let mut request = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let mut bytes = [0; 1024];
        let count = stream.read(&mut bytes)?;
        request.extend(&bytes[..count]);
        let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
        let mut parsed = httparse::Request::new(&mut headers);
        match parsed.parse(&request) {
            Ok(httparse::Status::Complete(_)) if parsed.method == Some("GET") => {
                return Ok(parsed.path.map(str::to_owned));
            }
            Ok(httparse::Status::Partial) if count > 0 && request.len() < LONGEST_REQUEST && !left.is_zero() => {}
            _ => return Ok(None),
        }
    }
}

/// Every metric as of now.
fn render(endpoints: &[Arc<Endpoint>]) -> prometheus::Result<String> {
    let metrics = Metrics { registry: Registry::new(), endpoints };
    metrics.count("heartbeats", "Heartbeats of the guest", |e| e.watchdog.stats().heartbeats)?;
    metrics.count("pretimeouts", "First stages that ended", |e| e.watchdog.stats().pretimeouts)?;
    metrics.count("expiries", "Timeouts", |e| e.watchdog.stats().expiries)?;
    metrics.count("actions", "Actions performed", |e| e.watchdog.stats().actions)?;
    metrics
        .count("action_failures", "Tries to perform an action that failed", |e| e.watchdog.stats().action_failures)?;
    metrics.count("ignored_accesses", "Accesses that hardware ignores", |e| e.watchdog.stats().ignored_accesses)?;
    metrics.count("interrupt_failures", "Interrupts that could not be signalled", |e| {
        e.watchdog.stats().interrupt_failures
    })?;
    metrics.count("timer_wakes", "Wakes of the thread that serves the timer", |e| e.watchdog.stats().wakes)?;
    metrics.count("connections", "VMMs that have connected", |e| load(&e.clients.connections))?;
    metrics.count("refused_clients", "VMMs refused because another one was connected", |e| load(&e.clients.refused))?;
    metrics.count("protocol_errors", "Connections that ended in an error", |e| load(&e.clients.protocol_errors))?;
    metrics.state("armed", "Whether the guest has the watchdog running", |e| Some(e.watchdog.stats().armed))?;
    metrics.state("timed_out", "WDT_TIMEOUT: whether the last reset came from the watchdog", |e| {
        Some(e.watchdog.timed_out())
    })?;
    metrics
        .state("connected", "Whether a VMM is connected", |e| Some(e.clients.is_connected.load(Ordering::Relaxed)))?;
    metrics.state("paused", "Whether the VM is known to be paused", |e| Some(e.vm.clock.is_paused()))?;
    metrics.state("qmp_connected", "Whether QMP is connected", |e| Some(e.vm.control.qmp()?.is_connected()))?;
    metrics.last_heartbeat_age()?;
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

    fn last_heartbeat_age(&self) -> prometheus::Result<()> {
        let help = "Time of the VM since its last heartbeat, absent before the first";
        let gauges = GaugeVec::new(Opts::new("vm_watchdog_last_heartbeat_age_seconds", help), &["id"])?;
        for endpoint in self.endpoints {
            let stats = endpoint.watchdog.stats();
            if let Some(last) = stats.last_heartbeat {
                let age = stats.now.saturating_duration_since(last);
                gauges.get_metric_with_label_values(&[endpoint.watchdog.id()])?.set(age.as_secs_f64());
            }
        }
        self.registry.register(Box::new(gauges))
    }
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

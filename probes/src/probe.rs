//! What a probe is: the fields of a manifest, with the defaults of Kubernetes.

use std::fmt;
use std::str::FromStr;

use crate::address::GuestAddress;

/// A liveness or readiness probe: what it asks the guest, when, and how many answers in a row count.
///
/// The fields are those of a manifest. [`Probe::checked`] applies the rules of Kubernetes to them.
///
/// ```
/// use vm_watchdog_probes::{Handler, Probe, ProbeKind, Scheme};
///
/// let handler = Handler::HttpGet {
///     scheme: Scheme::Http,
///     host: None,
///     port: 8080,
///     path: "/healthz".to_owned(),
///     headers: Vec::new(),
/// };
/// let probe = Probe { initial_delay_s: 120, ..Probe::new(handler) };
/// assert_eq!((probe.period_s, probe.timeout_s, probe.failure_threshold), (10, 1, 3));
///
/// let error = Probe { success_threshold: 2, ..probe }.checked(ProbeKind::Liveness).unwrap_err();
/// assert_eq!(error.to_string(), "successThreshold: invalid value 2: must be 1 in a liveness probe");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// What an attempt does.
    pub handler: Handler,
    /// `initialDelaySeconds`: no attempt starts before the VM has run for this time, in seconds.
    pub initial_delay_s: u32,
    /// `periodSeconds`: the time from one attempt to the next, in seconds; 0 means [`Probe::DEFAULT_PERIOD_S`].
    pub period_s: u32,
    /// `timeoutSeconds`: the limit for a whole attempt, in seconds; 0 means [`Probe::DEFAULT_TIMEOUT_S`].
    pub timeout_s: u32,
    /// `failureThreshold`: after how many failures in a row the result is failure.
    pub failure_threshold: u32,
    /// `successThreshold`: after how many successes in a row the result is success.
    pub success_threshold: u32,
    /// `terminationGracePeriodSeconds`: how long the guest may take to shut down after a liveness failure, in seconds;
    /// `None` is the grace period of the VM.
    pub termination_grace_period_s: Option<u32>,
}

impl Probe {
    /// `periodSeconds` where the manifest has none.
    pub const DEFAULT_PERIOD_S: u32 = 10;
    /// `timeoutSeconds` where the manifest has none.
    pub const DEFAULT_TIMEOUT_S: u32 = 1;
    /// `failureThreshold` where the manifest has none.
    pub const DEFAULT_FAILURE_THRESHOLD: u32 = 3;
    /// `successThreshold` where the manifest has none.
    pub const DEFAULT_SUCCESS_THRESHOLD: u32 = 1;

    /// The name that its attempts have to look up: its host, if that is no address.
    ///
    /// ```
    /// use vm_watchdog_probes::{Handler, Probe};
    ///
    /// let probe = |host: &str| Probe::new(Handler::TcpSocket { host: Some(host.to_owned()), port: 80 });
    /// assert_eq!(probe("db.example").host_name(), Some("db.example"));
    /// assert_eq!(probe("fe80::1%tap0").host_name(), None);
    /// ```
    pub fn host_name(&self) -> Option<&str> {
        let (Handler::HttpGet { host, .. } | Handler::TcpSocket { host, .. }) = &self.handler else {
            return None;
        };
        host.as_deref().filter(|host| host.parse::<GuestAddress>().is_err())
    }

    /// A probe with the defaults of Kubernetes.
    pub fn new(handler: Handler) -> Self {
        Self {
            handler,
            initial_delay_s: 0,
            period_s: Self::DEFAULT_PERIOD_S,
            timeout_s: Self::DEFAULT_TIMEOUT_S,
            failure_threshold: Self::DEFAULT_FAILURE_THRESHOLD,
            success_threshold: Self::DEFAULT_SUCCESS_THRESHOLD,
            termination_grace_period_s: None,
        }
    }
}

/// What an attempt of a probe does.
///
/// ```
/// use vm_watchdog_probes::Handler;
///
/// let handler = Handler::Exec { command: vec!["cat".to_owned(), "/tmp/healthy".to_owned()] };
/// assert_eq!(handler.name(), "exec");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Handler {
    /// `httpGet`: a status from 200 to 399 passes.
    HttpGet {
        /// `HTTP`, or `HTTPS` without verification of the certificate.
        scheme: Scheme,
        /// An IP address (IPv6 with `%scope` if it needs one) or a name; `None` is the address of the guest.
        host: Option<String>,
        /// The TCP port.
        port: u16,
        /// Path and query; a leading slash is added where it is missing.
        path: String,
        /// Headers of the request. `Host`, `User-Agent` and `Accept` replace those of the probe.
        headers: Vec<(String, String)>,
    },
    /// `tcpSocket`: a connection passes.
    TcpSocket {
        /// An IP address (IPv6 with `%scope` if it needs one) or a name; `None` is the address of the guest.
        host: Option<String>,
        /// The TCP port.
        port: u16,
    },
    /// `exec`: a command that the guest agent runs; the exit code 0 passes.
    Exec {
        /// The program and its arguments. No shell is involved.
        command: Vec<String>,
    },
    /// `guestAgentPing`: an answer of the guest agent passes.
    GuestAgentPing,
}

impl Handler {
    /// The name in a manifest: `httpGet`, `tcpSocket`, `exec` or `guestAgentPing`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::HttpGet { .. } => "httpGet",
            Self::TcpSocket { .. } => "tcpSocket",
            Self::Exec { .. } => "exec",
            Self::GuestAgentPing => "guestAgentPing",
        }
    }
}

/// The scheme of an `httpGet`.
///
/// ```
/// use vm_watchdog_probes::Scheme;
///
/// assert_eq!("HTTPS".parse(), Ok(Scheme::Https));
/// let error = "https".parse::<Scheme>().unwrap_err();
/// assert_eq!(error.to_string(), "unknown scheme \"https\": accepted are HTTP, HTTPS");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Plain HTTP.
    #[default]
    Http,
    /// HTTP over TLS.
    Https,
}

impl Scheme {
    /// The name in a manifest: `HTTP` or `HTTPS`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "HTTP",
            Self::Https => "HTTPS",
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Scheme {
    type Err = UnknownScheme;

    /// Parses `HTTP` or `HTTPS`, in upper case as in Kubernetes.
    fn from_str(name: &str) -> Result<Self, UnknownScheme> {
        match name {
            "HTTP" => Ok(Self::Http),
            "HTTPS" => Ok(Self::Https),
            _ => Err(UnknownScheme(name.to_owned())),
        }
    }
}

/// The text is not a [`Scheme`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown scheme {0:?}: accepted are HTTP, HTTPS")]
pub struct UnknownScheme(pub String);

/// What the result of a probe is used for.
///
/// ```
/// use vm_watchdog_probes::ProbeKind;
///
/// assert_eq!(ProbeKind::Liveness.to_string(), "liveness");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProbeKind {
    /// A failure ends the VM or resets it. The result is success until the probe fails.
    Liveness,
    /// The result says whether the VM takes requests. It is failure until the probe succeeds.
    Readiness,
}

impl ProbeKind {
    /// `liveness` or `readiness`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Liveness => "liveness",
            Self::Readiness => "readiness",
        }
    }
}

impl fmt::Display for ProbeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

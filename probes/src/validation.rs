//! The rules that Kubernetes and KubeVirt apply to the fields of a probe.

use std::fmt;

use crate::address::is_host;
use crate::probe::{Handler, Probe, ProbeKind};

impl Probe {
    /// The probe with defaults in place of a period or timeout of 0, if all its fields are valid.
    ///
    /// # Errors
    ///
    /// Each field that Kubernetes does not accept in a probe of this kind.
    ///
    /// ```
    /// use vm_watchdog_probes::{Handler, Probe, ProbeKind};
    ///
    /// let probe = Probe { period_s: 0, ..Probe::new(Handler::GuestAgentPing) };
    /// assert_eq!(probe.checked(ProbeKind::Readiness)?.period_s, 10);
    /// # Ok::<(), vm_watchdog_probes::InvalidProbe>(())
    /// ```
    pub fn checked(mut self, kind: ProbeKind) -> Result<Self, InvalidProbe> {
        let fields = self.invalid_fields(kind);
        if !fields.is_empty() {
            return Err(InvalidProbe(fields));
        }
        if self.period_s == 0 {
            self.period_s = Self::DEFAULT_PERIOD_S;
        }
        if self.timeout_s == 0 {
            self.timeout_s = Self::DEFAULT_TIMEOUT_S;
        }
        Ok(self)
    }

    /// What is accepted, but probably not meant. Each message names the fields and their values.
    ///
    /// ```
    /// use vm_watchdog_probes::{Handler, Probe};
    ///
    /// let probe = Probe { timeout_s: 10, ..Probe::new(Handler::GuestAgentPing) };
    /// let expected = "timeoutSeconds: 10 is not less than periodSeconds, which is 10: an attempt may end when the next one is due";
    /// assert_eq!(probe.warnings(), [expected]);
    /// ```
    pub fn warnings(&self) -> Vec<String> {
        let or_default = |value, default| if value == 0 { default } else { value };
        let period = or_default(self.period_s, Self::DEFAULT_PERIOD_S);
        let timeout = or_default(self.timeout_s, Self::DEFAULT_TIMEOUT_S);
        if timeout < period {
            return Vec::new();
        }
        vec![format!(
            "timeoutSeconds: {timeout} is not less than periodSeconds, which is {period}: an attempt may end when the \
             next one is due"
        )]
    }

    fn invalid_fields(&self, kind: ProbeKind) -> Vec<InvalidField> {
        let mut fields = Vec::new();
        let mut refuse = |field: &str, value: &dyn fmt::Display, accepted| {
            fields.push(InvalidField { field: field.to_owned(), value: value.to_string(), accepted });
        };
        if self.failure_threshold == 0 {
            refuse("failureThreshold", &0, "must be at least 1");
        }
        match (kind, self.success_threshold) {
            (_, 1) | (ProbeKind::Readiness, 2..) => {}
            (ProbeKind::Readiness, 0) => refuse("successThreshold", &0, "must be at least 1"),
            (ProbeKind::Liveness, other) => refuse("successThreshold", &other, "must be 1 in a liveness probe"),
        }
        let grace = "terminationGracePeriodSeconds";
        match (kind, self.termination_grace_period_s) {
            (ProbeKind::Readiness, Some(seconds)) => refuse(grace, &seconds, "must be absent in a readiness probe"),
            (ProbeKind::Liveness, Some(0)) => refuse(grace, &0, "must be at least 1"),
            (ProbeKind::Liveness, Some(1..) | None) | (ProbeKind::Readiness, None) => {}
        }
        match &self.handler {
            Handler::HttpGet { host, port, headers, .. } => {
                check_endpoint("httpGet", host.as_deref(), *port, &mut refuse);
                for (index, (name, value)) in headers.iter().enumerate() {
                    if !is_token(name) {
                        let field = format!("httpGet.httpHeaders[{index}].name");
                        refuse(&field, &format!("{name:?}"), "must be the name of an HTTP header");
                    }
                    if value.contains(|c: char| c.is_ascii_control() && c != '\t') {
                        let field = format!("httpGet.httpHeaders[{index}].value");
                        refuse(&field, &format!("{value:?}"), "must have no control characters");
                    }
                }
            }
            Handler::TcpSocket { host, port } => check_endpoint("tcpSocket", host.as_deref(), *port, &mut refuse),
            Handler::Exec { command } => match command.first().map(String::as_str) {
                None => refuse("exec.command", &"[]", "must name a program"),
                Some("") => refuse("exec.command[0]", &"\"\"", "must name a program"),
                Some(_) => {}
            },
            Handler::GuestAgentPing => {}
        }
        fields
    }
}

fn check_endpoint(
    handler: &str,
    host: Option<&str>,
    port: u16,
    refuse: &mut dyn FnMut(&str, &dyn fmt::Display, &'static str),
) {
    if let Some(host) = host.filter(|host| !is_host(host)) {
        refuse(&format!("{handler}.host"), &format!("{host:?}"), "must be an IP address or a DNS name");
    }
    if port == 0 {
        refuse(&format!("{handler}.port"), &0, "must be from 1 to 65535");
    }
}

/// Whether the text is a `token` of RFC 9110, section 5.6.2.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// A field of a probe with a value that is not accepted.
///
/// ```
/// use vm_watchdog_probes::{Handler, Probe, ProbeKind};
///
/// let probe = Probe::new(Handler::TcpSocket { host: None, port: 0 });
/// let error = probe.checked(ProbeKind::Readiness).unwrap_err();
/// let field = &error.fields()[0];
/// assert_eq!((field.field(), field.value(), field.accepted()), ("tcpSocket.port", "0", "must be from 1 to 65535"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: invalid value {value}: {accepted}")]
pub struct InvalidField {
    field: String,
    value: String,
    accepted: &'static str,
}

impl InvalidField {
    /// The field's path in the probe, `httpGet.port`.
    pub fn field(&self) -> &str {
        &self.field
    }

    /// The value as the manifest has it; texts are quoted.
    pub fn value(&self) -> &str {
        &self.value
    }

    /// What is accepted instead: `must be at least 1`.
    pub fn accepted(&self) -> &'static str {
        self.accepted
    }
}

/// The fields that [`Probe::checked`] does not accept: one at least. Its message is theirs, separated by `; `.
///
/// ```
/// use vm_watchdog_probes::{Handler, Probe, ProbeKind};
///
/// let probe = Probe { failure_threshold: 0, success_threshold: 0, ..Probe::new(Handler::GuestAgentPing) };
/// let error = probe.checked(ProbeKind::Readiness).unwrap_err();
/// assert_eq!(error.fields().len(), 2);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidProbe(Vec<InvalidField>);

impl InvalidProbe {
    /// The fields, in the order of a probe's documentation.
    pub fn fields(&self) -> &[InvalidField] {
        &self.0
    }
}

impl std::error::Error for InvalidProbe {}

impl fmt::Display for InvalidProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, field) in self.0.iter().enumerate() {
            write!(f, "{}{field}", if index == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

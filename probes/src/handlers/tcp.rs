//! `tcpSocket`: a connection is a success.

use std::sync::Arc;

use crate::handlers::deadline::Deadline;
use crate::handlers::fault::outcome_of;
use crate::handlers::resolve::{Connector, Host, Resolve};
use crate::outcome::Outcome;

#[derive(Debug)]
pub struct TcpSocket {
    host: Host,
    port: u16,
    connector: Connector,
}

impl TcpSocket {
    pub fn new(host: &str, port: u16) -> Self {
        Self { host: Host::new(host), port, connector: Connector::default() }
    }

    pub fn resolve_by(&mut self, resolver: Arc<dyn Resolve>) {
        self.connector.resolve_by(resolver);
    }

    pub fn attempt(&mut self, deadline: Deadline) -> Outcome {
        match self.connector.connect(&self.host, self.port, deadline) {
            Ok(_) => Outcome::Success,
            Err(error) => outcome_of(&format!("TCP probe failed: {}:{}", self.host, self.port), &error),
        }
    }
}

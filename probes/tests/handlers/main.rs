//! The handlers against servers of this process: what passes, what fails with which message, and what a hostile guest
//! cannot do.

mod agent;
mod exec;
mod hostile_agents;
mod hostile_servers;
mod http;
mod redirects;
mod support;
mod tcp;
mod tls;

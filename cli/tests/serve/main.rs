//! `vm-watchdog serve` as VMMs, operators and attackers meet it: the real process, and raw clients.

mod actions;
mod client;
mod commands;
mod disk;
mod fakes;
mod hostile;
mod lifecycle;
mod metrics;
mod observability;
mod pauses;
mod protocol;
mod server;
mod state;

//! `vm-watchdog serve` as VMMs, operators and attackers meet it: the real process, and raw clients.

mod actions;
mod client;
mod fakes;
mod hostile;
mod lifecycle;
mod observability;
mod protocol;
mod server;
mod state;

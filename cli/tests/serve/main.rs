//! `vm-watchdog serve` as a process, with raw vfio-user clients and fake VMMs.

mod actions;
mod client;
mod commands;
mod disk;
mod dumps;
mod fakes;
mod floods;
mod health;
mod hostile;
mod lifecycle;
mod metrics;
mod migration;
mod observability;
mod operations;
mod output;
mod pauses;
mod peers;
mod progress;
mod protocol;
mod sandbox;
mod scrapers;
mod server;
mod state;
mod system_calls;
mod tenants;
mod unprotected;

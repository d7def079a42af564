//! What operators install: each part is checked by the program that reads it.

#[path = "../serve/client.rs"]
#[allow(dead_code, reason = "the tests of the protocol use the rest")]
mod client;
mod container;
mod deb;
#[path = "../serve/fakes.rs"]
#[allow(dead_code, reason = "the tests of actions use the rest")]
mod fakes;
#[path = "../serve_guests/guest.rs"]
#[allow(dead_code, reason = "its guest has no watchdog here")]
mod guest;
mod monitoring;
mod pid1;
#[path = "../serve/server.rs"]
#[allow(dead_code, reason = "the tests of the protocol use the rest")]
mod server;
mod stand_in;
mod units;

//! What operators install, checked by the tools that read it.

#[path = "../serve/client.rs"]
#[allow(dead_code, reason = "the tests of the protocol use the rest")]
mod client;
#[path = "../serve/fakes.rs"]
#[allow(dead_code, reason = "the tests of actions use the rest")]
mod fakes;
mod monitoring;
#[path = "../serve/server.rs"]
#[allow(dead_code, reason = "the tests of the protocol use the rest")]
mod server;

//! The hook of KubeVirt, called as sidecar-shim calls it, and the sidecar that runs the server for it.

mod annotations;
#[path = "../serve/client.rs"]
#[allow(dead_code, reason = "only its connection is used here")]
mod client;
mod domain;
mod hook;
mod hostile;
mod manifests;
mod qemu;
mod schema;
#[path = "../serve/server.rs"]
#[allow(dead_code, reason = "only the limit of a wait is used here")]
mod server;
mod sidecar;

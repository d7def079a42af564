//! What the watchdogs cost, beside what the host's own operations cost in the same run, as tables in Markdown.
//!
//! `cargo bench -p vm-watchdog-benches`, or with the names of some of the tables behind `--`. Compare only figures of the
//! same run: the ratios, where there are any.

mod accesses;
mod guest;
mod lateness;
mod measure;
mod programs;
mod scale;
mod starts;
mod vfio_user;

use std::env::args;
use std::path::Path;

const TABLES: [&str; 8] = ["heartbeats", "registers", "snapshots", "lateness", "scale", "starts", "vfio-user", "guest"];

fn main() {
    let arguments: Vec<String> = args().skip(1).filter(|argument| argument != "--bench").collect();
    match &arguments[..] {
        [option, socket] if option == vfio_user::ECHO => return vfio_user::echo(Path::new(socket)),
        _ => {}
    }
    if let Some(unknown) = arguments.iter().find(|name| !TABLES.contains(&name.as_str())) {
        eprintln!("{unknown:?} is no table; accepted are {}", TABLES.join(", "));
        std::process::exit(2);
    }
    for table in TABLES.iter().filter(|table| arguments.is_empty() || arguments.iter().any(|name| name == *table)) {
        match *table {
            "heartbeats" => accesses::heartbeats(),
            "registers" => accesses::registers(),
            "snapshots" => accesses::snapshots(),
            "lateness" => lateness::measure(),
            "scale" => scale::measure(),
            "starts" => starts::measure(&programs::vm_watchdog()),
            "vfio-user" => vfio_user::measure(&programs::vm_watchdog()),
            _ => guest::measure(&programs::vm_watchdog()),
        }
    }
}

//! Sends ten thousand heartbeats to a watchdog. `strace -f -c` counts the host's system calls.
//!
//! `cargo build --example heartbeats && strace -f -c target/debug/examples/heartbeats`

use vm_watchdog::i6300esb::{I6300esb, I6300esbConfig};
use vm_watchdog::{Event, Watchdog};

fn main() -> Result<(), vm_watchdog::Error> {
    let heartbeats: u32 = std::env::args().nth(1).and_then(|count| count.parse().ok()).unwrap_or(10_000);
    let watchdog = Watchdog::builder("wd", I6300esb::new(I6300esbConfig::default())).build(|_: &Event| Ok(()))?;
    let _thread = watchdog.spawn()?;
    watchdog.write_config(0x68, &[0x02]);
    for _ in 0..heartbeats {
        watchdog.write_bar(0x0C, &0x0080u16.to_le_bytes());
        watchdog.write_bar(0x0C, &0x0086u16.to_le_bytes());
        watchdog.write_bar(0x0C, &0x0100u16.to_le_bytes());
    }
    println!("{} heartbeats", watchdog.stats().heartbeats);
    Ok(())
}

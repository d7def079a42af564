//! Exhaustive exploration of the models.
//!
//! A breadth-first search performs every step of an alphabet (accesses of a guest, calls of a host, and waits, to 1 ns
//! before a deadline, to the deadline, and beyond) in every state that the steps lead to, until there is no new state.
//! After each step the device must be what the contract says, which each world restates. A violation is printed as a
//! shortest sequence of steps that leads to it.
//!
//! States are compared without the reading of the clock: a saved state has durations only, and each step is also
//! performed on a device that was restored on another clock. The saved state is the whole device (`inspect_restored`),
//! so two devices with the same one behave the same.
//!
//! What is not explored: preloads and timeouts other than those of the alphabets, instants between those of the waits,
//! a host that is late twice in a row, and accesses of other widths. The random tests of each model have them.
//!
//! `cargo test -p vm-watchdog-devices --test exploration -- --nocapture` prints the size of each world. With
//! `RUSTFLAGS="-C instrument-coverage -Z coverage-options=branch"` on nightly, the tests of the i6300esb and of diag288 take every
//! condition of the models both ways, but for those that refuse an impossible saved state or another instruction, and
//! one in `is_sizing_while_decoding` that its caller excludes (194 conditions, 13 such; every line of the i6300esb's
//! registers, configuration space, counter and stages).

mod device;
mod diag288;
mod i6300esb;
mod mutants;
mod sbsa;
mod search;
mod wdat;
mod world;

use std::thread;
use std::time::Instant;

use device::Sound;
use diag288::Diag288World;
use i6300esb::I6300esbWorld;
use sbsa::SbsaWorld;
use search::{Explored, World, explore};
use wdat::WdatWorld;

#[test]
fn the_i6300esb_keeps_its_contract_in_every_state() {
    explore_all("i6300esb", I6300esbWorld::<Sound>::all().map(|world| (world.name, world)));
}

#[test]
fn diag288_keeps_its_contract_in_every_state() {
    explore_all("diag288", Diag288World::<Sound>::all().map(|world| (world.name, world)));
}

#[test]
fn wdat_keeps_its_contract_in_every_state() {
    explore_all("wdat", WdatWorld::<Sound>::all().map(|world| (world.name, world)));
}

#[test]
fn sbsa_keeps_its_contract_in_every_state() {
    explore_all("sbsa", SbsaWorld::<Sound>::all().map(|world| (world.name, world)));
}

/// Explores the worlds of a model side by side, and prints their size.
fn explore_all<W: World + Sync, const N: usize>(model: &str, worlds: [(&str, W); N]) {
    let begun = Instant::now();
    let outcomes = thread::scope(|scope| {
        worlds
            .each_ref()
            .map(|(_, world)| scope.spawn(|| explore(world)))
            .map(|search| search.join().expect("no panic"))
    });
    let mut all = Explored::default();
    for ((name, _), outcome) in worlds.iter().zip(outcomes) {
        let world = outcome.unwrap_or_else(|found| panic!("{model}, {name}:\n{found}"));
        println!("{model}, {name}: {world}");
        all = Explored {
            states: all.states + world.states,
            transitions: all.transitions + world.transitions,
            depth: all.depth.max(world.depth),
        };
    }
    println!("{model}: {all}, in {:.1?}", begun.elapsed());
}

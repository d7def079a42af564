//! Compares the i6300esb model with QEMU's device: the same accesses at the same virtual nanoseconds.
//!
//! QEMU runs without a guest, controlled over its qtest protocol. Where the contract says that the two are the same,
//! the tests compare them. Where it says that they differ, the tests measure both, so that a change in QEMU fails a
//! test.

mod alike;
mod clients;
mod different;
mod pair;
mod qtest;
mod random;

//! The i6300esb model beside QEMU's own device, driven through the same accesses on the same virtual nanoseconds.
//!
//! QEMU runs without a guest, as its own device tests do (qtest). Where the contract says that the two are alike, they
//! are compared; where it says that they differ, both sides are measured, so that a QEMU that changes is noticed.

mod alike;
mod clients;
mod different;
mod pair;
mod qtest;
mod random;

//! The Generic Watchdog of Arm's BSA, in the words of a guest.

mod driver;
mod guest;
mod properties;
mod reference;
mod registers;
mod saved_state;
mod time;

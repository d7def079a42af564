//! The built-in guest: one table of accesses and waits, assembled for a vCPU or played in-process.

mod assembler;
mod player;
mod table;

pub use assembler::{BuiltInImage, assemble};
pub use player::Player;
pub use table::{TABLE, remarks};

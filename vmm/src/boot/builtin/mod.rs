//! The built-in guests: a table each of accesses and waits, assembled for a vCPU or played in-process.

mod assembler;
mod player;
mod table;

pub use assembler::{BuiltInImage, assemble};
pub use player::{Player, Position};
pub use table::{BuiltInGuest, remarks};

//! The built-in guests: a table each of accesses and waits, assembled for a vCPU or played in-process.

pub mod assembler;
pub mod player;
pub mod position;
pub mod table;

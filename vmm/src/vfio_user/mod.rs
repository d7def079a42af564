//! A vfio-user server for one watchdog, between the bytes of a socket and the registers of the device.
//!
//! Nothing here does I/O: a [`Framer`] cuts what was received into messages, a [`Session`] answers them. The caller owns
//! the socket, which makes every exchange testable and the byte stream a fuzz target.
//!
//! # Why not the crate `vfio_user`
//!
//! The clients of a watchdog are VMMs that may be taken over by their guests, and one process serves many. Version 0.1.7
//! of the crate's server panics on a VERSION message without NUL, or with a short size; believes a 32-bit count of a
//! read; leaves the body of a message that it refuses in the stream, whose next bytes it then takes for a header; answers
//! errors with errno 0; serves one client and cannot be stopped. It also writes replies in pieces, which QEMU takes for
//! a short header, and for a device without memory, DMA or MSI most of it is not needed. So this is a small server of our
//! own, with the protocol of QEMU's `docs/interop/vfio-user.rst`.
//!
//! # What a client gets
//!
//! - Regions 0 (BAR0, 16 bytes) and 7 (configuration space, 256 bytes), by messages only. No DMA: DMA_MAP and DMA_UNMAP
//!   are answered and otherwise ignored.
//! - INTx if the watchdog has an interrupt pin, level triggered and automasked as VFIO has it.
//! - An access that starts in a region always succeeds, whatever its width: a guest can cause it, and Cloud Hypervisor's
//!   client waits for ever when it gets an error. Where nothing answers it reads all ones. The configuration region
//!   answers up to 4096 bytes for the same reason: a guest reaches that far through a PCI Express host bridge.
//! - An error with the errno that says why for whatever else is wrong, and the conversation goes on: EINVAL for a bad
//!   argument, EMSGSIZE for a message that is too long, EOPNOTSUPP for a command that the device has no use for. The owner of the
//!   socket [refuses](refuse) what it cannot hand over whole.
//! - An error and the end of the connection for what leaves no common ground: a size that is none, a message that is no
//!   command, no VERSION message at the start, or an incompatible one.

mod device;
mod framer;
mod interrupt;
mod session;
mod version;
mod wire;

pub use framer::{Framer, Message};
pub use interrupt::Intx;
pub use session::{Next, Session, refuse};
pub use wire::{Header, MAX_DATA, MAX_FDS, MAX_MESSAGE};

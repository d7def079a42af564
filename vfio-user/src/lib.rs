//! The server side of vfio-user for a PCI device: between the bytes of a socket and the registers of a [`PciDevice`].
//!
//! The protocol does no I/O: a [`Framer`] cuts the byte stream into messages, and a [`Session`] answers them. That makes
//! every exchange testable and the byte stream a fuzz target. A [`Connection`] does both on a Unix socket, without ever
//! blocking; a server with a transport of its own uses [`Framer`] and [`Session`] alone.
//!
//! # Why not the crate `vfio_user`
//!
//! The clients of a watchdog are VMMs that their guests may have taken over, and one process serves many. Version 0.1.7
//! of the crate's server panics on a VERSION message without NUL, or with a short size; trusts a 32-bit count of a read;
//! leaves the body of a refused message in the stream and takes its first bytes for a header; answers errors with errno
//! 0; serves one client and cannot be stopped. It also writes replies in pieces, which QEMU takes for a short header. So
//! this is a small server of our own for the protocol of QEMU's `docs/interop/vfio-user.rst`, with the constants of
//! `vfio-bindings`.
//!
//! # What a client gets
//!
//! - The BARs that the device has, and region 7 (configuration space, 256 bytes), by messages only. No DMA: DMA_MAP and
//!   DMA_UNMAP are answered and otherwise ignored.
//! - INTx if the device has an interrupt pin, level triggered and automasked as VFIO has it; one MSI message if it has that.
//! - Migration in the states RUNNING, STOP, STOP_COPY and RESUMING, if the device is [`Migratable`].
//! - An access that starts in a region always succeeds, whatever its width: a guest can cause it, and Cloud Hypervisor's
//!   client never returns from an access that got an error. The configuration region answers up to 4096 bytes for the
//!   same reason: a guest reaches that far through a PCI Express host bridge.
//! - An errno for every other mistake, and the session continues: EINVAL for a bad argument, EMSGSIZE for a message that
//!   is too long, EOPNOTSUPP for an unsupported command.
//! - An error and the end of the connection for an invalid message size, a message that is no command, and a VERSION
//!   message that is missing or incompatible.
#![forbid(unsafe_code)]

mod connection;
mod device;
mod disposer;
mod eventfd;
mod framer;
mod interrupt;
mod migration;
mod msi;
mod session;
mod signaller;
mod version;
mod wire;

pub use connection::{CloseReason, Connection};
pub use device::{BARS, PciDevice};
pub use disposer::Disposer;
pub use eventfd::{ClientEventfd, Descriptors};
pub use framer::{Framer, Message};
pub use interrupt::Intx;
pub use migration::{MAX_STATE, Migratable};
pub use msi::Msi;
/// The error of a request, in the signatures of this crate.
pub use rustix::io::Errno;
pub use session::{Next, Session, refuse};
pub use wire::{Header, MAX_DATA, MAX_FDS, MAX_MESSAGE};

//! Migration: DEVICE_FEATURE with MIGRATION and MIG_DEVICE_STATE, MIG_DATA_READ and MIG_DATA_WRITE.
//!
//! The state machine is that of VFIO (`enum vfio_device_mig_state` in Linux' `vfio.h`), without the optional states PRE_COPY
//! and P2P, for which the state of a device of this size is too small. A transition that is not direct goes through STOP.
//! The device never enters ERROR: what fails changes nothing.

use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FEATURE_GET, VFIO_DEVICE_FEATURE_MASK, VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE,
    VFIO_DEVICE_FEATURE_MIGRATION, VFIO_DEVICE_FEATURE_PROBE, VFIO_DEVICE_FEATURE_SET, VFIO_MIGRATION_STOP_COPY,
    vfio_device_mig_state_VFIO_DEVICE_STATE_RESUMING as RESUMING,
    vfio_device_mig_state_VFIO_DEVICE_STATE_RUNNING as RUNNING, vfio_device_mig_state_VFIO_DEVICE_STATE_STOP as STOP,
    vfio_device_mig_state_VFIO_DEVICE_STATE_STOP_COPY as STOP_COPY,
};

use crate::wire::{Fields, MAX_DATA};

/// The longest state of a device, in bytes.
pub const MAX_STATE: usize = 16 << 10;

/// The size of `argsz` and `flags`, or of `argsz` and `size`, before the data of a message.
const PREFIX_SIZE: usize = 8;
/// The size of the prefix and of `struct vfio_device_feature_migration` or `struct vfio_device_feature_mig_state`.
const FEATURE_SIZE: usize = 16;

/// A device that its client can stop, save, and restore.
///
/// ```
/// use vm_watchdog_vfio_user::{Errno, Migratable};
///
/// /// Eight bytes of scratch memory, which never change on their own.
/// struct Scratch([u8; 8]);
///
/// impl Migratable for Scratch {
///     fn stop(&mut self) {}
///     fn start(&mut self) {}
///     fn save(&mut self) -> Result<Vec<u8>, Errno> {
///         Ok(self.0.to_vec())
///     }
///     fn restore(&mut self, state: &[u8]) -> Result<(), Errno> {
///         self.0 = state.try_into().map_err(|_| Errno::INVAL)?;
///         Ok(())
///     }
/// }
///
/// let mut device = Scratch([0; 8]);
/// assert_eq!(device.restore(&[1, 2, 3]), Err(Errno::INVAL));
/// ```
pub trait Migratable {
    /// Stops the device: until it is started again, it changes nothing on its own and signals nothing.
    fn stop(&mut self);

    /// Starts the device that was stopped.
    fn start(&mut self);

    /// The whole state of the stopped device, at most [`MAX_STATE`] bytes.
    ///
    /// # Errors
    ///
    /// The errno for the client.
    fn save(&mut self) -> Result<Vec<u8>, Errno>;

    /// Restores the stopped device from the state of another one, or changes nothing. The state comes from an untrusted client.
    ///
    /// # Errors
    ///
    /// The errno for the client, EINVAL for a state that no device can be in.
    fn restore(&mut self, state: &[u8]) -> Result<(), Errno>;
}

/// How far the client is with the migration of the device.
#[derive(Debug, Default)]
pub(crate) enum Migration {
    #[default]
    Running,
    Stopped,
    /// The client reads the state.
    Saving {
        state: Vec<u8>,
        read: usize,
    },
    /// The client writes a state.
    Loading {
        state: Vec<u8>,
    },
}

impl Migration {
    /// DEVICE_FEATURE.
    pub fn feature(&mut self, device: &mut dyn Migratable, body: &[u8], reply: &mut Vec<u8>) -> Result<(), Errno> {
        let mut fields = Fields::new(body);
        let (argsz, flags) = (fields.u32()? as usize, fields.u32()?);
        let (feature, operation) = (flags & VFIO_DEVICE_FEATURE_MASK, flags & !VFIO_DEVICE_FEATURE_MASK);
        let supported = match feature {
            VFIO_DEVICE_FEATURE_MIGRATION => VFIO_DEVICE_FEATURE_GET,
            VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE => VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_SET,
            // As the kernel's VFIO answers.
            _ => return Err(Errno::NOTTY),
        };
        if operation & !(supported | VFIO_DEVICE_FEATURE_PROBE) != 0 {
            return Err(Errno::INVAL);
        }
        match operation {
            VFIO_DEVICE_FEATURE_GET if argsz >= FEATURE_SIZE => {
                let data = match feature {
                    VFIO_DEVICE_FEATURE_MIGRATION => u64::from(VFIO_MIGRATION_STOP_COPY).to_ne_bytes(),
                    _ => first_word(self.device_state()),
                };
                reply.extend([FEATURE_SIZE as u32, flags].map(u32::to_ne_bytes).concat());
                reply.extend(data);
            }
            VFIO_DEVICE_FEATURE_SET if argsz >= FEATURE_SIZE && body.len() == FEATURE_SIZE => {
                self.set_device_state(fields.u32()?, device)?;
                reply.extend(body);
            }
            _ if operation & VFIO_DEVICE_FEATURE_PROBE != 0 && argsz >= body.len() && body.len() <= FEATURE_SIZE => {
                reply.extend(body);
            }
            _ => return Err(Errno::INVAL),
        }
        Ok(())
    }

    /// MIG_DATA_READ. A client reads until it gets less than it has asked for.
    pub fn read(&mut self, body: &[u8], reply: &mut Vec<u8>) -> Result<(), Errno> {
        let mut fields = Fields::exactly(body, PREFIX_SIZE)?;
        let (argsz, size) = (fields.u32()? as usize, fields.u32()? as usize);
        let Self::Saving { state, read } = self else {
            return Err(Errno::INVAL);
        };
        if size > MAX_DATA || argsz < PREFIX_SIZE + size {
            return Err(Errno::INVAL);
        }
        let rest = &state[*read..];
        let data = &rest[..size.min(rest.len())];
        reply.extend([PREFIX_SIZE + data.len(), data.len()].map(|size| (size as u32).to_ne_bytes()).concat());
        reply.extend(data);
        *read += data.len();
        Ok(())
    }

    /// MIG_DATA_WRITE.
    pub fn write(&mut self, body: &[u8]) -> Result<(), Errno> {
        let mut fields = Fields::new(body);
        let (_argsz, size) = (fields.u32()?, fields.u32()? as usize);
        let data = fields.rest();
        let Self::Loading { state } = self else {
            return Err(Errno::INVAL);
        };
        if size != data.len() {
            return Err(Errno::INVAL);
        }
        if state.len() + data.len() > MAX_STATE {
            return Err(Errno::FBIG);
        }
        state.extend(data);
        Ok(())
    }

    /// The device was reset, which ends a migration.
    pub fn reset(&mut self, device: Option<&mut dyn Migratable>) {
        let before = std::mem::take(self);
        if let (false, Some(device)) = (matches!(before, Self::Running), device) {
            device.start();
        }
    }

    fn device_state(&self) -> u32 {
        match self {
            Self::Running => RUNNING,
            Self::Stopped => STOP,
            Self::Saving { .. } => STOP_COPY,
            Self::Loading { .. } => RESUMING,
        }
    }

    fn set_device_state(&mut self, wanted: u32, device: &mut dyn Migratable) -> Result<(), Errno> {
        if !matches!(wanted, RUNNING | STOP | STOP_COPY | RESUMING) {
            return Err(Errno::INVAL);
        }
        while self.device_state() != wanted {
            *self = match (&*self, wanted) {
                (Self::Running, _) => {
                    device.stop();
                    Self::Stopped
                }
                (Self::Stopped, RUNNING) => {
                    device.start();
                    Self::Running
                }
                (Self::Stopped, STOP_COPY) => {
                    let state = device.save()?;
                    if state.len() > MAX_STATE {
                        return Err(Errno::FBIG);
                    }
                    Self::Saving { state, read: 0 }
                }
                (Self::Stopped, _) => Self::Loading { state: Vec::new() },
                (Self::Saving { .. }, _) => Self::Stopped,
                (Self::Loading { state }, _) => {
                    device.restore(state)?;
                    Self::Stopped
                }
            };
        }
        Ok(())
    }
}

/// `struct vfio_device_feature_mig_state`; its descriptor is not used over sockets.
fn first_word(word: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&word.to_ne_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device with one number, which grows while it runs.
    #[derive(Debug, Default)]
    struct Counter {
        number: u8,
        is_stopped: bool,
    }

    impl Migratable for Counter {
        fn stop(&mut self) {
            assert!(!std::mem::replace(&mut self.is_stopped, true));
        }
        fn start(&mut self) {
            assert!(std::mem::replace(&mut self.is_stopped, false));
        }
        fn save(&mut self) -> Result<Vec<u8>, Errno> {
            assert!(self.is_stopped);
            Ok(vec![self.number; 5000])
        }
        fn restore(&mut self, state: &[u8]) -> Result<(), Errno> {
            assert!(self.is_stopped);
            self.number = *state.iter().min().filter(|_| state.len() == 5000).ok_or(Errno::INVAL)?;
            Ok(())
        }
    }

    /// Every pair of states; 0 is ERROR, and 5 to 7 are optional.
    #[test]
    fn every_transition_is_performed_or_refused_as_in_the_specification() {
        for from in [1, 2, 3, 4] {
            for to in 0..=9 {
                let (mut migration, mut device) = (Migration::default(), Counter::default());
                migration.set_device_state(from, &mut device).unwrap();
                let outcome = migration.set_device_state(to, &mut device);
                // Data that is incomplete is refused, and the device stays where it is.
                let expected = match (from, to) {
                    (_, 0 | 5..) => Err(Errno::INVAL),
                    (4, 1..=3) => Err(Errno::INVAL),
                    _ => Ok(()),
                };
                assert_eq!(outcome, expected, "{from} to {to}");
                assert_eq!(migration.device_state(), if expected.is_ok() { to } else { from });
                assert_eq!(device.is_stopped, migration.device_state() != 2);
                migration.reset(Some(&mut device));
                assert!(!device.is_stopped && migration.device_state() == 2);
            }
        }
    }

    #[test]
    fn a_state_goes_from_one_device_to_another_in_pieces() {
        let (mut source, mut device) = (Migration::default(), Counter { number: 7, is_stopped: false });
        assert_eq!(source.read(&prefix(108, 100), &mut Vec::new()), Err(Errno::INVAL), "not saving");
        source.set_device_state(STOP_COPY, &mut device).unwrap();
        let (mut target, mut other) = (Migration::default(), Counter::default());
        assert_eq!(target.write(&prefix(8, 0)), Err(Errno::INVAL), "not loading");
        target.set_device_state(RESUMING, &mut other).unwrap();
        let mut sizes = Vec::new();
        loop {
            let mut reply = Vec::new();
            source.read(&prefix(8 + 2000, 2000), &mut reply).unwrap();
            let size = reply.len() - 8;
            assert_eq!(reply[..8], prefix(8 + size as u32, size as u32));
            sizes.push(size);
            if size == 0 {
                break;
            }
            target.write(&[&prefix(0, size as u32), &reply[8..]].concat()).unwrap();
        }
        assert_eq!(sizes, [2000, 2000, 1000, 0]);
        target.set_device_state(RUNNING, &mut other).unwrap();
        assert_eq!((other.number, other.is_stopped), (7, false));
        source.set_device_state(RUNNING, &mut device).unwrap();
        assert!(!device.is_stopped, "a migration that failed elsewhere");
    }

    #[test]
    fn sizes_are_checked_and_bounded() {
        let (mut migration, mut device) = (Migration::default(), Counter::default());
        migration.set_device_state(STOP_COPY, &mut device).unwrap();
        for body in [&prefix(8 + 4097, 4097)[..], &prefix(107, 100), &prefix(0, 1)[..7], &[0; 9], &[0xFF; 8]] {
            assert_eq!(migration.read(body, &mut Vec::new()), Err(Errno::INVAL));
        }
        migration.set_device_state(RESUMING, &mut device).unwrap();
        for body in [&prefix(8, 1)[..], &[0; 7], &[&prefix(8, 1)[..], &[1, 2]].concat(), &prefix(8, u32::MAX)] {
            assert_eq!(migration.write(body), Err(Errno::INVAL));
        }
        let piece = [&prefix(0, 4096)[..], &[1; 4096]].concat();
        for _ in 0..MAX_STATE / 4096 {
            migration.write(&piece).unwrap();
        }
        assert_eq!(migration.write(&[&prefix(0, 1)[..], &[1]].concat()), Err(Errno::FBIG));
        assert_eq!(migration.set_device_state(RUNNING, &mut device), Err(Errno::INVAL));
        assert_eq!((device.number, migration.device_state()), (0, RESUMING));
    }

    fn prefix(first: u32, second: u32) -> [u8; 8] {
        let mut bytes = first_word(first);
        bytes[4..].copy_from_slice(&second.to_ne_bytes());
        bytes
    }
}

//! The memory registers in BAR0: preloads, interrupt status, reload, and the unlock sequence.

use super::I6300esb;
use super::counter::Stage;
use super::spec::{self, bar, gintsr, reload};
use crate::Access;
use crate::lanes::DwordWrite;

/// Progress of the unlock sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unlock {
    Locked,
    /// The first key is written. A wrong value after it does not cancel it, as in QEMU.
    FirstKey,
    /// Both keys are written: the next register write takes effect.
    Unlocked,
}

/// A key of the unlock sequence: two of the three writes of a heartbeat.
///
/// A runtime that recognizes it need not read its clock.
///
/// ```
/// use vm_watchdog_devices::Access;
/// use vm_watchdog_devices::i6300esb::I6300esb;
///
/// let mut device = I6300esb::new(Default::default());
/// let key = I6300esb::unlock_key(0x0C, &[0x80, 0x00]).expect("the first key");
/// assert_eq!(device.write_unlock_key(key), Access::Accepted);
/// assert_eq!(I6300esb::unlock_key(0x0C, &[0x00, 0x01]), None, "the reload itself");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnlockKey(u8);

const KEY1: u8 = reload::UNLOCK_KEY1 as u8;
const KEY2: u8 = reload::UNLOCK_KEY2 as u8;

impl I6300esb {
    /// The key that this write of BAR0 is, if it is one and nothing else.
    pub fn unlock_key(offset: u64, data: &[u8]) -> Option<UnlockKey> {
        match data {
            [key @ (KEY1 | KEY2)] | [key @ (KEY1 | KEY2), 0] | [key @ (KEY1 | KEY2), 0, 0, 0]
                if offset == bar::RELOAD =>
            {
                Some(UnlockKey(*key))
            }
            _ => None,
        }
    }

    /// Writes a key, as [`write_bar`](Self::write_bar) does. It needs no time: a key changes no deadline and no interrupt, and has
    /// the same effect before and after each of them.
    pub fn write_unlock_key(&mut self, key: UnlockKey) -> Access {
        self.write_bar_dword(DwordWrite { offset: bar::RELOAD, value: key.0.into(), mask: 0xFF })
    }

    /// The dword of BAR0 at `offset`; `None` past its end.
    pub(super) fn bar_dword(&self, offset: u64) -> Option<u32> {
        Some(match offset {
            bar::PRELOAD1 => self.preload1,
            bar::PRELOAD2 => self.preload2,
            bar::GINTSR if self.interrupt_active => gintsr::WDT_INT_ACT,
            bar::GINTSR => 0,
            bar::RELOAD if self.timed_out => reload::WDT_TIMEOUT | reload::WDT_TIMEOUT_MIRROR,
            bar::RELOAD => 0,
            _ => return None,
        })
    }

    pub(super) fn write_bar_dword(&mut self, write: DwordWrite) -> Access {
        if write.offset >= spec::BAR0_SIZE.into() {
            return Access::Ignored;
        }
        match (write.offset, write.value, self.unlock) {
            (bar::RELOAD, reload::UNLOCK_KEY1, _) => {
                self.unlock = Unlock::FirstKey;
                return Access::Accepted;
            }
            (bar::RELOAD, reload::UNLOCK_KEY2, Unlock::FirstKey) => {
                self.unlock = Unlock::Unlocked;
                return Access::Accepted;
            }
            _ => {}
        }
        let unlocked = self.unlock == Unlock::Unlocked;
        if unlocked {
            self.unlock = Unlock::Locked;
        }
        match write.offset {
            bar::GINTSR if write.sets(gintsr::WDT_INT_ACT) => self.interrupt_active = false,
            bar::PRELOAD1 if unlocked => {
                set_preload(&mut self.preload1, write);
                self.since_reset.note(|registers| set_preload(&mut registers.preload1, write));
            }
            bar::PRELOAD2 if unlocked => {
                set_preload(&mut self.preload2, write);
                self.since_reset.note(|registers| set_preload(&mut registers.preload2, write));
            }
            bar::RELOAD if unlocked => return self.write_reload(write),
            _ => return Access::Ignored,
        }
        Access::Accepted
    }

    fn write_reload(&mut self, write: DwordWrite) -> Access {
        if write.sets(reload::WDT_TIMEOUT | reload::WDT_TIMEOUT_MIRROR) {
            self.timed_out = false;
        }
        match write.sets(reload::WDT_RELOAD) {
            true if self.is_enabled() => {
                self.start_stage(Stage::One, self.latest);
                Access::Heartbeat
            }
            true => Access::HeartbeatWhileDisarmed,
            false => Access::Accepted,
        }
    }
}

fn set_preload(preload: &mut u32, write: DwordWrite) {
    *preload = write.merged_into(*preload) & spec::PRELOAD_MASK;
}

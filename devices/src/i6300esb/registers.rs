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

impl I6300esb {
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

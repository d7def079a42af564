//! The models of devices, and the option keys that each accepts.

use std::fmt;
use std::num::NonZeroU32;

use vm_watchdog_devices::i6300esb::I6300esbConfig;
use vm_watchdog_devices::wdat::WdatConfig;

use crate::diag288::UnknownCommands;

/// The device of a [`WatchdogConfig`](crate::WatchdogConfig): its model, and the configuration that only this model has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceConfig {
    /// Intel 6300ESB, for [`I6300esb::new`](crate::i6300esb::I6300esb::new).
    I6300esb(I6300esbConfig),
    /// DIAGNOSE X'288', for [`Diag288::new`](crate::diag288::Diag288::new); with `Some`, for
    /// [`Diag288::zvm`](crate::diag288::Diag288::zvm): how it treats unknown commands.
    Diag288(Option<UnknownCommands>),
    /// ACPI watchdog table, for [`Wdat::new`](crate::wdat::Wdat::new) and [`WdatTable::new`](crate::wdat::WdatTable::new).
    Wdat(WdatConfig),
    /// Generic Watchdog of Arm's BSA: with `Some`, the frequency of the guest's system counter in Hz, for
    /// [`SbsaConfig::new`](crate::sbsa::SbsaConfig::new). Without it the VMM takes the one that its guests read (CNTFRQ_EL0).
    Sbsa(Option<NonZeroU32>),
}

impl DeviceConfig {
    /// The model.
    pub const fn model(self) -> DeviceModel {
        match self {
            Self::I6300esb(_) => DeviceModel::I6300esb,
            Self::Diag288(_) => DeviceModel::Diag288,
            Self::Wdat(_) => DeviceModel::Wdat,
            Self::Sbsa(_) => DeviceModel::Sbsa,
        }
    }
}

/// The supported watchdog devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum DeviceModel {
    /// Intel 6300ESB, a PCI function.
    I6300esb,
    /// DIAGNOSE X'288', the watchdog of s390x.
    Diag288,
    /// The ACPI watchdog table, for guests without a driver for the i6300esb.
    Wdat,
    /// The Generic Watchdog of Arm's BSA and SBSA, for arm64.
    Sbsa,
}

impl DeviceModel {
    /// Every model, in the order in which messages list them.
    pub const ALL: [Self; 4] = [Self::I6300esb, Self::Diag288, Self::Wdat, Self::Sbsa];

    /// The model's name, which is that of libvirt, QEMU and KubeVirt if they have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::I6300esb => "i6300esb",
            Self::Diag288 => "diag288",
            Self::Wdat => "wdat",
            Self::Sbsa => "sbsa",
        }
    }

    /// The option keys that the model accepts.
    pub(super) const fn keys(self) -> &'static [&'static str] {
        match self {
            Self::I6300esb => &[
                "action",
                "pretimeout",
                "before",
                "grace",
                "then",
                "action-interval",
                "action-burst",
                "steal-limit",
                "id",
                "interrupt",
            ],
            Self::Diag288 => {
                &["action", "grace", "then", "action-interval", "action-burst", "steal-limit", "id", "zvm"]
            }
            Self::Wdat => {
                &["action", "grace", "then", "action-interval", "action-burst", "steal-limit", "id", "period"]
            }
            Self::Sbsa => &[
                "action",
                "pretimeout",
                "before",
                "grace",
                "then",
                "action-interval",
                "action-burst",
                "steal-limit",
                "id",
                "clock-frequency",
            ],
        }
    }
}

impl fmt::Display for DeviceModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The keys of all models, in the order in which messages list them.
pub(super) fn all_keys() -> Vec<&'static str> {
    let mut all = Vec::new();
    for key in DeviceModel::ALL.iter().flat_map(|model| model.keys()) {
        if !all.contains(key) {
            all.push(*key);
        }
    }
    all
}

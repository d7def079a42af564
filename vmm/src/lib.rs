//! The parts of the `vm-watchdog` command that other packages of the workspace use: fuzz targets and tests.
#![forbid(unsafe_code)]

pub mod vfio_user;

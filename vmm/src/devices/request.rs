//! Requests of the guest to the VMM.

/// What a guest requests of the VMM with an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestRequest {
    /// Reset the machine.
    Reset,
    /// Power the machine off.
    PowerOff,
    /// The built-in guest stops: this step of its table did not read the expected value.
    Unexpected(u32),
}

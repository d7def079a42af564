//! The option `--sandbox`.

/// Whether a server is in a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SandboxMode {
    /// A forbidden system call ends the server
    On,
    /// To find out whether the sandbox is the cause of a problem
    Off,
}

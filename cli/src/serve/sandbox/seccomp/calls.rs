//! The system calls that a server needs after its start. docs/sandbox.md has the same table, which a test compares.
//!
//! Found by running the tests under strace, and by reading what glibc, musl and Rust's standard library call where a test
//! does not lead: when memory is short, in a panic, on an older or newer kernel.

/// Calls for one purpose.
#[derive(Debug)]
pub struct Group {
    #[cfg_attr(not(test), expect(dead_code, reason = "for the documentation"))]
    pub purpose: &'static str,
    /// Those of x86_64, aarch64 and riscv64. An architecture has not all of them.
    pub calls: &'static [&'static str],
    pub limit: Limit,
    pub when: When,
}

/// With which arguments calls are permitted.
#[derive(Debug)]
pub enum Limit {
    /// Any.
    None,
    /// None: they fail as on a kernel that does not have them.
    NotThere,
    /// An argument is one of these numbers.
    #[cfg_attr(not(test), expect(dead_code, reason = "for the documentation"))]
    OneOf { argument: u8, values: &'static [u64], in_words: &'static str },
    /// An argument has none of these bits.
    #[cfg_attr(not(test), expect(dead_code, reason = "for the documentation"))]
    Without { argument: u8, bits: u64, in_words: &'static str },
    /// An argument has all of these bits.
    #[cfg_attr(not(test), expect(dead_code, reason = "for the documentation"))]
    With { argument: u8, bits: u64, in_words: &'static str },
    /// An argument is this process.
    ThisProcess { argument: u8 },
}

/// Which servers need them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    Always,
    /// With probes that connect to the guest over the network.
    Network,
    /// With a helper process.
    Helper,
    /// Whose service manager has a socket of AF_VSOCK.
    Vsock,
    /// Built for musl.
    Musl,
}

impl Group {
    const fn of(purpose: &'static str, calls: &'static [&'static str]) -> Self {
        Self { purpose, calls, limit: Limit::None, when: When::Always }
    }

    const fn limited(self, limit: Limit) -> Self {
        Self { limit, ..self }
    }

    const fn when(self, when: When) -> Self {
        Self { when, ..self }
    }
}

const PROT_EXEC: u64 = libc::PROT_EXEC as u64;

/// `<asm-generic/ioctls.h>` and `<linux/sockios.h>`; the crate `libc` has them with different types for glibc and musl.
const FIONBIO: u64 = 0x5421;
const FIOCLEX: u64 = 0x5451;
const SIOCGIFINDEX: u64 = 0x8933;

/// All of them.
pub const GROUPS: &[Group] = &[
    Group::of("memory", &["brk", "munmap", "mremap", "madvise"]),
    Group::of("memory", &["mmap", "mprotect"]).limited(Limit::Without {
        argument: 2,
        bits: PROT_EXEC,
        in_words: "not executable",
    }),
    Group::of("start a thread", &["clone"]).limited(Limit::With {
        argument: 0,
        bits: libc::CLONE_THREAD as u64,
        in_words: "a thread, no process",
    }),
    Group::of("start a thread: the arguments are in memory, where the filter cannot see them", &["clone3"])
        .limited(Limit::NotThere),
    Group::of(
        "the start and end of a thread",
        &[
            "set_robust_list",
            "rseq",
            "sigaltstack",
            "rt_sigprocmask",
            "sched_getaffinity",
            "gettid",
            "exit",
            "exit_group",
        ],
    ),
    Group::of("the first thread", &["membarrier"]).when(When::Musl),
    Group::of("the name of a thread or of memory", &["prctl"]).limited(Limit::OneOf {
        argument: 0,
        values: &[libc::PR_SET_NAME as u64, libc::PR_SET_VMA as u64],
        in_words: "PR_SET_NAME, PR_SET_VMA",
    }),
    Group::of("locks and waiting", &["futex", "sched_yield", "nanosleep", "clock_nanosleep", "restart_syscall"]),
    Group::of("the time, where the kernel has no faster way", &["clock_gettime", "gettimeofday"]),
    Group::of("timers and events", &["timerfd_create", "timerfd_settime", "eventfd2"]),
    Group::of(
        "waiting for descriptors",
        &["poll", "ppoll", "epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "epoll_pwait2"],
    ),
    Group::of("signals that were caught", &["rt_sigreturn"]),
    Group::of("a panic that ends the process", &["rt_sigaction", "getpid"]),
    Group::of("a panic that ends the process", &["tgkill"]).limited(Limit::ThisProcess { argument: 0 }),
    Group::of("a panic that ends the process", &["tkill"]).when(When::Musl),
    Group::of("descriptors", &["read", "readv", "pread64", "write", "writev", "lseek", "close"]),
    Group::of("descriptors", &["fcntl"]).limited(Limit::OneOf {
        argument: 1,
        values: &[
            libc::F_DUPFD_CLOEXEC as u64,
            libc::F_GETFD as u64,
            libc::F_SETFD as u64,
            libc::F_GETFL as u64,
            libc::F_SETFL as u64,
        ],
        in_words: "F_DUPFD_CLOEXEC, F_GETFD, F_SETFD, F_GETFL, F_SETFL",
    }),
    Group::of("descriptors that do not block, and the number of a network interface", &["ioctl"]).limited(
        Limit::OneOf {
            argument: 1,
            values: &[FIONBIO, FIOCLEX, SIOCGIFINDEX],
            in_words: "FIONBIO, FIOCLEX, SIOCGIFINDEX",
        },
    ),
    Group::of(
        "files: state, metrics, events, dumps, control sockets; a stack trace of a panic",
        &[
            "open",
            "openat",
            "stat",
            "lstat",
            "fstat",
            "newfstatat",
            "fstatat",
            "statx",
            "statfs",
            "fstatfs",
            "readlink",
            "readlinkat",
            "getcwd",
            "getdents64",
            "flock",
            "fsync",
            "fdatasync",
            "rename",
            "renameat",
            "renameat2",
            "unlink",
            "unlinkat",
        ],
    ),
    Group::of("the mode of a file that is replaced, whatever the umask", &["fchmod"]).limited(Limit::OneOf {
        argument: 1,
        values: &[0o600, 0o644],
        in_words: "0600, 0644",
    }),
    Group::of("Unix sockets", &["socket"]).limited(Limit::OneOf {
        argument: 0,
        values: &[libc::AF_UNIX as u64],
        in_words: "AF_UNIX",
    }),
    Group::of("probes over the network", &["socket"])
        .limited(Limit::OneOf {
            argument: 0,
            values: &[libc::AF_INET as u64, libc::AF_INET6 as u64],
            in_words: "AF_INET, AF_INET6",
        })
        .when(When::Network),
    Group::of("the service manager of a confidential VM", &["socket"])
        .limited(Limit::OneOf { argument: 0, values: &[libc::AF_VSOCK as u64], in_words: "AF_VSOCK" })
        .when(When::Vsock),
    Group::of(
        "sockets",
        &[
            "connect",
            "accept",
            "accept4",
            "sendto",
            "sendmsg",
            "recvfrom",
            "recvmsg",
            "shutdown",
            "getsockname",
            "getpeername",
            "getsockopt",
            "setsockopt",
        ],
    ),
    Group::of("the process behind a socket, before Linux 6.5", &["pidfd_open"]),
    Group::of("random numbers: names of new files, TLS, hash tables", &["getrandom"]),
    Group::of("the end of a helper", &["wait4", "waitid"]).when(When::Helper),
];

impl Limit {
    /// For the documentation.
    #[cfg(test)]
    fn in_words(&self) -> &'static str {
        match self {
            Self::None => "",
            Self::NotThere => "fails with ENOSYS, then `clone` is used",
            Self::OneOf { in_words, .. } | Self::Without { in_words, .. } | Self::With { in_words, .. } => in_words,
            Self::ThisProcess { .. } => "this process",
        }
    }
}

impl When {
    /// For the documentation.
    #[cfg(test)]
    fn in_words(self) -> &'static str {
        match self {
            Self::Always => "",
            Self::Network => "with `httpGet` or `tcpSocket`",
            Self::Helper => "with a helper",
            Self::Vsock => "with `NOTIFY_SOCKET=vsock:...`",
            Self::Musl => "built for musl",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = include_str!("../../../../../docs/sandbox.md");

    fn table() -> String {
        let mut table = "| calls | for | only | when |\n|---|---|---|---|\n".to_owned();
        for Group { purpose, calls, limit, when } in GROUPS {
            let calls: Vec<_> = calls.iter().map(|call| format!("`{call}`")).collect();
            let (calls, limit, when) = (calls.join(", "), limit.in_words(), when.in_words());
            table +=
                &format!("| {calls} | {purpose} | {limit} | {when} |\n").replace("|  |", "| |").replace("|  |", "| |");
        }
        table
    }

    #[test]
    fn the_documentation_has_the_table() {
        let table = table();
        assert!(PAGE.contains(&table), "docs/sandbox.md has another table than\n\n{table}");
    }

    fn unknown_to<T: std::str::FromStr>() -> Vec<&'static str> {
        let calls = GROUPS.iter().flat_map(|group| group.calls).copied();
        calls.filter(|call| call.parse::<T>().is_err()).collect()
    }

    /// A name with a mistake would be left out of the filter.
    #[test]
    fn every_name_is_that_of_a_call() {
        assert_eq!(unknown_to::<syscalls::x86_64::Sysno>(), ["fstatat"]);
        let old = ["poll", "epoll_wait", "open", "stat", "lstat"];
        let of_aarch64 = [&old[..], &["newfstatat", "readlink", "rename", "unlink"]].concat();
        assert_eq!(unknown_to::<syscalls::aarch64::Sysno>(), of_aarch64);
        // This version of the crate has calls of riscv64 under the names of aarch64.
        assert_eq!(unknown_to::<syscalls::riscv64::Sysno>(), of_aarch64);
    }
}

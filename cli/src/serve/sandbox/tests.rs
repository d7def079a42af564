//! What is forbidden and what is not, each tried in a process of its own: this program, started again with one test.

use std::env;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::net::{TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::os::unix::process::{ExitStatusExt, parent_id};
use std::path::{Path, PathBuf};
use std::process::{self, Command, Output};
use std::sync::mpsc::channel;
use std::thread;

use rustix::process::{Pid, Signal};
use vm_watchdog_test_support::{Unavailable, skip};

use crate::serve::sandbox::enter;
use crate::serve::sandbox::mode::SandboxMode;
use crate::serve::sandbox::needs::{Folder, Needs, Network};

/// Says to a process that it is the one to be restricted, and what it does.
const TASK: &str = "VM_WATCHDOG_SANDBOX_TASK";

/// What this process does, if another one has started it for that.
fn task() -> Option<String> {
    env::var(TASK).ok()
}

/// Runs the test that this thread runs in a process of its own.
fn run(task: &str) -> Output {
    let test = thread::current().name().expect("a test").to_owned();
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "--nocapture", "--test-threads=2", &test]);
    command.env(TASK, task).env("RUST_BACKTRACE", "full").output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn restrict(needs: &Needs) {
    enter(SandboxMode::On, needs).unwrap();
}

/// Ends the process successfully, without what the harness of the tests does at its end.
fn succeed() -> ! {
    process::exit(0)
}

const FORBIDDEN: [&str; 8] = ["execve", "clone", "bind", "socket", "ptrace", "mmap", "kill", "memfd_create"];

/// Makes a forbidden call.
fn call(name: &str) {
    // SAFETY: none of these calls has a pointer to something of this process, except for the strings and arrays that end with
    // a NULL and live longer than the call.
    unsafe {
        match name {
            "execve" => {
                let arguments = [c"/bin/true".as_ptr(), std::ptr::null()];
                libc::execve(arguments[0], arguments.as_ptr(), [std::ptr::null()].as_ptr());
            }
            "clone" => drop(libc::fork()),
            "bind" => drop(libc::bind(-1, std::ptr::null(), 0)),
            "socket" => drop(TcpListener::bind("127.0.0.1:0")),
            "ptrace" => drop(libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0)),
            "mmap" => {
                let (protection, flags) = (libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
                libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0);
            }
            "kill" => drop(libc::kill(libc::getpid(), 0)),
            "memfd_create" => drop(libc::memfd_create(c"x".as_ptr(), 0)),
            _ => unreachable!("{name}"),
        }
    }
}

#[test]
fn a_forbidden_call_ends_the_process_with_its_name_and_status_on_every_thread() {
    if let Some(task) = task() {
        let (place, name) = task.split_once(' ').unwrap();
        let (sender, receiver) = channel::<String>();
        let waiting = thread::spawn(move || call(&receiver.recv().unwrap()));
        restrict(&Needs::default());
        match place {
            "this" => call(name),
            "older" => {
                sender.send(name.to_owned()).unwrap();
                waiting.join().unwrap();
            }
            _ => {
                let name = name.to_owned();
                thread::spawn(move || call(&name)).join().unwrap();
            }
        }
        succeed();
    }
    let tasks = FORBIDDEN.map(|name| ("this", name)).into_iter().chain([("older", "kill"), ("newer", "kill")]);
    for (place, name) in tasks {
        // musl blocks all signals in fork(). Then the kernel ends the process by the signal, and there is no message.
        if cfg!(target_env = "musl") && name == "clone" {
            continue;
        }
        let output = run(&format!("{place} {name}"));
        let stderr = stderr(&output);
        assert_eq!(output.status.code(), Some(159), "{place} {name}: {} {stderr}", output.status);
        let message = format!("vm-watchdog: the sandbox forbids the system call {name} (number ");
        assert!(stderr.lines().any(|line| line.starts_with(&message)), "{place} {name}: {stderr}");
    }
}

#[test]
fn a_panic_and_an_abort_are_no_forbidden_calls() {
    if task().is_some() {
        restrict(&Needs::default());
        assert!(thread::spawn(|| panic!("on purpose")).join().is_err());
        process::abort();
    }
    let output = run("panic");
    let stderr = stderr(&output);
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{}: {stderr}", output.status);
    assert!(stderr.contains("on purpose") && stderr.contains("stack backtrace"), "{stderr}");
}

#[test]
fn a_message_that_cannot_be_written_does_not_keep_the_process() {
    if task().is_some() {
        restrict(&Needs::default());
        call("kill");
        succeed();
    }
    // A pipe that is full, and that is not read.
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    while rustix::io::write(&writer, &[0; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).unwrap();
    let test = thread::current().name().expect("a test").to_owned();
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "--nocapture", "--test-threads=2", &test]).env(TASK, "kill").stderr(writer);
    assert_eq!(command.stdout(process::Stdio::null()).status().unwrap().code(), Some(159));
    drop(reader);
}

/// What a process that is restricted finds out, one line each.
fn tried(needs: &Needs, folder: &Path, tcp: [u16; 2], name: &str) -> String {
    let [own, foreign] = ["own", "foreign"].map(|name| folder.join(name));
    restrict(needs);
    let kind = |outcome: io::Result<()>| outcome.map_or_else(|error| format!("{:?}", error.kind()), |()| "ok".into());
    let mut lines = Vec::new();
    let mut is = |what: &str, outcome: io::Result<()>| lines.push(format!("{what}: {}\n", kind(outcome)));
    is("create", File::create_new(own.join("new")).map(drop));
    is("replace", fs::rename(own.join("new"), own.join("old")));
    is("read", fs::read(own.join("old")).map(drop));
    is("list", fs::read_dir(&own).map(drop));
    is("remove", fs::remove_file(own.join("old")));
    is("move", fs::rename(own.join("file"), foreign.join("moved")));
    is("create elsewhere", File::create_new(foreign.join("new")).map(drop));
    is("read elsewhere", fs::read(foreign.join("file")).map(drop));
    is("append elsewhere", File::options().append(true).open(foreign.join("file")).map(drop));
    is("list elsewhere", fs::read_dir(&foreign).map(drop));
    is("remove elsewhere", fs::remove_file(foreign.join("file")));
    is("read /etc/passwd", fs::read("/etc/passwd").map(drop));
    is("read /proc/self/mem", File::open("/proc/self/mem").map(drop));
    is("connect to the guest", TcpStream::connect(("127.0.0.1", tcp[0])).map(drop));
    is("connect elsewhere", TcpStream::connect(("127.0.0.1", tcp[1])).map(drop));
    let address = SocketAddr::from_abstract_name(name).unwrap();
    is("connect to an abstract socket", UnixStream::connect_addr(&address).map(drop));
    is("connect to a control socket", UnixStream::connect(foreign.join("socket")).map(drop));
    lines.concat()
}

/// Landlock's newest interface on this machine.
fn abi() -> i32 {
    // SAFETY: LANDLOCK_CREATE_RULESET_VERSION has no pointer.
    let abi = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, 1) };
    i32::try_from(abi).unwrap_or(-1)
}

#[test]
fn only_what_options_name_is_reached() {
    if let Some(task) = task() {
        let mut words = task.split(' ').map(str::to_owned);
        let mut next = || words.next().unwrap();
        let folder = PathBuf::from(next());
        let [guest, other] = [next(), next()].map(|port| port.parse().unwrap());
        let folders = vec![(folder.join("own"), Folder::Replaced)];
        let network = Network::Ports([guest].into());
        let needs = Needs { folders, network, ..Needs::default() };
        let lines = tried(&needs, &folder, [guest, other], &next());
        io::stderr().write_all(lines.as_bytes()).unwrap();
        succeed();
    }
    if abi() < 6 {
        let reason = Unavailable::new(format!("the kernel has ABI {} of Landlock, and 6 is needed", abi()));
        return skip::loudly("only_what_options_name_is_reached", &reason);
    }
    let folder = tempfile::tempdir().unwrap();
    for name in ["own", "foreign"] {
        fs::create_dir(folder.path().join(name)).unwrap();
        fs::write(folder.path().join(name).join("file"), "secret").unwrap();
    }
    let _socket = UnixListener::bind(folder.path().join("foreign/socket")).unwrap();
    let name = format!("vm-watchdog-test-{}", process::id());
    let _abstract = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let [guest, other] = listeners.each_ref().map(|listener| listener.local_addr().unwrap().port());
    let output = run(&format!("{} {guest} {other} {name}", folder.path().display()));
    let told = stderr(&output);
    assert!(output.status.success(), "{}: {told}", output.status);
    let expected = "create: ok\nreplace: ok\nread: ok\nlist: ok\nremove: ok\nmove: PermissionDenied\n\
                    create elsewhere: PermissionDenied\nread elsewhere: PermissionDenied\n\
                    append elsewhere: PermissionDenied\nlist elsewhere: PermissionDenied\n\
                    remove elsewhere: PermissionDenied\nread /etc/passwd: PermissionDenied\n\
                    read /proc/self/mem: PermissionDenied\n\
                    connect to the guest: ok\nconnect elsewhere: PermissionDenied\n\
                    connect to an abstract socket: PermissionDenied\nconnect to a control socket: ok\n";
    assert!(told.ends_with(expected), "{told}");
}

#[test]
fn an_abstract_socket_of_the_service_manager_is_reached() {
    if let Some(name) = task() {
        restrict(&Needs { notifies_abstract: true, ..Needs::default() });
        UnixStream::connect_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap();
        succeed();
    }
    let name = format!("vm-watchdog-manager-{}", process::id());
    let _manager = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let output = run(&name);
    assert!(output.status.success(), "{}: {}", output.status, stderr(&output));
}

#[test]
fn no_other_process_is_signalled() {
    if task().is_some() {
        // The rules alone: the filter ends this process before.
        crate::serve::sandbox::landlock::restrict(&Needs::default()).unwrap();
        let parent = Pid::from_raw(parent_id() as i32).unwrap();
        let refused = rustix::process::kill_process(parent, Signal::CONT).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
        succeed();
    }
    if abi() < 6 {
        let reason = Unavailable::new(format!("the kernel has ABI {} of Landlock, and 6 is needed", abi()));
        return skip::loudly("no_other_process_is_signalled", &reason);
    }
    let output = run("signal");
    assert!(output.status.success(), "{}: {}", output.status, stderr(&output));
}

#[test]
fn threads_memory_and_random_numbers_are_no_forbidden_calls() {
    if task().is_some() {
        restrict(&Needs::default());
        let work = |thread: usize| {
            // As much as makes the allocator grow, move and return memory in arenas of several threads.
            let mut blocks: Vec<Vec<u8>> = (0..64).map(|block| vec![block; 1 << 14]).collect();
            blocks.iter_mut().for_each(|block| block.resize(1 << 18, 1));
            blocks.retain(|block| block[0] % 2 == 0);
            blocks.iter_mut().for_each(Vec::shrink_to_fit);
            let set: std::collections::HashSet<_> = (0..1000).map(|number| number * thread).collect();
            set.len()
        };
        let threads: Vec<_> = (1..20).map(|thread| thread::spawn(move || work(thread))).collect();
        assert!(threads.into_iter().all(|thread| thread.join().unwrap() == 1000));
        succeed();
    }
    let output = run("work");
    assert!(output.status.success(), "{}: {}", output.status, stderr(&output));
}

//! Very many connections to one process, most of them hostile, and what is left of them.

use std::collections::VecDeque;
use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use vm_watchdog_test_support::assets;

use crate::client::*;
use crate::server::{Builder, Server, TIMEOUT};
use crate::{lateness, memory_in};

/// The variable with the number of connections. The figures of docs/serve.md are those of 100,000.
const VARIABLE: &str = "VM_WATCHDOG_CONNECTIONS";
const CONNECTIONS: usize = 5_000;
/// One connection of so many stays open and says nothing, which delays the next one by 250 ms.
const SILENT: usize = 500;
/// How many of them are open at once.
const MOST_SILENT: usize = 4;
/// The connections after which the memory of the process is compared.
const FIRST: usize = 250;
/// How much more memory it may have after all of them.
const MOST_GROWTH: u64 = 256 << 10;

/// The memory of the process without its program, which it does not share with another process here.
fn memory(server: &Server) -> u64 {
    memory_in(server, "Anonymous:")
}

/// Resources of a process that it must give back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Resources {
    descriptors: usize,
    threads: usize,
}

impl Resources {
    fn of(server: &Server) -> Self {
        let count = |folder| fs::read_dir(format!("/proc/{}/{folder}", server.pid())).unwrap().count();
        Self { descriptors: count("fd"), threads: count("task") }
    }
}

/// A tenant whose connections are all different.
struct Tenant<'a> {
    server: &'a Server,
    silent: VecDeque<Client>,
    eventfd: OwnedFd,
    /// Connections that agreed on the version.
    agreed: usize,
}

impl<'a> Tenant<'a> {
    fn of(server: &'a Server) -> Self {
        let eventfd = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        Self { server, silent: VecDeque::new(), eventfd, agreed: 0 }
    }

    /// Connects once. A write may fail, because the server may already have closed the connection.
    fn connect(&mut self, number: usize) {
        let mut client = Client::connect(&self.server.path("s"));
        let write = message(1, REGION_WRITE, 0, &access(BAR0, 0x0C, 2, &[0x80, 0]));
        if number.is_multiple_of(SILENT) {
            self.silent.push_front(client);
            self.silent.truncate(MOST_SILENT);
            return;
        }
        match number % 8 {
            0 => {}
            1 => drop(client.stream.write_all(&write[..9])),
            2 => drop(client.try_send_with_fds(&write[..9], &[client.stream.as_fd(), self.eventfd.as_fd()])),
            3 => drop(client.stream.write_all(&[0xFF; 100])),
            _ if client.ask(VERSION, PROPOSAL).is_err() => {}
            how => {
                self.agreed += 1;
                self.attack(how, client, &write);
            }
        }
    }

    /// What a client does that has agreed on the version. It leaves without a word.
    fn attack(&self, how: usize, mut client: Client, write: &[u8]) {
        match how {
            4 => client.arm(60_000),
            5 => {
                client.arm(60_000);
                client.send_with_fds(&write[..20], &[client.stream.as_fd()]);
                client.kill();
            }
            6 => {
                let body = words(&[20, 1 << 2 | 1 << 5, 0, 0, 1]);
                client.ask_with_fds(SET_IRQS, &body, &[self.eventfd.as_fd()]).unwrap();
                client.send_with_fds(&message(2, RESET, 0, &[]), &[self.eventfd.as_fd(); 30]);
            }
            _ => {
                for id in 0..20 {
                    client.send(&message(id, REGION_READ, 0, &access(CONFIG, 0, 4096, &[])));
                }
            }
        }
    }
}

#[test]
fn very_many_connections_leave_nothing_behind() {
    let _machine = assets::machine_to_ourselves().unwrap();
    let count = std::env::var(VARIABLE).map_or(CONNECTIONS, |count| count.parse().unwrap());
    let server = Builder::new().options("--socket s --watchdog i6300esb,action=none,interrupt=intx").start();
    drop(server.client());
    server.expect("disconnected");
    let (fresh, before) = (memory(&server), Resources::of(&server));
    let mut tenant = Tenant::of(&server);
    (1..=FIRST).for_each(|number| tenant.connect(number));
    let first = memory(&server);
    let started = Instant::now();
    (FIRST + 1..=count).for_each(|number| tenant.connect(number));
    let (agreed, took) = (tenant.agreed, started.elapsed());
    drop(tenant);
    let deadline = Instant::now() + TIMEOUT;
    while Resources::of(&server) != before {
        assert!(Instant::now() < deadline, "{:?}, before {before:?}", Resources::of(&server));
        std::thread::sleep(Duration::from_millis(5));
    }
    let after = memory(&server);
    println!(
        "{count} connections in {took:?}, {agreed} of them agreed on the version: {before:?} before and after; \
         anonymous memory {fresh} bytes before, {first} after {FIRST}, {after} after all"
    );
    assert!(agreed > count / 3, "{agreed} of {count}");
    assert!(after < first + MOST_GROWTH, "{after} bytes");

    let mut vmm = server.client();
    assert!(!vmm.is_enabled());
    vmm.arm(30);
    lateness(&server);
}

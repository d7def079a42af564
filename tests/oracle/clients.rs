//! Drivers that work with QEMU's device work the same with the model, access by access.

use crate::pair::{Bar, Config, Pair, SECOND, Space};

/// One access: space, offset, width, and the value to write. `None` reads, and both devices must return the same value.
type Access = (Space, u16, usize, Option<u32>);

const fn read(space: Space, offset: u16, width: usize) -> Access {
    (space, offset, width, None)
}

const fn write(space: Space, offset: u16, width: usize, value: u32) -> Access {
    (space, offset, width, Some(value))
}

const KEY1: Access = write(Bar, 0x0C, 2, 0x80);
const KEY2: Access = write(Bar, 0x0C, 2, 0x86);
const BYTE_KEY1: Access = write(Bar, 0x0C, 1, 0x80);
const BYTE_KEY2: Access = write(Bar, 0x0C, 1, 0x86);
const DWORD_KEY1: Access = write(Bar, 0x0C, 4, 0x80);
const DWORD_KEY2: Access = write(Bar, 0x0C, 4, 0x86);
const RELOAD: Access = write(Bar, 0x0C, 2, 0x0100);

struct Client {
    name: &'static str,
    /// From probe to the first heartbeat and the start.
    start: &'static [Access],
    heartbeat: &'static [Access],
    stop: &'static [Access],
    /// From the last heartbeat (or the start) to the timeout.
    nanos: u64,
}

const CLIENTS: [Client; 4] = [
    Client {
        name: "Linux with a timeout of 4 s",
        start: &[
            write(Config, 0x60, 2, 0x0003),
            read(Config, 0x68, 1),
            write(Config, 0x68, 1, 0x00),
            KEY1,
            KEY2,
            read(Bar, 0x0C, 2),
            KEY1,
            KEY2,
            write(Bar, 0x0C, 2, 0x0300),
            KEY1,
            KEY2,
            write(Bar, 0x00, 4, 2048),
            KEY1,
            KEY2,
            write(Bar, 0x04, 4, 2048),
            KEY1,
            KEY2,
            RELOAD,
            KEY1,
            KEY2,
            RELOAD,
            write(Config, 0x68, 1, 0x02),
        ],
        heartbeat: &[KEY1, KEY2, RELOAD],
        stop: &[KEY1, KEY2, RELOAD, write(Config, 0x68, 1, 0x00), read(Config, 0x68, 1)],
        nanos: 4_026_531_840,
    },
    Client {
        name: "Linux 2.6 with a heartbeat of 30 s",
        start: &[
            write(Config, 0x60, 2, 0x0003),
            read(Config, 0x68, 1),
            write(Config, 0x68, 1, 0x00),
            BYTE_KEY1,
            BYTE_KEY2,
            read(Bar, 0x0C, 2),
            BYTE_KEY1,
            BYTE_KEY2,
            write(Bar, 0x0C, 2, 0x1100),
            BYTE_KEY1,
            BYTE_KEY2,
            write(Bar, 0x00, 4, 15_360),
            BYTE_KEY1,
            BYTE_KEY2,
            write(Bar, 0x04, 4, 15_360),
            BYTE_KEY1,
            BYTE_KEY2,
            RELOAD,
            write(Config, 0x68, 1, 0x02),
        ],
        heartbeat: &[BYTE_KEY1, BYTE_KEY2, RELOAD],
        stop: &[BYTE_KEY1, BYTE_KEY2, RELOAD, write(Config, 0x68, 1, 0x00), read(Config, 0x68, 1)],
        nanos: 30_198_988_800,
    },
    Client {
        name: "FreeBSD with 4096 ms",
        start: &[
            write(Config, 0x60, 2, 0x0003),
            read(Config, 0x68, 1),
            write(Config, 0x68, 1, 0x00),
            KEY1,
            KEY2,
            write(Bar, 0x0C, 2, 0x0300),
            KEY1,
            KEY2,
            write(Bar, 0x00, 4, 4096),
            KEY1,
            KEY2,
            write(Bar, 0x04, 4, 4096),
            KEY1,
            KEY2,
            RELOAD,
            write(Config, 0x68, 1, 0x02),
            read(Config, 0x68, 1),
        ],
        heartbeat: &[
            KEY1,
            KEY2,
            RELOAD,
            KEY1,
            KEY2,
            write(Bar, 0x00, 4, 4096),
            KEY1,
            KEY2,
            write(Bar, 0x04, 4, 4096),
            KEY1,
            KEY2,
            RELOAD,
            write(Config, 0x68, 1, 0x02),
            read(Config, 0x68, 1),
        ],
        stop: &[KEY1, KEY2, RELOAD, read(Config, 0x68, 1), write(Config, 0x68, 1, 0x00), read(Config, 0x68, 1)],
        nanos: 8_053_063_680,
    },
    Client {
        name: "EFI Boot Guard with 60 s",
        start: &[
            DWORD_KEY1,
            DWORD_KEY2,
            write(Bar, 0x00, 4, 61_035),
            DWORD_KEY1,
            DWORD_KEY2,
            write(Bar, 0x04, 4, 0),
            write(Config, 0x68, 1, 0x03),
        ],
        heartbeat: &[],
        // It cannot be stopped: an operating system that disables it reads back that it is still enabled.
        stop: &[],
        nanos: 61_035 * 983_040,
    },
];

fn play(pair: &mut Pair, accesses: &[Access]) {
    for &(space, offset, width, value) in accesses {
        match value {
            Some(value) => pair.write(space, offset, width, value),
            None => drop(pair.read_same(space, offset, width)),
        }
    }
}

#[test]
fn clients_see_the_same_device_from_probe_to_timeout() {
    let Some(mut pair) = Pair::start("clients_see_the_same_device_from_probe_to_timeout") else { return };
    for client in &CLIENTS {
        for _ in 0..2 {
            play(&mut pair, client.start);
            let mut last = pair.now;
            if !client.heartbeat.is_empty() {
                for _ in 0..5 {
                    assert_eq!(pair.wait_alike(client.nanos - 1), None, "{}", client.name);
                    play(&mut pair, client.heartbeat);
                    last = pair.now;
                }
            }
            let timeout = pair.wait_alike(3600 * SECOND);
            assert_eq!(timeout, Some(last + client.nanos), "{}", client.name);
            pair.reset();
            assert_eq!(pair.read_same(Bar, 0x0C, 2), 0x1200, "{}", client.name);
        }
    }
}

#[test]
fn clients_stop_the_same_device() {
    let Some(mut pair) = Pair::start("clients_stop_the_same_device") else { return };
    for client in CLIENTS.iter().filter(|client| !client.stop.is_empty()) {
        play(&mut pair, client.start);
        assert_eq!(pair.wait_alike(SECOND), None);
        play(&mut pair, client.stop);
        assert_eq!(pair.wait_alike(3600 * SECOND), None, "{}", client.name);
    }
}

#[test]
fn linux_takes_over_from_efi_boot_guard() {
    let Some(mut pair) = Pair::start("linux_takes_over_from_efi_boot_guard") else { return };
    let [linux, .., boot_guard] = &CLIENTS;
    play(&mut pair, boot_guard.start);
    assert_eq!(pair.wait_alike(20 * SECOND), None);
    play(&mut pair, linux.start);
    play(&mut pair, linux.stop);
    assert_eq!(pair.read_same(Config, 0x68, 1), 0x03);
    let last = pair.now;
    assert_eq!(pair.wait_alike(3600 * SECOND), Some(last + linux.nanos));
}

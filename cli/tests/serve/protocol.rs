//! The protocol with a well-behaved VMM.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd};

use crate::client::*;
use crate::server::{Builder, Server, TIMEOUT};

const DATA_NONE: u32 = 1;
const DATA_BOOL: u32 = 2;
const DATA_EVENTFD: u32 = 4;
const MASK: u32 = 8;
const UNMASK: u32 = 16;
const TRIGGER: u32 = 32;

fn u32_at(body: &[u8], index: usize) -> u32 {
    u32::from_ne_bytes(body[4 * index..4 * index + 4].try_into().unwrap())
}

#[test]
fn the_device_is_a_pci_function_with_configuration_space_and_one_bar() {
    let server = Server::harmless();
    let mut client = server.client();

    let info = client.ask(GET_INFO, &words(&[16, 0, 0, 0])).unwrap();
    // Resettable and PCI, nine regions, five kinds of interrupt.
    assert_eq!(info, words(&[16, 0b11, 9, 5]));

    for index in 0..9 {
        let info = client.ask(GET_REGION_INFO, &words(&[32, 0, index, 0, 0, 0, 0, 0])).unwrap();
        let (flags, size) = match index {
            BAR0 => (0b11, 16),
            CONFIG => (0b11, 256),
            _ => (0, 0),
        };
        assert_eq!(info, words(&[32, flags, index, 0, size, 0, 0, 0]), "region {index}");
    }
    for index in 0..5 {
        let info = client.ask(GET_IRQ_INFO, &words(&[16, 0, index, 0])).unwrap();
        assert_eq!(info, words(&[16, 0, index, 0]), "no interrupt unless it was asked for");
    }

    assert_eq!(client.read(CONFIG, 0, 4).unwrap(), [0x86, 0x80, 0xAB, 0x25]);
    assert_eq!(client.read(CONFIG, 0x3D, 1).unwrap(), [0], "no interrupt pin");
    let whole = client.read(CONFIG, 0, 256).unwrap();
    assert_eq!(whole[0x08..0x0C], [0, 0, 0x80, 0x08], "class 08 80 00");
    client.write(CONFIG, 0x10, &[0xFF; 4]).unwrap();
    assert_eq!(client.read(CONFIG, 0x10, 4).unwrap(), [0xF0, 0xFF, 0xFF, 0xFF], "BAR sizing");
}

#[test]
fn a_client_without_capabilities_is_accepted_and_a_newer_one_gets_our_version() {
    let server = Server::harmless();
    for (proposal, version) in [(&[0, 0, 0, 0][..], [0, 0, 0, 0]), (&[0, 0, 9, 0], [0, 0, 1, 0])] {
        let mut client = Client::new(server.stream());
        let reply = client.ask(VERSION, proposal).unwrap();
        assert_eq!(reply[..4], version);
        assert_eq!(reply.last(), Some(&0));
        let ours: serde_json::Value = serde_json::from_slice(&reply[4..reply.len() - 1]).unwrap();
        assert_eq!(ours["capabilities"]["max_data_xfer_size"], 4096);
        assert_eq!(ours["capabilities"]["max_msg_fds"], 1);
        drop(client);
        server.expect("disconnected");
    }
}

/// The configuration space of the 6300ESB's watchdog after power-on, as in its datasheet.
fn power_on_config() -> [u8; 256] {
    let mut config = [0; 256];
    config[0x00..0x04].copy_from_slice(&[0x86, 0x80, 0xAB, 0x25]); // vendor and device
    config[0x0A..0x0C].copy_from_slice(&[0x80, 0x08]); // other system peripheral
    config
}

/// The registers in BAR0 after power-on.
fn power_on_bar() -> [u8; 16] {
    let mut bar = [0; 16];
    bar[0x00..0x04].copy_from_slice(&[0xFF, 0xFF, 0x0F, 0x00]); // preload of stage 1
    bar[0x04..0x08].copy_from_slice(&[0xFF, 0xFF, 0x0F, 0x00]); // and of stage 2
    bar
}

#[test]
fn every_access_that_a_guest_can_cause_succeeds_and_reads_all_ones_where_nothing_answers() {
    let server = Server::harmless();
    let mut client = server.client();
    for (region, registers, reachable) in [(BAR0, &power_on_bar()[..], 16), (CONFIG, &power_on_config(), 4096)] {
        for offset in (0..reachable).filter(|offset| *offset < 300 || *offset > 4080) {
            for count in [1, 2, 3, 4, 8] {
                let addresses = (offset as usize)..;
                let byte = |address| registers.get(address).copied().unwrap_or(0xFF);
                let expected: Vec<_> = addresses.take(count as usize).map(byte).collect();
                assert_eq!(client.read(region, offset, count).unwrap(), expected, "{region} {offset:#x} {count}");
                // Zeros are what the registers hold, or are ignored.
                client.write(region, offset, &vec![0; count as usize]).unwrap();
            }
        }
    }
    assert_eq!(client.read(CONFIG, 0, 4).unwrap(), [0x86, 0x80, 0xAB, 0x25]);
}

#[test]
fn posted_writes_are_performed_in_order_and_not_answered() {
    let server = Server::harmless();
    let mut client = server.client();
    let post = |client: &mut Client, region, offset, data: &[u8]| {
        client.post(REGION_WRITE, &access(region, offset, data.len() as u32, data));
    };
    post(&mut client, BAR0, 0x0C, &[0x80, 0]);
    post(&mut client, BAR0, 0x0C, &[0x86, 0]);
    post(&mut client, BAR0, 0x00, &[0x34, 0x12, 0, 0]);
    post(&mut client, CONFIG, 0x68, &[2]);
    client.post(RESET, &[1, 2, 3]); // wrong, and not answered either
    assert_eq!(client.read(BAR0, 0x00, 4).unwrap(), [0x34, 0x12, 0, 0]);
    assert!(client.is_enabled());
    server.expect("armed");
}

#[test]
fn dma_is_accepted_and_ignored_with_and_without_a_descriptor() {
    let server = Server::harmless();
    let mut client = server.client();
    let map = [words(&[32, 0b11]), [0u64, 0x1000_0000, 0x1000_0000].map(u64::to_ne_bytes).concat()].concat();
    assert_eq!(client.ask(DMA_MAP, &map), Ok(vec![]));
    let memory = tempfile::tempfile().unwrap();
    assert_eq!(client.ask_with_fds(DMA_MAP, &map, &[memory.as_fd()]), Ok(vec![]));
    let unmap = [words(&[24, 0]), [0x1000_0000u64; 2].map(u64::to_ne_bytes).concat()].concat();
    assert_eq!(client.ask(DMA_UNMAP, &unmap), Ok(unmap), "answered with the request");
    let unmap_all = words(&[24, 2, 0, 0, 0, 0]);
    assert_eq!(client.ask(DMA_UNMAP, &unmap_all), Ok(unmap_all), "bit 1 is VFIO_DMA_UNMAP_FLAG_ALL");
}

#[test]
fn a_reset_disarms_and_keeps_the_cause() {
    let server = Server::harmless();
    let mut client = server.client();
    client.arm(1);
    server.expect_where("expiry", |event| event["stage"] == "timeout");
    for _ in 0..2 {
        // QEMU resets twice for one reset of the machine.
        assert_eq!(client.ask(RESET, &[]), Ok(vec![]));
        assert!(client.timed_out());
        assert!(!client.is_enabled());
    }
    client.unlock();
    client.write(BAR0, 0x0C, &[0x00, 0x03]).unwrap();
    assert!(!client.timed_out(), "the driver has cleared it");
}

fn set_irqs(flags: u32, count: u32, data: &[u8]) -> Vec<u8> {
    [words(&[20 + data.len() as u32, flags, 0, 0, count]), data.to_vec()].concat()
}

/// The same for MSI, which is index 1.
fn set_msi(flags: u32, count: u32) -> Vec<u8> {
    words(&[20, flags, 1, 0, count])
}

/// How often the client's eventfd was signalled since the last call.
fn signals(eventfd: &OwnedFd) -> u64 {
    let mut counter = [0; 8];
    match rustix::io::read(eventfd, &mut counter) {
        Ok(_) => u64::from_ne_bytes(counter),
        Err(_) => 0,
    }
}

/// Waits for one signal, which comes some time after its cause.
fn await_signal(eventfd: &OwnedFd) {
    let timeout = Timespec { tv_sec: TIMEOUT.as_secs() as i64, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut [PollFd::new(eventfd, PollFlags::IN)], Some(&timeout)), Ok(1), "no signal");
    assert_eq!(signals(eventfd), 1);
}

#[test]
fn intx_exists_if_configured_and_is_signalled_once_until_unmasked() {
    let watchdog = "i6300esb,action=none,pretimeout=debug,before=60m,interrupt=intx";
    let server = Builder::new().options("--socket s --watchdog").options(watchdog).start();
    let mut client = server.client();
    let info = client.ask(GET_IRQ_INFO, &words(&[16, 0, 0, 0])).unwrap();
    assert_eq!((u32_at(&info, 1), u32_at(&info, 3)), (0b111, 1), "eventfd, maskable, automasked; one");
    assert_eq!(client.read(CONFIG, 0x3D, 1).unwrap(), [1], "INTA");

    let interrupt = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    client.ask_with_fds(SET_IRQS, &set_irqs(DATA_EVENTFD | TRIGGER, 1, &[]), &[interrupt.as_fd()]).unwrap();
    // Stage 1 ends soon, stage 2 in a quarter of an hour.
    client.unlock();
    client.write(BAR0, 0x00, &[1, 0, 0, 0]).unwrap();
    client.ping();
    client.write(CONFIG, 0x68, &[2]).unwrap();
    server.expect_where("expiry", |event| event["stage"] == "pretimeout");
    let status = client.read(CONFIG, 0x06, 2).unwrap();
    assert_eq!(status[0] & 0x08, 0x08, "interrupt pending");
    await_signal(&interrupt);

    client.ask(SET_IRQS, &set_irqs(DATA_NONE | UNMASK, 1, &[])).unwrap();
    // It is still pending.
    await_signal(&interrupt);
    client.write(BAR0, 0x08, &[1, 0, 0, 0]).unwrap();
    client.ask(SET_IRQS, &set_irqs(DATA_BOOL | UNMASK, 1, &[1])).unwrap();
    assert_eq!(signals(&interrupt), 0);
    assert_eq!(client.read(CONFIG, 0x06, 2).unwrap()[0] & 0x08, 0);

    // Loopback, masking by boolean, and the end.
    client.ask(SET_IRQS, &set_irqs(DATA_NONE | TRIGGER, 1, &[])).unwrap();
    await_signal(&interrupt);
    client.ask(SET_IRQS, &set_irqs(DATA_BOOL | MASK, 1, &[0])).unwrap();
    client.ask(SET_IRQS, &set_irqs(DATA_NONE | MASK, 1, &[])).unwrap();
    client.ask(SET_IRQS, &set_irqs(DATA_NONE | TRIGGER, 0, &[])).unwrap();
    client.ask(SET_IRQS, &set_irqs(DATA_NONE | TRIGGER, 1, &[])).unwrap();
    assert_eq!(signals(&interrupt), 0, "no client is connected");
    client.ask(SET_IRQS, &set_irqs(DATA_EVENTFD | TRIGGER, 1, &[])).unwrap();
}

#[test]
fn msi_exists_if_configured_and_each_interrupt_is_signalled_once() {
    let watchdog = "i6300esb,action=none,pretimeout=debug,before=60m,interrupt=msi";
    let server = Builder::new().options("--socket s --watchdog").options(watchdog).start();
    let mut client = server.client();
    let info = client.ask(GET_IRQ_INFO, &words(&[16, 0, 1, 0])).unwrap();
    assert_eq!((u32_at(&info, 1), u32_at(&info, 3)), (0b1001, 1), "eventfd, no resize; one");
    assert_eq!(client.read(CONFIG, 0x34, 1).unwrap(), [0x40]);
    assert_eq!(client.read(CONFIG, 0x40, 4).unwrap(), [0x05, 0x00, 0x80, 0x00]);

    // A guest enables MSI, and its VMM connects the eventfd after that.
    client.write(CONFIG, 0x04, &[0x06, 0x00]).unwrap();
    client.write(CONFIG, 0x44, &[0x00, 0x00, 0xE0, 0xFE]).unwrap();
    client.write(CONFIG, 0x4C, &[0x41, 0x00]).unwrap();
    client.write(CONFIG, 0x42, &[0x01, 0x00]).unwrap();
    let message = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    let line = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    client.ask_with_fds(SET_IRQS, &set_msi(DATA_EVENTFD | TRIGGER, 1), &[message.as_fd()]).unwrap();
    client.ask_with_fds(SET_IRQS, &set_irqs(DATA_EVENTFD | TRIGGER, 1, &[]), &[line.as_fd()]).unwrap();

    // Stage 1 ends soon, stage 2 in a quarter of an hour.
    client.unlock();
    client.write(BAR0, 0x00, &[1, 0, 0, 0]).unwrap();
    client.ping();
    client.write(CONFIG, 0x68, &[2]).unwrap();
    server.expect_where("expiry", |event| event["stage"] == "pretimeout");
    client.read(BAR0, 0x08, 4).unwrap();
    await_signal(&message);
    assert_eq!(signals(&line), 0);
    assert_eq!(client.read(CONFIG, 0x06, 2).unwrap()[0] & 0x08, 0, "INTx has no interrupt");

    // Loopback, what MSI does not have, and the end.
    client.ask(SET_IRQS, &set_msi(DATA_NONE | TRIGGER, 1)).unwrap();
    await_signal(&message);
    for flags in [DATA_NONE | MASK, DATA_NONE | UNMASK] {
        assert_eq!(client.ask(SET_IRQS, &set_msi(flags, 1)), Err(EINVAL));
    }
    client.ask(SET_IRQS, &set_msi(DATA_NONE | TRIGGER, 0)).unwrap();
    client.ask(SET_IRQS, &set_msi(DATA_NONE | TRIGGER, 1)).unwrap();
    assert_eq!(signals(&message), 0, "no client is connected");
}

#[test]
fn disabling_a_missing_interrupt_is_no_error() {
    let server = Server::harmless();
    let mut client = server.client();
    for index in 0..5 {
        client.ask(SET_IRQS, &words(&[20, DATA_NONE | TRIGGER, index, 0, 0])).unwrap();
    }
}

#[test]
fn a_timeout_is_reported_on_time_with_its_deadline_and_last_heartbeat() {
    let server = Server::harmless();
    let mut client = server.client();
    // Nine heartbeats with a long timeout, and one from which the timeout of 1.007 s counts.
    client.arm(60_000);
    for _ in 0..9 {
        client.ping();
    }
    let before = Instant::now();
    client.arm(512);
    let expiry = server.expect_where("expiry", |event| event["stage"] == "timeout");
    assert!(before.elapsed() >= Duration::from_nanos(1_006_632_960), "never early");
    assert_eq!(
        (&expiry["id"], &expiry["action"], &expiry["attempt"]),
        (&"watchdog0".into(), &"none".into(), &1.into())
    );
    assert_eq!(expiry["heartbeats"], 10);
    let number = |name: &str| expiry[name].as_u64().unwrap();
    // Two stages of 512 units of 983,040 ns.
    assert_eq!(number("deadline_ns") - number("last_heartbeat_ns"), 1_006_632_960);
    assert_eq!(number("observed_ns") - number("deadline_ns"), number("lateness_ns"));
    assert!(number("lateness_ns") < 5_000_000_000, "{expiry}");
}

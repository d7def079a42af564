//! The migration messages, as a client of VFIO's state machine sends them. The numbers are restated from Linux' `vfio.h`.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::actions::is_timeout;
use crate::client::*;
use crate::server::Server;

const FEATURE: u16 = 16;
const DATA_READ: u16 = 17;
const DATA_WRITE: u16 = 18;

const GET: u32 = 1 << 16;
const SET: u32 = 1 << 17;
const PROBE: u32 = 1 << 18;
const MIGRATION: u32 = 1;
const DEVICE_STATE: u32 = 2;

const STOP: u32 = 1;
const RUNNING: u32 = 2;
const STOP_COPY: u32 = 3;
const RESUMING: u32 = 4;
const PRE_COPY: u32 = 6;

const ENOTTY: u32 = 25;
const EFBIG: u32 = 27;

/// A timeout of 1.97 s.
const UNITS: u32 = 1000;

fn set(client: &mut Client, state: u32) -> Result<(), u32> {
    let request = words(&[16, SET | DEVICE_STATE, state, u32::MAX]);
    assert_eq!(client.ask(FEATURE, &request)?, request, "answered with the request");
    Ok(())
}

fn state(client: &mut Client) -> u32 {
    let reply = client.ask(FEATURE, &words(&[16, GET | DEVICE_STATE])).unwrap();
    assert_eq!(reply[..8], words(&[16, GET | DEVICE_STATE]));
    u32::from_ne_bytes(reply[8..12].try_into().unwrap())
}

/// Stops the device and reads its whole state, in pieces.
fn save(client: &mut Client) -> Vec<u8> {
    set(client, STOP_COPY).unwrap();
    let mut data = Vec::new();
    loop {
        let reply = client.ask(DATA_READ, &words(&[8 + 300, 300])).unwrap();
        let size = reply.len() - 8;
        assert_eq!(reply[..8], words(&[8 + size as u32, size as u32]));
        data.extend(&reply[8..]);
        if size < 300 {
            return data;
        }
    }
}

fn write(client: &mut Client, data: &[u8]) -> Result<(), u32> {
    let header = words(&[8 + data.len() as u32, data.len() as u32]);
    let reply = client.ask(DATA_WRITE, &[header, data.to_vec()].concat())?;
    assert!(reply.is_empty(), "no payload");
    Ok(())
}

/// Has the device load a state, and stops it.
fn load(client: &mut Client, data: &[u8]) -> Result<(), u32> {
    set(client, RESUMING).unwrap();
    for piece in data.chunks(200) {
        write(client, piece)?;
    }
    set(client, STOP)
}

#[test]
fn the_features_are_those_of_stop_and_copy() {
    let server = Server::harmless();
    let mut client = server.client();
    let reply = client.ask(FEATURE, &words(&[16, GET | MIGRATION])).unwrap();
    assert_eq!(reply, words(&[16, GET | MIGRATION, 1, 0]), "STOP_COPY, and neither P2P nor PRE_COPY");
    for (flags, outcome) in [
        (PROBE | GET | MIGRATION, Ok(())),
        (PROBE | GET | SET | DEVICE_STATE, Ok(())),
        (PROBE | DEVICE_STATE, Ok(())),
        (PROBE | SET | MIGRATION, Err(EINVAL)),
        (GET | SET | DEVICE_STATE, Err(EINVAL)),
        (DEVICE_STATE, Err(EINVAL)),
        (1 << 19 | GET | DEVICE_STATE, Err(EINVAL)),
        (SET | MIGRATION, Err(EINVAL)),
        // Dirty pages, and features that VFIO may get.
        (PROBE | SET | 6, Err(ENOTTY)),
        (GET, Err(ENOTTY)),
        (GET | 0xFFFF, Err(ENOTTY)),
    ] {
        let request = words(&[8, flags]);
        assert_eq!(client.ask(FEATURE, &request), outcome.map(|()| request), "{flags:#x}");
    }
    for body in [&words(&[15, GET | MIGRATION])[..], &words(&[16, SET | DEVICE_STATE, STOP]), &[0; 7]] {
        assert_eq!(client.ask(FEATURE, body), Err(EINVAL));
    }
    assert_eq!(state(&mut client), RUNNING);
    assert_eq!(set(&mut client, PRE_COPY), Err(EINVAL));
    assert_eq!(set(&mut client, 0), Err(EINVAL));
    for (next, wrong) in [(STOP, DATA_READ), (STOP_COPY, DATA_WRITE), (RESUMING, DATA_READ)] {
        set(&mut client, next).unwrap();
        assert_eq!(state(&mut client), next);
        assert_eq!(client.ask(wrong, &words(&[8, 0])), Err(EINVAL), "{next}");
    }
    assert_eq!(set(&mut client, RUNNING), Err(EINVAL), "no data was written");
    assert_eq!(client.ask(RESET, &[]), Ok(vec![]));
    assert_eq!(state(&mut client), RUNNING);
}

#[test]
fn an_armed_watchdog_moves_to_another_server_and_times_out_there() {
    let (source, target) = (Server::harmless(), Server::harmless());
    let mut client = source.client();
    client.arm(UNITS);
    let data = save(&mut client);
    // A stopped device does not time out.
    source.expect_none("expiry", Duration::from_secs(3));

    let mut other = target.client();
    load(&mut other, &data).unwrap();
    target.expect("armed");
    assert!(other.is_enabled());
    assert_eq!(other.read(BAR0, 0x00, 4).unwrap(), UNITS.to_le_bytes());
    target.expect_none("expiry", Duration::from_secs(3));
    set(&mut other, RUNNING).unwrap();
    let running = Instant::now();
    target.expect_where("expiry", is_timeout);
    assert!(running.elapsed() < Duration::from_secs(20));
    // The source may go on as well, if the migration fails elsewhere.
    set(&mut client, RUNNING).unwrap();
    source.expect_where("expiry", is_timeout);
}

#[test]
fn nothing_expires_because_of_data() {
    let server = Server::harmless();
    let mut client = server.client();
    client.arm(UNITS);
    let data: Value = serde_json::from_slice(&save(&mut client)).unwrap();
    client.ask(RESET, &[]).unwrap();
    let pending = json!({"stage": "timeout", "action": "reset", "age_ns": 1, "due_in_ns": 0, "attempt": 1,
        "is_requested": false, "has_recovered": false, "ends_with_heartbeat": false});
    for (pointer, value) in [("/timeout", pending), ("/device/timeout_age_ns", json!(5))] {
        let mut data = data.clone();
        data["device"]["counter"] = Value::Null;
        data["device"]["wdt_timeout"] = json!(true);
        *data.pointer_mut(pointer).unwrap() = value;
        load(&mut client, data.to_string().as_bytes()).unwrap();
        set(&mut client, RUNNING).unwrap();
        let running = Instant::now();
        // A whole period later, because the guest may be dead.
        server.expect_where("expiry", is_timeout);
        assert!(running.elapsed() >= Duration::from_nanos(2 * u64::from(UNITS) * 983_040) - Duration::from_millis(200));
        client.ask(RESET, &[]).unwrap();
    }
}

#[test]
fn an_invalid_state_is_refused_as_a_whole() {
    let server = Server::harmless();
    let mut client = server.client();
    client.arm(60_000);
    let sound = String::from_utf8(save(&mut client)).unwrap();
    set(&mut client, RUNNING).unwrap();
    let before = client.read(CONFIG, 0, 256).unwrap();
    for data in [
        "",
        "{}",
        &sound[..sound.len() - 1],
        &sound.replacen("\"preload1\":60000", "\"preload1\":1048576", 1),
        &sound.replacen("\"wdt_lock\":2", "\"wdt_lock\":9", 1),
        &format!("{sound}{sound}"),
        &"[".repeat(10_000),
    ] {
        assert_eq!(load(&mut client, data.as_bytes()), Err(EINVAL), "{data}");
        assert_eq!(state(&mut client), RESUMING);
        let now = client.read(CONFIG, 0, 256).unwrap();
        assert_eq!((&now[..0x64], &now[0x68..]), (&before[..0x64], &before[0x68..]));
        assert!(client.is_enabled());
        client.ask(RESET, &[]).unwrap();
        client.arm(60_000);
    }
    set(&mut client, RESUMING).unwrap();
    for _ in 0..4 {
        write(&mut client, &[b' '; 4080]).unwrap();
    }
    write(&mut client, &[b' '; 64]).unwrap();
    assert_eq!(write(&mut client, b" "), Err(EFBIG));
    assert_eq!(client.ask(DATA_WRITE, &words(&[8, 100])), Err(EINVAL));
}

#[test]
fn a_client_that_goes_leaves_a_device_that_runs() {
    let server = Server::harmless();
    for last in [STOP, STOP_COPY, RESUMING] {
        let mut client = server.client();
        client.arm(1);
        set(&mut client, last).unwrap();
        drop(client);
        server.expect("disconnected");
        let mut client = server.client();
        client.arm(1);
        server.expect_where("expiry", is_timeout);
    }
}

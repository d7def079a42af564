//! A tenant that lets its watchdog expire all the time drives no more actions than their rate permits.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{BAR0, Client};
use crate::fakes::{FakeQmp, QmpClient};
use crate::metrics::{counters, metrics_port, scrape};
use crate::server::{Builder, Server};

const FLOOD: Duration = Duration::from_secs(2);
const BURST: u64 = 3;
const INTERVAL: Duration = Duration::from_secs(10);

/// The guest lets the stages of its watchdog, whose preloads are given, end for a while: it feeds a little later than
/// `pause`.
fn flood(client: &mut Client, preloads: [u32; 2], pause: Duration) {
    for (register, units) in [(0x00, preloads[0]), (0x04, preloads[1])] {
        client.unlock();
        client.write(BAR0, register, &units.to_le_bytes()).unwrap();
    }
    client.write(crate::client::CONFIG, 0x68, &[0x02]).unwrap();
    let started = Instant::now();
    while started.elapsed() < FLOOD {
        client.ping();
        thread::sleep(pause);
    }
}

/// The most actions that the rate permits since then.
fn most(started: Instant) -> u64 {
    BURST + started.elapsed().as_secs() / INTERVAL.as_secs() + 1
}

/// What the flood has counted: expiries of this name, actions, and those left out.
fn counted(port: u16, expiries: &str) -> (u64, u64, u64) {
    let metrics = scrape(port);
    let counters = counters(&metrics, "wd");
    assert!(counters["delayed_actions"] <= counters["suppressed_actions"] + counters["actions"] + 1, "{counters:?}");
    (counters[expiries], counters["actions"], counters["suppressed_actions"])
}

/// The guest goes. Each action that was left out is told, although not with a line of its own, and so is the first that was
/// delayed, which is returned.
fn told(server: &Server, client: Client, suppressed: u64) -> Value {
    drop(client);
    let (mut events, _) = server.find("disconnected", |_| true);
    let sum = |events: &[Value]| -> u64 {
        let told = events.iter().filter(|event| event["event"] == "action-suppressed");
        told.map(|event| event["actions"].as_u64().unwrap()).sum()
    };
    while sum(&events) < suppressed {
        events.push(server.expect("action-suppressed"));
    }
    events.into_iter().find(|event| event["event"] == "action-delayed").expect("a delay")
}

#[test]
fn dumps() {
    let builder = Builder::new().options("--socket s --qmp q --metrics 0 --watchdog i6300esb,action=dump,id=wd");
    let qmp = FakeQmp::listen(&builder.path().join("q"));
    let folder = builder.path().to_owned();
    let server = builder.option("--dump-folder", folder.to_str().unwrap()).start();
    let port = metrics_port(&server);
    let qmp = qmp.accept(&server, true);
    let ends = Arc::new(AtomicBool::new(false));
    let answering = thread::spawn({
        let ends = ends.clone();
        move || answer_dumps(qmp, &ends)
    });
    let started = Instant::now();
    let mut client = server.client();
    flood(&mut client, [1, 1], Duration::from_millis(3));
    let (expiries, actions, suppressed) = counted(port, "timeouts");
    ends.store(true, Ordering::SeqCst);
    let dumps = answering.join().unwrap();
    assert!(dumps >= BURST && dumps <= most(started), "{dumps} dumps of {expiries} timeouts");
    assert!(
        expiries > 20 && actions <= dumps && suppressed + actions + 2 >= expiries,
        "{expiries}, {actions}, {suppressed}"
    );
    let delayed = told(&server, client, suppressed);
    assert_eq!(delayed["action"], "dump");
    assert!(delayed["until_ns"].as_u64().unwrap() > delayed["vm_time_ns"].as_u64().unwrap(), "{delayed}");
}

/// A QEMU that dumps, until the test ends. Returns how often.
fn answer_dumps(mut qmp: QmpClient, ends: &AtomicBool) -> u64 {
    let mut dumps = 0;
    while !ends.load(Ordering::SeqCst) {
        let Some(command) = qmp.command_within(Duration::from_millis(20)) else {
            continue;
        };
        let answer = match command["execute"].as_str().unwrap() {
            "query-chardev" => json!([]),
            "query-dump" => json!({"status": "none"}),
            "query-memory-size-summary" => json!({"base-memory": 1 << 20}),
            command => {
                assert_eq!(command, "dump-guest-memory");
                dumps += 1;
                json!({})
            }
        };
        qmp.say(json!({"return": answer, "id": command["id"]}));
    }
    dumps
}

#[test]
fn commands() {
    let options = "--socket s --metrics 0 --watchdog i6300esb,action=pause,id=wd";
    let server = Builder::new().options(options).option("--exec", "echo $WATCHDOG_STAGE >> acted").start();
    let port = metrics_port(&server);
    let started = Instant::now();
    let mut client = server.client();
    flood(&mut client, [1, 1], Duration::from_millis(3));
    let (expiries, actions, suppressed) = counted(port, "timeouts");
    let acted = fs::read_to_string(server.path("acted")).unwrap();
    let commands = acted.lines().count() as u64;
    assert!(commands >= BURST && commands <= most(started), "{commands} commands of {expiries} timeouts");
    assert!(
        expiries > 20 && actions <= commands && suppressed + actions + 2 >= expiries,
        "{expiries}, {actions}, {suppressed}"
    );
    assert_eq!(told(&server, client, suppressed)["action"], "pause");
}

#[test]
fn commands_of_pretimeouts() {
    let options = "--socket s --metrics 0 --watchdog i6300esb,action=reset,pretimeout=inject-nmi,before=60m,id=wd";
    let server = Builder::new().options(options).option("--exec", "echo $WATCHDOG_STAGE >> acted").start();
    let port = metrics_port(&server);
    let started = Instant::now();
    let mut client = server.client();
    flood(&mut client, [1, 60_000], Duration::from_millis(3));
    let (expiries, actions, suppressed) = counted(port, "pretimeouts");
    let acted = fs::read_to_string(server.path("acted")).unwrap();
    let commands = acted.lines().count() as u64;
    assert!(commands >= BURST - 1 && commands <= most(started), "{commands} commands of {expiries} pretimeouts");
    // A heartbeat that comes while a command runs ends what comes in that time.
    assert!(expiries > 20 && actions <= commands && suppressed > expiries / 2, "{expiries}, {actions}, {suppressed}");
    server.expect("action-suppressed");
    // The pretimeouts leave an action for a timeout.
    client.arm(1);
    server.expect_where("performed", |event| event["action"] == "reset");
}

#[test]
fn a_new_connection_has_no_new_burst() {
    let options = "--socket s --metrics 0 --watchdog i6300esb,action=pause,id=wd";
    let server = Builder::new().options(options).option("--exec", "echo $WATCHDOG_STAGE >> acted").start();
    let port = metrics_port(&server);
    let started = Instant::now();
    let mut timeouts = 0;
    while started.elapsed() < FLOOD || timeouts < 20 {
        let mut client = server.client();
        client.arm(1);
        thread::sleep(Duration::from_millis(5));
        timeouts = counters(&scrape(port), "wd")["timeouts"];
    }
    let acted = fs::read_to_string(server.path("acted")).unwrap();
    assert!(acted.lines().count() as u64 <= most(started), "{acted} of {timeouts} timeouts");
}

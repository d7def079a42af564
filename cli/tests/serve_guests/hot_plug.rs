//! A watchdog that is plugged in and unplugged while its guest runs.

use serde_json::json;

use crate::guest::{Guest, watchdog};
use crate::qmp::Operator;
use crate::server::{Builder, Server};
use crate::{CARD_RESET, LONGER_THAN_THE_TIMEOUT, expect_timeout, feed_and_kill, with_pieces};

/// Plugs the watchdog in, and waits until the guest's driver has it.
fn plug(server: &Server, operator: &mut Operator, guest: &mut Guest) {
    operator.execute_with("device_add", &watchdog(&server.path("s")));
    server.expect("connected");
    guest.run("until [ -e /sys/class/watchdog/watchdog0 ]; do sleep 0.1; done");
}

#[test]
fn a_watchdog_unplugged_while_armed_does_not_time_out_and_works_when_it_is_plugged_in_again() {
    with_pieces("hot-plug", |pieces| {
        let server = Builder::new().options("--socket s --qmp qmp --watchdog i6300esb,action=reset").start();
        let mut guest = Guest::boot(pieces.machine_without_watchdog(server.folder.path()));
        assert_eq!(guest.boot_status(), "", "the guest has no watchdog");
        let mut operator = Operator::connect(&server.path("test-qmp"));
        // With this parameter the driver does not stop the watchdog when it is unplugged: nothing but the end of the
        // connection disarms it.
        guest.run("rmmod i6300esb && insmod /lib/i6300esb.ko nowayout=1");
        plug(&server, &mut operator, &mut guest);
        guest.feed();
        server.expect("armed");
        server.expect_none("expiry", LONGER_THAN_THE_TIMEOUT);

        operator.execute_with("device_del", &json!({ "id": "watchdog0" }));
        let end = server.expect_before("disconnected", "disarmed");
        assert_eq!(end["reason"], "left");
        server.expect_none("expiry", LONGER_THAN_THE_TIMEOUT);
        guest.run("end_feeder KILL; [ ! -e /sys/class/watchdog/watchdog0 ]");

        plug(&server, &mut operator, &mut guest);
        server.expect_none("expiry", LONGER_THAN_THE_TIMEOUT);
        let alive = feed_and_kill(&mut guest);
        expect_timeout(&server, alive);
        assert_eq!(server.expect("performed")["action"], "reset");
        assert_eq!(guest.boot_status(), CARD_RESET);
    });
}

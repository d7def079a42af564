//! A stock arm64 guest of Debian 13 in QEMU.

use crate::guest::Pieces;
use crate::{CARD_RESET, expect_timeout, feed_and_kill, start, with};

#[test]
fn an_arm64_guest_that_stops_feeding_is_reset_and_sees_the_cause() {
    with("arm64", Pieces::arm64, |pieces| {
        let (server, mut guest) = start(pieces, "i6300esb,action=reset");
        assert_eq!(guest.boot_status(), "0");
        let machine = guest.run("uname -rm");
        assert!(machine.starts_with("6.12.") && machine.ends_with("aarch64"), "{machine}");
        let alive = feed_and_kill(&mut guest);
        expect_timeout(&server, alive);
        assert_eq!(server.expect("performed")["action"], "reset");
        assert_eq!(guest.boot_status(), CARD_RESET);
    });
}

//! XML of libvirt, and options of QEMU.

use crate::assert_refused;

#[test]
fn xml_of_libvirt_follows_its_rules() {
    assert_refused(&[
        (
            "<watchdog model='i6300esb' action='restart'/>",
            "1:1: watchdog/@action: unknown watchdog action \"restart\": accepted are reset, shutdown, poweroff, pause, none, dump, inject-nmi",
        ),
        (
            "<watchdog model='i6300esb' action='inject_nmi'/>",
            "1:1: watchdog/@action: unknown watchdog action \"inject_nmi\": did you mean inject-nmi?",
        ),
        ("<watchdog action='reset'/>", "1:1: watchdog/@model: missing: accepted are i6300esb, diag288"),
        (
            "<watchdog modle='i6300esb' model='i6300esb'/>",
            "1:1: watchdog/@modle: unknown attribute: did you mean model?",
        ),
        (
            "<watchdog model='itco' action='reset'/>",
            "1:1: watchdog/@model: model \"itco\" (a part of QEMU's machine q35, which libvirt lists by itself) is not available: \
             accepted are i6300esb, diag288",
        ),
        (
            "<watchdog model='ib700'/>",
            "1:1: watchdog/@model: model \"ib700\" is not available: accepted are i6300esb, diag288",
        ),
        (
            "<watchdog model='sbsa'/>",
            "1:1: watchdog/@model: unknown watchdog model \"sbsa\": accepted are i6300esb, diag288",
        ),
        (
            "<watchdog model='wdt'/>",
            "1:1: watchdog/@model: unknown watchdog model \"wdt\": accepted are i6300esb, diag288",
        ),
        (
            "<domain>\n<watchdog model='i6300esb'/></domain>",
            "2:1: <watchdog> has no effect here: it belongs in domain/devices",
        ),
        (
            "<domain><devices>\n  <watchDog model='i6300esb'/>\n</devices></domain>",
            "2:3: unknown element \"watchDog\": did you mean watchdog?",
        ),
        ("<network/>", "1:1: unknown element \"network\": accepted are domain, watchdog"),
        ("<domain/><domain/>", "1:10: several domains: accepted is one"),
        (
            "<domain><devices></domain>",
            "1:18: not valid XML: ill-formed document: expected `</devices>`, but `</domain>` was found",
        ),
        ("<domain><devices>", "1:18: not valid XML: 2 elements are not closed"),
        (
            "<domain><name>a\u{1}</name></domain>",
            "1:15: domain/name: invalid name \"a\\u{1}\": accepted are names of 1 to 253 bytes without control characters",
        ),
        (
            "<!DOCTYPE d [<!ENTITY a 'b'>]><domain><name>&a;</name></domain>",
            "1:1: a document type is not accepted, nor entities of its own",
        ),
        ("<domain><name>&a;</name></domain>", "1:15: not valid XML: at 1..2: unrecognized entity `a`"),
        ("<domain/> text", "1:10: not valid XML: text outside of an element"),
        (
            "<domain><devices><watchdog model='diag288'/>\n<watchdog model='diag288'/></devices></domain>",
            "2:1: watchdog: a second diag288: a VM has at most one",
        ),
    ]);
}

#[test]
fn options_of_qemu_follow_its_rules() {
    assert_refused(&[
        (
            "-device i6300esb -action watchdog=explode",
            "1:26: -action watchdog: unknown watchdog action \"explode\": accepted are reset, shutdown, poweroff, inject-nmi, pause, debug, none",
        ),
        (
            "-device i6300esb -action watchdog=dump",
            "1:26: -action watchdog: unknown watchdog action \"dump\": accepted are reset, shutdown, poweroff, inject-nmi, pause, debug, none",
        ),
        (
            "-device i6300esb -watchdog-action $ACTION",
            "1:35: -watchdog-action: unknown watchdog action \"$ACTION\": accepted are reset, shutdown, poweroff, inject-nmi, pause, debug, none",
        ),
        (
            "-device i6300esb,action=poweroff",
            "1:9: -device: i6300esb has no property action: write -action watchdog=ACTION",
        ),
        ("-device i6300ebs", "1:9: -device: unknown watchdog model \"i6300ebs\": did you mean i6300esb?"),
        ("-device I6300ESB", "1:9: -device: unknown watchdog model \"I6300ESB\": did you mean i6300esb?"),
        ("-device <model>", "1:9: -device: \"<model>\" is a placeholder: accepted are i6300esb, diag288"),
        ("-device ib700", "1:9: -device: unknown watchdog model \"ib700\": accepted are i6300esb, diag288"),
        ("-m 1G \\\n  -device", "2:3: -device: has no value"),
        (
            "-device i6300esb -watchdog-acton reset",
            "1:18: unknown option \"-watchdog-acton\": did you mean -watchdog-action VALUE?",
        ),
        ("-device=i6300esb", "1:1: unknown option \"-device=i6300esb\": did you mean -device VALUE?"),
        ("-device i6300esb -action watchdg=reset", "1:26: -action: unknown event \"watchdg\": did you mean watchdog?"),
        ("-device 'i6300esb", "1:9: a quote begins here and does not end"),
        (
            "-device '{\"driver\": \"i6300esb\", \"id\": 5}'",
            "1:9: -device: id: 5 is a number, not text: put it in quotes",
        ),
        ("-device '{\"driver\": \"i6300esb\"'", "1:9: -device: not valid JSON: unclosed bracket '{'"),
        (
            "-device i6300esb,id=",
            "1:9: -device: invalid id \"\": accepted are 1 to 253 bytes without control characters",
        ),
        ("-device diag288 -device diag288", "1:25: -device: a second diag288: a VM has at most one"),
    ]);
}

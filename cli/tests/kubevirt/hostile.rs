//! Input that is no VM or no domain, or that is made to cost time.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::hook::{Hook, Q35, web};

/// The most time for one call, on a loaded machine.
const LIMIT: Duration = Duration::from_secs(20);
/// Linux allows no longer argument than 128 KiB.
const LONG: usize = 120 << 10;

/// As many of these as an argument can have.
fn many(item: &str) -> String {
    item.repeat(LONG / item.len())
}

#[test]
fn what_is_no_domain_is_refused_with_its_place() {
    let cases = [
        (String::new(), "--domain:1:1: no XML"),
        ("text".to_owned(), "--domain:1:1: not valid XML: text outside of an element"),
        ("<domain>".to_owned(), "--domain:1:9: not valid XML: 1 elements are not closed"),
        ("<domain/>".to_owned(), "--domain:1:1: the domain is empty"),
        ("<network/>".to_owned(), "--domain:1:1: the root is \"network\": accepted is domain"),
        ("<domain></domain>\n<domain>".to_owned(), "--domain:2:1: not valid XML: a second root element"),
        ("<domain a='1' a='2'>".to_owned(), "--domain:1:1: not valid XML: attribute \"a\" is given twice"),
        (
            "<!DOCTYPE d [<!ENTITY a 'b'>]><domain/>".to_owned(),
            "--domain:1:1: a document type is not accepted, nor entities of its own",
        ),
        (many("<a>"), "--domain:1:1: the root is \"a\": accepted is domain"),
        (format!("<domain>{}", many("<a>")), "--domain:1:198: elements nested deeper than 64, which is the limit"),
        (
            format!("<domain {}>", (0..9000).map(|n| format!("a{n}='' ")).collect::<String>()),
            "--domain:1:1: more than 32 attributes, which is the limit",
        ),
    ];
    for (domain, message) in cases {
        let began = Instant::now();
        assert_eq!(Hook::new().refuse(&web().to_string(), &domain), message);
        assert!(began.elapsed() < LIMIT, "{message}");
    }
    for domain in ["<domain><os></domain>", "<domain a='&nothing;'/>", "<domain a=>", "<domain><!-- ", "<domain \u{1}>"]
    {
        let line = Hook::new().refuse(&web().to_string(), domain);
        assert!(line.starts_with("--domain:1:"), "{line}");
    }
}

#[test]
fn an_element_that_is_given_often_costs_little() {
    let uri = "http://libvirt.org/schemas/domain/qemu/1.0";
    let os = "<os><type machine='q35'/></os>";
    let bodies = [
        many("<a/>"),
        many("<q:arg value='-S'/>"),
        many("<q:commandline/>"),
        format!("<q:commandline>{}</q:commandline>", (0..1000).map(|_| "<q:arg value='-device'/>").collect::<String>()),
        format!("<devices>{}</devices>", many("<watchdog model='itco'/>")),
    ];
    for body in bodies {
        let began = Instant::now();
        let domain = format!("<domain xmlns:q='{uri}'>{os}{body}</domain>");
        let output = Hook::new().call(web().to_string(), &domain);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout.len() < domain.len() + 2000 && began.elapsed() < LIMIT);
    }
    let options = format!("<q:commandline>{}</q:commandline>", many("<q:arg value='a'/>"));
    let line = Hook::new().refuse(&web().to_string(), &format!("<domain xmlns:q='{uri}'>{os}{options}</domain>"));
    assert!(line.ends_with("more than 1024 options, which is the limit"), "{line}");
}

#[test]
fn what_is_no_vm_is_refused() {
    let cases = [
        "",
        "{",
        "null",
        "{\"metadata\": {\"annotations\": {\"vm-watchdog/i6300esb\": 5}}}",
        "{\"metadata\": {\"annotations\": [\"vm-watchdog/i6300esb\"]}}",
        "{\"metadata\": {\"name\": 7}}",
        "{\"spec\": {\"domain\": 1}}",
    ];
    for vmi in cases.into_iter().map(str::to_owned).chain([many("["), many("{\"a\":")]) {
        let began = Instant::now();
        let line = Hook::new().refuse(&vmi, Q35);
        assert!(line.starts_with("--vmi: no JSON of a VirtualMachineInstance: "), "{line}");
        assert!(began.elapsed() < LIMIT, "{line}");
    }
}

#[test]
fn a_call_that_is_none_of_kubevirts_is_an_error_of_usage() {
    let hook = Hook::new();
    let broken = OsStr::from_bytes(b"\xFF");
    let calls: [&[&OsStr]; 4] = [
        &[],
        &["--vmi".as_ref(), "{}".as_ref()],
        &["--vmi".as_ref(), broken, "--domain".as_ref(), "<domain/>".as_ref()],
        &["--vmi".as_ref(), "{}".as_ref(), "--domain".as_ref(), broken],
    ];
    for arguments in calls {
        let output = hook.command().args(arguments).output().unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{arguments:?}");
        assert!(output.stderr.starts_with(b"vm-watchdog: "), "{arguments:?}");
    }
}

#[test]
fn a_domain_that_cannot_be_written_is_an_error() {
    let hook = Hook::new();
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut command = hook.command();
    command.args(["--vmi", &web().to_string(), "--domain", Q35]).stdout(full).stderr(Stdio::piped());
    let output = command.spawn().unwrap().wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("the new domain cannot be written"));
}

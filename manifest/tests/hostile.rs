//! Files that are made to take time or memory, or to break the parsers.

use std::time::{Duration, Instant};

use vm_watchdog_manifest::{MAX_LENGTH, Manifest, ManifestError};

fn refusal(bytes: &[u8]) -> String {
    let started = Instant::now();
    let error = Manifest::parse("f", bytes, None).expect_err("an error");
    // The limits make it a second or less on an idle machine, and other tests may load this one.
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    let message = error.to_string();
    assert!(message.len() < 20_000, "{} bytes", message.len());
    message
}

/// As much of the text, repeated, as a file may have.
fn repeated(text: &str) -> String {
    text.repeat(MAX_LENGTH / text.len())
}

const HEAD: &str = "apiVersion: kubevirt.io/v1\nkind: VirtualMachineInstance\nspec:\n";

#[test]
fn a_file_has_at_most_one_mebibyte() {
    let spec = "  livenessProbe: {tcpSocket: {port: 80}}\n#";
    let exactly = format!("{HEAD}{spec}{}", "x".repeat(MAX_LENGTH - HEAD.len() - spec.len()));
    assert!(Manifest::parse("f", exactly.as_bytes(), None).is_ok());
    let expected = "f:1:1: the file is longer than 1048576 bytes, which is the limit";
    assert_eq!(refusal(format!("{exactly}x").as_bytes()), expected);
    let endless = Manifest::read("f", std::io::repeat(b'#'), None).unwrap_err();
    assert_eq!(endless.to_string(), expected);
}

#[test]
fn bytes_that_are_no_text_are_found() {
    assert_eq!(refusal(b"a: b\nc: d\xFF\n"), "f:2:5: byte 0xff is not UTF-8");
    assert_eq!(refusal(b"\xFF\xFEa\0:\0"), "f:1:1: byte 0xff is not UTF-8");
    assert_eq!(refusal(b"a: b\nc: \0\n"), "f:2:4: a NUL byte is not accepted");
    assert_eq!(refusal(b"qemu-system-x86_64\0-device\0i6300esb\0"), "f:1:19: a NUL byte is not accepted");
    let with_mark = [b"\xEF\xBB\xBF".as_slice(), b"<watchdog model='i6300esb'/>"].concat();
    assert!(Manifest::parse("f", &with_mark, None).is_ok());
}

#[test]
fn a_file_that_cannot_be_read_says_why() {
    let error = Manifest::open("/nonexistent/vm.yaml".as_ref(), None).unwrap_err();
    assert!(matches!(error, ManifestError::Unreadable { .. }));
    assert_eq!(error.to_string(), "/nonexistent/vm.yaml: No such file or directory (os error 2)");
    let error = Manifest::open(std::env::temp_dir().as_path(), None).unwrap_err();
    assert!(error.to_string().ends_with("Is a directory (os error 21)"), "{error}");
}

#[test]
fn nesting_is_limited() {
    for open in ["[", "{a: ", "- ", "? "] {
        let message = refusal(repeated(open).as_bytes());
        assert!(message.contains("recursion limit") || message.contains("nested deeper"), "{open}: {message}");
    }
    assert_eq!(refusal(repeated("<a>").as_bytes()), "f:1:1: unknown element \"a\": accepted are domain, watchdog");
    let deep = format!("<domain>{}", "<a>".repeat(100_000));
    assert_eq!(refusal(deep.as_bytes()), "f:1:198: elements nested deeper than 64, which is the limit");
}

#[test]
fn aliases_do_not_multiply() {
    // Each level has the one before ten times.
    let mut laughs = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
    for level in 1..40 {
        let items = format!("*a{},", level - 1).repeat(10);
        laughs += &format!("a{level}: &a{level} [{items}]\n");
    }
    laughs += &format!("{HEAD}  livenessProbe: {{exec: {{command: *a39}}}}\n");
    assert_eq!(
        refusal(laughs.as_bytes()).lines().next().unwrap(),
        "f:40:12: spec.livenessProbe.exec.command[0]: is a list: accepted is text"
    );

    // One long text, a hundred thousand times.
    let many = format!(
        "x: &x {}\ny: &y [{}]\n{HEAD}  livenessProbe: {{exec: {{command: *y}}}}\n",
        "x".repeat(300_000),
        "*x,".repeat(100_000)
    );
    let expected = "f:6:26: spec.livenessProbe.exec.command: has 100000 items: accepted are at most 256";
    assert_eq!(refusal(many.as_bytes()), expected);
    let long = many.replace("*y", "[*x]").replace("*x,", "");
    let expected = "f:6:36: spec.livenessProbe.exec.command[0]: has 300000 bytes: accepted are at most 16384";
    assert_eq!(refusal(long.as_bytes()), expected);

    // One large mapping, at each of many places: the second is not looked at any more.
    let fields: String = (0..15_000).map(|number| format!("x{number}: 1, ")).collect();
    let places = "*m, ".repeat(200);
    let wide = format!(
        "m: &m {{Ports: [], {fields}}}\n{HEAD}  domain: {{devices: {{interfaces: [{places}]}}}}\n  \
         livenessProbe: {{tcpSocket: {{port: web}}}}\n"
    );
    let message = refusal(wide.as_bytes());
    assert!(message.contains("interfaces[1]: too large: more than 20000 fields and items up to here"), "{message}");
    assert_eq!(message.matches("did you mean ports?").count(), 1, "{message}");
}

#[test]
fn many_values_documents_and_problems_are_limited() {
    let expected = "f:50000:2: more than 100000 values, which is the limit";
    assert_eq!(refusal(repeated("a:\n").as_bytes()), expected);
    let documents = refusal(repeated("---\n- a\n").as_bytes());
    assert!(documents.contains("too large") || documents.contains("100000 values"), "{documents}");
    let typos: String = (0..15_000).map(|_| "  livenessProve:\n".to_owned()).collect();
    let message = refusal(format!("{HEAD}{typos}").as_bytes());
    assert_eq!(message.lines().count(), 21);
    assert_eq!(message.lines().last(), Some("f:24:3: more problems follow, which are not listed"));
}

#[test]
fn long_names_are_shortened_in_messages() {
    let name = "x".repeat(100_000);
    let message = refusal(format!("{HEAD}  domain: {{devices: {{watchdog: {{name: a, {name}: {{}}}}}}}}\n").as_bytes());
    assert!(message.len() < 300, "{message}");
    let message = refusal(
        format!("{HEAD}  architecture: {name}\n  domain: {{devices: {{watchdog: {{name: a, i6300esb: {{}}}}}}}}\n")
            .as_bytes(),
    );
    assert!(message.len() < 300, "{message}");
    let message = refusal(b"<watchdog mo\x19del='i6300esb' mode='i6300esb'/>");
    assert!(message.contains("watchdog/@\"mo\\u{19}del\": unknown attribute: did you mean model?"), "{message}");
    let spec = "architecture: ".to_owned() + &name[..16_000];
    let message = refusal(
        format!("{HEAD}  {spec}\n  domain: {{devices: {{watchdog: {{name: a, i6300esb: {{}}}}}}}}\n").as_bytes(),
    );
    assert!(message.len() < 300, "{message}");
    let message = refusal(format!("kind: {name}\napiVersion: {name}\n").as_bytes());
    assert!(message.len() < 500, "{message}");
    let message = refusal(format!("<{name}/>").as_bytes());
    assert!(message.len() < 300, "{message}");
    let message = refusal(format!("<domain><{name}\u{1}></b></domain>").as_bytes());
    assert!(message.len() < 400 && !message.contains('\u{1}'), "{message}");
    let message = refusal(format!("<watchdog {name}='' model='{name}'/>").as_bytes());
    assert!(message.len() < 700, "{message}");
    let message = refusal(format!("-device i6300esb,id={name} -action watchdog={name} -device{name}").as_bytes());
    assert!(message.len() < 900, "{message}");
}

#[test]
fn entities_and_attributes_of_xml_do_not_multiply() {
    let laughs = "<!DOCTYPE a [<!ENTITY a 'aaaaaaaa'><!ENTITY b '&a;&a;&a;'>]><domain><name>&b;</name></domain>";
    assert_eq!(refusal(laughs.as_bytes()), "f:1:1: a document type is not accepted, nor entities of its own");
    let attributes: String = (0..40_000).map(|number| format!("a{number}='' ")).collect();
    let many = format!("<domain {attributes}><devices><watchdog a='' {attributes}/></devices></domain>");
    assert!(refusal(many.as_bytes()).ends_with("more than 32 attributes, which is the limit"));
    let watchdogs = format!("<domain><devices>{}</devices></domain>", "<watchdog model='i6300esb'/>".repeat(20_000));
    assert!(refusal(watchdogs.as_bytes()).ends_with("more than 16 watchdogs, which is the limit"));
    let name = format!("<domain><name>{}</name></domain>", "&amp;".repeat(200_000));
    assert!(refusal(name.as_bytes()).ends_with("the name of the domain is longer than 253 bytes, which is the limit"));
}

#[test]
fn repetitions_of_anything_end_soon() {
    let yaml = [
        "a: 1\n",
        "- a\n",
        "[a, ",
        "{a: a, ",
        "&a ",
        "*a ",
        "!t ",
        "\"",
        "'",
        "\"a\n ",
        "|\n ",
        ">\n a\n",
        "---\n",
        "...\n",
        "# a\n",
        "\r",
        "\t",
        "%TAG ! a\n",
        "\u{feff}",
        "{\"kind\":",
        "  livenessProve:\n",
        "<",
    ];
    let xml = [
        "<",
        "<a b='c'/>",
        "<watchDog/>",
        "<watchdog model='x'/>",
        "<watchdog model='i6300esb'><alias name='a'/>",
        "<!-- ",
        "<![CDATA[",
        "&lt;",
        "a",
    ];
    let qemu = [
        "-device i6300esb ",
        "-device i6300esb,",
        "\\\n",
        "-a=",
        "-devise ",
        ",,",
        ";",
        "'\"'\"",
        "-action watchdog=reset ",
    ];
    for (prefix, pieces) in [
        ("", &yaml[..]),
        (HEAD, &yaml),
        ("<domain><devices>", &xml),
        ("-device i6300esb ", &qemu),
        ("-device i6300esb,", &qemu),
    ] {
        for piece in pieces {
            let started = Instant::now();
            let text = format!("{prefix}{}", piece.repeat((MAX_LENGTH - prefix.len()) / piece.len()));
            let _ = Manifest::parse("f", text.as_bytes(), None);
            assert!(started.elapsed() < Duration::from_secs(60), "{prefix:?} {piece:?}: {:?}", started.elapsed());
        }
    }
}

//! The program as a user meets it: exit codes, one line on standard error, formats.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::Write,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_paravane")).args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn run_with_input(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_paravane"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

/// The first line of an answer; panics with what was said instead if there is none.
fn answer(arguments: &[&str]) -> String {
    first_line(&run(arguments))
}

fn first_line(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty());
    String::from_utf8_lossy(&output.stdout).lines().next().unwrap().to_owned()
}

fn json(arguments: &[&str]) -> serde_json::Value {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A file with `contents` that goes away with the value.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, contents: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("paravane-cli-{}-{name}", std::process::id()));
        std::fs::write(&path, contents).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing depends on it being gone.
        drop(std::fs::remove_file(&self.0));
    }
}

#[test]
fn the_answer_is_in_the_first_line() {
    for (arguments, line) in [
        (
            &["decode", "descriptor", "0x00cfb2000000ffff"][..],
            "Descriptor 0x00cfb2000000ffff: data, writable; DPL 1; flat",
        ),
        (
            &["decode", "descriptor", "ff", "ff", "00", "00", "00", "fb", "af", "00"],
            "Descriptor 0x00affb000000ffff: 64-bit code, readable, accessed; DPL 3; flat",
        ),
        (
            &["decode", "descriptor", "0x8000895310400067", "0xffff82d0"],
            "16-byte descriptor 0x8000895310400067: TSS, available; DPL 0; base 0xffff82d080531040, 104 bytes",
        ),
        (&["decode", "selector", "0xe033"], "Selector 0xe033: GDT entry 7174, ring 3"),
        (&["decode", "rflags", "0x246"], "RFLAGS 0x246: PF ZF IF"),
        (&["decode", "cr0", "0x8005003b"], "CR0 0x8005003b: PE MP TS ET NE WP AM PG"),
        (&["decode", "cr4", "0x20"], "CR4 0x20: PAE"),
        (
            &["decode", "error-code", "7", "--page-fault"],
            "Page-fault error code 0x7: write to a present page from user mode",
        ),
        (&["decode", "error-code", "0xe030", "--selector"], "Selector error code 0xe030: GDT entry 7174"),
        (&["decode", "pte", "0x1067", "--level", "4"], "L4 entry 0x0000000000001067: frame 0x1, P RW US A D"),
        (&["decode", "errno", "-22"], "EINVAL (22): Invalid argument."),
        (&["decode", "errno", "-EINVAL"], "EINVAL (22): Invalid argument."),
        (&["decode", "errno", "0xffffffea"], "EINVAL (22): Invalid argument."),
        (
            &["decode", "hypercall", "2"],
            "Hypercall 2, set_gdt: Makes the listed frames the guest part of the GDT after checking every descriptor in \
             them.",
        ),
        (
            &["encode", "descriptor", "--type", "code", "--dpl", "3", "--long"],
            "0x00affb000000ffff: 64-bit code, readable, accessed; DPL 3; flat",
        ),
        (&["encode", "selector", "--index", "7173"], "0xe02b: GDT entry 7173, RPL 3"),
        (&["encode", "pte", "--frame", "0x1"], "L1 entry 0x0000000000001001: frame 0x1, P"),
    ] {
        // A long first line is wrapped like any other text.
        let output = run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout);
        let paragraph: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).collect();
        assert_eq!(paragraph.join(" "), line, "{arguments:?}");
    }
}

#[test]
fn bad_input_is_one_line_and_a_documented_exit_code() {
    let odd = Scratch::new("odd", &[0, 1, 2]);
    let words = Scratch::new("words", b"hello\n");
    let directory = std::env::temp_dir();
    let directory = directory.to_str().unwrap();
    for (arguments, code, part) in [
        (&["decode", "descriptor", "cs"][..], 2, "looked for a number (descriptor), found \"cs\""),
        (&["decode", "descriptor", "0x100cfb2000000ffff"], 2, "has 64 bits"),
        (&["decode", "descriptor", "ff", "ff", "00"], 2, "multiple of 8 bytes"),
        (&["decode", "descriptor"], 2, "no descriptor given"),
        (&["decode", "descriptor", "0x0000890000000067", "--wide"], 2, "--wide"),
        (&["decode", "descriptor", "0", "--guest", "64", "--hypervisor", "32"], 2, "never existed"),
        (&["decode", "descriptor", "--file", "/nonexistent/file"], 66, "cannot read /nonexistent/file"),
        (&["decode", "descriptor", "--file", directory], 66, "cannot read"),
        (&["decode", "descriptor", "--file", odd.path()], 2, "looked for a number"),
        (&["decode", "selector", "0x10000"], 2, "has 16 bits"),
        (&["decode", "gdt", "/nonexistent/file"], 66, "cannot read /nonexistent/file"),
        (&["decode", "gdt", directory], 66, "cannot read"),
        (&["decode", "gdt", odd.path()], 65, "found 3 bytes"),
        (&["decode", "gdt", words.path()], 65, "line 1: looked for groups of hexadecimal digits"),
        (&["decode", "gdt", words.path(), "--first", "8192"], 2, "has 13 bits"),
        (&["decode", "gdt", "/dev/zero"], 65, "more than 16 MiB"),
        (&["decode", "gdt", "/dev/null"], 65, "found nothing"),
        (&["decode", "gdt", "-"], 65, "standard input: looked for descriptors, found nothing"),
        (&["decode", "pte", "0x1", "--level", "4", "--guest", "32"], 2, "three levels"),
        (&["decode", "pte", "zz"], 2, "looked for a number"),
        (&["decode", "error-code", "0x100000000"], 2, "has 32 bits"),
        (&["decode", "rflags"], 2, "no RFLAGS given"),
        (&["decode", "errno", "EFOO"], 2, "looked for an error of Xen's"),
        (&["decode", "hypercall", "frobnicate"], 2, "no hypercall is called \"frobnicate\""),
        (&["encode", "descriptor", "--type", "code", "--ist", "1"], 2, "--ist belongs to"),
        (&["encode", "descriptor", "--type", "data", "--limit", "5G"], 2, "segments end at 4 GiB"),
        (&["encode", "selector", "--index", "8192"], 2, "has 13 bits"),
        (&["encode", "pte", "--frame", "0x10000000000"], 2, "has 40 bits"),
    ] {
        let output = run(arguments);
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {message}");
        assert!(message.contains(part), "{arguments:?}: {message}");
        assert_eq!(message.lines().count(), 1, "{arguments:?}: {message}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn numbers_and_tables_come_from_standard_input_too() {
    let output = run_with_input(&["decode", "descriptor", "-"], b"# flat\n0x00cff3000000ffff\n");
    assert_eq!(first_line(&output), "Descriptor 0x00cff3000000ffff: data, writable, accessed; DPL 3; flat");
    let output =
        run_with_input(&["decode", "gdt", "-"], b"0x401000:\t0x0000000000000000\t0x00cffb000000ffff\n");
    assert_eq!(first_line(&output), "GDT entries 0 to 1: 1 descriptor");
}

#[test]
fn a_table_is_read_from_a_binary_file() {
    let quadwords: [u64; 3] = [0, 0x00af_9b00_0000_ffff, 0x0000_8900_0000_0067];
    let bytes: Vec<u8> = quadwords.iter().flat_map(|quadword| quadword.to_le_bytes()).collect();
    let file = Scratch::new("table", &bytes);
    assert_eq!(
        answer(&["decode", "gdt", file.path(), "--first", "0x10"]),
        "GDT entries 16 to 18: 2 descriptors, 1 changed by Xen, 1 refused"
    );
    let table = json(&["decode", "gdt", file.path(), "--json"]);
    assert_eq!(table["set_gdt_errno"], "EINVAL");
    assert_eq!(table["entries"][0]["xen"]["stored"], "0x00affb000000ffff");
    assert_eq!(table["entries"][1]["index"], 2);
}

#[test]
fn every_command_prints_json() {
    for arguments in [
        &["decode", "descriptor", "0", "0x00cfb2000000ffff", "--json"][..],
        &["decode", "selector", "0xe033", "--json"],
        &["decode", "pte", "0x1067", "--json"],
        &["decode", "error-code", "7", "--json"],
        &["decode", "rflags", "0x246", "--json"],
        &["decode", "cr0", "0", "--json"],
        &["decode", "cr4", "0", "--json"],
        &["decode", "hypercall", "0", "MMUEXT_SET_LDT", "63", "--json"],
    ] {
        let value = json(arguments);
        assert!(value.as_array().is_some_and(|list| !list.is_empty()), "{arguments:?}");
    }
    assert_eq!(json(&["decode", "errno", "38", "--json"])["name"], "ENOSYS");
    let encoded = json(&["encode", "descriptor", "--type", "data", "--guest", "32", "--json"]);
    assert_eq!(encoded["descriptor"]["descriptor"], "0x00cfb3000000ffff");
    assert_eq!(encoded["install"][0]["hypercall"], "set_gdt");
    assert_eq!(json(&["encode", "selector", "--index", "7174", "--json"])["selector"], "0xe033");
    assert_eq!(json(&["encode", "pte", "--frame", "1", "--json"])["entry"], "0x0000000000001001");
}

/// Checks that tags nest, attributes are quoted and no text holds markup; all that these drawings use of XML.
fn assert_well_formed(svg: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = svg;
    while let Some(start) = rest.find('<') {
        let (text, tag) = rest.split_at(start);
        assert!(!text.contains('>'), "{text}");
        for entity in text.split('&').skip(1) {
            assert!(
                ["amp;", "lt;", "gt;", "quot;"].iter().any(|known| entity.starts_with(known)),
                "{entity}"
            );
        }
        let end = tag.find('>').unwrap();
        let inner = &tag[1..end];
        rest = &tag[end + 1..];
        assert!(inner.matches('"').count().is_multiple_of(2), "{inner}");
        let name = inner.trim_end_matches('/').split_whitespace().next().unwrap();
        if let Some(closed) = name.strip_prefix('/') {
            assert_eq!(open.pop(), Some(closed));
        } else if !inner.ends_with('/') {
            open.push(name);
        }
    }
    assert!(open.is_empty() && rest.trim().is_empty(), "{open:?} {rest}");
}

#[test]
fn drawings_are_well_formed() {
    let table: String = (0..600u32).map(|entry| format!("{:#018x}\n", u64::from(entry) << 40)).collect();
    let table = Scratch::new("drawn", table.as_bytes());
    for arguments in [
        &["decode", "descriptor", "0x00cfb2000000ffff", "0x1234ec0500105678", "0", "--svg"][..],
        &["decode", "gdt", table.path(), "--svg"],
        &["decode", "selector", "0xe033", "--svg"],
        &["decode", "pte", "0x1067", "--svg"],
        &["decode", "error-code", "7", "--svg"],
        &["decode", "rflags", "0x246", "--svg"],
        &["decode", "cr4", "0xffffffffffffffff", "--svg"],
        &["encode", "descriptor", "--type", "tss", "--svg"],
        &["encode", "pte", "--frame", "1", "--svg"],
    ] {
        let output = run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert_well_formed(std::str::from_utf8(&output.stdout).unwrap());
    }
    // Without a diagram there is nothing to draw, and that is said.
    let output = run(&["decode", "descriptor", "0", "--svg"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn text_fits_a_hundred_columns_and_has_no_escapes_in_a_pipe() {
    for arguments in [
        &["decode", "descriptor", "0x00cfb2000000ffff", "0x8000895310400067", "0xffff82d0"][..],
        &["decode", "descriptor", "0x1240f634567fff0f", "--hypervisor", "32-nonpae"],
        &["decode", "pte", "0x8000000012345063"],
        &["decode", "cr4", "0xffffffff"],
        &["decode", "rflags", "0xffffffffffffffff"],
        &["decode", "error-code", "0xffffffff"],
        &["decode", "hypercall", "1", "10", "26", "32"],
        &["encode", "descriptor", "--type", "data"],
    ] {
        let output = run(arguments);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(!text.contains('\u{1b}'), "{arguments:?}");
        for line in text.lines() {
            assert!(line.chars().count() <= 100, "{arguments:?}: {line}");
        }
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_paravane"))
        .args(["decode", "hypercall", "1", "12", "26", "32"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

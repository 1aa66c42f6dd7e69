//! `paravane inspect`, run as a person runs it, on made kernels. Real ones are the builder's own tests.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use paravane_abi::elfnote::ElfNote;
use paravane_builder::testing::{bzimage, elf};
use paravane_x86::mode::Guest;
use serde_json::Value;

fn paravane() -> Command {
    Command::new(env!("CARGO_BIN_EXE_paravane"))
}

/// Writes a file for the test of that name, and gives its path.
fn file(test: &str, name: &str, bytes: &[u8]) -> String {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("inspect").join(test);
    fs::create_dir_all(&directory).expect("the target directory is writable");
    let path: PathBuf = directory.join(name);
    fs::write(&path, bytes).expect("the target directory is writable");
    path.to_str().expect("the path is UTF-8").to_owned()
}

fn inspect(arguments: &[&str]) -> Output {
    paravane().arg("inspect").args(arguments).output().expect("the program runs")
}

fn answer(arguments: &[&str]) -> String {
    let output = inspect(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text is UTF-8")
}

/// The made Linux in a bzImage that is not compressed.
fn linux_bzimage() -> Vec<u8> {
    bzimage::bzimage(0x20f, "6.1.0-test (somebody@somewhere) #1 SMP", &elf::linux().build())
}

#[test]
fn the_first_line_is_the_verdict() {
    let test = "the_first_line_is_the_verdict";
    let no_notes = elf::ElfFile::new(Guest::Bits64).load(0x10_0000, &[0x90; 16], 16).build();
    let without_entry: Vec<Vec<u8>> = elf::linux_notes(elf::LINUX_ENTRY)
        .into_iter()
        .filter(|note| *note != elf::number_note(ElfNote::Entry, elf::LINUX_ENTRY))
        .collect();
    let refused =
        elf::ElfFile::new(Guest::Bits64).load(0x100_0000, &[0x90; 16], 16).notes(&without_entry).build();
    for (name, bytes, verdict, reason) in [
        ("pv", linux_bzimage(), "The kernel boots as a 64-bit PV guest.", ""),
        ("none", no_notes, "The kernel is not made for Xen.", "no ELF notes of owner Xen"),
        ("refused", refused, "describes itself to Xen, but cannot be loaded.", "CONFIG_XEN_PV"),
    ] {
        let text = answer(&[&file(test, name, &bytes)]);
        assert!(text.lines().next().is_some_and(|line| line.ends_with(verdict)), "{name}: {text}");
        assert!(text.contains(reason), "{name}: {text}");
    }
}

#[test]
fn a_linux_looks_like_this() {
    let path = file("a_linux_looks_like_this", "vmlinuz", &linux_bzimage());
    insta::assert_snapshot!("inspect", answer(&[&path]));
    insta::assert_snapshot!("inspect_notes", answer(&[&path, "--notes"]));
}

#[test]
fn every_line_fits_100_columns() {
    let path = file("every_line_fits_100_columns", "vmlinuz", &linux_bzimage());
    for arguments in [&[&*path] as &[&str], &[&path, "--notes"]] {
        for line in answer(arguments).lines() {
            assert!(line.chars().count() <= 100, "{line}");
        }
    }
}

#[test]
fn programs_get_the_inspection_as_json() {
    let path = file("programs_get_the_inspection_as_json", "vmlinuz", &linux_bzimage());
    let inspection: Value = serde_json::from_str(&answer(&[&path, "--json"])).expect("JSON");
    assert_eq!(inspection["verdict"]["boot"], "pv64");
    assert_eq!(inspection["container"]["kind"], "bzImage");
    assert_eq!(inspection["addresses"]["virt_entry"], elf::LINUX_ENTRY);
}

#[test]
fn the_elf_file_inside_is_extracted_as_it_is() {
    let test = "the_elf_file_inside_is_extracted_as_it_is";
    let (path, target) = (file(test, "vmlinuz", &linux_bzimage()), file(test, "vmlinux", b""));
    assert_eq!(answer(&[&path, "--extract", &target]), "");
    let wanted = elf::linux().build();
    assert!(fs::read(&target).expect("it was written") == wanted);
    assert!(inspect(&[&path, "--extract", "-"]).stdout == wanted);
}

#[test]
fn standard_input_is_a_kernel_too() {
    let mut child = paravane()
        .args(["inspect", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program runs");
    child.stdin.take().expect("it is a pipe").write_all(&linux_bzimage()).expect("it is read");
    let output = child.wait_with_output().expect("it ends");
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("The kernel boots as a 64-bit PV guest"));
}

#[test]
fn text_in_a_kernel_cannot_steer_the_terminal() {
    let mut notes = elf::linux_notes(elf::LINUX_ENTRY);
    notes.push(elf::text_note(ElfNote::Features, "\u{1b}[2J|!\u{1b}[31m"));
    notes.push(elf::note("\u{1b}[2Jx", 1, b""));
    let legacy = elf::ElfFile::new(Guest::Bits32).load(0x10_0000, &[0x90; 16], 16).section(
        "__xen_guest",
        elf::SHT_PROGBITS,
        b"GUEST_OS=\x1b[2J,\x1b[31m=1\0",
    );
    let noted = elf::ElfFile::new(Guest::Bits64).load(0x100_0000, &[0x90; 16], 16).notes(&notes);
    for (name, bytes) in [("notes", noted.build()), ("legacy", legacy.build())] {
        let path = file("text_in_a_kernel_cannot_steer_the_terminal", name, &bytes);
        let page = answer(&[&path, "--notes"]);
        assert!(!page.contains('\u{1b}'), "{page:?}");
        // The sequence was there, and only its first character is gone.
        assert!(page.contains("[2J"), "{page}");
    }
}

#[test]
fn what_is_no_kernel_is_one_line_and_its_exit_code() {
    let test = "what_is_no_kernel_is_one_line_and_its_exit_code";
    let kernel = linux_bzimage();
    let directory = env!("CARGO_TARGET_TMPDIR");
    let absent = format!("{directory}/no/such/kernel");
    for (path, code, part) in [
        (file(test, "empty", b""), 65, "empty"),
        (file(test, "script", b"#!/bin/sh\n"), 65, "a script"),
        (file(test, "cut", &kernel[..kernel.len() / 2]), 65, "cut short"),
        (file(test, "gzip", b"\x1f\x8b\x08\x00garbage"), 65, "gzip"),
        (directory.to_owned(), 66, "cannot read"),
        (absent, 66, "cannot read"),
    ] {
        let output = inspect(&[&path]);
        let message = String::from_utf8(output.stderr).expect("messages are UTF-8");
        assert_eq!(output.status.code(), Some(code), "{path}: {message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        assert!(message.contains(part) && message.contains(&path), "{message}");
        assert!(output.stdout.is_empty());
    }
}

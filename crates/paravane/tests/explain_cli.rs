//! The program itself, run as a person runs it: `explain`, `hypercall-page`, `completions`, `man`.
//!
//! Standard output is no terminal here, so text is 100 columns wide and has no colours.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use paravane_abi::hypercall::{Hypercall, TABLE_SIZE};
use paravane_x86::{segments::CORRECTIONS, transitions};
use serde_json::Value;

/// The options that choose a mode, and none.
const MODES: [&[&str]; 5] =
    [&[], &["--guest", "64"], &["--guest", "32"], &["--hypervisor", "32"], &["--hypervisor", "32-nonpae"]];

/// The topics that take a mode.
const MODED: [&str; 7] =
    ["segments", "gdt", "hypercall-page", "hypercalls", "iret", "transition", "start-of-day"];

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_paravane")).args(arguments).output().expect("the program runs")
}

/// What a run that succeeds prints.
fn answer(arguments: &[&str]) -> String {
    let output = run(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).expect("text is UTF-8")
}

/// The exit code and message of a run that fails, whose message is one line.
fn failure(arguments: &[&str]) -> (i32, String) {
    let output = run(arguments);
    let message = String::from_utf8(output.stderr).expect("messages are UTF-8");
    assert_eq!(message.lines().count(), 1, "{arguments:?}: {message}");
    (output.status.code().expect("no signal ends the program"), message)
}

/// An empty directory for the test of that name.
fn directory(test: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
    match fs::remove_dir_all(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{}: {error}", path.display()),
        Ok(()) | Err(_) => {}
    }
    fs::create_dir_all(&path).expect("the target directory is writable");
    path
}

/// Every `explain` that there is, each topic in each mode.
fn every_page() -> Vec<Vec<String>> {
    let mut pages = vec![vec!["explain".to_owned()], vec!["explain".to_owned(), "elf-notes".to_owned()]];
    let page = |words: &[&str], mode: &[&str]| {
        ["explain"].iter().chain(words).chain(mode).map(|&word| word.to_owned()).collect::<Vec<_>>()
    };
    for mode in MODES {
        pages.extend(MODED.iter().map(|topic| page(&[topic], mode)));
    }
    pages.extend((0..=TABLE_SIZE).map(|number| page(&["hypercalls", &number.to_string()], &[])));
    pages.extend(Hypercall::ALL.iter().map(|call| page(&["hypercalls", call.name()], &["--guest", "32"])));
    pages.extend(transitions::all().map(|transition| page(&["transition", transition.name], &[])));
    pages
}

/// Text without the line breaks that depend on the width.
fn unwrapped(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn pages_look_like_this() {
    for arguments in [
        &["explain"] as &[&str],
        &["explain", "segments"],
        &["explain", "segments", "--guest", "64"],
        &["explain", "gdt"],
        &["explain", "gdt", "--hypervisor", "32-nonpae"],
        &["explain", "hypercall-page"],
        &["explain", "hypercalls"],
        &["explain", "hypercalls", "set_gdt"],
        &["explain", "hypercalls", "mmuext_op", "--guest", "64"],
        &["explain", "iret"],
        &["explain", "transition"],
        &["explain", "transition", "hypercall-64"],
        &["explain", "transition", "event-user-32"],
        &["explain", "elf-notes"],
        &["explain", "start-of-day"],
        &["hypercall-page"],
        &["hypercall-page", "--guest", "32"],
        &["hypercall-page", "--form", "supervisor", "--entry", "0xff1234"],
    ] {
        insta::assert_snapshot!(arguments.join("_"), answer(arguments));
    }
}

#[test]
fn every_page_fits_100_columns_and_has_no_escape_sequences() {
    for arguments in every_page() {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let text = answer(&arguments);
        for line in text.lines() {
            assert!(line.chars().count() <= 100, "{arguments:?}: {line}");
            assert_eq!(line, line.trim_end(), "{arguments:?}");
        }
        assert!(!text.contains('\u{1b}') && text.lines().count() > 3, "{arguments:?}");
    }
}

#[test]
fn every_page_is_json_with_a_title_and_sections() {
    for arguments in every_page() {
        let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        arguments.push("--json");
        let page: Value = serde_json::from_str(&answer(&arguments)).expect("JSON");
        assert!(page["title"].is_string(), "{arguments:?}");
        assert!(page["sections"].as_array().is_some_and(|sections| !sections.is_empty()), "{arguments:?}");
    }
}

#[test]
fn every_correction_stands_on_the_pages_where_its_reader_looks() {
    for topic in ["segments", "gdt"] {
        for mode in MODES {
            let arguments: Vec<&str> = ["explain", topic].iter().chain(mode).copied().collect();
            let page = unwrapped(&answer(&arguments));
            for correction in &CORRECTIONS {
                for text in [correction.claim, correction.truth, correction.reason, correction.origin] {
                    assert!(page.contains(&unwrapped(text)), "{arguments:?}: {text}");
                }
            }
        }
    }
}

#[test]
fn the_list_of_topics_names_every_topic() {
    let list = answer(&["explain"]);
    for topic in MODED.iter().chain(&["elf-notes"]) {
        assert!(list.lines().any(|line| line.trim_start().starts_with(topic)), "{topic}");
    }
}

#[test]
fn the_gdt_is_drawn() {
    let drawing = answer(&["explain", "gdt", "--guest", "64", "--svg"]);
    assert!(drawing.starts_with("<svg ") && drawing.contains("0x00affb000000ffff"));
    let both = answer(&["explain", "gdt", "--svg"]);
    assert!(both.contains("0x00cfbb000000ffff") && both.len() > drawing.len());
}

#[test]
fn a_name_that_nothing_has_is_answered_with_similar_ones() {
    for (arguments, part) in [
        (&["explain", "hypercalls", "vcpu"] as &[&str], "is it vcpu_op"),
        (&["explain", "hypercalls", "xyz"], "`paravane explain hypercalls` lists them"),
        (&["explain", "hypercalls", "0x1_0000_0000"], "has 32 bits"),
        (&["explain", "transition", "sysc"], "is it syscall-64 or"),
        (&["explain", "transition", "xyz"], "`paravane explain transition` lists them"),
        (&["explain", "segments", "--guest", "64", "--hypervisor", "32"], "never existed"),
        (&["hypercall-page", "--guest", "64", "--form", "supervisor"], "32-bit kernels"),
    ] {
        let (code, message) = failure(arguments);
        assert_eq!(code, 2, "{arguments:?}");
        assert!(message.contains(part), "{arguments:?}: {message}");
    }
}

#[test]
fn a_hypercall_has_its_dashes_and_its_number_for_a_name_too() {
    let page = answer(&["explain", "hypercalls", "memory_op"]);
    for name in ["memory-op", "12", "0xc", "MEMORY_OP"] {
        assert_eq!(answer(&["explain", "hypercalls", name]), page);
    }
    assert_eq!(
        answer(&["explain", "transition", "hypercall", "--guest", "32"]),
        answer(&["explain", "transition", "hypercall-32"])
    );
}

#[test]
fn a_written_page_passes_its_own_check() {
    let directory = directory("a_written_page_passes_its_own_check");
    for (name, options) in [
        ("64", &["--guest", "64"] as &[&str]),
        ("32", &["--guest", "32"]),
        ("0", &["--form", "supervisor", "--entry", "0xff00_1230"]),
    ] {
        let path = directory.join(name);
        let path = path.to_str().unwrap();
        let write: Vec<&str> = ["hypercall-page", "-o", path].iter().chain(options).copied().collect();
        assert_eq!(answer(&write), "");
        assert_eq!(fs::read(path).unwrap().len(), 4096);
        assert!(answer(&["hypercall-page", "--check", path]).contains("All 128 slots"));
        let check: Vec<&str> = ["hypercall-page", "--check", path].iter().chain(options).copied().collect();
        assert!(answer(&check).contains("All 128 slots"));
    }
}

#[test]
fn standard_output_takes_the_page_as_it_is() {
    let output = run(&["hypercall-page", "--guest", "32", "-o", "-"]);
    assert_eq!(output.stdout.len(), 4096);
    assert_eq!(&output.stdout[..8], [0xb8, 0, 0, 0, 0, 0xcd, 0x82, 0xc3]);
}

#[test]
fn a_changed_page_is_named_slot_by_slot() {
    let directory = directory("a_changed_page_is_named_slot_by_slot");
    let path = directory.join("page");
    let path = path.to_str().unwrap();
    answer(&["hypercall-page", "-o", path]);
    let mut page = fs::read(path).unwrap();
    // INT 0x82 where mmu_update has SYSCALL, and a byte behind the stub of the last slot.
    page[32 + 8] = 0xcd;
    page[4095] = 0x90;
    fs::write(path, &page).unwrap();
    let output = run(&["hypercall-page", "--check", path]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    let slots: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("  ") && line.contains(" 0x"))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(slots, ["1", "127"]);
    assert!(String::from_utf8(output.stderr).unwrap().contains("2 of 128 slots differ from SYSCALL"));

    let data: Value =
        serde_json::from_slice(&run(&["hypercall-page", "--check", path, "--json"]).stdout).unwrap();
    assert_eq!(data["matching_slots"], 126);
    assert_eq!(data["differences"][0]["slot"], 1);
    assert_eq!(data["differences"][0]["offset"], 40);
}

#[test]
fn a_page_of_the_other_form_and_no_page_at_all_are_told_apart() {
    let directory = directory("a_page_of_the_other_form_and_no_page_at_all_are_told_apart");
    let (page, noise) = (directory.join("page"), directory.join("noise"));
    let (page, noise) = (page.to_str().unwrap(), noise.to_str().unwrap());
    answer(&["hypercall-page", "-o", page]);
    fs::write(noise, [0x90; 4096]).unwrap();
    for (path, options, title) in [
        (
            page,
            &["--guest", "32"] as &[&str],
            "the hypercall page of SYSCALL (64-bit guest), not of INT 0x82",
        ),
        (noise, &[], "no hypercall page"),
    ] {
        let arguments: Vec<&str> =
            ["hypercall-page", "--check", path].iter().chain(options).copied().collect();
        let output = run(&arguments);
        assert_eq!(output.status.code(), Some(1));
        assert!(unwrapped(&String::from_utf8(output.stdout).unwrap()).contains(title), "{title}");
    }
}

#[test]
fn what_cannot_be_read_or_written_is_one_line_and_its_exit_code() {
    let directory = directory("what_cannot_be_read_or_written_is_one_line_and_its_exit_code");
    let path = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    fs::write(path("short"), [0xcc; 4095]).unwrap();
    fs::write(path("long"), [0xcc; 4097]).unwrap();
    fs::write(path("empty"), []).unwrap();
    for (arguments, code, part) in [
        (["hypercall-page", "--check", &path("short")], 65, "4095"),
        (["hypercall-page", "--check", &path("long")], 65, "4097"),
        (["hypercall-page", "--check", &path("empty")], 65, "4096 bytes"),
        (["hypercall-page", "--check", &path("absent")], 66, "cannot read"),
        (["hypercall-page", "--check", &path("")], 66, "cannot read"),
        (["hypercall-page", "-o", &path("absent/page")], 74, "cannot write"),
        (["man", "--out", &path("short")], 74, "cannot write"),
    ] {
        let (found, message) = failure(&arguments);
        assert_eq!(found, code, "{arguments:?}: {message}");
        assert!(message.contains(part), "{arguments:?}: {message}");
    }
}

#[test]
fn completions_know_the_commands_of_every_shell() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = answer(&["completions", shell]);
        for word in ["hypercall-page", "start-of-day", "decode"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
}

#[test]
fn every_command_has_a_manual_page() {
    let directory = directory("every_command_has_a_manual_page");
    answer(&["man", "--out", directory.to_str().unwrap()]);
    for name in ["paravane", "paravane-explain", "paravane-explain-segments", "paravane-hypercall-page"] {
        let page = fs::read_to_string(directory.join(format!("{name}.1"))).unwrap();
        assert!(page.contains(".TH"), "{name}");
    }
    assert!(!directory.join("paravane-help.1").exists());
    let main = fs::read_to_string(directory.join("paravane.1")).unwrap();
    assert_eq!(answer(&["man"]), main);
}

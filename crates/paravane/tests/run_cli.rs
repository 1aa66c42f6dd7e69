//! `paravane run` as its user meets it: exit codes, the log, the crash report. The guests are made here, of a few
//! instructions each.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use paravane_abi::elfnote::ElfNote;
use paravane_builder::testing::elf::{ElfFile, number_note, text_note};
use paravane_x86::mode::Guest;

/// Where the kernels are mapped and loaded.
const VIRT_BASE: u64 = 0xffff_ffff_8000_0000;
const LOADED_AT: u64 = 0x1000;

/// `jmp` to itself.
const LOOP: [u8; 2] = [0xeb, 0xfe];

/// `sched_op(SCHEDOP_shutdown, {reason})`: mov eax, 29; mov edi, 2; lea rsi, [rip + 2]; syscall; the reason.
fn shutdown(reason: u8) -> Vec<u8> {
    let calls = [0xb8, 29, 0, 0, 0, 0xbf, 2, 0, 0, 0, 0x48, 0x8d, 0x35, 2, 0, 0, 0, 0x0f, 0x05];
    [&calls[..], &[reason, 0, 0, 0]].concat()
}

/// A hypercall that nobody has: mov eax, 63; syscall.
const UNKNOWN_HYPERCALL: [u8; 7] = [0xb8, 63, 0, 0, 0, 0x0f, 0x05];
/// xor eax, eax; call rax.
const CALL_NULL: [u8; 4] = [0x31, 0xc0, 0xff, 0xd0];
/// xor eax, eax; mov [rax + 0x18], rax: a null pointer.
const STORE_NEAR_NULL: [u8; 6] = [0x31, 0xc0, 0x48, 0x89, 0x40, 0x18];

/// A kernel file of this code, which begins with the function `start`.
fn kernel(name: &str, code: &[u8]) -> PathBuf {
    let entry = VIRT_BASE + LOADED_AT;
    let notes = [
        text_note(ElfNote::GuestOs, "made"),
        text_note(ElfNote::XenVersion, "xen-3.0"),
        text_note(ElfNote::Loader, "generic"),
        number_note(ElfNote::VirtBase, VIRT_BASE),
        number_note(ElfNote::Entry, entry),
    ];
    let file = ElfFile::new(Guest::Bits64)
        .load(LOADED_AT, code, 0x1000)
        .notes(&notes)
        .symbols(&[("start", entry), ("behind", entry + 0x800)]);
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("run_cli-{name}.elf"));
    fs::write(&path, file.build()).expect("the kernel can be written");
    path
}

fn command(arguments: &[&str]) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_paravane"));
    program.arg("run").args(arguments).stdin(Stdio::null());
    program
}

/// Runs a kernel of this code with these options, in 8 MiB.
fn run(name: &str, code: &[u8], options: &[&str]) -> Output {
    let kernel = kernel(name, code);
    let mut arguments = vec![kernel.to_str().expect("a path of ours"), "-m", "8M", "--timeout", "600"];
    arguments.extend(options);
    command(&arguments).output().expect("the program starts")
}

fn messages(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_exit_code_says_how_the_guest_ended() {
    for (name, reason, code, message) in [
        ("poweroff", 0, 0, "the guest powered off"),
        ("reboot", 1, 0, "asked to be rebooted"),
        ("suspend", 2, 255, "asked to be suspended"),
        ("crash", 3, 255, "reported that it crashed"),
        ("watchdog", 4, 255, "watchdog expired"),
    ] {
        let output = run(name, &shutdown(reason), &[]);
        assert_eq!(output.status.code(), Some(code), "{name}: {}", messages(&output));
        assert!(messages(&output).contains(message), "{name}: {}", messages(&output));
    }
}

#[test]
fn a_guest_whose_time_is_over_ends_with_124() {
    let kernel = kernel("busy", &LOOP);
    let output = command(&[kernel.to_str().unwrap(), "-m", "8M", "--timeout", "0.1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(124), "{}", messages(&output));
}

#[test]
fn a_signal_ends_the_guest_with_130() {
    let kernel = kernel("stopped", &LOOP);
    let mut child = command(&[kernel.to_str().unwrap(), "-m", "8M", "--log", "info", "--timeout", "600"])
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    // The handlers are installed before the vCPU starts.
    assert!(lines.by_ref().any(|line| line.contains("vCPU 0 starts")));
    let killed = Command::new("kill").arg(child.id().to_string()).status().expect("every system has kill");
    assert!(killed.success());
    let rest: Vec<String> = lines.collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest:?}");
}

#[test]
fn what_keeps_a_guest_from_starting_has_an_exit_code_of_its_own() {
    let good = kernel("refused", &shutdown(0));
    let good = good.to_str().unwrap();
    let junk = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("run_cli-junk");
    fs::write(&junk, b"no kernel").unwrap();
    let foreign = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("run_cli-foreign.elf");
    fs::write(&foreign, ElfFile::new(Guest::Bits64).load(0, b"code", 0x1000).build()).unwrap();
    let file = |path: &PathBuf| path.to_str().unwrap().to_owned();
    for (arguments, code, message) in [
        (vec![good.to_owned(), "--no-such-option".to_owned()], 2, "--no-such-option"),
        (vec![good.to_owned(), "-m".to_owned(), "much".to_owned()], 2, "size of memory"),
        (vec![good.to_owned(), "-m".to_owned(), "4092K".to_owned()], 2, "4096 KiB to start"),
        (vec![good.to_owned(), "--symbols".to_owned(), file(&junk)], 65, "looked for symbols"),
        (vec![file(&junk)], 65, "run_cli-junk"),
        (vec![file(&foreign)], 65, "not made for Xen"),
        (vec!["no-such-kernel".to_owned()], 66, "no-such-kernel"),
        (vec![good.to_owned(), "-i".to_owned(), "no-such-initrd".to_owned()], 66, "no-such-initrd"),
        (vec![good.to_owned(), "--log-file".to_owned(), "/no/such/dir/log".to_owned()], 74, "cannot write"),
    ] {
        let output = command(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", messages(&output));
        assert!(messages(&output).contains(message), "{arguments:?}: {}", messages(&output));
    }
}

/// The host has no room for the guest's memory: that is nobody's mistake on the command line.
#[test]
fn a_host_that_cannot_do_it_ends_with_70() {
    let kernel = kernel("large", &shutdown(0));
    let script = "ulimit -v 4000000; exec \"$0\" run \"$1\" -m 64G";
    let output = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_paravane"), kernel.to_str().unwrap()])
        .output()
        .expect("every system has sh");
    assert_eq!(output.status.code(), Some(70), "{}", messages(&output));
}

#[test]
fn the_least_memory_is_exact_to_the_page() {
    let kernel = kernel("small", &shutdown(0));
    let kernel = kernel.to_str().unwrap();
    assert_eq!(command(&[kernel, "-m", "4096K"]).output().unwrap().status.code(), Some(0));
    assert_eq!(command(&[kernel, "-m", "4092K"]).output().unwrap().status.code(), Some(2));
}

/// Lines of a log or trace file.
fn logged(name: &str, code: &[u8], options: &[&str]) -> (Vec<String>, Output) {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("run_cli-{name}.log"));
    let mut all = vec!["--log-file", path.to_str().unwrap()];
    all.extend(options);
    let output = run(name, code, &all);
    let text = fs::read_to_string(&path).expect("the log is written");
    (text.lines().map(str::to_owned).collect(), output)
}

#[test]
fn the_log_tells_what_happened_and_why_a_hypercall_was_refused() {
    let code = [&UNKNOWN_HYPERCALL[..], &shutdown(0)].concat();
    let (lines, output) = logged("debug", &code, &["--log", "debug"]);
    assert_eq!(output.status.code(), Some(0));
    for (level, part) in [
        ("info  paravane", "kernel "),
        ("info  paravane", "memory: 2048 pages"),
        ("debug paravane", "layout: start_info in page"),
        ("info  paravane", "vCPU 0 starts at 0xffffffff80001000 (start+0x0)"),
        ("debug hypervisor", "vCPU 0: hypercall_63"),
        ("info  paravane", "the guest powered off"),
        ("debug paravane", "exits"),
    ] {
        let found = lines.iter().any(|line| line.contains(&format!("] {level}: ")) && line.contains(part));
        assert!(found, "no {level} line with {part:?}: {lines:#?}");
    }
    for line in &lines {
        let (time, _) = line.strip_prefix('[').and_then(|rest| rest.split_once("] ")).expect(line);
        assert!(time.trim().parse::<f64>().is_ok(), "{line}");
    }
    assert!(!messages(&output).contains("] debug "), "the file takes all of it");
}

#[test]
fn a_log_file_is_at_info_unless_another_level_is_asked_for() {
    let code = [&UNKNOWN_HYPERCALL[..], &shutdown(0)].concat();
    let (lines, _) = logged("info", &code, &[]);
    assert!(lines.iter().any(|line| line.contains("] info ")), "{lines:#?}");
    assert!(!lines.iter().any(|line| line.contains("] debug ")), "{lines:#?}");
    let (lines, _) = logged("error", &code, &["--log", "error"]);
    assert_eq!(lines, [""; 0]);
    let (lines, _) = logged("trace", &code, &["--log", "trace"]);
    assert!(lines.iter().any(|line| line.contains("] trace paravane: vCPU 0: at 0x")), "{lines:#?}");
}

#[test]
fn trace_and_log_share_the_file_or_standard_error() {
    let code = [&UNKNOWN_HYPERCALL[..], &shutdown(0)].concat();
    let trace = "sched_op(SCHEDOP_shutdown, {reason=0})";
    let (lines, output) = logged("trace-alone", &code, &["--trace", "hypercalls", "--log", "error"]);
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert!(lines[0].starts_with("hypercall_63() = -ENOSYS") && lines[1].starts_with(trace), "{lines:#?}");
    assert!(!messages(&output).contains(trace));
    let output = run("trace-stderr", &code, &["--trace", "hypercalls", "--log", "info"]);
    assert!(messages(&output).contains(trace) && messages(&output).contains("] info  paravane: memory"));
}

#[test]
fn by_default_the_log_is_silent_about_what_goes_well() {
    let output = run("silent", &shutdown(0), &[]);
    assert_eq!(messages(&output).lines().count(), 2, "{}", messages(&output));
}

/// The parts of a crash report, in their order.
fn expect_in_order(text: &str, parts: &[&str]) {
    let mut rest = text;
    for part in parts {
        let Some(at) = rest.find(part) else { panic!("no {part:?} in its place in:\n{text}") };
        rest = &rest[at + part.len()..];
    }
}

#[test]
fn a_crash_report_shows_where_how_and_why() {
    let code = [&UNKNOWN_HYPERCALL[..], &STORE_NEAR_NULL].concat();
    let output = run("null-store", &code, &[]);
    assert_eq!(output.status.code(), Some(255));
    expect_in_order(
        &messages(&output),
        &[
            "the guest crashed on vCPU 0: no handler is registered for exception 14",
            "perhaps a null pointer",
            "until it calls set_trap_table",
            "at 0xffffffff80001009 (start+0x9) in the guest kernel, after a page fault at 0x18: write to a page that is \
             not present from kernel mode",
            "RIP ffffffff80001009",
            "RFLAGS",
            "RAX 0000000000000000",
            "kernel page table",
            "CS e033  GDT entry 7174, RPL 3: 64-bit code, readable, accessed; DPL 3; flat",
            "SS e02b  GDT entry 7173, RPL 3: data, writable, accessed; DPL 3; flat",
            "DS 0000  null",
            "code:\n",
            "  ffffffff80001007  31 c0",
            "> ffffffff80001009  48 89 40 18",
            "mov [rax+18h],rax",
            "stack:\n",
            "page walk of RIP, 0xffffffff80001009 (start+0x9):",
            "L1 at 0x",
            "readable, writable, executable",
            "page walk of the faulting address, 0x18:",
            "L4 at 0x",
            "not mapped",
            "last hypercalls",
            "hypercall_63(",
            "= -ENOSYS",
        ],
    );
}

#[test]
fn a_call_of_nothing_is_traced_to_its_caller() {
    let output = run("null-call", &CALL_NULL, &[]);
    assert_eq!(output.status.code(), Some(255));
    expect_in_order(
        &messages(&output),
        &[
            "There is no code where the guest jumped, called or returned to",
            "at 0x0 in the guest kernel, after a page fault at 0x0: instruction fetch from a page that is not present",
            "code: nothing is mapped at RIP",
            "calls, by the return addresses on the stack",
            "0xffffffff80001004 (start+0x4)",
            "page walk of RIP, 0x0",
            "there was no hypercall",
        ],
    );
}

#[test]
fn a_guest_that_gives_up_is_shown_where_it_did() {
    let output = run("gives-up", &shutdown(3), &[]);
    expect_in_order(
        &messages(&output),
        &[
            "the guest reported that it crashed (SHUTDOWN_crash)",
            "(start+0x13) in the guest kernel, after a hypercall",
            "  ffffffff80001011  0f 05",
            "syscall",
            "last hypercalls",
            "sched_op(0x2, ",
        ],
    );
}

#[test]
fn a_symbol_map_goes_before_the_kernels_own_table() {
    let map = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("run_cli-map");
    fs::write(&map, "ffffffff80001000 T from_the_map\n").unwrap();
    let output = run("map", &STORE_NEAR_NULL, &["--symbols", map.to_str().unwrap()]);
    assert!(messages(&output).contains("(from_the_map+0x2)"), "{}", messages(&output));
    assert!(!messages(&output).contains("start+"), "{}", messages(&output));
}

//! Linux with parameters that are odd, wrong or at a limit: each boot ends cleanly, and what it prints explains why.
//!
//! The kernel is Debian's for virtual machines unless a case is about another; `cargo xtask test` fetches it.
#![forbid(unsafe_code)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use paravane_builder::testing::data::kernel;
use paravane_initramfs::{Report, cpio::Archive};

/// What stops a guest that hangs, in seconds: many times what the longest one takes.
const HANGS: &str = "600";

/// A boot.
struct Case<'a> {
    kernel: PathBuf,
    memory: &'a str,
    initrd: Option<&'a Path>,
    parameters: &'a str,
}

/// What it printed, and its exit code.
struct Ended {
    code: Option<i32>,
    printed: String,
}

impl Case<'_> {
    fn run(&self) -> Ended {
        let mut program = Command::new(env!("CARGO_BIN_EXE_paravane"));
        program.arg("run").arg(&self.kernel).args(["-m", self.memory, "--timeout", HANGS]);
        program.arg("-p").arg(format!("printk.time=0 {}", self.parameters));
        if let Some(initrd) = self.initrd {
            program.arg("-i").arg(initrd);
        }
        let output = program.stdin(Stdio::null()).output().expect("the program starts");
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Ended { code: output.status.code(), printed: text.concat() }
    }

    /// Requires an exit code, and texts in what was printed.
    fn ends(&self, code: i32, texts: &[&str]) -> String {
        let ended = self.run();
        assert_eq!(ended.code, Some(code), "{}: {}", self.parameters, ended.printed);
        for text in texts {
            assert!(ended.printed.contains(text), "{}: no {text:?} in {}", self.parameters, ended.printed);
        }
        ended.printed
    }

    /// Requires that the guest passes its check.
    fn passes(&self) -> Report {
        let printed = self.ends(0, &["the guest powered off"]);
        let report = Report::parse(&printed).unwrap_or_else(|error| panic!("{error}\n{printed}"));
        assert_eq!(report.failed, [""; 0], "{}: {printed}", self.parameters);
        report
    }
}

fn cloud() -> PathBuf {
    kernel("linux-image-cloud-amd64", "boot/vmlinuz-")
}

/// Writes an initial ramdisk with these files before our own, and returns its path.
fn initrd(name: &str, files: &[(&str, &[u8])]) -> PathBuf {
    let busybox = fs::read(kernel("busybox-static", "bin/busybox")).expect("busybox can be read");
    let mut archive = Archive::default();
    for (path, contents) in files {
        archive.file(path, contents);
    }
    let mut contents = archive.finish();
    contents.extend(paravane_initramfs::build(&busybox));
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, contents).expect("the ramdisk can be written");
    path
}

#[test]
fn parameters_that_change_what_linux_asks_of_its_hypervisor_are_served() {
    let initrd = initrd("awkward-served.cpio", &[]);
    for parameters in [
        // Two-level event channels instead of FIFO queues; no XSAVE; no sleep in the idle loop.
        "xen.fifo_events=0 noxsave idle=poll",
        // No paravirtualised clock; ticks that never stop; no vsyscall page; every page poisoned.
        "nopv clocksource=jiffies nohz=off highres=off vsyscall=none page_poison=1 init_on_free=1",
    ] {
        let parameters = format!("action=check {parameters}");
        Case { kernel: cloud(), memory: "192M", initrd: Some(&initrd), parameters: &parameters }.passes();
    }
}

#[test]
fn a_limit_of_memory_is_kept() {
    let initrd = initrd("awkward-mem.cpio", &[]);
    let limit =
        Case { kernel: cloud(), memory: "512M", initrd: Some(&initrd), parameters: "action=check mem=192M" };
    let report = limit.passes();
    let found = report.remark("memory MemTotal:").and_then(|rest| rest.trim().strip_suffix(" kB"));
    let found: u64 = found.and_then(|kib| kib.parse().ok()).expect("the check says how much memory there is");
    assert!((128 << 10..192 << 10).contains(&found), "{found} KiB");
}

#[test]
fn a_kernel_of_5_10_passes_its_check_in_8_gib() {
    let initrd = initrd("awkward-8g.cpio", &[]);
    let old = kernel("linux-image-amd64@bullseye", "boot/vmlinuz-");
    Case { kernel: old, memory: "8G", initrd: Some(&initrd), parameters: "action=check" }.passes();
}

#[test]
fn a_parameter_that_linux_refuses_under_xen_ends_in_its_panic() {
    let initrd = initrd("awkward-refused.cpio", &[]);
    let case =
        Case { kernel: cloud(), memory: "192M", initrd: Some(&initrd), parameters: "action=check nosmp" };
    case.ends(255, &["Kernel panic - not syncing: The nosmp parameter is incompatible with Xen", "crashed"]);
}

#[test]
fn a_first_process_that_is_missing_or_ends_is_a_panic() {
    let initrd = initrd("awkward-init.cpio", &[]);
    for (parameters, panic) in [
        ("rdinit=/not-there", "Unable to mount root fs"),
        ("rdinit=/not-there panic=1", "Rebooting in 1 seconds"),
        // A program that a signal kills.
        ("rdinit=/probe/breakpoint", "Attempted to kill init!"),
    ] {
        Case { kernel: cloud(), memory: "192M", initrd: Some(&initrd), parameters }
            .ends(255, &[panic, "crashed"]);
    }
}

#[test]
fn the_longest_command_line_arrives_whole_and_a_longer_one_is_refused() {
    let initrd = initrd("awkward-line.cpio", &[]);
    // The last word says what the guest must do, and `console=hvc0` is added behind it. Linux prints no line this long whole.
    let (last, added) = ("action=poweroff", "printk.time=0  console=hvc0");
    let room = 1023 - last.len() - added.len() - 1;
    let line = |filler: usize| format!("{} {last}", "x".repeat(filler));
    let case = |parameters| Case { kernel: cloud(), memory: "192M", initrd: Some(&initrd), parameters };

    let (longest, longer) = (line(room), line(room + 1));
    let printed = case(&longest).ends(0, &["reboot: System halted", "the guest powered off"]);
    assert!(!printed.contains("none of ours"), "{printed}");
    let printed = case(&longer).ends(2, &["the command line has 1024 bytes", "room for 1023"]);
    assert!(!printed.contains("Linux version"), "{printed}");
}

#[test]
fn an_initial_ramdisk_of_200_mib_is_unpacked_where_there_is_room_for_it() {
    let big: Vec<u8> =
        (0..200_u64 << 17).flat_map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect();
    let initrd = initrd("awkward-big.cpio", &[("big", &big)]);
    let case = |memory| Case { kernel: cloud(), memory, initrd: Some(&initrd), parameters: "action=check" };

    case("1G").passes();
    // Linux unpacks into half of its memory at most.
    case("512M").ends(255, &["Initramfs unpacking failed: write error", "crashed"]);
    case("256M").ends(2, &["with its initrd needs", "give it more"]);
    fs::remove_file(initrd).expect("the ramdisk is there");
}

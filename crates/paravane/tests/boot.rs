//! Debian's kernels, untouched as packaged, boot as PV guests, and every way to end is told by its exit code.
//!
//! `cargo xtask test` fetches the kernels and busybox. The guest checks itself from inside (`paravane-initramfs`), and what
//! it prints is judged here.
#![forbid(unsafe_code)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::LazyLock,
    time::{SystemTime, UNIX_EPOCH},
};

use paravane_builder::testing::data::kernel;
use paravane_initramfs::{Action, Report};

/// What stops a guest that hangs, in seconds: many times what the longest one takes, so that it decides nothing else.
const HANGS: &str = "600";

/// A guest's end.
struct Ended {
    code: Option<i32>,
    console: String,
    messages: String,
}

/// The initial ramdisk, made once.
static INITRD: LazyLock<PathBuf> = LazyLock::new(|| {
    let busybox = fs::read(kernel("busybox-static", "bin/busybox")).expect("busybox can be read");
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("boot-initrd.cpio");
    fs::write(&path, paravane_initramfs::build(&busybox)).expect("the ramdisk can be written");
    path
});

/// The stock kernel of Debian.
fn stock() -> PathBuf {
    kernel("linux-image-amd64", "boot/vmlinuz-")
}

/// The one for virtual machines.
fn cloud() -> PathBuf {
    kernel("linux-image-cloud-amd64", "boot/vmlinuz-")
}

/// A folder of these tests.
fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// Runs `paravane run` with these arguments to its end.
fn paravane(arguments: &[&str]) -> Output {
    paravane_with_cache(&folder("cache"), arguments)
}

/// ... with a cache in this folder.
fn paravane_with_cache(cache: &Path, arguments: &[&str]) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_paravane"));
    program.arg("run").args(arguments).stdin(Stdio::null()).env("XDG_CACHE_HOME", cache);
    program.output().expect("the program starts")
}

/// Boots a kernel with our ramdisk.
fn boot(kernel: &Path, action: Action, options: &[&str]) -> Ended {
    let parameters = format!("{} printk.time=0", action.parameter());
    let initrd = INITRD.to_str().expect("a path of ours");
    let mut arguments = vec![kernel.to_str().expect("a path of ours"), "-i", initrd, "-p", &parameters];
    arguments.extend(options);
    if !options.contains(&"--timeout") {
        arguments.extend(["--timeout", HANGS]);
    }
    let output = paravane(&arguments);
    Ended {
        code: output.status.code(),
        console: String::from_utf8_lossy(&output.stdout).into_owned(),
        messages: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl Ended {
    /// Requires an exit code, a text in the program's messages, and one on the guest's console.
    fn expect(&self, code: i32, message: &str, console: &str) {
        let shown = format!("{}\n--- messages:\n{}", self.console, self.messages);
        assert_eq!(self.code, Some(code), "{shown}");
        assert!(self.messages.contains(message), "no {message:?} in the messages: {shown}");
        assert!(self.console.contains(console), "no {console:?} on the console: {shown}");
    }
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_secs()
}

/// Boots to the check and judges it; `least_memory` is what the guest must find, in KiB.
fn passes_its_check(kernel: &Path, memory: &str, least_memory: u64) {
    let before = seconds();
    let ended = boot(kernel, Action::Check, &["-m", memory]);
    let after = seconds();
    ended.expect(0, "the guest powered off", "Hypervisor detected: Xen PV");
    let report = Report::parse(&ended.console).unwrap_or_else(|error| panic!("{error}\n{}", ended.console));
    assert_eq!(report.failed, [""; 0], "{}", ended.console);
    assert!(report.passed.iter().any(|fact| fact == "kernel-log-has-no-complaints"));

    let release = kernel
        .file_name()
        .and_then(|name| name.to_str()?.strip_prefix("vmlinuz-"))
        .expect("kernels are named vmlinuz-VERSION");
    let version = report.remark("this is").expect("the check says what runs");
    assert!(version.contains(release), "{release} is not in {version}");
    // The guest's clock shows the host's time.
    let date: u64 =
        report.remark("date").and_then(|date| date.parse().ok()).expect("the check says the date");
    assert!((before..=after).contains(&date), "{date} is not between {before} and {after}");
    let found = report.remark("memory MemTotal:").and_then(|rest| rest.trim().strip_suffix(" kB"));
    let found: u64 = found.and_then(|kib| kib.parse().ok()).expect("the check says how much memory there is");
    assert!(found >= least_memory, "{found} KiB of {memory}");
}

#[test]
fn the_stock_kernel_passes_its_check_in_192_mib() {
    passes_its_check(&stock(), "192M", 128 << 10);
}

#[test]
fn the_cloud_kernel_passes_its_check_in_192_mib() {
    passes_its_check(&cloud(), "192M", 128 << 10);
}

#[test]
fn the_stock_kernel_passes_its_check_in_512_mib() {
    passes_its_check(&stock(), "512M", 448 << 10);
}

#[test]
fn the_cloud_kernel_passes_its_check_in_4_gib() {
    passes_its_check(&cloud(), "4G", 3900 << 10);
}

#[test]
fn a_guest_that_powers_off_ends_with_0() {
    boot(&cloud(), Action::PowerOff, &["-m", "192M"]).expect(
        0,
        "the guest powered off",
        "reboot: System halted",
    );
}

#[test]
fn a_guest_that_reboots_ends_with_0_and_says_so() {
    let ended = boot(&cloud(), Action::Reboot, &["-m", "192M"]);
    ended.expect(0, "asked to be rebooted", "reboot: Restarting system");
}

#[test]
fn a_guest_that_crashes_ends_with_255_and_says_so() {
    let ended = boot(&cloud(), Action::Crash, &["-m", "192M"]);
    ended.expect(255, "crashed", "sysrq triggered crash");
}

#[test]
fn a_guest_without_a_root_file_system_panics_and_ends_with_255() {
    let kernel = cloud();
    let output = paravane(&[kernel.to_str().unwrap(), "-m", "192M", "--timeout", HANGS]);
    let console = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(255), "{console}");
    assert!(console.contains("Unable to mount root fs"), "{console}");
}

#[test]
fn a_guest_that_is_idle_when_its_time_is_over_ends_with_124() {
    let ended = boot(&cloud(), Action::Idle, &["-m", "192M", "--timeout", "30"]);
    ended.expect(124, "--timeout is over", "idle now");
}

#[test]
fn a_guest_that_is_busy_when_its_time_is_over_ends_with_124() {
    // It is still unpacking itself.
    boot(&stock(), Action::Idle, &["-m", "192M", "--timeout", "0.2"]).expect(124, "--timeout is over", "");
}

#[test]
fn quietly_only_the_guest_is_heard() {
    let ended = boot(&cloud(), Action::PowerOff, &["-m", "192M", "-q"]);
    ended.expect(0, "", "reboot: System halted");
    assert_eq!(ended.messages, "");
}

#[test]
fn too_little_memory_is_refused_with_the_least_that_would_do() {
    for (memory, least) in [("16M", "KiB to start"), ("4M", "KiB to start")] {
        let ended = boot(&stock(), Action::Check, &["-m", memory]);
        ended.expect(2, least, "");
        assert_eq!(ended.console, "", "{memory}");
    }
}

#[test]
fn the_least_memory_that_a_refusal_names_is_enough_to_start_with() {
    let ended = boot(&stock(), Action::Check, &["-m", "16M"]);
    let least = ended.messages.split(" needs ").nth(1).and_then(|rest| rest.split(' ').next());
    let least: u64 = least.and_then(|number| number.parse().ok()).expect("a number of KiB");
    // Exactly: a page less is too little.
    let (enough, too_little) = (format!("{least}K"), format!("{}K", least - 4));
    boot(&stock(), Action::Check, &["-m", &enough, "--dry-run"]).expect(0, "", "entry");
    boot(&stock(), Action::Check, &["-m", &too_little, "--dry-run"]).expect(2, "needs", "");
}

/// The files of a cache.
fn cached(cache: &Path) -> Vec<PathBuf> {
    let Ok(files) = fs::read_dir(cache.join("paravane")) else { return Vec::new() };
    files.map(|file| file.expect("it can be listed").path()).collect()
}

#[test]
fn a_kernel_is_kept_unpacked_unless_told_otherwise() {
    let cache = folder("kept-kernel");
    drop(fs::remove_dir_all(&cache));
    let kernel = cloud();
    let arguments = [kernel.to_str().unwrap(), "-m", "192M", "--dry-run"];
    let first = paravane_with_cache(&cache, &[&arguments[..], &["--no-cache"]].concat());
    assert_eq!(first.status.code(), Some(0));
    assert_eq!(cached(&cache).len(), 0);

    for _ in 0..2 {
        let next = paravane_with_cache(&cache, &arguments);
        assert_eq!(next.stdout, first.stdout, "{}", String::from_utf8_lossy(&next.stderr));
        assert_eq!(cached(&cache).len(), 1);
    }
}

#[test]
fn a_kept_kernel_boots_and_a_damaged_one_is_unpacked_again() {
    let cache = folder("damaged-kernel");
    drop(fs::remove_dir_all(&cache));
    let (kernel, initrd) = (cloud(), INITRD.to_str().unwrap());
    let boot = [kernel.to_str().unwrap(), "-i", initrd, "-m", "192M", "-p", "action=poweroff"];
    let boot = [&boot[..], &["--timeout", HANGS]].concat();
    for damage in [false, false, true] {
        if damage {
            let entry = &cached(&cache)[0];
            let mut bytes = fs::read(entry).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(entry, bytes).unwrap();
        }
        let output = paravane_with_cache(&cache, &boot);
        let console = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{console}");
        assert!(console.contains("reboot: System halted"), "{console}");
        assert_eq!(cached(&cache).len(), 1);
    }
}

#[test]
fn a_file_that_is_no_kernel_is_refused_with_65() {
    let output = paravane(&[INITRD.to_str().unwrap(), "-m", "192M"]);
    let messages = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(65), "{messages}");
    assert!(messages.contains("boot-initrd.cpio"), "{messages}");
}

#[test]
fn a_kernel_that_is_not_there_is_refused_with_66() {
    let output = paravane(&["no-such-kernel"]);
    let messages = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(66), "{messages}");
    assert!(messages.contains("no-such-kernel"), "{messages}");
}

#[test]
fn an_initial_ramdisk_that_is_not_there_is_refused_with_66() {
    let kernel = cloud();
    let output = paravane(&[kernel.to_str().unwrap(), "-i", "no-such-initrd"]);
    let messages = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(66), "{messages}");
    assert!(messages.contains("no-such-initrd"), "{messages}");
}

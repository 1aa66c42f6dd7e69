//! The initial ramdisk that `cargo xtask demo` and the boot tests give to a Linux guest.
//!
//! It is one cpio archive, made here and not by tools of the host: a static busybox that somebody else built, two scripts
//! of ours, and a few tiny programs that raise the faults which no shell can raise.
//!
//! ```text
//!   cpio.rs    the archive format
//!   probe.rs   the tiny programs, and how each must end
//!   init.sh    the guest's first process: does the action that the kernel's command line names
//!   check.sh   looks at the guest from inside and prints one line for each fact
//!   report.rs  reads those lines back
//! ```
//!
//! [`build`] makes the archive, [`Action::parameter`] goes into the kernel's command line, [`Report::parse`] judges what
//! the console said. Nothing of this is part of the program `paravane`.
#![forbid(unsafe_code)]

pub mod cpio;
pub mod probe;
pub mod report;

use cpio::Archive;
use probe::PROBES;
pub use report::Report;

/// What the guest's first process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// An interactive shell on the console; leaving it powers off.
    Shell,
    /// The checks of `check.sh`, then power off.
    Check,
    /// Power off at once.
    PowerOff,
    /// Reboot at once.
    Reboot,
    /// Have the kernel crash itself.
    Crash,
    /// Sleep for good.
    Idle,
}

impl Action {
    /// Every action.
    pub const ALL: [Self; 6] =
        [Self::Shell, Self::Check, Self::PowerOff, Self::Reboot, Self::Crash, Self::Idle];

    /// The parameter of the kernel's command line that asks for it. Linux gives parameters that it does not know
    /// to the first process as variables of its environment.
    pub fn parameter(self) -> &'static str {
        match self {
            Self::Shell => "action=shell",
            Self::Check => "action=check",
            Self::PowerOff => "action=poweroff",
            Self::Reboot => "action=reboot",
            Self::Crash => "action=crash",
            Self::Idle => "action=idle",
        }
    }
}

/// Makes the archive around the contents of a static busybox.
pub fn build(busybox: &[u8]) -> Vec<u8> {
    let mut archive = Archive::default();
    for folder in ["bin", "sbin", "usr", "usr/bin", "usr/sbin", "dev", "proc", "sys", "tmp", "probe"] {
        archive.directory(folder);
    }
    // The kernel opens it for the first process before anything is mounted.
    archive.character_device("dev/console", 5, 1);
    archive.file("bin/busybox", busybox);
    archive.symlink("bin/sh", "busybox");
    archive.file("init", include_bytes!("init.sh"));
    archive.file("check", include_bytes!("check.sh"));
    let mut expected = String::new();
    for probe in PROBES {
        let path = format!("probe/{}", probe.name);
        archive.file(&path, &probe.program());
        expected.push_str(&format!("{} {}\n", probe.name, probe.status));
    }
    archive.file("probe/expected", expected.as_bytes());
    archive.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_action_is_one_that_the_first_process_knows() {
        let script = include_str!("init.sh");
        for action in Action::ALL {
            let name = action.parameter().strip_prefix("action=").unwrap();
            assert!(script.contains(&format!("\n{name})\n")), "{name}");
        }
    }

    #[test]
    fn the_archive_holds_what_is_needed_to_start() {
        let archive = build(b"\x7fELF");
        let text = String::from_utf8_lossy(&archive);
        for name in ["init\0", "bin/busybox\0", "bin/sh\0", "dev/console\0", "probe/expected\0"] {
            assert!(text.contains(name), "{name}");
        }
    }
}

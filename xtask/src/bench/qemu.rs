//! QEMU's emulation of a whole machine, TCG, which is what people without `/dev/kvm` have.
//!
//! It is fetched with all the libraries that it needs, the C library included, and started by that library's own loader,
//! so it runs on any x86-64 Linux and nothing is installed.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command;
use crate::fetch;
use crate::repo::Repo;

/// A QEMU that can be started.
#[derive(Debug, Clone)]
pub(super) enum Qemu {
    /// Unpacked in this folder.
    Fetched(PathBuf),
    /// The system's own.
    Installed,
}

/// How a kernel is given to QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// `-kernel vmlinuz` and else what QEMU does by itself: how most people run it.
    Usual,
    /// The fastest that we know: the uncompressed ELF file started by its PVH entry, a machine without needless devices,
    /// a CPU with everything that TCG has, and a kernel without mitigations, as it is in Paravane.
    Best,
}

const PROGRAM: &str = "qemu-system-x86_64";
const LIBRARIES: [&str; 2] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];

impl Qemu {
    /// Fetches QEMU; if that fails, takes an installed one; if there is none, says what to do.
    pub(super) fn find(repo: &Repo) -> Option<Self> {
        let error = match fetch::tree(repo, "qemu", &[fetch::QEMU]) {
            Ok(folder) => return Some(Self::Fetched(folder)),
            Err(error) => error,
        };
        println!("  {error:#}");
        let path = env::var_os("PATH").unwrap_or_default();
        if env::split_paths(&path).any(|folder| folder.join(PROGRAM).is_file()) {
            println!("  the installed {PROGRAM} is taken instead");
            return Some(Self::Installed);
        }
        println!("  nor is it installed (apt-get install {}): no comparison", fetch::QEMU);
        None
    }

    /// The first line of `--version`.
    pub(super) fn version(&self) -> anyhow::Result<String> {
        let text = command::read(self.command().arg("--version"))?;
        Ok(text.lines().next().unwrap_or_default().to_owned())
    }

    /// A boot of Linux that ends with the process, its console on standard output.
    pub(super) fn boot(&self, form: Form, kernel: &Path, initrd: &Path, parameters: &str) -> Command {
        let mut boot = self.command();
        boot.args(["-accel", "tcg", "-m", super::MEMORY, "-display", "none", "-serial", "stdio"]);
        let own = match form {
            Form::Usual => "",
            Form::Best => {
                boot.args(["-nodefaults", "-no-user-config", "-cpu", "max"]);
                " mitigations=off"
            }
        };
        // A panic ends it too.
        boot.arg("-no-reboot").arg("-kernel").arg(kernel).arg("-initrd").arg(initrd);
        boot.arg("-append").arg(format!("console=ttyS0 quiet panic=-1{own} {parameters}"));
        boot
    }

    fn command(&self) -> Command {
        match self {
            Self::Installed => Command::new(PROGRAM),
            Self::Fetched(folder) => {
                let mut command = Command::new(folder.join(LIBRARIES[0]).join("ld-linux-x86-64.so.2"));
                let libraries = LIBRARIES.map(|path| folder.join(path).display().to_string());
                command.arg("--library-path").arg(libraries.join(":"));
                command.arg(folder.join("usr/bin").join(PROGRAM));
                command.env("QEMU_MODULE_DIR", folder.join("usr/lib/x86_64-linux-gnu/qemu"));
                for firmware in ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] {
                    command.arg("-L").arg(folder.join(firmware));
                }
                command
            }
        }
    }
}

//! What the bench runs: the programs, and the guests around them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use paravane_bench_guest::BUSYBOX;
use paravane_initramfs::cpio::Archive;
use paravane_initramfs::{Action, build};

use super::kernel;
use super::qemu::{Form, Qemu};
use crate::metadata::{Metadata, PLATFORM};
use crate::repo::Repo;
use crate::{command, fetch};

/// Hypercalls of the kernel that makes many.
pub(super) const HYPERCALLS: u32 = 2_000_000;
/// Stretches of code of the kernel that has many: what is translated once, in a MiB or so.
pub(super) const STRETCHES: usize = 20_000;

/// Everything that is started, ready in files.
#[derive(Debug)]
pub(super) struct Guests {
    pub(super) paravane: PathBuf,
    pub(super) qemu: Option<Qemu>,
    /// The program that measures itself, which also runs natively.
    program: PathBuf,
    busybox: PathBuf,
    pub(super) kernel: PathBuf,
    /// The kernel's uncompressed ELF file.
    elf: PathBuf,
    boot_initrd: PathBuf,
    bench_initrd: PathBuf,
    folder: PathBuf,
}

/// What a made kernel does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Made {
    NoHypercalls,
    ManyHypercalls,
    LittleCode,
    MuchCode,
}

impl Made {
    const ALL: [Self; 4] = [Self::NoHypercalls, Self::ManyHypercalls, Self::LittleCode, Self::MuchCode];

    fn image(self) -> Vec<u8> {
        match self {
            Self::NoHypercalls => kernel::hypercalls(0),
            Self::ManyHypercalls => kernel::hypercalls(HYPERCALLS),
            Self::LittleCode => kernel::straight_code(1),
            Self::MuchCode => kernel::straight_code(1 + STRETCHES),
        }
    }

    fn file(self) -> &'static str {
        match self {
            Self::NoHypercalls => "no-hypercalls",
            Self::ManyHypercalls => "many-hypercalls",
            Self::LittleCode => "little-code",
            Self::MuchCode => "much-code",
        }
    }
}

impl Guests {
    /// Fetches, builds and writes everything; `program` is a Paravane that is there already.
    pub(super) fn prepare(repo: &Repo, program: Option<&Path>) -> anyhow::Result<Self> {
        println!("== Kernel, busybox and QEMU");
        let kernel = fetch::kernel_in(&fetch::package(repo, &fetch::STOCK_KERNEL.parse()?)?)?;
        let busybox = fetch::package(repo, &fetch::BUSYBOX.parse()?)?.join("bin/busybox");
        let qemu = Qemu::find(repo);

        println!("\n== The programs");
        let folder = Metadata::of(repo, "Cargo.toml")?.target_directory.join("bench");
        let paravane = match program {
            Some(program) => std::path::absolute(program)?,
            None => build_static(repo, &folder, "paravane")?,
        };
        let program = build_static(repo, &folder, "paravane-bench-guest")?;

        let elf = folder.join("vmlinux");
        command::read(Command::new(&paravane).arg("inspect").arg(&kernel).arg("--extract").arg(&elf))?;
        let contents = read(&busybox)?;
        let boot_initrd = written(folder.join("boot.cpio"), &build(&contents))?;
        let bench_initrd = written(folder.join("bench.cpio"), &around(&read(&program)?, &contents))?;
        for made in Made::ALL {
            written(folder.join(made.file()), &made.image())?;
        }
        Ok(Self { paravane, qemu, program, busybox, kernel, elf, boot_initrd, bench_initrd, folder })
    }

    /// Paravane, from the stock kernel to its power-off.
    pub(super) fn boot(&self) -> Command {
        self.run(&self.boot_initrd, Action::PowerOff.parameter())
    }

    /// QEMU, from the stock kernel to its power-off.
    pub(super) fn boot_qemu(&self, qemu: &Qemu, form: Form) -> Command {
        qemu.boot(form, self.kernel_for(form), &self.boot_initrd, Action::PowerOff.parameter())
    }

    /// A guest of Paravane that boots and then does nothing; it says "idle now".
    pub(super) fn idle(&self) -> Command {
        self.run(&self.boot_initrd, Action::Idle.parameter())
    }

    /// The program that measures itself, in a guest of Paravane.
    pub(super) fn measure(&self) -> Command {
        self.run(&self.bench_initrd, "")
    }

    /// ... in QEMU, in its best form.
    pub(super) fn measure_qemu(&self, qemu: &Qemu) -> Command {
        qemu.boot(Form::Best, &self.elf, &self.bench_initrd, "")
    }

    /// ... natively.
    pub(super) fn measure_natively(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env(BUSYBOX, &self.busybox);
        command
    }

    /// Paravane with a made kernel.
    pub(super) fn made(&self, made: Made) -> Command {
        let mut command = Command::new(&self.paravane);
        command.arg("run").arg(self.folder.join(made.file())).args(["-m", "64M", "-q"]);
        command
    }

    /// Paravane, until the first instruction of the stock kernel could run.
    pub(super) fn start(&self) -> Command {
        let mut command = self.run(&self.boot_initrd, "");
        command.arg("--dry-run");
        command
    }

    /// Has Paravane see the next kernel for the first time.
    pub(super) fn forget(&self) -> anyhow::Result<()> {
        let cache = self.cache();
        if cache.exists() {
            fs::remove_dir_all(&cache).with_context(|| format!("could not remove {}", cache.display()))?;
        }
        Ok(())
    }

    /// A folder of caches that is not the user's.
    fn cache(&self) -> PathBuf {
        self.folder.join("cache")
    }

    fn kernel_for(&self, form: Form) -> &Path {
        match form {
            Form::Usual => &self.kernel,
            Form::Best => &self.elf,
        }
    }

    fn run(&self, initrd: &Path, parameters: &str) -> Command {
        let mut command = Command::new(&self.paravane);
        command.env("XDG_CACHE_HOME", self.cache());
        command.arg("run").arg(&self.kernel).arg("-i").arg(initrd).args(["-m", super::MEMORY, "-q"]);
        command.arg("-p").arg(format!("quiet {parameters}"));
        command
    }
}

/// Builds a program of this workspace as one static file without symbols, as it is shipped.
fn build_static(repo: &Repo, folder: &Path, package: &str) -> anyhow::Result<PathBuf> {
    let mut build = command::cargo(repo);
    build.args(["build", "--release", "--locked", "--package", package, "--target", PLATFORM]);
    build.arg("--target-dir").arg(folder).env("RUSTFLAGS", "-C target-feature=+crt-static");
    build.env("CARGO_PROFILE_RELEASE_STRIP", "symbols");
    command::run(&mut build)?;
    Ok(folder.join(PLATFORM).join("release").join(package))
}

/// A ramdisk whose first process is the measuring program.
fn around(program: &[u8], busybox: &[u8]) -> Vec<u8> {
    let mut archive = Archive::default();
    archive.directory("bin");
    archive.directory("dev");
    // The kernel opens it for the first process before anything is mounted; the standard library opens the other.
    archive.character_device("dev/console", 5, 1);
    archive.character_device("dev/null", 1, 3);
    archive.file("bin/busybox", busybox);
    archive.file("init", program);
    archive.finish()
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("could not read {}", path.display()))
}

fn written(path: PathBuf, contents: &[u8]) -> anyhow::Result<PathBuf> {
    fs::write(&path, contents).with_context(|| format!("could not write {}", path.display()))?;
    Ok(path)
}

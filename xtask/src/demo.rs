//! A short tour of what the program does today, on a stock kernel that was built by others.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::metadata::Metadata;
use crate::repo::Repo;
use crate::{command, fetch};

/// How much of a long output is shown.
const LINES_SHOWN: usize = 24;

/// Fetches the kernel, builds the program, and runs the tour. Any command that fails ends it.
pub(crate) fn run(repo: &Repo) -> anyhow::Result<()> {
    println!("== A stock Debian kernel");
    let folder = fetch::package(repo, &fetch::STOCK_KERNEL.parse()?)?;
    let kernel = kernel_in(&folder)?;

    println!("\n== The program");
    command::run(command::cargo(repo).args(["build", "--release", "--locked", "--package", "paravane"]))?;

    let program = Metadata::of(repo, "Cargo.toml")?.target_directory.join("release/paravane");
    tour(&program, &kernel)?;
    println!(
        "\nNot there yet: `paravane run`. No kernel boots so far; what you saw is the decoder, which prints the \
         tables that the hypervisor is going to load."
    );
    Ok(())
}

fn tour(program: &Path, kernel: &Path) -> anyhow::Result<()> {
    let kernel = kernel.to_str().context("the path of the kernel is not UTF-8")?;
    let stops: [(&str, &[&str]); 5] = [
        ("What is in this kernel, and would it run as a PV guest?", &["inspect", kernel]),
        ("Which segments does Xen give a PV guest?", &["explain", "segments"]),
        ("What is the selector that a 64-bit guest's code runs on?", &["decode", "selector", "0xe033"]),
        ("And what is a descriptor, bit by bit?", &["decode", "descriptor", "0x00affb000000ffff"]),
        (
            "What does the hypervisor write into a guest's hypercall page?",
            &["hypercall-page", "--guest", "64"],
        ),
    ];
    for (question, arguments) in stops {
        println!("\n== {question}");
        show(Command::new(program).args(arguments))?;
    }
    Ok(())
}

/// Prints a command line and the beginning of its output.
fn show(command: &mut Command) -> anyhow::Result<()> {
    println!("$ {}", command::line(command));
    let text = command::read(command)?;
    if text.trim().is_empty() {
        bail!("`{}` printed nothing", command::line(command));
    }
    text.lines().take(LINES_SHOWN).for_each(|line| println!("{line}"));
    let hidden = text.lines().count().saturating_sub(LINES_SHOWN);
    if hidden > 0 {
        println!("… and {hidden} lines more");
    }
    Ok(())
}

/// The kernel image of an unpacked kernel package.
fn kernel_in(folder: &Path) -> anyhow::Result<PathBuf> {
    let boot = folder.join("boot");
    let files = fs::read_dir(&boot).with_context(|| format!("could not list {}", boot.display()))?;
    let mut kernels = Vec::new();
    for file in files {
        let file = file?;
        if file.file_name().to_string_lossy().starts_with("vmlinuz-") {
            kernels.push(file.path());
        }
    }
    let [kernel] = kernels.as_slice() else {
        bail!("{} should hold one vmlinuz, and holds {}", boot.display(), kernels.len());
    };
    Ok(kernel.clone())
}

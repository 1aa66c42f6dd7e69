//! A short tour of the decoding commands, on a stock kernel that was built by others.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::command;

/// How much of a long output is shown.
const LINES_SHOWN: usize = 24;

/// Runs the tour. Any command that fails ends it.
pub(super) fn run(program: &Path, kernel: &Path) -> anyhow::Result<()> {
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

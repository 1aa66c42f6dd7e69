//! The arguments of `paravane inspect`.

use std::path::PathBuf;

use clap::Args;

use super::PlainOutput;

/// Arguments of `paravane inspect`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  paravane inspect /boot/vmlinuz-$(uname -r)\n  \
                        paravane inspect mini-os.gz --json\n  \
                        paravane inspect vmlinuz --extract vmlinux")]
pub struct Inspect {
    /// A bzImage, an ELF file or a compressed ELF file; `-` is standard input
    pub kernel: PathBuf,
    /// Show the notes in full: bytes, absent ones with what the loader assumes, and those of other owners
    #[arg(long)]
    pub notes: bool,
    /// Write the ELF file inside into this file instead; `-` is standard output
    #[arg(long, value_name = "FILE", conflicts_with_all = ["notes", "json"])]
    pub extract: Option<PathBuf>,
    /// How to print.
    #[command(flatten)]
    pub output: PlainOutput,
}

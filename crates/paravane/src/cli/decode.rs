//! The arguments of `paravane decode`.

use std::path::PathBuf;

use clap::Args;

use super::{DrawableOutput, ModeArgs, Values};

/// Arguments of `decode descriptor`.
#[derive(Debug, Args)]
pub struct DescriptorArgs {
    /// What every kind of value has.
    #[command(flatten)]
    pub values: Values,
    /// Read pairs of quadwords as 16-byte descriptors, whatever the second one holds
    #[arg(long)]
    pub wide: bool,
}

/// Arguments of `decode gdt`.
#[derive(Debug, Args)]
pub struct GdtArgs {
    /// The table: raw bytes, or text as gdb, QEMU, xxd, hexdump, od or Xen print it; `-` is standard input
    pub file: PathBuf,
    /// Index of the first entry [default: 0, or 7168 if it is Xen's reserved page]
    #[arg(long, value_name = "INDEX")]
    pub first: Option<String>,
    /// Which guest and hypervisor.
    #[command(flatten)]
    pub mode: ModeArgs,
    /// How to print.
    #[command(flatten)]
    pub output: DrawableOutput,
}

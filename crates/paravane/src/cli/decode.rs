//! The arguments of `paravane decode`.

use std::path::PathBuf;

use clap::Args;

use super::{DrawableOutput, GuestArg, ModeArgs, PlainOutput, Values};

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

/// Values of a register, and how to print them.
#[derive(Debug, Args)]
pub struct BitsArgs {
    /// Values as numbers; `-` reads them from standard input
    pub values: Vec<String>,
    /// Read more values from this file (text; `#` starts a comment)
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// How to print.
    #[command(flatten)]
    pub output: DrawableOutput,
}

/// Arguments of `decode error-code`.
#[derive(Debug, Args)]
pub struct ErrorCodeArgs {
    /// The values.
    #[command(flatten)]
    pub bits: BitsArgs,
    /// It is a page fault's
    #[arg(long, conflicts_with = "selector")]
    pub page_fault: bool,
    /// It is that of an exception about a selector: #TS, #NP, #SS, #GP
    #[arg(long)]
    pub selector: bool,
}

/// Arguments of `decode hypercall`.
#[derive(Debug, Args)]
pub struct HypercallArgs {
    /// Numbers or names, as 26, mmuext_op or MMUEXT_SET_LDT
    #[arg(required = true, value_name = "NUMBER|NAME")]
    pub values: Vec<String>,
    /// How to print.
    #[command(flatten)]
    pub output: PlainOutput,
}

/// Arguments of `decode errno`.
#[derive(Debug, Args)]
pub struct ErrnoArgs {
    /// An error or a result, as EINVAL, 22, -22 or 0xffffffea
    #[arg(value_name = "VALUE|NAME", allow_hyphen_values = true)]
    pub value: String,
    /// How to print.
    #[command(flatten)]
    pub output: PlainOutput,
}

/// Arguments of `decode pte`.
#[derive(Debug, Args)]
pub struct PteArgs {
    /// The values.
    #[command(flatten)]
    pub bits: BitsArgs,
    /// Level of the table that the entries are in: 1 maps pages, 4 is the root
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=4))]
    pub level: u8,
    /// Width of the guest
    #[arg(long, value_enum, default_value = "64")]
    pub guest: GuestArg,
}

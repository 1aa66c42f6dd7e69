//! The arguments of `paravane hypercall-page`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{GuestArg, PlainOutput};

/// Arguments of `paravane hypercall-page`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  paravane hypercall-page --guest 32\n  \
                        paravane hypercall-page --guest 64 -o page.bin\n  \
                        paravane hypercall-page --check page.bin")]
pub struct HypercallPage {
    /// Whose page [default: 64; with --check, whichever it resembles]
    #[arg(long, value_enum)]
    pub guest: Option<GuestArg>,
    /// Another form than that of today's Xen
    #[arg(long, value_enum)]
    pub form: Option<FormArg>,
    /// Where the stubs of the supervisor form call; it differed from build to build [default: 0]
    #[arg(long, value_name = "ADDRESS", requires = "form")]
    pub entry: Option<String>,
    /// List all slots
    #[arg(long)]
    pub all: bool,
    /// Write the page itself into this file; `-` is standard output
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["all", "json", "check"])]
    pub output: Option<PathBuf>,
    /// Compare a page with what Xen writes, and name each slot that differs; `-` is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "all")]
    pub check: Option<PathBuf>,
    /// How to print.
    #[command(flatten)]
    pub print: PlainOutput,
}

/// Values of `--form`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FormArg {
    /// For a 32-bit kernel in ring 0, which 32-bit Xen could be built for
    Supervisor,
}

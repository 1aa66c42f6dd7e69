//! The command line: one definition, from which parsing, help, man pages and completions come.

pub mod decode;
pub mod encode;
mod explain;
mod hypercall_page;
mod inspect;
mod run;
mod shell;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use paravane_x86::mode::{Guest, Hypervisor, Mode};

use crate::{
    failure::{EXIT_CODES, Failure},
    output::Format,
};

pub use self::{
    explain::{DrawnTopic, Explain, Hypercalls, ModedTopic, PlainTopic, Topic, Transition},
    hypercall_page::{FormArg, HypercallPage},
    inspect::Inspect,
    run::{LogLevel, RunArgs, TraceKind},
    shell::{Completions, Man},
};

/// Runs Xen x86 PV guests as ordinary processes, and explains how they work.
#[derive(Debug, Parser)]
#[command(name = "paravane", version, after_help = EXIT_CODES, max_term_width = 100)]
#[command(disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a PV kernel as an ordinary process
    #[command(after_help = run::HELP)]
    Run(RunArgs),
    /// Take a value apart: descriptor, selector, whole GDT …
    #[command(subcommand)]
    Decode(Decode),
    /// Make a value from its fields: descriptor, selector …
    #[command(subcommand)]
    Encode(encode::Encode),
    /// Explain a part of the PV interface: segments, GDT, hypercall page, transitions …
    Explain(Explain),
    /// Tell whether and how a kernel file boots under Xen, and what it asks for
    Inspect(Inspect),
    /// List, write or check the hypercall page
    HypercallPage(HypercallPage),
    /// Print shell completions
    Completions(Completions),
    /// Print the manual page, or write the pages of all commands
    Man(Man),
}

/// What `decode` decodes.
#[derive(Debug, Subcommand)]
pub enum Decode {
    /// Segment selectors: index, table, ring, and what Xen keeps there
    #[command(
        after_help = "Examples:\n  paravane decode selector 0xe033\n  paravane decode selector 0xe02b --guest 32 --svg"
    )]
    Selector(Values),
    /// Segment descriptors: every field, what Xen makes of them, and what a guest may load
    #[command(
        after_help = "Examples:\n  paravane decode descriptor 0x00cfb2000000ffff\n  paravane decode descriptor ff ff 00 00 00 b2 cf 00 --guest 32\n  paravane decode descriptor 0x0000890000000067 0 --svg\n\nWithout --guest and --hypervisor, both widths of guest on a 64-bit hypervisor are answered."
    )]
    Descriptor(decode::DescriptorArgs),
    /// A whole descriptor table, from a file in almost any format
    #[command(
        after_help = "Examples:\n  paravane decode gdt gdt.bin\n  gdb -batch -ex 'x/32gx &gdt' vmlinux | paravane decode gdt -\n  paravane decode gdt page.txt --first 7168 --svg"
    )]
    Gdt(decode::GdtArgs),
    /// Page-table entries: frame, flags, and what Xen permits and changes
    #[command(
        after_help = "Examples:\n  paravane decode pte 0x80000001234567\n  paravane decode pte 0x1234003 --level 4 --svg"
    )]
    Pte(decode::PteArgs),
    /// Error codes of exceptions: page faults, and faults about selectors
    #[command(
        after_help = "Examples:\n  paravane decode error-code 7 --page-fault\n  paravane decode error-code 0xe030"
    )]
    ErrorCode(decode::ErrorCodeArgs),
    /// The flags register
    #[command(after_help = "Example:\n  paravane decode rflags 0x246")]
    Rflags(decode::BitsArgs),
    /// Control register 0
    #[command(after_help = "Example:\n  paravane decode cr0 0x8005003b")]
    Cr0(decode::BitsArgs),
    /// Control register 4
    #[command(after_help = "Example:\n  paravane decode cr4 0x7426f0")]
    Cr4(decode::BitsArgs),
    /// Hypercalls and their sub-operations, by number or name
    #[command(
        after_help = "Examples:\n  paravane decode hypercall 26\n  paravane decode hypercall update_descriptor MMUEXT_SET_LDT"
    )]
    Hypercall(decode::HypercallArgs),
    /// Xen's error numbers and results of hypercalls
    #[command(
        after_help = "Examples:\n  paravane decode errno -22\n  paravane decode errno EINVAL\n  paravane decode errno 0xffffffea"
    )]
    Errno(decode::ErrnoArgs),
}

/// Values to work on, the mode they are read in, and how to print the answer.
#[derive(Debug, Args)]
pub struct Values {
    /// Values as numbers; `-` reads them from standard input
    pub values: Vec<String>,
    /// Read more values from this file (text; `#` starts a comment)
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Which guest and hypervisor.
    #[command(flatten)]
    pub mode: ModeArgs,
    /// How to print.
    #[command(flatten)]
    pub output: DrawableOutput,
}

/// Which guest on which hypervisor.
#[derive(Clone, Copy, Debug, Args)]
pub struct ModeArgs {
    /// Width of the guest [default: 64; explain shows both]
    #[arg(long, value_enum)]
    pub guest: Option<GuestArg>,
    /// The hypervisor below it [default: 64; explain shows all]
    #[arg(long, value_enum)]
    pub hypervisor: Option<HypervisorArg>,
}

/// Values of `--guest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GuestArg {
    /// x86-64
    #[value(name = "64")]
    Bits64,
    /// i386
    #[value(name = "32")]
    Bits32,
}

/// Values of `--hypervisor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum HypervisorArg {
    /// 64-bit Xen
    #[value(name = "64")]
    Bits64,
    /// Historical 32-bit Xen with PAE
    #[value(name = "32", alias = "32-pae")]
    Bits32Pae,
    /// Historical 32-bit Xen without PAE
    #[value(name = "32-nonpae")]
    Bits32NonPae,
}

/// How to print an answer that has no drawing.
#[derive(Clone, Copy, Debug, Args)]
pub struct PlainOutput {
    /// Print JSON for programs
    #[arg(long)]
    pub json: bool,
}

/// How to print an answer that can be drawn.
#[derive(Clone, Copy, Debug, Args)]
pub struct DrawableOutput {
    /// Print JSON for programs
    #[arg(long)]
    pub json: bool,
    /// Print a drawing as SVG
    #[arg(long, conflicts_with = "json")]
    pub svg: bool,
}

impl From<PlainOutput> for Format {
    fn from(output: PlainOutput) -> Self {
        if output.json { Self::Json } else { Self::Text }
    }
}

impl From<DrawableOutput> for Format {
    fn from(output: DrawableOutput) -> Self {
        match output {
            DrawableOutput { svg: true, .. } => Self::Svg,
            DrawableOutput { json: true, svg: false } => Self::Json,
            DrawableOutput { json: false, svg: false } => Self::Text,
        }
    }
}

impl ModeArgs {
    /// The mode asked for, with 64-bit as the default of both widths. A 32-bit hypervisor implies a 32-bit guest.
    ///
    /// # Errors
    ///
    /// [`Failure::Usage`] for a 64-bit guest on a 32-bit hypervisor.
    pub fn mode(self) -> Result<Mode, Failure> {
        Ok(self.chosen()?.unwrap_or(Mode::Guest64))
    }

    /// The mode asked for, or `None` if neither option was given and all modes are of interest.
    ///
    /// # Errors
    ///
    /// [`Failure::Usage`] for a 64-bit guest on a 32-bit hypervisor.
    pub fn chosen(self) -> Result<Option<Mode>, Failure> {
        if self.guest.is_none() && self.hypervisor.is_none() {
            return Ok(None);
        }
        let hypervisor = match self.hypervisor {
            None | Some(HypervisorArg::Bits64) => Hypervisor::Bits64,
            Some(HypervisorArg::Bits32Pae) => Hypervisor::Bits32Pae,
            Some(HypervisorArg::Bits32NonPae) => Hypervisor::Bits32NonPae,
        };
        let guest = match (self.guest, hypervisor) {
            (Some(GuestArg::Bits64), _) | (None, Hypervisor::Bits64) => Guest::Bits64,
            (Some(GuestArg::Bits32), _) | (None, Hypervisor::Bits32Pae | Hypervisor::Bits32NonPae) => {
                Guest::Bits32
            }
        };
        Mode::new(guest, hypervisor).map(Some).ok_or_else(|| {
            Failure::Usage(format!(
                "a {guest} on a {hypervisor} never existed: use --guest 32, or --hypervisor 64"
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_32_bit_hypervisor_implies_a_32_bit_guest() {
        let mode = |guest, hypervisor| ModeArgs { guest, hypervisor }.mode();
        assert_eq!(mode(None, None).ok(), Some(Mode::Guest64));
        assert_eq!(mode(Some(GuestArg::Bits32), None).ok(), Some(Mode::Guest32On64));
        assert_eq!(mode(None, Some(HypervisorArg::Bits32NonPae)).ok(), Some(Mode::Guest32On32NonPae));
        assert!(mode(Some(GuestArg::Bits64), Some(HypervisorArg::Bits32Pae)).is_err());
    }
}

//! The arguments of `paravane explain`.

use clap::{Args, Subcommand};

use super::{DrawableOutput, ModeArgs, PlainOutput};

/// `paravane explain`: a topic, or the list of topics.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(subcommand_value_name = "TOPIC", subcommand_help_heading = "Topics")]
#[command(after_help = "Examples:\n  paravane explain\n  paravane explain segments --guest 64\n  \
                  paravane explain gdt --guest 32 --svg > gdt.svg\n  paravane explain hypercalls memory_op")]
pub struct Explain {
    /// What to explain; without it, the topics are listed.
    #[command(subcommand)]
    pub topic: Option<Topic>,
    /// How to print the list of topics.
    #[command(flatten)]
    pub output: PlainOutput,
}

/// What `explain` explains.
#[derive(Debug, Subcommand)]
pub enum Topic {
    /// The segment registers a guest starts with, and how it gets others
    Segments(ModedTopic),
    /// The GDT: the guest's 14 pages, Xen's reserved page, and what Xen lets a guest install
    Gdt(DrawnTopic),
    /// The hypercall page: its 128 slots byte by byte, how it is installed, how to do without
    HypercallPage(ModedTopic),
    /// The hypercalls 0 to 63, or one of them with its arguments and sub-operations
    Hypercalls(Hypercalls),
    /// The iret hypercall: the stack frame it expects and what it does
    Iret(ModedTopic),
    /// How control passes between guest and hypervisor, step by step
    Transition(Transition),
    /// The ELF notes by which a kernel tells the domain builder what it needs
    ElfNotes(PlainTopic),
    /// What a guest finds when it starts: registers, memory, start_info, shared_info
    StartOfDay(ModedTopic),
}

/// A topic that looks different in each mode.
#[derive(Clone, Copy, Debug, Args)]
pub struct ModedTopic {
    /// Which guest and hypervisor; all of them by default.
    #[command(flatten)]
    pub mode: ModeArgs,
    /// How to print.
    #[command(flatten)]
    pub output: PlainOutput,
}

/// A topic that looks different in each mode and can be drawn.
#[derive(Clone, Copy, Debug, Args)]
pub struct DrawnTopic {
    /// Which guest and hypervisor; all of them by default.
    #[command(flatten)]
    pub mode: ModeArgs,
    /// How to print.
    #[command(flatten)]
    pub output: DrawableOutput,
}

/// A topic that is the same in each mode.
#[derive(Clone, Copy, Debug, Args)]
pub struct PlainTopic {
    /// How to print.
    #[command(flatten)]
    pub output: PlainOutput,
}

/// Arguments of `explain hypercalls`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  paravane explain hypercalls\n  paravane explain hypercalls 26\n  \
                        paravane explain hypercalls vcpu_op --guest 32")]
pub struct Hypercalls {
    /// Name or number of one hypercall
    pub hypercall: Option<String>,
    /// Which guest and hypervisor; both widths by default.
    #[command(flatten)]
    pub mode: ModeArgs,
    /// How to print.
    #[command(flatten)]
    pub output: PlainOutput,
}

/// Arguments of `explain transition`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  paravane explain transition\n  paravane explain transition hypercall-64"
)]
pub struct Transition {
    /// Name of one transition, as the list without it gives them
    pub name: Option<String>,
    /// Which guest and hypervisor; both widths by default.
    #[command(flatten)]
    pub mode: ModeArgs,
    /// How to print.
    #[command(flatten)]
    pub output: PlainOutput,
}

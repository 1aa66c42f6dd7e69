//! The arguments of `paravane encode`.

use clap::{Args, Subcommand, ValueEnum};

use super::{DrawableOutput, GuestArg, ModeArgs};

/// What `encode` encodes.
#[derive(Debug, Subcommand)]
pub enum Encode {
    /// Segment descriptors and gates: the quadword, what Xen makes of it, how to install it
    #[command(
        after_help = "Examples:\n  paravane encode descriptor --type code --dpl 3 --long\n  paravane encode descriptor --type data --base 0x12345000 --limit 64K --guest 32\n  paravane encode descriptor --type call-gate --selector 0x10 --offset 0xc0100000 --count 2 --guest 32"
    )]
    Descriptor(DescriptorArgs),
    /// Page-table entries: from frame and flags
    #[command(
        after_help = "Example:\n  paravane encode pte --frame 0x1234 --flags present,rw,accessed,dirty,nx"
    )]
    Pte(PteArgs),
    /// Segment selectors: from index, table and ring
    #[command(after_help = "Example:\n  paravane encode selector --index 7174 --rpl 3")]
    Selector(SelectorArgs),
}

/// Arguments of `encode descriptor`.
#[derive(Debug, Args)]
pub struct DescriptorArgs {
    /// What the descriptor describes
    #[arg(long = "type", value_enum, value_name = "TYPE")]
    pub kind: DescriptorType,
    /// Linear address of the first byte [default: 0]
    #[arg(long, value_name = "ADDRESS", help_heading = "Segments")]
    pub base: Option<String>,
    /// Offset of the last byte, as 0xffff, or a size, as 64K or 4G [default: 4G for code and data]
    #[arg(long, value_name = "LIMIT", help_heading = "Segments")]
    pub limit: Option<String>,
    /// Unit of the limit [default: bytes where they suffice]
    #[arg(long, value_enum, value_name = "UNIT", help_heading = "Segments")]
    pub granularity: Option<Granularity>,
    /// Ring, 0 to 3 [default: the guest kernel's for code, data and call gates, else 0]
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=3))]
    pub dpl: Option<u8>,
    /// Clear P
    #[arg(long)]
    pub not_present: bool,
    /// Set AVL
    #[arg(long, help_heading = "Segments")]
    pub avl: bool,
    /// 64-bit code
    #[arg(long, conflicts_with = "bits16", help_heading = "Segments")]
    pub long: bool,
    /// 16-bit code or data instead of 32-bit
    #[arg(long = "16", help_heading = "Segments")]
    pub bits16: bool,
    /// Code that less privileged rings may enter
    #[arg(long, help_heading = "Segments")]
    pub conforming: bool,
    /// Code that cannot be read
    #[arg(long, help_heading = "Segments")]
    pub execute_only: bool,
    /// Data that cannot be written
    #[arg(long, help_heading = "Segments")]
    pub read_only: bool,
    /// Data whose valid offsets are above the limit
    #[arg(long, help_heading = "Segments")]
    pub expand_down: bool,
    /// Set the accessed bit, so that the CPU need not; this is the default
    #[arg(long, conflicts_with = "no_accessed", help_heading = "Segments")]
    pub accessed: bool,
    /// Clear the accessed bit
    #[arg(long, help_heading = "Segments")]
    pub no_accessed: bool,
    /// Where the gate leads: code segment, or the TSS of a task gate
    #[arg(long, value_name = "SELECTOR", help_heading = "Gates")]
    pub selector: Option<String>,
    /// Where the gate leads: offset in the code segment
    #[arg(long, value_name = "OFFSET", help_heading = "Gates")]
    pub offset: Option<String>,
    /// Interrupt stack, 1 to 7, of a 16-byte interrupt or trap gate [default: 0, none]
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=7), help_heading = "Gates")]
    pub ist: Option<u8>,
    /// Stack words that an 8-byte call gate copies, 0 to 31 [default: 0]
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=31), help_heading = "Gates")]
    pub count: Option<u8>,
    /// Which guest and hypervisor.
    #[command(flatten)]
    pub mode: ModeArgs,
    /// How to print.
    #[command(flatten)]
    pub output: DrawableOutput,
}

/// Values of `--type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DescriptorType {
    /// Code segment
    Code,
    /// Data or stack segment
    Data,
    /// Local descriptor table
    Ldt,
    /// Task state segment, available
    Tss,
    /// Task state segment, busy
    TssBusy,
    /// 16-bit task state segment, available
    Tss16,
    /// 16-bit task state segment, busy
    Tss16Busy,
    /// Call gate
    CallGate,
    /// 16-bit call gate
    CallGate16,
    /// Task gate
    TaskGate,
    /// Interrupt gate
    InterruptGate,
    /// 16-bit interrupt gate
    InterruptGate16,
    /// Trap gate
    TrapGate,
    /// 16-bit trap gate
    TrapGate16,
}

/// Values of `--granularity`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Granularity {
    /// Bytes: G = 0
    Byte,
    /// 4 KiB pages: G = 1
    Page,
}

/// Arguments of `encode selector`.
#[derive(Debug, Args)]
pub struct SelectorArgs {
    /// Number of the descriptor in its table, 0 to 8191
    #[arg(long, value_name = "INDEX")]
    pub index: String,
    /// The table
    #[arg(long, value_enum, default_value = "gdt")]
    pub table: TableArg,
    /// Requested privilege level, 0 to 3 [default: the guest kernel's ring]
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=3))]
    pub rpl: Option<u8>,
    /// Which guest and hypervisor.
    #[command(flatten)]
    pub mode: ModeArgs,
    /// How to print.
    #[command(flatten)]
    pub output: DrawableOutput,
}

/// Values of `--table`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TableArg {
    /// Global descriptor table
    Gdt,
    /// Local descriptor table
    Ldt,
}

/// Arguments of `encode pte`.
#[derive(Debug, Args)]
pub struct PteArgs {
    /// Machine frame number: the machine address without its low 12 bits
    #[arg(long, value_name = "FRAME")]
    pub frame: String,
    /// Flags, separated by commas; `none` for none
    #[arg(long, value_enum, value_delimiter = ',', default_value = "present", value_name = "FLAGS")]
    pub flags: Vec<PteFlag>,
    /// Level of the table that the entry is for: 1 maps pages, 4 is the root
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=4))]
    pub level: u8,
    /// Width of the guest
    #[arg(long, value_enum, default_value = "64")]
    pub guest: GuestArg,
    /// How to print.
    #[command(flatten)]
    pub output: DrawableOutput,
}

/// Values of `--flags`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PteFlag {
    /// No flag
    None,
    /// Bit 0: in use
    #[value(alias = "p")]
    Present,
    /// Bit 1: writable
    #[value(aliases = ["writable", "w"])]
    Rw,
    /// Bit 2: for ring 3
    #[value(alias = "us")]
    User,
    /// Bit 3: cache attribute
    Pwt,
    /// Bit 4: cache attribute
    Pcd,
    /// Bit 5: used
    #[value(alias = "a")]
    Accessed,
    /// Bit 6: written
    #[value(alias = "d")]
    Dirty,
    /// Bit 7: cache attribute in level 1, large page above
    #[value(alias = "ps")]
    Pat,
    /// Bit 8: outlives a load of CR3
    #[value(alias = "g")]
    Global,
    /// Bit 52: Xen's mark of kernel mappings
    #[value(alias = "guest-kernel")]
    Kernel,
    /// Bit 63: not executable
    Nx,
}

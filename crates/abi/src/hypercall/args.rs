//! The arguments of a hypercall: their names and what each word means.
//!
//! Up to five machine words travel in registers (RDI, RSI, RDX, R10, R8; EBX, ECX, EDX, ESI, EDI). A word is
//! a number, a machine frame, an address, a set of flags, one half of a 64-bit value, or a pointer into guest
//! memory. A trace needs to know which, and whether the memory behind a pointer is worth showing before the
//! call or after it.
//!
//! Source: `xen/include/hypercall-defs.c` for names and widths.

use core::fmt;

use serde::Serialize;

use super::family::Family;

/// One argument of a hypercall.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Arg {
    /// Its name, in the words of Xen's headers.
    pub name: &'static str,
    /// What the word means.
    pub kind: ArgKind,
}

/// What an argument's word means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ArgKind {
    /// The number of a sub-operation of that family.
    Command(Family),
    /// A pointer into guest memory.
    Pointer(Pointer),
    /// How many elements an array argument has.
    Count,
    /// A plain number of no further structure.
    Number,
    /// A machine word shown in hexadecimal.
    Word,
    /// Zero or non-zero.
    Bool,
    /// A guest virtual address of data or of a mapping, not dereferenced.
    Virtual,
    /// A guest virtual address of code: a handler.
    Code,
    /// A segment selector.
    Selector,
    /// The number of a debug register.
    DebugRegister,
    /// A domain number.
    Domain,
    /// Two domains: bits 15..0 own the mapped frames, bits 31..16 less one own the page tables (0 is self).
    ForeignDomain,
    /// A vCPU number.
    Vcpu,
    /// TLB flush flags of `update_va_mapping`, with a pointer to a vCPU bitmap in the upper bits.
    FlushFlags,
    /// A 64-bit value in one word.
    Wide(Wide),
    /// The low half of a 64-bit value; the next argument is the high half.
    Low(Wide),
    /// The high half of the value that the argument before began.
    High(Wide),
}

/// The 64-bit values that a 32-bit guest passes as two words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wide {
    /// A machine address in bytes.
    MachineAddress,
    /// A segment descriptor.
    Descriptor,
    /// A page-table entry.
    PageTableEntry,
    /// An absolute time in nanoseconds of system time; 0 is none.
    TimeNs,
}

/// What a pointer argument points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Pointer {
    /// The C name of the element, or `*` when the sub-operation decides it.
    pub element: &'static str,
    /// How many elements there are.
    pub length: Length,
    /// Who writes the memory.
    pub direction: Direction,
}

/// How many elements lie behind a pointer argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Length {
    /// One.
    One,
    /// As many as the argument at this index says, counted from 0.
    Arg(u8),
    /// As many machine frames as hold the descriptors that the argument at this index counts, 512 a frame.
    DescriptorFrames(u8),
    /// Up to and including an element whose address field is 0.
    UntilNullAddress,
}

/// Who writes the memory behind a pointer argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// The guest before the call.
    In,
    /// The hypervisor during the call.
    Out,
    /// Both.
    InOut,
}

impl Arg {
    /// An argument of that name and kind.
    pub(super) const fn new(name: &'static str, kind: ArgKind) -> Self {
        Self { name, kind }
    }

    /// The number of a sub-operation.
    pub(super) const fn command(family: Family) -> Self {
        Self::new("cmd", ArgKind::Command(family))
    }

    /// A pointer to one structure that both sides may write and whose type the sub-operation decides.
    pub(super) const fn by_command(name: &'static str) -> Self {
        Self::pointer(name, "*", Length::One, Direction::InOut)
    }

    /// A pointer.
    pub(super) const fn pointer(
        name: &'static str,
        element: &'static str,
        length: Length,
        direction: Direction,
    ) -> Self {
        Self::new(name, ArgKind::Pointer(Pointer { element, length, direction }))
    }

    /// An array read by the hypervisor, whose length is the argument at `index`.
    pub(super) const fn array(name: &'static str, element: &'static str, index: u8) -> Self {
        Self::pointer(name, element, Length::Arg(index), Direction::In)
    }
}

impl fmt::Display for Length {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One => f.write_str("one"),
            Self::Arg(index) => write!(f, "as many as argument {index} says"),
            Self::DescriptorFrames(index) => {
                write!(f, "one frame for every 512 of the entries in argument {index}")
            }
            Self::UntilNullAddress => f.write_str("up to an entry with address 0"),
        }
    }
}

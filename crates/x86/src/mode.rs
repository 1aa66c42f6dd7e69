//! Which guest runs on which hypervisor.
//!
//! The segment tables, the hypercall page and the frames depend on two widths: the guest's and the
//! hypervisor's. Four combinations ever existed. A 64-bit guest needs a 64-bit hypervisor; a 32-bit guest
//! ran on the 32-bit hypervisor (removed in Xen 4.3; its non-PAE form earlier) and runs, with PAE, on the
//! 64-bit one ("compat").

use core::fmt;

use paravane_abi::layout::Abi;
use serde::Serialize;

/// The width of a guest kernel, which decides the ABI it speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Guest {
    /// x86-64: kernel and user both in ring 3.
    #[serde(rename = "64")]
    Bits64,
    /// i386: kernel in ring 1, user in ring 3.
    #[serde(rename = "32")]
    Bits32,
}

/// The hypervisor build below the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Hypervisor {
    /// 64-bit Xen: every release from 4.3 on.
    #[serde(rename = "64")]
    Bits64,
    /// Historical 32-bit Xen with PAE, up to 4.2.
    #[serde(rename = "32")]
    Bits32Pae,
    /// Historical 32-bit Xen without PAE, up to 3.x.
    #[serde(rename = "32-nonpae")]
    Bits32NonPae,
}

/// One of the four combinations of guest and hypervisor that existed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Mode {
    /// A 64-bit guest on 64-bit Xen.
    Guest64,
    /// A 32-bit PAE guest on 64-bit Xen, the "compat" mode.
    Guest32On64,
    /// A 32-bit PAE guest on historical 32-bit PAE Xen.
    Guest32On32Pae,
    /// A 32-bit guest on historical 32-bit non-PAE Xen.
    Guest32On32NonPae,
}

impl Mode {
    /// Every mode, in the order in which tables list them.
    pub const ALL: [Self; 4] =
        [Self::Guest64, Self::Guest32On64, Self::Guest32On32Pae, Self::Guest32On32NonPae];

    /// The mode of `guest` on `hypervisor`; `None` for the combination that never existed, a 64-bit guest
    /// on a 32-bit hypervisor.
    pub fn new(guest: Guest, hypervisor: Hypervisor) -> Option<Self> {
        match (guest, hypervisor) {
            (Guest::Bits64, Hypervisor::Bits64) => Some(Self::Guest64),
            (Guest::Bits64, Hypervisor::Bits32Pae | Hypervisor::Bits32NonPae) => None,
            (Guest::Bits32, Hypervisor::Bits64) => Some(Self::Guest32On64),
            (Guest::Bits32, Hypervisor::Bits32Pae) => Some(Self::Guest32On32Pae),
            (Guest::Bits32, Hypervisor::Bits32NonPae) => Some(Self::Guest32On32NonPae),
        }
    }

    /// The guest's width.
    pub fn guest(self) -> Guest {
        match self {
            Self::Guest64 => Guest::Bits64,
            Self::Guest32On64 | Self::Guest32On32Pae | Self::Guest32On32NonPae => Guest::Bits32,
        }
    }

    /// The hypervisor below it.
    pub fn hypervisor(self) -> Hypervisor {
        match self {
            Self::Guest64 | Self::Guest32On64 => Hypervisor::Bits64,
            Self::Guest32On32Pae => Hypervisor::Bits32Pae,
            Self::Guest32On32NonPae => Hypervisor::Bits32NonPae,
        }
    }
}

impl Guest {
    /// The ABI whose structures the guest uses.
    pub fn abi(self) -> Abi {
        match self {
            Self::Bits64 => Abi::Bits64,
            Self::Bits32 => Abi::Bits32,
        }
    }
}

impl fmt::Display for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bits64 => "64-bit guest",
            Self::Bits32 => "32-bit guest",
        })
    }
}

impl fmt::Display for Hypervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bits64 => "64-bit hypervisor",
            Self::Bits32Pae => "32-bit PAE hypervisor",
            Self::Bits32NonPae => "32-bit non-PAE hypervisor",
        })
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.guest(), self.hypervisor())
    }
}

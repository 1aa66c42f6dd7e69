//! What a kernel's runtime noted of each entry into the kernel.
//!
//! A record is what the entry found, without interpretation: the frame on the stack, the registers that SYSRET
//! destroys, and the `vcpu_info` fields.

use std::fmt;

/// Bytes of a record.
pub(crate) const RECORD_BYTES: u64 = 128;
/// Records that are kept: of more, the last ones.
pub(crate) const RECORDS: u64 = 128;

/// Offsets in a record.
pub(crate) mod offset {
    pub(crate) const ENTRY: i32 = 0;
    pub(crate) const RSP: i32 = 8;
    pub(crate) const FRAME: i32 = 16;
    pub(crate) const RCX: i32 = 80;
    pub(crate) const R11: i32 = 88;
    pub(crate) const RFLAGS: i32 = 96;
    pub(crate) const UPCALL: i32 = 104;
    pub(crate) const CR2: i32 = 112;
    pub(crate) const RAX: i32 = 120;
}

/// By which of its registered entries the kernel was entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Entry {
    /// An entry of the trap table.
    Vector(u8),
    /// The event callback.
    Event,
    /// The failsafe callback.
    Failsafe,
    /// The callback for SYSCALL from 64-bit code.
    Syscall,
    /// The callback for SYSCALL from 32-bit code.
    Syscall32,
    /// The callback for SYSENTER.
    Sysenter,
}

impl Entry {
    /// How many there are.
    pub(crate) const COUNT: u64 = 261;

    /// Its number in the runtime.
    pub(crate) fn number(self) -> u64 {
        match self {
            Self::Vector(vector) => vector.into(),
            Self::Event => 256,
            Self::Failsafe => 257,
            Self::Syscall => 258,
            Self::Syscall32 => 259,
            Self::Sysenter => 260,
        }
    }

    fn from_number(number: u64) -> Option<Self> {
        match number {
            256 => Some(Self::Event),
            257 => Some(Self::Failsafe),
            258 => Some(Self::Syscall),
            259 => Some(Self::Syscall32),
            260 => Some(Self::Sysenter),
            vector => u8::try_from(vector).ok().map(Self::Vector),
        }
    }

    /// Whether its frame carries an error code.
    pub fn has_error_code(self) -> bool {
        matches!(self, Self::Vector(8 | 10..=14 | 17 | 21))
    }
}

/// One entry into the kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Trap {
    /// By what.
    pub entry: Entry,
    /// RSP on entry.
    pub frame_at: u64,
    /// The eight words there.
    pub frame: [u64; 8],
    /// RCX on entry.
    pub entry_rcx: u64,
    /// R11 on entry.
    pub entry_r11: u64,
    /// RFLAGS on entry.
    pub entry_rflags: u64,
    /// `evtchn_upcall_pending` on entry.
    pub pending: u8,
    /// `evtchn_upcall_mask` on entry.
    pub mask: u8,
    /// `arch.cr2` on entry.
    pub cr2: u64,
    /// RAX on entry.
    pub rax: u64,
}

impl Trap {
    pub(crate) fn parse(record: &[u8]) -> Option<Self> {
        let (words, _) = record.as_chunks::<8>();
        let words: [u64; 16] =
            words.iter().map(|word| u64::from_le_bytes(*word)).collect::<Vec<_>>().try_into().ok()?;
        let [number, frame_at, frame @ .., entry_rcx, entry_r11, entry_rflags, upcall, cr2, rax] = words;
        let [pending, mask, ..] = upcall.to_le_bytes();
        let entry = Entry::from_number(number)?;
        Some(Self { entry, frame_at, frame, entry_rcx, entry_r11, entry_rflags, pending, mask, cr2, rax })
    }

    /// Of the words behind the error code, or where that would be, the one at `index`.
    fn word(&self, index: usize) -> u64 {
        self.frame[index + 2 + usize::from(self.entry.has_error_code())]
    }

    /// RCX in the frame.
    pub fn rcx(&self) -> u64 {
        self.frame[0]
    }

    /// R11 in the frame.
    pub fn r11(&self) -> u64 {
        self.frame[1]
    }

    /// The error code, if the entry has one.
    pub fn error_code(&self) -> Option<u64> {
        self.entry.has_error_code().then_some(self.frame[2])
    }

    /// RIP in the frame.
    pub fn rip(&self) -> u64 {
        self.word(0)
    }

    /// The word with CS and the saved upcall mask.
    pub fn cs(&self) -> u64 {
        self.word(1)
    }

    /// RFLAGS in the frame.
    pub fn rflags(&self) -> u64 {
        self.word(2)
    }

    /// RSP in the frame.
    pub fn rsp(&self) -> u64 {
        self.word(3)
    }

    /// SS in the frame.
    pub fn ss(&self) -> u64 {
        self.word(4)
    }
}

impl fmt::Debug for Trap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} error {:x?} rip {:#x} cs {:#x} rflags {:#x} rsp {:#x} ss {:#x} cr2 {:#x} rax {:#x} mask {}",
            self.entry,
            self.error_code(),
            self.rip(),
            self.cs(),
            self.rflags(),
            self.rsp(),
            self.ss(),
            self.cr2,
            self.rax,
            self.mask
        )
    }
}

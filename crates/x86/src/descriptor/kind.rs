//! What a descriptor is: the meaning of its S bit and type.
//!
//! For code and data the type bits are flags. For system descriptors (S = 0) the type is a number, and its
//! meaning depends on whether the CPU is in long mode: the 16-bit forms vanish there, and the remaining ones
//! (LDT, TSS, call, interrupt and trap gates) are 16 bytes long.
//!
//! Source: AMD APM vol. 2, "Code-Segment Descriptors", "Data-Segment Descriptors", "System Descriptors";
//! Intel SDM vol. 3A, "Code- and Data-Segment Descriptor Types", "System Descriptor Types".

use core::fmt;

use serde::Serialize;

use super::{Descriptor, bits};

/// What a descriptor describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Executable code.
    Code(CodeType),
    /// Data, or a stack.
    Data(DataType),
    /// A system segment or a gate.
    System(SystemType),
}

/// The type flags of a code segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct CodeType {
    /// C: may be entered from less privileged rings without changing the ring.
    pub conforming: bool,
    /// R: may be read through, not only executed.
    pub readable: bool,
    /// A: has been loaded since the bit was last cleared.
    pub accessed: bool,
    /// The width in which the code runs.
    pub width: CodeWidth,
}

/// The width of code, from L and D.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum CodeWidth {
    /// L = 0, D = 0.
    #[serde(rename = "16")]
    Bits16,
    /// L = 0, D = 1: "compatibility mode" under a 64-bit kernel.
    #[serde(rename = "32")]
    Bits32,
    /// L = 1, D = 0.
    #[serde(rename = "64")]
    Bits64,
    /// L = 1, D = 1: reserved; loading it into CS in long mode faults.
    #[serde(rename = "reserved")]
    Reserved,
}

/// The type flags of a data segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct DataType {
    /// E: the valid offsets are those *above* the limit.
    pub expand_down: bool,
    /// W: may be written, and so may be a stack.
    pub writable: bool,
    /// A: has been loaded since the bit was last cleared.
    pub accessed: bool,
}

/// The sixteen system types (S = 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SystemType {
    /// 0: reserved; also the upper half of a 16-byte descriptor.
    Reserved0,
    /// 1: 16-bit TSS, available.
    Tss16Available,
    /// 2: LDT.
    Ldt,
    /// 3: 16-bit TSS, busy.
    Tss16Busy,
    /// 4: 16-bit call gate.
    CallGate16,
    /// 5: task gate.
    TaskGate,
    /// 6: 16-bit interrupt gate.
    InterruptGate16,
    /// 7: 16-bit trap gate.
    TrapGate16,
    /// 8: reserved.
    Reserved8,
    /// 9: TSS, available (32-bit, or 64-bit in long mode).
    TssAvailable,
    /// 10: reserved.
    Reserved10,
    /// 11: TSS, busy.
    TssBusy,
    /// 12: call gate (32-bit, or 64-bit in long mode).
    CallGate,
    /// 13: reserved.
    Reserved13,
    /// 14: interrupt gate.
    InterruptGate,
    /// 15: trap gate.
    TrapGate,
}

impl Kind {
    /// Reads S and the type of `descriptor`.
    pub(super) fn of(descriptor: Descriptor) -> Self {
        let type_bits = descriptor.type_bits();
        let flag = |bit: u8| type_bits & bit != 0;
        if !descriptor.has(bits::S) {
            Self::System(SystemType::from_bits(type_bits))
        } else if flag(8) {
            Self::Code(CodeType {
                conforming: flag(4),
                readable: flag(2),
                accessed: flag(1),
                width: CodeWidth::of(descriptor),
            })
        } else {
            Self::Data(DataType { expand_down: flag(4), writable: flag(2), accessed: flag(1) })
        }
    }
}

impl CodeWidth {
    fn of(descriptor: Descriptor) -> Self {
        match (descriptor.has(bits::L), descriptor.has(bits::DB)) {
            (false, false) => Self::Bits16,
            (false, true) => Self::Bits32,
            (true, false) => Self::Bits64,
            (true, true) => Self::Reserved,
        }
    }
}

impl SystemType {
    /// Every system type; the position is the number.
    pub const ALL: [Self; 16] = [
        Self::Reserved0,
        Self::Tss16Available,
        Self::Ldt,
        Self::Tss16Busy,
        Self::CallGate16,
        Self::TaskGate,
        Self::InterruptGate16,
        Self::TrapGate16,
        Self::Reserved8,
        Self::TssAvailable,
        Self::Reserved10,
        Self::TssBusy,
        Self::CallGate,
        Self::Reserved13,
        Self::InterruptGate,
        Self::TrapGate,
    ];

    /// The type with this number; higher bits are ignored.
    pub fn from_bits(type_bits: u8) -> Self {
        Self::ALL[usize::from(type_bits & 0xf)]
    }

    /// Its number.
    pub fn type_bits(self) -> u8 {
        // A unit-only enum in number order; the discriminant is the number.
        self as u8
    }

    /// Whether the descriptor holds a selector and an offset instead of a base and a limit.
    pub fn is_gate(self) -> bool {
        match self {
            Self::CallGate16
            | Self::TaskGate
            | Self::InterruptGate16
            | Self::TrapGate16
            | Self::CallGate
            | Self::InterruptGate
            | Self::TrapGate => true,
            Self::Reserved0
            | Self::Tss16Available
            | Self::Ldt
            | Self::Tss16Busy
            | Self::Reserved8
            | Self::TssAvailable
            | Self::Reserved10
            | Self::TssBusy
            | Self::Reserved13 => false,
        }
    }

    /// Whether long mode knows this type; it is then 16 bytes long.
    pub fn exists_in_long_mode(self) -> bool {
        match self {
            Self::Ldt
            | Self::TssAvailable
            | Self::TssBusy
            | Self::CallGate
            | Self::InterruptGate
            | Self::TrapGate => true,
            Self::Reserved0
            | Self::Tss16Available
            | Self::Tss16Busy
            | Self::CallGate16
            | Self::TaskGate
            | Self::InterruptGate16
            | Self::TrapGate16
            | Self::Reserved8
            | Self::Reserved10
            | Self::Reserved13 => false,
        }
    }

    /// The type in words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reserved0 => "reserved (type 0)",
            Self::Tss16Available => "16-bit TSS, available",
            Self::Ldt => "LDT",
            Self::Tss16Busy => "16-bit TSS, busy",
            Self::CallGate16 => "16-bit call gate",
            Self::TaskGate => "task gate",
            Self::InterruptGate16 => "16-bit interrupt gate",
            Self::TrapGate16 => "16-bit trap gate",
            Self::Reserved8 => "reserved (type 8)",
            Self::TssAvailable => "TSS, available",
            Self::Reserved10 => "reserved (type 10)",
            Self::TssBusy => "TSS, busy",
            Self::CallGate => "call gate",
            Self::Reserved13 => "reserved (type 13)",
            Self::InterruptGate => "interrupt gate",
            Self::TrapGate => "trap gate",
        }
    }
}

impl fmt::Display for CodeWidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bits16 => "16-bit",
            Self::Bits32 => "32-bit",
            Self::Bits64 => "64-bit",
            Self::Reserved => "reserved-width",
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |set: bool, text: &'static str| if set { text } else { "" };
        match self {
            Self::Code(code) => write!(
                f,
                "{} code, {}{}{}",
                code.width,
                if code.readable { "readable" } else { "execute-only" },
                word(code.conforming, ", conforming"),
                word(code.accessed, ", accessed"),
            ),
            Self::Data(data) => write!(
                f,
                "data, {}{}{}",
                if data.writable { "writable" } else { "read-only" },
                word(data.expand_down, ", expand-down"),
                word(data.accessed, ", accessed"),
            ),
            Self::System(system) => f.write_str(system.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_types_are_listed_in_number_order() {
        for (number, system) in SystemType::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(system.type_bits()), number);
            assert_eq!(SystemType::from_bits(system.type_bits()), system);
        }
    }

    #[test]
    fn kinds_read_as_words() {
        for (raw, words) in [
            (0x00af_fb00_0000_ffff, "64-bit code, readable, accessed"),
            (0x00cf_fa00_0000_ffff, "32-bit code, readable"),
            (0x000f_9e00_0000_ffff, "16-bit code, readable, conforming"),
            (0x00cf_f300_0000_ffff, "data, writable, accessed"),
            (0x0000_9100_0000_0000, "data, read-only, accessed"),
            (0x0040_f600_0000_0000, "data, writable, expand-down"),
            (0x0000_8200_0000_0000, "LDT"),
            (0x0000_ee00_0000_0000, "interrupt gate"),
            (0x00ef_fb00_0000_ffff, "reserved-width code, readable, accessed"),
        ] {
            assert_eq!(Descriptor(raw).kind().to_string(), words, "{raw:#x}");
        }
    }
}

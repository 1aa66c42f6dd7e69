//! What is odd about a descriptor: contradictions, and facts a reader tends to miss.
//!
//! Nothing here says whether the CPU or Xen accepts the descriptor; that is [`crate::load`] and
//! [`crate::submit`]. These are the remarks that `paravane decode descriptor` prints below the fields.

use core::fmt;

use serde::{Serialize, Serializer, ser::SerializeStruct};

use super::{
    Descriptor, Kind, SystemType, bits,
    gate::Gate,
    kind::{CodeType, CodeWidth, DataType},
    wide::WideDescriptor,
};

/// One remark about a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Finding {
    /// L and D both set on code.
    LongAndBig,
    /// L set on something other than code.
    LongWithoutCode,
    /// The limit field is the largest possible, but G is clear.
    LimitInBytes,
    /// Base plus limit passes 4 GiB.
    Wraps,
    /// 64-bit code with a base or a limit that looks meaningful.
    LongIgnoresBaseAndLimit,
    /// Offsets below the limit are the invalid ones.
    ExpandDown {
        /// The first valid offset.
        first: u64,
        /// The last valid offset.
        last: u32,
    },
    /// The limit leaves an expand-down segment without a single valid offset.
    ExpandDownEmpty,
    /// The CPU will write the accessed bit on first use.
    AccessedClear,
    /// Not present, yet not zero.
    NotPresent,
    /// A reserved system type.
    ReservedType(SystemType),
    /// A type that long mode does not have.
    NotInLongMode(SystemType),
    /// In long mode this is the first half of a 16-byte descriptor, and the second half was not given.
    NeedsUpperHalf(SystemType),
    /// Bits of a gate that must be zero and are not (as a mask of the first quadword).
    GateReservedBits(u64),
    /// Bits of the upper quadword that must be zero and are not.
    UpperReservedBits(u64),
}

/// How serious a [`Finding`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The bits contradict each other or an architectural rule.
    Contradiction,
    /// Allowed, but likely not what was meant, or easily overlooked.
    Note,
}

/// The tables a descriptor is read in, as far as its size and types depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CpuMode {
    /// Long mode: system descriptors are 16 bytes.
    Long,
    /// Legacy protected mode: all descriptors are 8 bytes.
    Legacy,
}

/// The remarks about one 8-byte descriptor, and about `high` if it is known to belong to it.
pub fn findings(descriptor: Descriptor, high: Option<u64>, cpu: CpuMode) -> Vec<Finding> {
    if descriptor == Descriptor::NULL {
        return Vec::new();
    }
    let mut found = Vec::new();
    if !descriptor.is_present() {
        found.push(Finding::NotPresent);
    }
    match descriptor.kind() {
        Kind::Code(code) => code_findings(descriptor, code, cpu, &mut found),
        Kind::Data(data) => data_findings(descriptor, data, &mut found),
        Kind::System(system) => system_findings(descriptor, system, high, cpu, &mut found),
    }
    found
}

fn code_findings(descriptor: Descriptor, code: CodeType, cpu: CpuMode, found: &mut Vec<Finding>) {
    match code.width {
        CodeWidth::Reserved => found.push(Finding::LongAndBig),
        CodeWidth::Bits64 => {
            let flat = descriptor.base() == 0 && [0, 0xf_ffff].contains(&descriptor.limit_field());
            if cpu == CpuMode::Long && !flat {
                found.push(Finding::LongIgnoresBaseAndLimit);
            }
        }
        CodeWidth::Bits16 | CodeWidth::Bits32 => limit_findings(descriptor, found),
    }
    if descriptor.is_present() && !code.accessed {
        found.push(Finding::AccessedClear);
    }
}

fn data_findings(descriptor: Descriptor, data: DataType, found: &mut Vec<Finding>) {
    if descriptor.has(bits::L) {
        found.push(Finding::LongWithoutCode);
    }
    if data.expand_down {
        let last = if descriptor.has(bits::DB) { u32::MAX } else { 0xffff };
        let first = u64::from(descriptor.limit()) + 1;
        found.push(if first > u64::from(last) {
            Finding::ExpandDownEmpty
        } else {
            Finding::ExpandDown { first, last }
        });
    } else {
        limit_findings(descriptor, found);
    }
    if descriptor.is_present() && !data.accessed {
        found.push(Finding::AccessedClear);
    }
}

fn limit_findings(descriptor: Descriptor, found: &mut Vec<Finding>) {
    if descriptor.limit_field() == 0xf_ffff && !descriptor.has(bits::G) {
        found.push(Finding::LimitInBytes);
    }
    if descriptor.base().checked_add(descriptor.limit()).is_none() {
        found.push(Finding::Wraps);
    }
}

fn system_findings(
    descriptor: Descriptor,
    system: SystemType,
    high: Option<u64>,
    cpu: CpuMode,
    found: &mut Vec<Finding>,
) {
    match system {
        SystemType::Reserved0 | SystemType::Reserved8 | SystemType::Reserved10 | SystemType::Reserved13 => {
            found.push(Finding::ReservedType(system));
        }
        SystemType::Tss16Available
        | SystemType::Ldt
        | SystemType::Tss16Busy
        | SystemType::CallGate16
        | SystemType::TaskGate
        | SystemType::InterruptGate16
        | SystemType::TrapGate16
        | SystemType::TssAvailable
        | SystemType::TssBusy
        | SystemType::CallGate
        | SystemType::InterruptGate
        | SystemType::TrapGate => {
            if cpu == CpuMode::Long && !system.exists_in_long_mode() {
                found.push(Finding::NotInLongMode(system));
            }
        }
    }
    if let Some(gate) = Gate::from_legacy(descriptor) {
        let reserved = gate_reserved_bits(system, cpu) & descriptor.0;
        if reserved != 0 {
            found.push(Finding::GateReservedBits(reserved));
        }
        debug_assert!(gate.system == system, "a gate keeps its type");
    } else if descriptor.has(bits::L) {
        found.push(Finding::LongWithoutCode);
    }
    if cpu == CpuMode::Long && system.exists_in_long_mode() {
        match high {
            None => found.push(Finding::NeedsUpperHalf(system)),
            Some(high) => {
                let reserved = WideDescriptor { low: descriptor, high }.reserved_bits();
                if reserved != 0 {
                    found.push(Finding::UpperReservedBits(reserved));
                }
            }
        }
    }
}

/// The bits of a gate's first quadword that its form does not use and that must be zero.
fn gate_reserved_bits(system: SystemType, cpu: CpuMode) -> u64 {
    match (system, cpu) {
        // A legacy call gate keeps the parameter count in bits 36..32.
        (SystemType::CallGate | SystemType::CallGate16, CpuMode::Legacy) => 0xe0 << 32,
        (SystemType::CallGate, CpuMode::Long) => 0xff << 32,
        // The legacy interrupt and trap gates demand zeros in bits 39..37 only; 36..32 are ignored.
        (
            SystemType::InterruptGate
            | SystemType::TrapGate
            | SystemType::InterruptGate16
            | SystemType::TrapGate16,
            CpuMode::Legacy,
        ) => 0xe0 << 32,
        // A long-mode interrupt or trap gate keeps the IST index in bits 34..32.
        (SystemType::InterruptGate | SystemType::TrapGate, CpuMode::Long) => 0xf8 << 32,
        // A task gate ignores what is not its selector; the other types are no gates of this mode.
        (
            SystemType::TaskGate
            | SystemType::CallGate16
            | SystemType::InterruptGate16
            | SystemType::TrapGate16
            | SystemType::Reserved0
            | SystemType::Tss16Available
            | SystemType::Ldt
            | SystemType::Tss16Busy
            | SystemType::Reserved8
            | SystemType::TssAvailable
            | SystemType::Reserved10
            | SystemType::TssBusy
            | SystemType::Reserved13,
            CpuMode::Legacy | CpuMode::Long,
        ) => 0,
    }
}

impl Finding {
    /// How serious it is.
    pub fn severity(self) -> Severity {
        match self {
            Self::LongAndBig
            | Self::LongWithoutCode
            | Self::ExpandDownEmpty
            | Self::ReservedType(_)
            | Self::NotInLongMode(_)
            | Self::GateReservedBits(_)
            | Self::UpperReservedBits(_) => Severity::Contradiction,
            Self::LimitInBytes
            | Self::Wraps
            | Self::LongIgnoresBaseAndLimit
            | Self::ExpandDown { .. }
            | Self::AccessedClear
            | Self::NotPresent
            | Self::NeedsUpperHalf(_) => Severity::Note,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LongAndBig => f.write_str(
                "L and D are both set: reserved. In long mode loading this into CS faults; 64-bit code has L=1, D=0",
            ),
            Self::LongWithoutCode => {
                f.write_str("L is set on something other than code, where the bit is reserved and must be 0")
            }
            Self::LimitInBytes => f.write_str(
                "the limit field is 0xfffff but G is 0, so the limit counts bytes: the segment ends after 1 MiB; \
                 with G=1 it would cover 4 GiB",
            ),
            Self::Wraps => {
                f.write_str("base plus limit passes 4 GiB: addresses wrap around, so the segment also covers low addresses")
            }
            Self::LongIgnoresBaseAndLimit => {
                f.write_str("64-bit code ignores base and limit: it is always flat, whatever these fields say")
            }
            Self::ExpandDown { first, last } => {
                write!(f, "expand-down: the valid offsets are {first:#x} to {last:#x}, above the limit, not below it")
            }
            Self::ExpandDownEmpty => {
                f.write_str("expand-down with the largest limit: no offset is valid, every access faults")
            }
            Self::AccessedClear => f.write_str(
                "the accessed bit is clear: the CPU sets it in the table on the first load, so the table must be writable",
            ),
            Self::NotPresent => f.write_str(
                "P is 0: loading it faults (#NP, or #SS for SS) and the other bits are free for software",
            ),
            Self::ReservedType(system) => write!(f, "system type {} is reserved", system.type_bits()),
            Self::NotInLongMode(system) => write!(f, "long mode has no {}: the type is reserved there", system.name()),
            Self::NeedsUpperHalf(system) => write!(
                f,
                "in long mode a descriptor of type {} ({}) is 16 bytes: the following quadword belongs to it",
                system.type_bits(),
                system.name(),
            ),
            Self::GateReservedBits(mask) => write!(f, "reserved bits of the gate are set: {mask:#018x}"),
            Self::UpperReservedBits(mask) => write!(f, "reserved bits of the upper quadword are set: {mask:#018x}"),
        }
    }
}

impl Serialize for Finding {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut record = serializer.serialize_struct("Finding", 2)?;
        record.serialize_field("severity", &self.severity())?;
        record.serialize_field("text", &self.to_string())?;
        record.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn long(raw: u64) -> Vec<Finding> {
        findings(Descriptor(raw), None, CpuMode::Long)
    }

    #[test]
    fn each_contradiction_is_named() {
        for (raw, expected) in [
            (0x00ef_fb00_0000_ffff, Finding::LongAndBig),
            (0x00af_f300_0000_ffff, Finding::LongWithoutCode),
            (0x004f_fb00_0000_ffff, Finding::LimitInBytes),
            (0x10cf_f300_0000_ffff, Finding::Wraps),
            (0x10af_fb00_0000_ffff, Finding::LongIgnoresBaseAndLimit),
            (0x0040_f700_0000_0fff, Finding::ExpandDown { first: 0x1000, last: u32::MAX }),
            (0x00cf_f700_0000_ffff, Finding::ExpandDownEmpty),
            (0x00cf_f200_0000_ffff, Finding::AccessedClear),
            (0x00cf_7300_0000_ffff, Finding::NotPresent),
            (0x0000_8800_0000_0000, Finding::ReservedType(SystemType::Reserved8)),
            (0x0000_8100_0000_0000, Finding::NotInLongMode(SystemType::Tss16Available)),
            (0x0000_8900_0000_0067, Finding::NeedsUpperHalf(SystemType::TssAvailable)),
            (0x0000_8c80_0000_0000, Finding::GateReservedBits(0x80 << 32)),
        ] {
            assert!(long(raw).contains(&expected), "{raw:#x}: {:?}", long(raw));
        }
    }

    #[test]
    fn the_flat_segments_of_xen_have_no_findings() {
        for raw in [0, 0x00af_fb00_0000_ffff, 0x00cf_fb00_0000_ffff, 0x00cf_f300_0000_ffff] {
            assert_eq!(long(raw), [], "{raw:#x}");
        }
    }

    #[test]
    fn an_upper_half_is_checked_when_it_is_there() {
        let tss = Descriptor(0x0000_8900_0000_0067);
        assert_eq!(findings(tss, Some(0xffff_82d0), CpuMode::Long), []);
        assert_eq!(
            findings(tss, Some(0x1f00_ffff_82d0), CpuMode::Long),
            [Finding::UpperReservedBits(0x1f00_0000_0000)]
        );
        assert_eq!(findings(tss, None, CpuMode::Legacy), []);
    }
}

//! Which status flags matter where.
//!
//! The TLB check clobbers the host's flags, so the guest's must be put away first if anything can still read
//! them. A flag is live before an instruction if the instruction reads it, or does not surely replace it and it
//! is live after. Shifts whose count can be zero replace nothing for sure. After a jump whose target is unknown
//! every flag is live: a guest may carry one across a return (`adc` after `call`).
//!
//! A flag that is not live may still be *seen*: by whoever handles a fault before it is replaced. Seen flags must be to
//! be had, but need not be at hand; see `recall`.

use iced_x86::{Instruction, Mnemonic, OpKind, RflagsBits};

use crate::classify::{Class, Flow};

/// The six status flags, as iced numbers them.
pub(crate) const ALL: u32 =
    RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF;

/// What an instruction does to status flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Effect {
    /// Flags it reads.
    pub(crate) reads: u32,
    /// Flags it may change.
    pub(crate) changes: u32,
    /// Flags it surely replaces.
    pub(crate) kills: u32,
}

impl Effect {
    /// An instruction that leaves translated code: everything must be in order.
    pub(crate) const EVERYTHING: Self = Self { reads: ALL, changes: ALL, kills: 0 };

    /// What `instruction` does.
    pub(crate) fn of(instruction: &Instruction) -> Self {
        let changes = instruction.rflags_modified() & ALL;
        let reads = instruction.rflags_read() & ALL;
        let kills = if count_may_be_zero(instruction) { 0 } else { changes };
        Self { reads, changes, kills }
    }

    /// The flags live before, given those live after.
    pub(crate) fn before(self, after: u32) -> u32 {
        self.reads | (after & !self.kills)
    }

    /// Whether the instruction has anything to do with flags.
    pub(crate) fn touches(self) -> bool {
        self.reads | self.changes != 0
    }
}

/// Which flags matter from some point on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ahead {
    /// Those that code may read.
    pub(crate) live: u32,
    /// Those that code or whoever handles a fault may read: never fewer.
    pub(crate) seen: u32,
}

impl Ahead {
    /// All of them.
    pub(crate) const ALL: Self = Self { live: ALL, seen: ALL };

    /// What matters at a point from which both ways are open.
    pub(crate) fn or(self, other: Self) -> Self {
        Self { live: self.live | other.live, seen: self.seen | other.seen }
    }
}

/// Whether somebody may look at the flags while the instruction has not been completed.
pub(crate) fn shows(class: Class, instruction: &Instruction) -> bool {
    match class {
        Class::Nothing | Class::Lea | Class::Flow(Flow::Jump | Flow::Conditional | Flow::Counted) => false,
        Class::Plain => !is_integer(instruction),
        Class::Flow(Flow::JumpIndirect | Flow::Call | Flow::CallIndirect | Flow::Return)
        | Class::Memory(_)
        | Class::Stack(_)
        | Class::Register(_)
        | Class::Move
        | Class::Helper(_) => true,
    }
}

/// Whether an instruction has general-purpose registers and constants for operands, beside memory, and raises no
/// exception of its own.
pub(crate) fn is_integer(instruction: &Instruction) -> bool {
    let integer =
        |op: u32| instruction.op_kind(op) != OpKind::Register || instruction.op_register(op).is_gpr();
    instruction.op_count() > 0
        && (0..instruction.op_count()).all(integer)
        && !matches!(instruction.mnemonic(), Mnemonic::Div | Mnemonic::Idiv)
}

#[expect(clippy::wildcard_enum_match_arm, reason = "iced's mnemonics number thousands; this names a family")]
fn count_may_be_zero(instruction: &Instruction) -> bool {
    match instruction.mnemonic() {
        Mnemonic::Shl
        | Mnemonic::Sal
        | Mnemonic::Shr
        | Mnemonic::Sar
        | Mnemonic::Rol
        | Mnemonic::Ror
        | Mnemonic::Rcl
        | Mnemonic::Rcr
        | Mnemonic::Shld
        | Mnemonic::Shrd => {
            let last = instruction.op_count() - 1;
            match instruction.op_kind(last) {
                OpKind::Immediate8 => instruction.immediate8() & 0x1f == 0 || rotates(instruction),
                _ => true,
            }
        }
        // These leave flags alone that the manuals call undefined.
        Mnemonic::Bsf
        | Mnemonic::Bsr
        | Mnemonic::Bt
        | Mnemonic::Bts
        | Mnemonic::Btr
        | Mnemonic::Btc
        | Mnemonic::Div
        | Mnemonic::Idiv => true,
        _ => false,
    }
}

/// Rotates by other counts than one leave flags alone that the manuals call undefined.
fn rotates(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Rol | Mnemonic::Ror | Mnemonic::Rcl | Mnemonic::Rcr)
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};

    use super::*;

    fn effect(bytes: &[u8]) -> Effect {
        Effect::of(&Decoder::new(64, bytes, DecoderOptions::NONE).decode())
    }

    #[test]
    fn a_shift_by_a_register_kills_nothing_and_by_a_constant_everything() {
        assert_eq!(effect(&[0xd3, 0xe0]).kills, 0);
        assert_eq!(effect(&[0xd3, 0xe0]).before(ALL), ALL);
        assert_eq!(effect(&[0xc1, 0xe0, 0x05]).kills, ALL);
        assert_eq!(effect(&[0xc1, 0xe0, 0x20]).kills, 0);
        assert_eq!(effect(&[0xd1, 0xe0]).kills, ALL);
    }

    #[test]
    fn inc_keeps_carry_and_adc_reads_it() {
        assert_eq!(effect(&[0xff, 0xc0]).before(ALL), RflagsBits::CF);
        assert_eq!(effect(&[0x11, 0xd8]).before(0), RflagsBits::CF);
        assert!(!effect(&[0x89, 0xd8]).touches());
    }
}

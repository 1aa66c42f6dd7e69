//! Flags that are computed once more if somebody looks.
//!
//! Most status flags are replaced before any code reads them, so the TLB check of an access in between may clobber
//! them. But the access may fault, and the frame that the guest's handler gets shows the flags as the CPU had them.
//! Putting them away before each such check would cost several instructions, for the sake of faults that hardly ever
//! come.
//!
//! Often they can be had for nothing. As long as the registers that made them keep their values, the flags follow from
//! these: of a comparison directly; of an addition by taking off what was added; of a logical operation from its
//! result. A [`Recipe`] says how, and has a number. Cold code, where a miss ends up, stores that number in place of the
//! flags before it asks Rust, and Rust does the sum if it wants to see them.
//!
//! The same works from block to block. A loop that ends with a comparison and a conditional jump is entered again with
//! flags that nobody will read, but for which it would have to put them away before its first access. Instead, the jump
//! stores the number: one instruction for five.
//!
//! All this only where the flags are surely replaced as a whole a few instructions on, nothing in between can show them
//! but checked accesses, and the registers stay as they are up to the last of those. Everywhere else the flags are
//! put away before the first access.

use std::collections::HashMap;

use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register};

use crate::bits::{low8, low32};
use crate::classify::{AddressKind, Class, Flow, StackOp};
use crate::emit::Decoded;
use crate::flags;
use crate::liveness::{ALL, Ahead, is_integer, shows};
use crate::operand::{is_masked, is_stolen, number};
use crate::reuse::written;

/// How to make an instruction's flags again after it ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Recipe {
    operation: Operation,
    /// Bytes of the operands.
    width: u8,
    target: u8,
    source: Source,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Operation {
    Add,
    Subtract,
    Compare,
    Test,
    /// AND, OR, XOR: their flags are those of the result.
    Logic,
    Negate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Source {
    Register(u8),
    Immediate(i32),
}

impl Recipe {
    /// The recipe for an instruction of 64-bit code, if its flags follow from what it leaves in registers.
    #[expect(clippy::wildcard_enum_match_arm, reason = "a few mnemonics of thousands")]
    fn of(instruction: &Instruction) -> Option<Self> {
        let operation = match instruction.mnemonic() {
            Mnemonic::Add => Operation::Add,
            Mnemonic::Sub => Operation::Subtract,
            Mnemonic::Cmp => Operation::Compare,
            Mnemonic::Test => Operation::Test,
            Mnemonic::And | Mnemonic::Or | Mnemonic::Xor => Operation::Logic,
            Mnemonic::Neg => Operation::Negate,
            _ => return None,
        };
        if instruction.op0_kind() != OpKind::Register {
            return None;
        }
        let plain = |register: Register| {
            let register_number = number(register);
            let high = matches!(register, Register::AH | Register::BH | Register::CH | Register::DH);
            (register.is_gpr() && !high && !is_stolen(register_number)).then_some(register_number)
        };
        let target = plain(instruction.op0_register())?;
        let source = match operation {
            Operation::Logic | Operation::Negate => Source::Immediate(0),
            Operation::Add | Operation::Subtract | Operation::Compare | Operation::Test => {
                match instruction.op1_kind() {
                    OpKind::Register => Source::Register(plain(instruction.op1_register())?),
                    OpKind::Memory => return None,
                    // Sign-extended where the operand is wider than 32 bits.
                    _ => Source::Immediate(low32(instruction.immediate(1)).cast_signed()),
                }
            }
        };
        let changed = matches!(operation, Operation::Add | Operation::Subtract);
        if changed && source == Source::Register(target) {
            return None;
        }
        let width = low8(instruction.op0_register().size() as u64);
        Some(Self { operation, width, target, source })
    }

    /// The registers that must not change, one bit each.
    fn registers(self) -> u16 {
        let source = match self.source {
            Source::Register(number) => 1 << number,
            Source::Immediate(_) => 0,
        };
        1 << self.target | source
    }

    /// The status flags, given the registers.
    pub(crate) fn flags(self, gprs: &[u64; 16]) -> u64 {
        let size = usize::from(self.width);
        let target = flags::cut(gprs[usize::from(self.target)], size);
        let source = match self.source {
            Source::Register(number) => gprs[usize::from(number)],
            Source::Immediate(value) => i64::from(value).cast_unsigned(),
        };
        let source = flags::cut(source, size);
        match self.operation {
            Operation::Add => flags::of_sum(flags::cut(target.wrapping_sub(source), size), source, size),
            Operation::Subtract => {
                flags::of_difference(flags::cut(target.wrapping_add(source), size), source, size)
            }
            Operation::Compare => flags::of_difference(target, source, size),
            Operation::Test => flags::of_result(target & source, size),
            Operation::Logic => flags::of_result(target, size),
            Operation::Negate => flags::of_difference(0, flags::cut(target.wrapping_neg(), size), size),
        }
    }
}

/// The recipes that translated code names by number.
#[derive(Debug, Default)]
pub(crate) struct Recipes {
    all: Vec<Recipe>,
    numbers: HashMap<Recipe, u16>,
}

/// Numbers that a block surely needs fewer of.
const ROOM: usize = 128;

impl Recipes {
    /// Forgets all, when the cache is emptied.
    pub(crate) fn clear(&mut self) {
        self.all.clear();
        self.numbers.clear();
    }

    /// Whether numbers run out.
    pub(crate) fn is_full(&self) -> bool {
        self.all.len() + ROOM > usize::from(u16::MAX)
    }

    /// The word that stands for the flags of a recipe.
    pub(crate) fn word(&mut self, recipe: Recipe) -> u32 {
        let number = *self.numbers.entry(recipe).or_insert_with(|| {
            self.all.push(recipe);
            u16::try_from(self.all.len() - 1).expect("the cache is emptied long before")
        });
        flags::owed(number)
    }

    /// A word with the flags in place of their recipe.
    pub(crate) fn settle(&self, status: u32, gprs: &[u64; 16]) -> u32 {
        match flags::recipe(status).and_then(|number| self.all.get(number)) {
            Some(recipe) => flags::pack(recipe.flags(gprs)),
            None => status,
        }
    }
}

/// Finds the instructions of a block of 64-bit code behind which flags can be recalled for as long as anybody may look,
/// and the jumps to targets of which the same is true. `written_at` says which registers code at an address changes
/// before its last access that shows the flags, if it surely replaces them.
pub(crate) fn find(
    decoded: &mut [Decoded],
    behind: Ahead,
    factory: &mut InstructionInfoFactory,
    mut written_at: impl FnMut(u64, &mut InstructionInfoFactory) -> Option<u16>,
) {
    let mut current: Option<Recipe> = None;
    for index in 0..decoded.len() {
        let (item, following) = (&decoded[index], &decoded[index + 1..]);
        if item.effect.changes != 0 {
            current = Recipe::of(&item.instruction);
        }
        let Some(recipe) = current else { continue };
        let after = if matches!(item.class, Class::Flow(_)) {
            following.first().map_or(behind, Decoded::before)
        } else if item.effect.changes != 0 {
            Ahead { live: item.live_after, seen: item.seen_after }
        } else {
            let registers = written(&item.instruction, factory);
            current = current.filter(|recipe| registers & recipe.registers() == 0);
            continue;
        };
        let lasts =
            after.live == 0 && after.seen != 0 && lasts(recipe, item, following, factory, &mut written_at);
        let hands = hands_over(recipe, item, factory, &mut written_at);
        let item = &mut decoded[index];
        item.recall = lasts.then_some(recipe);
        item.hand_over = hands.then_some(recipe);
    }
}

/// Whether a recipe holds at the target of a jump, until other flags replace the ones it makes.
fn hands_over(
    recipe: Recipe,
    item: &Decoded,
    factory: &mut InstructionInfoFactory,
    written_at: &mut impl FnMut(u64, &mut InstructionInfoFactory) -> Option<u16>,
) -> bool {
    matches!(item.class, Class::Flow(Flow::Jump | Flow::Conditional))
        && item.ahead.live == 0
        && written_at(item.instruction.near_branch_target(), factory)
            .is_some_and(|registers| registers & recipe.registers() == 0)
}

/// Whether a recipe holds until other flags replace the ones it makes.
fn lasts(
    recipe: Recipe,
    item: &Decoded,
    following: &[Decoded],
    factory: &mut InstructionInfoFactory,
    written_at: &mut impl FnMut(u64, &mut InstructionInfoFactory) -> Option<u16>,
) -> bool {
    let mut intact = true;
    for next in following {
        if shows(next.class, &next.instruction) && !(intact && only_access_faults(next)) {
            return false;
        }
        if next.effect.kills == ALL {
            return true;
        }
        if matches!(next.class, Class::Flow(_)) {
            return next.seen_after == 0 || intact && hands_over(recipe, next, factory, written_at);
        }
        // Flags of which only some were replaced follow from no recipe.
        intact = intact
            && next.effect.changes == 0
            && written(&next.instruction, factory) & recipe.registers() == 0;
    }
    following.last().unwrap_or(item).seen_after == 0
}

/// Whether the only fault that an instruction can raise is that of its one access, found by the check.
fn only_access_faults(item: &Decoded) -> bool {
    match item.class {
        Class::Memory(operand) => {
            operand.address == AddressKind::Usual
                && is_integer(&item.instruction)
                && !is_masked(&item.instruction)
        }
        Class::Stack(StackOp::Push | StackOp::Pop) => item.instruction.op0_kind() != OpKind::Memory,
        Class::Stack(StackOp::Leave | StackOp::PushFlags)
        | Class::Nothing
        | Class::Plain
        | Class::Lea
        | Class::Flow(_)
        | Class::Register(_)
        | Class::Move
        | Class::Helper(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};
    use paravane_engine::rflags;

    use super::*;

    fn recipe(bytes: &[u8]) -> Option<Recipe> {
        Recipe::of(&Decoder::new(64, bytes, DecoderOptions::NONE).decode())
    }

    #[test]
    fn flags_follow_from_what_an_operation_left() {
        const ALL_OF_ZERO: u64 = rflags::ZF | rflags::PF;
        // What ran, and RAX and RCX behind it.
        let cases: [(&[u8], u64, u64, u64); 10] = [
            // add al, cl: 0xff + 1
            (&[0x00, 0xc8], 0x1200, 1, ALL_OF_ZERO | rflags::CF | rflags::AF),
            // add eax, 1: 0x7fffffff + 1
            (&[0x83, 0xc0, 1], 0x8000_0000, 0, rflags::OF | rflags::SF | rflags::AF | rflags::PF),
            // sub rax, rcx: 0 - 1
            (&[0x48, 0x29, 0xc8], u64::MAX, 1, rflags::CF | rflags::AF | rflags::SF | rflags::PF),
            // sub ax, 1: 0x8000 - 1
            (&[0x66, 0x83, 0xe8, 1], 0x7fff, 0, rflags::OF | rflags::AF | rflags::PF),
            // cmp rax, -1
            (&[0x48, 0x83, 0xf8, 0xff], u64::MAX, 0, ALL_OF_ZERO),
            // cmp eax, ecx: the upper halves do not count
            (&[0x39, 0xc8], 7 << 32 | 3, 9 << 32 | 3, ALL_OF_ZERO),
            // test al, cl
            (&[0x84, 0xc8], 0x81, 0x80, rflags::SF),
            // and rax, [rcx]
            (&[0x48, 0x23, 0x01], 0, 0x5000, ALL_OF_ZERO),
            // neg eax: of 1
            (&[0xf7, 0xd8], 0xffff_ffff, 0, rflags::CF | rflags::AF | rflags::SF | rflags::PF),
            // neg al: of 0x80
            (&[0xf6, 0xd8], 0x80, 0, rflags::CF | rflags::OF | rflags::SF),
        ];
        for (bytes, rax, rcx, flags) in cases {
            let mut gprs = [0; 16];
            (gprs[0], gprs[1]) = (rax, rcx);
            assert_eq!(recipe(bytes).map(|recipe| recipe.flags(&gprs)), Some(flags), "{bytes:02x?}");
        }
    }

    #[test]
    fn there_is_no_recipe_where_the_registers_do_not_tell() {
        let cases: [&[u8]; 8] = [
            // add rax, rax; add rax, [rcx]; add [rcx], rax
            &[0x48, 0x01, 0xc0],
            &[0x48, 0x03, 0x01],
            &[0x48, 0x01, 0x01],
            // adc rax, rcx; shl rax, 1; inc rax
            &[0x48, 0x11, 0xc8],
            &[0x48, 0xd1, 0xe0],
            &[0x48, 0xff, 0xc0],
            // cmp ah, cl; cmp r14, rax: not in a register of the host under its own name
            &[0x38, 0xcc],
            &[0x49, 0x39, 0xc6],
        ];
        for bytes in cases {
            assert_eq!(recipe(bytes), None, "{bytes:02x?}");
        }
    }

    #[test]
    fn a_number_stands_for_flags_until_they_are_settled() {
        let mut recipes = Recipes::default();
        let compare = recipe(&[0x48, 0x39, 0xc8]).unwrap();
        let word = recipes.word(compare);
        assert_eq!(recipes.word(compare), word);
        assert_ne!(recipes.word(recipe(&[0x48, 0x85, 0xc0]).unwrap()), word);
        let mut gprs = [5; 16];
        gprs[1] = 6;
        let flags = rflags::CF | rflags::AF | rflags::SF | rflags::PF;
        assert_eq!(flags::unpack(recipes.settle(word, &gprs)), flags);
        let settled = flags::pack(rflags::OF | rflags::CF);
        assert_eq!(recipes.settle(settled, &gprs), settled);
    }
}

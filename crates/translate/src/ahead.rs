//! What lies behind the end of a block, as far as the bytes of its page show: which flags matter there.
//!
//! The answer depends on those bytes, so the block does too: whoever asks marks them as code.

use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpKind};
use paravane_abi::units::{PAGE_BYTES, PAGE_SIZE};

use crate::block::{Source, decoder, ends_block};
use crate::classify::{Class, Flow};
use crate::emit::{Bits, Decoded};
use crate::liveness::{ALL, Ahead, Effect, is_integer};
use crate::pages::Env;

/// Instructions looked at behind a jump.
const LOOK_AHEAD: usize = 6;

/// Fills in which flags matter, backward; what lies beyond the block counts as reading everything, unless a look ahead
/// within the same page shows otherwise. Returns the ranges looked at, since the block depends on their bytes too, and
/// what matters behind the block.
pub(crate) fn liveness(
    decoded: &mut [Decoded],
    source: &Source,
    env: Env,
    rip: u64,
) -> (Vec<(u64, usize)>, Ahead) {
    let mut seen = Vec::new();
    let mut ahead = |from: u64, target: u64| {
        if env.single {
            return (Ahead::ALL, Ahead::ALL);
        }
        let (mut ahead, len) = look_ahead(source, env, rip, target);
        if len > 0 {
            seen.push((target, len));
        }
        // Code may not be there.
        if env.bits == Bits::B32 {
            ahead.seen = ALL;
        }
        // Who polls lets everything be seen.
        let before = if target <= from { Ahead { seen: ALL, ..ahead } } else { ahead };
        (ahead, before)
    };
    let behind = match decoded.last() {
        Some(last) if !ends_block(last.class) => ahead(last.instruction.ip(), last.instruction.next_ip()).1,
        Some(_) | None => Ahead::ALL,
    };
    let mut after = behind;
    for item in decoded.iter_mut().rev() {
        let instruction = &item.instruction;
        match item.class {
            Class::Flow(Flow::Jump | Flow::Call) => {
                (item.ahead, after) = ahead(instruction.ip(), instruction.near_branch_target());
            }
            Class::Flow(Flow::Conditional | Flow::Counted) => {
                let (at_target, before) = ahead(instruction.ip(), instruction.near_branch_target());
                item.ahead = at_target;
                after = after.or(before);
            }
            Class::Flow(_) => after = Ahead::ALL,
            Class::Nothing
            | Class::Plain
            | Class::Lea
            | Class::Memory(_)
            | Class::Stack(_)
            | Class::Move
            | Class::Register(_)
            | Class::Helper(_) => {}
        }
        (item.live_after, item.seen_after) = (after.live, after.seen);
        after = item.before();
    }
    (seen, behind)
}

/// Flags that can matter at `target`, as far as the bytes at hand (those of the page) show, and how many bytes that
/// took.
fn look_ahead(source: &Source, env: Env, rip: u64, target: u64) -> (Ahead, usize) {
    if target / PAGE_SIZE != rip / PAGE_SIZE {
        return (Ahead::ALL, 0);
    }
    let start = (target & (PAGE_SIZE - 1)) as usize;
    let mut open = ALL;
    let mut found = Ahead { live: 0, seen: 0 };
    let mut decoder = decoder(env, &source.bytes[start..PAGE_BYTES], target);
    for _ in 0..LOOK_AHEAD {
        let instruction = decoder.decode();
        let unknown = instruction.is_invalid()
            || instruction.flow_control() != iced_x86::FlowControl::Next
            || instruction.is_string_instruction();
        if unknown {
            break;
        }
        let effect = Effect::of(&instruction);
        found.live |= effect.reads & open;
        if !surely_plain(&instruction) {
            found.seen |= open;
        }
        open &= !effect.kills;
        if open == 0 {
            break;
        }
    }
    found.live |= open;
    found.seen |= found.live;
    (found, decoder.position())
}

/// The registers that code at `target` changes before the last access that shows the flags with which it is entered, one
/// bit each; `None` if it may show them otherwise, or keeps some of them. Looks no further than [`look_ahead`].
pub(crate) fn written_ahead(
    source: &Source,
    env: Env,
    rip: u64,
    target: u64,
    factory: &mut InstructionInfoFactory,
) -> Option<u16> {
    if target / PAGE_SIZE != rip / PAGE_SIZE {
        return None;
    }
    let start = (target & (PAGE_SIZE - 1)) as usize;
    let (mut before_access, mut all) = (0, 0);
    let mut decoder = decoder(env, &source.bytes[start..PAGE_BYTES], target);
    for _ in 0..LOOK_AHEAD {
        let instruction = decoder.decode();
        if instruction.is_invalid() || !is_common(&instruction) {
            return None;
        }
        if accesses_memory(&instruction) {
            before_access = all;
        }
        let effect = Effect::of(&instruction);
        if effect.kills == ALL {
            return Some(before_access);
        }
        // Flags of which only some were replaced follow from no registers.
        let mixed = if effect.changes == 0 { 0 } else { u16::MAX };
        all |= mixed | crate::reuse::written(&instruction, factory);
    }
    None
}

fn accesses_memory(instruction: &Instruction) -> bool {
    let operand = (0..instruction.op_count()).any(|op| instruction.op_kind(op) == OpKind::Memory);
    instruction.stack_pointer_increment() != 0 || operand && instruction.mnemonic() != Mnemonic::Lea
}

/// Whether an instruction, on any CPU, is one before which nobody sees the flags.
fn surely_plain(instruction: &Instruction) -> bool {
    is_common(instruction) && !accesses_memory(instruction)
}

/// Whether an instruction is one of those that most code is made of, which exist everywhere and raise no exception
/// but for an access.
#[expect(clippy::wildcard_enum_match_arm, reason = "a few mnemonics of thousands")]
fn is_common(instruction: &Instruction) -> bool {
    let named = match instruction.mnemonic() {
        Mnemonic::Mov
        | Mnemonic::Movzx
        | Mnemonic::Movsx
        | Mnemonic::Movsxd
        | Mnemonic::Lea
        | Mnemonic::Add
        | Mnemonic::Sub
        | Mnemonic::Cmp
        | Mnemonic::Test
        | Mnemonic::And
        | Mnemonic::Or
        | Mnemonic::Xor
        | Mnemonic::Neg
        | Mnemonic::Not
        | Mnemonic::Inc
        | Mnemonic::Dec
        | Mnemonic::Imul
        | Mnemonic::Shl
        | Mnemonic::Shr
        | Mnemonic::Sar => true,
        // One access only.
        Mnemonic::Push | Mnemonic::Pop => instruction.op0_kind() != OpKind::Memory,
        _ => false,
    };
    named && is_integer(instruction) && !instruction.has_lock_prefix()
}

//! One check for several accesses.
//!
//! Code reaches fields of an object, or slots of its stack frame, by displacements from a register that stays as it is
//! for a while. If they all lie in one page, the first access's check answers for the others. So the accesses
//! of a block are put into groups: same base and index, nothing between that changes these, all within
//! [`SPAN`] bytes. The first one *leads*: it checks the whole range, and the host address of the range's start stays in
//! R14 or, if R14 is needed in between, in a slot of the state. The others *follow*: they use it.
//!
//! The stack is a base like any other, except that pushes, pops and constant additions move it by known amounts;
//! its accesses are counted from where RSP was at the first.
//!
//! What makes this exact:
//!
//! * A group that a read leads serves reads only, and one that a write leads serves both: whoever may write a page may
//!   read it. So no page is marked dirty by an instruction that does not write.
//! * When the leader's check fails for any other reason than a mere miss (the range crosses into another page, the
//!   page is not there, it holds code), the block is left for a *plain* variant that starts at the leader and checks each
//!   access by itself. It raises the faults, with the address and the instruction that the CPU would name.
//! * Helpers, after which anything may have changed, end all groups. So does the block's end.

use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};

use crate::classify::{AddressKind, Class, Flow, StackOp};
use crate::emit::Decoded;
use crate::operand::{copies_address, is_masked, is_stolen, number};
use crate::state::{Path, SHARED_SLOTS};

/// The most bytes that a check covers. More would catch more accesses, but ranges would cross pages more often.
const SPAN: i64 = 256;
/// How far RSP is followed from where it was first seen.
const STACK_REACH: i64 = 1 << 20;

/// How an instruction's memory access is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Share {
    /// By itself.
    Alone,
    /// Together with what follows.
    Leads(Lead),
    /// By its leader.
    Follows {
        /// Where the host address is, if not in R14.
        slot: Option<u8>,
        /// What to add to it.
        at: i32,
    },
}

/// A check for a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lead {
    /// Displacement of the range's start from the operand's registers.
    pub(crate) start: i32,
    /// Bytes in the range.
    pub(crate) span: u32,
    /// Where in the range the leader's own operand is.
    pub(crate) at: i32,
    /// Where to keep the host address, if it will be needed after R14 was used.
    pub(crate) slot: Option<u8>,
}

/// What accesses of a group have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    /// RSP.
    Stack,
    /// Register numbers of base and index.
    Address { base: Option<u8>, index: Option<u8>, scale: u32 },
}

/// An access that can be in a group.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    key: Key,
    offset: i64,
    size: i64,
    path: Path,
}

#[derive(Debug)]
struct Group {
    key: Key,
    path: Path,
    /// RSP at the leader, from where it was first seen.
    stack: i64,
    low: i64,
    high: i64,
    open: bool,
    slot: Option<u8>,
    /// Instruction, its offset, whether it finds the address in R14.
    members: Vec<(usize, i64, bool)>,
}

/// How an instruction moves the stack pointer.
enum Step {
    By(i64),
    Lost,
}

/// Decides for all instructions of a block.
pub(crate) fn share(decoded: &mut [Decoded], factory: &mut InstructionInfoFactory) {
    if !is_worthwhile(decoded) {
        return;
    }
    let mut groups: Vec<Group> = Vec::new();
    let mut slots = 0;
    let mut stack = 0;
    // The group whose address R14 holds.
    let mut resident: Option<usize> = None;
    for (index, item) in decoded.iter().enumerate() {
        if matches!(item.class, Class::Helper(_)) {
            groups.iter_mut().for_each(|group| group.open = false);
        }
        let found = candidate(item, stack);
        let joined = found.and_then(|access| join(&mut groups, access, index, resident, &mut slots));
        match (joined, found) {
            (Some(group), _) => resident = Some(group),
            (None, Some(access)) => {
                groups.push(Group::led_by(index, access, stack));
                resident = Some(groups.len() - 1);
            }
            (None, None) if needs_scratch(item) => resident = None,
            (None, None) => {}
        }
        let written = written(&item.instruction, factory);
        match step(&item.instruction, written) {
            Step::By(bytes) if (stack + bytes).abs() < STACK_REACH => stack += bytes,
            Step::By(_) | Step::Lost => close(&mut groups, |key| key == Key::Stack),
        }
        close(&mut groups, |key| match key {
            Key::Stack => false,
            Key::Address { base, index, scale: _ } => {
                [base, index].into_iter().flatten().any(|register| written >> register & 1 != 0)
            }
        });
    }
    for group in groups.iter().filter(|group| group.members.len() > 1) {
        group.tell(decoded);
    }
}

/// Whether any two accesses could be in a group, judged cheaply.
fn is_worthwhile(decoded: &[Decoded]) -> bool {
    let mut seen: Vec<Key> = Vec::with_capacity(16);
    decoded.iter().filter_map(|item| candidate(item, 0)).any(|access| {
        let again = seen.contains(&access.key);
        seen.push(access.key);
        again
    })
}

/// Puts an access into an open group that has room for it.
fn join(
    groups: &mut [Group],
    access: Candidate,
    instruction: usize,
    resident: Option<usize>,
    slots: &mut u8,
) -> Option<usize> {
    let (index, group) = groups.iter_mut().enumerate().rev().find(|(_, group)| group.admits(access))?;
    let in_register = resident == Some(index);
    if !in_register && group.slot.is_none() {
        if usize::from(*slots) == SHARED_SLOTS {
            return None;
        }
        group.slot = Some(*slots);
        *slots += 1;
    }
    group.low = group.low.min(access.offset);
    group.high = group.high.max(access.offset + access.size);
    group.members.push((instruction, access.offset, in_register));
    Some(index)
}

fn close(groups: &mut [Group], which: impl Fn(Key) -> bool) {
    groups.iter_mut().filter(|group| which(group.key)).for_each(|group| group.open = false);
}

impl Group {
    fn led_by(instruction: usize, access: Candidate, stack: i64) -> Self {
        Self {
            key: access.key,
            path: access.path,
            stack: if access.key == Key::Stack { stack } else { 0 },
            low: access.offset,
            high: access.offset + access.size,
            open: true,
            slot: None,
            members: vec![(instruction, access.offset, true)],
        }
    }

    fn admits(&self, access: Candidate) -> bool {
        let span = self.high.max(access.offset + access.size) - self.low.min(access.offset);
        self.open
            && self.key == access.key
            && (self.path == Path::Write || access.path == Path::Read)
            && span <= SPAN
    }

    /// Writes the decision into the group's instructions.
    #[expect(clippy::cast_possible_truncation, reason = "displacements have 32 bits, and SPAN is small")]
    fn tell(&self, decoded: &mut [Decoded]) {
        for (place, (index, offset, in_register)) in self.members.iter().enumerate() {
            let at = (offset - self.low) as i32;
            decoded[*index].share = if place == 0 {
                let start = (self.low - self.stack) as i32;
                // At least 1 and at most SPAN.
                let span = ((self.high - self.low) as i32).cast_unsigned();
                Share::Leads(Lead { start, span, at, slot: self.slot })
            } else {
                Share::Follows { slot: self.slot.filter(|_| !in_register), at }
            };
        }
    }
}

/// The access of an instruction, if it has one of the kind that can be in a group. `stack` is how far RSP moved.
fn candidate(item: &Decoded, stack: i64) -> Option<Candidate> {
    let instruction = &item.instruction;
    let slot = |key, offset, path| Some(Candidate { key, offset, size: 8, path });
    match item.class {
        Class::Memory(operand) if operand.address == AddressKind::Usual && !is_masked(instruction) => {
            let (key, offset) = address(instruction, stack)?;
            Some(Candidate { key, offset, size: i64::from(operand.size), path: operand.path })
        }
        Class::Stack(StackOp::Push)
            if instruction.stack_pointer_increment() == -8 && instruction.op0_kind() != OpKind::Memory =>
        {
            slot(Key::Stack, stack - 8, Path::Write)
        }
        Class::Stack(StackOp::Pop)
            if instruction.stack_pointer_increment() == 8 && instruction.op0_kind() == OpKind::Register =>
        {
            slot(Key::Stack, stack, Path::Read)
        }
        Class::Flow(Flow::Call) => slot(Key::Stack, stack - 8, Path::Write),
        Class::Flow(Flow::CallIndirect) if instruction.op0_kind() == OpKind::Register => {
            slot(Key::Stack, stack - 8, Path::Write)
        }
        Class::Flow(Flow::Return) => slot(Key::Stack, stack, Path::Read),
        Class::Nothing
        | Class::Plain
        | Class::Lea
        | Class::Memory(_)
        | Class::Stack(_)
        | Class::Flow(_)
        | Class::Register(_)
        | Class::Move
        | Class::Helper(_) => None,
    }
}

/// What an explicit operand is relative to, and how far from there.
fn address(instruction: &Instruction, stack: i64) -> Option<(Key, i64)> {
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    let segment = instruction.memory_segment();
    let wide = |register: Register| register == Register::None || register.is_gpr64();
    if matches!(segment, Register::FS | Register::GS)
        || instruction.is_ip_rel_memory_operand()
        || !(wide(base) && wide(index))
        || (base, index) == (Register::None, Register::None)
    {
        return None;
    }
    let displacement = instruction.memory_displacement64().cast_signed();
    if base == Register::RSP && index == Register::None {
        return (displacement.abs() < STACK_REACH).then_some((Key::Stack, displacement + stack));
    }
    let named = |register: Register| (register != Register::None).then(|| number(register));
    let key =
        Key::Address { base: named(base), index: named(index), scale: instruction.memory_index_scale() };
    Some((key, displacement))
}

/// The general-purpose registers that an instruction may change, one bit each.
pub(crate) fn written(instruction: &Instruction, factory: &mut InstructionInfoFactory) -> u16 {
    let info = factory.info(instruction);
    info.used_registers()
        .iter()
        .filter(|used| used.register().is_gpr())
        .filter(|used| match used.access() {
            OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess => false,
            OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite => true,
        })
        .fold(0, |all, used| all | 1 << number(used.register()))
}

/// What becomes of RSP.
#[expect(clippy::wildcard_enum_match_arm, reason = "a few mnemonics of thousands")]
fn step(instruction: &Instruction, written: u16) -> Step {
    const RSP: u16 = 1 << 4;
    if written & RSP == 0 {
        return Step::By(0);
    }
    let own = instruction.op0_kind() == OpKind::Register && instruction.op0_register() == Register::RSP;
    let constant = || match instruction.op1_kind() {
        OpKind::Immediate8to64 | OpKind::Immediate32to64 => Some(instruction.immediate(1).cast_signed()),
        _ => None,
    };
    let moved = match instruction.mnemonic() {
        Mnemonic::Push | Mnemonic::Pushfq => Some(i64::from(instruction.stack_pointer_increment())),
        Mnemonic::Pop if !own => Some(i64::from(instruction.stack_pointer_increment())),
        Mnemonic::Add if own => constant(),
        Mnemonic::Sub if own => constant().map(i64::wrapping_neg),
        Mnemonic::Lea
            if own
                && instruction.memory_base() == Register::RSP
                && instruction.memory_index() == Register::None =>
        {
            Some(instruction.memory_displacement64().cast_signed())
        }
        _ => None,
    };
    moved.filter(|bytes| bytes.abs() < STACK_REACH).map_or(Step::Lost, Step::By)
}

/// Whether an instruction that is in no group needs R14.
fn needs_scratch(item: &Decoded) -> bool {
    let instruction = &item.instruction;
    match item.class {
        Class::Nothing | Class::Flow(Flow::Conditional | Flow::Counted) => false,
        Class::Plain => {
            // One stolen operand is served by R15.
            let stolen = |op| {
                instruction.op_kind(op) == OpKind::Register
                    && instruction.op_register(op).is_gpr()
                    && is_stolen(number(instruction.op_register(op)))
            };
            (0..instruction.op_count()).filter(|op| stolen(*op)).count() > 1
        }
        Class::Lea => !copies_address(instruction),
        Class::Memory(_)
        | Class::Stack(_)
        | Class::Flow(_)
        | Class::Register(_)
        | Class::Move
        | Class::Helper(_) => true,
    }
}

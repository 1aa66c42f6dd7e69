//! Proof, block by block, that emitted code keeps to its place.
//!
//! Builds with debug assertions (tests, the fuzzing of `cargo xtask fuzz translate`, dev builds of the program) decode
//! every block again before it is placed, by iced-x86 and not by what emitted it, and follow what registers hold. A
//! block that breaks a rule is a bug of the translator and ends the program.
//!
//! What is proven of a block:
//!
//! 1. *Instructions.* Every byte belongs to one that decodes. None is of the kinds that [`rules`] refuses: system
//!    calls, privileged ones, port I/O, segment registers, stack operations, flags above the status flags.
//! 2. *Memory.* Every operand is an address in the arena's data (writes: one of [`rules::writable`]), a TLB entry or a
//!    place of the jump cache selected by a masked R15, or a host address that came out of a check for as many
//!    bytes, and for writing if it writes. A host address comes from the TLB by the check's own steps in their order, from
//!    Rust (at a site's resume address), or from a slot where one was put.
//! 3. *Jumps.* They lead to an instruction of the same guest instruction's code, an entry of a block that was placed,
//!    or a stub, there with a site of this block. `jmp r15` only follows the jump cache. Where Rust and walks come
//!    back is the start of an instruction.
//! 4. *Registers.* Behind a guest instruction, and wherever control leaves, all registers other than R14 and R15 hold
//!    what the guest had in them, but for those that this guest instruction writes.
//! 5. *Precision.* Where an access misses, or Rust is to perform the instruction, no register has changed and nothing
//!    was written. Where a checked address is used, the mark that a fault would find knows how to undo what is
//!    borrowed.
//!
//! Taken on trust: the stubs and the walk (one copy each, read by people), the addresses of MOVS and STOS in place
//! (their bounds depend on RCX; tests compare them with the CPU), and the status flags.

mod record;
mod rules;
#[cfg(test)]
mod tests;
mod value;

use std::collections::{HashMap, HashSet};

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, Register,
    UsedMemory,
};

use crate::asm::Buffer;
use crate::bits::low32;
use crate::classify::{Helper, operand_size};
use crate::emit::Emitter;
use crate::operand::number;
use crate::sites::{Access, ChainKind, Site, find_mark};
use crate::state::Path;
pub(crate) use record::{Piece, Record};
use value::{Known, Reach, Value};

/// A rule is broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Objection {
    /// The host instruction.
    pub(crate) at: u32,
    /// What is wrong with it.
    pub(crate) why: String,
}

/// Checks the block in an emitter's buffers. `indirect_miss` is where a pad sends jumps that are not for it.
pub(crate) fn verify(emitter: &Emitter, indirect_miss: u32) -> Result<(), Objection> {
    let mut verifier = Verifier {
        emitter,
        indirect_miss,
        factory: InstructionInfoFactory::new(),
        boundaries: HashSet::new(),
        displacements: HashSet::new(),
        returns: HashMap::new(),
        waiting: HashMap::new(),
        seen: HashMap::new(),
        piece: None,
        written: 0,
    };
    let (hot, cold) = (verifier.decode(&emitter.hot)?, verifier.decode(&emitter.cold)?);
    verifier.find_returns(&cold)?;
    verifier.follow(&hot, true)?;
    verifier.follow(&cold, false)
}

/// How control comes into a block other than by its own jumps.
#[derive(Clone, Copy)]
enum Return {
    /// From other blocks, or after any other instruction that Rust performed.
    Afresh,
    /// With the host address of an access in R14.
    Access(Reach),
    /// The same, in the copy of the instruction that goes on at the address.
    Aside(Reach, u32),
    /// After an instruction that ran aside, or a move that Rust performed.
    Committed,
    /// After a walk.
    Walked,
    /// After Rust looked at something: R14 is as it was.
    Paused,
}

struct Verifier<'a> {
    emitter: &'a Emitter,
    indirect_miss: u32,
    factory: InstructionInfoFactory,
    /// Addresses of instructions.
    boundaries: HashSet<u32>,
    /// Addresses of displacements of jumps.
    displacements: HashSet<u32>,
    returns: HashMap<u32, Vec<Return>>,
    /// What is known at targets of jumps further on.
    waiting: HashMap<u32, Known>,
    /// What was known at instructions so far.
    seen: HashMap<u32, Known>,
    /// Whose code it is.
    piece: Option<usize>,
    /// Registers that the guest instruction writes, one bit each.
    written: u16,
}

impl Verifier<'_> {
    fn decode(&mut self, buffer: &Buffer) -> Result<Vec<Instruction>, Objection> {
        let mut decoder = Decoder::with_ip(64, &buffer.bytes, u64::from(buffer.base), DecoderOptions::NONE);
        let mut instructions = Vec::new();
        while decoder.can_decode() {
            let instruction = decoder.decode();
            let at = low32(instruction.ip());
            if instruction.is_invalid() {
                return Err(Objection { at, why: "is no instruction".into() });
            }
            self.boundaries.insert(at);
            if instruction.is_jmp_near() || instruction.is_jcc_near() {
                self.displacements.insert(low32(instruction.next_ip()) - 4);
            }
            instructions.push(instruction);
        }
        Ok(instructions)
    }

    /// Notes where control comes in from elsewhere.
    fn find_returns(&mut self, cold: &[Instruction]) -> Result<(), Objection> {
        let record = &self.emitter.record;
        let mut found: Vec<(u32, Return)> = Vec::new();
        found.extend(record.bodies.iter().map(|body| (*body, Return::Afresh)));
        for site in &self.emitter.sites[record.first_site..] {
            match *site {
                Site::Access(access) => {
                    let reach = reach(access);
                    found.push((access.resume, Return::Access(reach)));
                    if access.aside != 0 {
                        found.push((access.aside, Return::Aside(reach, access.resume)));
                    }
                }
                Site::Commit(commit) => found.push((commit.resume, Return::Committed)),
                Site::Pointers { resume, .. } => found.push((resume, Return::Paused)),
                Site::Helper(helper) if helper.resume != 0 => {
                    let moves = |piece: &Piece| piece.is_move && piece.instruction.ip() == helper.rip;
                    // Slots outlive moves, whoever performs them, and nothing else that Rust performs.
                    let is_move = record.pieces.iter().any(moves);
                    let kind = if is_move { Return::Committed } else { Return::Afresh };
                    found.push((helper.resume, kind));
                }
                Site::Moved { far, .. } => found.push((far, Return::Afresh)),
                Site::Helper(_)
                | Site::Indirect
                | Site::Refused { .. }
                | Site::Chain(_)
                | Site::Enter { .. } => {}
            }
        }
        let stubs = self.emitter.stubs;
        for [constant, jump] in cold.array_windows() {
            let walks = [stubs.read_walk, stubs.write_walk, stubs.code_walk];
            if jump.is_jmp_near() && walks.contains(&low32(jump.near_branch_target())) {
                found.push((low32(constant.immediate(1) >> 32), Return::Walked));
            }
        }
        for (at, kind) in found {
            if !self.boundaries.contains(&at) {
                return Err(Objection { at, why: "is where Rust comes back, but no instruction".into() });
            }
            self.returns.entry(at).or_default().push(kind);
        }
        Ok(())
    }

    /// Follows a part of the block from its first byte to its last.
    fn follow(&mut self, code: &[Instruction], is_hot: bool) -> Result<(), Objection> {
        self.turn_to(None);
        let mut flow = is_hot.then(Known::at_entry);
        let mut last = Known::at_entry();
        for instruction in code {
            let at = low32(instruction.ip());
            self.enter_pieces(at, is_hot, &mut flow)?;
            if let Some(jumped) = self.waiting.remove(&at) {
                flow = Some(jumped.merged_with(flow));
            }
            for kind in self.returns.get(&at).cloned().unwrap_or_default() {
                let before = flow.clone().unwrap_or_else(|| last.clone());
                let known = match kind {
                    Return::Afresh => Known::at_entry(),
                    Return::Access(reach) => before.with_access(reach),
                    Return::Aside(reach, resume) => {
                        self.seen.get(&resume).unwrap_or(&before).clone().with_access(reach)
                    }
                    Return::Committed | Return::Walked => before.without_scratch(),
                    Return::Paused => before.without_selector(),
                };
                flow = Some(known.merged_with(flow));
            }
            // What nothing leads to is not run.
            let Some(known) = flow else { continue };
            self.seen.insert(at, known.clone());
            last = known.clone();
            flow = self.step(known, instruction)?;
        }
        match (flow, code.last()) {
            (Some(_), Some(instruction)) => Err(self.objection(instruction, "lets control run off the end")),
            (_, _) => Ok(()),
        }
    }

    /// Notices that code of further guest instructions begins.
    fn enter_pieces(&mut self, at: u32, is_hot: bool, flow: &mut Option<Known>) -> Result<(), Objection> {
        let next = |piece: Option<usize>| piece.map_or(0, |index| index + 1);
        while let Some(piece) = self.emitter.record.pieces.get(next(self.piece))
            && at >= if is_hot { piece.hot } else { piece.cold }
        {
            if let Some(known) = flow {
                if !is_hot {
                    return Err(Objection { at, why: "is reached from another instruction's code".into() });
                }
                self.registers_kept(at, known)?;
                known.next_instruction();
            }
            self.turn_to(Some(next(self.piece)));
        }
        Ok(())
    }

    fn turn_to(&mut self, piece: Option<usize>) {
        self.piece = piece;
        let Some(piece) = piece.and_then(|index| self.emitter.record.pieces.get(index)) else {
            self.written = 0;
            return;
        };
        let info = self.factory.info(&piece.instruction);
        self.written = written(info.used_registers());
    }

    fn piece(&self) -> Option<&Piece> {
        self.emitter.record.pieces.get(self.piece?)
    }

    /// One instruction: what is known behind it, if control goes on there.
    fn step(&mut self, mut known: Known, instruction: &Instruction) -> Result<Option<Known>, Objection> {
        let is_move = self.piece().is_some_and(|piece| piece.is_move);
        rules::allowed(instruction, is_move).map_err(|why| self.objection(instruction, why))?;
        self.operands(&mut known, instruction)?;
        match instruction.flow_control() {
            FlowControl::ConditionalBranch => {
                let beyond = known.clone().after_branch(instruction);
                let info = self.factory.info(instruction);
                known.forget(written(info.used_registers()));
                self.jump(instruction, known)?;
                let counts = !instruction.is_jcc_short_or_near();
                let mut beyond = beyond;
                if counts {
                    beyond.forget(1 << 1 & self.written);
                }
                Ok(Some(beyond))
            }
            FlowControl::UnconditionalBranch => {
                self.jump(instruction, known)?;
                Ok(None)
            }
            FlowControl::IndirectBranch => {
                let known_target = instruction.op0_kind() == iced_x86::OpKind::Register
                    && known.register(instruction.op0_register()) == Value::Target;
                if !known_target {
                    return Err(self.objection(instruction, "jumps to what is not from the jump cache"));
                }
                self.registers_kept(low32(instruction.ip()), &known)?;
                Ok(None)
            }
            FlowControl::Next
            | FlowControl::Return
            | FlowControl::Call
            | FlowControl::IndirectCall
            | FlowControl::Interrupt
            | FlowControl::XbeginXabortXend
            | FlowControl::Exception => {
                let info = self.factory.info(instruction);
                let changed = written(info.used_registers());
                known.after(instruction, changed, self.emitter.layout, self.emitter.conditions.mode);
                Ok(Some(known))
            }
        }
    }

    // Memory.

    fn operands(&mut self, known: &mut Known, instruction: &Instruction) -> Result<(), Objection> {
        let touched: Vec<UsedMemory> = self.factory.info(instruction).used_memory().to_vec();
        let is_string = instruction.is_string_instruction();
        for memory in touched.into_iter().filter(|memory| memory.access() != OpAccess::NoMemAccess) {
            // `rules` lets them pass only where they belong.
            if is_string {
                known.effects = true;
                continue;
            }
            let writes = !matches!(memory.access(), OpAccess::None | OpAccess::Read | OpAccess::CondRead);
            let size = operand_size(instruction).max(low32(memory.memory_size().size() as u64));
            self.operand(known, instruction, memory, (size, writes))?;
        }
        let is_bit_test =
            matches!(instruction.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
                && instruction.op0_kind() == iced_x86::OpKind::Memory
                && instruction.op1_kind() == iced_x86::OpKind::Register;
        if is_bit_test {
            let bits = u64::from(operand_size(instruction)) * 8 - 1;
            if !known.register(instruction.op1_register()).has_only(bits) {
                return Err(self.objection(instruction, "tests a bit beyond its operand"));
            }
        }
        Ok(())
    }

    fn operand(
        &self,
        known: &mut Known,
        instruction: &Instruction,
        memory: UsedMemory,
        (size, writes): (u32, bool),
    ) -> Result<(), Objection> {
        let object = |why: &str| Err(self.objection(instruction, why));
        let (layout, mode) = (self.emitter.layout, self.emitter.conditions.mode);
        let displacement = memory.displacement();
        if matches!(memory.segment(), Register::FS | Register::GS) {
            return object("uses a host segment's base");
        }
        match (memory.base(), memory.index(), memory.scale()) {
            (Register::None, Register::None, _) => {
                let in_data = u64::from(layout.field(0)) <= displacement
                    && displacement + u64::from(size) <= u64::from(layout.code());
                if !in_data {
                    return object("names memory outside the arena's data");
                }
                if writes && !rules::writable(layout, low32(displacement), size) {
                    return object("writes a part of the arena that is not the code's to write");
                }
                known.effects |= writes && rules::is_guest_state(layout, low32(displacement));
                Ok(())
            }
            (Register::None, Register::R15, 4)
                if displacement == u64::from(layout.jumps(mode))
                    && known.register(Register::R15).has_only(0xffff)
                    && !writes
                    && size == 4 =>
            {
                Ok(())
            }
            (Register::R15, Register::None, _)
                if known.register(Register::R15).has_only(0xfff0)
                    && [Path::Read, Path::Write].iter().any(|path| {
                        displacement.wrapping_sub(u64::from(layout.tlb(mode, *path))) & !8 == 0
                    })
                    && !writes
                    && size == 8 =>
            {
                Ok(())
            }
            (base, Register::None, _) if base.is_gpr64() => match known.register(base) {
                Value::Kick if displacement == 0 && size == 4 && !writes => Ok(()),
                Value::Host(reach) => {
                    let at = displacement.cast_signed();
                    if at < i64::from(reach.from) || at + i64::from(size) > i64::from(reach.to) {
                        return object("goes beyond what was checked");
                    }
                    if writes && reach.path == Path::Read {
                        return object("writes what was checked for reading");
                    }
                    self.undone_by_mark(instruction, known)?;
                    known.effects |= writes;
                    Ok(())
                }
                Value::Unknown
                | Value::Guest(_)
                | Value::Constant(_)
                | Value::Masked(_)
                | Value::Distance(_)
                | Value::Within(..)
                | Value::Kick
                | Value::Target => object("uses an address that was not checked"),
            },
            (_, _, _) => object("uses an address of a form that the translator does not make"),
        }
    }

    /// If the instruction faults, the guest's registers can be restored from what its mark says.
    fn undone_by_mark(&self, instruction: &Instruction, known: &Known) -> Result<(), Objection> {
        let at = low32(instruction.ip());
        let emitter = self.emitter;
        let is_hot = self.boundaries.contains(&at) && at < emitter.hot.here() && at >= emitter.hot.base;
        let marks = if is_hot { &emitter.hot_marks } else { &emitter.cold_marks };
        let mark = find_mark(marks, at).copied();
        let rip = self.piece().map(|piece| piece.instruction.ip());
        let (Some(mark), Some(rip)) = (mark, rip) else {
            return Err(self.objection(instruction, "can fault and has no mark"));
        };
        if !mark.is_of(rip, emitter.page) {
            return Err(self.objection(instruction, "can fault and has another instruction's mark"));
        }
        let is_whole = |number: u8| {
            let borrowed = mark.borrowed == Some(number);
            known.registers[usize::from(number)] == Value::Guest(number)
                || borrowed && known.spill[1] == Value::Guest(number)
        };
        if known.effects || !(0..14).all(is_whole) {
            return Err(self.objection(instruction, "can fault when the guest's state has changed"));
        }
        Ok(())
    }

    // Control.

    fn jump(&mut self, instruction: &Instruction, known: Known) -> Result<(), Objection> {
        let target = low32(instruction.near_branch_target());
        let at = low32(instruction.ip());
        let stubs = self.emitter.stubs;
        let known = known.at_jump();
        if [stubs.leave, stubs.leave_with_flags].contains(&target) {
            return self.leave(instruction, &known, None);
        }
        if [stubs.read_walk, stubs.write_walk, stubs.code_walk].contains(&target) {
            return self.leave(instruction, &known, Some(target));
        }
        if stubs.runs.contains(&target) {
            return self.long_run(instruction, &known);
        }
        if target == self.indirect_miss {
            return self.untouched(instruction, &known);
        }
        if self.boundaries.contains(&target) {
            let owner = self.owner(target);
            let mut known = known;
            if owner != self.piece {
                let starts = owner.is_some_and(|owner| self.emitter.record.pieces[owner].hot == target);
                if owner < self.piece || !starts {
                    return Err(self.objection(instruction, "jumps into another instruction's code"));
                }
                self.registers_kept(at, &known)?;
                known.next_instruction();
            }
            if let Some(before) = self.seen.get(&target) {
                return self.fits(instruction, before, &known);
            }
            let merged = known.merged_with(self.waiting.remove(&target));
            self.waiting.insert(target, merged);
            return Ok(());
        }
        if self.emitter.record.is_entry(target) {
            return self.registers_kept(at, &known);
        }
        Err(self.objection(instruction, "jumps to what is no instruction, entry or stub"))
    }

    /// Whose code an address is.
    fn owner(&self, at: u32) -> Option<usize> {
        let is_hot = (self.emitter.hot.base..self.emitter.hot.here()).contains(&at);
        let pieces = &self.emitter.record.pieces;
        let count = pieces.partition_point(|piece| (if is_hot { piece.hot } else { piece.cold }) <= at);
        count.checked_sub(1)
    }

    /// Code that was followed already may be entered again knowing this.
    fn fits(&self, instruction: &Instruction, before: &Known, now: &Known) -> Result<(), Objection> {
        if now.clone().merged_with(Some(before.clone())) == before.clone().at_jump() {
            return Ok(());
        }
        Err(self.objection(instruction, "goes back to code that takes more for granted"))
    }

    /// A jump to a stub, with the number of a site in R15.
    fn leave(&self, instruction: &Instruction, known: &Known, walk: Option<u32>) -> Result<(), Objection> {
        let object = |why: &str| Err(self.objection(instruction, why));
        let Value::Constant(word) = known.register(Register::R15) else {
            return object("leaves with no site in R15");
        };
        let (index, again) = (low32(word) as usize, low32(word >> 32));
        let site = self.emitter.sites.get(index).filter(|_| index >= self.emitter.record.first_site);
        let Some(site) = site else { return object("leaves with a site that is not this block's") };
        if let Some(stub) = walk {
            let stubs = self.emitter.stubs;
            let expected = match site {
                Site::Access(Access { path: Path::Read, .. }) => Some(stubs.read_walk),
                Site::Access(Access { path: Path::Write, .. }) => Some(stubs.write_walk),
                Site::Moved { .. } => Some(stubs.code_walk),
                Site::Indirect
                | Site::Refused { .. }
                | Site::Chain(_)
                | Site::Enter { .. }
                | Site::Commit(_)
                | Site::Pointers { .. }
                | Site::Helper(_) => None,
            };
            if Some(stub) != expected {
                return object("takes the wrong walk");
            }
            let Some(before) = self.seen.get(&again) else {
                return object("has its walk go to no instruction");
            };
            self.fits(instruction, before, &known.clone().without_scratch())?;
        } else if again != 0 {
            return object("leaves with more than a site in R15");
        }
        match site {
            Site::Access(_) | Site::Helper(_) | Site::Pointers { .. } | Site::Moved { .. } => {
                self.untouched(instruction, known)
            }
            Site::Chain(chain) if !self.displacements.contains(&chain.at) => {
                object("asks for a link that is no jump of this block")
            }
            Site::Chain(chain) if chain.kind == ChainKind::Plain => self.untouched(instruction, known),
            Site::Chain(_) | Site::Commit(_) | Site::Enter { .. } | Site::Indirect | Site::Refused { .. } => {
                self.registers_kept(low32(instruction.ip()), known)
            }
        }
    }

    /// A jump to the routine for long runs, which goes on where Rust would if it performed the instruction.
    fn long_run(&self, instruction: &Instruction, known: &Known) -> Result<(), Objection> {
        let Value::Constant(word) = known.register(Register::R15) else {
            return Err(self.objection(instruction, "leaves with no site in R15"));
        };
        let index = low32(word) as usize;
        let site = self.emitter.sites.get(index).filter(|_| index >= self.emitter.record.first_site);
        match site {
            Some(Site::Helper(helper))
                if helper.helper == Helper::String && helper.resume == low32(word >> 32) =>
            {
                self.untouched(instruction, known)
            }
            Some(_) | None => {
                Err(self.objection(instruction, "starts a run that is no string instruction's"))
            }
        }
    }

    /// Nothing of the guest has changed since its instruction began.
    fn untouched(&self, instruction: &Instruction, known: &Known) -> Result<(), Objection> {
        if known.effects || known.changed() != 0 {
            return Err(self.objection(instruction, "leaves in the middle of an instruction's effects"));
        }
        Ok(())
    }

    /// All registers are the guest's, but for those that the guest instruction writes.
    fn registers_kept(&self, at: u32, known: &Known) -> Result<(), Objection> {
        let changed = known.changed() & !self.written;
        if changed != 0 {
            let why = format!("leaves registers changed that the guest's instruction keeps: {changed:#06x}");
            return Err(Objection { at, why });
        }
        Ok(())
    }

    fn objection(&self, instruction: &Instruction, why: &str) -> Objection {
        let of = self.piece().map(|piece| piece.instruction.code());
        let why = format!("{:?} (for {of:?}) {why}", instruction.code());
        Objection { at: low32(instruction.ip()), why }
    }
}

/// What Rust hands back for an access: R14 is the host address less the bias.
fn reach(access: Access) -> Reach {
    let from = i32::from(access.bias);
    Reach { path: access.path, from, to: from + access.size.cast_signed() }
}

/// General-purpose registers that are written, one bit each.
fn written(used: &[iced_x86::UsedRegister]) -> u16 {
    used.iter()
        .filter(|used| used.register().is_gpr())
        .filter(|used| match used.access() {
            OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess => false,
            OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite => true,
        })
        .fold(0, |all, used| all | 1 << number(used.register()))
}

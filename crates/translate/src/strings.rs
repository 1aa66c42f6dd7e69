//! String instructions, in chunks.
//!
//! A chunk is what fits the current source and destination pages. Registers are updated after each, so the guest's
//! state is precise when a later one faults, and a kick is noticed between them: RIP stays at the instruction, as on
//! the CPU.

use iced_x86::{Instruction, Mnemonic, Register};
use paravane_abi::units::{MachAddr, PAGE_BYTES, PAGE_SIZE};
use paravane_engine::{Exit, SegmentRegister, rflags};

use crate::bits::index as index_of;
use crate::engine::Translator;
use crate::flags;
use crate::help::{Done, cut, merged};
use crate::operand::number;
use crate::state::Path;
use crate::tlb::Page;

/// What kind of string instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Move,
    Store,
    Load,
    Compare,
    Scan,
}

/// When a repetition ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Repeat {
    /// Not repeated.
    Once,
    /// When the count is zero.
    Count,
    /// Also when ZF is clear.
    WhileEqual,
    /// Also when ZF is set.
    WhileDifferent,
}

/// A string instruction, taken apart.
#[derive(Clone, Copy, Debug)]
struct Shape {
    kind: Kind,
    /// Bytes of an element.
    size: usize,
    /// Bytes of addresses and count.
    width: u32,
    repeat: Repeat,
    source: SegmentRegister,
}

impl Translator {
    /// Performs a string instruction until it is done, faults, or is interrupted. CMPS and SCAS show the flags of their
    /// last comparison only when they are done: Intel SDM vol. 2, "REP/REPE/REPZ/REPNE/REPNZ".
    pub(crate) fn string(&mut self, instruction: &Instruction) -> Result<Done, Exit> {
        let before = self.cpu.state().context.rflags;
        let outcome = self.string_run(instruction);
        if !matches!(outcome, Ok(Done::Next)) {
            self.cpu.state_mut().context.rflags = before;
        }
        outcome
    }

    fn string_run(&mut self, instruction: &Instruction) -> Result<Done, Exit> {
        let shape = shape(instruction);
        loop {
            let left = match shape.repeat {
                Repeat::Once => 1,
                Repeat::Count | Repeat::WhileEqual | Repeat::WhileDifferent => {
                    cut(self.get(Register::RCX), shape.width)
                }
            };
            if left == 0 {
                return Ok(Done::Next);
            }
            let (moved, goes_on) = self.string_chunk(shape, left)?;
            if shape.repeat == Repeat::Once {
                return Ok(Done::Next);
            }
            self.advance(Register::RCX, shape.width, 0_u64.wrapping_sub(moved));
            if !goes_on {
                return Ok(Done::Next);
            }
            if self.env.single || self.cpu.is_kicked() {
                let finished = cut(self.get(Register::RCX), shape.width) == 0;
                return Ok(if finished { Done::Next } else { Done::Jump(instruction.ip()) });
            }
        }
    }

    /// One chunk: returns elements done, and whether the repetition's condition still holds.
    fn string_chunk(&mut self, shape: Shape, left: u64) -> Result<(u64, bool), Exit> {
        let down = self.goes_down();
        let source = self.string_address(Register::RSI, shape.source, shape.width);
        let target = self.string_address(Register::RDI, SegmentRegister::Es, shape.width);
        let strict = self.env.strict.has(shape.source) || self.env.strict.has(SegmentRegister::Es);
        let mut count = if self.env.single || strict { 1 } else { left };
        let uses_source = matches!(shape.kind, Kind::Move | Kind::Load | Kind::Compare);
        let uses_target = !matches!(shape.kind, Kind::Load);
        if uses_source {
            count = count.min(elements_in_page(source, shape.size, down));
        }
        if uses_target {
            count = count.min(elements_in_page(target, shape.size, down));
        }
        // The first element's address is the one that a fault shows. CMPS looks at its second operand first.
        if shape.kind == Kind::Compare {
            self.string_operand(SegmentRegister::Es, target, shape.size, Path::Read)?;
        }
        if uses_source {
            self.string_operand(shape.source, source, shape.size, Path::Read)?;
        }
        if uses_target && shape.kind != Kind::Compare {
            let path = if shape.kind == Kind::Scan { Path::Read } else { Path::Write };
            self.string_operand(SegmentRegister::Es, target, shape.size, path)?;
        }
        let (done, goes_on) = match shape.kind {
            Kind::Move => (self.move_chunk(source, target, shape.size, count, down)?, true),
            Kind::Store => (self.store_chunk(target, shape.size, count, down)?, true),
            Kind::Load => {
                // Only the last element of a chunk shows, but each may fault.
                let last = offset_by(source, shape.size, count - 1, down);
                let value = self.read_number(last, shape.size)?;
                let rax = self.get(Register::RAX);
                self.cpu.state_mut().context.gprs[0] = merged(rax, value, shape.size);
                (count, true)
            }
            Kind::Compare | Kind::Scan => self.compare_chunk(shape, source, target, count, down)?,
        };
        let bytes = done.wrapping_mul(shape.size as u64);
        let step = if down { 0_u64.wrapping_sub(bytes) } else { bytes };
        if uses_source {
            self.advance(Register::RSI, shape.width, step);
        }
        if uses_target {
            self.advance(Register::RDI, shape.width, step);
        }
        Ok((done, goes_on))
    }

    /// Checks an element's segment and pages.
    fn string_operand(
        &mut self,
        segment: SegmentRegister,
        address: u64,
        size: usize,
        path: Path,
    ) -> Result<(), Exit> {
        self.check_segment(segment, address, size as u64, path)?;
        self.canonical_to_its_end(address, size)?;
        self.check_alignment(address, size as u64)?;
        self.pages_for(address, size, path).map(|_pages| ())
    }

    fn move_chunk(&mut self, from: u64, to: u64, size: usize, count: u64, down: bool) -> Result<u64, Exit> {
        let len = size * index_of(count);
        let (low_from, low_to) = (lowest(from, size, count, down), lowest(to, size, count, down));
        let sources = self.pages_for(low_from, len, Path::Read)?;
        let targets = self.pages_for(low_to, len, Path::Write)?;
        self.learn(low_from, Path::Read, sources[0]);
        self.learn(low_to, Path::Write, targets[0]);
        let overlap = pages_overlap(sources, targets);
        if let (Some(machine_from), Some(machine_to)) =
            (in_one_frame(low_from, len, sources), in_one_frame(low_to, len, targets))
            && (!overlap || copies_upward(machine_from, machine_to, (len, size), down))
        {
            // The walk only names guest memory, so this cannot be out of range.
            if self.memory.copy(machine_from, machine_to, len).is_ok() {
                return Ok(count);
            }
        }
        let mut bytes = [0; PAGE_BYTES + 8];
        if !overlap {
            self.read_pages(low_from, sources, &mut bytes[..len]);
            self.write_pages(low_to, targets, &bytes[..len]);
            return Ok(count);
        }
        // Source and destination share a frame: element by element, so that a pattern spreads as on the CPU.
        for index in 0..count {
            let (from, to) = (offset_by(from, size, index, down), offset_by(to, size, index, down));
            self.read_pages(from, sources, &mut bytes[..size]);
            self.write_pages(to, targets, &bytes[..size]);
        }
        Ok(count)
    }

    fn store_chunk(&mut self, to: u64, size: usize, count: u64, down: bool) -> Result<u64, Exit> {
        let len = size * index_of(count);
        let low = lowest(to, size, count, down);
        let pages = self.pages_for(low, len, Path::Write)?;
        self.learn(low, Path::Write, pages[0]);
        let element = self.get(Register::RAX).to_le_bytes();
        let uniform = element[..size].iter().all(|byte| *byte == element[0]);
        if let (true, Some(to)) = (uniform, in_one_frame(low, len, pages))
            && self.memory.fill(to, len, element[0]).is_ok()
        {
            return Ok(count);
        }
        let mut bytes = [0; PAGE_BYTES + 8];
        for chunk in bytes[..len].chunks_exact_mut(size) {
            chunk.copy_from_slice(&element[..size]);
        }
        self.write_pages(low, pages, &bytes[..len]);
        Ok(count)
    }

    fn compare_chunk(
        &mut self,
        shape: Shape,
        source: u64,
        target: u64,
        count: u64,
        down: bool,
    ) -> Result<(u64, bool), Exit> {
        let size = shape.size;
        let len = size * index_of(count);
        let (mut lefts, mut rights) = ([0; PAGE_BYTES + 8], [0; PAGE_BYTES + 8]);
        if shape.kind == Kind::Compare {
            self.read_linear(lowest(source, size, count, down), &mut lefts[..len])?;
        }
        self.read_linear(lowest(target, size, count, down), &mut rights[..len])?;
        let wanted = flags::cut(self.get(Register::RAX), size);
        let pair = |index: usize| {
            let at = size * if down { index_of(count) - 1 - index } else { index };
            let left = if shape.kind == Kind::Compare { element(&lefts, at, size) } else { wanted };
            (left, element(&rights, at, size))
        };
        let goes_on = |(left, right): (u64, u64)| match shape.repeat {
            Repeat::Once | Repeat::Count => true,
            Repeat::WhileEqual => left == right,
            Repeat::WhileDifferent => left != right,
        };
        // Only the last comparison's flags show.
        let end = (0..index_of(count)).position(|index| !goes_on(pair(index)));
        let last = end.unwrap_or(len / size - 1);
        let (left, right) = pair(last);
        let context = &mut self.cpu.state_mut().context;
        context.rflags = (context.rflags & !rflags::STATUS) | flags::of_difference(left, right, size);
        Ok((last as u64 + 1, end.is_none()))
    }

    fn string_address(&self, register: Register, segment: SegmentRegister, width: u32) -> u64 {
        self.linear_of(segment, cut(self.get(register), width))
    }

    /// Adds to a register of the instruction's address width.
    fn advance(&mut self, register: Register, width: u32, by: u64) {
        let slot = &mut self.cpu.state_mut().context.gprs[usize::from(number(register))];
        *slot = merged(*slot, slot.wrapping_add(by), width as usize);
    }
}

/// The number of some bytes at a place.
fn element(bytes: &[u8], at: usize, size: usize) -> u64 {
    bytes[at..at + size].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Elements from `address` on that do not start beyond its page, at least one (which may itself cross).
fn elements_in_page(address: u64, size: usize, down: bool) -> u64 {
    let offset = address & (PAGE_SIZE - 1);
    let size = size as u64;
    if down {
        // An element that runs into the next page comes alone.
        if offset + size > PAGE_SIZE { 1 } else { offset / size + 1 }
    } else {
        ((PAGE_SIZE - offset) / size).max(1)
    }
}

fn offset_by(address: u64, size: usize, index: u64, down: bool) -> u64 {
    let bytes = index.wrapping_mul(size as u64);
    if down { address.wrapping_sub(bytes) } else { address.wrapping_add(bytes) }
}

/// The lowest address of a run of elements.
fn lowest(address: u64, size: usize, count: u64, down: bool) -> u64 {
    if down { offset_by(address, size, count - 1, true) } else { address }
}

/// The machine address of a range that lies in one frame.
fn in_one_frame(linear: u64, len: usize, pages: [Page; 2]) -> Option<MachAddr> {
    let offset = linear & (PAGE_SIZE - 1);
    match pages[0] {
        Page::Frame(frame) if index_of(offset) + len <= PAGE_BYTES => {
            Some(MachAddr(frame.0 * PAGE_SIZE + offset))
        }
        Page::Frame(_) | Page::Shadow => None,
    }
}

/// Whether copying bytes upward, one after the other, does what the elements of a move within a frame do.
fn copies_upward(from: MachAddr, to: MachAddr, (len, size): (usize, usize), down: bool) -> bool {
    let apart = from.0.abs_diff(to.0);
    apart >= len as u64 || !down && (to.0 <= from.0 || apart >= size as u64)
}

fn pages_overlap(left: [Page; 2], right: [Page; 2]) -> bool {
    left.iter().any(|page| right.contains(page))
}

fn shape(instruction: &Instruction) -> Shape {
    let (kind, size) = kind(instruction.mnemonic());
    let repeat = match (kind, instruction.has_repe_prefix(), instruction.has_repne_prefix()) {
        (_, false, false) => Repeat::Once,
        (Kind::Move | Kind::Store | Kind::Load, _, _) => Repeat::Count,
        (Kind::Compare | Kind::Scan, _, true) => Repeat::WhileDifferent,
        (Kind::Compare | Kind::Scan, true, false) => Repeat::WhileEqual,
    };
    let width = instruction.op_code().address_size() / 8;
    // Without a prefix this is DS.
    let source = crate::segments::register(instruction.segment_prefix());
    Shape { kind, size, width: address_size(instruction, width), repeat, source }
}

/// Address size from the operand kinds: the opcode tables give it only for some forms.
#[expect(clippy::wildcard_enum_match_arm, reason = "the string operand kinds among all")]
fn address_size(instruction: &Instruction, fallback: u32) -> u32 {
    use iced_x86::OpKind;
    for op in 0..instruction.op_count() {
        match instruction.op_kind(op) {
            OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => return 2,
            OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => return 4,
            OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => return 8,
            _ => {}
        }
    }
    fallback.max(2)
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the string mnemonics among thousands")]
fn kind(mnemonic: Mnemonic) -> (Kind, usize) {
    match mnemonic {
        Mnemonic::Movsb => (Kind::Move, 1),
        Mnemonic::Movsw => (Kind::Move, 2),
        Mnemonic::Movsd => (Kind::Move, 4),
        Mnemonic::Movsq => (Kind::Move, 8),
        Mnemonic::Stosb => (Kind::Store, 1),
        Mnemonic::Stosw => (Kind::Store, 2),
        Mnemonic::Stosd => (Kind::Store, 4),
        Mnemonic::Stosq => (Kind::Store, 8),
        Mnemonic::Lodsb => (Kind::Load, 1),
        Mnemonic::Lodsw => (Kind::Load, 2),
        Mnemonic::Lodsd => (Kind::Load, 4),
        Mnemonic::Lodsq => (Kind::Load, 8),
        Mnemonic::Cmpsb => (Kind::Compare, 1),
        Mnemonic::Cmpsw => (Kind::Compare, 2),
        Mnemonic::Cmpsd => (Kind::Compare, 4),
        Mnemonic::Cmpsq => (Kind::Compare, 8),
        Mnemonic::Scasw => (Kind::Scan, 2),
        Mnemonic::Scasd => (Kind::Scan, 4),
        Mnemonic::Scasq => (Kind::Scan, 8),
        _ => (Kind::Scan, 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_end_at_pages_in_both_directions() {
        for (address, size, down, count) in [
            (0x1000, 8, false, 512),
            (0x1ffc, 8, false, 1),
            (0x1ff8, 8, false, 1),
            (0x1ff0, 8, false, 2),
            (0x1000, 8, true, 1),
            (0x1008, 8, true, 2),
            (0x1ffc, 8, true, 1),
            (0x1fff, 1, true, 4096),
        ] {
            assert_eq!(elements_in_page(address, size, down), count, "{address:#x} {size} {down}");
        }
    }
}

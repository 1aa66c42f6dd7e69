//! What is known of registers and slots at an instruction of emitted code.
#![expect(clippy::wildcard_enum_match_arm, reason = "iced's codes number thousands")]

use core::mem::offset_of;

use iced_x86::{Code, ConditionCode, Instruction, OpKind, Register};
use paravane_engine::GuestMode;

use crate::bits::low32;
use crate::operand::number;
use crate::state::{Layout, Path, SHARED_SLOTS, State, tlb_index};

/// What a register or slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// Anything.
    Unknown,
    /// What the guest had in this register when its instruction began.
    Guest(u8),
    /// This.
    Constant(u64),
    /// No bits but these.
    Masked(u64),
    /// An address less the tag of the TLB entry, in the table at this address, that R15 selects ...
    Distance(u32),
    /// ... and not more than this.
    Within(u32, u32),
    /// A host address.
    Host(Reach),
    /// The address in the kick cell, its own or null.
    Kick,
    /// From the jump cache.
    Target,
}

/// The bytes around a host address that may be accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reach {
    pub(super) path: Path,
    pub(super) from: i32,
    /// One past the last.
    pub(super) to: i32,
}

impl Value {
    /// Whether no other bits than these can be set.
    pub(super) fn has_only(self, bits: u64) -> bool {
        match self {
            Self::Masked(mask) | Self::Constant(mask) => mask & !bits == 0,
            Self::Unknown
            | Self::Guest(_)
            | Self::Distance(_)
            | Self::Within(..)
            | Self::Host(_)
            | Self::Kick
            | Self::Target => false,
        }
    }

    fn merged(self, other: Self) -> Self {
        match (self, other) {
            _ if self == other => self,
            (Self::Host(a), Self::Host(b)) if a.path == b.path => {
                Self::Host(Reach { path: a.path, from: a.from.max(b.from), to: a.to.min(b.to) })
            }
            (_, _) => Self::Unknown,
        }
    }

    /// Whether it means something only together with R15.
    fn needs_selector(self) -> bool {
        matches!(self, Self::Distance(_) | Self::Within(..))
    }
}

/// What the last comparison compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compared {
    Nothing,
    /// A register with a number.
    Register(u8, u32),
    /// The tag of the TLB entry at this address with the page that it must hold.
    Entry(u32),
}

/// What is known at an instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) registers: [Value; 16],
    pub(super) spill: [Value; 4],
    shared: [Value; SHARED_SLOTS],
    compared: Compared,
    /// A TLB entry that holds the page it was asked for.
    hit: Option<u32>,
    /// Whether the guest instruction at hand has written anything that the guest can see.
    pub(super) effects: bool,
}

/// Where a 64-bit value in the state is followed.
enum Slot {
    Spill(usize),
    Shared(usize),
}

impl Known {
    /// Where a guest instruction begins and nothing else is known.
    pub(super) fn at_entry() -> Self {
        let mut registers = [Value::Unknown; 16];
        for (number, value) in (0..14).zip(&mut registers) {
            *value = Value::Guest(number);
        }
        Self {
            registers,
            spill: [Value::Unknown; 4],
            shared: [Value::Unknown; SHARED_SLOTS],
            compared: Compared::Nothing,
            hit: None,
            effects: false,
        }
    }

    /// The next guest instruction begins: its registers are what they are now.
    pub(super) fn next_instruction(&mut self) {
        let fresh = Self::at_entry();
        self.registers[..14].copy_from_slice(&fresh.registers[..14]);
        for value in self.registers[14..].iter_mut().chain(&mut self.spill).chain(&mut self.shared) {
            if matches!(value, Value::Guest(_)) || value.needs_selector() {
                *value = Value::Unknown;
            }
        }
        self.effects = false;
    }

    pub(super) fn register(&self, register: Register) -> Value {
        self.registers[usize::from(number(register))]
    }

    /// The registers that are not what the guest had in them, one bit each.
    pub(super) fn changed(&self) -> u16 {
        (0..14_u8)
            .filter(|number| self.registers[usize::from(*number)] != Value::Guest(*number))
            .fold(0, |all, number| all | 1 << number)
    }

    /// What is known if control comes from either.
    pub(super) fn merged_with(mut self, other: Option<Self>) -> Self {
        let Some(other) = other else { return self };
        let pairs = self.registers.iter_mut().zip(other.registers);
        let pairs = pairs.chain(self.spill.iter_mut().zip(other.spill));
        for (value, other) in pairs.chain(self.shared.iter_mut().zip(other.shared)) {
            *value = value.merged(other);
        }
        self.effects |= other.effects;
        self.at_jump()
    }

    /// Comparisons do not outlive jumps.
    pub(super) fn at_jump(mut self) -> Self {
        self.compared = Compared::Nothing;
        self.hit = None;
        self
    }

    /// Rust, or a walk, comes back.
    pub(super) fn without_scratch(mut self) -> Self {
        self.forget(3 << 14);
        self.at_jump()
    }

    /// Rust comes back and has kept R14.
    pub(super) fn without_selector(mut self) -> Self {
        self.forget(1 << 15);
        self.at_jump()
    }

    /// Rust comes back with a host address in R14.
    pub(super) fn with_access(self, reach: Reach) -> Self {
        let mut known = self.without_scratch();
        known.registers[14] = Value::Host(reach);
        known
    }

    /// Registers hold anything now.
    pub(super) fn forget(&mut self, registers: u16) {
        for (number, value) in self.registers.iter_mut().enumerate() {
            if registers >> number & 1 != 0 || registers >> 15 != 0 && value.needs_selector() {
                *value = Value::Unknown;
            }
        }
    }

    /// Behind a conditional jump that was not taken.
    pub(super) fn after_branch(mut self, instruction: &Instruction) -> Self {
        match (self.compared, instruction.condition_code()) {
            (Compared::Register(register, limit), ConditionCode::a) => {
                let value = &mut self.registers[usize::from(register)];
                if let Value::Distance(table) = *value {
                    *value = Value::Within(table, limit);
                }
            }
            (Compared::Entry(entry), ConditionCode::ne) => self.hit = Some(entry),
            (_, _) => {}
        }
        self.compared = Compared::Nothing;
        self
    }

    /// Behind an instruction that changes these registers.
    pub(super) fn after(&mut self, instruction: &Instruction, changed: u16, layout: Layout, mode: GuestMode) {
        let result = self.result(instruction, layout, mode);
        let compared = self.comparison(instruction, layout, mode);
        self.store(instruction, layout);
        self.forget(changed);
        if let Some(value) = result {
            self.registers[usize::from(number(instruction.op0_register()))] = value;
        }
        if compared != Compared::Nothing || instruction.rflags_modified() != 0 {
            self.compared = compared;
        }
    }

    /// What its first operand, a register, holds then.
    fn result(&self, instruction: &Instruction, layout: Layout, mode: GuestMode) -> Option<Value> {
        let absolute = absolute(instruction);
        let by_selector = by_selector(instruction, layout, mode);
        match instruction.code() {
            Code::Mov_r64_rm64 | Code::Mov_rm64_r64
                if instruction.op0_kind() == OpKind::Register
                    && instruction.op1_kind() == OpKind::Register =>
            {
                let value = self.register(instruction.op1_register());
                // A copy is checked on its own.
                Some(if value.needs_selector() { Value::Unknown } else { value })
            }
            Code::Mov_r32_imm32 | Code::Mov_r64_imm64 | Code::Mov_rm64_imm32
                if instruction.op0_kind() == OpKind::Register =>
            {
                Some(Value::Constant(instruction.immediate(1)))
            }
            Code::Movzx_r32_rm16 if instruction.op1_kind() == OpKind::Register => Some(Value::Masked(0xffff)),
            Code::And_rm32_imm32 | Code::And_rm32_imm8 if instruction.op0_kind() == OpKind::Register => {
                Some(Value::Masked(instruction.immediate(1) & 0xffff_ffff))
            }
            Code::Mov_r64_rm64 => match absolute {
                Some(address) if address == layout.kick_pointer() => Some(Value::Kick),
                Some(address) => Some(self.loaded(address, layout, mode)),
                None => None,
            },
            Code::Mov_r32_rm32 if instruction.memory_index() == Register::R15 => Some(Value::Target),
            Code::Sub_r64_rm64 => {
                by_selector.filter(|(_, host)| !host).map(|(table, _)| Value::Distance(table))
            }
            Code::Add_r64_rm64 => {
                let (table, _) = by_selector.filter(|(_, host)| *host)?;
                let path = path_of(table, layout, mode)?;
                let Value::Within(checked, last) = self.register(instruction.op0_register()) else {
                    return None;
                };
                let whole = Reach { path, from: 0, to: 4096 - last.min(4096).cast_signed() };
                (checked == table).then_some(Value::Host(whole))
            }
            _ => None,
        }
    }

    fn loaded(&self, address: u32, layout: Layout, mode: GuestMode) -> Value {
        if self.hit.is_some_and(|entry| entry + 8 == address) {
            let table = [Path::Read, Path::Write].into_iter().find(|path| {
                (layout.tlb(mode, *path)..layout.tlb(mode, *path) + 0x1_0000).contains(&address)
            });
            return table.map_or(Value::Unknown, |path| Value::Host(Reach { path, from: 0, to: 4096 }));
        }
        match slot(address, layout) {
            Some(Slot::Spill(index)) => self.spill[index],
            Some(Slot::Shared(index)) => self.shared[index],
            None => Value::Unknown,
        }
    }

    fn comparison(&self, instruction: &Instruction, layout: Layout, mode: GuestMode) -> Compared {
        match instruction.code() {
            Code::Cmp_rm64_imm32 | Code::Cmp_rm64_imm8 if instruction.op0_kind() == OpKind::Register => {
                let limit = u32::try_from(instruction.immediate(1)).unwrap_or(u32::MAX);
                Compared::Register(number(instruction.op0_register()), limit)
            }
            Code::Cmp_rm64_imm32 => self.tag(absolute(instruction), instruction.immediate(1), layout, mode),
            Code::Cmp_r64_rm64 => match self.register(instruction.op0_register()) {
                Value::Constant(page) => self.tag(absolute(instruction), page, layout, mode),
                Value::Unknown
                | Value::Guest(_)
                | Value::Masked(_)
                | Value::Distance(_)
                | Value::Within(..)
                | Value::Host(_)
                | Value::Kick
                | Value::Target => Compared::Nothing,
            },
            _ => Compared::Nothing,
        }
    }

    /// The entry at an address is compared with a page that selects it.
    fn tag(&self, address: Option<u32>, page: u64, layout: Layout, mode: GuestMode) -> Compared {
        let selected = |path| layout.tlb(mode, path) + low32(tlb_index(page) as u64 * 16);
        match address {
            Some(address)
                if page & 0xfff == 0
                    && (address == selected(Path::Read) || address == selected(Path::Write)) =>
            {
                Compared::Entry(address)
            }
            Some(_) | None => Compared::Nothing,
        }
    }

    /// Follows values into slots.
    fn store(&mut self, instruction: &Instruction, layout: Layout) {
        if instruction.op0_kind() != OpKind::Memory {
            return;
        }
        let Some(slot) = absolute(instruction).and_then(|address| slot(address, layout)) else { return };
        let whole = instruction.code() == Code::Mov_rm64_r64;
        let value = if whole { self.register(instruction.op1_register()) } else { Value::Unknown };
        let value = if value.needs_selector() { Value::Unknown } else { value };
        match slot {
            Slot::Spill(index) => self.spill[index] = value,
            Slot::Shared(index) => self.shared[index] = value,
        }
    }
}

/// The address of an operand without registers.
fn absolute(instruction: &Instruction) -> Option<u32> {
    let is_memory = (0..instruction.op_count()).any(|op| instruction.op_kind(op) == OpKind::Memory);
    let plain = instruction.memory_base() == Register::None && instruction.memory_index() == Register::None;
    (is_memory && plain).then(|| low32(instruction.memory_displacement64()))
}

/// The table of an operand in the TLB entry that R15 selects, and whether it is the entry's host address.
fn by_selector(instruction: &Instruction, layout: Layout, mode: GuestMode) -> Option<(u32, bool)> {
    let is_entry = instruction.op1_kind() == OpKind::Memory
        && instruction.memory_base() == Register::R15
        && instruction.memory_index() == Register::None;
    let address = low32(instruction.memory_displacement64());
    let tables = [Path::Read, Path::Write].map(|path| layout.tlb(mode, path));
    let table = tables.into_iter().find(|table| address == *table || address == table + 8);
    table.filter(|_| is_entry).map(|table| (table, address != table))
}

fn path_of(table: u32, layout: Layout, mode: GuestMode) -> Option<Path> {
    [Path::Read, Path::Write].into_iter().find(|path| layout.tlb(mode, *path) == table)
}

/// The followed slot that an address is in.
fn slot(address: u32, layout: Layout) -> Option<Slot> {
    let within = |offset: usize, count: usize| {
        let index = (address.checked_sub(layout.field(offset))? / 8) as usize;
        (index < count).then_some(index)
    };
    let spill = within(offset_of!(State, spill), 4).map(Slot::Spill);
    spill.or_else(|| within(offset_of!(State, shared), SHARED_SLOTS).map(Slot::Shared))
}

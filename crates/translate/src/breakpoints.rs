//! Breakpoints in the debug registers.
//!
//! While DR7 enables any, each instruction is a block of its own. Before it runs its address is compared with the
//! instruction breakpoints, which fault, and its memory operands with the data breakpoints, which trap when it has
//! completed. All that costs is the speed of a guest that debugs itself.
//!
//! Source: Intel SDM vol. 3, "Debug Registers" and "Breakpoint Exceptions".

use iced_x86::{Instruction, OpAccess, Register, UsedMemory};
use paravane_engine::{Exception, Exit, Gpr, SegmentRegister, VcpuContext, rflags, vector};

use crate::engine::Translator;

/// DR6.BS: a single step.
const SINGLE_STEP: u64 = 1 << 14;
/// DR7.L0 to DR7.G3: which breakpoints are enabled.
const ENABLED: u64 = 0xff;

/// What a breakpoint waits for, by its R/W field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Execute,
    Write,
    /// I/O with CR4.DE set. There are no ports that could be hit.
    Io,
    Access,
}

/// One enabled breakpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Breakpoint {
    number: u32,
    kind: Kind,
    address: u64,
    bytes: u64,
}

/// What completes with an instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Watch {
    /// Whether anything is watched at all.
    active: bool,
    /// Bits of DR6 to set when the instruction has completed.
    hits: u64,
    /// Whether the instruction loads RF itself, so that it stays.
    keeps_resume_flag: bool,
    /// Whether the instruction loads SS, so that nothing is reported before the next one has completed.
    inhibits: bool,
}

/// The enabled breakpoints of DR0 to DR3 and DR7.
fn breakpoints(debug: &[u64; 8]) -> impl Iterator<Item = Breakpoint> + use<> {
    let debug = *debug;
    let control = debug[7];
    (0..4_u32).filter(move |number| control >> (2 * number) & 3 != 0).map(move |number| {
        let field = control >> (16 + 4 * number);
        let kind = match field & 3 {
            0 => Kind::Execute,
            1 => Kind::Write,
            2 => Kind::Io,
            _ => Kind::Access,
        };
        let bytes = match field >> 2 & 3 {
            0 => 1,
            1 => 2,
            2 => 8,
            _ => 4,
        };
        // The address bits below the length are ignored.
        Breakpoint { number, kind, address: debug[number as usize] & !(bytes - 1), bytes }
    })
}

/// Whether `context` has breakpoints.
pub(crate) fn watched(context: &VcpuContext) -> bool {
    context.debug[7] & ENABLED != 0
}

impl Translator {
    /// Looks at the instruction at `rip` before it runs; `stepped` says that TF is set, `last` is what the instruction
    /// before it left.
    ///
    /// # Errors
    ///
    /// #DB of an instruction breakpoint, or what fetching the instruction leads to.
    pub(crate) fn watch(&mut self, rip: u64, stepped: bool, last: Watch) -> Result<Watch, Exit> {
        let context = &self.cpu.state().context;
        if !watched(context) {
            // Of two loads of SS in a row the second inhibits nothing.
            let inhibits =
                stepped && !last.inhibits && self.instruction_at(rip).is_ok_and(|it| loads_stack(&it));
            return Ok(Watch { inhibits, ..Watch::default() });
        }
        let debug = context.debug;
        let hits = hits(&debug, |breakpoint| breakpoint.kind == Kind::Execute && breakpoint.address == rip);
        if hits != 0 && context.rflags & rflags::RF == 0 && !last.inhibits {
            let context = &mut self.cpu.state_mut().context;
            // Set in the frame, so that the instruction runs when the handler returns to it.
            context.rflags |= rflags::RF;
            return Err(debug_exception(context, hits));
        }
        let instruction = self.instruction_at(rip)?;
        let keeps_resume_flag = matches!(
            instruction.mnemonic(),
            iced_x86::Mnemonic::Iret | iced_x86::Mnemonic::Iretd | iced_x86::Mnemonic::Iretq
        );
        let accesses = self.accesses(&instruction);
        let hits = self::hits(&debug, |breakpoint| {
            accesses.iter().any(|access| match breakpoint.kind {
                Kind::Execute | Kind::Io => false,
                Kind::Write => access.writes && access.touches(breakpoint),
                Kind::Access => access.touches(breakpoint),
            })
        });
        let held = if last.inhibits { last.hits } else { 0 };
        let inhibits = !last.inhibits && loads_stack(&instruction);
        Ok(Watch { active: true, hits: hits | held, keeps_resume_flag, inhibits })
    }

    /// Reports what an instruction that has completed hit; `stepped` says that TF was set when it began.
    ///
    /// # Errors
    ///
    /// #DB.
    pub(crate) fn completed(&mut self, watch: Watch, stepped: bool) -> Result<(), Exit> {
        let context = &mut self.cpu.state_mut().context;
        if watch.active && !watch.keeps_resume_flag {
            context.rflags &= !rflags::RF;
        }
        if watch.inhibits {
            return Ok(());
        }
        let step = if stepped { SINGLE_STEP } else { 0 };
        match watch.hits | step {
            0 => Ok(()),
            bits => Err(debug_exception(context, bits)),
        }
    }

    /// The linear addresses that an instruction is going to access.
    fn accesses(&mut self, instruction: &Instruction) -> Vec<Access> {
        let context = &self.cpu.state().context;
        let repeats = instruction.has_rep_prefix() || instruction.has_repne_prefix();
        if instruction.is_string_instruction() && repeats && context.gpr(Gpr::Rcx) == 0 {
            return Vec::new();
        }
        let used: Vec<UsedMemory> = self.emitter.factory.info(instruction).used_memory().to_vec();
        let context = &self.cpu.state().context;
        used.iter().filter_map(|memory| Access::of(memory, context)).collect()
    }
}

/// A range of linear addresses.
struct Access {
    address: u64,
    bytes: u64,
    writes: bool,
}

impl Access {
    fn of(memory: &UsedMemory, context: &VcpuContext) -> Option<Self> {
        let writes = match memory.access() {
            OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite => true,
            OpAccess::Read | OpAccess::CondRead => false,
            OpAccess::None | OpAccess::NoMemAccess => return None,
        };
        let address = memory.virtual_address(0, |register, _, _| value(context, register))?;
        // Those of no fixed size, such as XSAVE's, count with their first byte.
        Some(Self { address, bytes: (memory.memory_size().size() as u64).max(1), writes })
    }

    fn touches(&self, breakpoint: &Breakpoint) -> bool {
        let below = self.address.wrapping_sub(breakpoint.address) < breakpoint.bytes;
        below || breakpoint.address.wrapping_sub(self.address) < self.bytes
    }
}

/// A register as an address is made of it.
fn value(context: &VcpuContext, register: Register) -> Option<u64> {
    const SEGMENTS: [(Register, SegmentRegister); 6] = [
        (Register::ES, SegmentRegister::Es),
        (Register::CS, SegmentRegister::Cs),
        (Register::SS, SegmentRegister::Ss),
        (Register::DS, SegmentRegister::Ds),
        (Register::FS, SegmentRegister::Fs),
        (Register::GS, SegmentRegister::Gs),
    ];
    if let Some((_, segment)) = SEGMENTS.into_iter().find(|(name, _)| *name == register) {
        // In 64-bit mode only FS and GS have bases.
        let based = matches!(segment, SegmentRegister::Fs | SegmentRegister::Gs) || !context.is_64_bit();
        return Some(if based { context.segment(segment).base } else { 0 });
    }
    if !register.is_gpr() {
        return None;
    }
    let full = Gpr::ALL.get(register.full_register().number()).map(|gpr| context.gpr(*gpr))?;
    Some(match register.size() {
        8 => full,
        4 => full & 0xffff_ffff,
        _ => full & 0xffff,
    })
}

/// MOV SS and POP SS hold back debug exceptions, LSS does not. Intel SDM vol. 3A, "Masking Exceptions and Interrupts
/// When Switching Stacks".
fn loads_stack(instruction: &Instruction) -> bool {
    instruction.op0_register() == Register::SS
        && matches!(instruction.mnemonic(), iced_x86::Mnemonic::Mov | iced_x86::Mnemonic::Pop)
}

/// The bits of DR6 of those breakpoints that `hit` says.
fn hits(debug: &[u64; 8], hit: impl Fn(&Breakpoint) -> bool) -> u64 {
    breakpoints(debug).filter(hit).map(|breakpoint| 1 << breakpoint.number).sum()
}

fn debug_exception(context: &mut VcpuContext, bits: u64) -> Exit {
    context.debug[6] |= bits;
    Exit::Exception(Exception { vector: vector::DEBUG, error_code: None })
}

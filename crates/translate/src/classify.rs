//! What kind of treatment an instruction needs.
//!
//! The decision comes from what iced-x86 knows of an instruction: flow control, privilege, operand kinds, how its
//! memory operand is accessed. Only instructions whose semantics those facts do not show are named here.
//! Everything else is copied, with its memory operand and the two stolen registers replaced.
#![expect(clippy::wildcard_enum_match_arm, reason = "iced's enums number thousands of members")]

use iced_x86::{
    CpuidFeature, EncodingKind, FlowControl, Instruction, InstructionInfoFactory, InstructionInfoOptions,
    Mnemonic, OpAccess, OpKind, Register,
};

use crate::emit::Bits;
use crate::presence::Present;
use crate::state::Path;

/// The treatment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Does nothing that a guest can see: prefetches, hints with operands.
    Nothing,
    /// No memory: copied.
    Plain,
    /// LEA: an address, no access.
    Lea,
    /// One explicit memory operand.
    Memory(Operand),
    /// Pushes and pops, near.
    Stack(StackOp),
    /// Near control flow.
    Flow(Flow),
    /// State that translated code keeps in memory.
    Register(StateOp),
    /// MOVS and STOS, with and without REP: in place within a page, by Rust otherwise.
    Move,
    /// Performed by Rust.
    Helper(Helper),
}

/// An explicit memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Operand {
    /// Bytes accessed, 1 to 512.
    pub(crate) size: u32,
    /// Read or write.
    pub(crate) path: Path,
    /// How the address is made.
    pub(crate) address: AddressKind,
}

/// How an operand's address is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AddressKind {
    /// ModRM and SIB, or an absolute address.
    Usual,
    /// A bit test with a register: the register's upper bits select the word.
    BitOffset,
    /// XLAT: rBX plus AL.
    Table,
}

/// Near stack operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StackOp {
    Push,
    Pop,
    Leave,
    /// PUSHF of all 64 bits.
    PushFlags,
}

/// Near control flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    Jump,
    JumpIndirect,
    Conditional,
    /// LOOP, LOOPcc, JrCXZ.
    Counted,
    Call,
    CallIndirect,
    Return,
}

/// Instructions on state that lives in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StateOp {
    ClearDirection,
    SetDirection,
    ReadBase,
    /// MOV from a segment register to a general one.
    ReadSelector,
    TimeAndNumber,
    ProcessorNumber,
    /// RDTSC: plain unless CR4.TSD is set.
    Time,
}

/// What Rust performs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Helper {
    /// MOVS, CMPS, STOS, LODS, SCAS, with and without REP.
    String,
    /// ENTER.
    Enter,
    /// PUSHF of fewer than 64 bits.
    PushFlags,
    /// POPF.
    PopFlags,
    /// PUSHA and POPA.
    AllRegisters,
    /// MOV to and from segment registers, PUSH and POP of them, LDS and relatives.
    Segment,
    /// Far JMP and CALL.
    FarTransfer,
    /// Far RET.
    FarReturn,
    /// IRET.
    InterruptReturn,
    /// LAR, LSL, VERR, VERW, ARPL.
    Selector,
    /// SGDT, SIDT, SLDT, STR, SMSW.
    StoreTable,
    /// WRFSBASE and WRGSBASE.
    WriteBase,
    /// XGETBV.
    ReadControl,
    /// XSAVE, XRSTOR and relatives.
    SaveState,
    /// FXSAVE and FXRSTOR of 32-bit code.
    SaveLegacy,
    /// VZEROALL and VZEROUPPER of 32-bit code.
    ZeroVectors,
    /// Near branches of 32-bit code that cut EIP or count in CX, and all of those that may miss a limit.
    Branch,
    /// Gathers and scatters.
    Elements,
    /// MASKMOVQ and MASKMOVDQU.
    MaskedMove,
    /// BOUND and INTO.
    Check,
    /// Decimal adjustments and SALC: 32-bit code only.
    Decimal,
    /// INT, INT3, INT1.
    Interrupt,
    /// SYSCALL and SYSENTER.
    SystemCall,
    /// Needs the hypervisor.
    Privileged,
    /// #UD.
    Undefined,
    /// An x87, SSE or AVX instruction while CR0.TS is set.
    NoDevice,
}

impl Helper {
    /// Whether the next instruction must be looked up afresh, because the helper can change where or how it runs.
    pub(crate) fn ends_block(self) -> bool {
        match self {
            Self::PopFlags
            | Self::Segment
            | Self::FarTransfer
            | Self::FarReturn
            | Self::InterruptReturn
            | Self::Check
            | Self::Interrupt
            | Self::SystemCall
            | Self::Privileged
            | Self::Undefined
            | Self::Branch
            | Self::NoDevice => true,
            Self::String
            | Self::Enter
            | Self::PushFlags
            | Self::AllRegisters
            | Self::Selector
            | Self::StoreTable
            | Self::WriteBase
            | Self::ReadControl
            | Self::SaveState
            | Self::SaveLegacy
            | Self::ZeroVectors
            | Self::Elements
            | Self::MaskedMove
            | Self::Decimal => false,
        }
    }
}

/// What the CPU's mode makes of instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    /// CR0.TS.
    pub(crate) task_switched: bool,
    /// CR4.FSGSBASE.
    pub(crate) segment_bases: bool,
    /// CR4.OSXSAVE.
    pub(crate) extended_state: bool,
    /// Whether XCR0 enables AVX.
    pub(crate) avx: bool,
    /// Whether XCR0 enables AVX-512.
    pub(crate) avx512: bool,
    /// Whether code is 64-bit or 32-bit.
    pub(crate) bits: Bits,
    /// Whether the code segment has a limit that a target can miss.
    pub(crate) limited: bool,
    /// Whether the CPU follows AMD where it differs from Intel.
    pub(crate) is_amd: bool,
    /// Features that instructions may use.
    pub(crate) present: Present,
}

/// Decides.
pub(crate) fn classify(
    instruction: &Instruction,
    factory: &mut InstructionInfoFactory,
    rules: Rules,
) -> Class {
    // Without shadow stacks these do nothing.
    if matches!(instruction.mnemonic(), Mnemonic::Rdsspd | Mnemonic::Rdsspq) {
        return Class::Nothing;
    }
    if instruction.is_invalid() || undefined(instruction, rules) {
        return Class::Helper(Helper::Undefined);
    }
    if rules.task_switched && uses_fpu(instruction) {
        return Class::Helper(Helper::NoDevice);
    }
    if rules.bits == Bits::B32
        && let Some(helper) = named_in_32_bit_code(instruction, rules.limited)
    {
        return Class::Helper(helper);
    }
    if let Some(class) = named(instruction) {
        return class;
    }
    if instruction.op_code().must_be_cpl0() {
        return Class::Helper(Helper::Privileged);
    }
    if instruction.is_string_instruction() {
        return if is_move(instruction) { Class::Move } else { Class::Helper(Helper::String) };
    }
    if instruction.is_vsib() {
        return Class::Helper(Helper::Elements);
    }
    if (0..instruction.op_count()).any(|op| is_segment_register(instruction, op)) {
        let reads = instruction.mnemonic() == Mnemonic::Mov
            && instruction.op0_kind() == OpKind::Register
            && instruction.op0_register().is_gpr();
        return if reads { Class::Register(StateOp::ReadSelector) } else { Class::Helper(Helper::Segment) };
    }
    by_operands(instruction, factory)
}

/// Instructions that reach fewer registers in 32-bit code than in the 64-bit code they would be copied to.
fn named_in_32_bit_code(instruction: &Instruction, limited: bool) -> Option<Helper> {
    match instruction.mnemonic() {
        Mnemonic::Fxsave | Mnemonic::Fxrstor => Some(Helper::SaveLegacy),
        Mnemonic::Vzeroall | Mnemonic::Vzeroupper => Some(Helper::ZeroVectors),
        _ if near_flow(instruction).is_some() => {
            let info = instruction.op_code();
            let counts_in_cx = near_flow(instruction) == Some(Flow::Counted) && info.address_size() == 16;
            (limited || info.operand_size() == 16 || counts_in_cx).then_some(Helper::Branch)
        }
        _ => None,
    }
}

/// Instructions that their names decide.
fn named(instruction: &Instruction) -> Option<Class> {
    let class = match instruction.mnemonic() {
        Mnemonic::Lea => Class::Lea,
        Mnemonic::Prefetchit0
        | Mnemonic::Prefetchit1
        | Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2
        | Mnemonic::Prefetchw
        | Mnemonic::Prefetchwt1
        | Mnemonic::Prefetch
        | Mnemonic::Cldemote
        // Bounds are not enabled, so these do nothing.
        | Mnemonic::Bndmk
        | Mnemonic::Bndcl
        | Mnemonic::Bndcu
        | Mnemonic::Bndcn
        | Mnemonic::Bndmov
        | Mnemonic::Bndldx
        | Mnemonic::Bndstx
        | Mnemonic::Nop
        | Mnemonic::Reservednop => Class::Nothing,
        Mnemonic::Cld => Class::Register(StateOp::ClearDirection),
        Mnemonic::Std => Class::Register(StateOp::SetDirection),
        Mnemonic::Rdfsbase | Mnemonic::Rdgsbase => Class::Register(StateOp::ReadBase),
        Mnemonic::Rdtsc => Class::Register(StateOp::Time),
        Mnemonic::Rdtscp => Class::Register(StateOp::TimeAndNumber),
        Mnemonic::Rdpid => Class::Register(StateOp::ProcessorNumber),
        Mnemonic::Leave => Class::Stack(StackOp::Leave),
        Mnemonic::Pushfq => Class::Stack(StackOp::PushFlags),
        Mnemonic::Push | Mnemonic::Pop if !is_segment_register(instruction, 0) => {
            let push = instruction.mnemonic() == Mnemonic::Push;
            Class::Stack(if push { StackOp::Push } else { StackOp::Pop })
        }
        Mnemonic::Xlatb => Class::Memory(Operand { size: 1, path: Path::Read, address: AddressKind::Table }),
        _ => return named_helper(instruction.mnemonic()).map(Class::Helper),
    };
    Some(class)
}

/// Instructions that Rust performs, by name.
fn named_helper(mnemonic: Mnemonic) -> Option<Helper> {
    let helper = match mnemonic {
        Mnemonic::Wrfsbase | Mnemonic::Wrgsbase => Helper::WriteBase,
        Mnemonic::Enter => Helper::Enter,
        Mnemonic::Pushf | Mnemonic::Pushfd => Helper::PushFlags,
        Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => Helper::PopFlags,
        Mnemonic::Pusha | Mnemonic::Pushad | Mnemonic::Popa | Mnemonic::Popad => Helper::AllRegisters,
        Mnemonic::Lds | Mnemonic::Les | Mnemonic::Lfs | Mnemonic::Lgs | Mnemonic::Lss => Helper::Segment,
        Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq => Helper::InterruptReturn,
        Mnemonic::Retf => Helper::FarReturn,
        Mnemonic::Lar | Mnemonic::Lsl | Mnemonic::Verr | Mnemonic::Verw | Mnemonic::Arpl => Helper::Selector,
        Mnemonic::Sgdt | Mnemonic::Sidt | Mnemonic::Sldt | Mnemonic::Str | Mnemonic::Smsw => {
            Helper::StoreTable
        }
        Mnemonic::Xgetbv => Helper::ReadControl,
        Mnemonic::Xsave
        | Mnemonic::Xsave64
        | Mnemonic::Xsavec
        | Mnemonic::Xsavec64
        | Mnemonic::Xsaveopt
        | Mnemonic::Xsaveopt64
        | Mnemonic::Xrstor
        | Mnemonic::Xrstor64 => Helper::SaveState,
        Mnemonic::Maskmovq | Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu => Helper::MaskedMove,
        Mnemonic::Bound | Mnemonic::Into => Helper::Check,
        Mnemonic::Aaa
        | Mnemonic::Aas
        | Mnemonic::Aad
        | Mnemonic::Aam
        | Mnemonic::Daa
        | Mnemonic::Das
        | Mnemonic::Salc => Helper::Decimal,
        Mnemonic::Int | Mnemonic::Int1 | Mnemonic::Int3 => Helper::Interrupt,
        Mnemonic::Syscall | Mnemonic::Sysenter => Helper::SystemCall,
        Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 => Helper::Undefined,
        Mnemonic::Cpuid
        | Mnemonic::In
        | Mnemonic::Out
        | Mnemonic::Insb
        | Mnemonic::Insw
        | Mnemonic::Insd
        | Mnemonic::Outsb
        | Mnemonic::Outsw
        | Mnemonic::Outsd
        | Mnemonic::Cli
        | Mnemonic::Sti
        | Mnemonic::Rdpmc
        | Mnemonic::Xsetbv => Helper::Privileged,
        _ => return None,
    };
    Some(helper)
}

/// What kind of near branch an instruction is.
fn near_flow(instruction: &Instruction) -> Option<Flow> {
    if is_far(instruction) {
        return None;
    }
    match instruction.flow_control() {
        FlowControl::UnconditionalBranch => Some(Flow::Jump),
        FlowControl::IndirectBranch => Some(Flow::JumpIndirect),
        FlowControl::ConditionalBranch if instruction.is_jcc_short_or_near() => Some(Flow::Conditional),
        FlowControl::ConditionalBranch => Some(Flow::Counted),
        FlowControl::Return => (instruction.mnemonic() == Mnemonic::Ret).then_some(Flow::Return),
        FlowControl::Call if named(instruction).is_none() => Some(Flow::Call),
        FlowControl::IndirectCall => Some(Flow::CallIndirect),
        FlowControl::Call
        | FlowControl::Next
        | FlowControl::Interrupt
        | FlowControl::XbeginXabortXend
        | FlowControl::Exception => None,
    }
}

fn is_far(instruction: &Instruction) -> bool {
    instruction.is_call_far()
        || instruction.is_jmp_far()
        || instruction.is_call_far_indirect()
        || instruction.is_jmp_far_indirect()
}

/// Instructions that their flow control and operands decide.
fn by_operands(instruction: &Instruction, factory: &mut InstructionInfoFactory) -> Class {
    if is_far(instruction) {
        return Class::Helper(Helper::FarTransfer);
    }
    if let Some(flow) = near_flow(instruction) {
        return Class::Flow(flow);
    }
    if instruction.flow_control() != FlowControl::Next {
        return Class::Helper(Helper::Undefined);
    }
    let Some(memory) = (0..instruction.op_count()).find(|op| instruction.op_kind(*op) == OpKind::Memory)
    else {
        return Class::Plain;
    };
    let options = InstructionInfoOptions::NO_REGISTER_USAGE | InstructionInfoOptions::NO_MEMORY_USAGE;
    let path = match factory.info_options(instruction, options).op_access(memory) {
        OpAccess::None | OpAccess::NoMemAccess => return Class::Nothing,
        OpAccess::Read | OpAccess::CondRead => Path::Read,
        OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite => Path::Write,
    };
    let bit_test =
        matches!(instruction.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc);
    let address = if bit_test && instruction.op1_kind() == OpKind::Register {
        AddressKind::BitOffset
    } else {
        AddressKind::Usual
    };
    match operand_size(instruction) {
        0 => Class::Helper(Helper::Undefined),
        size => Class::Memory(Operand { size, path, address }),
    }
}

/// Bytes that the memory operand covers.
pub(crate) fn operand_size(instruction: &Instruction) -> u32 {
    let size = instruction.memory_size();
    let bytes = if instruction.is_broadcast() { size.element_size() } else { size.size() };
    u32::try_from(bytes).unwrap_or(0)
}

/// Whether a string instruction only moves bytes, with addresses as wide as pointers and a source that has no base.
fn is_move(instruction: &Instruction) -> bool {
    let based = matches!(instruction.segment_prefix(), Register::FS | Register::GS);
    let wide = (0..instruction.op_count())
        .all(|op| !matches!(instruction.op_kind(op), OpKind::MemorySegESI | OpKind::MemoryESEDI));
    let moves = matches!(
        instruction.mnemonic(),
        Mnemonic::Movsb
            | Mnemonic::Movsw
            | Mnemonic::Movsd
            | Mnemonic::Movsq
            | Mnemonic::Stosb
            | Mnemonic::Stosw
            | Mnemonic::Stosd
            | Mnemonic::Stosq
    );
    moves && wide && !based
}

fn is_segment_register(instruction: &Instruction, operand: u32) -> bool {
    operand < instruction.op_count()
        && instruction.op_kind(operand) == OpKind::Register
        && instruction.op_register(operand).is_segment_register()
}

/// Instructions that do not exist on the CPU that a guest sees, in the mode it is in.
fn undefined(instruction: &Instruction, rules: Rules) -> bool {
    let features = instruction.cpuid_features();
    if !features.iter().all(|feature| rules.present.has(*feature)) {
        return true;
    }
    let needs = |feature: CpuidFeature| features.contains(&feature);
    if needs(CpuidFeature::FSGSBASE) && !rules.segment_bases {
        return true;
    }
    let saves_state =
        needs(CpuidFeature::XSAVE) || needs(CpuidFeature::XSAVEC) || needs(CpuidFeature::XSAVEOPT);
    if saves_state && !rules.extended_state && instruction.mnemonic() != Mnemonic::Xsetbv {
        return true;
    }
    if rules.bits == Bits::B32 && !rules.is_amd {
        // On Intel's processors SYSCALL and SYSRET are of 64-bit code only.
        if matches!(instruction.mnemonic(), Mnemonic::Syscall | Mnemonic::Sysret) {
            return true;
        }
    }
    match instruction.code().encoding() {
        EncodingKind::EVEX => !(rules.extended_state && rules.avx512),
        EncodingKind::VEX
            if needs(CpuidFeature::AVX512F)
                || needs(CpuidFeature::AVX512BW)
                || needs(CpuidFeature::AVX512DQ) =>
        {
            !(rules.extended_state && rules.avx512)
        }
        EncodingKind::VEX
            if needs(CpuidFeature::BMI1) || needs(CpuidFeature::BMI2) || needs(CpuidFeature::CMPCCXADD) =>
        {
            false
        }
        EncodingKind::VEX | EncodingKind::XOP => !(rules.extended_state && rules.avx),
        _ => false,
    }
}

/// Whether CR0.TS makes the instruction raise #NM.
fn uses_fpu(instruction: &Instruction) -> bool {
    let vector = |register: Register| {
        register.is_vector_register() || register.is_k() || register.is_mm() || register.is_st()
    };
    if matches!(instruction.mnemonic(), Mnemonic::Xgetbv | Mnemonic::Xsetbv) {
        return false;
    }
    instruction.is_save_restore_instruction()
        || instruction.cpuid_features().iter().any(|feature| {
            matches!(
                feature,
                CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387 | CpuidFeature::MMX
            )
        })
        || matches!(instruction.mnemonic(), Mnemonic::Ldmxcsr | Mnemonic::Stmxcsr | Mnemonic::Emms)
        || (0..instruction.op_count())
            .any(|op| instruction.op_kind(op) == OpKind::Register && vector(instruction.op_register(op)))
}

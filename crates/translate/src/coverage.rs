//! What the translator does with every instruction form that the decoder knows: the tables of `classify`
//! and `presence`, asked once for each form.
//!
//! `docs/translator-coverage.md` is written from this, so it says the same on every host: which of the forms a given host
//! can run depends on its CPUID, which the tests print.

#![expect(clippy::wildcard_enum_match_arm, reason = "iced's enums number thousands of members")]

use std::collections::BTreeMap;

use iced_x86::{
    Code, CpuidFeature, Instruction, InstructionInfoFactory, OpCodeOperandKind, OpKind, Register,
};

use crate::classify::{Class, Helper, Rules, classify};
use crate::emit::Bits;
use crate::presence::{FEATURES, Presence, Present};

/// What happens to an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Treatment {
    /// The host's CPU performs it, with operands and registers replaced.
    Copied,
    /// A branch, made of the translator's own jumps.
    Branch,
    /// It does nothing that a guest can see.
    Nothing,
    /// Rust performs it.
    Software,
    /// It ends the run: the hypervisor performs it as Xen does for PV guests, or delivers what it raises.
    Hypervisor,
    /// #UD, and why.
    Undefined(&'static str),
}

/// Where a guest can see something else than on a CPU.
pub const INEXACT: [&str; 7] = [
    "The x87 unit's data pointer (FDP) is the host's on processors that still keep it for every instruction.",
    "16-bit code segments run as 32-bit ones, and a stack segment whose B bit is clear uses ESP, not SP.",
    "With EFLAGS.AC set, masked vector operands, broadcasts, conversions of half-precision numbers, MMX stores and x87 \
     stores that an unmasked exception prevents are checked for alignment as if they were one plain access; XSAVE and its \
     relatives raise #GP before #AC.",
    "Of IRETQ frames that are not aligned, with EFLAGS.AC set, the first word faults.",
    "A store of ten bytes (FSTP, FBSTP) whose last two fault leaves nothing; some processors leave the first eight.",
    "CLFLUSH, CLFLUSHOPT and CLWB of an address in a code segment that cannot be read fault.",
    "How far an instruction got whose fault lies in the middle of it (gathers, ENTER), and flags that are undefined in \
     the manuals, are as on Intel's processors, which the tests compare with.",
];

/// A mnemonic's forms that are treated alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The mnemonic, in capitals.
    pub mnemonic: String,
    /// Number of forms (opcode, operand and prefix combinations).
    pub forms: usize,
}

/// A CPUID feature that instructions need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureRow {
    /// Its name.
    pub name: String,
    /// The CPUID bit that the host must have, as `leaf.subleaf:register[bit]`.
    pub bit: String,
}

/// All forms that a guest's code can contain, by treatment and mnemonic.
pub fn coverage() -> BTreeMap<Treatment, Vec<Row>> {
    let mut counts: BTreeMap<Treatment, BTreeMap<String, usize>> = BTreeMap::new();
    for code in forms() {
        let mnemonic = format!("{:?}", code.mnemonic()).to_uppercase();
        *counts.entry(treatment(code)).or_default().entry(mnemonic).or_default() += 1;
    }
    let rows = |mnemonics: BTreeMap<String, usize>| {
        mnemonics.into_iter().map(|(mnemonic, forms)| Row { mnemonic, forms }).collect()
    };
    counts.into_iter().map(|(treatment, mnemonics)| (treatment, rows(mnemonics))).collect()
}

/// The features that depend on the host.
pub fn host_features() -> Vec<FeatureRow> {
    let row = |(feature, presence): &(CpuidFeature, Presence)| match presence {
        Presence::Host(leaf, subleaf, register, bit) => {
            let register = ["EAX", "EBX", "ECX", "EDX"][usize::from(*register)];
            let bit = format!("{leaf:#x}.{subleaf}:{register}[{bit}]");
            Some(FeatureRow { name: format!("{feature:?}"), bit })
        }
        Presence::Always | Presence::Never(_) => None,
    };
    FEATURES.iter().filter_map(row).collect()
}

/// Every form of 64-bit or 32-bit code.
fn forms() -> impl Iterator<Item = Code> {
    Code::values().filter(|code| {
        let info = code.op_code();
        *code != Code::INVALID && info.is_instruction() && (info.mode64() || info.mode32())
    })
}

/// Decides for one form, on a CPU that has everything which is ever offered.
fn treatment(code: Code) -> Treatment {
    if let Some(why) = never(code) {
        return Treatment::Undefined(why);
    }
    let mut factory = InstructionInfoFactory::new();
    match classify(&sample(code, true), &mut factory, rules(code)) {
        Class::Nothing => Treatment::Nothing,
        Class::Flow(_) => Treatment::Branch,
        Class::Helper(Helper::Undefined | Helper::NoDevice) => Treatment::Undefined("undefined by its maker"),
        Class::Helper(Helper::Privileged | Helper::Interrupt | Helper::SystemCall) => Treatment::Hypervisor,
        Class::Helper(_) => Treatment::Software,
        Class::Plain | Class::Lea | Class::Memory(_) | Class::Stack(_) | Class::Register(_) | Class::Move => {
            Treatment::Copied
        }
    }
}

fn never(code: Code) -> Option<&'static str> {
    // Without shadow stacks these do nothing.
    if matches!(code, Code::Rdsspd_r32 | Code::Rdsspq_r64) {
        return None;
    }
    code.cpuid_features().iter().find_map(|needed| {
        FEATURES.iter().find(|(feature, _)| feature == needed).and_then(|(_, presence)| match presence {
            Presence::Never(why) => Some(*why),
            Presence::Always | Presence::Host(..) => None,
        })
    })
}

fn rules(code: Code) -> Rules {
    Rules {
        task_switched: false,
        segment_bases: true,
        extended_state: true,
        avx: true,
        avx512: true,
        bits: if code.op_code().mode64() { Bits::B64 } else { Bits::B32 },
        limited: false,
        is_amd: true,
        present: Present::everything(),
    }
}

/// An instruction of the form, with operands of the right kinds, in memory where they may be.
fn sample(code: Code, in_memory: bool) -> Instruction {
    use OpCodeOperandKind as Kind;
    let info = code.op_code();
    let mut instruction = Instruction::default();
    instruction.set_code(code);
    for op in 0..info.op_count() {
        let kind = info.op_kind(op);
        let name = format!("{kind:?}");
        let either = name.contains("_or_mem") && in_memory;
        let kind = match kind {
            _ if either || name.starts_with("mem") || matches!(kind, Kind::sibmem | Kind::seg_rBX_al) => {
                instruction.set_memory_base(if info.mode64() { Register::RBX } else { Register::EBX });
                OpKind::Memory
            }
            Kind::seg_rSI => OpKind::MemorySegESI,
            Kind::seg_rDI => OpKind::MemorySegEDI,
            Kind::es_rDI => OpKind::MemoryESEDI,
            _ if name.starts_with("imm") => OpKind::Immediate8,
            _ if name.starts_with("br") || name.starts_with("xbegin") => OpKind::NearBranch64,
            _ if name.starts_with("farbr") => OpKind::FarBranch32,
            _ => OpKind::Register,
        };
        instruction.set_op_kind(op, kind);
        if kind == OpKind::Register {
            instruction.set_op_register(op, register(&name));
        }
    }
    instruction
}

fn register(kind: &str) -> Register {
    match kind {
        "seg_reg" | "ds" | "es" | "cs" | "ss" | "fs" | "gs" => Register::DS,
        "cr_reg" => Register::CR0,
        "dr_reg" => Register::DR0,
        _ if kind.starts_with("mm") => Register::MM1,
        _ if kind.starts_with("xmm") => Register::XMM1,
        _ if kind.starts_with("ymm") => Register::YMM1,
        _ if kind.starts_with("zmm") => Register::ZMM1,
        _ if kind.starts_with("kp1") || kind.starts_with("k_") => Register::K2,
        _ if kind.starts_with("r64") || kind == "rax" => Register::RCX,
        _ if kind.starts_with("r16") || kind.ends_with('x') && kind.len() == 2 => Register::CX,
        _ if kind.starts_with("r8") || kind.len() == 2 => Register::CL,
        _ => Register::ECX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operand::encodable;

    #[test]
    fn every_form_is_performed_or_undefined_for_a_reason() {
        let by_design = ["UD0", "UD1", "UD2"];
        for code in forms() {
            let mnemonic = format!("{:?}", code.mnemonic()).to_uppercase();
            if treatment(code) == Treatment::Undefined("undefined by its maker") {
                assert!(by_design.contains(&mnemonic.as_str()), "{code:?} is silently unsupported");
            }
        }
    }

    #[test]
    fn nothing_that_reaches_memory_by_itself_is_copied() {
        let mut factory = InstructionInfoFactory::new();
        for code in forms().filter(|code| never(*code).is_none()) {
            for in_memory in [false, true] {
                let instruction = sample(code, in_memory);
                let class = classify(&instruction, &mut factory, rules(code));
                if class == Class::Plain {
                    let touched = factory.info(&instruction).used_memory().len();
                    assert_eq!(touched, 0, "{code:?} would access host memory at a guest address");
                }
            }
        }
    }

    #[test]
    fn every_form_of_32_bit_code_that_is_copied_has_one_in_64_bit_code() {
        let copied = |code: &Code| treatment(*code) == Treatment::Copied;
        for code in forms().filter(copied) {
            let is_ours = matches!(
                classify(&sample(code, true), &mut InstructionInfoFactory::new(), rules(code)),
                Class::Lea | Class::Stack(_) | Class::Register(_)
            );
            assert!(is_ours || encodable(code).op_code().mode64(), "{code:?}");
        }
    }
}

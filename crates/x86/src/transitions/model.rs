//! The words in which transitions are told.

use core::fmt;

use paravane_abi::vm::CallbackType;
use serde::Serialize;

use crate::mode::Guest;
use crate::selector::Selector;

/// A place where guest code runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// The guest's kernel.
    Kernel,
    /// A program of the guest.
    User,
}

/// Who acts in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Actor {
    /// The CPU, by itself or by the instruction named.
    Cpu,
    /// The hypervisor's code.
    Hypervisor,
    /// The guest's code.
    Guest,
}

/// What a step can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Register {
    /// Which half of the guest runs: not a register but a bit in the hypervisor; for a 32-bit guest, the ring.
    Mode,
    /// CS.
    Cs,
    /// SS.
    Ss,
    /// RIP or EIP.
    Rip,
    /// RSP or ESP.
    Rsp,
    /// RFLAGS or EFLAGS.
    Rflags,
    /// RAX or EAX.
    Rax,
    /// RCX or ECX.
    Rcx,
    /// R11.
    R11,
    /// The page-table root.
    Cr3,
    /// The GS base.
    GsBase,
    /// `evtchn_upcall_mask` of the vCPU.
    EventMask,
}

impl Register {
    /// All of them, in the order in which listings show them.
    pub const ALL: [Self; 12] = [
        Self::Mode,
        Self::Cs,
        Self::Ss,
        Self::Rip,
        Self::Rsp,
        Self::Rflags,
        Self::Rax,
        Self::Rcx,
        Self::R11,
        Self::Cr3,
        Self::GsBase,
        Self::EventMask,
    ];
}

/// A value in a transition: exact where the interface fixes it, words where the guest chose it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Value {
    /// A selector.
    Selector(Selector),
    /// A number.
    Number(u64),
    /// Words.
    Text(&'static str),
}

/// Where a new value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// STAR bits 47..32.
    Star47To32,
    /// STAR bits 47..32, plus 8.
    Star47To32Plus8,
    /// STAR bits 63..48, with RPL 3.
    Star63To48,
    /// STAR bits 63..48, plus 8, with RPL 3.
    Star63To48Plus8,
    /// STAR bits 63..48, plus 16, with RPL 3.
    Star63To48Plus16,
    /// LSTAR.
    Lstar,
    /// CSTAR.
    Cstar,
    /// SFMASK.
    Sfmask,
    /// SYSENTER_CS.
    SysenterCs,
    /// SYSENTER_CS plus 8.
    SysenterCsPlus8,
    /// SYSENTER_EIP.
    SysenterEip,
    /// SYSENTER_ESP.
    SysenterEsp,
    /// SYSENTER itself clears flags.
    SysenterFlags,
    /// The gate in the hypervisor's IDT.
    IdtGate,
    /// An entry through the IDT clears flags.
    GateFlags,
    /// RSP0 of the hypervisor's TSS.
    TssRsp0,
    /// A change of ring in long mode leaves SS null.
    LongModeNull,
    /// RIP, which SYSCALL saves.
    Rip,
    /// RFLAGS, which SYSCALL saves.
    Rflags,
    /// RCX.
    Rcx,
    /// R11.
    R11,
    /// The frame on the hypervisor's stack, which IRETQ takes.
    HypervisorStack,
    /// The hypervisor's code.
    HypervisorCode,
    /// What the hypervisor saved on entry.
    SavedState,
    /// The hypervisor's dispatch table.
    HypercallTable,
    /// The guest's trap table.
    TrapTable,
    /// Bit 2 of the flags in the guest's trap table, or of the callback.
    EntryFlags,
    /// An entry point set by `callback_op` or `set_callbacks`.
    Callback(CallbackType),
    /// The stack that `stack_switch` set.
    StackSwitch,
    /// The frame just pushed on the guest's stack.
    BounceFrame,
    /// The guest's iret frame.
    IretFrame,
    /// The root that `NEW_BASEPTR` set.
    KernelRoot,
    /// The root that `NEW_USER_BASEPTR` set.
    UserRoot,
    /// SWAPGS: the KERNEL_GS_BASE MSR.
    Swapgs,
    /// The rule that an event callback masks events.
    EventRule,
    /// The guest's own instruction.
    Instruction,
}

/// One register's new value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The register.
    pub register: Register,
    /// Its new value.
    pub to: Value,
    /// Where it comes from.
    pub source: Source,
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Who acts.
    pub actor: Actor,
    /// What happens, in sentences.
    pub text: &'static str,
    /// What changes, in the order in which it is worth reading.
    pub changes: &'static [Change],
    /// Where to read about it: manuals by section title, Xen by path.
    pub citations: &'static [&'static str],
}

/// A way from one place to another, or back to the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Transition {
    /// A short name that ends in the guest's width.
    pub name: &'static str,
    /// What it is.
    pub title: &'static str,
    /// Which guests have it.
    pub guest: Guest,
    /// Where it starts.
    pub from: Place,
    /// Where it ends.
    pub to: Place,
    /// The registers at the start.
    #[serde(skip)]
    pub start: &'static Start,
    /// The steps, in order.
    pub steps: &'static [Step],
    /// What else to know; empty if nothing.
    pub notes: &'static [&'static str],
}

/// The registers with which a transition starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// The values, in the order of [`Register::ALL`].
    pub(super) values: [Value; 12],
}

impl Start {
    /// Each register with its value.
    pub fn registers(&self) -> impl Iterator<Item = (Register, Value)> {
        Register::ALL.into_iter().zip(self.values)
    }

    /// The same with one register changed.
    pub(super) const fn with(mut self, register: Register, value: Value) -> Self {
        self.values[register as usize] = value;
        self
    }

    /// The value of one register.
    pub fn value(&self, register: Register) -> Value {
        // The discriminants are the places in Register::ALL.
        self.values[register as usize]
    }
}

impl Change {
    /// A change to a selector.
    pub(super) const fn selector(register: Register, to: Selector, source: Source) -> Self {
        Self { register, to: Value::Selector(to), source }
    }

    /// A change to a value told in words.
    pub(super) const fn text(register: Register, to: &'static str, source: Source) -> Self {
        Self { register, to: Value::Text(to), source }
    }

    /// A change to a number.
    pub(super) const fn number(register: Register, to: u64, source: Source) -> Self {
        Self { register, to: Value::Number(to), source }
    }
}

impl Source {
    /// The MSR behind the source: its number and name.
    pub fn msr(self) -> Option<(u32, &'static str)> {
        let number = match self {
            Self::Star47To32
            | Self::Star47To32Plus8
            | Self::Star63To48
            | Self::Star63To48Plus8
            | Self::Star63To48Plus16 => 0xc000_0081,
            Self::Lstar => 0xc000_0082,
            Self::Cstar => 0xc000_0083,
            Self::Sfmask => 0xc000_0084,
            Self::SysenterCs | Self::SysenterCsPlus8 => 0x174,
            Self::SysenterEsp => 0x175,
            Self::SysenterEip => 0x176,
            Self::Swapgs => return Some((0xc000_0102, "KERNEL_GS_BASE")),
            Self::SysenterFlags
            | Self::IdtGate
            | Self::GateFlags
            | Self::TssRsp0
            | Self::LongModeNull
            | Self::Rip
            | Self::Rflags
            | Self::Rcx
            | Self::R11
            | Self::HypervisorStack
            | Self::HypervisorCode
            | Self::SavedState
            | Self::HypercallTable
            | Self::TrapTable
            | Self::EntryFlags
            | Self::Callback(_)
            | Self::StackSwitch
            | Self::BounceFrame
            | Self::IretFrame
            | Self::KernelRoot
            | Self::UserRoot
            | Self::EventRule
            | Self::Instruction => return None,
        };
        let msr = super::star::ENTRY_MSRS.iter().find(|msr| msr.number == number)?;
        Some((msr.number, msr.name))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Star47To32 => "STAR[47:32]",
            Self::Star47To32Plus8 => "STAR[47:32] + 8",
            Self::Star63To48 => "STAR[63:48] | 3",
            Self::Star63To48Plus8 => "STAR[63:48] + 8 | 3",
            Self::Star63To48Plus16 => "STAR[63:48] + 16 | 3",
            Self::Lstar => "LSTAR",
            Self::Cstar => "CSTAR",
            Self::Sfmask => "SFMASK",
            Self::SysenterCs => "SYSENTER_CS",
            Self::SysenterCsPlus8 => "SYSENTER_CS + 8",
            Self::SysenterEip => "SYSENTER_EIP",
            Self::SysenterEsp => "SYSENTER_ESP",
            Self::SysenterFlags => "SYSENTER",
            Self::IdtGate => "hypervisor's IDT gate",
            Self::GateFlags => "entry through an interrupt gate",
            Self::TssRsp0 => "TSS.RSP0",
            Self::LongModeNull => "change of ring in long mode",
            Self::Rip => "RIP",
            Self::Rflags => "RFLAGS",
            Self::Rcx => "RCX",
            Self::R11 => "R11",
            Self::HypervisorStack => "frame on the hypervisor's stack",
            Self::HypervisorCode => "hypervisor's code",
            Self::SavedState => "saved on entry",
            Self::HypercallTable => "hypercall table",
            Self::TrapTable => "guest's trap table",
            Self::EntryFlags => "flag of the trap entry or callback",
            Self::Callback(kind) => return write!(f, "{kind} callback"),
            Self::StackSwitch => "kernel_ss and kernel_sp (stack_switch)",
            Self::BounceFrame => "frame on the guest's stack",
            Self::IretFrame => "guest's iret frame",
            Self::KernelRoot => "kernel root (NEW_BASEPTR)",
            Self::UserRoot => "user root (NEW_USER_BASEPTR)",
            Self::Swapgs => "SWAPGS",
            Self::EventRule => "rule of the event callback",
            Self::Instruction => "guest's instruction",
        })
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Selector(selector) => f.pad(&selector.to_string()),
            Self::Number(number @ 0..=9) => f.pad(&number.to_string()),
            Self::Number(number) => f.pad(&format!("{number:#x}")),
            Self::Text(text) => f.pad(text),
        }
    }
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Mode => "mode",
            Self::Cs => "CS",
            Self::Ss => "SS",
            Self::Rip => "RIP",
            Self::Rsp => "RSP",
            Self::Rflags => "RFLAGS",
            Self::Rax => "RAX",
            Self::Rcx => "RCX",
            Self::R11 => "R11",
            Self::Cr3 => "CR3",
            Self::GsBase => "GS base",
            Self::EventMask => "event mask",
        })
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Cpu => "CPU",
            Self::Hypervisor => "hypervisor",
            Self::Guest => "guest",
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Kernel => "guest kernel",
            Self::User => "guest user",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_register_is_found_at_its_place() {
        for (index, register) in Register::ALL.into_iter().enumerate() {
            assert_eq!(register as usize, index);
        }
    }

    #[test]
    fn msr_sources_name_their_msr() {
        assert_eq!(Source::Star63To48Plus8.msr(), Some((0xc000_0081, "STAR")));
        assert_eq!(Source::SysenterEsp.msr(), Some((0x175, "SYSENTER_ESP")));
        assert_eq!(Source::IdtGate.msr(), None);
    }
}

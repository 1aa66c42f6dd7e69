//! Instructions that a PV guest may execute although they need more privilege than it has.
//!
//! The engine decodes them and reads their operands; the core decides (virtual IOPL, guest mode, MSR tables) and
//! then either writes the result, advances RIP by [`Privileged::length`] and runs on, or raises #GP.

use crate::context::Gpr;

/// The instruction at RIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Privileged {
    /// Bytes from RIP to the next instruction, prefixes included.
    pub length: u8,
    /// What it is.
    pub op: PrivilegedOp,
}

/// What a privileged instruction asks for, operands resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrivilegedOp {
    /// CPUID; leaf in EAX, subleaf in ECX. `forced` if it came with Xen's emulation prefix.
    Cpuid {
        /// Whether the prefix `0f 0b 78 65 6e` stood before it.
        forced: bool,
    },
    /// RDMSR of ECX into EDX:EAX.
    Rdmsr,
    /// WRMSR of EDX:EAX into ECX.
    Wrmsr,
    /// IN into AL, AX or EAX.
    In {
        /// The port.
        port: Port,
        /// The operand's width.
        width: Width,
    },
    /// OUT from AL, AX or EAX.
    Out {
        /// The port.
        port: Port,
        /// The operand's width.
        width: Width,
        /// What is written, zero-extended.
        value: u32,
    },
    /// INS: port DX to ES:rDI.
    Ins(StringIo),
    /// OUTS: segment:rSI to port DX.
    Outs(StringIo),
    /// CLI.
    Cli,
    /// STI.
    Sti,
    /// HLT.
    Hlt,
    /// MOV from a control register.
    ReadControl {
        /// Which.
        from: ControlRegister,
        /// Where to.
        to: Gpr,
    },
    /// MOV to a control register.
    WriteControl {
        /// Which.
        to: ControlRegister,
        /// The value.
        value: u64,
    },
    /// MOV from DR0 to DR7.
    ReadDebug {
        /// The number.
        from: u8,
        /// Where to.
        to: Gpr,
    },
    /// MOV to DR0 to DR7.
    WriteDebug {
        /// The number.
        to: u8,
        /// The value.
        value: u64,
    },
    /// CLTS.
    Clts,
    /// LMSW with this value.
    Lmsw(u16),
    /// WBINVD or WBNOINVD.
    Wbinvd,
    /// INVD.
    Invd,
    /// INVLPG of this address.
    Invlpg(u64),
    /// RDPMC of ECX.
    Rdpmc,
    /// XSETBV of EDX:EAX into ECX.
    Xsetbv,
    /// RDTSC with CR4.TSD set.
    Rdtsc,
    /// RDTSCP with CR4.TSD set.
    Rdtscp,
    /// SWAPGS.
    Swapgs,
    /// SYSRET.
    Sysret,
    /// SYSEXIT.
    Sysexit,
    /// LGDT, LIDT, LLDT or LTR.
    LoadTable,
    /// Any other instruction of ring 0 (MONITOR, VMX, SVM, INVPCID ...): #GP on real Xen.
    Other,
}

/// An I/O port number.
pub type Port = u16;

/// A string I/O instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StringIo {
    /// The port (DX).
    pub port: Port,
    /// Bytes per element.
    pub width: Width,
    /// The linear address of the first element.
    pub address: u64,
    /// Elements to move: rCX with a REP prefix, else 1.
    pub count: u64,
    /// Whether rCX counts down (REP).
    pub repeated: bool,
}

/// The width of an I/O operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Width {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Word,
    /// 32 bits.
    Dword,
}

/// A control register that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the registers' own")]
pub enum ControlRegister {
    Cr0,
    Cr2,
    Cr3,
    Cr4,
    Cr8,
}

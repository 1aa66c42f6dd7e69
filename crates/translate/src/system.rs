//! Instructions that end a run: system calls, interrupts, privileged ones; and those that only look at system state.
#![expect(clippy::wildcard_enum_match_arm, reason = "iced's enums number thousands of members")]

use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use paravane_abi::units::GuestVirt;
use paravane_engine::{
    ControlRegister, Exit, Gpr, GuestMode, Interrupt, Privileged, PrivilegedOp, SegmentRegister, StringIo,
    SyscallKind, Width, rflags, vector,
};

use paravane_memory::paging::Access;

use crate::bits::{low8, low16, low32};
use crate::emit::Bits;
use crate::engine::Translator;
use crate::help::{cut, exception, exception_with};
use crate::operand::number;
use crate::state::Path;

/// Where Xen's per-domain area maps a vCPU's GDT (`PERDOMAIN_VIRT_START`, xen/arch/x86/include/asm/config.h).
const GDT_BASE: u64 = 0xffff_8200_0000_0000;
/// The GDT limit that Xen always loads.
const GDT_LIMIT: u64 = 0xefff;
/// The IDT limit: 256 gates of 16 bytes.
const IDT_LIMIT: u64 = 0xfff;
/// Xen's TSS selector.
const TSS_SELECTOR: u64 = 0xe040;
/// Xen's LDT selector.
const LDT_SELECTOR: u64 = 0xe050;
/// CR0 as hardware has it under Xen: PG, AM, WP, NE, ET, MP, PE.
const CR0: u64 = 0x8005_0033;
/// Bytes that an instruction may have.
const LONGEST: usize = 15;
/// CR0.TS.
const CR0_TS: u64 = 1 << 3;

impl Translator {
    pub(crate) fn software_interrupt(&mut self, instruction: &Instruction) -> Exit {
        let vector = match instruction.mnemonic() {
            // No gate is asked whether programs may use it.
            Mnemonic::Int1 => {
                self.cpu.state_mut().context.rip = instruction.next_ip();
                return exception(vector::DEBUG);
            }
            Mnemonic::Int3 => vector::BREAKPOINT,
            _ => instruction.immediate8(),
        };
        let context = &mut self.cpu.state_mut().context;
        if vector == 0x82 && context.cpl() == 1 {
            context.rip = instruction.next_ip();
            return Exit::Hypercall;
        }
        Exit::SoftwareInterrupt(Interrupt { vector, next_rip: instruction.next_ip() })
    }

    pub(crate) fn system_call(&mut self, instruction: &Instruction) -> Exit {
        let bits = self.env.bits;
        let context = &mut self.cpu.state_mut().context;
        context.rip = instruction.next_ip();
        if instruction.mnemonic() == Mnemonic::Sysenter {
            return Exit::GuestSyscall(SyscallKind::Sysenter);
        }
        let flags = context.rflags & !rflags::RF;
        context.set_gpr(Gpr::Rcx, instruction.next_ip());
        match bits {
            Bits::B64 => {
                context.set_gpr(Gpr::R11, flags);
                match context.mode {
                    GuestMode::Kernel => Exit::Hypercall,
                    GuestMode::User => Exit::GuestSyscall(SyscallKind::Syscall),
                }
            }
            Bits::B32 => {
                context.set_gpr(Gpr::R11, flags);
                Exit::GuestSyscall(SyscallKind::Syscall32)
            }
        }
    }

    /// #UD, unless it is the prefix that asks for an emulated CPUID.
    pub(crate) fn undefined(&mut self, instruction: &Instruction) -> Exit {
        const REST: [u8; 5] = [0x78, 0x65, 0x6e, 0x0f, 0xa2];
        let mut bytes = [0; 5];
        let prefixed = instruction.mnemonic() == Mnemonic::Ud2
            && instruction.len() == 2
            && self
                .read_linear(self.linear_of(SegmentRegister::Cs, instruction.next_ip()), &mut bytes)
                .is_ok()
            && bytes == REST;
        if prefixed {
            return Exit::Privileged(Privileged { length: 7, op: PrivilegedOp::Cpuid { forced: true } });
        }
        if instruction.is_invalid() && instruction.len() == LONGEST && self.is_too_long(instruction) {
            // That it goes on is seen by fetching another byte.
            let beyond = self.linear_of(SegmentRegister::Cs, instruction.ip().wrapping_add(LONGEST as u64));
            let fetched = self.walk(GuestVirt(beyond), Access::Execute);
            return fetched.err().unwrap_or(exception_with(vector::GENERAL_PROTECTION, 0));
        }
        exception(vector::INVALID_OPCODE)
    }

    /// Whether what was decoded in vain is an instruction with too many prefixes. Intel SDM vol. 3A, "Interrupt 13".
    fn is_too_long(&mut self, instruction: &Instruction) -> bool {
        const PREFIXES: [u8; 11] = [0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65];
        let mut bytes = [0; LONGEST];
        if self.read_linear(self.linear_of(SegmentRegister::Cs, instruction.ip()), &mut bytes).is_err() {
            return false;
        }
        let prefixes = bytes.iter().take_while(|byte| PREFIXES.contains(byte)).count();
        let bitness = if self.env.bits == Bits::B64 { 64 } else { 32 };
        let mut decoder = Decoder::new(bitness, &bytes[prefixes..], DecoderOptions::NONE);
        let rest = decoder.decode();
        !rest.is_invalid() || decoder.last_error() == DecoderError::NoMoreBytes
    }

    /// Takes a privileged instruction's operands apart.
    pub(crate) fn privileged(&mut self, instruction: &Instruction) -> Result<Exit, Exit> {
        let op = match instruction.mnemonic() {
            Mnemonic::Cpuid => PrivilegedOp::Cpuid { forced: false },
            Mnemonic::Rdmsr => PrivilegedOp::Rdmsr,
            Mnemonic::Wrmsr => PrivilegedOp::Wrmsr,
            Mnemonic::In | Mnemonic::Out => self.port_instruction(instruction),
            Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => {
                PrivilegedOp::Ins(self.string_io(instruction, Register::RDI))
            }
            Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => {
                PrivilegedOp::Outs(self.string_io(instruction, Register::RSI))
            }
            Mnemonic::Cli => PrivilegedOp::Cli,
            Mnemonic::Sti => PrivilegedOp::Sti,
            Mnemonic::Hlt => PrivilegedOp::Hlt,
            Mnemonic::Mov => self.control_or_debug(instruction),
            Mnemonic::Clts => PrivilegedOp::Clts,
            Mnemonic::Lmsw => PrivilegedOp::Lmsw(low16(self.operand(instruction, 0, 2)?)),
            Mnemonic::Wbinvd | Mnemonic::Wbnoinvd => PrivilegedOp::Wbinvd,
            Mnemonic::Invd => PrivilegedOp::Invd,
            Mnemonic::Invlpg => PrivilegedOp::Invlpg(self.linear(instruction)),
            Mnemonic::Rdpmc => PrivilegedOp::Rdpmc,
            Mnemonic::Xsetbv => PrivilegedOp::Xsetbv,
            Mnemonic::Rdtsc => PrivilegedOp::Rdtsc,
            Mnemonic::Rdtscp => PrivilegedOp::Rdtscp,
            Mnemonic::Swapgs => PrivilegedOp::Swapgs,
            Mnemonic::Sysret | Mnemonic::Sysretq => PrivilegedOp::Sysret,
            Mnemonic::Sysexit | Mnemonic::Sysexitq => PrivilegedOp::Sysexit,
            Mnemonic::Lgdt | Mnemonic::Lidt | Mnemonic::Lldt | Mnemonic::Ltr => PrivilegedOp::LoadTable,
            _ => PrivilegedOp::Other,
        };
        Ok(Exit::Privileged(Privileged { length: low8(instruction.len() as u64), op }))
    }

    fn port_instruction(&self, instruction: &Instruction) -> PrivilegedOp {
        let output = instruction.mnemonic() == Mnemonic::Out;
        let (port_operand, data_operand) = if output { (0, 1) } else { (1, 0) };
        let port = match instruction.op_kind(port_operand) {
            OpKind::Register => low16(self.get(Register::DX)),
            _ => u16::from(instruction.immediate8()),
        };
        let data = instruction.op_register(data_operand);
        let width = width(data.size());
        if output {
            PrivilegedOp::Out { port, width, value: low32(self.get(data)) }
        } else {
            PrivilegedOp::In { port, width }
        }
    }

    fn string_io(&self, instruction: &Instruction, pointer: Register) -> StringIo {
        let (size, segment) = match instruction.mnemonic() {
            Mnemonic::Insb | Mnemonic::Outsb => (1, instruction.memory_segment()),
            Mnemonic::Insw | Mnemonic::Outsw => (2, instruction.memory_segment()),
            _ => (4, instruction.memory_segment()),
        };
        let segment = if pointer == Register::RDI { Register::ES } else { segment };
        let address_bytes = match self.env.bits {
            Bits::B64 => 8,
            Bits::B32 => 4,
        };
        let offset = cut(self.get(pointer), address_bytes);
        let repeated = instruction.has_rep_prefix() || instruction.has_repne_prefix();
        StringIo {
            port: low16(self.get(Register::DX)),
            width: width(size),
            address: self.linear_of(crate::segments::register(segment), offset),
            count: if repeated { cut(self.get(Register::RCX), address_bytes) } else { 1 },
            repeated,
        }
    }

    fn control_or_debug(&self, instruction: &Instruction) -> PrivilegedOp {
        let (first, second) = (instruction.op0_register(), instruction.op1_register());
        let index = |register: Register| low8((register.number() & 15) as u64);
        let gpr = |register: Register| Gpr::ALL[usize::from(number(register))];
        if second.is_cr()
            && let Some(from) = control(index(second))
        {
            return PrivilegedOp::ReadControl { from, to: gpr(first) };
        }
        if first.is_cr()
            && let Some(to) = control(index(first))
        {
            return PrivilegedOp::WriteControl { to, value: self.get(second) };
        }
        if second.is_dr() {
            return PrivilegedOp::ReadDebug { from: index(second), to: gpr(first) };
        }
        if first.is_dr() {
            return PrivilegedOp::WriteDebug { to: index(first), value: self.get(second) };
        }
        PrivilegedOp::Other
    }

    /// SGDT, SIDT, SLDT, STR and SMSW: not privileged (UMIP is hidden); they show the hypervisor's tables.
    pub(crate) fn store_table(&mut self, instruction: &Instruction) -> Result<(), Exit> {
        let context = &self.cpu.state().context;
        let value = match instruction.mnemonic() {
            Mnemonic::Sgdt => return self.store_pointer(instruction, GDT_LIMIT, GDT_BASE),
            Mnemonic::Sidt => return self.store_pointer(instruction, IDT_LIMIT, GDT_BASE),
            Mnemonic::Sldt if context.descriptors.ldt_entries == 0 => 0,
            Mnemonic::Sldt => LDT_SELECTOR,
            Mnemonic::Str => TSS_SELECTOR,
            _ if context.task_switched => CR0 | CR0_TS,
            _ => CR0,
        };
        if instruction.op0_kind() == OpKind::Register {
            self.set(instruction.op0_register(), value);
            return Ok(());
        }
        let linear = self.checked(instruction, 2, Path::Write)?;
        self.write_number(linear, 2, value)
    }

    fn store_pointer(&mut self, instruction: &Instruction, limit: u64, base: u64) -> Result<(), Exit> {
        let mut bytes = [0; 10];
        bytes[..2].copy_from_slice(&limit.to_le_bytes()[..2]);
        bytes[2..].copy_from_slice(&base.to_le_bytes());
        let len = match self.env.bits {
            Bits::B64 => 10,
            Bits::B32 => 6,
        };
        let linear = self.checked(instruction, len, Path::Write)?;
        self.write_linear(linear, &bytes[..len])
    }

    /// XGETBV: XCR0 only.
    pub(crate) fn read_extended_control(&mut self) -> Result<(), Exit> {
        if self.get(Register::ECX) != 0 {
            return Err(exception_with(vector::GENERAL_PROTECTION, 0));
        }
        let value = self.cpu.state().context.xcr0;
        self.set(Register::EAX, value & 0xffff_ffff);
        self.set(Register::EDX, value >> 32);
        Ok(())
    }

    /// The adjustments of decimal arithmetic, and SALC. AMD APM vol. 3, each instruction's page; flags that are
    /// undefined there are as Intel's processors leave them.
    pub(crate) fn decimal(&mut self, instruction: &Instruction) -> Result<(), Exit> {
        let flags = self.cpu.state().context.rflags;
        let (carry, half) = (flags & rflags::CF != 0, flags & rflags::AF != 0);
        let (al, ah) = (self.get(Register::AL), self.get(Register::AH));
        let adjust_low = al & 0xf > 9 || half;
        match instruction.mnemonic() {
            Mnemonic::Salc => self.set(Register::AL, if carry { 0xff } else { 0 }),
            Mnemonic::Aaa | Mnemonic::Aas => {
                let add = instruction.mnemonic() == Mnemonic::Aaa;
                let ax = self.get(Register::AX);
                let value = match (adjust_low, add) {
                    (false, _) => ax,
                    (true, true) => ax.wrapping_add(0x106),
                    (true, false) => ax.wrapping_sub(0x106),
                };
                self.set(Register::AX, value & 0xff0f);
                self.set_status(rflags::CF | rflags::AF, adjust_low);
                self.set_result_flags(value & 0xf);
            }
            Mnemonic::Daa | Mnemonic::Das => {
                let add = instruction.mnemonic() == Mnemonic::Daa;
                let high = al > 0x99 || carry;
                let by = if adjust_low { 6 } else { 0 } + if high { 0x60 } else { 0 };
                let value = if add { al.wrapping_add(by) } else { al.wrapping_sub(by) } & 0xff;
                let borrow = !add && adjust_low && al < 6;
                self.set(Register::AL, value);
                self.set_status(rflags::AF, adjust_low);
                self.set_status(rflags::CF, high || borrow);
                self.set_result_flags(value);
            }
            Mnemonic::Aam => {
                let base = u64::from(instruction.immediate8());
                if base == 0 {
                    return Err(exception(vector::DIVIDE));
                }
                self.set(Register::AH, al / base);
                self.set(Register::AL, al % base);
                self.set_status(rflags::CF | rflags::AF, false);
                self.set_result_flags(al % base);
            }
            _ => {
                // Flags are those of the addition.
                let product = ah.wrapping_mul(u64::from(instruction.immediate8())) & 0xff;
                let value = (al + product) & 0xff;
                self.set(Register::AX, value);
                self.set_result_flags(value);
                self.set_status(rflags::CF, al + product > 0xff);
                self.set_status(rflags::AF, (al ^ product ^ value) & 0x10 != 0);
                self.set_status(rflags::OF, !(al ^ product) & (al ^ value) & 0x80 != 0);
            }
        }
        Ok(())
    }

    fn set_status(&mut self, bits: u64, on: bool) {
        let flags = &mut self.cpu.state_mut().context.rflags;
        *flags = *flags & !bits | if on { bits } else { 0 };
    }

    fn set_result_flags(&mut self, byte: u64) {
        self.set_status(rflags::OF, false);
        self.set_status(rflags::ZF, byte & 0xff == 0);
        self.set_status(rflags::SF, byte & 0x80 != 0);
        self.set_status(rflags::PF, low8(byte).count_ones().is_multiple_of(2));
    }
}

fn control(number: u8) -> Option<ControlRegister> {
    match number {
        0 => Some(ControlRegister::Cr0),
        2 => Some(ControlRegister::Cr2),
        3 => Some(ControlRegister::Cr3),
        4 => Some(ControlRegister::Cr4),
        8 => Some(ControlRegister::Cr8),
        _ => None,
    }
}

fn width(bytes: usize) -> Width {
    match bytes {
        1 => Width::Byte,
        2 => Width::Word,
        _ => Width::Dword,
    }
}

//! A small assembler for the handful of forms the translator makes itself.
//!
//! Rewritten guest instructions go through iced-x86's encoder; what surrounds them is emitted here, because
//! fixed templates cost a few stores where an encoder costs a hundred nanoseconds. Addresses are absolute
//! (below 2 GiB), so emitted bytes can be copied elsewhere unless they contain a relative jump.
//!
//! Register numbers are the encoding's: 0 RAX ... 15 R15.

use crate::bits::low8;

/// Host register numbers with a role.
pub(crate) mod reg {
    pub(crate) const RAX: u8 = 0;
    pub(crate) const RCX: u8 = 1;
    pub(crate) const RBX: u8 = 3;
    pub(crate) const RSP: u8 = 4;
    pub(crate) const RBP: u8 = 5;
    pub(crate) const RSI: u8 = 6;
    pub(crate) const RDI: u8 = 7;
    /// Scratch: an address. The guest's R14 is in memory.
    pub(crate) const R14: u8 = 14;
    /// Scratch: an index, an operand. The guest's R15 is in memory.
    pub(crate) const R15: u8 = 15;
}

/// How many bytes an operand has, as far as encodings differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    Word,
    Dword,
    Qword,
}

impl Size {
    pub(crate) fn bytes(self) -> u32 {
        match self {
            Self::Word => 2,
            Self::Dword => 4,
            Self::Qword => 8,
        }
    }
}

/// A memory operand of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mem {
    pub(crate) base: Option<u8>,
    pub(crate) index: Option<u8>,
    /// 1, 2, 4 or 8.
    pub(crate) scale: u8,
    pub(crate) disp: i32,
}

impl Mem {
    /// An absolute address below 2 GiB.
    pub(crate) fn at(address: u32) -> Self {
        Self { base: None, index: None, scale: 1, disp: address.cast_signed() }
    }

    /// `[base + disp]`.
    pub(crate) fn off(base: u8, disp: i32) -> Self {
        Self { base: Some(base), index: None, scale: 1, disp }
    }
}

/// Where a 32-bit relative displacement waits for its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rel32(pub(crate) u32);

/// Bytes to be placed at an address.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    pub(crate) base: u32,
    pub(crate) bytes: Vec<u8>,
}

impl Buffer {
    /// Starts over at an address.
    pub(crate) fn restart(&mut self, base: u32) {
        self.base = base;
        self.bytes.clear();
    }

    /// The address of the next byte.
    pub(crate) fn here(&self) -> u32 {
        self.base + u32::try_from(self.bytes.len()).expect("a block is far shorter than 4 GiB")
    }

    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn put32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }

    /// `opcode` with a register and a memory operand. `wide` sets REX.W.
    pub(crate) fn op_mem(&mut self, wide: bool, opcode: &[u8], register: u8, mem: Mem) {
        let rex = if wide { 0x48 } else { 0 }
            | if register & 8 != 0 { 0x44 } else { 0 }
            | if mem.index.is_some_and(|index| index & 8 != 0) { 0x42 } else { 0 }
            | if mem.base.is_some_and(|base| base & 8 != 0) { 0x41 } else { 0 };
        if rex != 0 {
            self.put(&[rex]);
        }
        self.put(opcode);
        self.modrm_mem(register, mem);
    }

    /// ModRM, SIB and displacement.
    pub(crate) fn modrm_mem(&mut self, register: u8, mem: Mem) {
        let reg_bits = (register & 7) << 3;
        let scale = low8(u64::from(mem.scale.trailing_zeros())) << 6;
        let index = mem.index.map_or(4, |index| index & 7) << 3;
        let Some(base) = mem.base else {
            self.put(&[reg_bits | 4, scale | index | 5]);
            self.put32(mem.disp.cast_unsigned());
            return;
        };
        let needs_sib = mem.index.is_some() || base & 7 == 4;
        let short = i8::try_from(mem.disp);
        let mode = match short {
            Ok(0) if base & 7 != 5 => 0,
            Ok(_) => 0x40,
            Err(_) => 0x80,
        };
        if needs_sib {
            self.put(&[mode | reg_bits | 4, scale | index | (base & 7)]);
        } else {
            self.put(&[mode | reg_bits | (base & 7)]);
        }
        match (mode, short) {
            (0, _) => {}
            (_, Ok(disp)) => self.put(&disp.to_le_bytes()),
            (_, Err(_)) => self.put32(mem.disp.cast_unsigned()),
        }
    }

    /// `opcode` with `register` in ModRM.reg and `rm` in ModRM.rm.
    pub(crate) fn op_reg(&mut self, wide: bool, opcode: &[u8], register: u8, rm: u8) {
        let rex = if wide { 0x48 } else { 0 }
            | if register & 8 != 0 { 0x44 } else { 0 }
            | if rm & 8 != 0 { 0x41 } else { 0 };
        if rex != 0 {
            self.put(&[rex]);
        }
        self.put(opcode);
        self.put(&[0xc0 | (register & 7) << 3 | (rm & 7)]);
    }

    /// `lea register, mem`, 64 or 32 bits.
    pub(crate) fn lea(&mut self, wide: bool, register: u8, mem: Mem) {
        self.op_mem(wide, &[0x8d], register, mem);
    }

    /// `mov register, [mem]`, 64 bits.
    pub(crate) fn load(&mut self, register: u8, mem: Mem) {
        self.op_mem(true, &[0x8b], register, mem);
    }

    /// `mov [mem], register`, 64 bits.
    pub(crate) fn store(&mut self, mem: Mem, register: u8) {
        self.op_mem(true, &[0x89], register, mem);
    }

    /// `mov register32, [mem]`.
    pub(crate) fn load32(&mut self, register: u8, mem: Mem) {
        self.op_mem(false, &[0x8b], register, mem);
    }

    /// `mov [mem], register32`.
    pub(crate) fn store32(&mut self, mem: Mem, register: u8) {
        self.op_mem(false, &[0x89], register, mem);
    }

    /// `mov register, [mem]` of a size, zero-extended.
    pub(crate) fn load_sized(&mut self, size: Size, register: u8, mem: Mem) {
        match size {
            Size::Word => self.op_mem(false, &[0x0f, 0xb7], register, mem),
            Size::Dword => self.load32(register, mem),
            Size::Qword => self.load(register, mem),
        }
    }

    /// `mov [mem], register` of a size.
    pub(crate) fn store_sized(&mut self, size: Size, mem: Mem, register: u8) {
        match size {
            Size::Word => {
                self.put(&[0x66]);
                self.op_mem(false, &[0x89], register, mem);
            }
            Size::Dword => self.store32(mem, register),
            Size::Qword => self.store(mem, register),
        }
    }

    /// `mov [mem], imm` of a size; a qword's immediate is sign-extended from 32 bits.
    pub(crate) fn store_imm(&mut self, size: Size, mem: Mem, value: i32) {
        let bytes = value.to_le_bytes();
        match size {
            Size::Word => {
                self.put(&[0x66]);
                self.op_mem(false, &[0xc7], 0, mem);
                self.put(&bytes[..2]);
            }
            Size::Dword | Size::Qword => {
                self.op_mem(size == Size::Qword, &[0xc7], 0, mem);
                self.put(&bytes);
            }
        }
    }

    /// `mov to, from`, 64 bits.
    pub(crate) fn mov(&mut self, to: u8, from: u8) {
        self.op_reg(true, &[0x89], from, to);
    }

    /// `mov to32, from32`: clears the upper half.
    pub(crate) fn mov32(&mut self, to: u8, from: u8) {
        self.op_reg(false, &[0x89], from, to);
    }

    /// Puts a constant into a register, in the shortest way that leaves flags alone.
    pub(crate) fn constant(&mut self, register: u8, value: u64) {
        let rex_b = u8::from(register & 8 != 0);
        if let Ok(low) = u32::try_from(value) {
            if rex_b != 0 {
                self.put(&[0x41]);
            }
            self.put(&[0xb8 | (register & 7)]);
            self.put32(low);
        } else if let Ok(signed) = i32::try_from(value.cast_signed()) {
            self.put(&[0x48 | rex_b, 0xc7, 0xc0 | (register & 7)]);
            self.put32(signed.cast_unsigned());
        } else {
            self.put(&[0x48 | rex_b, 0xb8 | (register & 7)]);
            self.put(&value.to_le_bytes());
        }
    }

    /// A group-1 operation (`add` 0, `or` 1, `and` 4, `sub` 5, `cmp` 7) with an immediate.
    pub(crate) fn group1(&mut self, wide: bool, operation: u8, register: u8, value: i32) {
        if let Ok(short) = i8::try_from(value) {
            self.op_reg(wide, &[0x83], operation, register);
            self.put(&short.to_le_bytes());
        } else {
            self.op_reg(wide, &[0x81], operation, register);
            self.put32(value.cast_unsigned());
        }
    }

    /// `shl register32, count`.
    pub(crate) fn shl32(&mut self, register: u8, count: u8) {
        self.op_reg(false, &[0xc1], 4, register);
        self.put(&[count]);
    }

    /// `or to32, from32`.
    pub(crate) fn or32(&mut self, to: u8, from: u8) {
        self.op_reg(false, &[0x09], from, to);
    }

    /// `add to, from`, 64 bits.
    pub(crate) fn add(&mut self, to: u8, from: u8) {
        self.op_reg(true, &[0x01], from, to);
    }

    /// `sub to, from`, 64 bits.
    pub(crate) fn sub(&mut self, to: u8, from: u8) {
        self.op_reg(true, &[0x29], from, to);
    }

    /// `cmp dword [mem], imm32`.
    pub(crate) fn cmp32_mem(&mut self, mem: Mem, value: u32) {
        if let Ok(short) = i8::try_from(value.cast_signed()) {
            self.op_mem(false, &[0x83], 7, mem);
            self.put(&short.to_le_bytes());
        } else {
            self.op_mem(false, &[0x81], 7, mem);
            self.put32(value);
        }
    }

    /// `jmp rel32` to a known address.
    pub(crate) fn jmp(&mut self, target: u32) {
        let at = self.jmp_later();
        self.patch(at, target);
    }

    /// `jmp rel32`, target to come.
    pub(crate) fn jmp_later(&mut self) -> Rel32 {
        self.put(&[0xe9]);
        self.rel32()
    }

    /// `jcc rel32`, target to come; `condition` is the low nibble of the opcode.
    pub(crate) fn jcc_later(&mut self, condition: u8) -> Rel32 {
        self.put(&[0x0f, 0x80 | condition]);
        self.rel32()
    }

    fn rel32(&mut self) -> Rel32 {
        let at = Rel32(self.here());
        self.put32(0);
        at
    }

    /// Fills in a displacement of this buffer.
    pub(crate) fn patch(&mut self, at: Rel32, target: u32) {
        let index = (at.0 - self.base) as usize;
        self.bytes[index..index + 4].copy_from_slice(&displacement(at, target));
    }
}

/// The bytes that make the displacement at `at` reach `target`.
pub(crate) fn displacement(at: Rel32, target: u32) -> [u8; 4] {
    target.wrapping_sub(at.0.wrapping_add(4)).to_le_bytes()
}

/// Condition codes, as in opcodes.
pub(crate) mod cond {
    pub(crate) const EQUAL: u8 = 4;
    pub(crate) const NOT_EQUAL: u8 = 5;
    pub(crate) const ABOVE: u8 = 7;
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions, Formatter as _, IntelFormatter};

    use super::*;

    fn text(emit: impl FnOnce(&mut Buffer)) -> String {
        let mut buffer = Buffer::default();
        buffer.restart(0x1000);
        emit(&mut buffer);
        let mut lines = Vec::new();
        for instruction in &mut Decoder::with_ip(64, &buffer.bytes, 0x1000, DecoderOptions::NONE) {
            let mut line = String::new();
            IntelFormatter::new().format(&instruction, &mut line);
            lines.push(line);
        }
        lines.join("; ")
    }

    #[test]
    fn emitted_bytes_decode_to_what_was_meant() {
        let mem = Mem { base: Some(reg::RSP), index: Some(reg::R14), scale: 8, disp: -5 };
        assert_eq!(text(|b| b.lea(true, reg::R15, mem)), "lea r15,[rsp+r14*8-5]");
        assert_eq!(text(|b| b.lea(false, reg::R14, Mem::off(13, 0))), "lea r14d,[r13]");
        assert_eq!(text(|b| b.load(reg::RBX, Mem::off(12, 0x1234))), "mov rbx,[r12+1234h]");
        assert_eq!(text(|b| b.store(Mem::at(0x4000_0000), reg::R15)), "mov [40000000h],r15");
        assert_eq!(text(|b| b.store_sized(Size::Word, Mem::off(14, 0), 7)), "mov [r14],di");
        assert_eq!(text(|b| b.store_sized(Size::Word, Mem::off(14, 0), 9)), "mov [r14],r9w");
        assert_eq!(text(|b| b.load_sized(Size::Word, 15, Mem::off(14, 0))), "movzx r15d,word ptr [r14]");
        assert_eq!(
            text(|b| b.store_imm(Size::Qword, Mem::off(14, 0), -2)),
            "mov qword ptr [r14],0FFFFFFFFFFFFFFFEh"
        );
        assert_eq!(text(|b| b.constant(14, 0xffff_ffff_8000_0000)), "mov r14,0FFFFFFFF80000000h");
        assert_eq!(text(|b| b.constant(3, 0x8000_0000)), "mov ebx,80000000h");
        assert_eq!(text(|b| b.constant(15, 1 << 40)), "mov r15,10000000000h");
        assert_eq!(text(|b| b.group1(true, 7, 14, 4088)), "cmp r14,0FF8h");
        assert_eq!(text(|b| b.cmp32_mem(Mem::at(0x100), 0x8000_0001)), "cmp dword ptr [100h],80000001h");
        assert_eq!(text(|b| b.jmp(0x2000)), "jmp 0000000000002000h");
        assert_eq!(text(|b| b.mov(14, 0)), "mov r14,rax");
    }
}

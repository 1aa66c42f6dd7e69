//! Gathers and scatters: several memory operands in one instruction. And which bytes of one operand a mask
//! leaves.
//!
//! Element by element, in order, as the manuals describe: an element that faults leaves those before it done and
//! their mask bits cleared, so that the instruction can be restarted. Source: Intel SDM vol. 2C, "VPGATHERDD",
//! "VPSCATTERDD".

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use paravane_engine::{Exit, FPU_AREA_BYTES, XSAVE_HEADER, vector};

use crate::bits::{index as index_of, low8};
use crate::engine::Translator;
use crate::help::{cut, exception, sign_extend};

/// SSE and AVX in XSTATE_BV.
const VECTORS: u64 = 6;

/// Where the parts of vector registers are in the standard XSAVE format, which differs between vendors.
struct Vectors {
    area: [u8; FPU_AREA_BYTES],
    upper_ymm: usize,
    masks: usize,
    upper_zmm: usize,
    high: usize,
    /// Components that exist.
    present: u64,
}

impl Vectors {
    fn read(&self, register: Register) -> [u8; 64] {
        let number = register.number() & 31;
        let mut bytes = [0; 64];
        for (part, at) in self.parts(number) {
            bytes[part.clone()].copy_from_slice(&self.area[at..at + part.len()]);
        }
        bytes
    }

    fn write(&mut self, register: Register, bytes: &[u8; 64]) {
        let number = register.number() & 31;
        for (part, at) in self.parts(number) {
            self.area[at..at + part.len()].copy_from_slice(&bytes[part]);
        }
        let in_use = if number < 16 { VECTORS } else { VECTORS | 1 << 7 };
        let upper = if bytes[32..].iter().any(|byte| *byte != 0) { 1 << 6 } else { 0 };
        self.use_components(in_use | upper);
    }

    fn use_components(&mut self, components: u64) {
        for (index, byte) in (components & self.present).to_le_bytes().into_iter().enumerate() {
            self.area[XSAVE_HEADER + index] |= byte;
        }
    }

    /// The ranges of a register's bytes and where they lie.
    fn parts(&self, number: usize) -> Vec<(core::ops::Range<usize>, usize)> {
        if number >= 16 {
            return vec![(0..64, self.high + 64 * (number - 16))];
        }
        let mut parts = vec![(0..16, 160 + 16 * number), (16..32, self.upper_ymm + 16 * number)];
        if self.present >> 6 & 1 != 0 {
            parts.push((32..64, self.upper_zmm + 32 * number));
        }
        parts
    }

    fn mask(&self, register: Register) -> u64 {
        let at = self.masks + 8 * (register.number() & 7);
        self.area[at..at + 8].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    fn set_mask(&mut self, register: Register, value: u64) {
        let at = self.masks + 8 * (register.number() & 7);
        self.area[at..at + 8].copy_from_slice(&value.to_le_bytes());
        self.use_components(1 << 5);
    }
}

/// Which elements are still to be done.
enum Pending {
    /// A mask register's bits.
    Bits(Register),
    /// The top bits of a vector register's elements.
    Signs(Register),
}

impl Translator {
    /// Gathers and scatters.
    pub(crate) fn elements(&mut self, instruction: &Instruction) -> Result<(), Exit> {
        let undefined = exception(vector::INVALID_OPCODE);
        let scatter = instruction.op0_kind() == OpKind::Memory;
        let data = if scatter { instruction.op1_register() } else { instruction.op0_register() };
        let index = instruction.memory_index();
        let pending = match (instruction.has_op_mask(), instruction.op_count()) {
            (true, _) => Pending::Bits(instruction.op_mask()),
            (false, 3) => Pending::Signs(instruction.op2_register()),
            // Prefetches of elements exist on no CPU that runs this.
            (false, _) => return Err(undefined),
        };
        let clash = match pending {
            Pending::Signs(mask) => {
                let numbers = [data.number() & 31, index.number() & 31, mask.number() & 31];
                numbers[0] == numbers[1] || numbers[1] == numbers[2] || numbers[0] == numbers[2]
            }
            Pending::Bits(_) => !scatter && data.number() & 31 == index.number() & 31,
        };
        if clash || instruction.op_count() < 2 || !data.is_vector_register() {
            return Err(undefined);
        }
        let mut vectors = self.vectors();
        let outcome = self.each_element(instruction, &mut vectors, data, &pending, scatter);
        self.set_area(&vectors.area);
        outcome
    }

    fn each_element(
        &mut self,
        instruction: &Instruction,
        vectors: &mut Vectors,
        data: Register,
        pending: &Pending,
        scatter: bool,
    ) -> Result<(), Exit> {
        let size = instruction.memory_size().element_size();
        let index_size = if instruction.is_vsib64() { 8 } else { 4 };
        let index = vectors.read(instruction.memory_index());
        let count = (data.size() / size).min(instruction.memory_index().size() / index_size);
        let mut value = vectors.read(data);
        for element in 0..count {
            if !is_pending(vectors, pending, element, size) {
                continue;
            }
            let at = element * index_size;
            let raw = index[at..at + index_size].iter().rev().fold(0, |v, byte| v << 8 | u64::from(*byte));
            let linear = self.element_address(instruction, sign_extend(raw, index_size).cast_unsigned());
            let bytes = &mut value[element * size..(element + 1) * size];
            let access =
                if scatter { self.write_linear(linear, bytes) } else { self.read_linear(linear, bytes) };
            if access.is_err() {
                if !scatter {
                    vectors.write(data, &value);
                }
                return access;
            }
            done(vectors, pending, element, size);
        }
        if !scatter {
            value[count * size..].fill(0);
            vectors.write(data, &value);
        }
        match pending {
            Pending::Bits(mask) => vectors.set_mask(*mask, 0),
            Pending::Signs(mask) => vectors.write(*mask, &[0; 64]),
        }
        Ok(())
    }

    /// Which of an operand's first 64 bytes a masked instruction really accesses.
    pub(crate) fn active_bytes(&self, instruction: &Instruction, size: usize) -> u64 {
        let vectors = self.vectors();
        if !instruction.has_op_mask() {
            // VMASKMOV: the second operand is the mask, wherever the memory is.
            let element = instruction.memory_size().element_size().max(1);
            let mask = vectors.read(instruction.op1_register());
            let active = |byte: usize| mask[(byte / element + 1) * element - 1] & 0x80 != 0;
            return bytes_where(size, active);
        }
        let mask = vectors.mask(instruction.op_mask());
        let element =
            if instruction.is_broadcast() { size } else { instruction.memory_size().element_size() };
        let count = size / element.max(1);
        if count <= 1 && !instruction.is_broadcast() {
            return bytes_where(size, |_| mask & 1 != 0);
        }
        if is_contiguous(instruction.mnemonic()) {
            let kept = (mask & low_ones(count)).count_ones() as usize * element;
            return bytes_where(size, |byte| byte < kept);
        }
        // An operand shorter than the result is repeated: element i serves results i, i + count, ...
        let to_vector =
            instruction.op0_kind() == OpKind::Register && instruction.op0_register().is_vector_register();
        let results =
            if to_vector { (instruction.op0_register().size() / element.max(1)).max(count) } else { count };
        let results = if instruction.is_broadcast() { 64 } else { results };
        bytes_where(size, |byte| {
            (0..results.min(64)).any(|result| result % count == byte / element && mask >> result & 1 != 0)
        })
    }

    fn element_address(&self, instruction: &Instruction, index: u64) -> u64 {
        let base = instruction.memory_base();
        let start = if base == Register::None { 0 } else { self.get(base) };
        let offset = start
            .wrapping_add(index.wrapping_mul(u64::from(instruction.memory_index_scale())))
            .wrapping_add(instruction.memory_displacement64());
        let width = if base == Register::None {
            instruction.memory_displ_size()
        } else {
            u32::from(low8(base.size() as u64))
        };
        self.linear_of(crate::segments::register(instruction.memory_segment()), cut(offset, width))
    }

    fn vectors(&self) -> Vectors {
        let components = self.components(!0);
        let offset = |number: u32| {
            components
                .iter()
                .find(|component| component.bit == 1 << number)
                .map_or(0, |component| component.offset)
        };
        Vectors {
            area: self.area(),
            upper_ymm: offset(2),
            masks: offset(5),
            upper_zmm: offset(6),
            high: offset(7),
            present: self.host().state_components(),
        }
    }
}

/// Instructions whose memory holds the selected elements side by side.
fn is_contiguous(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Vpcompressb
            | Mnemonic::Vpcompressw
            | Mnemonic::Vpcompressd
            | Mnemonic::Vpcompressq
            | Mnemonic::Vcompressps
            | Mnemonic::Vcompresspd
            | Mnemonic::Vpexpandb
            | Mnemonic::Vpexpandw
            | Mnemonic::Vpexpandd
            | Mnemonic::Vpexpandq
            | Mnemonic::Vexpandps
            | Mnemonic::Vexpandpd
    )
}

fn low_ones(count: usize) -> u64 {
    if count >= 64 { !0 } else { (1 << count) - 1 }
}

fn bytes_where(size: usize, active: impl Fn(usize) -> bool) -> u64 {
    (0..size.min(64)).filter(|byte| active(*byte)).fold(0, |bytes, byte| bytes | 1 << byte)
}

fn is_pending(vectors: &Vectors, pending: &Pending, element: usize, size: usize) -> bool {
    match pending {
        Pending::Bits(mask) => vectors.mask(*mask) >> element & 1 != 0,
        Pending::Signs(mask) => vectors.read(*mask)[(element + 1) * size - 1] & 0x80 != 0,
    }
}

/// Clears an element's mask.
fn done(vectors: &mut Vectors, pending: &Pending, element: usize, size: usize) {
    match pending {
        Pending::Bits(mask) => {
            let value = vectors.mask(*mask) & !(1 << index_of(element as u64));
            vectors.set_mask(*mask, value);
        }
        Pending::Signs(mask) => {
            let mut bytes = vectors.read(*mask);
            bytes[element * size..(element + 1) * size].fill(0);
            vectors.write(*mask, &bytes);
        }
    }
}

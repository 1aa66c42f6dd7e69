//! Gathers and scatters: several memory operands in one instruction.
//!
//! Element by element, in order, as the manuals describe: an element that faults leaves those before it done and
//! their mask bits cleared, so that the instruction can be restarted. Source: Intel SDM vol. 2C, "VPGATHERDD",
//! "VPSCATTERDD".

use iced_x86::{Instruction, OpKind, Register};
use paravane_engine::{Exit, FPU_AREA_BYTES, XSAVE_HEADER, vector};

use crate::bits::{index as index_of, low8};
use crate::engine::Translator;
use crate::help::{cut, exception, sign_extend};
use crate::state::Path;

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
        // The vector length, which is the longer of the two.
        let whole = data.size().max(instruction.memory_index().size());
        value[whole..].fill(0);
        let mut progress = false;
        for element in 0..count {
            if !is_pending(vectors, pending, element, size) {
                continue;
            }
            let at = element * index_size;
            let raw = index[at..at + index_size].iter().rev().fold(0, |v, byte| v << 8 | u64::from(*byte));
            let linear = self.element_address(instruction, sign_extend(raw, index_size).cast_unsigned());
            let bytes = &mut value[element * size..(element + 1) * size];
            let path = if scatter { Path::Write } else { Path::Read };
            let segment = crate::segments::register(instruction.memory_segment());
            let access = self.check_segment(segment, linear, size as u64, path).and_then(|()| {
                if scatter { self.write_linear(linear, bytes) } else { self.read_linear(linear, bytes) }
            });
            if access.is_err() {
                // As Intel's processors leave registers that the instruction has begun to use.
                if let Pending::Signs(mask) = pending {
                    widen(vectors, *mask, size, whole);
                }
                if !scatter && progress {
                    vectors.write(data, &value);
                }
                return access;
            }
            progress = true;
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

fn is_pending(vectors: &Vectors, pending: &Pending, element: usize, size: usize) -> bool {
    match pending {
        Pending::Bits(mask) => vectors.mask(*mask) >> element & 1 != 0,
        Pending::Signs(mask) => vectors.read(*mask)[(element + 1) * size - 1] & 0x80 != 0,
    }
}

/// Spreads each element's sign over the whole element of a mask.
fn widen(vectors: &mut Vectors, mask: Register, size: usize, whole: usize) {
    let mut bytes = vectors.read(mask);
    for element in bytes[..whole].chunks_exact_mut(size) {
        let sign = if element[size - 1] & 0x80 == 0 { 0 } else { 0xff };
        element.fill(sign);
    }
    bytes[whole..].fill(0);
    vectors.write(mask, &bytes);
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

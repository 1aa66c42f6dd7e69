//! XSAVE and its relatives, on the state that the engine keeps in the standard format.
//!
//! While Rust runs, the guest's whole floating-point and vector state is in [`FpuArea`], so saving and restoring
//! are copies of components. Source: Intel SDM vol. 1, "Managing State Using the XSAVE Feature Set".
#![expect(clippy::wildcard_enum_match_arm, reason = "iced's enums number thousands of members")]

use iced_x86::{Instruction, Mnemonic, Register};
use paravane_engine::{Exit, FPU_AREA_BYTES, FpuArea, XSAVE_HEADER, vector};

use crate::emit::Bits;
use crate::engine::Translator;
use crate::help::{exception, exception_with};
use crate::state::Path;

/// x87 and SSE.
const LEGACY: u64 = 3;
/// SSE or AVX: MXCSR belongs to both.
const USES_MXCSR: u64 = 6;
/// MXCSR and its mask, inside the legacy region.
const MXCSR: core::ops::Range<usize> = 24..32;
/// The XMM registers, inside the legacy region.
const XMM: core::ops::Range<usize> = 160..416;
/// End of what the legacy region's x87 part covers.
const X87: [core::ops::Range<usize>; 2] = [0..24, 32..160];
/// XCOMP_BV's bit that says "compacted".
const COMPACTED: u64 = 1 << 63;

/// Makes an area one that XRSTOR accepts, whoever wrote it.
pub(crate) fn sanitise(area: &mut FpuArea, allowed: u64) {
    let mxcsr = number(&area.legacy[24..28]);
    let acceptable = number(&area.extended[..8]) & !allowed == 0
        && mxcsr >> 16 == 0
        && area.extended[8..64]
            .as_chunks::<8>()
            .0
            .iter()
            .fold(0, |all, word| all | u64::from_le_bytes(*word))
            == 0;
    // Nearly always; and XRSTOR waits for stores to the header.
    if acceptable {
        return;
    }
    let bits = number(&area.extended[..8]) & allowed;
    area.extended[..8].copy_from_slice(&bits.to_le_bytes());
    area.extended[8..64].fill(0);
    area.legacy[24..28].copy_from_slice(&(mxcsr & 0xffff).to_le_bytes()[..4]);
}

/// A state component in the standard format.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Component {
    pub(crate) bit: u64,
    pub(crate) offset: usize,
    pub(crate) size: usize,
    aligned: bool,
}

impl Translator {
    /// XSAVE, XSAVEC, XSAVEOPT, XRSTOR, and their 64-bit forms.
    pub(crate) fn save_state(&mut self, instruction: &Instruction) -> Result<(), Exit> {
        let asked = self.get(Register::EDX) << 32 | self.get(Register::EAX);
        let mask = asked & self.cpu.state().context.xcr0;
        let restores = matches!(instruction.mnemonic(), Mnemonic::Xrstor | Mnemonic::Xrstor64);
        let path = if restores { Path::Read } else { Path::Write };
        let linear = self.checked(instruction, XSAVE_HEADER + 64, path)?;
        if linear & 63 != 0 {
            return Err(exception_with(vector::GENERAL_PROTECTION, 0));
        }
        match instruction.mnemonic() {
            Mnemonic::Xrstor | Mnemonic::Xrstor64 => self.restore(instruction, linear, mask),
            Mnemonic::Xsavec | Mnemonic::Xsavec64 => self.save_compacted(instruction, linear, mask),
            Mnemonic::Xsave | Mnemonic::Xsave64 => self.save_standard(instruction, linear, mask, false),
            _ => self.save_standard(instruction, linear, mask, true),
        }
    }

    /// The extended components of a mask that the host has and the area holds.
    pub(crate) fn components(&self, mask: u64) -> Vec<Component> {
        self.host()
            .extended_components()
            .filter(|(number, _)| mask >> number & 1 != 0)
            .map(|(number, [size, offset, flags, _])| Component {
                bit: 1 << number,
                offset: offset as usize,
                size: size as usize,
                aligned: flags & 2 != 0,
            })
            .filter(|component| component.offset + component.size <= FPU_AREA_BYTES)
            .collect()
    }

    fn save_standard(
        &mut self,
        instruction: &Instruction,
        linear: u64,
        mask: u64,
        only_in_use: bool,
    ) -> Result<(), Exit> {
        let area = self.area();
        let in_use = self.in_use(&area);
        let saved = if only_in_use { mask & in_use } else { mask };
        // What is not saved need not be there.
        let components = self.components(saved);
        let len = components.iter().map(|c| c.offset + c.size).fold(XSAVE_HEADER + 64, usize::max);
        let mut image = [0; FPU_AREA_BYTES];
        self.read_state_image(linear, &mut image[..len], Path::Write)?;
        copy_legacy(&mut image, &area, saved, in_use, self.xmm());
        if saved & 1 != 0 && !is_wide(instruction) {
            cut_pointers(&mut image);
        }
        if mask & USES_MXCSR != 0 {
            image[MXCSR].copy_from_slice(&area[MXCSR]);
        }
        for component in &components {
            let range = component.offset..component.offset + self.reach(component);
            if in_use & component.bit == 0 {
                image[range].fill(0);
            } else {
                image[range.clone()].copy_from_slice(&area[range]);
            }
        }
        let old = number(&image[XSAVE_HEADER..XSAVE_HEADER + 8]);
        let header = old & !mask | in_use & mask;
        image[XSAVE_HEADER..XSAVE_HEADER + 8].copy_from_slice(&header.to_le_bytes());
        self.write_state_image(linear, &image[..len])
    }

    fn save_compacted(&mut self, instruction: &Instruction, linear: u64, mask: u64) -> Result<(), Exit> {
        let area = self.area();
        let mut in_use = self.in_use(&area);
        // MXCSR counts as SSE state here.
        if number(&area[24..28]) != 0x1f80 {
            in_use |= 2;
        }
        let saved = mask & in_use;
        // Places follow from what is asked for, but what is not saved need not be there.
        let components = self.components(mask);
        let places: Vec<(Component, usize)> =
            compacted(&components).filter(|(component, _)| saved & component.bit != 0).collect();
        let end = |(component, at): &(Component, usize)| at + component.size;
        let len = places.iter().map(end).fold(XSAVE_HEADER + 64, usize::max);
        let start = if saved & LEGACY == 0 { XSAVE_HEADER } else { 0 };
        let linear = linear.wrapping_add(start as u64);
        let mut image = [0; FPU_AREA_BYTES];
        self.read_state_image(linear, &mut image[start..len], Path::Write)?;
        copy_legacy(&mut image, &area, saved, in_use, self.xmm());
        if saved & 1 != 0 && !is_wide(instruction) {
            cut_pointers(&mut image);
        }
        if saved & 2 != 0 {
            image[MXCSR].copy_from_slice(&area[MXCSR]);
        }
        for (component, at) in places {
            let len = self.reach(&component);
            image[at..at + len].copy_from_slice(&area[component.offset..component.offset + len]);
        }
        image[XSAVE_HEADER..XSAVE_HEADER + 8].copy_from_slice(&saved.to_le_bytes());
        image[XSAVE_HEADER + 8..XSAVE_HEADER + 16].copy_from_slice(&(mask | COMPACTED).to_le_bytes());
        self.write_state_image(linear, &image[start..len])
    }

    fn restore(&mut self, instruction: &Instruction, linear: u64, mask: u64) -> Result<(), Exit> {
        let refused = exception_with(vector::GENERAL_PROTECTION, 0);
        let mut image = [0; FPU_AREA_BYTES];
        let header = linear.wrapping_add(XSAVE_HEADER as u64);
        self.read_state_image(header, &mut image[XSAVE_HEADER..XSAVE_HEADER + 64], Path::Read)?;
        let present = number(&image[XSAVE_HEADER..XSAVE_HEADER + 8]);
        let layout = number(&image[XSAVE_HEADER + 8..XSAVE_HEADER + 16]);
        let xcr0 = self.cpu.state().context.xcr0;
        let is_compacted = layout & COMPACTED != 0;
        let rest = if is_compacted { 16 } else { 8 };
        let reserved = image[XSAVE_HEADER + rest..XSAVE_HEADER + 64].iter().any(|byte| *byte != 0);
        let unknown =
            if is_compacted { (layout & !COMPACTED) & !xcr0 | present & !layout } else { present & !xcr0 };
        if reserved || unknown != 0 {
            return Err(refused);
        }
        let in_image = self.components(if is_compacted { layout } else { mask & present });
        let places: Vec<(Component, usize)> = if is_compacted {
            compacted(&in_image).collect()
        } else {
            in_image.iter().map(|component| (*component, component.offset)).collect()
        };
        let len =
            places.iter().map(|(component, at)| at + component.size).fold(XSAVE_HEADER + 64, usize::max);
        self.read_state_image(linear, &mut image[..len.min(FPU_AREA_BYTES)], Path::Read)?;
        let loads_mxcsr = if is_compacted { mask & present & 2 != 0 } else { mask & USES_MXCSR != 0 };
        if loads_mxcsr && number(&image[24..28]) & !0xffff != 0 {
            return Err(refused);
        }
        let mut area = self.area();
        copy_legacy(&mut area, &image, mask & present & LEGACY, present, self.xmm());
        if mask & present & 1 != 0 && !is_wide(instruction) {
            cut_pointers(&mut area);
        }
        if loads_mxcsr {
            area[24..28].copy_from_slice(&image[24..28]);
        } else if is_compacted && mask & 2 != 0 {
            area[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
        }
        for (component, at) in places {
            if mask & present & component.bit != 0 {
                let len = self.reach(&component);
                area[component.offset..component.offset + len].copy_from_slice(&image[at..at + len]);
            }
        }
        let in_use = number(&area[XSAVE_HEADER..XSAVE_HEADER + 8]);
        let header = in_use & !mask | present & mask;
        area[XSAVE_HEADER..XSAVE_HEADER + 8].copy_from_slice(&header.to_le_bytes());
        self.set_area(&area);
        Ok(())
    }

    /// The engine's copy of the state, components in their initial state written out where XSAVE would.
    pub(crate) fn area(&self) -> [u8; FPU_AREA_BYTES] {
        let fpu = &self.cpu.state().context.fpu;
        let mut area = [0; FPU_AREA_BYTES];
        area[..XSAVE_HEADER].copy_from_slice(&fpu.legacy);
        area[XSAVE_HEADER..].copy_from_slice(&fpu.extended);
        let in_use = number(&area[XSAVE_HEADER..XSAVE_HEADER + 8]);
        if in_use & 1 == 0 {
            for range in X87 {
                area[range].fill(0);
            }
            // FCW after FNINIT.
            area[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
        }
        if in_use & 2 == 0 {
            area[XMM].fill(0);
        }
        for component in self.components(!in_use) {
            area[component.offset..component.offset + component.size].fill(0);
        }
        area
    }

    pub(crate) fn set_area(&mut self, area: &[u8; FPU_AREA_BYTES]) {
        let fpu = &mut self.cpu.state_mut().context.fpu;
        fpu.legacy.copy_from_slice(&area[..XSAVE_HEADER]);
        fpu.extended.copy_from_slice(&area[XSAVE_HEADER..]);
    }

    /// What every MMX instruction does to the x87 unit: TOP 0, all registers in use.
    fn use_mmx(&mut self) {
        let mut area = self.area();
        let bytes = usize::from(area[3] >> 3 & 7) * 16;
        // The area holds registers in stack order.
        area[32..160].rotate_right(bytes);
        area[3] &= !0x38;
        area[4] = 0xff;
        area[XSAVE_HEADER] |= 1;
        self.set_area(&area);
    }

    /// FXSAVE and FXRSTOR in 32-bit code, which has eight XMM registers.
    pub(crate) fn save_legacy(&mut self, instruction: &Instruction) -> Result<(), Exit> {
        let bytes = self.xmm().end;
        let saves = instruction.mnemonic() == Mnemonic::Fxsave;
        let path = if saves { Path::Write } else { Path::Read };
        // The segment must have the first byte, then the alignment counts, then the segment's limit.
        if self.checked(instruction, 1, path)? & 15 != 0 {
            return Err(exception_with(vector::GENERAL_PROTECTION, 0));
        }
        let linear = self.checked(instruction, XSAVE_HEADER, path)?;
        // The last byte is looked at first.
        self.page((linear + XSAVE_HEADER as u64 - 1) & 0xffff_ffff, path)?;
        let mut area = self.area();
        if saves {
            // The whole image must be writable.
            self.pages_for(linear, XSAVE_HEADER, Path::Write)?;
            cut_pointers(&mut area);
            return self.write_linear(linear, &area[..bytes]);
        }
        let mut image = [0; XSAVE_HEADER];
        self.read_linear(linear, &mut image)?;
        if number(&image[24..28]) & !0xffff != 0 {
            return Err(exception_with(vector::GENERAL_PROTECTION, 0));
        }
        area[..28].copy_from_slice(&image[..28]);
        cut_pointers(&mut area);
        area[32..bytes].copy_from_slice(&image[32..bytes]);
        area[XSAVE_HEADER] |= 3;
        self.set_area(&area);
        Ok(())
    }

    /// VZEROALL and VZEROUPPER in 32-bit code, which has eight registers.
    pub(crate) fn zero_vectors(&mut self, instruction: &Instruction) {
        let mut area = self.area();
        if instruction.mnemonic() == Mnemonic::Vzeroall {
            area[160..288].fill(0);
        }
        for component in self.components(1 << 2 | 1 << 6) {
            area[component.offset..component.offset + component.size / 2].fill(0);
        }
        self.set_area(&area);
    }

    /// Bytes of a component that code of the current kind can save and restore: half of it in 32-bit code, which has
    /// eight registers.
    fn reach(&self, component: &Component) -> usize {
        match (self.env.bits, component.bit) {
            (Bits::B32, 0x04 | 0x40) => component.size / 2,
            (Bits::B32, 0x80) => 0,
            (Bits::B64 | Bits::B32, _) => component.size,
        }
    }

    /// Components in use as code of the current kind sees them: 32-bit code has none of the upper sixteen registers.
    fn in_use(&self, area: &[u8; FPU_AREA_BYTES]) -> u64 {
        let in_use = number(&area[XSAVE_HEADER..XSAVE_HEADER + 8]);
        if self.env.bits == Bits::B32 { in_use & !(1 << 7) } else { in_use }
    }

    fn xmm(&self) -> core::ops::Range<usize> {
        match self.env.bits {
            Bits::B64 => XMM,
            Bits::B32 => 160..288,
        }
    }

    /// Reads up to a page's length from guest memory.
    fn read_state_image(&mut self, linear: u64, into: &mut [u8], path: Path) -> Result<(), Exit> {
        let pages = self.pages_for(linear, into.len(), path)?;
        self.read_pages(linear, pages, into);
        Ok(())
    }

    fn write_state_image(&mut self, linear: u64, image: &[u8]) -> Result<(), Exit> {
        self.write_linear(linear, image)
    }

    /// MASKMOVQ and MASKMOVDQU: bytes whose mask byte has the top bit go to DS:rDI.
    pub(crate) fn masked_move(&mut self, instruction: &Instruction) -> Result<(), Exit> {
        let area = self.area();
        let vector_bytes = |register: Register| -> [u8; 16] {
            let index = register.number() & 15;
            let mut bytes = [0; 16];
            if register.is_mm() {
                // MM registers are physical: the area holds stack order, relative to TOP.
                let top = usize::from(area[3] >> 3 & 7);
                let at = 32 + ((index + 8 - top) & 7) * 16;
                bytes[..8].copy_from_slice(&area[at..at + 8]);
            } else {
                bytes.copy_from_slice(&area[160 + index * 16..176 + index * 16]);
            }
            bytes
        };
        let len = if instruction.op1_register().is_mm() { 8 } else { 16 };
        let data = vector_bytes(instruction.op1_register());
        let mask = vector_bytes(instruction.op2_register());
        let address_bytes = match instruction.op0_kind() {
            iced_x86::OpKind::MemorySegDI => 2,
            iced_x86::OpKind::MemorySegEDI => 4,
            _ => 8,
        };
        let segment = crate::segments::register(instruction.memory_segment());
        let offset = crate::help::cut(self.get(Register::RDI), address_bytes);
        let linear = self.linear_of(segment, offset);
        if len == 8 {
            if area[2] & 0x80 != 0 {
                return Err(exception(vector::X87));
            }
            // First the unit becomes MMX's.
            self.use_mmx();
        }
        self.check_segment(segment, linear, len as u64, Path::Write)?;
        if len == 8 {
            // The whole operand is touched, whatever the mask says.
            self.pages_for(linear, len, Path::Write)?;
        }
        for index in (0..len).filter(|index| mask[*index] & 0x80 != 0) {
            self.page(linear.wrapping_add(index as u64), Path::Write)?;
        }
        for index in (0..len).filter(|index| mask[*index] & 0x80 != 0) {
            self.write_linear(linear.wrapping_add(index as u64), &data[index..=index])?;
        }
        Ok(())
    }
}

/// Copies the x87 and SSE parts that `which` names; what is not in use is written in its initial state.
fn copy_legacy(
    to: &mut [u8; FPU_AREA_BYTES],
    from: &[u8; FPU_AREA_BYTES],
    which: u64,
    in_use: u64,
    xmm: core::ops::Range<usize>,
) {
    if which & 1 != 0 {
        for range in X87 {
            to[range.clone()].copy_from_slice(&from[range]);
        }
        if in_use & 1 == 0 {
            for range in X87 {
                to[range].fill(0);
            }
            to[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
        }
    }
    if which & 2 != 0 {
        to[xmm.clone()].copy_from_slice(&from[xmm]);
    }
}

/// Components with their offsets in the compacted format.
fn compacted(components: &[Component]) -> impl Iterator<Item = (Component, usize)> {
    components.iter().scan(XSAVE_HEADER + 64, |next, component| {
        let at = if component.aligned { next.next_multiple_of(64) } else { *next };
        *next = at + component.size;
        Some((*component, at))
    })
}

/// In the forms without REX.W, instruction and data pointers have 32 bits and selectors, which today's processors
/// store as zero.
fn cut_pointers(area: &mut [u8]) {
    area[12..16].fill(0);
    area[20..24].fill(0);
}

/// Whether a form of XSAVE or XRSTOR has pointers of 64 bits.
fn is_wide(instruction: &Instruction) -> bool {
    matches!(
        instruction.mnemonic(),
        Mnemonic::Xsave64 | Mnemonic::Xsaveopt64 | Mnemonic::Xsavec64 | Mnemonic::Xrstor64
    )
}

/// A little-endian number of up to 8 bytes.
pub(crate) fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

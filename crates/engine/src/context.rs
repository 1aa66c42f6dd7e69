//! The state of one virtual CPU.
//!
//! `#[repr(C)]` throughout: an engine that emits machine code addresses fields by `offset_of!`.

use paravane_abi::units::{GuestVirt, Mfn};
use paravane_x86::segments::SegmentRegister;

/// A general-purpose register, in encoding order (AMD APM vol. 3, "ModRM and SIB Bytes").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names are the registers' own")]
pub enum Gpr {
    Rax,
    Rcx,
    Rdx,
    Rbx,
    Rsp,
    Rbp,
    Rsi,
    Rdi,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
}

impl Gpr {
    /// All of them, in encoding order.
    pub const ALL: [Self; 16] = [
        Self::Rax,
        Self::Rcx,
        Self::Rdx,
        Self::Rbx,
        Self::Rsp,
        Self::Rbp,
        Self::Rsi,
        Self::Rdi,
        Self::R8,
        Self::R9,
        Self::R10,
        Self::R11,
        Self::R12,
        Self::R13,
        Self::R14,
        Self::R15,
    ];
}

/// The attribute bits of a loaded segment: bits 55..52 and 47..40 of its descriptor, as bits 15..12 and 7..0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct SegmentAttributes(pub u16);

impl SegmentAttributes {
    /// Type bits 3..0: bit 3 code, bit 2 conforming / expand-down, bit 1 readable / writable, bit 0 accessed.
    pub const TYPE: u16 = 0xf;
    /// Code rather than data.
    pub const CODE: u16 = 1 << 3;
    /// Conforming code, or expand-down data.
    pub const CONFORMING_OR_DOWN: u16 = 1 << 2;
    /// Readable code, or writable data.
    pub const READABLE_OR_WRITABLE: u16 = 1 << 1;
    /// Accessed.
    pub const ACCESSED: u16 = 1 << 0;
    /// S: a code or data segment rather than a system one.
    pub const USER_SEGMENT: u16 = 1 << 4;
    /// P.
    pub const PRESENT: u16 = 1 << 7;
    /// AVL.
    pub const AVAILABLE: u16 = 1 << 12;
    /// L: 64-bit code.
    pub const LONG: u16 = 1 << 13;
    /// D/B: 32-bit default size.
    pub const BIG: u16 = 1 << 14;
    /// G: the limit counts pages.
    pub const GRANULAR: u16 = 1 << 15;

    /// Picks the bits out of a descriptor's quadword.
    pub fn of_descriptor(descriptor: u64) -> Self {
        // Fits: both parts are masked to 16 bits together.
        Self(((descriptor >> 40) & 0xf0ff) as u16)
    }

    /// Whether all bits of `mask` are set.
    pub fn has(self, mask: u16) -> bool {
        self.0 & mask == mask
    }

    /// The descriptor privilege level.
    pub fn dpl(self) -> u8 {
        // Fits: two bits.
        ((self.0 >> 5) & 3) as u8
    }
}

/// A segment register with what the CPU cached from its descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Segment {
    /// The base address. For FS and GS this is the active base, whoever set it.
    pub base: u64,
    /// The limit in bytes (the last valid offset), granularity applied.
    pub limit: u32,
    /// The visible selector.
    pub selector: u16,
    /// The cached attributes; zero (not present) after loading a null selector.
    pub attributes: SegmentAttributes,
}

impl Segment {
    /// The segment that loading `selector` caches from `descriptor`.
    pub fn of_descriptor(selector: u16, descriptor: u64) -> Self {
        let attributes = SegmentAttributes::of_descriptor(descriptor);
        let base = ((descriptor >> 16) & 0xff_ffff) | ((descriptor >> 56) << 24);
        #[expect(clippy::cast_possible_truncation, reason = "20 bits are picked")]
        let limit = ((descriptor & 0xffff) | ((descriptor >> 32) & 0xf_0000)) as u32;
        let limit = if attributes.has(SegmentAttributes::GRANULAR) { limit << 12 | 0xfff } else { limit };
        Self { base, limit, selector, attributes }
    }

    /// A register holding a null selector.
    pub fn null(selector: u16) -> Self {
        Self { base: 0, limit: 0, selector, attributes: SegmentAttributes(0) }
    }
}

/// Which of its two modes a 64-bit guest is in. A 32-bit guest is always in [`GuestMode::Kernel`] here, because
/// its rings tell it apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum GuestMode {
    /// `TF_kernel_mode` set: the kernel's root and GS base are active.
    #[default]
    Kernel,
    /// The guest's user programs.
    User,
}

/// The CR4 bits that a guest may set and an engine obeys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Control4(pub u64);

impl Control4 {
    /// TSD: RDTSC outside ring 0 is privileged.
    pub const TSD: u64 = 1 << 2;
    /// DE: DR4 and DR5 are undefined.
    pub const DE: u64 = 1 << 3;
    /// FSGSBASE: RDFSBASE and its relatives are defined.
    pub const FSGSBASE: u64 = 1 << 16;
    /// OSXSAVE: XGETBV, XSAVE and AVX are defined.
    pub const OSXSAVE: u64 = 1 << 18;

    /// Whether all bits of `mask` are set.
    pub fn has(self, mask: u64) -> bool {
        self.0 & mask == mask
    }
}

/// Bits of RFLAGS.
pub mod rflags {
    /// Carry.
    pub const CF: u64 = 1 << 0;
    /// Always one.
    pub const FIXED: u64 = 1 << 1;
    /// Parity.
    pub const PF: u64 = 1 << 2;
    /// Auxiliary carry.
    pub const AF: u64 = 1 << 4;
    /// Zero.
    pub const ZF: u64 = 1 << 6;
    /// Sign.
    pub const SF: u64 = 1 << 7;
    /// Single step.
    pub const TF: u64 = 1 << 8;
    /// Interrupts enabled: always one in guest context.
    pub const IF: u64 = 1 << 9;
    /// String direction.
    pub const DF: u64 = 1 << 10;
    /// Overflow.
    pub const OF: u64 = 1 << 11;
    /// I/O privilege level.
    pub const IOPL: u64 = 3 << 12;
    /// Nested task.
    pub const NT: u64 = 1 << 14;
    /// Resume.
    pub const RF: u64 = 1 << 16;
    /// Virtual 8086 mode.
    pub const VM: u64 = 1 << 17;
    /// Alignment check.
    pub const AC: u64 = 1 << 18;
    /// CPUID can be toggled.
    pub const ID: u64 = 1 << 21;
    /// The six status flags.
    pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;
}

/// Bytes in [`FpuArea`]: room for x87, SSE, AVX and AVX-512 in the standard format.
pub const FPU_AREA_BYTES: usize = 4096;
/// Offset of the XSAVE header (XSTATE_BV, XCOMP_BV) in [`FpuArea`].
pub const XSAVE_HEADER: usize = 512;

/// x87, SSE, AVX and AVX-512 state in the standard (not compacted) XSAVE format (Intel SDM vol. 1, "XSAVE Area").
///
/// Always current when the engine is not running: whoever wants to read it reads, whoever wants to change it
/// writes, keeping XSTATE_BV in the header in step (a clear bit means the component's initial state).
#[derive(Clone, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct FpuArea {
    /// The FXSAVE image: what a `vcpu_guest_context` carries.
    pub legacy: [u8; XSAVE_HEADER],
    /// The 64-byte header, then the upper halves of vector registers and what else XCR0 names.
    pub extended: [u8; FPU_AREA_BYTES - XSAVE_HEADER],
}

impl FpuArea {
    /// The state after RESET: FCW 0x0040, MXCSR 0x1f80, x87 registers +0.0 with tags not empty.
    ///
    /// This is what a PV vCPU starts with when its context says that it has no valid FPU state.
    pub fn reset() -> Self {
        let mut legacy = [0; XSAVE_HEADER];
        legacy[0] = 0x40;
        // The abridged tag byte: one bit a register, set for "not empty".
        legacy[4] = 0xff;
        legacy[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
        Self::of_legacy(legacy)
    }

    /// x87 and SSE state from an FXSAVE image, the rest in its initial state.
    pub fn of_legacy(legacy: [u8; XSAVE_HEADER]) -> Self {
        let mut extended = [0; FPU_AREA_BYTES - XSAVE_HEADER];
        extended[0] = 3;
        Self { legacy, extended }
    }
}

impl core::fmt::Debug for FpuArea {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "FpuArea {{ xstate_bv: {:#x}, .. }}", self.extended[0])
    }
}

/// Pages of a GDT as a guest sees it: 14 of its own, and Xen's.
pub const GDT_FRAMES: usize = 15;
/// Pages of an LDT: 8192 entries of 8 bytes.
pub const LDT_FRAMES: usize = 16;

/// Where descriptors come from.
///
/// Pages of the GDT without a frame read as null descriptors; the limit is always the whole
/// `GDT_FRAMES` pages. A page of the LDT without a frame makes the engine exit with
/// [`Exit::LdtPage`](crate::Exit::LdtPage), so that the core can validate the page and fill it in, or fault.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DescriptorTables {
    /// The GDT's frames: 0 to 13 the guest's, 14 Xen's own.
    pub gdt: [Option<Mfn>; GDT_FRAMES],
    /// The LDT's linear address.
    pub ldt_base: GuestVirt,
    /// The LDT's length in descriptors, at most 8192.
    pub ldt_entries: u16,
    /// The LDT's frames as far as they are known.
    pub ldt: [Option<Mfn>; LDT_FRAMES],
}

/// Everything a virtual CPU is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct VcpuContext {
    /// General-purpose registers, by [`Gpr`].
    pub gprs: [u64; 16],
    /// The instruction pointer (the offset in CS; CS has base 0 in 64-bit code).
    pub rip: u64,
    /// The flags. Bits 1 and 9 (IF) read as one while the guest runs; IOPL and VM as zero.
    pub rflags: u64,
    /// Segment registers, by [`SegmentRegister`]. FS and GS hold the active bases.
    pub segments: [Segment; 6],
    /// The GS base of the other guest mode (KERNEL_GS_BASE).
    pub inactive_gs_base: u64,
    /// Kernel or user mode.
    pub mode: GuestMode,
    /// CR0.TS: the next FPU, SSE or AVX instruction raises #NM.
    pub task_switched: bool,
    /// CR4 as far as engines obey it.
    pub cr4: Control4,
    /// The guest's XCR0; a subset of what the engine's policy allows.
    pub xcr0: u64,
    /// The page-table root of kernel mode. `Mfn(0)` before the first is known.
    pub kernel_root: Mfn,
    /// The page-table root of user mode, if there is one. Running user mode without is a page fault at once.
    pub user_root: Option<Mfn>,
    /// TSC_AUX: what RDTSCP and RDPID return.
    pub tsc_aux: u32,
    /// DR0 to DR7, by number; 4 and 5 unused.
    pub debug: [u64; 8],
    /// Descriptor tables.
    pub descriptors: DescriptorTables,
    /// Floating point and vector state.
    pub fpu: FpuArea,
}

impl VcpuContext {
    /// A CPU after reset as a PV guest finds it: registers zero, IF set, flat nothing, FPU reset, XCR0 x87 only.
    pub fn new() -> Self {
        Self {
            gprs: [0; 16],
            rip: 0,
            rflags: rflags::FIXED | rflags::IF,
            segments: [Segment::default(); 6],
            inactive_gs_base: 0,
            mode: GuestMode::Kernel,
            task_switched: false,
            cr4: Control4(0),
            xcr0: 1,
            kernel_root: Mfn(0),
            user_root: None,
            tsc_aux: 0,
            debug: [0, 0, 0, 0, 0, 0, 0xffff_0ff0, 0x400],
            descriptors: DescriptorTables::default(),
            fpu: FpuArea::reset(),
        }
    }

    /// Reads a general-purpose register.
    pub fn gpr(&self, register: Gpr) -> u64 {
        self.gprs[register as usize]
    }

    /// Writes all 64 bits of a general-purpose register.
    pub fn set_gpr(&mut self, register: Gpr, value: u64) {
        self.gprs[register as usize] = value;
    }

    /// Reads a segment register.
    pub fn segment(&self, register: SegmentRegister) -> &Segment {
        &self.segments[register as usize]
    }

    /// A segment register to change.
    pub fn segment_mut(&mut self, register: SegmentRegister) -> &mut Segment {
        &mut self.segments[register as usize]
    }

    /// Whether CS is a 64-bit code segment.
    pub fn is_64_bit(&self) -> bool {
        self.segment(SegmentRegister::Cs).attributes.has(SegmentAttributes::LONG)
    }

    /// The current privilege level: 3, or 1 in a 32-bit guest's kernel.
    pub fn cpl(&self) -> u8 {
        // Fits: two bits.
        (self.segment(SegmentRegister::Cs).selector & 3) as u8
    }

    /// The page-table root in use.
    pub fn root(&self) -> Option<Mfn> {
        match self.mode {
            GuestMode::Kernel => Some(self.kernel_root),
            GuestMode::User => self.user_root,
        }
    }

    /// Changes to the other guest mode: SWAPGS and the other page-table root.
    pub fn toggle_mode(&mut self) {
        let gs = &mut self.segments[SegmentRegister::Gs as usize].base;
        core::mem::swap(gs, &mut self.inactive_gs_base);
        self.mode = match self.mode {
            GuestMode::Kernel => GuestMode::User,
            GuestMode::User => GuestMode::Kernel,
        };
    }
}

impl Default for VcpuContext {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_unpack_to_base_limit_and_attributes() {
        let flat = Segment::of_descriptor(0xe033, 0x00af_fb00_0000_ffff);
        assert_eq!((flat.base, flat.limit, flat.selector), (0, 0xffff_ffff, 0xe033));
        assert!(flat.attributes.has(SegmentAttributes::LONG | SegmentAttributes::CODE));
        assert_eq!(flat.attributes.dpl(), 3);
        let small = Segment::of_descriptor(0x7, 0x1240_f234_5678_9abc);
        assert_eq!((small.base, small.limit), (0x1234_5678, 0x9abc));
        assert!(!small.attributes.has(SegmentAttributes::LONG));
    }

    #[test]
    fn toggling_the_mode_twice_changes_nothing() {
        let mut context = VcpuContext::new();
        context.segment_mut(SegmentRegister::Gs).base = 1;
        context.inactive_gs_base = 2;
        let before = context.clone();
        context.toggle_mode();
        assert_eq!((context.mode, context.inactive_gs_base), (GuestMode::User, 1));
        context.toggle_mode();
        assert_eq!(context, before);
    }
}

//! The segments with which a guest kernel starts, and those its user programs use.
//!
//! The domain builder loads these into vCPU 0; the hypervisor loads them again at every entry into the
//! guest kernel. All of them are in the reserved end of the GDT (see [`crate::gdt`]); the descriptor of each
//! is looked up there, so that the two tables cannot disagree.
//!
//! # Two mistakes in old descriptions
//!
//! [`CORRECTIONS`] lists what older texts say and what is true, with the reasons. In short: SS of a 64-bit
//! guest is 0xe02b, not 0xe033; and the flat selectors name entries 7171 to 7174, not 259 to 262.
//!
//! Source: `xen/tools/libs/guest/xg_dom_x86.c` (`vcpu_x86_64`, `vcpu_x86_32`),
//! `xen/include/public/arch-x86/xen-x86_64.h`, `xen/include/public/arch-x86/xen-x86_32.h`.

use core::fmt;

use serde::Serialize;

use crate::{
    descriptor::Descriptor,
    gdt,
    mode::Mode,
    selector::{Ring, Selector},
};

/// `FLAT_RING3_CS32` of the 64-bit ABI: 32-bit user code.
pub const FLAT_RING3_CS32: Selector = Selector(0xe023);
/// `FLAT_RING3_SS64` of the 64-bit ABI: the stack of kernel and user.
pub const FLAT_RING3_SS64: Selector = Selector(0xe02b);
/// `FLAT_RING3_CS64` of the 64-bit ABI: the code of kernel and user.
pub const FLAT_RING3_CS64: Selector = Selector(0xe033);
/// `FLAT_RING1_CS` of the 32-bit ABI: kernel code.
pub const FLAT_RING1_CS: Selector = Selector(0xe019);
/// `FLAT_RING1_DS` of the 32-bit ABI: kernel data and stack.
pub const FLAT_RING1_DS: Selector = Selector(0xe021);
/// `FLAT_RING3_CS` of the 32-bit ABI: user code. The same number is data in the 64-bit ABI.
pub const FLAT_RING3_CS: Selector = Selector(0xe02b);
/// `FLAT_RING3_DS` of the 32-bit ABI: user data and stack. The same number is code in the 64-bit ABI.
pub const FLAT_RING3_DS: Selector = Selector(0xe033);
/// Xen's own code, which SYSCALL loads into CS.
pub const HYPERVISOR_CS: Selector = Selector(0xe008);
/// Xen's own data, which SYSCALL loads into SS.
pub const HYPERVISOR_DS: Selector = Selector(0xe010);

/// A segment register. The values are the encodings in instructions.
///
/// Source: AMD APM vol. 3, "ModRM and SIB Bytes" (the sreg field).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
#[repr(u8)]
pub enum SegmentRegister {
    /// Extra data, the destination of string instructions.
    Es,
    /// Code.
    Cs,
    /// Stack.
    Ss,
    /// Data.
    Ds,
    /// Extra data; thread-local storage of 64-bit user programs.
    Fs,
    /// Extra data; per-CPU data of a 64-bit Linux kernel.
    Gs,
}

impl SegmentRegister {
    /// All six, in the order in which tables list them.
    pub const ALL: [Self; 6] = [Self::Cs, Self::Ss, Self::Ds, Self::Es, Self::Fs, Self::Gs];
}

impl fmt::Display for SegmentRegister {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cs => "CS",
            Self::Ss => "SS",
            Self::Ds => "DS",
            Self::Es => "ES",
            Self::Fs => "FS",
            Self::Gs => "GS",
        })
    }
}

/// What one segment register holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Segment {
    /// The register.
    pub register: SegmentRegister,
    /// Its selector.
    pub selector: Selector,
    /// The selector's GDT index; `None` for the null selector.
    pub index: Option<u16>,
    /// The descriptor behind it; `None` for the null selector.
    pub descriptor: Option<Descriptor>,
    /// The descriptor's ring; `None` for the null selector.
    pub ring: Option<Ring>,
    /// Why it is what it is, where a reader is likely to wonder.
    pub note: Option<&'static str>,
}

/// Why DS, ES, FS and GS of a 64-bit guest are null.
const NULL_NOTE: &str =
    "null: 64-bit code ignores DS and ES, and FS and GS have base 0 until the guest sets one";
/// Why SS of a 64-bit guest is 0xe02b.
const SS64_NOTE: &str = "0xe02b, not 0xe033: SYSRET computes SS as STAR[63:48] + 8 = 0xe023 + 8";
/// Why CS of a 64-bit guest is 0xe033.
const CS64_NOTE: &str = "SYSRET computes CS as STAR[63:48] + 16 = 0xe023 + 16";

/// The six segment registers with which vCPU 0 of a guest starts in `mode`, in the order of
/// [`SegmentRegister::ALL`].
pub fn initial_segments(mode: Mode) -> [Segment; 6] {
    SegmentRegister::ALL.map(|register| {
        let (selector, note) = match mode {
            Mode::Guest64 => initial_64(register),
            Mode::Guest32On64 | Mode::Guest32On32Pae | Mode::Guest32On32NonPae => (kernel_32(register), None),
        };
        segment(mode, register, selector, note)
    })
}

/// The flat segments that Xen offers to user programs in `mode` (32-bit programs, for a 32-bit guest).
pub fn user_segments(mode: Mode) -> [Segment; 6] {
    SegmentRegister::ALL.map(|register| {
        let (selector, note) = match mode {
            Mode::Guest64 => initial_64(register),
            Mode::Guest32On64 | Mode::Guest32On32Pae | Mode::Guest32On32NonPae => (user_32(register), None),
        };
        segment(mode, register, selector, note)
    })
}

fn initial_64(register: SegmentRegister) -> (Selector, Option<&'static str>) {
    match register {
        SegmentRegister::Cs => (FLAT_RING3_CS64, Some(CS64_NOTE)),
        SegmentRegister::Ss => (FLAT_RING3_SS64, Some(SS64_NOTE)),
        SegmentRegister::Ds | SegmentRegister::Es | SegmentRegister::Fs | SegmentRegister::Gs => {
            (Selector::NULL, Some(NULL_NOTE))
        }
    }
}

fn kernel_32(register: SegmentRegister) -> Selector {
    match register {
        SegmentRegister::Cs => FLAT_RING1_CS,
        SegmentRegister::Ss
        | SegmentRegister::Ds
        | SegmentRegister::Es
        | SegmentRegister::Fs
        | SegmentRegister::Gs => FLAT_RING1_DS,
    }
}

fn user_32(register: SegmentRegister) -> Selector {
    match register {
        SegmentRegister::Cs => FLAT_RING3_CS,
        SegmentRegister::Ss
        | SegmentRegister::Ds
        | SegmentRegister::Es
        | SegmentRegister::Fs
        | SegmentRegister::Gs => FLAT_RING3_DS,
    }
}

fn segment(mode: Mode, register: SegmentRegister, selector: Selector, note: Option<&'static str>) -> Segment {
    let descriptor = if selector.is_null() { None } else { gdt::supplied_descriptor(mode, selector) };
    Segment {
        register,
        selector,
        index: (!selector.is_null()).then(|| selector.index()),
        descriptor,
        ring: descriptor.map(Descriptor::dpl),
        note,
    }
}

/// A statement found in older descriptions of this ABI, and what is true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Correction {
    /// What the old text says.
    pub claim: &'static str,
    /// What is so.
    pub truth: &'static str,
    /// How one can tell.
    pub reason: &'static str,
    /// Where the mistake comes from.
    pub origin: &'static str,
}

/// What older descriptions of the PV segments get wrong.
pub static CORRECTIONS: [Correction; 5] = [
    Correction {
        claim: "In a 64-bit guest SS is 0xe033, like CS.",
        truth: "SS is 0xe02b (entry 7173, 0x00cff3000000ffff). CS is 0xe033 (entry 7174, 0x00affb000000ffff).",
        reason: "0xe033 is a 64-bit code segment there; loading it into SS raises #GP(0xe030). SYSRET settles it: \
                 Xen enters the guest with SYSRETQ, which sets CS to STAR[63:48] + 16 and SS to STAR[63:48] + 8, \
                 and STAR[63:48] is 0xe023.",
        origin: "0xe033 is the flat ring-3 data segment of the 32-bit ABI, and was the data segment of the 64-bit \
                 ABI in the order used before February 2005.",
    },
    Correction {
        claim: "The flat segments are GDT indexes 259 to 262.",
        truth: "They are entries 7171 to 7174: 0xe019 >> 3 = 7171, 0xe033 >> 3 = 7174.",
        reason: "A selector without its low three bits is the byte offset of its descriptor, and 0xe030 / 8 = 7174.",
        origin: "Comments in Xen's public headers say 259 to 262 to this day. They count from entry 256, where \
                 Xen's entries began until May 2005, when the selectors were 0x08xx.",
    },
    Correction {
        claim: "In a 64-bit guest FLAT_RING3_CS64 is index 261 and FLAT_RING3_DS32 is index 262.",
        truth: "CS64 (0xe033) comes after DS32 (0xe02b): entries 7174 and 7173.",
        reason: "The selectors say so, and SYSRET needs data one entry before 64-bit code.",
        origin: "Linux's copy of the header keeps comments from before the order was changed for SYSRET.",
    },
    Correction {
        claim: "Guests start on ring-1 and ring-3 flat segments.",
        truth: "True for 32-bit guests: kernel in ring 1, user in ring 3. In a 64-bit guest kernel and user both run \
                in ring 3, and there are no ring-1 descriptors.",
        reason: "Page tables distinguish only rings 0 to 2 from ring 3, and 64-bit code has no segment limits, so \
                 ring 1 would not keep a 64-bit guest kernel out of Xen's memory.",
        origin: "The interface manual of Xen 3.0 describes 32-bit guests.",
    },
    Correction {
        claim: "The last two of the 16 GDT pages are Xen's.",
        truth: "A guest may use pages 0 to 13 (entries 0 to 7167), Xen uses page 14, and the hardware limit 0xefff \
                ends there: entries from 7680 on do not exist.",
        reason: "FIRST_RESERVED_GDT_PAGE is 14 and NR_RESERVED_GDT_PAGES is 1; set_gdt refuses more than 7168 entries.",
        origin: "The interface manual of Xen 3.0 says that pages 15 and 16 are reserved for the hypervisor.",
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptor::Kind;

    fn selectors(mode: Mode) -> [u16; 6] {
        initial_segments(mode).map(|segment| segment.selector.0)
    }

    #[test]
    fn guests_start_on_the_selectors_the_builder_loads() {
        assert_eq!(selectors(Mode::Guest64), [0xe033, 0xe02b, 0, 0, 0, 0]);
        for mode in [Mode::Guest32On64, Mode::Guest32On32Pae, Mode::Guest32On32NonPae] {
            assert_eq!(selectors(mode), [0xe019, 0xe021, 0xe021, 0xe021, 0xe021, 0xe021]);
        }
    }

    #[test]
    fn the_64_bit_segments_are_entries_7174_and_7173() {
        let segments = initial_segments(Mode::Guest64);
        assert_eq!(segments[0].index, Some(7174));
        assert_eq!(segments[0].descriptor, Some(Descriptor(0x00af_fb00_0000_ffff)));
        assert_eq!(segments[1].index, Some(7173));
        assert_eq!(segments[1].descriptor, Some(Descriptor(0x00cf_f300_0000_ffff)));
        assert!(segments[2..].iter().all(|segment| segment.descriptor.is_none()));
    }

    #[test]
    fn every_segment_can_be_loaded_into_its_register() {
        for mode in Mode::ALL {
            for segment in initial_segments(mode).into_iter().chain(user_segments(mode)) {
                let kind = segment.descriptor.map(Descriptor::kind);
                let fits = match segment.register {
                    SegmentRegister::Cs => matches!(kind, Some(Kind::Code(_))),
                    SegmentRegister::Ss => matches!(kind, Some(Kind::Data(data)) if data.writable),
                    SegmentRegister::Ds | SegmentRegister::Es | SegmentRegister::Fs | SegmentRegister::Gs => {
                        matches!(kind, None | Some(Kind::Data(_)))
                    }
                };
                assert!(fits, "{mode}: {segment:?}");
            }
        }
    }

    #[test]
    fn the_two_abis_swap_the_meaning_of_0xe02b_and_0xe033() {
        let is_code = |mode, selector| {
            matches!(
                gdt::supplied_descriptor(mode, Selector(selector)).map(Descriptor::kind),
                Some(Kind::Code(_))
            )
        };
        assert!(!is_code(Mode::Guest64, 0xe02b) && is_code(Mode::Guest64, 0xe033));
        assert!(is_code(Mode::Guest32On64, 0xe02b) && !is_code(Mode::Guest32On64, 0xe033));
    }
}

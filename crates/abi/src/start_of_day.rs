//! The state in which a PV guest starts: vCPU 0's registers and the order of things in memory.
//!
//! A guest starts with paging on. The builder maps one contiguous range of virtual addresses to the first
//! pseudo-physical frames, in order: `va = VIRT_BASE + pfn * 4096` for everything in it. [`Region`] lists what
//! lies there. The range ends on a 4 MiB boundary and always has at least 512 KiB of mapped free memory
//! after the boot stack, so that a kernel can begin without building page tables.
//!
//! Only one vCPU runs; its registers are in [`INITIAL_VCPU`]. Segment registers are named by role here: the
//! crate that knows segments resolves them.
//!
//! Sources: the text "Start-of-day memory layout" in `xen/include/public/xen.h`;
//! `tools/libs/guest/xg_dom_x86.c` and `xg_dom_core.c`.

use core::fmt;

use serde::Serialize;

use crate::elfnote::ElfNote;
use crate::layout::PerAbi;
use crate::numbered;

/// RFLAGS at the start: IF. A PV guest's own interrupt flag is the event mask, which starts *set*, so no
/// event arrives whatever RFLAGS says.
pub const INITIAL_RFLAGS: u64 = 0x200;

/// DR6 at the start.
pub const INITIAL_DR6: u64 = 0xffff_0ff0;

/// DR7 at the start.
pub const INITIAL_DR7: u64 = 0x400;

/// The x87 control word at the start: that of RESET, not that of FNINIT (0x037f).
///
/// Source: AMD APM vol. 2, "Processor Initialization State".
pub const INITIAL_FCW: u16 = 0x0040;

/// MXCSR at the start.
pub const INITIAL_MXCSR: u32 = 0x1f80;

/// `evtchn_upcall_mask` of every vCPU in `shared_info` at the start.
pub const INITIAL_UPCALL_MASK: u8 = 1;

/// The initial range of virtual addresses ends on a multiple of this.
pub const RANGE_ALIGN_BYTES: u64 = 4 << 20;

/// At least so many mapped pages follow the boot stack.
pub const PADDING_PAGES: u64 = 128;

/// Pages of the boot stack.
pub const BOOT_STACK_PAGES: u64 = 1;

/// What a register holds at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum InitialValue {
    /// This number.
    Fixed(u64),
    /// The entry point: note ENTRY, else the ELF header's.
    EntryPoint,
    /// The end of the boot stack's page.
    BootStackTop,
    /// The virtual address of `start_info`.
    StartInfo,
    /// The flat kernel code selector.
    KernelCode,
    /// The flat kernel stack selector.
    KernelStack,
    /// The flat kernel data selector, which is null in a 64-bit guest.
    KernelData,
    /// The machine frame of the page-table root, shifted left by 12.
    Root,
    /// The machine frame of the page-table root, shifted left by 12, with its bits from 20 up in bits 11..0.
    RootFolded,
    /// 1 << 3 (`pae_extended_cr3`) if the image permits an L3 page above 4 GiB, else 0.
    ExtendedCr3,
    /// The FPU as after RESET.
    FpuReset,
}

impl fmt::Display for InitialValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Fixed(0) => "0",
            Self::Fixed(value) => return f.pad(&format!("{value:#x}")),
            Self::EntryPoint => "entry point",
            Self::BootStackTop => "top of the boot stack",
            Self::StartInfo => "address of start_info",
            Self::KernelCode => "flat kernel code selector",
            Self::KernelStack => "flat kernel stack selector",
            Self::KernelData => "flat kernel data selector",
            Self::Root => "root mfn << 12",
            Self::RootFolded => "(root mfn << 12) | (root mfn >> 20)",
            Self::ExtendedCr3 => "0x8 with extended-cr3, else 0",
            Self::FpuReset => "as after RESET",
        })
    }
}

/// A register, or a group that starts alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct InitialRegister {
    /// Its name, 64-bit where the two ABIs differ.
    pub name: &'static str,
    /// What it holds; `None` in an ABI that lacks it.
    pub value: PerAbi<Option<InitialValue>>,
    /// What to know about it; empty if nothing.
    pub note: &'static str,
}

/// A row whose value is the same in both ABIs.
const fn both(name: &'static str, value: InitialValue, note: &'static str) -> InitialRegister {
    InitialRegister { name, value: PerAbi { bits64: Some(value), bits32: Some(value) }, note }
}

/// A row that only the 64-bit ABI has.
const fn only64(name: &'static str, value: InitialValue, note: &'static str) -> InitialRegister {
    InitialRegister { name, value: PerAbi { bits64: Some(value), bits32: None }, note }
}

/// A row whose value differs.
const fn differ(
    name: &'static str,
    bits64: InitialValue,
    bits32: InitialValue,
    note: &'static str,
) -> InitialRegister {
    InitialRegister { name, value: PerAbi { bits64: Some(bits64), bits32: Some(bits32) }, note }
}

/// vCPU 0 at the start. What the table does not list is 0.
pub const INITIAL_VCPU: &[InitialRegister] = &[
    both("rip", InitialValue::EntryPoint, ""),
    both("rsp", InitialValue::BootStackTop, "one page of stack; 512 KiB of free memory follow it"),
    both("rsi", InitialValue::StartInfo, ""),
    both(
        "rflags",
        InitialValue::Fixed(INITIAL_RFLAGS),
        "IF is set, and always is; the event mask in vcpu_info, which starts set, is what holds events back",
    ),
    both("cs", InitialValue::KernelCode, ""),
    both("ss", InitialValue::KernelStack, ""),
    both("ds, es, fs, gs", InitialValue::KernelData, ""),
    both("rax, rbx, rcx, rdx, rdi, rbp", InitialValue::Fixed(0), ""),
    only64("r8 to r15", InitialValue::Fixed(0), ""),
    only64("fs_base, gs_base_kernel, gs_base_user", InitialValue::Fixed(0), ""),
    both("kernel_ss", InitialValue::KernelStack, "for entries from user mode, until stack_switch"),
    both("kernel_sp", InitialValue::BootStackTop, "for entries from user mode, until stack_switch"),
    differ(
        "ctrlreg[3]",
        InitialValue::Root,
        InitialValue::RootFolded,
        "CR3 as a PV guest sees it holds a machine frame",
    ),
    both("ctrlreg[1]", InitialValue::Fixed(0), "no user root until NEW_USER_BASEPTR"),
    both("debugreg[6]", InitialValue::Fixed(INITIAL_DR6), ""),
    both("debugreg[7]", InitialValue::Fixed(INITIAL_DR7), ""),
    both("flags", InitialValue::Fixed(0x24), "VGCF_in_kernel and VGCF_online"),
    both(
        "gdt_ents, ldt_ents",
        InitialValue::Fixed(0),
        "no tables of the guest's own: the flat segments work",
    ),
    both("trap_ctxt", InitialValue::Fixed(0), "no handlers: an exception now ends the domain"),
    both("callbacks", InitialValue::Fixed(0), ""),
    differ("vm_assist", InitialValue::Fixed(0), InitialValue::ExtendedCr3, ""),
    both("fpu", InitialValue::FpuReset, "FCW 0x0040, not 0x037f; MXCSR 0x1f80; registers +0.0, not empty"),
];

/// When a region exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum When {
    /// Always.
    Always,
    /// If the image has the note.
    With(ElfNote),
    /// If the image lacks the note.
    Without(ElfNote),
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Always => f.write_str("always"),
            Self::With(note) => write!(f, "with note {note}"),
            Self::Without(note) => write!(f, "without note {note}"),
        }
    }
}

/// Whether a region is mapped at `VIRT_BASE + pfn * 4096`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mapping {
    /// Readable and writable.
    Writable,
    /// Readable only, being page tables.
    ReadOnly,
    /// Not in the range; found by frame number, or mapped elsewhere.
    Outside,
}

/// The columns of the table of regions beyond number, name and meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RegionFacts {
    /// When it exists.
    pub when: When,
    /// Whether it is in the initial range.
    pub mapping: Mapping,
    /// How big it is.
    pub size: &'static str,
}

use Mapping::{Outside, ReadOnly, Writable};

numbered! {
    /// What lies in memory at the start, in the order of frame numbers. Each region begins on a page.
    ///
    /// Guests should find things by `start_info`. What they do rely on beyond it: page tables contiguous
    /// from the root down, and free memory behind the boot stack.
    pub enum Region(u32), "xen/include/public/xen.h": RegionFacts;
    1 Kernel "kernel" "The image; frames below its first address are in the range too." {
        when: When::Always, mapping: Writable, size: "as the image says"
    }
    2 BsdSymtab "bsd symtab" "The ELF symbol table." {
        when: When::With(ElfNote::BsdSymtab), mapping: Writable, size: "as the image says"
    }
    3 Ramdisk "ramdisk" "The ramdisk, at mod_start." {
        when: When::Without(ElfNote::ModStartPfn), mapping: Writable, size: "its bytes, rounded up to pages"
    }
    4 P2mList "p2m list" "The machine frame of each pseudo-physical frame, at mfn_list." {
        when: When::Without(ElfNote::InitP2m), mapping: Writable,
        size: "8 bytes a page of memory (4 in the 32-bit ABI), rounded up to pages",
    }
    5 StartInfo "start_info" "start_info, at RSI." {
        when: When::Always, mapping: Writable, size: "1 page"
    }
    6 Xenstore "xenstore ring" "The xenstore ring, at frame store_mfn; zeros." {
        when: When::Always, mapping: Writable, size: "1 page"
    }
    7 Console "console ring" "The console ring, at frame console.domU.mfn; zeros, but connection is 1." {
        when: When::Always, mapping: Writable, size: "1 page"
    }
    8 PageTables "page tables" "The page tables of the range, at pt_base: the root, then level by level down." {
        when: When::Always, mapping: ReadOnly, size: "nr_pt_frames pages"
    }
    9 BootStack "boot stack" "The stack that RSP ends; its content is unspecified." {
        when: When::Always, mapping: Writable, size: "1 page"
    }
    10 Padding "padding" "Free memory up to the end of the range, a multiple of 4 MiB." {
        when: When::Always, mapping: Writable, size: "at least 128 pages"
    }
    11 UnmappedRamdisk "unmapped ramdisk" "The ramdisk, at frame mod_start." {
        when: When::With(ElfNote::ModStartPfn), mapping: Outside, size: "its bytes, rounded up to pages"
    }
    12 HighP2mList "p2m list at INIT_P2M" "The p2m list, mapped at the address of the note; frame first_p2m_pfn." {
        when: When::With(ElfNote::InitP2m), mapping: Outside, size: "8 bytes a page of memory, rounded up to pages"
    }
    13 HighP2mTables "page tables of INIT_P2M" "The page tables that map that list, hung into the same root." {
        when: When::With(ElfNote::InitP2m), mapping: Outside, size: "counted in nr_p2m_frames, not in nr_pt_frames"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Abi;
    use crate::table::assert_well_formed;
    use crate::vcpu_context::ContextFlag;

    #[test]
    fn regions_are_numbered_in_order_without_a_gap() {
        assert_well_formed::<Region>();
        let numbers: Vec<u32> = Region::ALL.iter().map(|region| region.number()).collect();
        assert_eq!(numbers, (1..=13).collect::<Vec<_>>());
    }

    #[test]
    fn everything_in_the_range_comes_before_everything_outside() {
        let outside: Vec<bool> = Region::ALL.iter().map(|region| region.facts().mapping == Outside).collect();
        assert!(outside.is_sorted());
    }

    #[test]
    fn ramdisk_and_p2m_list_lie_in_exactly_one_place() {
        for note in [ElfNote::ModStartPfn, ElfNote::InitP2m] {
            let of = |mapping: Mapping, when| {
                Region::ALL
                    .iter()
                    .filter(|region| region.facts().mapping == mapping && region.facts().when == when)
                    .count()
            };
            assert_eq!(of(Writable, When::Without(note)), 1, "{note}");
            assert!(of(Outside, When::With(note)) >= 1, "{note}");
            assert_eq!(of(Writable, When::With(note)), 0, "{note}");
        }
    }

    #[test]
    fn the_flags_row_is_kernel_mode_and_online() {
        let row = INITIAL_VCPU.iter().find(|row| row.name == "flags").unwrap();
        let flags = ContextFlag::InKernel.mask() | ContextFlag::Online.mask();
        assert_eq!(row.value.bits64, Some(InitialValue::Fixed(flags)));
    }

    #[test]
    fn every_register_has_a_value_where_the_abi_has_it() {
        for row in INITIAL_VCPU {
            assert!(row.value.get(Abi::Bits64).is_some(), "{}", row.name);
        }
        let missing: Vec<&str> =
            INITIAL_VCPU.iter().filter(|row| row.value.bits32.is_none()).map(|row| row.name).collect();
        assert_eq!(missing, ["r8 to r15", "fs_base, gs_base_kernel, gs_base_user"]);
    }
}

//! `start_info`: the page that RSI points to when a guest starts.
//!
//! The builder fills it; after a suspend the toolstack refills the first half (up to the console). It mixes
//! kinds of number that are easily confused: `shared_info` is a machine *address*, `store_mfn` and the
//! console's frame are machine *frame numbers*, `pt_base` and `mfn_list` are *virtual* addresses, and
//! `mod_start` is a virtual address or a pseudo-physical frame number depending on a flag.
//!
//! Source: `xen/include/public/xen.h`.

use crate::layout::{Ty, abi_struct};
use crate::numbered;

/// Bytes of the magic string, padded with zeros.
pub const MAGIC_BYTES: usize = 32;

/// The magic string of a 64-bit guest.
pub const MAGIC_X86_64: &str = "xen-3.0-x86_64";

/// The magic string of a 32-bit PAE guest.
pub const MAGIC_X86_32P: &str = "xen-3.0-x86_32p";

/// The magic string of a 32-bit guest without PAE, which no 64-bit Xen runs.
pub const MAGIC_X86_32: &str = "xen-3.0-x86_32";

/// Bytes of the command line, its terminating NUL included.
pub const COMMAND_LINE_BYTES: usize = 1024;

numbered! {
    /// A bit of `start_info.flags`, by its number.
    pub enum StartFlag(u32), "xen/include/public/xen.h";
    0 Privileged "SIF_PRIVILEGED" "The domain is privileged.";
    1 InitDomain "SIF_INITDOMAIN" "The domain is the first one, dom0.";
    2 MultibootMod "SIF_MULTIBOOT_MOD" "mod_start is a list of modules.";
    3 ModStartPfn "SIF_MOD_START_PFN" "mod_start is a frame number and the module is not mapped.";
    4 VirtP2m4Tools "SIF_VIRT_P2M_4TOOLS"
    "The tools can read a linear p2m list, so the guest need not keep the tree of lists.";
}

impl StartFlag {
    /// The flag as a mask.
    pub const fn mask(self) -> u32 {
        1 << self.number()
    }
}

/// Bits 15..8 of the flags: power management options of dom0 (`SIF_PM_MASK`).
pub const FLAGS_PM_MASK: u32 = 0xff00;

abi_struct! {
    /// What a guest is told at its start, in the page that RSI points to.
    pub struct StartInfo = "start_info", "xen/include/public/xen.h", 1168 / 1112;
    [0 / 0] magic: [u8; 32] = Ty::Array(&Ty::Char, 32, 32), "The kind of interface, NUL-padded.";
    [32 / 32] nr_pages: u64 = Ty::Word, "Pages of memory that the domain has.";
    [40 / 36] shared_info: u64 = Ty::Word, "Machine address of shared_info, in bytes; not a frame number.";
    [48 / 40] flags: u32 = Ty::U32, "SIF_ bits.";
    pad _pad0: [u8; 4];
    [56 / 44] store_mfn: u64 = Ty::Pfn, "Machine frame of the xenstore ring.";
    [64 / 48] store_evtchn: u32 = Ty::Port, "Local port of the xenstore ring.";
    pad _pad1: [u8; 4];
    [72 / 52] console_mfn: u64 = Ty::Pfn, "Machine frame of the console ring (console.domU.mfn).";
    [80 / 56] console_evtchn: u32 = Ty::Port, "Local port of the console ring (console.domU.evtchn).";
    pad _pad2: [u8; 4];
    [88 / 60] pt_base: u64 = Ty::Word, "Virtual address of the page-table root.";
    [96 / 64] nr_pt_frames: u64 = Ty::Word, "Page-table pages at pt_base; those that map INIT_P2M not counted.";
    [104 / 68] mfn_list: u64 = Ty::Word, "Virtual address of the p2m list, one word per page.";
    [112 / 72] mod_start: u64 = Ty::Word, "The ramdisk: a virtual address, or a frame number by flag; 0 if none.";
    [120 / 76] mod_len: u64 = Ty::Word, "Bytes of the ramdisk; rounded up to pages if it is passed by frame.";
    [128 / 80] cmd_line: [u8; 1024] = Ty::Array(&Ty::I8, 1024, 1024), "The command line, NUL-terminated.";
    [1152 / 1104] first_p2m_pfn: u64 = Ty::Word, "With INIT_P2M: first frame of the p2m list.";
    [1160 / 1108] nr_p2m_frames: u64 = Ty::Word,
        "With INIT_P2M: frames of the p2m list and of the page tables that map it.";
}

#[cfg(test)]
mod tests {
    use zerocopy::{FromZeros, IntoBytes};

    use super::*;
    use crate::layout::Abi;
    use crate::table::assert_well_formed;

    #[test]
    fn flags_read_back_and_stay_below_the_power_management_byte() {
        assert_well_formed::<StartFlag>();
        assert!(StartFlag::ALL.iter().all(|flag| flag.mask() & FLAGS_PM_MASK == 0));
    }

    #[test]
    fn both_layouts_fit_one_page_and_the_magic_fits_its_field() {
        for abi in Abi::ALL {
            assert!(StartInfo::LAYOUT.size.get(abi) <= 4096);
        }
        for magic in [MAGIC_X86_64, MAGIC_X86_32P, MAGIC_X86_32] {
            assert!(magic.len() < MAGIC_BYTES);
        }
        let info = StartInfo::new_zeroed();
        assert_eq!((info.magic.len(), info.cmd_line.len()), (MAGIC_BYTES, COMMAND_LINE_BYTES));
    }

    #[test]
    fn a_field_lands_at_the_offset_of_the_table() {
        let mut info = StartInfo::new_zeroed();
        info.nr_p2m_frames = 0x1122_3344_5566_7788;
        let at = StartInfo::LAYOUT.offset("nr_p2m_frames", Abi::Bits64).unwrap() as usize;
        assert_eq!(info.as_bytes()[at..at + 8], 0x1122_3344_5566_7788_u64.to_le_bytes());
        assert_eq!(StartInfo::LAYOUT.offset("cmd_line", Abi::Bits32), Some(80));
        assert_eq!(StartInfo::LAYOUT.offset("console_info_off", Abi::Bits64), None);
    }
}

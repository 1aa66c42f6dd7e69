//! Commands of `mmu_update` and operations of `mmuext_op`.

use crate::errno::Errno;
use crate::hypercall::{DomU, SubOpFacts};
use crate::layout::{Ty, abi_struct};
use crate::numbered;

/// Bits of an `mmu_update` request's pointer that hold the command; the others are a machine address.
pub const MMU_UPDATE_COMMAND_MASK: u64 = 7;

numbered! {
    /// What one request of `mmu_update` does: bits 2..0 of its pointer.
    pub enum MmuUpdateCommand(u32), "xen/include/public/xen.h": SubOpFacts;
    0 NormalPtUpdate "NORMAL_PT_UPDATE"
    "Stores the value at the machine address, checked as a page-table entry if the page is a page table." {
        arg: "mmu_update", domu: DomU::Available
    }
    1 MachphysUpdate "MACHPHYS_UPDATE"
    "Sets the machine-to-physical entry of the frame that the address lies in; the domain must own it." {
        arg: "mmu_update", domu: DomU::Available
    }
    2 PtUpdatePreserveAd "PT_UPDATE_PRESERVE_AD"
    "Stores as NORMAL_PT_UPDATE, keeping the accessed and dirty bits that the entry has gained." {
        arg: "mmu_update", domu: DomU::Available
    }
    3 PtUpdateNoTranslate "PT_UPDATE_NO_TRANSLATE"
    "Stores as NORMAL_PT_UPDATE; the value is never translated, which for a PV guest is no difference." {
        arg: "mmu_update", domu: DomU::Available
    }
}

numbered! {
    /// An operation of `mmuext_op`.
    pub enum MmuExtOp(u32), "xen/include/public/xen.h": SubOpFacts;
    0 PinL1Table "PIN_L1_TABLE"
    "Validates the frame arg1 as an L1 page table and keeps it one until unpinned." {
        arg: "mfn", domu: DomU::Available
    }
    1 PinL2Table "PIN_L2_TABLE"
    "Validates the frame arg1 and everything below it as an L2 page table and keeps it one." {
        arg: "mfn", domu: DomU::Available
    }
    2 PinL3Table "PIN_L3_TABLE"
    "Validates the frame arg1 and everything below it as an L3 page table and keeps it one." {
        arg: "mfn", domu: DomU::Available
    }
    3 PinL4Table "PIN_L4_TABLE"
    "Validates the frame arg1 and everything below it as an L4 page table; ignored for 32-bit guests." {
        arg: "mfn", domu: DomU::Available
    }
    4 UnpinTable "UNPIN_TABLE" "Drops the pin of the frame arg1; EINVAL if it was not pinned." {
        arg: "mfn", domu: DomU::Available
    }
    5 NewBaseptr "NEW_BASEPTR" "Makes the frame arg1 the root of the kernel's address space." {
        arg: "mfn", domu: DomU::Available
    }
    6 TlbFlushLocal "TLB_FLUSH_LOCAL" "Flushes the calling vCPU's TLB." {
        arg: "", domu: DomU::Available
    }
    7 InvlpgLocal "INVLPG_LOCAL"
    "Flushes the address arg1 from the calling vCPU's TLB; an invalid address is ignored." {
        arg: "linear_addr", domu: DomU::Available
    }
    8 TlbFlushMulti "TLB_FLUSH_MULTI" "Flushes the TLBs of the vCPUs in the bitmap arg2." {
        arg: "vcpumask", domu: DomU::Available
    }
    9 InvlpgMulti "INVLPG_MULTI"
    "Flushes the address arg1 from the TLBs of the vCPUs in the bitmap arg2." {
        arg: "linear_addr, vcpumask", domu: DomU::Available
    }
    10 TlbFlushAll "TLB_FLUSH_ALL" "Flushes the TLBs of every vCPU of the domain." {
        arg: "", domu: DomU::Available
    }
    11 InvlpgAll "INVLPG_ALL" "Flushes the address arg1 from the TLB of every vCPU of the domain." {
        arg: "linear_addr", domu: DomU::Available
    }
    12 FlushCache "FLUSH_CACHE" "Writes back and invalidates the caches of this CPU." {
        arg: "", domu: DomU::Refused(Errno::Eacces)
    }
    13 SetLdt "SET_LDT"
    "Sets the LDT: page-aligned address arg1, arg2 entries (at most 8192); its pages are checked when used." {
        arg: "linear_addr, nr_ents", domu: DomU::Available
    }
    15 NewUserBaseptr "NEW_USER_BASEPTR"
    "64-bit only: makes the frame arg1 the root of user mode; 0 leaves user mode without one." {
        arg: "mfn", domu: DomU::Available
    }
    16 ClearPage "CLEAR_PAGE" "Zeroes the frame arg1, which must be usable as a writable page." {
        arg: "mfn", domu: DomU::Available
    }
    17 CopyPage "COPY_PAGE"
    "Copies the frame arg2 to the frame arg1, which must be usable as a writable page." {
        arg: "mfn, src_mfn", domu: DomU::Available
    }
    18 FlushCacheGlobal "FLUSH_CACHE_GLOBAL" "Writes back and invalidates the caches of all CPUs." {
        arg: "", domu: DomU::Refused(Errno::Eacces)
    }
    19 MarkSuper "MARK_SUPER" "Once marked a frame as the head of a superpage." {
        arg: "mfn", domu: DomU::Removed(Errno::Eopnotsupp)
    }
    20 UnmarkSuper "UNMARK_SUPER" "Once undid MARK_SUPER." {
        arg: "mfn", domu: DomU::Removed(Errno::Eopnotsupp)
    }
}

/// Bits of the flags argument of `update_va_mapping`.
pub mod uvmf {
    /// Flush nothing.
    pub const NONE: u64 = 0;
    /// Flush the whole TLB.
    pub const TLB_FLUSH: u64 = 1;
    /// Flush the one address.
    pub const INVLPG: u64 = 2;
    /// Bits that hold the kind of flush.
    pub const FLUSH_TYPE_MASK: u64 = 3;
    /// On every vCPU. Without it the remaining bits are a pointer to a bitmap of vCPUs, 0 meaning this one.
    pub const ALL: u64 = 4;
}

abi_struct! {
    /// One request of `mmu_update`.
    pub struct MmuUpdate = "mmu_update", "xen/include/public/xen.h", 16 / 16;
    [0 / 0] ptr: u64 = Ty::U64, "Machine address of the entry, with the command in bits 2..0.";
    [8 / 8] val: u64 = Ty::U64, "The new content.";
}

abi_struct! {
    /// One operation of `mmuext_op`. The two arguments are unions in C.
    pub struct MmuExtRequest = "mmuext_op", "xen/include/public/xen.h", 24 / 12;
    [0 / 0] cmd: u32 = Ty::U32, "The operation.";
    pad _pad0: [u8; 4];
    [8 / 4] arg1: u64 = Ty::Word, "A machine frame (mfn) or a virtual address (linear_addr).";
    [16 / 8] arg2: u64 = Ty::Word, "A number of entries (nr_ents), a pointer (vcpumask) or a frame (src_mfn).";
}

abi_struct! {
    /// One call of a `multicall`.
    pub struct MulticallEntry = "multicall_entry", "xen/include/public/xen.h", 64 / 32;
    [0 / 0] op: u64 = Ty::Word, "The hypercall's number.";
    [8 / 4] result: u64 = Ty::Word, "What it returned, written by the hypervisor.";
    [16 / 8] args: [u64; 6] = Ty::Array(&Ty::Word, 6, 6), "Its arguments; the sixth is unused.";
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::assert_well_formed;

    #[test]
    fn operations_read_back_and_fourteen_is_a_hole() {
        assert_well_formed::<MmuUpdateCommand>();
        assert_well_formed::<MmuExtOp>();
        assert_eq!(MmuExtOp::from_number(14), None);
        assert_eq!(MmuExtOp::from_number(21), None);
    }
}

//! Operations of `memory_op`.
//!
//! The command word holds the operation in its low bits and, above them, the extent at which Xen resumes a
//! long operation. Reservation calls never fail with an error number: they return how many extents were
//! done, and a bad pointer, a bad domain or a lack of memory show as a short count.

use crate::hypercall::{DomU, SubOpFacts};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::errno::Errno;
use crate::layout::{Ty, abi_struct};
use crate::numbered;

/// Bits of the command word that hold the operation; the extent to resume at is above them.
pub const MEMORY_OP_MASK: u64 = 0x3f;
/// Where the extent to resume at begins in the command word.
pub const MEMORY_OP_EXTENT_SHIFT: u32 = 6;

numbered! {
    /// An operation of `memory_op`.
    pub enum MemoryOp(u32), "xen/include/public/memory.h": SubOpFacts;
    0 IncreaseReservation "increase_reservation"
    "Allocates extents of machine memory and stores their frame numbers; returns how many." {
        arg: "xen_memory_reservation", domu: DomU::Available
    }
    1 DecreaseReservation "decrease_reservation"
    "Gives the listed machine frames back; returns how many extents were accepted." {
        arg: "xen_memory_reservation", domu: DomU::Available
    }
    2 MaximumRamPage "maximum_ram_page" "Returns an upper bound of the host's machine frame numbers." {
        arg: "", domu: DomU::Available
    }
    3 CurrentReservation "current_reservation" "Returns how many pages the domain has." {
        arg: "domid_t", domu: DomU::Available
    }
    4 MaximumReservation "maximum_reservation" "Returns how many pages the domain may have." {
        arg: "domid_t", domu: DomU::Available
    }
    5 MachphysMfnList "machphys_mfn_list"
    "Lists the machine frames that hold the machine-to-physical table, one for every 2 MiB." {
        arg: "xen_machphys_mfn_list", domu: DomU::Available
    }
    6 PopulatePhysmap "populate_physmap"
    "Allocates extents for the listed pseudo-physical frames, stores the machine frames; returns how many." {
        arg: "xen_memory_reservation", domu: DomU::Available
    }
    7 AddToPhysmap "add_to_physmap" "Maps a frame into a translated domain; PV domains have no such map." {
        arg: "xen_add_to_physmap", domu: DomU::Refused(Errno::Eacces)
    }
    9 MemoryMap "memory_map"
    "Copies out the domain's e820 map as the toolstack set it; ENOSYS if it set none." {
        arg: "xen_memory_map", domu: DomU::Available
    }
    10 MachineMemoryMap "machine_memory_map" "Copies out the host's e820 map." {
        arg: "xen_memory_map", domu: DomU::Refused(Errno::Eperm)
    }
    11 Exchange "exchange"
    "Trades extents of one order for extents of another, keeping the pseudo-physical frames." {
        arg: "xen_memory_exchange", domu: DomU::Available
    }
    12 MachphysMapping "machphys_mapping"
    "Tells where the machine-to-physical table is mapped and the last machine frame it can describe." {
        arg: "xen_machphys_mapping", domu: DomU::Available
    }
    13 SetMemoryMap "set_memory_map" "Sets a domain's e820 map, which a domU may do for itself." {
        arg: "xen_foreign_memory_map", domu: DomU::Available
    }
    14 MaximumGpfn "maximum_gpfn" "Returns the highest pseudo-physical frame in use." {
        arg: "domid_t", domu: DomU::Available
    }
    15 RemoveFromPhysmap "remove_from_physmap" "Unmaps a frame of a translated domain." {
        arg: "xen_remove_from_physmap", domu: DomU::Refused(Errno::Eacces)
    }
    16 SetPodTarget "set_pod_target" "Sets the populate-on-demand target of an HVM domain." {
        arg: "xen_pod_target", domu: DomU::Refused(Errno::Einval)
    }
    17 GetPodTarget "get_pod_target" "Reads the populate-on-demand target of an HVM domain." {
        arg: "xen_pod_target", domu: DomU::Refused(Errno::Einval)
    }
    18 GetSharingFreedPages "get_sharing_freed_pages" "Returns how many pages sharing has freed; 0 without it." {
        arg: "", domu: DomU::Available
    }
    19 GetSharingSharedPages "get_sharing_shared_pages" "Returns how many pages are shared; 0 without sharing." {
        arg: "", domu: DomU::Available
    }
    20 PagingOp "paging_op" "Pages memory of another domain out." {
        arg: "xen_mem_paging_op", domu: DomU::Optional(Errno::Enosys)
    }
    21 AccessOp "access_op" "Sets access restrictions on another domain's memory." {
        arg: "xen_mem_access_op", domu: DomU::Refused(Errno::Eperm)
    }
    22 SharingOp "sharing_op" "Shares memory between other domains." {
        arg: "xen_mem_sharing_op", domu: DomU::Optional(Errno::Enosys)
    }
    23 AddToPhysmapBatch "add_to_physmap_batch" "Maps frames into a translated domain." {
        arg: "xen_add_to_physmap_batch", domu: DomU::Refused(Errno::Eacces)
    }
    24 ClaimPages "claim_pages" "Reserves host memory for a domain under construction." {
        arg: "xen_memory_reservation", domu: DomU::Refused(Errno::Eperm)
    }
    25 MachphysCompatMfnList "machphys_compat_mfn_list"
    "Lists the machine frames that hold the machine-to-physical table of 32-bit guests." {
        arg: "xen_machphys_mfn_list", domu: DomU::Available
    }
    26 GetVnumainfo "get_vnumainfo" "Copies out the domain's virtual NUMA layout." {
        arg: "xen_vnuma_topology_info", domu: DomU::Optional(Errno::Eopnotsupp)
    }
    27 ReservedDeviceMemoryMap "reserved_device_memory_map" "Lists host memory reserved for devices." {
        arg: "xen_reserved_device_memory_map", domu: DomU::Available
    }
    28 AcquireResource "acquire_resource" "Maps pages that Xen keeps for another domain." {
        arg: "xen_mem_acquire_resource", domu: DomU::Refused(Errno::Eperm)
    }
}

/// Fields of `MemoryReservation::mem_flags`.
pub mod mem_flags {
    /// Bits 7..0: the most address bits that the memory may need; 0 is any.
    pub const ADDRESS_BITS_MASK: u32 = 0xff;
    /// Bits 15..8: a NUMA node plus one; 0 is any.
    pub const NODE_SHIFT: u32 = 8;
    /// Populate on demand.
    pub const POPULATE_ON_DEMAND: u32 = 1 << 16;
    /// Only from the node named.
    pub const EXACT_NODE_REQUEST: u32 = 1 << 17;
    /// The node is a virtual one.
    pub const VNODE: u32 = 1 << 18;
}

/// A machine-to-physical entry of a frame that no domain's pseudo-physical memory holds: all ones.
pub const INVALID_M2P_ENTRY: u64 = u64::MAX;

abi_struct! {
    /// A list of extents to allocate, populate or give back.
    pub struct MemoryReservation = "xen_memory_reservation", "xen/include/public/memory.h", 32 / 20;
    [0 / 0] extent_start: u64 = Ty::Pointer, "The list: one frame number per extent, read or written by \
                                              the operation.";
    [8 / 4] nr_extents: u64 = Ty::Word, "How many extents.";
    [16 / 8] extent_order: u32 = Ty::U32, "log2 of the pages in each.";
    [20 / 12] mem_flags: u32 = Ty::U32, "Which memory is acceptable.";
    [24 / 16] domid: u16 = Ty::DomId, "Whose memory; DOMID_SELF for an unprivileged domain.";
    pad _pad0: [u8; 6];
}

abi_struct! {
    /// Extents to give up and extents to get for them.
    pub struct MemoryExchange = "xen_memory_exchange", "xen/include/public/memory.h", 72 / 44;
    [0 / 0] input: MemoryReservation = Ty::Struct(MemoryReservation::LAYOUT),
        "What to give up, by machine frame (C name: in).";
    [32 / 20] output: MemoryReservation = Ty::Struct(MemoryReservation::LAYOUT),
        "What to get: pseudo-physical frames before, machine frames after (C name: out).";
    [64 / 40] nr_exchanged: u64 = Ty::Word, "How many input extents were done; 0 at first.";
}

abi_struct! {
    /// Where the machine-to-physical table is.
    pub struct MachphysMapping = "xen_machphys_mapping", "xen/include/public/memory.h", 24 / 12;
    [0 / 0] v_start: u64 = Ty::Word, "Virtual address of its beginning.";
    [8 / 4] v_end: u64 = Ty::Word, "Virtual address of its end.";
    [16 / 8] max_mfn: u64 = Ty::Word, "The last machine frame it can describe.";
}

abi_struct! {
    /// A buffer of frames that hold the machine-to-physical table.
    pub struct MachphysMfnList = "xen_machphys_mfn_list", "xen/include/public/memory.h", 24 / 12;
    [0 / 0] max_extents: u32 = Ty::U32, "Room in the buffer.";
    pad _pad0: [u8; 4];
    [8 / 4] extent_start: u64 = Ty::Pointer, "The buffer: one frame number for every 2 MiB of table.";
    [16 / 8] nr_extents: u32 = Ty::U32, "How many were written.";
    pad _pad1: [u8; 4];
}

abi_struct! {
    /// A buffer for the memory map.
    pub struct MemoryMap = "xen_memory_map", "xen/include/public/memory.h", 16 / 8;
    [0 / 0] nr_entries: u32 = Ty::U32, "Room in the buffer; how many entries were written.";
    pad _pad0: [u8; 4];
    [8 / 4] buffer: u64 = Ty::Pointer, "The buffer of E820Entry, 20 bytes each.";
}

abi_struct! {
    /// A memory map for a domain.
    pub struct ForeignMemoryMap = "xen_foreign_memory_map", "xen/include/public/memory.h", 24 / 12;
    [0 / 0] domid: u16 = Ty::DomId, "Whose it becomes.";
    pad _pad0: [u8; 6];
    [8 / 4] map: MemoryMap = Ty::Struct(MemoryMap::LAYOUT), "Where it is.";
}

/// The most entries of a memory map (`E820MAX`).
pub const E820_MAX: u32 = 1024;

abi_struct! {
    /// A buffer for ranges of memory that the host reserves for devices.
    pub struct ReservedDeviceMemoryMap =
        "xen_reserved_device_memory_map", "xen/include/public/memory.h", 24 / 16;
    [0 / 0] flags: u32 = Ty::U32, "Bit 0: the ranges of all devices.";
    [4 / 4] nr_entries: u32 = Ty::U32, "Room in the buffer; how many ranges there are.";
    [8 / 8] buffer: u64 = Ty::Pointer, "The buffer.";
    [16 / 12] device: u32 = Ty::U32, "Segment, bus, device and function of one device.";
    pad _pad0: [u8; 4];
}

/// `ReservedDeviceMemoryMap::flags`: of all devices (`XENMEM_RDM_ALL`).
pub const RESERVED_OF_ALL_DEVICES: u32 = 1;

/// The type of an e820 entry.
pub mod e820 {
    /// Usable memory.
    pub const RAM: u32 = 1;
    /// Not to be used.
    pub const RESERVED: u32 = 2;
    /// ACPI tables, usable once read.
    pub const ACPI: u32 = 3;
    /// ACPI memory to be kept.
    pub const NVS: u32 = 4;
    /// Faulty memory.
    pub const UNUSABLE: u32 = 5;
}

/// One entry of the memory map: 20 bytes without padding in both ABIs.
///
/// `struct e820entry` of `xen/arch/x86/include/asm/e820.h`, packed; the same as the BIOS call gives. The
/// numbers are byte arrays because the entry is packed and so has no alignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct E820Entry {
    /// Pseudo-physical address of the range, in bytes.
    pub addr: U64,
    /// Bytes in the range.
    pub size: U64,
    /// What the range is; see [`e820`].
    pub kind: U32,
}

const _: () = assert!(size_of::<E820Entry>() == 20);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::assert_well_formed;

    #[test]
    fn operations_read_back_and_fit_below_the_extent() {
        assert_well_formed::<MemoryOp>();
        assert_eq!(MemoryOp::from_number(8), None);
        assert_eq!(1 << MEMORY_OP_EXTENT_SHIFT, MEMORY_OP_MASK + 1);
        assert!(MemoryOp::ALL.iter().all(|op| u64::from(op.number()) <= MEMORY_OP_MASK));
    }
}

//! Operations of `memory_op`.
//!
//! The command word holds the operation in its low bits and, above them, the extent at which Xen resumes a
//! long operation. Reservation calls never fail with an error number: they return how many extents were
//! done, and a bad pointer, a bad domain or a lack of memory show as a short count.

use super::domu::DomU;
use super::family::SubOpFacts;
use crate::errno::Errno;
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
    13 SetMemoryMap "set_memory_map" "Sets the e820 map of another domain." {
        arg: "xen_foreign_memory_map", domu: DomU::Refused(Errno::Eperm)
    }
    14 MaximumGpfn "maximum_gpfn" "Returns the highest pseudo-physical frame in use." {
        arg: "domid_t", domu: DomU::Available
    }
    15 RemoveFromPhysmap "remove_from_physmap" "Unmaps a frame of a translated domain." {
        arg: "xen_remove_from_physmap", domu: DomU::Refused(Errno::Eacces)
    }
    16 SetPodTarget "set_pod_target" "Sets the populate-on-demand target of another domain." {
        arg: "xen_pod_target", domu: DomU::Refused(Errno::Eperm)
    }
    17 GetPodTarget "get_pod_target" "Reads the populate-on-demand target of another domain." {
        arg: "xen_pod_target", domu: DomU::Refused(Errno::Eperm)
    }
    18 GetSharingFreedPages "get_sharing_freed_pages" "Returns how many pages sharing has freed." {
        arg: "", domu: DomU::Optional(Errno::Enosys)
    }
    19 GetSharingSharedPages "get_sharing_shared_pages" "Returns how many pages are shared." {
        arg: "", domu: DomU::Optional(Errno::Enosys)
    }
    20 PagingOp "paging_op" "Pages memory of another domain out." {
        arg: "xen_mem_paging_op", domu: DomU::Refused(Errno::Eperm)
    }
    21 AccessOp "access_op" "Sets access restrictions on another domain's memory." {
        arg: "xen_mem_access_op", domu: DomU::Refused(Errno::Eperm)
    }
    22 SharingOp "sharing_op" "Shares memory between other domains." {
        arg: "xen_mem_sharing_op", domu: DomU::Refused(Errno::Eperm)
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
        arg: "xen_reserved_device_memory_map", domu: DomU::Refused(Errno::Eperm)
    }
    28 AcquireResource "acquire_resource" "Maps pages that Xen keeps for another domain." {
        arg: "xen_mem_acquire_resource", domu: DomU::Refused(Errno::Eperm)
    }
}

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

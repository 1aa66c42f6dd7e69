//! Operations of `grant_table_op` and the status each of its elements gets.
//!
//! The hypercall takes an array of one structure per element. The hypercall itself returns 0 (or an error if
//! the array cannot be read); whether an element worked is in its own `status` field, a [`GrantStatus`].

use core::fmt;

use serde::Serialize;

use crate::errno::Errno;
use crate::hypercall::{DomU, SubOpFacts};
use crate::layout::{Ty, abi_struct};
use crate::numbered;

numbered! {
    /// An operation of `grant_table_op`.
    pub enum GrantTableOp(u32), "xen/include/public/grant_table.h": SubOpFacts;
    0 MapGrantRef "map_grant_ref" "Maps a page that another domain granted." {
        arg: "gnttab_map_grant_ref", domu: DomU::Available
    }
    1 UnmapGrantRef "unmap_grant_ref" "Unmaps a granted page by its handle." {
        arg: "gnttab_unmap_grant_ref", domu: DomU::Available
    }
    2 SetupTable "setup_table"
    "Grows the domain's own grant table and lists its machine frames; takes one element." {
        arg: "gnttab_setup_table", domu: DomU::Available
    }
    3 DumpTable "dump_table" "Once printed a grant table on the console of a debugging Xen." {
        arg: "gnttab_dump_table", domu: DomU::Removed(Errno::Enosys)
    }
    4 Transfer "transfer" "Gives a page away to a domain that waits for one; obsolete." {
        arg: "gnttab_transfer", domu: DomU::Optional(Errno::Eopnotsupp)
    }
    5 Copy "copy" "Copies bytes within a page, each side a grant or an own frame." {
        arg: "gnttab_copy", domu: DomU::Available
    }
    6 QuerySize "query_size" "Tells the current and the largest size of the grant table; takes one element." {
        arg: "gnttab_query_size", domu: DomU::Available
    }
    7 UnmapAndReplace "unmap_and_replace" "Unmaps a granted page and moves another mapping into its place." {
        arg: "gnttab_unmap_and_replace", domu: DomU::Available
    }
    8 SetVersion "set_version"
    "Chooses the layout of the entries, 1 or 2, and clears all but the reserved ones; fails with an errno." {
        arg: "gnttab_set_version", domu: DomU::Available
    }
    9 GetStatusFrames "get_status_frames"
    "Lists the machine frames that hold the status words of version 2; takes one element." {
        arg: "gnttab_get_status_frames", domu: DomU::Available
    }
    10 GetVersion "get_version" "Tells the layout in use." {
        arg: "gnttab_get_version", domu: DomU::Available
    }
    11 SwapGrantRef "swap_grant_ref" "Exchanges the contents of two entries of the own table." {
        arg: "gnttab_swap_grant_ref", domu: DomU::Available
    }
    12 CacheFlush "cache_flush" "Cleans or invalidates caches over a part of a granted page." {
        arg: "gnttab_cache_flush", domu: DomU::Optional(Errno::Enosys)
    }
}

/// Declares [`GrantStatus`]; its numbers are negative, which `numbered!` does not take.
macro_rules! grant_statuses {
    ($($number:literal $Variant:ident $name:literal $meaning:literal;)*) => {
        /// The status of one element of `grant_table_op`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(i16)]
        pub enum GrantStatus {
            $(#[doc = $meaning] $Variant = $number,)*
        }

        impl GrantStatus {
            /// Every status, 0 first and then downward.
            pub const ALL: &'static [Self] = &[$(Self::$Variant),*];

            /// The status of that number; `None` if Xen defines none.
            pub const fn from_number(number: i16) -> Option<Self> {
                match number {
                    $($number => Some(Self::$Variant),)*
                    _ => None,
                }
            }

            /// The number in Xen's header, 0 or negative.
            pub const fn number(self) -> i16 {
                self as i16
            }

            /// The name in Xen's header, less `GNTST_`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$Variant => $name,)*
                }
            }

            /// One sentence on what the status means.
            pub const fn meaning(self) -> &'static str {
                match self {
                    $(Self::$Variant => $meaning,)*
                }
            }
        }
    };
}

grant_statuses! {
    0 Okay "okay" "The element was done.";
    -1 GeneralError "general_error" "The entry, its flags or the mapping do not permit it.";
    -2 BadDomain "bad_domain" "No such domain.";
    -3 BadGntref "bad_gntref" "No such grant reference, or the flags ask for no mapping.";
    -4 BadHandle "bad_handle" "No such mapping.";
    -5 BadVirtAddr "bad_virt_addr" "The virtual address cannot take a mapping.";
    -6 BadDevAddr "bad_dev_addr" "The device address does not belong to the mapping.";
    -7 NoDeviceSpace "no_device_space" "The I/O MMU has no space.";
    -8 PermissionDenied "permission_denied" "The domain has not enough privilege.";
    -9 BadPage "bad_page" "The page is not the domain's or not usable.";
    -10 BadCopyArg "bad_copy_arg" "The copy crosses the end of a page.";
    -11 AddressTooBig "address_too_big" "The page lies too high for the receiver.";
    -12 Eagain "eagain" "Not done; try again.";
    -13 NoSpace "no_space" "No handle or other space left.";
}

impl fmt::Display for GrantStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for GrantStatus {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// References that tools may fill before the guest runs and that a change of version keeps.
pub const RESERVED_ENTRIES: u32 = 8;
/// The reference of the console ring's page.
pub const RESERVED_CONSOLE: u32 = 0;
/// The reference of the xenstore ring's page.
pub const RESERVED_XENSTORE: u32 = 1;

/// Bits of a grant entry's flags, which guest and hypervisor both write.
pub mod gtf {
    /// Bits 1..0: the type.
    pub const TYPE_MASK: u16 = 3;
    /// Type: grants nothing.
    pub const INVALID: u16 = 0;
    /// Type: the domain may map and access the frame.
    pub const PERMIT_ACCESS: u16 = 1;
    /// Type: the domain may give a page away to this one.
    pub const ACCEPT_TRANSFER: u16 = 2;
    /// Type: the domain may use a grant of a third domain. Version 2 only; copies only.
    pub const TRANSITIVE: u16 = 3;
    /// The domain may only read.
    pub const READONLY: u16 = 1 << 2;
    /// The page is in use for reading. Written by the user's hypervisor.
    pub const READING: u16 = 1 << 3;
    /// The page is in use for writing. Written by the user's hypervisor.
    pub const WRITING: u16 = 1 << 4;
    /// Cache attribute of mappings.
    pub const PWT: u16 = 1 << 5;
    /// Cache attribute of mappings.
    pub const PCD: u16 = 1 << 6;
    /// Cache attribute of mappings.
    pub const PAT: u16 = 1 << 7;
    /// Only a part of the page, only by copy. Version 2 only.
    pub const SUB_PAGE: u16 = 1 << 8;
    /// Of a transfer: the hypervisor is about to write the frame.
    pub const TRANSFER_COMMITTED: u16 = 1 << 2;
    /// Of a transfer: the frame has been written.
    pub const TRANSFER_COMPLETED: u16 = 1 << 3;
}

/// Bits of `MapGrantRef::flags`.
pub mod gntmap {
    /// Map for devices.
    pub const DEVICE_MAP: u32 = 1;
    /// Map for the CPU.
    pub const HOST_MAP: u32 = 2;
    /// Read-only.
    pub const READONLY: u32 = 4;
    /// For user mode too.
    pub const APPLICATION_MAP: u32 = 8;
    /// `host_addr` is the machine address of a page-table entry instead of a virtual address.
    pub const CONTAINS_PTE: u32 = 16;
    /// Where the bits that go into the available bits of the entry begin.
    pub const GUEST_AVAIL_SHIFT: u32 = 16;
}

/// Bits of `CopyBytes::flags`.
pub mod gntcopy {
    /// The source is a grant.
    pub const SOURCE_GREF: u16 = 1;
    /// The destination is a grant.
    pub const DEST_GREF: u16 = 2;
}

abi_struct! {
    /// An entry of a version 1 table: 512 in a page.
    pub struct GrantEntryV1 = "grant_entry_v1", "xen/include/public/grant_table.h", 8 / 8;
    [0 / 0] flags: u16 = Ty::U16, "Type and state; written last when an entry is made.";
    [2 / 2] domid: u16 = Ty::DomId, "Who may use the page.";
    [4 / 4] frame: u32 = Ty::U32, "The page's frame.";
}

abi_struct! {
    /// An entry of a version 2 table that grants a whole page: 256 in a page.
    pub struct GrantEntryV2Full = "grant_entry_v2.full_page", "xen/include/public/grant_table.h", 16 / 16;
    [0 / 0] flags: u16 = Ty::U16, "Type; what is in use stands in the status word instead.";
    [2 / 2] domid: u16 = Ty::DomId, "Who may use the page.";
    [4 / 4] pad0: u32 = Ty::U32, "Unused.";
    [8 / 8] frame: u64 = Ty::U64, "The page's frame.";
}

abi_struct! {
    /// An entry of a version 2 table that grants a part of a page.
    pub struct GrantEntryV2Sub = "grant_entry_v2.sub_page", "xen/include/public/grant_table.h", 16 / 16;
    [0 / 0] flags: u16 = Ty::U16, "Type, with the bit for a part.";
    [2 / 2] domid: u16 = Ty::DomId, "Who may copy.";
    [4 / 4] page_off: u16 = Ty::U16, "Where the part begins, in bytes.";
    [6 / 6] length: u16 = Ty::U16, "Bytes in it.";
    [8 / 8] frame: u64 = Ty::U64, "The page's frame.";
}

abi_struct! {
    /// An entry of a version 2 table that hands on another domain's grant.
    ///
    /// C's own structure is 12 bytes; the union around it makes it 16.
    pub struct GrantEntryV2Transitive =
        "grant_entry_v2.transitive", "xen/include/public/grant_table.h", 16 / 16;
    [0 / 0] flags: u16 = Ty::U16, "Type.";
    [2 / 2] domid: u16 = Ty::DomId, "Who may copy.";
    [4 / 4] trans_domid: u16 = Ty::DomId, "Whose grant it is.";
    [6 / 6] pad0: u16 = Ty::U16, "Unused.";
    [8 / 8] gref: u32 = Ty::GrantRef, "That grant.";
    [12 / 12] spacer: u32 = Ty::U32, "Unused.";
}

abi_struct! {
    /// A grant to map.
    pub struct MapGrantRef = "gnttab_map_grant_ref", "xen/include/public/grant_table.h", 32 / 32;
    [0 / 0] host_addr: u64 = Ty::U64, "Where: a virtual address, or the machine address of an entry.";
    [8 / 8] flags: u32 = Ty::U32, "GNTMAP_ bits.";
    [12 / 12] reference: u32 = Ty::GrantRef, "The grant (C name: ref).";
    [16 / 16] dom: u16 = Ty::DomId, "Whose grant.";
    [18 / 18] status: i16 = Ty::I16, "Answer: the status.";
    [20 / 20] handle: u32 = Ty::U32, "Answer: what to unmap it by.";
    [24 / 24] dev_bus_addr: u64 = Ty::U64, "Answer: the page's machine address.";
}

abi_struct! {
    /// A mapping to undo.
    pub struct UnmapGrantRef = "gnttab_unmap_grant_ref", "xen/include/public/grant_table.h", 24 / 24;
    [0 / 0] host_addr: u64 = Ty::U64, "Where it is mapped; 0 if not for the CPU.";
    [8 / 8] dev_bus_addr: u64 = Ty::U64, "Its device address; 0 if not for devices.";
    [16 / 16] handle: u32 = Ty::U32, "What the mapping gave.";
    [20 / 20] status: i16 = Ty::I16, "Answer: the status.";
    pad _pad0: [u8; 2];
}

abi_struct! {
    /// The domain's own table.
    pub struct SetupTable = "gnttab_setup_table", "xen/include/public/grant_table.h", 24 / 16;
    [0 / 0] dom: u16 = Ty::DomId, "Whose table; DOMID_SELF for an unprivileged domain.";
    pad _pad0: [u8; 2];
    [4 / 4] nr_frames: u32 = Ty::U32, "At least so many pages.";
    [8 / 8] status: i16 = Ty::I16, "Answer: the status.";
    pad _pad1: [u8; 6];
    [16 / 12] frame_list: u64 = Ty::Pointer, "Answer goes there: the machine frames, a word each.";
}

abi_struct! {
    /// A page to give away.
    pub struct TransferPage = "gnttab_transfer", "xen/include/public/grant_table.h", 24 / 16;
    [0 / 0] mfn: u64 = Ty::Pfn, "The page.";
    [8 / 4] domid: u16 = Ty::DomId, "Who gets it.";
    pad _pad0: [u8; 2];
    [12 / 8] reference: u32 = Ty::GrantRef, "That domain's entry which waits for it (C name: ref).";
    [16 / 12] status: i16 = Ty::I16, "Answer: the status.";
    pad _pad1: [u8; 6];
}

abi_struct! {
    /// One side of a copy.
    pub struct CopySide = "gnttab_copy_ptr", "xen/include/public/grant_table.h", 16 / 8;
    [0 / 0] place: u64 = Ty::Word, "A frame of the domain, or in its low 32 bits a grant (C name: u).";
    [8 / 4] domid: u16 = Ty::DomId, "Whose frame or grant.";
    [10 / 6] offset: u16 = Ty::U16, "Bytes from the page's beginning.";
    pad _pad0: [u8; 4];
}

abi_struct! {
    /// Bytes to copy within a page.
    pub struct CopyBytes = "gnttab_copy", "xen/include/public/grant_table.h", 40 / 24;
    [0 / 0] source: CopySide = Ty::Struct(CopySide::LAYOUT), "From where.";
    [16 / 8] dest: CopySide = Ty::Struct(CopySide::LAYOUT), "To where.";
    [32 / 16] len: u16 = Ty::U16, "How many bytes.";
    [34 / 18] flags: u16 = Ty::U16, "Bit 0: the source is a grant; bit 1: the destination is one.";
    [36 / 20] status: i16 = Ty::I16, "Answer: the status.";
    pad _pad0: [u8; 2];
}

abi_struct! {
    /// The size of a table.
    pub struct QuerySize = "gnttab_query_size", "xen/include/public/grant_table.h", 16 / 16;
    [0 / 0] dom: u16 = Ty::DomId, "Whose table; DOMID_SELF for an unprivileged domain.";
    pad _pad0: [u8; 2];
    [4 / 4] nr_frames: u32 = Ty::U32, "Answer: pages now.";
    [8 / 8] max_nr_frames: u32 = Ty::U32, "Answer: pages at most.";
    [12 / 12] status: i16 = Ty::I16, "Answer: the status.";
    pad _pad1: [u8; 2];
}

abi_struct! {
    /// A mapping to undo and another to move there.
    pub struct UnmapAndReplace = "gnttab_unmap_and_replace", "xen/include/public/grant_table.h", 24 / 24;
    [0 / 0] host_addr: u64 = Ty::U64, "Where the grant is mapped.";
    [8 / 8] new_addr: u64 = Ty::U64, "Where the mapping is that moves.";
    [16 / 16] handle: u32 = Ty::U32, "What the mapping gave.";
    [20 / 20] status: i16 = Ty::I16, "Answer: the status.";
    pad _pad0: [u8; 2];
}

abi_struct! {
    /// A version to choose.
    pub struct SetVersion = "gnttab_set_version", "xen/include/public/grant_table.h", 4 / 4;
    [0 / 0] version: u32 = Ty::U32, "1 or 2; answer: the version now, even on failure.";
}

abi_struct! {
    /// The status words of a version 2 table.
    pub struct GetStatusFrames = "gnttab_get_status_frames", "xen/include/public/grant_table.h", 16 / 12;
    [0 / 0] nr_frames: u32 = Ty::U32, "How many pages.";
    [4 / 4] dom: u16 = Ty::DomId, "Whose; DOMID_SELF for an unprivileged domain.";
    [6 / 6] status: i16 = Ty::I16, "Answer: the status.";
    [8 / 8] frame_list: u64 = Ty::Pointer, "Answer goes there: the machine frames, 8 bytes each.";
}

abi_struct! {
    /// The version in use.
    pub struct GetVersion = "gnttab_get_version", "xen/include/public/grant_table.h", 8 / 8;
    [0 / 0] dom: u16 = Ty::DomId, "Whose table.";
    [2 / 2] pad: u16 = Ty::U16, "Unused.";
    [4 / 4] version: u32 = Ty::U32, "Answer: 1 or 2.";
}

abi_struct! {
    /// Two entries to exchange.
    pub struct SwapGrantRef = "gnttab_swap_grant_ref", "xen/include/public/grant_table.h", 12 / 12;
    [0 / 0] ref_a: u32 = Ty::GrantRef, "One.";
    [4 / 4] ref_b: u32 = Ty::GrantRef, "The other.";
    [8 / 8] status: i16 = Ty::I16, "Answer: the status.";
    pad _pad0: [u8; 2];
}

abi_struct! {
    /// A range whose cache lines to clean or invalidate.
    pub struct CacheFlush = "gnttab_cache_flush", "xen/include/public/grant_table.h", 16 / 16;
    [0 / 0] a: u64 = Ty::U64, "A device address, or in its low 32 bits a grant.";
    [8 / 8] offset: u16 = Ty::U16, "Bytes from the page's beginning.";
    [10 / 10] length: u16 = Ty::U16, "Bytes.";
    [12 / 12] op: u32 = Ty::U32, "Bit 0 clean, bit 1 invalidate, bit 31 a is a grant.";
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::assert_well_formed;

    #[test]
    fn operations_read_back() {
        assert_well_formed::<GrantTableOp>();
        assert_eq!(GrantTableOp::from_number(13), None);
    }

    #[test]
    fn statuses_run_downward_from_zero_without_a_gap() {
        for (index, &status) in (0_i16..).zip(GrantStatus::ALL) {
            assert_eq!(status.number(), -index);
            assert_eq!(GrantStatus::from_number(-index), Some(status));
        }
        assert_eq!(GrantStatus::from_number(-14), None);
        assert_eq!(GrantStatus::from_number(1), None);
    }
}

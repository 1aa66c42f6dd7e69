//! Operations of `grant_table_op` and the status each of its elements gets.
//!
//! The hypercall takes an array of one structure per element. The hypercall itself returns 0 (or an error if
//! the array cannot be read); whether an element worked is in its own `status` field, a [`GrantStatus`].

use core::fmt;

use serde::Serialize;

use super::domu::DomU;
use super::family::SubOpFacts;
use crate::errno::Errno;
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
        arg: "gnttab_cache_flush", domu: DomU::Available
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

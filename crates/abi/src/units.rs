//! Numbers that must not be mixed up, as different types.
//!
//! A PV guest sees three address spaces and Xen's headers use plain integers for all of them:
//!
//! * *machine* memory, which page tables name: [`Mfn`] is a frame, [`MachAddr`] a byte;
//! * *pseudo-physical* memory, the guest's own contiguous numbering: [`Pfn`] is a frame;
//! * *guest virtual* addresses: [`GuestVirt`].
//!
//! Conversions between a frame and its bytes are checked methods; conversions between the address spaces
//! do not exist here, because they need a table (the p2m, the m2p or a page walk).
//!
//! Source: `xen/include/public/xen.h` (`xen_pfn_t`, `domid_t`), `xen/include/public/event_channel.h`
//! (`evtchn_port_t`), `xen/include/public/grant_table.h` (`grant_ref_t`).

use core::fmt;

use serde::Serialize;

/// Bytes in a page: 4096 on every x86 PV guest.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// `PAGE_SIZE` as a length of a slice.
pub const PAGE_BYTES: usize = 1 << PAGE_SHIFT;

/// Declares a transparent number type with its debug prefix.
macro_rules! unit {
    ($(#[$meta:meta])* $name:ident($inner:ty), $format:literal) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "(", $format, ")"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $format, self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

unit!(
    /// A machine frame number: what page-table entries, grants and `start_info` name.
    Mfn(u64), "{:#x}"
);
unit!(
    /// A pseudo-physical frame number: an index into the guest's own p2m list.
    Pfn(u64), "{:#x}"
);
unit!(
    /// A machine address in bytes.
    MachAddr(u64), "{:#x}"
);
unit!(
    /// A guest virtual (linear) address in bytes. Not necessarily canonical: guests name what they like.
    GuestVirt(u64), "{:#x}"
);
unit!(
    /// An event-channel port. Port 0 is never valid.
    Port(u32), "{}"
);
unit!(
    /// A grant reference: an index into the granting domain's grant table.
    GrantRef(u32), "{}"
);
unit!(
    /// A domain number, or one of the reserved ones such as [`DomId::SELF`].
    DomId(u16), "{:#x}"
);
unit!(
    /// A virtual CPU number within a domain.
    VcpuId(u32), "{}"
);

impl Mfn {
    /// The frame's first byte, or `None` if it lies beyond the 64-bit address space.
    pub fn base(self) -> Option<MachAddr> {
        self.0.checked_mul(PAGE_SIZE).map(MachAddr)
    }

    /// The frame `count` frames later, or `None` on overflow.
    pub fn checked_add(self, count: u64) -> Option<Self> {
        self.0.checked_add(count).map(Self)
    }
}

impl Pfn {
    /// The frame `count` frames later, or `None` on overflow.
    pub fn checked_add(self, count: u64) -> Option<Self> {
        self.0.checked_add(count).map(Self)
    }
}

impl MachAddr {
    /// The frame this byte lies in.
    pub fn frame(self) -> Mfn {
        Mfn(self.0 >> PAGE_SHIFT)
    }

    /// The byte's offset within its frame.
    pub fn offset(self) -> usize {
        page_offset(self.0)
    }
}

impl GuestVirt {
    /// The first byte of the page this address lies in.
    pub fn page(self) -> Self {
        Self(self.0 & !(PAGE_SIZE - 1))
    }

    /// The address's offset within its page.
    pub fn offset(self) -> usize {
        page_offset(self.0)
    }

    /// The address `bytes` later, wrapping as the CPU's own address arithmetic does.
    pub fn wrapping_add(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }

    /// Whether bits 63..47 are all equal, as 4-level paging demands.
    ///
    /// Source: AMD APM vol. 2, "Canonical Address Form".
    pub fn is_canonical(self) -> bool {
        let top = self.0 >> 47;
        top == 0 || top == (1 << 17) - 1
    }
}

impl DomId {
    /// `DOMID_SELF`: the calling domain.
    pub const SELF: Self = Self(0x7ff0);
    /// `DOMID_IO`: memory-mapped I/O frames, owned by no domain.
    pub const IO: Self = Self(0x7ff1);
    /// `DOMID_XEN`: Xen's own frames.
    pub const XEN: Self = Self(0x7ff2);
    /// `DOMID_COW`: frames of unshared copies.
    pub const COW: Self = Self(0x7ff3);
    /// `DOMID_INVALID`: never a domain.
    pub const INVALID: Self = Self(0x7ff4);
    /// `DOMID_FIRST_RESERVED`: real domains have lower numbers.
    pub const FIRST_RESERVED: Self = Self(0x7ff0);
}

/// The low 12 bits of an address.
fn page_offset(address: u64) -> usize {
    // Fits: the mask leaves 12 bits.
    (address & (PAGE_SIZE - 1)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_addresses_end_where_bit_47_stops_being_repeated() {
        for (address, canonical) in [
            (0, true),
            (0x0000_7fff_ffff_ffff, true),
            (0x0000_8000_0000_0000, false),
            (0xffff_7fff_ffff_ffff, false),
            (0xffff_8000_0000_0000, true),
            (u64::MAX, true),
        ] {
            assert_eq!(GuestVirt(address).is_canonical(), canonical, "{address:#x}");
        }
    }

    #[test]
    fn a_frame_and_its_bytes_convert_both_ways() {
        assert_eq!(Mfn(0x1234).base(), Some(MachAddr(0x123_4000)));
        assert_eq!(MachAddr(0x123_4567).frame(), Mfn(0x1234));
        assert_eq!(MachAddr(0x123_4567).offset(), 0x567);
        assert_eq!(Mfn(1 << 52).base(), None);
    }
}

//! Guest memory at guest addresses: hypercall buffers, stacks, registered areas.
//!
//! A guest's pointer is a claim. It is translated by the guest kernel's own page tables, as the CPU would for
//! an access from the guest kernel, and refused where a guest has no business: in the address range that the ABI
//! reserves for Xen. Nothing here panics or has side effects beyond the bytes it was asked to touch and the
//! accessed and dirty bits of the path.
//!
//! Source: `xen/arch/x86/include/asm/uaccess.h` (`access_ok`), `xen/arch/x86/include/asm/config.h` (address map).

use paravane_abi::{
    errno::Errno,
    units::{GuestVirt, MachAddr, Mfn, PAGE_SIZE},
};
use paravane_memory::{
    Memory,
    paging::{self, Access, Privilege},
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The first address of the range that the 64-bit ABI reserves for Xen.
pub(crate) const XEN_START: u64 = 0xffff_8000_0000_0000;
/// The first address after it.
pub(crate) const XEN_END: u64 = 0xffff_8800_0000_0000;

/// A guest's address space, for access on behalf of the guest kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AddressSpace<'a> {
    /// Machine memory.
    pub(crate) memory: &'a Memory,
    /// The page-table root to go through.
    pub(crate) root: Mfn,
}

/// An access failed; the address is the first one that could not be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unreachable {
    pub(crate) at: GuestVirt,
}

impl From<Unreachable> for Errno {
    fn from(_: Unreachable) -> Self {
        Self::Efault
    }
}

impl From<Unreachable> for crate::refusal::Refusal {
    fn from(_: Unreachable) -> Self {
        Self::Errno(Errno::Efault)
    }
}

impl AddressSpace<'_> {
    /// Fills `into` from `from` on.
    pub(crate) fn read(&self, from: GuestVirt, into: &mut [u8]) -> Result<(), Unreachable> {
        let mut done = 0;
        while done < into.len() {
            let (at, machine, room) = self.piece(from, done, into.len(), Access::Read)?;
            let piece = &mut into[done..done + room];
            self.memory.read(machine, piece).map_err(|_| Unreachable { at })?;
            done += room;
        }
        Ok(())
    }

    /// Writes `from` to `to` on. Pages before an unreachable one are written, as on real Xen.
    pub(crate) fn write(&self, to: GuestVirt, from: &[u8]) -> Result<(), Unreachable> {
        let mut done = 0;
        while done < from.len() {
            let (at, machine, room) = self.piece(to, done, from.len(), Access::Write)?;
            self.memory.write(machine, &from[done..done + room]).map_err(|_| Unreachable { at })?;
            done += room;
        }
        Ok(())
    }

    /// Reads one value.
    pub(crate) fn read_value<T: FromBytes + IntoBytes>(&self, from: GuestVirt) -> Result<T, Unreachable> {
        let mut value = T::new_zeroed();
        self.read(from, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Writes one value.
    pub(crate) fn write_value<T: IntoBytes + Immutable>(
        &self,
        to: GuestVirt,
        value: &T,
    ) -> Result<(), Unreachable> {
        self.write(to, value.as_bytes())
    }

    /// Element `index` of an array of `T` at `base`; an address that would wrap is unreachable.
    pub(crate) fn read_element<T: FromBytes + IntoBytes>(
        &self,
        base: GuestVirt,
        index: u64,
    ) -> Result<T, Unreachable> {
        self.read_value(element::<T>(base, index)?)
    }

    /// Stores element `index` of an array of `T` at `base`.
    pub(crate) fn write_element<T: IntoBytes + Immutable>(
        &self,
        base: GuestVirt,
        index: u64,
        value: &T,
    ) -> Result<(), Unreachable> {
        self.write_value(element::<T>(base, index)?, value)
    }

    /// The machine address behind `at` for `access` by the guest kernel.
    pub(crate) fn translate(&self, at: GuestVirt, access: Access) -> Result<MachAddr, Unreachable> {
        if (XEN_START..XEN_END).contains(&at.0) {
            return Err(Unreachable { at });
        }
        // The kernel of a 64-bit guest runs in ring 3.
        let found = paging::walk(self.memory, self.root, at, access, Privilege::User)
            .map_err(|_| Unreachable { at })?;
        let base = found.frame.base().ok_or(Unreachable { at })?;
        Ok(MachAddr(base.0 | at.0 & (PAGE_SIZE - 1)))
    }

    /// The next piece of an access of `len` bytes of which `done` are done: its address, machine address and length.
    fn piece(
        &self,
        start: GuestVirt,
        done: usize,
        len: usize,
        access: Access,
    ) -> Result<(GuestVirt, MachAddr, usize), Unreachable> {
        let at = start.0.checked_add(done as u64).map(GuestVirt).ok_or(Unreachable { at: start })?;
        let machine = self.translate(at, access)?;
        let to_page_end = paravane_abi::units::PAGE_BYTES - at.offset();
        Ok((at, machine, to_page_end.min(len - done)))
    }
}

fn element<T>(base: GuestVirt, index: u64) -> Result<GuestVirt, Unreachable> {
    index
        .checked_mul(size_of::<T>() as u64)
        .and_then(|offset| base.0.checked_add(offset))
        .map(GuestVirt)
        .ok_or(Unreachable { at: base })
}

/// Whether real Xen lets a hypercall's pointer be this at all: anything below the non-canonical hole or above the
/// range reserved for Xen. Whether something is mapped there shows only when it is used.
///
/// Source: `__addr_ok` in `xen/arch/x86/include/asm/x86_64/uaccess.h`.
pub(crate) fn is_guest_address(at: GuestVirt) -> bool {
    at.0 < 1 << 47 || at.0 >= XEN_END
}

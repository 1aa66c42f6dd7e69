//! Places in guest memory that the hypervisor keeps up to date: run state and time.
//!
//! A guest names such a place in one of two ways. The older one is a virtual address of its kernel: it may be
//! unmapped at any time, and then the update is lost without a word. The newer one is a machine address, whose
//! page stays claimed while it is registered. Where both are given the newer one counts.
//!
//! Real Xen can reach a kernel address only while the guest's kernel runs, and puts an update off otherwise.
//! Here the kernel's page table is at hand always, so nothing is put off.
//!
//! Source: `map_guest_area`, `update_runstate_area` in `xen/common/domain.c`, `update_secondary_system_time` in
//! `xen/arch/x86/time.c`.

use paravane_abi::{
    errno::Errno,
    units::{GuestVirt, MachAddr, Mfn, PAGE_SIZE},
};
use paravane_memory::paging::Access;

use crate::{
    claims::Unclaimable,
    domain::Domain,
    guest::{AddressSpace, Unreachable},
};

/// The address that takes a registration by machine address back.
const UNREGISTER: u64 = u64::MAX;

/// A registered place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Area {
    /// By kernel virtual address.
    pub(crate) virtual_address: Option<GuestVirt>,
    /// By machine address.
    pub(crate) machine_address: Option<MachAddr>,
}

/// A place to write to now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A kernel virtual address.
    Virtual(GuestVirt),
    /// A machine address.
    Machine(MachAddr),
}

impl Area {
    /// Where to write, if anywhere.
    pub(crate) fn place(self) -> Option<Place> {
        self.machine_address.map(Place::Machine).or(self.virtual_address.map(Place::Virtual))
    }
}

impl Place {
    /// The place `bytes` later.
    pub(crate) fn offset(self, bytes: u64) -> Self {
        match self {
            Self::Virtual(at) => Self::Virtual(at.wrapping_add(bytes)),
            Self::Machine(at) => Self::Machine(MachAddr(at.0.wrapping_add(bytes))),
        }
    }

    /// Writes through the kernel's address space, or straight to the frame.
    pub(crate) fn write(self, space: AddressSpace<'_>, bytes: &[u8]) -> Result<(), Unreachable> {
        match self {
            Self::Virtual(at) => space.write(at, bytes),
            Self::Machine(at) => {
                space.memory.write(at, bytes).map_err(|_| Unreachable { at: GuestVirt(at.0) })
            }
        }
    }

    /// Writes a naturally aligned word in one go, so that a reader sees the old or the new value. A virtual
    /// address that is not aligned is written byte by byte.
    pub(crate) fn store_u64(self, space: AddressSpace<'_>, value: u64) -> Result<(), Unreachable> {
        let (machine, at) = self.machine(space)?;
        if space.memory.store_u64(machine, value).is_ok() {
            return Ok(());
        }
        self.write(space, &value.to_le_bytes()).map_err(|_| Unreachable { at })
    }

    /// As [`Place::store_u64`], for 32 bits.
    pub(crate) fn store_u32(self, space: AddressSpace<'_>, value: u32) -> Result<(), Unreachable> {
        let (machine, at) = self.machine(space)?;
        if space.memory.store_u32(machine, value).is_ok() {
            return Ok(());
        }
        self.write(space, &value.to_le_bytes()).map_err(|_| Unreachable { at })
    }

    fn machine(self, space: AddressSpace<'_>) -> Result<(MachAddr, GuestVirt), Unreachable> {
        match self {
            Self::Virtual(at) => Ok((space.translate(at, Access::Write)?, at)),
            Self::Machine(at) => Ok((at, GuestVirt(at.0))),
        }
    }
}

impl Domain {
    /// Claims the page behind `bytes` bytes at `address` for an area; `None` if the guest takes its
    /// registration back.
    ///
    /// # Errors
    ///
    /// `ENXIO` for an area that crosses a page or is not aligned to a word, `EINVAL` for a frame that is not
    /// the guest's, `EACCES` for one that must not be written.
    pub(crate) fn claim_area(&mut self, address: u64, bytes: u64) -> Result<Option<MachAddr>, Errno> {
        if address == UNREGISTER {
            return Ok(None);
        }
        let area = MachAddr(address);
        let crosses = area.offset() as u64 + bytes > PAGE_SIZE;
        if crosses || !address.is_multiple_of(size_of::<u64>() as u64) {
            return Err(Errno::Enxio);
        }
        self.claim_writable(area.frame()).map_err(|why| match why {
            Unclaimable::NotOwned => Errno::Einval,
            Unclaimable::NotWritable => Errno::Eacces,
        })?;
        Ok(Some(area))
    }

    /// Gives the page of a former area back.
    pub(crate) fn release_area(&mut self, area: Option<MachAddr>) {
        if let Some(area) = area {
            self.release_writable(area.frame());
        }
    }

    /// The address space of a guest kernel whose page-table root is `root`.
    pub(crate) fn space(&self, root: Mfn) -> AddressSpace<'_> {
        AddressSpace { memory: &self.memory, root }
    }
}

//! Mappings of grants by the guest itself.
//!
//! The control domain grants nothing, so what a guest can map is its own grants. Loops of that kind exist where a
//! backend and its frontend run in one domain.
//!
//! A mapping is an L1 entry that the hypervisor writes; the guest names it by the address that it maps, or by the
//! entry's own machine address. The entry holds its frame as any other does. A mapping for devices, of which there
//! are none, holds the frame by itself.
//!
//! Source: `map_grant_ref`, `unmap_common` in `xen/common/grant_table.c`, `create_grant_pv_mapping`,
//! `replace_grant_pv_mapping` in `xen/arch/x86/pv/grant_table.c`.

use paravane_abi::{
    grant_table::{GrantStatus, MapGrantRef, gntmap},
    units::{DomId, GrantRef, GuestVirt, MachAddr, Mfn, PAGE_SHIFT},
};
use paravane_engine::TlbFlush;

use super::pins::{Purpose, Refused, Uses, control_domain_grant};
use crate::{
    domain::{CONTROL_DOMAIN, Call},
    frames::{Entry, Level, Mappable, Store, Use, entry as entry_bits, find_leaf},
};

/// The most mappings at a time: 1024 pages of 256 records, as stock Xen allows.
const MAX_MAPPINGS: usize = 1024 * 256;

/// A mapping of a grant.
#[derive(Clone, Copy, Debug)]
struct Mapping {
    reference: GrantRef,
    frame: Mfn,
    /// `GNTMAP_` bits. The bits for host and devices are cleared as each is unmapped.
    flags: u32,
}

/// The mappings, by handle.
#[derive(Debug, Default)]
pub(crate) struct Mappings {
    slots: Vec<Option<Mapping>>,
    free: Vec<u32>,
}

impl Mappings {
    /// Whether another mapping fits.
    fn has_room(&self) -> bool {
        !self.free.is_empty() || self.slots.len() < MAX_MAPPINGS
    }

    fn insert(&mut self, mapping: Mapping) -> u32 {
        if let Some(handle) = self.free.pop() {
            self.slots[handle as usize] = Some(mapping);
            return handle;
        }
        // Bounded by MAX_MAPPINGS.
        let handle = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        self.slots.push(Some(mapping));
        handle
    }

    fn get(&self, handle: u32) -> Option<Mapping> {
        self.slots.get(handle as usize).copied().flatten()
    }

    /// Keeps a mapping with fewer flags, or forgets it when nothing is mapped any more.
    fn update(&mut self, handle: u32, flags: u32) {
        let Some(slot) = self.slots.get_mut(handle as usize) else { return };
        match slot {
            Some(mapping) if flags & (gntmap::HOST_MAP | gntmap::DEVICE_MAP) != 0 => mapping.flags = flags,
            Some(_) | None => {
                *slot = None;
                self.free.push(handle);
            }
        }
    }
}

/// What to unmap.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unmap {
    /// Where it is mapped; 0 if the mapping for the CPU stays.
    pub(crate) host_addr: u64,
    /// Its device address; 0 if the mapping for devices stays.
    pub(crate) dev_bus_addr: u64,
    /// The address of another mapping which moves there; 0 for none.
    pub(crate) new_addr: u64,
    /// The mapping.
    pub(crate) handle: u32,
}

impl Call<'_> {
    /// Maps a grant, and fills in the answer.
    pub(crate) fn map_grant(&mut self, request: &mut MapGrantRef) {
        request.status = match self.try_map(request) {
            Ok(()) => GrantStatus::Okay,
            Err(refused) => refused.status,
        }
        .number();
    }

    fn try_map(&mut self, request: &mut MapGrantRef) -> Result<(), Refused> {
        let has = |flag| request.flags & flag != 0;
        let count = Uses { by_cpu: has(gntmap::HOST_MAP).into(), by_device: has(gntmap::DEVICE_MAP).into() };
        if count == Uses::default() {
            return Err(Refused::new(GrantStatus::BadGntref, "the flags ask for no mapping"));
        }
        let reference = GrantRef(request.reference);
        // DOMID_SELF does not name a domain here.
        match DomId(request.dom) {
            own if own == self.domain.id => {}
            CONTROL_DOMAIN => return Err(control_domain_grant(reference)),
            _ => return Err(Refused::new(GrantStatus::BadDomain, "no such domain")),
        }
        if !self.domain.grants.mappings.has_room() {
            return Err(Refused::new(GrantStatus::NoSpace, "the guest has too many mappings"));
        }
        let writable = !has(gntmap::READONLY);
        let user = self.domain.id;
        let purpose = Purpose { writable, mapping: true, count };
        let frame = self.domain.pin_grant(reference, user, purpose)?.frame;
        if let Err(refused) = self.enter_mapping(request, frame, writable) {
            self.domain.unpin_grant(reference, writable, count);
            return Err(refused);
        }
        request.handle =
            self.domain.grants.mappings.insert(Mapping { reference, frame, flags: request.flags });
        request.dev_bus_addr = frame.base().unwrap_or_default().0;
        Ok(())
    }

    /// Claims the frame for devices and writes the L1 entry, as asked.
    fn enter_mapping(&mut self, request: &MapGrantRef, frame: Mfn, writable: bool) -> Result<(), Refused> {
        self.domain.claim(frame, writable)?;
        let mapped = if request.flags & gntmap::HOST_MAP != 0 {
            self.write_mapping(request.host_addr, frame, request.flags)
        } else {
            Ok(())
        };
        if mapped.is_err() || request.flags & gntmap::DEVICE_MAP == 0 {
            self.domain.release(frame, writable);
        }
        mapped
    }

    fn write_mapping(&mut self, host_addr: u64, frame: Mfn, flags: u32) -> Result<(), Refused> {
        let (table, slot) = self.mapping_slot(host_addr, flags)?;
        self.store_mapping(table, slot, mapping_entry(frame, flags))
    }

    /// Unmaps, and returns the status.
    pub(crate) fn unmap_grant(&mut self, request: Unmap) -> GrantStatus {
        match self.try_unmap(request) {
            Ok(()) => GrantStatus::Okay,
            Err(refused) => refused.status,
        }
    }

    fn try_unmap(&mut self, request: Unmap) -> Result<(), Refused> {
        let mapping = self
            .domain
            .grants
            .mappings
            .get(request.handle)
            .ok_or(Refused::new(GrantStatus::BadHandle, "no such mapping"))?;
        let has = |flag| mapping.flags & flag != 0;
        let device = request.dev_bus_addr != 0 && has(gntmap::DEVICE_MAP);
        let host = request.host_addr != 0 && has(gntmap::HOST_MAP);
        if device && request.dev_bus_addr != mapping.frame.base().unwrap_or_default().0 {
            return Err(Refused::new(GrantStatus::BadDevAddr, "the device address is another frame's"));
        }
        if host {
            self.replace_mapping(request, mapping)?;
        }
        let writable = !has(gntmap::READONLY);
        if device {
            self.domain.release(mapping.frame, writable);
        }
        let done = |flag, done| if done { flag } else { 0 };
        let undone = done(gntmap::HOST_MAP, host) | done(gntmap::DEVICE_MAP, device);
        if undone != 0 {
            self.domain.grants.mappings.update(request.handle, mapping.flags & !undone);
            let count = Uses { by_cpu: host.into(), by_device: device.into() };
            self.domain.unpin_grant(mapping.reference, writable, count);
        }
        Ok(())
    }

    /// Takes a mapping's L1 entry away, and puts that of another address there if asked.
    fn replace_mapping(&mut self, request: Unmap, mapping: Mapping) -> Result<(), Refused> {
        let by_entry = mapping.flags & gntmap::CONTAINS_PTE != 0;
        if by_entry && request.new_addr != 0 {
            return Err(general("a mapping by its entry's address cannot be replaced"));
        }
        let moved = if request.new_addr == 0 { Entry(0) } else { self.take_entry(request.new_addr)? };
        let (table, slot) = self.mapping_slot(request.host_addr, mapping.flags)?;
        let old = self.l1_entry(table, slot);
        let expected = mapping_entry(mapping.frame, mapping.flags);
        let same_rights = old.is_present() && old.is_writable() == expected.is_writable();
        if old.frame() != mapping.frame || !same_rights {
            return Err(general("the address maps something else by now"));
        }
        self.store_mapping(table, slot, moved)?;
        self.flush_all(TlbFlush::All);
        Ok(())
    }

    /// Removes the L1 entry of an address, and returns it.
    fn take_entry(&mut self, address: u64) -> Result<Entry, Refused> {
        let (table, slot) = self.mapping_slot(address, 0)?;
        let entry = self.l1_entry(table, slot);
        self.store_mapping(table, slot, Entry(0))?;
        Ok(entry)
    }

    /// The L1 table and slot that an address names: its own, or with the flag the one at that machine address.
    fn mapping_slot(&self, address: u64, flags: u32) -> Result<(Mfn, usize), Refused> {
        let (table, slot) = if flags & gntmap::CONTAINS_PTE != 0 {
            let at = MachAddr(address);
            if !at.offset().is_multiple_of(size_of::<u64>()) {
                return Err(general("the address of an entry is a multiple of 8"));
            }
            (at.frame(), at.offset() / size_of::<u64>())
        } else {
            let leaf = find_leaf(&self.domain.memory, self.context.kernel_root, GuestVirt(address))
                .ok_or(general("the address has no L1 table"))?;
            (leaf.table, leaf.slot)
        };
        let is_table = self
            .domain
            .frame_table
            .record(table)
            .is_some_and(|record| record.is_used_as(Use::L1) && record.uses != 0);
        if is_table { Ok((table, slot)) } else { Err(general("the entry does not lie in an L1 table")) }
    }

    fn l1_entry(&self, table: Mfn, slot: usize) -> Entry {
        let at = table.base().map(|base| MachAddr(base.0 + slot as u64 * size_of::<u64>() as u64));
        Entry(at.and_then(|at| self.domain.memory.load_u64(at).ok()).unwrap_or(0))
    }

    fn store_mapping(&mut self, table: Mfn, slot: usize, entry: Entry) -> Result<(), Refused> {
        let place = (table, Level::L1, slot);
        match self.domain.frames().update_entry(place, entry, Store::Plain, Mappable::Own) {
            Ok(_) => Ok(()),
            Err(_) => Err(general("the entry cannot map that frame")),
        }
    }
}

fn general(why: &'static str) -> Refused {
    Refused::new(GrantStatus::GeneralError, why)
}

/// The L1 entry of a mapping. Like every entry it gets the bits that mark kernel pages when it is stored.
fn mapping_entry(frame: Mfn, flags: u32) -> Entry {
    const AVAILABLE_SHIFT: u32 = 9;
    const AVAILABLE_MASK: u64 = 7;
    let when = |flag, bits| if flags & flag != 0 { bits } else { 0 };
    let available = u64::from(flags >> gntmap::GUEST_AVAIL_SHIFT) & AVAILABLE_MASK;
    let writable = entry_bits::WRITABLE & !when(gntmap::READONLY, entry_bits::WRITABLE);
    Entry(
        frame.0 << PAGE_SHIFT
            | entry_bits::PRESENT
            | entry_bits::ACCESSED
            | entry_bits::DIRTY
            | entry_bits::NO_EXECUTE
            | writable
            | when(gntmap::APPLICATION_MAP, entry_bits::USER)
            | available << AVAILABLE_SHIFT,
    )
}

//! Mappings by the guest itself.

use paravane_abi::grant_table::{MapGrantRef, UnmapAndReplace, UnmapGrantRef, gntmap};

use super::*;
use crate::testing::OWN;

/// Where tests map.
const WINDOW: Pfn = Pfn(FREE.0 + 20);
/// `_PAGE_GUEST_KERNEL` and the bits of an own mapping that the kernel alone may use.
const KERNEL_WRITABLE: u64 = 1 << 63 | 1 << 52 | 0x67;

/// The L1 entry of a page.
fn entry_address(page: Pfn) -> MachAddr {
    MachAddr(machine_address(TABLE).0 + page.0 * 8)
}

impl Guest {
    /// A guest that granted [`PAGE`] to itself.
    fn with_own_grant() -> Self {
        let guest = Self::new(1);
        guest.put_v1(REF, gtf::PERMIT_ACCESS, OWN, frame(PAGE));
        guest
    }

    pub(super) fn map(&mut self, host_addr: u64, flags: u32) -> (GrantStatus, MapGrantRef) {
        self.map_of(OWN, REF, host_addr, flags)
    }

    pub(super) fn map_of(
        &mut self,
        domain: DomId,
        reference: GrantRef,
        host_addr: u64,
        flags: u32,
    ) -> (GrantStatus, MapGrantRef) {
        let mut request = MapGrantRef::new_zeroed();
        (request.host_addr, request.flags) = (host_addr, flags);
        (request.reference, request.dom) = (reference.0, domain.0);
        assert_eq!(self.grant_op(GrantTableOp::MapGrantRef, &mut request), Ok(0));
        self.domain.recount().unwrap();
        (GrantStatus::from_number(request.status).unwrap(), request)
    }

    pub(super) fn unmap(&mut self, host_addr: u64, dev_bus_addr: u64, handle: u32) -> GrantStatus {
        let mut request = UnmapGrantRef::new_zeroed();
        (request.host_addr, request.dev_bus_addr, request.handle) = (host_addr, dev_bus_addr, handle);
        assert_eq!(self.grant_op(GrantTableOp::UnmapGrantRef, &mut request), Ok(0));
        self.domain.recount().unwrap();
        GrantStatus::from_number(request.status).unwrap()
    }

    fn replace(&mut self, host_addr: u64, new_addr: u64, handle: u32) -> GrantStatus {
        let mut request = UnmapAndReplace::new_zeroed();
        (request.host_addr, request.new_addr, request.handle) = (host_addr, new_addr, handle);
        assert_eq!(self.grant_op(GrantTableOp::UnmapAndReplace, &mut request), Ok(0));
        self.domain.recount().unwrap();
        GrantStatus::from_number(request.status).unwrap()
    }

    fn l1(&self, page: Pfn) -> u64 {
        self.get(entry_address(page))
    }
}

#[test]
fn an_own_grant_is_mapped_and_unmapped() {
    let mut guest = Guest::with_own_grant();
    let window = virt(WINDOW).0;
    let (status, mapped) = guest.map(window, gntmap::HOST_MAP);
    assert_eq!((status, mapped.dev_bus_addr), (GrantStatus::Okay, machine_address(PAGE).0));
    assert_eq!(guest.l1(WINDOW), machine_address(PAGE).0 | KERNEL_WRITABLE);
    assert_eq!(guest.in_use(REF), gtf::READING | gtf::WRITING);
    guest.domain.take_flushes();
    assert_eq!(guest.unmap(window, 0, mapped.handle), GrantStatus::Okay);
    assert_eq!(guest.l1(WINDOW), 0);
    assert_eq!(guest.in_use(REF), 0);
    assert!(!guest.domain.take_flushes().is_empty(), "engines forget it");
    assert_eq!(guest.unmap(window, 0, mapped.handle), GrantStatus::BadHandle);
}

#[test]
fn an_entry_is_named_by_its_own_address_too() {
    let mut guest = Guest::with_own_grant();
    let flags = gntmap::HOST_MAP
        | gntmap::CONTAINS_PTE
        | gntmap::READONLY
        | gntmap::APPLICATION_MAP
        | 5 << gntmap::GUEST_AVAIL_SHIFT;
    let at = entry_address(WINDOW).0;
    let (status, mapped) = guest.map(at, flags);
    assert_eq!(status, GrantStatus::Okay);
    // Present, user, accessed, dirty, global, available bits 9 and 11, no execution.
    assert_eq!(guest.l1(WINDOW), machine_address(PAGE).0 | 1 << 63 | 0xb65);
    assert_eq!(guest.in_use(REF), gtf::READING);
    assert_eq!(guest.replace(at, virt(WINDOW).0, mapped.handle), GrantStatus::GeneralError);
    assert_eq!(guest.unmap(at, 0, mapped.handle), GrantStatus::Okay);
    for at in [at + 4, machine_address(FREE).0, machine_address(Pfn(2)).0, 0x1000] {
        assert_eq!(guest.map(at, flags).0, GrantStatus::GeneralError, "{at:#x}");
        assert_eq!(guest.in_use(REF), 0);
    }
}

#[test]
fn bad_requests_are_refused_each_in_its_way() {
    let mut guest = Guest::with_own_grant();
    let window = virt(WINDOW).0;
    let host = gntmap::HOST_MAP;
    guest.put_v1(GrantRef(10), gtf::PERMIT_ACCESS | gtf::READONLY, OWN, frame(PAGE));
    guest.put_v1(GrantRef(11), gtf::PERMIT_ACCESS, OWN, frame(TABLE));
    guest.put_v1(GrantRef(12), gtf::PERMIT_ACCESS, OWN, Mfn(1));
    for (domain, reference, address, flags, status) in [
        (OWN, REF, window, 0, GrantStatus::BadGntref),
        (OWN, REF, window, gntmap::READONLY, GrantStatus::BadGntref),
        (DomId::SELF, REF, window, host, GrantStatus::BadDomain),
        (DomId(50), REF, window, host, GrantStatus::BadDomain),
        (CONTROL_DOMAIN, GrantRef(1), window, host, GrantStatus::GeneralError),
        (CONTROL_DOMAIN, GrantRef(512), window, host, GrantStatus::BadGntref),
        (OWN, GrantRef(512), window, host, GrantStatus::BadGntref),
        (OWN, GrantRef(20), window, host, GrantStatus::GeneralError),
        (OWN, GrantRef(10), window, host, GrantStatus::GeneralError),
        (OWN, GrantRef(11), window, host, GrantStatus::GeneralError),
        (OWN, GrantRef(12), window, host, GrantStatus::BadPage),
        // No L1 table there.
        (OWN, REF, 0x7000_0000, host, GrantStatus::GeneralError),
        (OWN, REF, 0xffff_8000_0000_0000, host, GrantStatus::GeneralError),
    ] {
        let (found, request) = guest.map_of(domain, reference, address, flags);
        assert_eq!(found, status, "{request:?}");
        assert_eq!(guest.in_use(REF), 0);
    }
    assert_eq!(guest.unmap(window, 0, 0), GrantStatus::BadHandle);
    assert_eq!(guest.unmap(window, 0, u32::MAX), GrantStatus::BadHandle);
}

#[test]
fn mappings_for_the_cpu_and_for_devices_end_apart() {
    let mut guest = Guest::with_own_grant();
    let window = virt(WINDOW).0;
    let bus = machine_address(PAGE).0;
    let (_, mapped) = guest.map(window, gntmap::HOST_MAP | gntmap::DEVICE_MAP);
    assert_eq!(guest.unmap(0, bus + 4096, mapped.handle), GrantStatus::BadDevAddr);
    assert_eq!(guest.unmap(0, 0, mapped.handle), GrantStatus::Okay, "nothing was asked for");
    assert_eq!(guest.unmap(window, 0, mapped.handle), GrantStatus::Okay);
    assert_eq!(guest.in_use(REF), gtf::READING | gtf::WRITING, "the device's use goes on");
    assert_eq!(guest.unmap(0, bus, mapped.handle), GrantStatus::Okay);
    assert_eq!(guest.in_use(REF), 0);
    assert_eq!(guest.unmap(0, bus, mapped.handle), GrantStatus::BadHandle);
}

#[test]
fn a_mapping_that_the_guest_overwrote_is_not_unmapped() {
    let mut guest = Guest::with_own_grant();
    let window = virt(WINDOW).0;
    let (_, mapped) = guest.map(window, gntmap::HOST_MAP);
    let args = [window, machine_address(FREE).0 | 7, 0];
    assert_eq!(guest.call(Hypercall::UpdateVaMapping, &args), Ok(0));
    assert_eq!(guest.unmap(window, 0, mapped.handle), GrantStatus::GeneralError);
    assert_eq!(guest.in_use(REF), gtf::READING | gtf::WRITING);
}

#[test]
fn another_mapping_moves_into_the_place_of_one() {
    let mut guest = Guest::with_own_grant();
    let window = virt(WINDOW).0;
    let (_, mapped) = guest.map(window, gntmap::HOST_MAP);
    let moved = guest.l1(FREE);
    assert_eq!(guest.replace(window, virt(FREE).0, mapped.handle), GrantStatus::Okay);
    assert_eq!(guest.l1(WINDOW), moved);
    assert_eq!(guest.l1(FREE), 0);
    assert_eq!(guest.in_use(REF), 0);
}

#[test]
fn handles_are_used_again() {
    let mut guest = Guest::with_own_grant();
    let (_, first) = guest.map(virt(WINDOW).0, gntmap::HOST_MAP);
    let (_, second) = guest.map(virt(Pfn(WINDOW.0 + 1)).0, gntmap::HOST_MAP | gntmap::READONLY);
    assert_ne!(first.handle, second.handle);
    guest.unmap(virt(WINDOW).0, 0, first.handle);
    assert_eq!(guest.in_use(REF), gtf::READING);
    let (_, third) = guest.map(virt(WINDOW).0, gntmap::HOST_MAP);
    assert_eq!(third.handle, first.handle);
}

//! Memory maps: the guest's own e820 map, and the ranges that the host reserves for devices.
//!
//! Source: `arch_memory_op` in `xen/arch/x86/mm.c`, `do_memory_op` in `xen/common/memory.c`.

use paravane_abi::{
    errno::Errno,
    memory::{
        E820_MAX, E820Entry, ForeignMemoryMap, MemoryMap, RESERVED_OF_ALL_DEVICES, ReservedDeviceMemoryMap,
    },
    units::{DomId, GuestVirt},
};

use super::owner::require_own;
use crate::{dispatch::Outcome, domain::Call, guest::is_guest_address, refusal::Refusal};

/// Copies out the memory map.
///
/// # Errors
///
/// `ENOSYS` if there is none: the guest then makes one up from the number of its pages. `EFAULT` for a buffer that
/// cannot be written.
pub(super) fn get(call: &mut Call<'_>, argument: GuestVirt) -> Result<Outcome, Refusal> {
    let mut request: MemoryMap = call.space().read_value(argument)?;
    if call.domain.memory_map.is_empty() {
        return Err(Errno::Enosys.into());
    }
    let mut written = 0;
    for entry in call.domain.memory_map.iter().take(request.nr_entries as usize) {
        call.space().write_element(GuestVirt(request.buffer), u64::from(written), entry)?;
        written += 1;
    }
    request.nr_entries = written;
    call.space().write_value(argument, &request)?;
    Ok(Outcome::Return(0))
}

/// Replaces the memory map. It is the guest's own business: the hypervisor looks at it nowhere.
///
/// # Errors
///
/// `EINVAL` for more entries than a map has, `ESRCH` and `EPERM` for another domain, `EFAULT` for entries that cannot
/// be read. The old map then stays.
pub(super) fn set(call: &mut Call<'_>, argument: GuestVirt) -> Result<Outcome, Refusal> {
    let request: ForeignMemoryMap = call.space().read_value(argument)?;
    if request.map.nr_entries > E820_MAX {
        return Err(Errno::Einval.into());
    }
    require_own(call, DomId(request.domid))?;
    let mut map = Vec::new();
    for index in 0..request.map.nr_entries {
        map.push(call.space().read_element::<E820Entry>(GuestVirt(request.map.buffer), u64::from(index))?);
    }
    call.domain.memory_map = map;
    Ok(Outcome::Return(0))
}

/// Lists the memory that the host reserves for devices: none, as on a host without an IOMMU.
///
/// # Errors
///
/// `EFAULT` for a buffer that cannot be one, `EINVAL` for unknown flags.
pub(super) fn reserved_for_devices(call: &mut Call<'_>, argument: GuestVirt) -> Result<Outcome, Refusal> {
    let mut request: ReservedDeviceMemoryMap = call.space().read_value(argument)?;
    if !is_guest_address(GuestVirt(request.buffer)) {
        return Err(Errno::Efault.into());
    }
    if request.flags & !RESERVED_OF_ALL_DEVICES != 0 {
        return Err(Errno::Einval.into());
    }
    request.nr_entries = 0;
    call.space().write_value(argument, &request)?;
    Ok(Outcome::Return(0))
}

//! Descriptor tables: `set_gdt`, `update_descriptor`, and `MMUEXT_SET_LDT`.
//!
//! Source: `xen/arch/x86/pv/descriptor-tables.c`.

use paravane_abi::{
    errno::Errno,
    units::{GuestVirt, MachAddr, Mfn},
};
use paravane_x86::{
    descriptor::Descriptor,
    gdt,
    mode::Mode,
    submit::{Submission, submit},
};
use zerocopy::IntoBytes;

use crate::{
    dispatch::{Outcome, narrow},
    domain::Call,
    frames::{OWN_GDT_FRAMES, Use},
    guest::is_guest_address,
    refusal::Refusal,
};

/// `set_gdt(frames, entries)`: makes the listed frames the guest's part of the GDT.
///
/// # Errors
///
/// `EINVAL` for more entries than the guest may have and for frames that cannot hold descriptors, `EFAULT` if the list
/// cannot be read. The old table then stays.
pub(crate) fn set_gdt(call: &mut Call<'_>, list: u64, entries: u64) -> Result<Outcome, Refusal> {
    let entries = narrow(entries);
    if entries > u32::from(gdt::FIRST_RESERVED_ENTRY) {
        return Err(Errno::Einval.into());
    }
    let count = entries.div_ceil(u32::from(gdt::ENTRIES_PER_PAGE)) as usize;
    let mut numbers = [0_u64; OWN_GDT_FRAMES];
    if count > 0 && !is_guest_address(GuestVirt(list)) {
        return Err(Errno::Efault.into());
    }
    call.space().read(GuestVirt(list), numbers[..count].as_mut_bytes())?;
    let pages = numbers.map(Mfn);
    let vcpu = call.vcpu;
    let loaded = call.domain.frames().load_gdt(vcpu, &pages[..count])?;
    call.context.descriptors.gdt[..OWN_GDT_FRAMES].copy_from_slice(&loaded);
    Ok(Outcome::Return(0))
}

/// `update_descriptor(address, descriptor)`: stores one descriptor, in a page of a table or in a writable page.
///
/// # Errors
///
/// `EINVAL` for a misaligned address, a descriptor that a guest may not have, and a page of another kind.
pub(crate) fn update_descriptor(
    call: &mut Call<'_>,
    address: u64,
    descriptor: u64,
) -> Result<Outcome, Refusal> {
    let Submission::Accepted { stored, .. } = submit(Mode::Guest64, Descriptor(descriptor)) else {
        return Err(Errno::Einval.into());
    };
    let at = MachAddr(address);
    if !address.is_multiple_of(8) {
        return Err(Errno::Einval.into());
    }
    let mut frames = call.domain.frames();
    let holds_descriptors =
        frames.table.record(at.frame()).is_some_and(|record| record.usage == Use::SegmentDescriptors);
    let usage = if holds_descriptors { Use::SegmentDescriptors } else { Use::Writable };
    frames.get_with_use(at.frame(), usage)?;
    let written = frames.memory.store_u64(at, stored.0);
    frames.put_with_use(at.frame());
    written.map_err(|_| Errno::Einval)?;
    Ok(Outcome::Return(0))
}

/// `MMUEXT_SET_LDT(base, entries)`. The table's pages are not looked at until they are used.
///
/// # Errors
///
/// `EINVAL` for more than 8192 entries, or a base that is not page-aligned or not the guest's.
pub(crate) fn set_ldt(call: &mut Call<'_>, base: u64, entries: u64) -> Result<(), Errno> {
    let entries = u16::try_from(narrow(entries)).map_err(|_| Errno::Einval)?;
    let base = GuestVirt(if entries == 0 { 0 } else { base });
    let acceptable = base.offset() == 0 && is_guest_address(base);
    if entries > gdt::LDT_MAX_ENTRIES || !acceptable {
        return Err(Errno::Einval);
    }
    let tables = &mut call.context.descriptors;
    if (tables.ldt_entries, tables.ldt_base) == (entries, base) {
        return Ok(());
    }
    (tables.ldt_entries, tables.ldt_base) = (entries, base);
    tables.ldt = Default::default();
    let vcpu = call.vcpu;
    call.domain.frames().drop_ldt(vcpu);
    Ok(())
}

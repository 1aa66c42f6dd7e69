//! `update_va_mapping`: the L1 entry of a virtual address, and a flush with it.
//!
//! Source: `__do_update_va_mapping` in `xen/arch/x86/mm.c`.

use paravane_abi::{
    errno::Errno,
    mmu::uvmf,
    units::{DomId, GuestVirt},
};
use paravane_engine::TlbFlush;

use super::{flush::vcpus_in_bitmap, owner::FrameOwner};
use crate::{
    dispatch::{Outcome, narrow},
    domain::Call,
    frames::{Entry, Level, Mappable, Owner, Store, find_leaf},
    refusal::Refusal,
};

/// `update_va_mapping(va, entry, flags)`.
///
/// # Errors
///
/// `EINVAL` if the address has no L1 entry; what [`Frames::update_entry`](crate::frames::Frames) says. `EFAULT` if the
/// bitmap of vCPUs to flush cannot be read: the entry has been changed then.
pub(crate) fn update_va_mapping(
    call: &mut Call<'_>,
    va: u64,
    entry: u64,
    flags: u64,
) -> Result<Outcome, Refusal> {
    update(call, GuestVirt(va), Entry(entry), flags, Mappable::Own)
}

/// `update_va_mapping_otherdomain(va, entry, flags, domain)`: as [`update_va_mapping`], mapping a frame of another
/// domain.
///
/// # Errors
///
/// `ESRCH` for an unknown domain, `EPERM` for a foreign one; else as for [`update_va_mapping`].
pub(crate) fn other_domain(
    call: &mut Call<'_>,
    va: u64,
    entry: u64,
    flags: u64,
    domain: u64,
) -> Result<Outcome, Refusal> {
    // Fits: masked.
    let owner = FrameOwner::named(call, DomId((narrow(domain) & 0xffff) as u16))?;
    update(call, GuestVirt(va), Entry(entry), flags, owner.mappable()?)
}

fn update(
    call: &mut Call<'_>,
    va: GuestVirt,
    entry: Entry,
    flags: u64,
    mappable: Mappable,
) -> Result<Outcome, Refusal> {
    let leaf = find_leaf(&call.domain.memory, call.context.kernel_root, va).ok_or(Errno::Einval)?;
    let mut frames = call.domain.frames();
    // A recursive entry makes an upper table look like an L1 table.
    let is_l1 = frames.table.owner(leaf.table) == Owner::Guest
        && frames.table.record(leaf.table).and_then(|record| record.table_level()) == Some(Level::L1);
    if !is_l1 {
        return Err(Errno::Einval.into());
    }
    frames.update_entry((leaf.table, Level::L1, leaf.slot), entry, Store::Plain, mappable)?;
    let what = match flags & uvmf::FLUSH_TYPE_MASK {
        uvmf::TLB_FLUSH => TlbFlush::All,
        uvmf::INVLPG => TlbFlush::Page(va.page()),
        _ => return Ok(Outcome::Return(0)),
    };
    match flags & !uvmf::FLUSH_TYPE_MASK {
        0 => call.flush_local(what),
        uvmf::ALL => call.flush_all(what),
        bitmap => {
            for vcpu in vcpus_in_bitmap(call, GuestVirt(bitmap))? {
                call.flush_one(vcpu, what);
            }
        }
    }
    Ok(Outcome::Return(0))
}

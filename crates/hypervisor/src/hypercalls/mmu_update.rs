//! `mmu_update`: stores of page-table entries, checked by what the page is.
//!
//! The guest names a machine address and a value. If the page is a page table in use, the value must be a good entry
//! for its level. If it is writable or unused, the value is stored as it is: guests build new tables so.
//!
//! Source: `do_mmu_update` in `xen/arch/x86/mm.c`.

use paravane_abi::{
    errno::Errno,
    mmu::{MMU_UPDATE_COMMAND_MASK, MmuUpdate, MmuUpdateCommand},
    units::{DomId, MachAddr},
};
use paravane_engine::TlbFlush;

use super::{batch, owner::FrameOwner};
use crate::{
    dispatch::{Args, Outcome, narrow},
    domain::Call,
    frames::{Entry, Level, Mappable, Owner, Store, Use},
    refusal::Refusal,
};

/// `mmu_update(requests, count, done, domains)`.
///
/// The low half of `domains` owns the frames that are mapped, the high half less one the page tables.
///
/// # Errors
///
/// `EFAULT` for a list that cannot be one, `ESRCH` for an unknown domain, `EPERM` for a foreign one, `ENOSYS` for an
/// unknown command, `EINVAL` for a page that is not the guest's or holds descriptors, and what [`Frames::update_entry`](crate::frames::Frames) says.
pub(crate) fn mmu_update(call: &mut Call<'_>, args: Args) -> Result<Outcome, Refusal> {
    let list = batch::List::of(call, args)?;
    let domains = narrow(args[3]);
    let tables_are_own = owns_tables(call, domains >> 16)?;
    // Fits: masked.
    let owner =
        FrameOwner::named(call, DomId((domains & 0xffff) as u16)).inspect_err(|_| list.tell(call, 0))?;
    let mut flush = false;
    let outcome = batch::run(call, list, |call, request: MmuUpdate| {
        let number = request.ptr & MMU_UPDATE_COMMAND_MASK;
        let at = MachAddr(request.ptr & !MMU_UPDATE_COMMAND_MASK);
        let command = MmuUpdateCommand::from_number(narrow(number)).ok_or(Errno::Enosys)?;
        let mappable = owner.mappable()?;
        if !tables_are_own {
            return Err(Errno::Eperm);
        }
        let how = match command {
            MmuUpdateCommand::MachphysUpdate => return set_m2p(call, at, request.val, mappable),
            MmuUpdateCommand::PtUpdatePreserveAd => Store::KeepAccessed,
            MmuUpdateCommand::NormalPtUpdate | MmuUpdateCommand::PtUpdateNoTranslate => Store::Plain,
        };
        flush |= update(call, at, Entry(request.val), how, mappable)? == Touched::UpperLevel;
        Ok(())
    });
    if flush {
        call.flush_all(TlbFlush::All);
    }
    outcome
}

/// Whether the page tables are the guest's own; `encoded` is their owner plus one, or 0.
fn owns_tables(call: &Call<'_>, encoded: u32) -> Result<bool, Errno> {
    let Some(id) = encoded.checked_sub(1) else { return Ok(true) };
    if id == u32::from(call.domain.id.0) {
        return Ok(true);
    }
    // The control domain exists, and is not to be touched.
    if id == 0 { Ok(false) } else { Err(Errno::Esrch) }
}

/// What a store hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Touched {
    /// A page table above L1: translations of any address may have changed.
    UpperLevel,
    /// An L1 table, for whose flushes the guest asks, or plain memory.
    Other,
}

fn update(
    call: &mut Call<'_>,
    at: MachAddr,
    entry: Entry,
    how: Store,
    mappable: Mappable,
) -> Result<Touched, Errno> {
    let mut frames = call.domain.frames();
    let frame = at.frame();
    if frames.table.owner(frame) != Owner::Guest {
        return Err(Errno::Einval);
    }
    let record = *frames.table.record(frame).ok_or(Errno::Einval)?;
    match record.table_level() {
        None if record.is_used_as(Use::SegmentDescriptors) => Err(Errno::Einval),
        None => frames.store_plain(at, entry.0).map(|()| Touched::Other),
        Some(Level::L1) => {
            frames.update_entry((frame, Level::L1, at.offset() / 8), entry, how, mappable)?;
            Ok(Touched::Other)
        }
        // Tables can only be the guest's own.
        Some(_) if mappable != Mappable::Own => Err(Errno::Einval),
        Some(level) => {
            frames.update_entry((frame, level, at.offset() / 8), entry, how, mappable)?;
            Ok(Touched::UpperLevel)
        }
    }
}

fn set_m2p(call: &mut Call<'_>, at: MachAddr, pfn: u64, mappable: Mappable) -> Result<(), Errno> {
    let frames = call.domain.frames();
    if mappable != Mappable::Own || frames.table.owner(at.frame()) != Owner::Guest {
        return Err(Errno::Einval);
    }
    frames.set_m2p(at.frame(), pfn);
    Ok(())
}

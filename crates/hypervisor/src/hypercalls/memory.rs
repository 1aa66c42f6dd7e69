//! `memory_op`: how much memory the guest has, and where.
//!
//! The three reservation calls never return an error number. They return how many extents were done, and whatever
//! goes wrong (a bad pointer, a bad domain, no memory) makes the number smaller. A long list is cut: the guest makes
//! the call again with the number done so far above the operation's bits.
//!
//! A page that is given back is still the guest's until its last mapping, pin or use is gone.
//!
//! Source: `do_memory_op` in `xen/common/memory.c`, `arch_memory_op` in `xen/arch/x86/mm.c`, `subarch_memory_op` in
//! `xen/arch/x86/x86_64/mm.c`.

use core::mem::offset_of;

use paravane_abi::{
    errno::Errno,
    memory::{
        MEMORY_OP_EXTENT_SHIFT, MEMORY_OP_MASK, MachphysMapping, MachphysMfnList, MemoryOp,
        MemoryReservation, mem_flags,
    },
    shared_info::{ArchSharedInfo, SharedInfo},
    units::{DomId, GuestVirt, MachAddr, Mfn, PAGE_SHIFT, Pfn},
};

use super::{exchange, memory_map, owner::require_own};
use crate::{
    dispatch::{Outcome, narrow},
    domain::{CONTROL_DOMAIN, Call, Verdict},
    frames::{M2P_END, M2P_ENTRIES, M2P_START},
    refusal::Refusal,
    support::Supported as _,
};

/// log2 of the largest extent that an unprivileged guest may ask for (`CONFIG_DOMU_MAX_ORDER`).
pub(super) const MAX_ORDER: u32 = 9;
/// Pages after which a list is cut.
const BATCH_PAGES: u64 = 4096;
/// Frames described by 2 MiB of the machine-to-physical table: the steps in which it is listed.
const FRAMES_PER_STEP: u64 = (2 << 20) / 8;

/// `memory_op(command, argument)`.
///
/// # Errors
///
/// `ENOSYS` for an unknown operation, `EFAULT` for an argument that cannot be read or written, `ESRCH` and `EPERM` for
/// other domains; else as the operation says.
pub(crate) fn memory_op(call: &mut Call<'_>, command: u64, argument: u64) -> Result<Outcome, Refusal> {
    let done = command >> MEMORY_OP_EXTENT_SHIFT;
    let op = MemoryOp::from_number(narrow(command & MEMORY_OP_MASK)).ok_or(Errno::Enosys)?;
    let argument = GuestVirt(argument);
    match op {
        MemoryOp::IncreaseReservation => Ok(reservation(call, increase, op, argument, done)),
        MemoryOp::DecreaseReservation => Ok(reservation(call, decrease, op, argument, done)),
        MemoryOp::PopulatePhysmap => Ok(reservation(call, populate, op, argument, done)),
        // A range that is resumed has 16 bits of progress.
        MemoryOp::AddToPhysmap | MemoryOp::AddToPhysmapBatch if done > u64::from(u16::MAX) => {
            Err(Errno::Edom.into())
        }
        MemoryOp::AddToPhysmap | MemoryOp::AddToPhysmapBatch => refuse_for_domain(call, op, argument),
        MemoryOp::AccessOp | MemoryOp::AcquireResource => Err(op.refusal().into()),
        _ if done != 0 => Err(not_resumable(op).into()),
        MemoryOp::Exchange => exchange::exchange(call, argument),
        MemoryOp::MaximumRamPage => Ok(Outcome::from(call.domain.frame_table.machine.frames.end.0)),
        MemoryOp::CurrentReservation => {
            own_domain(call, argument)?;
            Ok(Outcome::from(call.domain.frame_table.owned()))
        }
        MemoryOp::MaximumReservation => {
            own_domain(call, argument)?;
            Ok(Outcome::from(call.domain.frame_table.machine.max_pages))
        }
        MemoryOp::MaximumGpfn => {
            own_domain(call, argument)?;
            Ok(Outcome::from(maximum_gpfn(call)))
        }
        MemoryOp::MachphysMapping => {
            let mapping = MachphysMapping { v_start: M2P_START, v_end: M2P_END, max_mfn: M2P_ENTRIES - 1 };
            call.space().write_value(argument, &mapping)?;
            Ok(Outcome::Return(0))
        }
        MemoryOp::MachphysMfnList => machphys_mfn_list(call, argument),
        // There are no 32-bit guests to have a table of their own.
        MemoryOp::MachphysCompatMfnList => Err(op.refusal().into()),
        MemoryOp::MemoryMap => memory_map::get(call, argument),
        MemoryOp::SetMemoryMap => memory_map::set(call, argument),
        MemoryOp::ReservedDeviceMemoryMap => memory_map::reserved_for_devices(call, argument),
        // There is no sharing, and never was.
        MemoryOp::GetSharingFreedPages | MemoryOp::GetSharingSharedPages => Ok(Outcome::Return(0)),
        MemoryOp::RemoveFromPhysmap | MemoryOp::SetPodTarget | MemoryOp::GetPodTarget => {
            refuse_for_domain(call, op, argument)
        }
        MemoryOp::MachineMemoryMap
        | MemoryOp::PagingOp
        | MemoryOp::SharingOp
        | MemoryOp::ClaimPages
        | MemoryOp::GetVnumainfo => Err(op.refusal().into()),
    }
}

/// Refuses what a PV domain does not have. The argument is read before, and the domain that it names looked for.
fn refuse_for_domain(call: &Call<'_>, op: MemoryOp, argument: GuestVirt) -> Result<Outcome, Refusal> {
    let id: u16 = call.space().read_value(argument)?;
    let exists = [call.domain.id, DomId::SELF, CONTROL_DOMAIN].contains(&DomId(id));
    Err(if exists { op.refusal() } else { Errno::Esrch }.into())
}

/// What an operation returns that cannot be resumed in its middle. Those of the architecture compare the whole command.
fn not_resumable(op: MemoryOp) -> Errno {
    match op {
        MemoryOp::MachphysMfnList
        | MemoryOp::MachphysCompatMfnList
        | MemoryOp::MachphysMapping
        | MemoryOp::MemoryMap
        | MemoryOp::MachineMemoryMap
        | MemoryOp::SetMemoryMap
        | MemoryOp::SetPodTarget
        | MemoryOp::GetPodTarget
        | MemoryOp::GetSharingFreedPages
        | MemoryOp::GetSharingSharedPages
        | MemoryOp::PagingOp
        | MemoryOp::SharingOp => Errno::Enosys,
        MemoryOp::AddToPhysmap
        | MemoryOp::AddToPhysmapBatch
        | MemoryOp::AccessOp
        | MemoryOp::AcquireResource
        | MemoryOp::IncreaseReservation
        | MemoryOp::DecreaseReservation
        | MemoryOp::PopulatePhysmap
        | MemoryOp::Exchange
        | MemoryOp::MaximumRamPage
        | MemoryOp::CurrentReservation
        | MemoryOp::MaximumReservation
        | MemoryOp::MaximumGpfn
        | MemoryOp::RemoveFromPhysmap
        | MemoryOp::ClaimPages
        | MemoryOp::GetVnumainfo
        | MemoryOp::ReservedDeviceMemoryMap => Errno::Einval,
    }
}

/// Reads the domain that the argument names.
fn own_domain(call: &Call<'_>, argument: GuestVirt) -> Result<(), Refusal> {
    let id: u16 = call.space().read_value(argument)?;
    Ok(require_own(call, DomId(id))?)
}

/// The guest's own word for it: a PV guest keeps its highest frame in `shared_info` for the tools.
fn maximum_gpfn(call: &Call<'_>) -> u64 {
    let offset = offset_of!(SharedInfo, arch) + offset_of!(ArchSharedInfo, max_pfn);
    let base = call.domain.shared_info.base().unwrap_or_default();
    let entries = call.domain.memory.load_u64(MachAddr(base.0 + offset as u64)).unwrap_or(0);
    entries.max(1) - 1
}

/// What a list of extents may contain.
#[derive(Clone, Copy, Debug)]
struct Extents {
    list: GuestVirt,
    order: u32,
    /// Frames have to lie below.
    limit: u64,
}

/// Carries out one of the three reservation calls from extent `start` on, and returns how many extents are done.
fn reservation(
    call: &mut Call<'_>,
    each: impl Fn(&mut Call<'_>, Extents, u64) -> Option<()>,
    op: MemoryOp,
    argument: GuestVirt,
    start: u64,
) -> Outcome {
    let (extents, count) = match extents(call, op, argument) {
        Some((extents, count)) if start < count => (extents, count),
        Some(_) | None => return Outcome::from(start),
    };
    let batch = (BATCH_PAGES >> extents.order).max(1);
    for index in start..count {
        if index - start == batch {
            let command = u64::from(op.number()) | index << MEMORY_OP_EXTENT_SHIFT;
            return Outcome::Again([command, argument.0, 0, 0, 0], Verdict::Run);
        }
        if each(call, extents, index).is_none() {
            return Outcome::from(index);
        }
    }
    Outcome::from(count)
}

/// Reads and checks a reservation.
fn extents(call: &Call<'_>, op: MemoryOp, argument: GuestVirt) -> Option<(Extents, u64)> {
    const MOST: u64 = u32::MAX as u64 >> MEMORY_OP_EXTENT_SHIFT;
    let reservation: MemoryReservation = call.space().read_value(argument).ok()?;
    require_own(call, DomId(reservation.domid)).ok()?;
    if reservation.nr_extents > MOST || reservation.extent_order > MAX_ORDER {
        return None;
    }
    // A guest cannot put off the population of its own memory.
    if op == MemoryOp::PopulatePhysmap && reservation.mem_flags & mem_flags::POPULATE_ON_DEMAND != 0 {
        return None;
    }
    let limit = frame_limit(call, reservation.mem_flags)?;
    let list = GuestVirt(reservation.extent_start);
    Some((Extents { list, order: reservation.extent_order, limit }, reservation.nr_extents))
}

/// The frame below which memory has to lie. `None` for flags that an unprivileged guest may not set.
pub(super) fn frame_limit(call: &Call<'_>, flags: u32) -> Option<u64> {
    if names_node(flags) {
        return None;
    }
    let end = call.domain.frame_table.machine.frames.end.0;
    match flags & mem_flags::ADDRESS_BITS_MASK {
        0 => Some(end),
        bits if bits <= PAGE_SHIFT => None,
        bits => Some(end.min(1_u64.checked_shl(bits - PAGE_SHIFT).unwrap_or(u64::MAX))),
    }
}

/// Whether memory of one node of the host alone is wanted, about which a guest has no say.
pub(super) fn names_node(flags: u32) -> bool {
    flags & mem_flags::EXACT_NODE_REQUEST != 0
}

/// Allocates an extent and tells the guest its first frame, if it wants to know.
fn increase(call: &mut Call<'_>, extents: Extents, index: u64) -> Option<()> {
    let first = allocate(call, extents, None)?;
    if extents.list.0 == 0 {
        return Some(());
    }
    call.space().write_element(extents.list, index, &first.0).ok()
}

/// Gives an extent back.
fn decrease(call: &mut Call<'_>, extents: Extents, index: u64) -> Option<()> {
    let first: u64 = call.space().read_element(extents.list, index).ok()?;
    for offset in 0..1 << extents.order {
        call.domain.frames().release(Mfn(first.checked_add(offset)?)).ok()?;
    }
    Some(())
}

/// Allocates an extent for the pseudo-physical frame in the list, and puts the machine frame there.
fn populate(call: &mut Call<'_>, extents: Extents, index: u64) -> Option<()> {
    let pfn: u64 = call.space().read_element(extents.list, index).ok()?;
    let first = allocate(call, extents, Some(Pfn(pfn)))?;
    call.space().write_element(extents.list, index, &first.0).ok()
}

fn allocate(call: &mut Call<'_>, extents: Extents, pfn: Option<Pfn>) -> Option<Mfn> {
    let room = call.domain.frame_table.has_room(extents.order);
    room.then(|| call.domain.frames().allocate(extents.order, extents.limit, pfn)).flatten()
}

/// Lists the frames of the machine-to-physical table.
fn machphys_mfn_list(call: &mut Call<'_>, argument: GuestVirt) -> Result<Outcome, Refusal> {
    let mut list: MachphysMfnList = call.space().read_value(argument)?;
    let frames = call.domain.frame_table.machine.m2p_frames(FRAMES_PER_STEP);
    let mut written = 0;
    for frame in frames.take(list.max_extents as usize) {
        call.space().write_element(GuestVirt(list.extent_start), u64::from(written), &frame.0)?;
        written += 1;
    }
    list.nr_extents = written;
    call.space().write_value(argument, &list)?;
    Ok(Outcome::Return(0))
}

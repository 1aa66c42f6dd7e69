//! Page faults that are not the guest's to see.
//!
//! # Writable page tables
//!
//! A guest kernel that turned the assist on may store to an L1 table through a read-only mapping. The store faults;
//! the hypervisor executes it on the guest's behalf and treats the result as a request to change the entry.
//! Nobody here decodes instructions. Instead the engine runs the faulting one with its accesses to the page going
//! to a private copy, and what changed in the copy is what the guest wanted to write:
//!
//! 1. [`write_fault`] recognises the fault and answers [`Verdict::ShadowWrite`] with the registers as they are.
//! 2. The run loop takes a copy of the frame ([`ShadowWrite::copy`]), a second one to write to, and calls
//!    `step_with_shadow_page`. An exit other than completion it hands to [`Domain::handle`] like any exit.
//! 3. [`Domain::shadow_written`] compares the copies. One changed entry is stored if a request to store it would be
//!    granted, and if the entry in memory is still the one that the instruction saw. If another vCPU was faster,
//!    the registers become what they were and the instruction runs again. If the entry is not acceptable, or
//!    more than one changed (which takes a store of more than 8 bytes, or one across entries), the registers become
//!    what they were and the guest gets its page fault.
//!
//! Both outcomes restore all registers, not RIP alone: the instruction may have changed flags, counters or
//! operands (`xchg`, `cmpxchg`, `movs`).
//!
//! # Spurious faults
//!
//! A fault whose translation allows the access by now, because another vCPU has just changed it, is absorbed: the
//! page is flushed and the instruction runs again. The same instruction faulting at the same address over and
//! over is given to the guest in the end, so that nothing spins here for ever.
//!
//! Source: `fixup_page_fault` in `xen/arch/x86/traps.c`, `xen/arch/x86/pv/ro-page-fault.c`.

use paravane_abi::{
    errno::Errno,
    units::{GuestVirt, Mfn, PAGE_BYTES, VcpuId},
    vm::VmAssistType,
};
use paravane_engine::{GuestMode, PageFault, TlbFlush, VcpuContext, rflags, vector};
use paravane_memory::{Memory, paging::FaultCode};

use super::{
    entry::{ENTRIES, Entry},
    level::{Level, Use},
    table::Owner,
    update::{Store, Updated},
    validate::{Mappable, slot_address},
    walk::{Leaf, find_leaf},
};
use crate::{
    crash::CrashCause,
    domain::{Call, Domain, Verdict},
    exits,
    time::Tsc,
};

/// How often the same spurious fault is absorbed in a row.
const SPURIOUS_LIMIT: u8 = 8;
/// DR6.BS: a single step.
const DR6_SINGLE_STEP: u64 = 1 << 14;

/// An instruction that stores to a read-only page table, to be executed on a copy of it.
#[derive(Debug)]
pub struct ShadowWrite {
    /// The page whose accesses go to the copy.
    pub page: GuestVirt,
    /// The frame behind it.
    pub frame: Mfn,
    /// The fault, for the guest if the store cannot be granted.
    fault: PageFault,
    /// The registers before the instruction.
    before: Box<VcpuContext>,
}

impl ShadowWrite {
    /// A copy of the page table.
    pub fn copy(&self, memory: &Memory) -> Box<[u8; PAGE_BYTES]> {
        let mut copy = Box::new([0; PAGE_BYTES]);
        let read = memory.read(slot_address(self.frame, 0), &mut copy[..]);
        debug_assert!(read.is_ok(), "the guest's frames lie in memory");
        copy
    }
}

/// A vCPU's last page faults, as far as they decide about the next.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RecentFaults {
    /// The instruction whose store is being emulated, and the page it stores to.
    shadowed: Option<(u64, GuestVirt)>,
    /// The last spurious fault: instruction, address, how often in a row.
    spurious: (u64, u64, u8),
}

/// Answers a page fault that is not the guest's to see. `None` if it is the guest's.
///
/// # Errors
///
/// None at present.
pub(crate) fn write_fault(call: &mut Call<'_>, fault: PageFault) -> Result<Option<Verdict>, CrashCause> {
    let address = GuestVirt(fault.address);
    let rip = call.context.rip;
    let shadowed = call.recent_faults().shadowed.take();
    let leaf = call.context.root().and_then(|root| find_leaf(&call.domain.memory, root, address));
    let Some(leaf) = leaf else { return Ok(None) };
    if leaf.allows(fault.code) {
        return Ok(absorb(call, address));
    }
    if !is_page_table_store(call, fault, &leaf) {
        return Ok(None);
    }
    // The store is being emulated on one page and faults on another: it crosses pages, and no single entry can be
    // meant.
    if shadowed.is_some_and(|(at, page)| at == rip && page != address.page()) {
        return Ok(None);
    }
    call.recent_faults().shadowed = Some((rip, address.page()));
    Ok(Some(Verdict::ShadowWrite(Box::new(ShadowWrite {
        page: address.page(),
        frame: leaf.entry.frame(),
        fault,
        before: Box::new(call.context.clone()),
    }))))
}

/// Runs the instruction again, unless that was tried too often.
fn absorb(call: &mut Call<'_>, address: GuestVirt) -> Option<Verdict> {
    let rip = call.context.rip;
    let (last_rip, last_address, count) = call.recent_faults().spurious;
    let count = if (last_rip, last_address) == (rip, address.0) { count + 1 } else { 1 };
    if count > SPURIOUS_LIMIT {
        call.recent_faults().spurious = RecentFaults::default().spurious;
        return None;
    }
    call.recent_faults().spurious = (rip, address.0, count);
    call.flush_local(TlbFlush::Page(address.page()));
    Some(Verdict::Run)
}

/// Whether the fault is a store of the guest kernel's to an L1 table that it has mapped read-only, with the assist on.
fn is_page_table_store(call: &Call<'_>, fault: PageFault, leaf: &Leaf) -> bool {
    const KINDS: u32 = FaultCode::PRESENT | FaultCode::WRITE | FaultCode::RESERVED | FaultCode::FETCH;
    let assist = call.domain.assists & 1 << VmAssistType::WritablePagetables.number() != 0;
    let store = fault.code.0 & KINDS == FaultCode::PRESENT | FaultCode::WRITE;
    let read_only = leaf.entry.is_present() && !leaf.entry.is_writable();
    assist
        && store
        && read_only
        && call.context.mode == GuestMode::Kernel
        && is_l1_table(call.domain, leaf.entry.frame())
}

fn is_l1_table(domain: &Domain, frame: Mfn) -> bool {
    let table = &domain.frame_table;
    table.owner(frame) == Owner::Guest && table.record(frame).is_some_and(|record| record.is_used_as(Use::L1))
}

impl Domain {
    /// Goes on after [`Verdict::ShadowWrite`]: the engine has executed the instruction, and turned `old` into `new`.
    ///
    /// `context` is the vCPU's registers after the instruction.
    pub fn shadow_written(
        &mut self,
        vcpu: VcpuId,
        write: &ShadowWrite,
        (old, new): (&[u8; PAGE_BYTES], &[u8; PAGE_BYTES]),
        context: &mut VcpuContext,
        now: Tsc,
    ) -> Verdict {
        let exit = paravane_engine::Exit::PageFault(write.fault);
        self.answer(vcpu, exit, context, now, |call| {
            call.recent_faults().shadowed = None;
            match apply(call.domain, write.frame, old, new) {
                Ok(Updated::Stored) if write.before.rflags & rflags::TF != 0 => {
                    call.context.debug[6] |= DR6_SINGLE_STEP;
                    exits::inject(call, vector::DEBUG, None)?;
                }
                Ok(Updated::Stored) => {}
                Ok(Updated::Raced) => call.context.clone_from(&write.before),
                Err(_) => {
                    call.context.clone_from(&write.before);
                    exits::inject_page_fault(call, write.fault)?;
                }
            }
            exits::deliver_pending(call)?;
            Ok(Verdict::Run)
        })
    }
}

/// Stores the one entry in which the copies differ.
fn apply(
    domain: &mut Domain,
    table: Mfn,
    old: &[u8; PAGE_BYTES],
    new: &[u8; PAGE_BYTES],
) -> Result<Updated, Errno> {
    if !is_l1_table(domain, table) {
        return Ok(Updated::Raced);
    }
    let mut changed = (0..ENTRIES).filter(|slot| word(old, *slot) != word(new, *slot));
    let Some(slot) = changed.next() else { return Ok(Updated::Stored) };
    if changed.next().is_some() {
        return Err(Errno::Einval);
    }
    let (old, new) = (Entry(word(old, slot)), Entry(word(new, slot)));
    domain.frames().update_entry((table, Level::L1, slot), new, Store::Replace(old), Mappable::Own)
}

fn word(page: &[u8; PAGE_BYTES], slot: usize) -> u64 {
    let (words, _) = page.as_chunks::<8>();
    u64::from_le_bytes(words[slot])
}

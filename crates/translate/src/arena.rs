//! The memory below 2 GiB that translated code and Rust share.
//!
//! One anonymous mapping, readable, writable and executable. Executable and writable at once, because blocks are
//! linked by patching jumps in place, and the architecture lets a processor see its own patches without a
//! serialising instruction only if they are written through the address that is executed (Intel SDM vol. 3A,
//! "Handling Self- and Cross-Modifying Code"). A host that forbids such mappings refuses [`Arena::new`].
#![expect(unsafe_code, reason = "owns the arena and hands out its parts as references")]

use core::ptr::NonNull;
use core::sync::atomic::Ordering;
use std::sync::Arc;

use paravane_engine::{GuestMode, Kick, VcpuContext};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

use crate::runs::Runs;
use crate::state::{
    CODE_PAGE_ENTRIES, HOT_BYTES, HostFault, JUMP_ENTRIES, KickCell, Layout, Path, SHARED_SLOTS, Shadow,
    State, TLB_ENTRIES, TlbEntry, bounce, part, tlb_number,
};
use crate::trampoline;
use crate::walk::{ALIVE_PAGES, Walk};

/// The mapping. Kept alive by the engine and by its kick handles.
#[derive(Debug)]
pub(crate) struct Arena {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: `Arena` itself only reaches the kick cell, which consists of atomics; everything else is reached
// through `Cpu`, of which there is one.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

/// The lowest address tried: above what programs and `vm.mmap_min_addr` use.
const LOWEST: usize = 0x100_0000;
/// One past the highest usable address: displacements are sign-extended from 32 bits.
const LIMIT: usize = 0x8000_0000;
/// Distance between tried addresses.
const STRIDE: usize = 1 << 20;

impl Arena {
    fn new() -> Result<Self, Errno> {
        let mut refusal = Errno::NOMEM;
        for address in (LOWEST..LIMIT - part::TOTAL).rev().step_by(STRIDE) {
            let address = address & !(STRIDE - 1);
            // SAFETY: NOREPLACE makes the kernel refuse rather than touch an existing mapping.
            let mapped = unsafe {
                rustix::mm::mmap_anonymous(
                    core::ptr::without_provenance_mut(address),
                    part::TOTAL,
                    ProtFlags::READ | ProtFlags::WRITE | ProtFlags::EXEC,
                    MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED_NOREPLACE,
                )
            };
            match mapped {
                Ok(pointer) => {
                    let base = NonNull::new(pointer.cast::<u8>()).ok_or(Errno::NOMEM)?;
                    let low = u32::try_from(address).map_err(|_too_high| Errno::NOMEM)?;
                    return Ok(Self { base, layout: Layout(low) });
                }
                Err(Errno::EXIST) => {}
                Err(other) => refusal = other,
            }
        }
        Err(refusal)
    }

    fn kick_cell(&self) -> &KickCell {
        // SAFETY: the part is inside the mapping, aligned, zeroed at first (valid for atomics), and lives as
        // long as `self`.
        let cell = unsafe { self.base.add(part::KICK) }.cast::<KickCell>();
        // SAFETY: as above.
        unsafe { cell.as_ref() }
    }

    fn kick(&self) {
        self.kick_cell().pointer.store(0, Ordering::Release);
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length; the last owner is going.
        let result = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), part::TOTAL) };
        debug_assert!(result.is_ok(), "munmap of an arena we own");
    }
}

/// The one owner of an arena's state, tables and code.
#[derive(Debug)]
pub(crate) struct Cpu {
    arena: Arc<Arena>,
}

impl Cpu {
    /// Maps an arena and puts a reset CPU into it. `xsave_mask` says which state components the guest may use.
    pub(crate) fn new(xsave_mask: u64) -> Result<Self, Errno> {
        let arena = Arc::new(Arena::new()?);
        let state = State {
            context: VcpuContext::new(),
            status: 0,
            kept_status: 0,
            direction: 0,
            resume: 0,
            scratch: 0,
            reason: 0,
            branch: 0,
            host_mxcsr: 0x1f80,
            spill: [0; 4],
            shared: [0; SHARED_SLOTS],
            host_rsp: 0,
            xsave_mask,
            leave: trampoline::leave_address(),
            fault: HostFault::default(),
            walk: Walk::new(),
            runs: Runs::new(),
            filled: [[0; 64]; 4],
            code_filled: [[0; 64]; 2],
            shadow: Shadow([0; 4096]),
        };
        // SAFETY: the part is inside the mapping.
        let place = unsafe { arena.base.add(part::STATE) }.cast::<State>();
        // SAFETY: fresh, aligned memory that nobody else knows yet.
        unsafe { place.write(state) };
        let cpu = Self { arena };
        cpu.guard(0, bounce::GUARDS)?;
        cpu.guard(bounce::GUARDS + 2, 1)?;
        cpu.take_kick();
        Ok(cpu)
    }

    /// The addresses of everything.
    pub(crate) fn layout(&self) -> Layout {
        self.arena.layout
    }

    /// The state, between runs.
    pub(crate) fn state(&self) -> &State {
        // SAFETY: initialised by `new`; changed by others only while `enter` runs, which borrows `self`
        // exclusively.
        unsafe { &*self.part(part::STATE).cast::<State>() }
    }

    /// The state, to change.
    pub(crate) fn state_mut(&mut self) -> &mut State {
        // SAFETY: as for `state`; `self` is borrowed exclusively.
        unsafe { &mut *self.part(part::STATE).cast::<State>() }
    }

    /// Forbids all access to some of the bounce pages, for ever.
    fn guard(&self, first: usize, pages: usize) -> Result<(), Errno> {
        let start = self.part(part::BOUNCE + first * 4096).cast();
        // SAFETY: the pages lie inside the mapping, and no reference to them is ever made.
        unsafe { rustix::mm::mprotect(start, pages * 4096, rustix::mm::MprotectFlags::empty()) }
    }

    /// The bounce pages that can be accessed.
    pub(crate) fn bounce(&mut self) -> &mut [u8; bounce::BYTES] {
        let middle = self.part(part::BOUNCE + bounce::GUARDS * 4096).cast::<[u8; bounce::BYTES]>();
        // SAFETY: inside the mapping, valid for any bytes; `self` is borrowed exclusively.
        unsafe { &mut *middle }
    }

    /// One of the four TLBs.
    pub(crate) fn tlb(&mut self, mode: GuestMode, path: Path) -> &mut [TlbEntry; TLB_ENTRIES] {
        let offset = part::TLB + part::TLB_BYTES * tlb_number(mode, path);
        // SAFETY: inside the mapping, aligned, valid for any bytes; `self` is borrowed exclusively.
        unsafe { &mut *self.part(offset).cast::<[TlbEntry; TLB_ENTRIES]>() }
    }

    /// The code-page table of a mode.
    pub(crate) fn code_pages(&mut self, mode: GuestMode) -> &mut [u32; CODE_PAGE_ENTRIES] {
        let offset = part::CODE_PAGES + part::CODE_PAGES_BYTES * mode as usize;
        // SAFETY: as for `tlb`.
        unsafe { &mut *self.part(offset).cast::<[u32; CODE_PAGE_ENTRIES]>() }
    }

    /// The jump cache of a mode: host addresses.
    pub(crate) fn jumps(&mut self, mode: GuestMode) -> &mut [u32; JUMP_ENTRIES] {
        let offset = part::JUMPS + part::JUMPS_BYTES * mode as usize;
        // SAFETY: as for `tlb`.
        unsafe { &mut *self.part(offset).cast::<[u32; JUMP_ENTRIES]>() }
    }

    /// Which numbers of code pages may be current: one byte each.
    pub(crate) fn alive(&mut self) -> &mut [u8; ALIVE_PAGES] {
        // SAFETY: as for `tlb`.
        unsafe { &mut *self.part(part::ALIVE).cast::<[u8; ALIVE_PAGES]>() }
    }

    /// Writes code at an address inside the code part.
    ///
    /// # Panics
    ///
    /// If it does not lie there: a bug of the translator, never the guest's doing.
    pub(crate) fn write_code(&mut self, address: u32, bytes: &[u8]) {
        let start = address.checked_sub(self.layout().0).map_or(usize::MAX, |offset| offset as usize);
        let end = start.checked_add(bytes.len()).filter(|end| *end <= part::TOTAL);
        assert!(start >= part::CODE && end.is_some(), "code at {address:#x} is outside the cache");
        // SAFETY: the range was just checked to be inside the code part; no reference to it exists.
        unsafe { self.part(start).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    /// Runs translated code from `state.resume` until it leaves.
    pub(crate) fn enter(&mut self) {
        let state = self.part(part::STATE).cast::<State>();
        // SAFETY: the state is initialised and at its arena address; `resume` names code that the translator
        // emitted, which keeps to guest memory (checked translations) and to the arena's state and tables.
        unsafe { trampoline::enter(state) };
    }

    /// Where a fault handler continues: the leave stub without flags.
    pub(crate) fn fault_entry(&self) -> u32 {
        self.layout().code() + HOT_BYTES
    }

    /// Takes a kick, if there was one.
    pub(crate) fn take_kick(&self) -> bool {
        let target = u64::from(self.layout().kick_pointer());
        self.arena.kick_cell().pointer.swap(target, Ordering::AcqRel) == 0
    }

    /// Whether somebody kicked.
    pub(crate) fn is_kicked(&self) -> bool {
        self.arena.kick_cell().pointer.load(Ordering::Acquire) == 0
    }

    /// Kicks itself.
    pub(crate) fn kick(&self) {
        self.arena.kick();
    }

    /// A handle that kicks.
    pub(crate) fn kick_handle(&self) -> Kick {
        let arena = Arc::clone(&self.arena);
        Kick::new(move || arena.kick())
    }

    fn part(&self, offset: usize) -> *mut u8 {
        debug_assert!(offset < part::TOTAL);
        // SAFETY: every caller's offset lies inside the mapping.
        unsafe { self.arena.base.as_ptr().add(offset) }
    }
}

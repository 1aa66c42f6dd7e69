//! The memory below 2 GiB that translated code and Rust share.
//!
//! One anonymous mapping, readable, writable and executable. Executable and writable at once, because blocks are
//! linked by patching jumps in place, and the architecture lets a processor see its own patches without a
//! serialising instruction only if they are written through the address that is executed (Intel SDM vol. 3A,
//! "Handling Self- and Cross-Modifying Code"). A host that forbids such mappings refuses [`Arena::new`].
//!
//! In front of it and behind it are pages that nobody can access: what computes a wrong address near its ends faults.
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
/// Bytes on either side that can never be accessed.
const GUARD: usize = 64 << 10;
/// Distance between tried addresses.
const STRIDE: usize = 1 << 20;

impl Arena {
    fn new() -> Result<Self, Errno> {
        let mut refusal = Errno::NOMEM;
        for address in (LOWEST..LIMIT - part::TOTAL).rev().step_by(STRIDE) {
            let address = address & !(STRIDE - 1);
            // SAFETY: NOREPLACE makes the kernel refuse rather than touch an existing mapping.
            let reserved = unsafe {
                rustix::mm::mmap_anonymous(
                    core::ptr::without_provenance_mut(address - GUARD),
                    part::TOTAL + 2 * GUARD,
                    ProtFlags::empty(),
                    MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED_NOREPLACE,
                )
            };
            match reserved {
                Ok(start) => return Self::in_reserved(start.cast(), address),
                Err(Errno::EXIST) => {}
                Err(other) => refusal = other,
            }
        }
        Err(refusal)
    }

    /// Makes the middle of what was reserved accessible.
    fn in_reserved(start: *mut u8, address: usize) -> Result<Self, Errno> {
        // SAFETY: inside what was reserved.
        let base = NonNull::new(unsafe { start.add(GUARD) }).ok_or(Errno::NOMEM)?;
        let low = u32::try_from(address).map_err(|_too_high| Errno::NOMEM)?;
        // From here on, dropping it gives everything back.
        let arena = Self { base, layout: Layout(low) };
        // SAFETY: replaces the middle of what was just reserved, which nobody else knows.
        unsafe {
            rustix::mm::mmap_anonymous(
                base.as_ptr().cast(),
                part::TOTAL,
                ProtFlags::READ | ProtFlags::WRITE | ProtFlags::EXEC,
                MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED,
            )
        }?;
        Ok(arena)
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
        // SAFETY: `new` reserved as much in front of it.
        let start = unsafe { self.base.sub(GUARD) };
        // SAFETY: reserved by `new` with this length; the last owner is going.
        let result = unsafe { rustix::mm::munmap(start.as_ptr().cast(), part::TOTAL + 2 * GUARD) };
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

#[cfg(test)]
mod tests {
    use paravane_abi::units::Mfn;
    use paravane_memory::Memory;

    use super::*;
    use crate::engine::{Options, Translator};

    /// What becomes of one instruction of translated code that has this address in R14.
    fn fault_of(translator: &mut Translator, code: [u8; 3], address: u64) -> HostFault {
        let at = translator.hot_next;
        // UD2 behind it, so that it ends if there is no fault.
        translator.cpu.write_code(at, &[code[0], code[1], code[2], 0x0f, 0x0b]);
        crate::signal::prepare_thread(&mut translator.cpu);
        let state = translator.cpu.state_mut();
        state.scratch = address;
        state.resume = u64::from(at);
        translator.cpu.enter();
        core::mem::take(&mut translator.cpu.state_mut().fault)
    }

    #[test]
    fn an_access_around_guest_memory_or_the_arena_faults_and_is_caught() {
        const FRAMES: u64 = 4;
        // mov [r14], al; mov al, [r14]
        const CODES: [[u8; 3]; 2] = [[0x41, 0x88, 0x06], [0x41, 0x8a, 0x06]];
        const NEAR: u64 = GUARD as u64;
        let memory = Arc::new(Memory::new(Mfn(0x100), FRAMES).expect("a few pages"));
        let ram = memory.frame_pointer(Mfn(0x100)).expect("the first frame").as_ptr() as usize as u64;
        let ram_end = ram + FRAMES * 4096;
        let mut translator = Translator::new(memory, Options::default()).expect("a host that can translate");
        let arena = u64::from(translator.cpu.layout().0);
        let arena_end = arena + part::TOTAL as u64;
        let bounce = u64::from(translator.cpu.layout().bounce());
        let outside = [
            ram - 1,
            ram - NEAR,
            ram_end,
            ram_end + NEAR,
            ram + (1 << 32),
            arena - 1,
            arena - NEAR,
            arena_end,
            arena_end + NEAR - 1,
            arena + (1 << 32),
            bounce - 1,
            bounce + bounce::BYTES as u64,
            0,
            1 << 47,
            u64::MAX << 47,
        ];
        for address in outside {
            for code in CODES {
                let fault = fault_of(&mut translator, code, address);
                // Addresses that are not canonical are #GP.
                let vector = if address == 1 << 47 { 13 } else { 14 };
                assert_eq!((fault.pending, fault.vector), (1, vector), "{address:#x}");
                assert_eq!(fault.host_rip, u64::from(translator.hot_next));
            }
        }
        for address in [ram, ram_end - 1, bounce, bounce + bounce::BYTES as u64 - 1] {
            for code in CODES {
                let fault = fault_of(&mut translator, code, address);
                assert_eq!((fault.pending, fault.vector), (1, 6), "{address:#x}");
            }
        }
    }
}

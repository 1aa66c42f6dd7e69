//! The one mapping of the memfd, and every access through it.
//!
//! Offsets are checked here against the mapping's length, so the functions are safe for any argument. The bytes
//! are shared with code that the compiler does not see (translated guest code, other processes' vCPUs), hence:
//! copies are done by assembly (a string move, or words for short ones), which the compiler must treat as touching
//! memory it knows nothing about, and words go through atomics.
#![expect(unsafe_code, reason = "owns the mapping of guest memory and dereferences into it")]

use core::arch::asm;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{FallocateFlags, MemfdFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

/// Bytes in front of the mapping and behind it that can never be accessed, so that whoever computes a wrong address
/// near its ends faults instead of reaching what else is mapped there. As long as a large page, so that the
/// mapping can be made of those.
const GUARD: usize = 2 << 20;

/// A shared, lazily backed mapping of a whole memfd.
#[derive(Debug)]
pub(crate) struct Mapping {
    fd: OwnedFd,
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain shared memory that lives until drop; every access goes through atomics or
// through assembly copies, both of which are fine from any thread.
unsafe impl Send for Mapping {}
// SAFETY: as for `Send`; no method hands out a non-atomic reference.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Makes a memfd of `len` bytes and maps it.
    pub(crate) fn new(len: usize) -> Result<Self, Errno> {
        let fd = rustix::fs::memfd_create(c"paravane-guest", MemfdFlags::CLOEXEC)?;
        let size = u64::try_from(len).map_err(|_overflow| Errno::INVAL)?;
        rustix::fs::ftruncate(&fd, size)?;
        let whole = len.checked_add(2 * GUARD).ok_or(Errno::NOMEM)?;
        // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing.
        let reserved = unsafe {
            rustix::mm::mmap_anonymous(
                core::ptr::null_mut(),
                whole,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let start = NonNull::new(reserved.cast::<u8>()).ok_or(Errno::NOMEM)?;
        // SAFETY: inside what was just reserved.
        let base = unsafe { start.add(GUARD) };
        // From here on, dropping it gives everything back.
        let mapping = Self { fd, base, len };
        // SAFETY: replaces the middle of what was just reserved, which nobody else knows.
        unsafe {
            rustix::mm::mmap(
                base.as_ptr().cast(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE | MapFlags::FIXED,
                &mapping.fd,
                0,
            )
        }?;
        Ok(mapping)
    }

    /// The memfd.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The host address of `offset`, if `len` bytes from there are inside.
    pub(crate) fn pointer(&self, offset: usize, len: usize) -> Option<NonNull<u8>> {
        let end = offset.checked_add(len)?;
        // SAFETY: `offset <= end <= self.len`, so the result stays in (or one past) the mapping.
        (end <= self.len).then(|| unsafe { self.base.add(offset) })
    }

    /// Copies out `into.len()` bytes from `offset`. `None` if they are not all inside.
    pub(crate) fn read(&self, offset: usize, into: &mut [u8]) -> Option<()> {
        let from = self.pointer(offset, into.len())?;
        // SAFETY: source checked above, destination is a live exclusive slice of the same length; the two do not
        // overlap, because nobody holds a Rust slice of the mapping.
        unsafe { move_apart(from.as_ptr(), into.as_mut_ptr(), into.len()) };
        Some(())
    }

    /// Copies `from` to `offset`. `None` if it does not fit.
    pub(crate) fn write(&self, offset: usize, from: &[u8]) -> Option<()> {
        let to = self.pointer(offset, from.len())?;
        // SAFETY: as in `read`, with the roles swapped.
        unsafe { move_apart(from.as_ptr(), to.as_ptr(), from.len()) };
        Some(())
    }

    /// Copies `len` bytes inside the mapping, lowest first.
    pub(crate) fn copy(&self, from: usize, to: usize, len: usize) -> Option<()> {
        let (from, to) = (self.pointer(from, len)?, self.pointer(to, len)?);
        // SAFETY: both ranges were checked; the string move copies bytes one after the other, so an overlap only
        // decides which bytes result.
        unsafe { move_bytes(from.as_ptr(), to.as_ptr(), len) };
        Some(())
    }

    /// Fills `len` bytes from `offset` with `byte`.
    pub(crate) fn fill(&self, offset: usize, len: usize, byte: u8) -> Option<()> {
        let to = self.pointer(offset, len)?;
        // SAFETY: the range was checked; the string store writes exactly `len` bytes forward (the ABI keeps DF
        // clear).
        unsafe {
            asm!("rep stosb", inout("rcx") len => _, inout("rdi") to.as_ptr() => _, in("al") byte,
                 options(nostack, preserves_flags));
        }
        Some(())
    }

    /// The aligned byte at `offset`, shared.
    pub(crate) fn atomic_u8(&self, offset: usize) -> Option<&AtomicU8> {
        // SAFETY: in bounds and always aligned; the memory lives as long as `self`.
        self.pointer(offset, 1).map(|p| unsafe { AtomicU8::from_ptr(p.as_ptr()) })
    }

    /// The naturally aligned 32-bit word at `offset`, shared; `None` if outside or misaligned.
    pub(crate) fn atomic_u32(&self, offset: usize) -> Option<&AtomicU32> {
        let pointer = self.pointer(offset, 4)?.cast::<u32>();
        // SAFETY: in bounds and checked to be aligned; the memory lives as long as `self`.
        pointer.is_aligned().then(|| unsafe { AtomicU32::from_ptr(pointer.as_ptr()) })
    }

    /// The naturally aligned 64-bit word at `offset`, shared; `None` if outside or misaligned.
    pub(crate) fn atomic_u64(&self, offset: usize) -> Option<&AtomicU64> {
        let pointer = self.pointer(offset, 8)?.cast::<u64>();
        // SAFETY: in bounds and checked to be aligned; the memory lives as long as `self`.
        pointer.is_aligned().then(|| unsafe { AtomicU64::from_ptr(pointer.as_ptr()) })
    }

    /// Gives the pages of a range back to the host; they read as zero from now on.
    pub(crate) fn punch(&self, offset: usize, len: usize) -> Result<(), Errno> {
        let (Ok(start), Ok(size)) = (u64::try_from(offset), u64::try_from(len)) else {
            return Err(Errno::INVAL);
        };
        rustix::fs::fallocate(&self.fd, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, start, size)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `new` reserved as much in front of it.
        let start = unsafe { self.base.sub(GUARD) };
        // SAFETY: the mapping was made by `new` with this length, and no reference into it outlives `self`.
        let result = unsafe { rustix::mm::munmap(start.as_ptr().cast(), self.len + 2 * GUARD) };
        debug_assert!(result.is_ok(), "munmap of a mapping we own");
    }
}

/// The longest copy for which eight bytes at a time are faster than the CPU's string move takes to begin.
const SHORT: usize = 128;

/// As [`move_bytes`], for ranges that do not overlap.
///
/// # Safety
///
/// Both ranges must be valid for `len` bytes.
#[inline]
unsafe fn move_apart(from: *const u8, to: *mut u8, len: usize) {
    if len > SHORT || !len.is_multiple_of(8) || len == 0 {
        // SAFETY: as the caller's.
        unsafe { move_bytes(from, to, len) };
        return;
    }
    // SAFETY: the caller vouches for both ranges, and the length is a multiple of the step.
    unsafe {
        asm!(
            "2:",
            "mov {word}, [{from} + {at}]",
            "mov [{to} + {at}], {word}",
            "add {at}, 8",
            "cmp {at}, {len}",
            "jb 2b",
            word = out(reg) _, at = inout(reg) 0_usize => _, from = in(reg) from, to = in(reg) to, len = in(reg) len,
            options(nostack)
        );
    }
}

/// Copies bytes in a way that the compiler knows nothing about, so that concurrent guest writes can only make
/// the copied values arbitrary.
///
/// # Safety
///
/// Both ranges must be valid for `len` bytes.
unsafe fn move_bytes(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller vouches for both ranges; DF is clear by the ABI.
    unsafe {
        asm!("rep movsb", inout("rcx") len => _, inout("rsi") from => _, inout("rdi") to => _,
             options(nostack, preserves_flags));
    }
}

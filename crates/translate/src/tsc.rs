//! The host's time-stamp counter: the same one that translated RDTSC instructions read.
#![expect(unsafe_code, reason = "the intrinsic is declared unsafe")]

/// Reads the counter.
pub fn read_tsc() -> u64 {
    // SAFETY: RDTSC exists on every x86-64 CPU, and Linux lets processes execute it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

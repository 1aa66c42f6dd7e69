//! [`Stats`]: what an engine counts.

/// What an engine did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Blocks translated.
    pub blocks: u64,
    /// Guest instructions in them.
    pub instructions: u64,
    /// Bytes of host code they became.
    pub code_bytes: u64,
    /// Times the code cache was emptied because it was full.
    pub cache_flushes: u64,
    /// Times translated code came back to Rust.
    pub leaves: u64,
    /// ... for a memory access that the inline TLB could not serve.
    pub access_misses: u64,
    /// ... for a jump to link.
    pub links: u64,
    /// ... for a computed jump that the cache did not know.
    pub jump_misses: u64,
    /// ... for a jump to a page whose mapping must be looked up again.
    pub page_checks: u64,
    /// ... for an instruction that Rust performs.
    pub helpers: u64,
    /// Frames whose translations were dropped because their code was overwritten.
    pub overwritten_frames: u64,
    /// TLB entries that translated code filled itself.
    pub tlb_refills: u64,
    /// Accesses across two pages that translated code prepared itself.
    pub crossings: u64,
    /// Long runs of REP MOVS and STOS that translated code did itself.
    pub string_runs: u64,
    /// Pages of code that translated code found mapped as before.
    pub page_refills: u64,
    /// Times the translations of all pages of a guest mode were dropped.
    pub tlb_flushes: u64,
    /// Returns to the core.
    pub exits: u64,
}

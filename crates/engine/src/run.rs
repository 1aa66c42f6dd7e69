//! What an engine can be asked to do.

use std::fmt;
use std::sync::Arc;

use paravane_abi::units::{GuestVirt, PAGE_BYTES};

use crate::context::VcpuContext;
use crate::exit::Exit;

/// A CPU engine: one per virtual CPU, used by one thread at a time.
///
/// The engine owns the context (an engine that emits code keeps it next to that code). Between runs the core
/// reads and changes it freely, including mode and page-table roots; those two need no call: the engine sees
/// that a root changed and forgets what it knew of the old one. A change *inside* page tables needs
/// [`Engine::flush_tlb`].
pub trait Engine: Send {
    /// The CPU's state, current whenever the engine is not running.
    fn context(&self) -> &VcpuContext;

    /// The CPU's state, to change.
    fn context_mut(&mut self) -> &mut VcpuContext;

    /// Runs the guest from the context until it needs the core.
    fn run(&mut self) -> Exit;

    /// Runs one instruction. `None` if it completed; RIP is then at the next one. A REP string instruction
    /// counts one iteration.
    fn step(&mut self) -> Option<Exit>;

    /// Runs one instruction with all accesses to the page at `page` (page-aligned) going to `copy` instead, reads
    /// and writes, whatever the page's permissions. Nothing else about the guest's address space changes.
    ///
    /// The core emulates a write to a read-only page table this way: it compares the copy afterwards and applies
    /// what changed through validation.
    fn step_with_shadow_page(&mut self, page: GuestVirt, copy: &mut [u8; PAGE_BYTES]) -> ShadowStep;

    /// Forgets translations of virtual addresses.
    fn flush_tlb(&mut self, what: TlbFlush);

    /// A handle that makes [`Engine::run`] return [`Exit::Interrupted`] soon, from any thread.
    fn kick_handle(&self) -> Kick;
}

/// How [`Engine::step_with_shadow_page`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShadowStep {
    /// The instruction completed; RIP is after it and the copy holds what it wrote.
    Completed,
    /// It did something else (for instance faulted on another page). Registers are as the exit says and the
    /// copy is unchanged.
    Exit(Exit),
}

/// Which translations to forget; always in both modes' roots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlbFlush {
    /// All of them.
    All,
    /// Those of one page.
    Page(GuestVirt),
}

/// Makes an engine stop soon.
///
/// A kick is remembered until a run returns [`Exit::Interrupted`] for it: one sent while the engine does not
/// run ends the next run before its first instruction.
#[derive(Clone)]
pub struct Kick(Arc<dyn Fn() + Send + Sync>);

impl Kick {
    /// A handle that does `kick`, which must be cheap and must not block.
    pub fn new(kick: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(kick))
    }

    /// Sends the kick.
    pub fn kick(&self) {
        (self.0)();
    }
}

impl fmt::Debug for Kick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kick")
    }
}

//! An engine without a CPU: it plays a script of exits, for tests of the core.
//!
//! Each act of the script sees the context as the core left it (so a test can check what the core entered the guest
//! with), changes it as a guest would, and says how the run ended.

use core::sync::atomic::{AtomicBool, Ordering};
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use paravane_abi::units::{GuestVirt, PAGE_BYTES};

use crate::context::VcpuContext;
use crate::exit::Exit;
use crate::run::{Engine, Kick, ShadowStep, TlbFlush};

/// What the guest does in one run.
type Act = Box<dyn FnMut(&mut VcpuContext) -> Exit + Send>;
/// What the guest does in one shadow-page step.
type ShadowAct = Box<dyn FnMut(&mut VcpuContext, GuestVirt, &mut [u8; PAGE_BYTES]) -> ShadowStep + Send>;

/// The engine. When its script is over, or somebody kicked, a run ends with [`Exit::Interrupted`].
#[derive(Default)]
pub struct Scripted {
    context: VcpuContext,
    acts: VecDeque<Act>,
    shadow_acts: VecDeque<ShadowAct>,
    flushes: Vec<TlbFlush>,
    kicked: Arc<AtomicBool>,
}

impl Scripted {
    /// An engine with an empty script.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a run: `act` sees and changes the context and says how the run ended.
    pub fn then(&mut self, act: impl FnMut(&mut VcpuContext) -> Exit + Send + 'static) -> &mut Self {
        self.acts.push_back(Box::new(act));
        self
    }

    /// Adds a run that ends with `exit` and changes nothing.
    pub fn then_exit(&mut self, exit: Exit) -> &mut Self {
        self.then(move |_| exit)
    }

    /// Adds a shadow-page step.
    pub fn then_shadow(
        &mut self,
        act: impl FnMut(&mut VcpuContext, GuestVirt, &mut [u8; PAGE_BYTES]) -> ShadowStep + Send + 'static,
    ) -> &mut Self {
        self.shadow_acts.push_back(Box::new(act));
        self
    }

    /// The flushes asked for since the last call.
    pub fn take_flushes(&mut self) -> Vec<TlbFlush> {
        core::mem::take(&mut self.flushes)
    }

    /// Whether the whole script was played.
    pub fn is_over(&self) -> bool {
        self.acts.is_empty() && self.shadow_acts.is_empty()
    }
}

impl Engine for Scripted {
    fn context(&self) -> &VcpuContext {
        &self.context
    }

    fn context_mut(&mut self) -> &mut VcpuContext {
        &mut self.context
    }

    fn run(&mut self) -> Exit {
        if self.kicked.swap(false, Ordering::AcqRel) {
            return Exit::Interrupted;
        }
        match self.acts.pop_front() {
            Some(mut act) => act(&mut self.context),
            None => Exit::Interrupted,
        }
    }

    fn step(&mut self) -> Option<Exit> {
        Some(self.run())
    }

    fn step_with_shadow_page(&mut self, page: GuestVirt, copy: &mut [u8; PAGE_BYTES]) -> ShadowStep {
        match self.shadow_acts.pop_front() {
            Some(mut act) => act(&mut self.context, page, copy),
            None => ShadowStep::Exit(Exit::Interrupted),
        }
    }

    fn flush_tlb(&mut self, what: TlbFlush) {
        self.flushes.push(what);
    }

    fn kick_handle(&self) -> Kick {
        let kicked = Arc::clone(&self.kicked);
        Kick::new(move || kicked.store(true, Ordering::Release))
    }
}

impl fmt::Debug for Scripted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scripted")
            .field("context", &self.context)
            .field("acts", &self.acts.len())
            .field("shadow_acts", &self.shadow_acts.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Gpr;

    #[test]
    fn a_script_plays_in_order_and_then_idles() {
        let mut engine = Scripted::new();
        engine.then_exit(Exit::Hypercall).then(|context| {
            context.set_gpr(Gpr::Rbx, context.gpr(Gpr::Rax) + 1);
            Exit::Interrupted
        });
        assert_eq!(engine.run(), Exit::Hypercall);
        engine.context_mut().set_gpr(Gpr::Rax, 41);
        assert_eq!(engine.run(), Exit::Interrupted);
        assert_eq!(engine.context().gpr(Gpr::Rbx), 42);
        assert!(engine.is_over());
        assert_eq!(engine.run(), Exit::Interrupted);
    }

    #[test]
    fn a_kick_before_a_run_is_not_lost() {
        let mut engine = Scripted::new();
        engine.then_exit(Exit::Hypercall);
        engine.kick_handle().kick();
        assert_eq!(engine.run(), Exit::Interrupted);
        assert_eq!(engine.run(), Exit::Hypercall);
    }
}

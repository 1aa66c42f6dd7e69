//! The loop of one virtual CPU: enter the guest, answer what it did, sleep when it sleeps.

use std::{sync::MutexGuard, time::Duration};

use paravane_abi::{sched::ShutdownReason, units::VcpuId};
use paravane_engine::{Engine, Exit, ShadowStep};
use paravane_hypervisor::{CrashReport, ShadowWrite, Verdict};
use paravane_translate::Translator;

use super::{
    Ending, clock,
    machine::{Chores, Machine, State},
    report,
    timer::Timer,
};
use crate::failure::Failure;

/// Runs vCPU 0 until the guest ends.
///
/// # Errors
///
/// Failures of the host: output that cannot be written.
pub(super) fn run(machine: &Machine, timer: &Timer, engine: Translator) -> Result<(), Failure> {
    let mut runner =
        Runner { machine, timer, engine, vcpu: VcpuId(0), chores: Chores::default(), armed: None };
    machine.lock().kick = Some(runner.engine.kick_handle());
    log::info!("vCPU 0 starts at {}", machine.symbols.place(runner.engine.context().rip));
    let result = runner.run();
    timer.stop();
    machine.lock().remember(runner.engine.stats());
    // Whatever ended this thread ends the guest.
    machine.end(Ending::Quit);
    result
}

struct Runner<'a> {
    machine: &'a Machine,
    timer: &'a Timer,
    engine: Translator,
    vcpu: VcpuId,
    chores: Chores,
    /// The deadline for which the timer is set; `None` if it must be set again.
    armed: Option<Option<u64>>,
}

impl Runner<'_> {
    fn run(&mut self) -> Result<(), Failure> {
        loop {
            let mut state = self.machine.lock();
            if state.is_over() {
                return Ok(());
            }
            let verdict = state.domain.before_entry(self.vcpu, self.engine.context_mut(), clock::now());
            let mut verdict = self.settle(state, verdict)?;
            // Inside: from exit to exit. Outside: whatever keeps the vCPU from running.
            while let Some(Verdict::Run) = verdict {
                let exit = self.engine.run();
                log::trace!("vCPU {}: at {:#x}: {exit:?}", self.vcpu, self.engine.context().rip);
                if matches!(exit, Exit::Interrupted) {
                    // It may have been the timer, which is spent then.
                    self.armed = None;
                }
                let mut state = self.machine.lock();
                state.count_exit(&exit);
                if state.is_over() {
                    return Ok(());
                }
                let answer = state.domain.handle(self.vcpu, exit, self.engine.context_mut(), clock::now());
                verdict = self.settle(state, answer)?;
            }
            match verdict {
                Some(verdict) => self.pause(verdict),
                None => return Ok(()),
            }
        }
    }

    /// Carries out what a verdict asks for beside running. `None` when the guest is over.
    fn settle(
        &mut self,
        mut state: MutexGuard<'_, State>,
        verdict: Verdict,
    ) -> Result<Option<Verdict>, Failure> {
        let mut verdict = verdict;
        loop {
            if !state.domain.is_quiet() {
                for flush in state.take_flushes(self.vcpu) {
                    self.engine.flush_tlb(flush);
                }
                state.serve(&self.machine.memory, &mut self.chores)?;
                // What a backend answered at once is delivered on this way into the guest, not on the next.
                if matches!(verdict, Verdict::Run) && state.domain.take_wakeups().contains(&self.vcpu) {
                    verdict = state.domain.before_entry(self.vcpu, self.engine.context_mut(), clock::now());
                    continue;
                }
            }
            match verdict {
                Verdict::ShadowWrite(write) => verdict = self.shadow_write(&mut state, &write),
                Verdict::Shutdown(reason) => {
                    let ending = self.ending_of(&state, reason);
                    drop(state);
                    self.machine.carry_out(&mut self.chores)?;
                    self.machine.end(ending);
                    return Ok(None);
                }
                Verdict::Crash(crash) => {
                    let text = self.describe(&state, &crash);
                    drop(state);
                    self.machine.carry_out(&mut self.chores)?;
                    self.machine.end(Ending::Crashed(text));
                    return Ok(None);
                }
                Verdict::Run => {
                    self.arm(&state);
                    drop(state);
                    self.machine.carry_out(&mut self.chores)?;
                    return Ok(Some(Verdict::Run));
                }
                Verdict::Block { .. } | Verdict::Yield | Verdict::Down => {
                    drop(state);
                    self.machine.carry_out(&mut self.chores)?;
                    return Ok(Some(verdict));
                }
            }
        }
    }

    /// Executes one instruction on a copy of a page table and has the domain judge what it wrote.
    fn shadow_write(&mut self, state: &mut State, write: &ShadowWrite) -> Verdict {
        let old = write.copy(&self.machine.memory);
        let mut new = old.clone();
        match self.engine.step_with_shadow_page(write.page, &mut new) {
            ShadowStep::Completed => {
                let context = self.engine.context_mut();
                state.domain.shadow_written(self.vcpu, write, (&old, &new), context, clock::now())
            }
            ShadowStep::Exit(exit) => {
                state.domain.handle(self.vcpu, exit, self.engine.context_mut(), clock::now())
            }
        }
    }

    /// Has the engine interrupted at the vCPU's next deadline.
    fn arm(&mut self, state: &State) {
        let deadline_ns = state.domain.next_deadline_ns(self.vcpu);
        // Setting it reads the clock and takes a lock; few exits change the deadline.
        if self.armed == Some(deadline_ns) {
            return;
        }
        if let Some(kick) = &state.kick {
            self.timer.arm(self.until(state, deadline_ns), kick);
            self.armed = Some(deadline_ns);
        }
    }

    /// How long it is until a system time.
    #[expect(clippy::unused_self, reason = "reads as part of the runner")]
    fn until(&self, state: &State, deadline_ns: Option<u64>) -> Option<Duration> {
        let now_ns = state.domain.system_ns(clock::now());
        deadline_ns.map(|deadline| Duration::from_nanos(deadline.saturating_sub(now_ns)))
    }

    /// Waits as a verdict says, if what it waits for has not happened meanwhile.
    fn pause(&self, verdict: Verdict) {
        let state = self.machine.lock();
        let woken = state.domain.is_runnable(self.vcpu) || state.is_over();
        match verdict {
            Verdict::Block { until_ns } if !woken => {
                let until = self.until(&state, until_ns);
                drop(self.machine.sleep(state, until));
            }
            Verdict::Down if !state.is_over() => drop(self.machine.sleep(state, None)),
            Verdict::Yield => {
                drop(state);
                std::thread::yield_now();
            }
            Verdict::Block { .. }
            | Verdict::Down
            | Verdict::Run
            | Verdict::ShadowWrite(_)
            | Verdict::Shutdown(_)
            | Verdict::Crash(_) => {}
        }
    }

    fn describe(&self, state: &State, crash: &CrashReport) -> String {
        report::render(crash, &self.machine.memory, state.domain.history(), &self.machine.symbols)
    }

    fn ending_of(&self, state: &State, reason: ShutdownReason) -> Ending {
        match reason {
            ShutdownReason::Poweroff => Ending::PoweredOff,
            ShutdownReason::Reboot | ShutdownReason::SoftReset => Ending::Rebooted,
            ShutdownReason::Suspend => Ending::Suspended,
            ShutdownReason::Crash => Ending::Crashed(report::render_given_up(
                self.engine.context(),
                &self.machine.memory,
                state.domain.history(),
                &self.machine.symbols,
            )),
            ShutdownReason::Watchdog => Ending::Watchdog,
        }
    }
}

//! Which vCPUs can run, what the others wait for, and the way into and out of the guest.
//!
//! Whoever runs the domain has a loop for each vCPU:
//!
//! ```text
//!   before_entry ──Run──► engine ──exit──► handle ──Run──► engine …
//!        ▲                                   │
//!        └── wait until is_runnable ◄── Block, Yield, Down
//! ```
//!
//! [`Domain::before_entry`] makes the vCPU running and delivers what came in meanwhile. While it runs,
//! [`Domain::handle`] does that after every exit, so an engine must be interrupted at
//! [`Domain::next_deadline_ns`] and whenever the vCPU is among [`Domain::take_wakeups`].
//!
//! Source: `vcpu_block`, `do_poll`, `vcpu_unblock` in `xen/common/sched/core.c`, `domain_shutdown` in
//! `xen/common/domain.c`.

use paravane_abi::{
    sched::ShutdownReason,
    units::{GuestVirt, Port, VcpuId},
    vcpu::RunState,
};
use paravane_engine::{Exit, Gpr, SegmentRegister, VcpuContext};

use crate::{
    crash::{CrashCause, CrashReport},
    domain::{Call, Domain, Verdict},
    exits,
    time::Tsc,
    vcpu::Availability,
};

/// What a sleeping vCPU waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Any event for it (`SCHEDOP_block`).
    Event,
    /// An event for it, or one on a port whoever it notifies (`SCHEDOP_poll`).
    Poll {
        /// The port; `None` if there are several, and then any port will do.
        port: Option<Port>,
        /// When it gives up, in nanoseconds of system time.
        until_ns: Option<u64>,
    },
}

/// A vCPU that was brought up.
#[derive(Debug)]
pub struct StartedVcpu {
    /// Which one.
    pub vcpu: VcpuId,
    /// The registers to start with; `None` if it was down for a while and goes on with those it had.
    pub context: Option<Box<VcpuContext>>,
}

/// Whether and why a domain shut down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shutdown {
    /// The first reason that was given, perhaps ahead of the shutdown itself.
    pub(crate) code: Option<u8>,
    /// Whether it has shut down.
    pub(crate) done: bool,
}

impl Domain {
    /// Marks vCPU 0 as running from the start, with the registers that the builder gave it: its stack becomes
    /// the kernel stack.
    pub(crate) fn boot(&mut self, context: &VcpuContext) {
        let Some(vcpu) = self.vcpus.first_mut() else { return };
        vcpu.availability = Availability::Up;
        vcpu.kernel_sp = GuestVirt(context.gpr(Gpr::Rsp));
        vcpu.kernel_ss = context.segment(SegmentRegister::Ss).selector | 3;
    }

    /// Whether the vCPU is up and waits for nothing.
    pub fn is_runnable(&self, vcpu: VcpuId) -> bool {
        !self.shutdown.done
            && self
                .vcpus
                .get(vcpu.0 as usize)
                .is_some_and(|vcpu| vcpu.availability == Availability::Up && vcpu.wait.is_none())
    }

    /// The vCPUs that became runnable, or that must leave their engines to notice something, since the last
    /// call. Without the one whose exit was handled last: it notices by itself.
    pub fn take_wakeups(&mut self) -> Vec<VcpuId> {
        std::mem::take(&mut self.wakeups)
    }

    /// The vCPUs that were brought up since the last call, in that order.
    pub fn take_started_vcpus(&mut self) -> Vec<StartedVcpu> {
        std::mem::take(&mut self.started)
    }

    /// System time at `now`, in nanoseconds.
    pub fn system_ns(&self, now: Tsc) -> u64 {
        self.clock.system_ns(now)
    }

    /// The reason of the shutdown, if the domain has shut down for a reason that Xen defines.
    pub fn shutdown_reason(&self) -> Option<ShutdownReason> {
        if !self.shutdown.done {
            return None;
        }
        self.shutdown.code.and_then(|code| ShutdownReason::from_number(u32::from(code)))
    }

    /// Lets a suspended domain go on. The caller sets RAX of the vCPU that suspended: 0 if the domain was
    /// resumed elsewhere, 1 if the suspend was cancelled.
    pub fn resume(&mut self) {
        self.shutdown = Shutdown::default();
        self.wake_all();
    }

    /// When the vCPU must be looked at at the latest, in nanoseconds of system time: its timers and the domain's
    /// watchdogs.
    pub fn next_deadline_ns(&self, vcpu: VcpuId) -> Option<u64> {
        let vcpu = self.vcpus.get(vcpu.0 as usize)?;
        let tick = vcpu.timers.next_tick_ns().filter(|_| vcpu.runstate.state() == RunState::Running);
        let poll = match vcpu.wait {
            Some(Wait::Poll { until_ns, .. }) => until_ns,
            Some(Wait::Event) | None => None,
        };
        earlier(earlier(tick, poll), earlier(vcpu.timers.one_shot_ns, self.watchdogs.next_ns()))
    }

    /// Raises every timer of the domain that is due. A vCPU whose time has come is among the wakeups.
    pub fn expire_timers(&mut self, now: Tsc) {
        for index in 0..self.vcpus.len() {
            let id = self.vcpus[index].id;
            self.expire_vcpu_timers(id, now);
        }
    }

    /// As [`Domain::expire_timers`], for one vCPU and the watchdogs.
    pub(crate) fn expire_vcpu_timers(&mut self, vcpu: VcpuId, now: Tsc) {
        let now_ns = self.clock.system_ns(now);
        self.expire_own_timers(vcpu, now_ns);
        let wait = self.vcpus.get(vcpu.0 as usize).and_then(|vcpu| vcpu.wait);
        if let Some(Wait::Poll { until_ns: Some(until_ns), .. }) = wait
            && until_ns <= now_ns
        {
            self.wake(vcpu);
        }
        if self.watchdogs.next_ns().is_some_and(|fires_ns| fires_ns <= now_ns) {
            self.shut_down(code_of(ShutdownReason::Watchdog));
        }
    }

    /// The last step before a vCPU that did not run enters the guest: timers that are due are raised, the vCPU
    /// becomes running, a pending NMI and pending events are delivered.
    ///
    /// [`Verdict::Run`] if it can run now; otherwise the same verdicts as from [`Domain::handle`].
    pub fn before_entry(&mut self, vcpu: VcpuId, context: &mut VcpuContext, now: Tsc) -> Verdict {
        self.expire_vcpu_timers(vcpu, now);
        if let Some(verdict) = self.halted() {
            return verdict;
        }
        match self.vcpus.get(vcpu.0 as usize).map(|vcpu| (vcpu.availability, vcpu.wait)) {
            Some((Availability::Up, None)) => {}
            Some((Availability::Up, Some(_))) => {
                return Verdict::Block { until_ns: self.next_deadline_ns(vcpu) };
            }
            Some((Availability::Uninitialised | Availability::Down, _)) | None => return Verdict::Down,
        }
        let now_ns = self.clock.system_ns(now);
        self.change_runstate(vcpu, RunState::Running, now_ns, context.kernel_root);
        // The periodic timer stood still while the vCPU did.
        self.expire_own_timers(vcpu, now_ns);
        let mut call = Call { domain: self, vcpu, context, now };
        match exits::deliver_pending(&mut call) {
            Ok(()) => {
                self.wakeups.retain(|other| *other != vcpu);
                Verdict::Run
            }
            Err(cause) => Verdict::Crash(Box::new(CrashReport {
                vcpu,
                cause,
                exit: Exit::Interrupted,
                context: Box::new(context.clone()),
            })),
        }
    }

    /// The last step after an exit: accounts a vCPU that stops running, and lets a shutdown by another win.
    pub(crate) fn after_exit(
        &mut self,
        vcpu: VcpuId,
        verdict: Verdict,
        context: &VcpuContext,
        now: Tsc,
    ) -> Verdict {
        let verdict = match self.halted() {
            Some(halted) => halted,
            None => self.as_it_stands(vcpu, verdict),
        };
        let state = match &verdict {
            Verdict::Run | Verdict::ShadowWrite(_) => {
                self.wakeups.retain(|other| *other != vcpu);
                return verdict;
            }
            Verdict::Yield => RunState::Runnable,
            Verdict::Block { .. } => RunState::Blocked,
            Verdict::Down | Verdict::Shutdown(_) | Verdict::Crash(_) => RunState::Offline,
        };
        let now_ns = self.clock.system_ns(now);
        self.change_runstate(vcpu, state, now_ns, context.kernel_root);
        match verdict {
            // The periodic timer stands still from here on.
            Verdict::Block { .. } => Verdict::Block { until_ns: self.next_deadline_ns(vcpu) },
            Verdict::Run
            | Verdict::ShadowWrite(_)
            | Verdict::Yield
            | Verdict::Down
            | Verdict::Shutdown(_)
            | Verdict::Crash(_) => verdict,
        }
    }

    /// What becomes of a verdict if another vCPU took this one down meanwhile.
    fn as_it_stands(&self, vcpu: VcpuId, verdict: Verdict) -> Verdict {
        let down =
            self.vcpus.get(vcpu.0 as usize).is_some_and(|vcpu| vcpu.availability == Availability::Down);
        match verdict {
            Verdict::Run | Verdict::ShadowWrite(_) | Verdict::Block { .. } | Verdict::Yield if down => {
                Verdict::Down
            }
            Verdict::Run
            | Verdict::ShadowWrite(_)
            | Verdict::Block { .. }
            | Verdict::Yield
            | Verdict::Down
            | Verdict::Shutdown(_)
            | Verdict::Crash(_) => verdict,
        }
    }

    /// The verdict of every vCPU of a domain that has shut down. With a reason that Xen does not define the first
    /// one crashed, and the others are merely down.
    fn halted(&self) -> Option<Verdict> {
        self.shutdown.done.then(|| self.shutdown_reason().map_or(Verdict::Down, Verdict::Shutdown))
    }

    /// Ends a vCPU's sleep, if it sleeps, and makes it look for events.
    pub(crate) fn wake(&mut self, vcpu: VcpuId) {
        let Some(target) = self.vcpus.get_mut(vcpu.0 as usize) else { return };
        target.wait = None;
        if !self.wakeups.contains(&vcpu) {
            self.wakeups.push(vcpu);
        }
    }

    /// Wakes the vCPUs that poll for `port`.
    pub(crate) fn wake_pollers(&mut self, port: Port) {
        for index in 0..self.vcpus.len() {
            let vcpu = &self.vcpus[index];
            if let Some(Wait::Poll { port: polled, .. }) = vcpu.wait
                && polled.is_none_or(|polled| polled == port)
            {
                let id = vcpu.id;
                self.wake(id);
            }
        }
    }

    fn wake_all(&mut self) {
        self.wakeups = self.vcpus.iter().map(|vcpu| vcpu.id).collect();
    }

    /// Shuts the domain down, for the first reason that it gave.
    ///
    /// Returns the reason's number.
    pub(crate) fn shut_down(&mut self, reason: u8) -> u8 {
        let code = *self.shutdown.code.get_or_insert(reason);
        if !self.shutdown.done {
            self.shutdown.done = true;
            self.wake_all();
        }
        code
    }
}

/// The earlier of two times, of which there may be none.
fn earlier(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// A reason as Xen keeps it: a byte.
pub(crate) fn code_of(reason: ShutdownReason) -> u8 {
    shutdown_code(reason.number())
}

/// A reason that a guest wrote, of which Xen keeps the low byte.
pub(crate) fn shutdown_code(reason: u32) -> u8 {
    reason.to_le_bytes()[0]
}

/// The verdict of a shutdown with that code.
///
/// # Errors
///
/// A crash for a code that Xen does not define: its tools destroy such a domain.
pub(crate) fn shutdown_verdict(code: u8) -> Result<Verdict, CrashCause> {
    ShutdownReason::from_number(u32::from(code)).map(Verdict::Shutdown).ok_or_else(|| {
        CrashCause::Fatal(format!("the guest shut down with the reason {code}, which Xen does not define"))
    })
}

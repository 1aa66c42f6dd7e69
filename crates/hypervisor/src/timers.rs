//! A vCPU's timers, all of which raise `VIRQ_TIMER` on it.
//!
//! | timer | set by | runs |
//! | --- | --- | --- |
//! | periodic, 10 ms at first | `VCPUOP_set_periodic_timer` | only while the vCPU runs |
//! | one-shot | `VCPUOP_set_singleshot_timer`, `set_timer_op` | always |
//!
//! The periodic timer does not wake a vCPU that sleeps: real Xen stops it when it switches away, and looks
//! when it switches back whether a tick is due. Guests that rely on ticks therefore set the one-shot timer
//! before they block.
//!
//! Source: `vcpu_periodic_timer_work`, `do_set_timer_op` in `xen/common/sched/core.c`.

use paravane_abi::{event_channel::Virq, units::VcpuId, vcpu::PERIODIC_TIMER_DEFAULT_NS, vcpu::RunState};

use crate::domain::Domain;

/// The timers of one vCPU, in nanoseconds of system time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timers {
    /// The periodic timer's period; 0 when it is stopped.
    period_ns: u64,
    /// When it last ticked.
    last_tick_ns: u64,
    /// When the one-shot timer fires.
    pub(crate) one_shot_ns: Option<u64>,
}

impl Default for Timers {
    fn default() -> Self {
        Self { period_ns: PERIODIC_TIMER_DEFAULT_NS, last_tick_ns: 0, one_shot_ns: None }
    }
}

impl Timers {
    /// When the periodic timer ticks next, if it is not stopped.
    pub(crate) fn next_tick_ns(&self) -> Option<u64> {
        (self.period_ns != 0).then(|| self.last_tick_ns.saturating_add(self.period_ns))
    }

    /// Whether the periodic timer ticks now. A tick that was missed is not made up for.
    fn tick(&mut self, now_ns: u64) -> bool {
        let due = self.next_tick_ns().is_some_and(|next| next <= now_ns);
        if due {
            self.last_tick_ns = now_ns;
        }
        due
    }

    /// Whether the one-shot timer fires now.
    fn fire(&mut self, now_ns: u64) -> bool {
        self.one_shot_ns.take_if(|due| *due <= now_ns).is_some()
    }
}

impl Domain {
    /// Raises what is due of one vCPU's timers.
    pub(crate) fn expire_own_timers(&mut self, vcpu: VcpuId, now_ns: u64) {
        let Some(target) = self.vcpus.get_mut(vcpu.0 as usize) else { return };
        let running = target.runstate.state() == RunState::Running;
        let fired = target.timers.fire(now_ns);
        let ticked = running && target.timers.tick(now_ns);
        if fired || ticked {
            self.raise_virq(vcpu, Virq::Timer);
        }
    }

    /// Sets a vCPU's periodic timer; 0 stops it. If the last tick is longer ago than the new period, one comes
    /// at once.
    pub(crate) fn set_periodic_timer(&mut self, vcpu: VcpuId, period_ns: u64, now_ns: u64) {
        let Some(target) = self.vcpus.get_mut(vcpu.0 as usize) else { return };
        target.timers.period_ns = period_ns;
        if target.timers.tick(now_ns) {
            self.raise_virq(vcpu, Virq::Timer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missed_ticks_are_not_made_up_for() {
        let mut timers = Timers::default();
        assert_eq!(timers.next_tick_ns(), Some(10_000_000));
        assert!(!timers.tick(9_999_999));
        assert!(timers.tick(35_000_000));
        assert!(!timers.tick(36_000_000));
        assert_eq!(timers.next_tick_ns(), Some(45_000_000));
    }

    #[test]
    fn the_one_shot_timer_fires_once() {
        let mut timers = Timers { one_shot_ns: Some(5), ..Timers::default() };
        assert!(!timers.fire(4));
        assert!(timers.fire(5));
        assert!(!timers.fire(6));
    }
}

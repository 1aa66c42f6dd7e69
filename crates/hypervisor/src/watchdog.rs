//! Watchdogs: timers that shut the domain down unless the guest keeps setting them anew.
//!
//! Source: `domain_watchdog` in `xen/common/sched/core.c`.

use paravane_abi::{errno::Errno, sched::WATCHDOGS};

const SECOND_NS: u64 = 1_000_000_000;

/// The watchdogs of a domain: for each the system time at which it fires, if it is in use.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Watchdogs {
    fires_ns: [Option<u64>; WATCHDOGS as usize],
}

impl Watchdogs {
    /// `SCHEDOP_watchdog`. With `id` 0 takes a free one and returns its id, 1 or 2; with another sets it anew,
    /// or with a timeout of 0 ends it, and returns 0.
    ///
    /// A new one with a timeout of 0 fires at once, as on real Xen.
    ///
    /// # Errors
    ///
    /// `ENOSPC` if none is free, `EINVAL` for an id that does not exist or is not in use.
    pub(crate) fn set(&mut self, id: u32, timeout_s: u32, now_ns: u64) -> Result<u32, Errno> {
        let fires_ns = now_ns.saturating_add(u64::from(timeout_s) * SECOND_NS);
        if id == 0 {
            let free = (1_u32..).zip(&mut self.fires_ns).find(|(_, slot)| slot.is_none());
            let (id, slot) = free.ok_or(Errno::Enospc)?;
            *slot = Some(fires_ns);
            return Ok(id);
        }
        let slot = self.fires_ns.get_mut(id as usize - 1).ok_or(Errno::Einval)?;
        if slot.is_none() {
            return Err(Errno::Einval);
        }
        *slot = (timeout_s != 0).then_some(fires_ns);
        Ok(0)
    }

    /// When the next one fires.
    pub(crate) fn next_ns(&self) -> Option<u64> {
        self.fires_ns.iter().flatten().min().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_two_and_each_is_set_anew_or_ended_by_its_id() {
        let mut watchdogs = Watchdogs::default();
        assert_eq!(watchdogs.set(1, 5, 0), Err(Errno::Einval));
        assert_eq!(watchdogs.set(0, 5, 0), Ok(1));
        assert_eq!(watchdogs.set(0, 3, 0), Ok(2));
        assert_eq!(watchdogs.set(0, 3, 0), Err(Errno::Enospc));
        assert_eq!(watchdogs.next_ns(), Some(3 * SECOND_NS));
        assert_eq!(watchdogs.set(2, 9, SECOND_NS), Ok(0));
        assert_eq!(watchdogs.next_ns(), Some(5 * SECOND_NS));
        assert_eq!(watchdogs.set(1, 0, SECOND_NS), Ok(0));
        assert_eq!(watchdogs.next_ns(), Some(10 * SECOND_NS));
        assert_eq!(watchdogs.set(1, 1, SECOND_NS), Err(Errno::Einval));
        for id in [3, u32::MAX] {
            assert_eq!(watchdogs.set(id, 1, SECOND_NS), Err(Errno::Einval));
        }
    }

    #[test]
    fn the_longest_timeout_does_not_overflow() {
        let mut watchdogs = Watchdogs::default();
        assert_eq!(watchdogs.set(0, u32::MAX, u64::MAX), Ok(1));
        assert_eq!(watchdogs.next_ns(), Some(u64::MAX));
    }
}

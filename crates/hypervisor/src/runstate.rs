//! Run states: how long a vCPU has been running, waiting for a CPU, blocked and offline.
//!
//! The guest can ask for the account, and can name a place where it is kept up to date. There the account is
//! that of the last change of state: a reader adds the time since `state_entry_time` itself.
//!
//! Source: `vcpu_runstate_change`, `vcpu_runstate_get` in `xen/common/sched/core.c`, `update_runstate_area` in
//! `xen/common/domain.c`, `struct vcpu_runstate_info` in `xen/include/public/vcpu.h`.

use core::mem::offset_of;

use paravane_abi::{
    units::{Mfn, VcpuId},
    vcpu::{RUNSTATE_UPDATE, RunState, RunstateInfo},
    vm::VmAssistType,
};
use zerocopy::{FromZeros, IntoBytes};

use crate::{areas::Place, domain::Domain, guest::Unreachable};

/// The account of one vCPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Runstate {
    state: RunState,
    /// System time at which the state began.
    since_ns: u64,
    /// Time spent in each state, by number, without the current stay.
    spent_ns: [u64; 4],
}

impl Default for Runstate {
    fn default() -> Self {
        Self { state: RunState::Offline, since_ns: 0, spent_ns: [0; 4] }
    }
}

impl Runstate {
    /// The state it is in.
    pub(crate) fn state(&self) -> RunState {
        self.state
    }

    /// Enters a state. Entering the current one changes nothing.
    fn change(&mut self, state: RunState, now_ns: u64) {
        if self.state == state {
            return;
        }
        if now_ns > self.since_ns {
            self.spent_ns[self.state as usize] += now_ns - self.since_ns;
            self.since_ns = now_ns;
        }
        self.state = state;
    }

    /// The account as of the last change.
    fn info(&self) -> RunstateInfo {
        let mut info = RunstateInfo::new_zeroed();
        info.state = self.state.number().cast_signed();
        info.state_entry_time = self.since_ns;
        info.time = self.spent_ns;
        info
    }

    /// The account with the current stay added, as `VCPUOP_get_runstate_info` returns it.
    pub(crate) fn info_at(&self, now_ns: u64) -> RunstateInfo {
        let mut info = self.info();
        info.time[self.state as usize] += now_ns.saturating_sub(self.since_ns);
        info
    }
}

impl Domain {
    /// Moves a vCPU to another run state and tells its guest. `root` is its kernel's page-table root.
    pub(crate) fn change_runstate(&mut self, vcpu: VcpuId, state: RunState, now_ns: u64, root: Mfn) {
        let Some(target) = self.vcpus.get_mut(vcpu.0 as usize) else { return };
        if target.runstate.state() == state {
            return;
        }
        target.runstate.change(state, now_ns);
        self.write_runstate(vcpu, root);
    }

    /// Brings a vCPU's run state area up to date. An area that is not mapped misses the update.
    fn write_runstate(&self, vcpu: VcpuId, root: Mfn) {
        let Some(target) = self.vcpus.get(vcpu.0 as usize) else { return };
        let Some(place) = target.runstate_area.place() else { return };
        let info = target.runstate.info();
        let assisted = self.assists & 1 << VmAssistType::RunstateUpdateFlag.number() != 0;
        let marked = match place {
            Place::Machine(_) => true,
            Place::Virtual(_) => assisted,
        };
        // An unmapped area is the guest's loss: there is nobody to tell.
        let _unreachable = self.store_runstate(place, root, info, marked);
    }

    /// Writes the account; with `marked`, its entry time carries the update mark meanwhile.
    fn store_runstate(
        &self,
        place: Place,
        root: Mfn,
        mut info: RunstateInfo,
        marked: bool,
    ) -> Result<(), Unreachable> {
        let space = self.space(root);
        if !marked {
            return place.write(space, info.as_bytes());
        }
        let entry_time = place.offset(offset_of!(RunstateInfo, state_entry_time) as u64);
        let settled = info.state_entry_time;
        info.state_entry_time |= RUNSTATE_UPDATE;
        entry_time.store_u64(space, info.state_entry_time)?;
        place.write(space, info.as_bytes())?;
        entry_time.store_u64(space, settled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_charged_to_the_state_that_ends() {
        let mut runstate = Runstate::default();
        runstate.change(RunState::Runnable, 10);
        runstate.change(RunState::Running, 15);
        runstate.change(RunState::Running, 18);
        let info = runstate.info_at(40);
        assert_eq!((info.state, info.state_entry_time, info.time), (0, 15, [25, 5, 0, 10]));
        assert_eq!(runstate.info().time, [0, 5, 0, 10]);
    }

    #[test]
    fn a_clock_that_stands_still_charges_nothing() {
        let mut runstate = Runstate::default();
        runstate.change(RunState::Running, 0);
        runstate.change(RunState::Blocked, 0);
        assert_eq!(runstate.info_at(0).time, [0; 4]);
        assert_eq!(runstate.state(), RunState::Blocked);
    }
}

//! The time as it is published to the guest.
//!
//! Each vCPU reads `vcpu_time_info` in its `vcpu_info`, and a copy of it wherever it asked for one; the wall
//! clock at system time 0 stands once in `shared_info`. Readers tell a write under way by an odd version, and one
//! that came between by a changed one.
//!
//! The domain's clock is the host's TSC, which must tick alike on all CPUs and at one rate for good: that is what
//! the flag `TSC_STABLE` says, and why the values never change once they are there. Real Xen writes new ones about
//! once a second, to correct its calibration.
//!
//! Source: `__update_vcpu_system_time`, `update_secondary_system_time` in `xen/arch/x86/time.c`,
//! `update_domain_wallclock_time` in `xen/common/time.c`.

use core::mem::offset_of;

use paravane_abi::{
    shared_info::{SharedInfo, TIME_TSC_STABLE, VcpuTimeInfo},
    units::{MachAddr, Mfn, VcpuId},
};
use zerocopy::{FromZeros, IntoBytes};

use crate::{areas::Place, domain::Domain, guest::Unreachable, vcpu::vcpu_info};

const SECOND_NS: u64 = 1_000_000_000;

impl Domain {
    /// A field of `shared_info`.
    pub(crate) fn shared(&self, offset: usize) -> MachAddr {
        MachAddr(self.shared_info.base().unwrap_or_default().0 + offset as u64)
    }

    /// Publishes the wall clock.
    pub(crate) fn publish_wall_clock(&self) {
        let wall_ns = self.clock.source.wall_at_start_ns;
        let seconds = wall_ns / SECOND_NS;
        let version_at = self.shared(offset_of!(SharedInfo, wc_version));
        let memory = &self.memory;
        let Ok(version) = memory.load_u32(version_at) else { return };
        let begun = version_begin(version);
        #[expect(clippy::cast_possible_truncation, reason = "low and high halves, and less than a second")]
        let fields = [
            (version_at, begun),
            (self.shared(offset_of!(SharedInfo, wc_sec)), seconds as u32),
            (self.shared(offset_of!(SharedInfo, wc_sec_hi)), (seconds >> 32) as u32),
            (self.shared(offset_of!(SharedInfo, wc_nsec)), (wall_ns % SECOND_NS) as u32),
            (version_at, begun.wrapping_add(1)),
        ];
        for (at, value) in fields {
            let stored = memory.store_u32(at, value);
            debug_assert!(stored.is_ok(), "shared_info lies in guest memory");
        }
    }

    /// Publishes the time in the `vcpu_info` of every vCPU that has one.
    pub(crate) fn publish_all_times(&self) {
        for vcpu in &self.vcpus {
            self.publish_time(vcpu.id);
        }
    }

    /// Publishes the time in a vCPU's `vcpu_info`.
    pub(crate) fn publish_time(&self, vcpu: VcpuId) {
        let Some(vcpu) = self.vcpus.get(vcpu.0 as usize).filter(|vcpu| vcpu.has_info()) else { return };
        let place = Place::Machine(vcpu.info(vcpu_info::TIME));
        let Ok(version) = self.memory.load_u32(vcpu.info(vcpu_info::TIME)) else { return };
        // vcpu_info is addressed by machine: no root is needed.
        let stored = self.write_time(place, Mfn(0), version_begin(version));
        debug_assert!(stored.is_ok(), "vcpu_info lies in guest memory");
    }

    /// Brings the second copy of a vCPU's time up to date. A copy that is not mapped misses the update.
    pub(crate) fn publish_time_copy(&self, vcpu: VcpuId, root: Mfn) {
        let Some(vcpu) = self.vcpus.get(vcpu.0 as usize) else { return };
        let Some(place) = vcpu.time_area.place() else { return };
        // The copy follows the version of the first one, as on real Xen.
        let version = self.memory.load_u32(vcpu.info(vcpu_info::TIME)).unwrap_or(0);
        let _unreachable = self.write_time(place, root, version_begin(version));
    }

    /// Writes the time under `begun`, an odd version.
    fn write_time(&self, place: Place, root: Mfn, begun: u32) -> Result<(), Unreachable> {
        let space = self.space(root);
        let mut info = VcpuTimeInfo::new_zeroed();
        info.version = begun;
        info.tsc_timestamp = self.clock.source.start.0;
        info.system_time = 0;
        info.tsc_to_system_mul = self.clock.scale.mul;
        info.tsc_shift = self.clock.scale.shift;
        info.flags = TIME_TSC_STABLE;
        place.store_u32(space, begun)?;
        place.write(space, info.as_bytes())?;
        place.store_u32(space, begun.wrapping_add(1))
    }
}

/// The version to write before an update: the next odd one.
fn version_begin(version: u32) -> u32 {
    version.wrapping_add(1) | 1
}

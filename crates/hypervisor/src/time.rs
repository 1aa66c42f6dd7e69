//! Time as a guest sees it: nanoseconds since its start, derived from the TSC.
//!
//! A PV guest computes the time itself, from the TSC and a scale that the hypervisor publishes in
//! `vcpu_time_info`. The hypervisor uses the very same arithmetic, so that a timer and the guest's own clock can
//! never disagree. Nobody here reads a clock: whoever calls in says what the TSC is.
//!
//! ```text
//! system_time = base + (((tsc - base_tsc) << shift) * mul >> 32)      (shift < 0: shifted right)
//! ```
//!
//! Source: `xen/include/public/xen.h` (`struct vcpu_time_info`), `xen/arch/x86/time.c` (`scale_delta`).

/// A reading of the time-stamp counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tsc(pub u64);

/// What a domain has to know of the host's clocks, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockSource {
    /// The TSC at the domain's start: system time 0.
    pub start: Tsc,
    /// How fast the TSC counts, in Hz. Between 1 MHz and 100 GHz.
    pub tsc_hz: u64,
    /// The wall-clock time at system time 0, in nanoseconds since 1970.
    pub wall_at_start_ns: u64,
}

/// The scale from TSC ticks to nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scale {
    /// `tsc_to_system_mul`.
    pub(crate) mul: u32,
    /// `tsc_shift`.
    pub(crate) shift: i8,
}

impl Scale {
    /// The scale of a TSC that counts `tsc_hz` times a second, with the shift that Xen would choose: the one
    /// that brings the frequency between 1 and 2 GHz.
    pub(crate) fn of_frequency(tsc_hz: u64) -> Self {
        const SECOND: u64 = 1_000_000_000;
        let mut hz = u128::from(tsc_hz.clamp(1_000_000, 100_000_000_000)) << 16;
        let mut shift: i8 = 0;
        while hz > u128::from(2 * SECOND) << 16 {
            hz >>= 1;
            shift -= 1;
        }
        while hz <= u128::from(SECOND) << 16 {
            hz <<= 1;
            shift += 1;
        }
        let mul = (u128::from(SECOND) << 48) / hz;
        // hz exceeds a second's worth, so the quotient stays below 2^32.
        Self { mul: u32::try_from(mul).unwrap_or(u32::MAX), shift }
    }

    /// `ticks` in nanoseconds, as a guest computes it.
    pub(crate) fn nanoseconds(self, ticks: u64) -> u64 {
        let shifted = if self.shift < 0 { ticks >> -self.shift } else { ticks << self.shift };
        // A 64 by 32 bit product shifted down by 32 exceeds 64 bits only after centuries; the guest's own
        // arithmetic wraps likewise.
        #[expect(clippy::cast_possible_truncation, reason = "wraps as the guest's arithmetic does")]
        let nanoseconds = ((u128::from(shifted) * u128::from(self.mul)) >> 32) as u64;
        nanoseconds
    }
}

/// The clock of a domain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    pub(crate) source: ClockSource,
    pub(crate) scale: Scale,
}

impl Clock {
    pub(crate) fn new(source: ClockSource) -> Self {
        Self { source, scale: Scale::of_frequency(source.tsc_hz) }
    }

    /// System time at `now`, in nanoseconds since the domain's start.
    pub(crate) fn system_ns(&self, now: Tsc) -> u64 {
        self.scale.nanoseconds(now.0.saturating_sub(self.source.start.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_is_what_xen_publishes() {
        for (hz, mul, shift) in [
            (2_500_000_000, 0xcccc_cccc, -1),
            (2_000_000_000, 0x8000_0000, 0),
            (1_000_000_000, 0x8000_0000, 1),
            (100_000_000, 0xa000_0000, 4),
        ] {
            assert_eq!(Scale::of_frequency(hz), Scale { mul, shift }, "{hz}");
        }
    }

    #[test]
    fn a_second_of_ticks_is_a_second() {
        for hz in [1_000_000, 999_999_999, 2_194_843_000, 2_500_000_000, 5_100_000_000, 100_000_000_000] {
            let ns = Scale::of_frequency(hz).nanoseconds(hz);
            assert!(ns.abs_diff(1_000_000_000) < 4, "{hz}: {ns}");
        }
    }
}

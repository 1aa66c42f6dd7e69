//! The host's clocks, as a domain needs them: how fast the TSC counts, and what time it is.
//!
//! The TSC's frequency is measured against the monotonic clock between the start of the program and the start of the
//! guest; loading a kernel takes long enough for a few parts in a million.

use std::{
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use paravane_hypervisor::{ClockSource, Tsc};
use paravane_translate::read_tsc;
use rustix::time::{ClockId, clock_gettime};

/// The shortest time over which the frequency is measured.
const SHORTEST: Duration = Duration::from_millis(10);

/// A measurement under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Calibration {
    start: Reading,
}

/// Both clocks at the same moment, as nearly as they can be read.
#[derive(Clone, Copy, Debug)]
struct Reading {
    tsc: u64,
    monotonic: Instant,
}

/// Reads the TSC.
pub(super) fn now() -> Tsc {
    Tsc(read_tsc())
}

/// CPU time that this process has used, in all its threads, in seconds.
pub(super) fn cpu_seconds() -> f64 {
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    let nanoseconds = u32::try_from(spent.tv_nsec).unwrap_or(0);
    Duration::new(u64::try_from(spent.tv_sec).unwrap_or(0), nanoseconds).as_secs_f64()
}

impl Reading {
    /// The reading that took the shortest of several tries: the others were interrupted in the middle.
    fn take() -> Self {
        let attempt = || {
            let before = read_tsc();
            let monotonic = Instant::now();
            let after = read_tsc();
            (after.wrapping_sub(before), Self { tsc: before + after.wrapping_sub(before) / 2, monotonic })
        };
        let mut best = attempt();
        for _ in 0..8 {
            let next = attempt();
            if next.0 < best.0 {
                best = next;
            }
        }
        best.1
    }
}

impl Calibration {
    /// Begins to measure.
    pub(super) fn start() -> Self {
        Self { start: Reading::take() }
    }

    /// The clocks of a domain that starts now.
    pub(super) fn finish(self) -> ClockSource {
        let elapsed = self.start.monotonic.elapsed();
        if let Some(rest) = SHORTEST.checked_sub(elapsed) {
            thread::sleep(rest);
        }
        let end = Reading::take();
        let ticks = u128::from(end.tsc.wrapping_sub(self.start.tsc));
        let elapsed = end.monotonic.duration_since(self.start.monotonic).as_nanos().max(1);
        let tsc_hz = u64::try_from(ticks * 1_000_000_000 / elapsed).unwrap_or(u64::MAX);
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        ClockSource {
            start: Tsc(end.tsc),
            tsc_hz,
            wall_at_start_ns: u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX),
        }
    }
}

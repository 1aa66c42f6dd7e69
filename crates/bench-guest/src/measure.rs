//! How often a bench is done, and the line that tells its time.
//!
//! The number of units is doubled until they take a while, so that the clock's own cost and steps vanish. Then they are
//! repeated, and the fastest time counts: whatever else the machine does can only make it longer. Repetitions are much
//! shorter than the turns in which a busy host runs its programs, so that some of them are not interrupted.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, Instant},
};

use crate::Bench;

/// How long one repetition takes at least.
const LONG_ENOUGH: Duration = Duration::from_micros(500);
/// How long they take together, at least.
const ALL: Duration = Duration::from_millis(150);
/// How many there are, at least.
const REPETITIONS: u32 = 7;

/// How long one unit of a bench took, and what it computed.
#[derive(Clone, Debug, PartialEq)]
pub struct Measurement {
    /// The bench's name.
    pub name: String,
    /// The fastest repetition's time for one unit, in nanoseconds.
    pub nanoseconds: f64,
    /// The result of one unit: the same wherever the program runs, or something is wrong.
    pub check: u64,
}

/// The first word of each line.
const MARK: &str = "bench:";

impl Measurement {
    /// Measures a bench.
    pub fn take(bench: &Bench) -> Self {
        let check = (bench.run)(1);
        let (mut count, mut best) = (bench.least, time(bench, bench.least));
        while best < LONG_ENOUGH {
            count *= 2;
            best = time(bench, count);
        }
        let (start, mut done) = (Instant::now(), 0);
        while done < REPETITIONS || start.elapsed() < ALL {
            best = best.min(time(bench, count));
            done += 1;
        }
        Self { name: bench.name.to_owned(), nanoseconds: per_unit(best, count), check }
    }

    /// The measurements in what a console showed, among all else.
    pub fn all_in(console: &str) -> Vec<Self> {
        console.lines().filter_map(|line| line.trim().parse().ok()).collect()
    }
}

fn time(bench: &Bench, count: u64) -> Duration {
    let start = Instant::now();
    std::hint::black_box((bench.run)(std::hint::black_box(count)));
    start.elapsed()
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn per_unit(time: Duration, count: u64) -> f64 {
    time.as_secs_f64() * 1e9 / count as f64
}

impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{MARK} {} {:.2} {:016x}", self.name, self.nanoseconds, self.check)
    }
}

impl FromStr for Measurement {
    type Err = NotAMeasurement;

    fn from_str(line: &str) -> Result<Self, NotAMeasurement> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [MARK, name, nanoseconds, check] = words.as_slice() else { return Err(NotAMeasurement) };
        Ok(Self {
            name: (*name).to_owned(),
            nanoseconds: nanoseconds.parse().map_err(|_| NotAMeasurement)?,
            check: u64::from_str_radix(check, 16).map_err(|_| NotAMeasurement)?,
        })
    }
}

/// The line is something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAMeasurement;

impl fmt::Display for NotAMeasurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a line of a measurement")
    }
}

impl std::error::Error for NotAMeasurement {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measurement_is_found_again_among_the_messages_of_a_kernel() {
        let measurement = Measurement { name: "sort".to_owned(), nanoseconds: 12.25, check: 0xabc };
        let console = format!(
            "[    0.1] bench: is no measurement\r\n{measurement}\r\nbench: a b c\nreboot: System halted\n"
        );
        assert_eq!(Measurement::all_in(&console), [measurement]);
    }
}

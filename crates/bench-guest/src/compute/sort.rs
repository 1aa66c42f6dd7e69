//! Sorting: comparisons that cannot be predicted, and moves.

use super::Random;

const NUMBERS: usize = 4096;

/// Sorts other numbers `count` times.
pub fn run(count: u64) -> u64 {
    let mut random = Random(7);
    let mut numbers = vec![0; NUMBERS];
    let mut sum = 0_u64;
    for _ in 0..count {
        numbers.fill_with(|| random.next());
        numbers.sort_unstable();
        sum = sum.rotate_left(1) ^ numbers[NUMBERS / 2];
    }
    sum
}

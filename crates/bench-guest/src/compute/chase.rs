//! Loads of which each needs the one before, all over 8 MiB: caches and address translation.

use std::{hint::black_box, sync::LazyLock};

use super::Random;

const PLACES: u32 = 2 << 20;
const STEPS: u64 = 16_384;

/// Follows the chain `count` times 16,384 steps.
pub fn run(count: u64) -> u64 {
    // Made once: it takes longer than following it.
    static CHAIN: LazyLock<Vec<u32>> = LazyLock::new(chain);
    let next = &*CHAIN;
    let mut place = 0_u32;
    for _ in 0..count * STEPS {
        place = next[place as usize];
    }
    black_box(u64::from(place))
}

/// One cycle through all places, in no order (Sattolo's algorithm).
fn chain() -> Vec<u32> {
    let mut random = Random(1);
    let mut next: Vec<u32> = (0..PLACES).collect();
    for last in (1..next.len()).rev() {
        let other = usize::try_from(random.next() % last as u64).unwrap_or(0);
        next.swap(last, other);
    }
    next
}

//! Bytes in bulk: the C library's copies, which use the CPU's string and vector instructions, and text.

use std::{collections::BTreeMap, hint::black_box};

/// More than the first cache holds.
const BYTES: usize = 256 << 10;

/// Copies 256 KiB in pieces of 64 bytes, of a page, and whole; `count` times.
pub fn copies(count: u64) -> u64 {
    let from: Vec<u8> = (0..BYTES).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
    let mut to = vec![0; BYTES];
    let mut sum = 0_u64;
    for round in 0..count {
        for size in [64, 4096, BYTES] {
            let (from, size) = (black_box(&from), black_box(size));
            for (to, from) in to.chunks_mut(size).zip(from.chunks(size)) {
                to.copy_from_slice(from);
            }
        }
        let at = usize::try_from(round).unwrap_or(0) * 4099 % BYTES;
        let seen = black_box(&to);
        let bytes = std::array::from_fn(|n| seen[(at + n * 131_101) % BYTES]);
        sum = sum.rotate_left(5) ^ u64::from_le_bytes(bytes) ^ (round + 1);
    }
    sum
}

/// Splits 16 KiB of text into words and counts each; `count` times.
pub fn words(count: u64) -> u64 {
    let text = text();
    let mut sum = 0_u64;
    for _ in 0..count {
        let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
        for word in black_box(&text).split_whitespace() {
            *counts.entry(word).or_default() += 1;
        }
        let longest = counts.keys().map(|word| word.len()).max().unwrap_or(0);
        sum += counts.values().sum::<u64>() + counts.len() as u64 + longest as u64;
    }
    sum
}

fn text() -> String {
    let mut text = String::new();
    let mut n = 0_u32;
    while text.len() < 16 << 10 {
        text.push_str(&format!("word{} of-the text {}\n", n % 97, n * n % 1009));
        n += 1;
    }
    text
}

//! 256-bit integer arithmetic; a plain loop where the CPU has none.
#![expect(unsafe_code, reason = "calling what needs a CPU feature is safe only after asking for it")]

const WORDS: usize = 64 * 1024 / 4;

/// Sums 64 KiB `count` times, each time with other factors.
pub fn run(count: u64) -> u64 {
    let words: Vec<u32> = (0..WORDS as u64).map(|n| mixed(n).to_le_bytes()).map(low_word).collect();
    let mut sum = 0_u64;
    for round in 0..count {
        let factor = low_word(mixed(round).to_le_bytes()) | 1;
        sum = sum.wrapping_add(total(&words, factor)).rotate_left(1);
    }
    sum
}

fn mixed(n: u64) -> u64 {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (n >> 7)
}

fn low_word([a, b, c, d, ..]: [u8; 8]) -> u32 {
    u32::from_le_bytes([a, b, c, d])
}

fn total(words: &[u32], factor: u32) -> u64 {
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the CPU has it.
        unsafe { wide(words, factor) }
    } else {
        plain(words, factor)
    }
}

/// The loop of [`plain`], which the compiler turns into 256-bit operations here.
#[target_feature(enable = "avx2")]
fn wide(words: &[u32], factor: u32) -> u64 {
    plain(words, factor)
}

#[inline(always)]
fn plain(words: &[u32], factor: u32) -> u64 {
    let mut lanes = [0_u32; 32];
    for chunk in words.chunks_exact(32) {
        for (lane, word) in lanes.iter_mut().zip(chunk) {
            *lane = lane.wrapping_add(word.wrapping_mul(factor) ^ (word >> 3));
        }
    }
    lanes.iter().map(|&lane| u64::from(lane)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_loops_agree() {
        let words: Vec<u32> = (0..4096).collect();
        assert_eq!(total(&words, 77), plain(&words, 77));
    }
}

//! SHA-256 (FIPS 180-4): rotations and additions, with few memory accesses.

const BYTES: usize = 64 << 10;

/// Hashes 64 KiB `count` times, each time starting from the last hash.
pub fn run(count: u64) -> u64 {
    let data: Vec<u8> = (0..BYTES).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
    let constants = Constants::new();
    let mut state = constants.start;
    for _ in 0..count {
        for block in data.chunks_exact(64) {
            constants.compress(&mut state, block);
        }
    }
    u64::from(state[0]) << 32 | u64::from(state[1])
}

/// The fractions of roots of primes that the standard starts from.
struct Constants {
    start: [u32; 8],
    rounds: [u32; 64],
}

impl Constants {
    fn new() -> Self {
        let is_prime = |n: &u64| (2..*n).take_while(|d| d * d <= *n).all(|d| !n.is_multiple_of(d));
        let primes: Vec<u64> = (2..).filter(is_prime).take(64).collect();
        Self {
            start: std::array::from_fn(|n| root_fraction(primes[n], 2)),
            rounds: std::array::from_fn(|n| root_fraction(primes[n], 3)),
        }
    }

    fn compress(&self, state: &mut [u32; 8], block: &[u8]) {
        let mut w = [0_u32; 64];
        for (word, bytes) in w.iter_mut().zip(block.chunks_exact(4)) {
            *word = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        for n in 16..64 {
            let (a, b) = (w[n - 15], w[n - 2]);
            let s0 = a.rotate_right(7) ^ a.rotate_right(18) ^ (a >> 3);
            let s1 = b.rotate_right(17) ^ b.rotate_right(19) ^ (b >> 10);
            w[n] = w[n - 16].wrapping_add(s0).wrapping_add(w[n - 7]).wrapping_add(s1);
        }
        let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = *state;
        for (constant, word) in self.rounds.iter().zip(w) {
            let s1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
            let choice = (e & f) ^ (!e & g);
            let t1 = h.wrapping_add(s1).wrapping_add(choice).wrapping_add(*constant).wrapping_add(word);
            let s0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
            let majority = (a & b) ^ (a & c) ^ (b & c);
            let t2 = s0.wrapping_add(majority);
            (h, g, f, e, d, c, b, a) = (g, f, e, d.wrapping_add(t1), c, b, a, t1.wrapping_add(t2));
        }
        for (sum, part) in state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
            *sum = sum.wrapping_add(part);
        }
    }
}

/// The first 32 bits behind the point of the square or cube root of `n`.
fn root_fraction(n: u64, power: u32) -> u32 {
    let scaled = u128::from(n) << (32 * power);
    let (mut low, mut high) = (0_u128, 1_u128 << 40);
    while low < high {
        let middle = (low + high).div_ceil(2);
        if middle.pow(power) <= scaled {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    u32::try_from(low & u128::from(u32::MAX)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_abc_is_that_of_the_standard() {
        let mut block = [0; 64];
        block[..4].copy_from_slice(b"abc\x80");
        block[63] = 24;
        let constants = Constants::new();
        let mut state = constants.start;
        constants.compress(&mut state, &block);
        assert_eq!(state[..2], [0xba78_16bf, 0x8f01_cfea]);
        assert_eq!(state[7], 0xf200_15ad);
    }
}

//! Programs that only compute, each of another character: what helps one of them helps that kind of code.

pub mod avx2;
pub mod bodies;
pub mod calls;
pub mod chase;
pub mod interpreter;
pub mod sha256;
pub mod sort;
pub mod strings;

/// A sequence of numbers without a pattern that a CPU would predict: splitmix64.
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

//! Calls and returns, and little else.

use std::hint::black_box;

/// fib(20), `count` times.
pub fn run(count: u64) -> u64 {
    (0..count).map(|_| fib(black_box(20))).sum()
}

#[inline(never)]
fn fib(n: u64) -> u64 {
    if n < 2 { n } else { fib(n - 1) + fib(black_box(n - 2)) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_twentieth_number_is_right() {
        assert_eq!(super::run(1), 6765);
    }
}

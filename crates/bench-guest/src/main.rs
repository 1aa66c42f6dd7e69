//! Measures everything and prints it; as a guest's first process, powers the guest off then.
//!
//! Arguments name what to measure; without any, it is everything.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "what it prints is its purpose")]

use std::{
    env,
    process::{self, Command},
    thread,
};

use paravane_bench_guest::{BENCHES, Measurement, busybox};

fn main() {
    // The kernel passes on words of its command line that it does not know; only names count.
    let words: Vec<String> = env::args().skip(1).collect();
    let named = BENCHES.iter().filter(|bench| words.iter().any(|word| word == bench.name));
    let mut chosen: Vec<_> = named.collect();
    if chosen.is_empty() {
        chosen = BENCHES.iter().collect();
    }
    for bench in chosen {
        println!("{}", Measurement::take(bench));
    }
    if process::id() == 1 {
        power_off();
    }
}

/// Asks the kernel to power off; it does so while this process, whose end would be a panic, still runs.
fn power_off() {
    match Command::new(busybox()).args(["poweroff", "-f"]).status() {
        Ok(_) => loop {
            thread::park();
        },
        Err(error) => println!("busybox cannot be started: {error}"),
    }
}

//! The work that `cargo xtask bench` measures: natively, in a guest of Paravane, and in a guest of QEMU.
//!
//! One program holds all of it, linked statically, so that the same bytes run everywhere. It measures inside, with the
//! clock of whoever runs it, and prints one [`Measurement`] for each row of [`BENCHES`].
//!
//! ```text
//!   lib.rs      the table of what is measured
//!   compute/    programs that only compute
//!   system.rs   what a program asks of its kernel
//!   raw.rs      the system calls that the standard library does not offer
//!   measure.rs  how often, and the line that is printed
//!   main.rs     the program; as a guest's first process it powers off at the end
//! ```

pub mod compute;
pub mod measure;
mod raw;
mod system;

pub use measure::Measurement;
pub use system::{BUSYBOX, busybox};

/// One thing to measure.
#[derive(Clone, Copy, Debug)]
pub struct Bench {
    /// Its name, one word.
    pub name: &'static str,
    /// What is computed, or asked of the kernel.
    pub kind: Kind,
    /// What one unit is.
    pub unit: &'static str,
    /// How often it is done at a time, at least: enough that what surrounds the units does not count.
    pub least: u64,
    /// Does the unit as often as it is told, and returns a number that depends on all of it.
    pub run: fn(u64) -> u64,
}

/// What a bench exercises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only the CPU and its memory: compared with the same work done natively.
    Compute,
    /// The guest's kernel, and so the hypervisor below it: compared with a fixed time.
    System,
}

/// Everything that is measured.
pub const BENCHES: [Bench; 14] = [
    compute("sha256", "64 KiB hashed", compute::sha256::run),
    compute("sort", "4,096 numbers sorted", compute::sort::run),
    compute("pointer-chase", "16,384 dependent loads over 8 MiB", compute::chase::run),
    compute("interpreter", "a byte-code loop of 40,000 steps", compute::interpreter::run),
    compute("calls", "fib(20), recursive", compute::calls::run),
    // Its buffers are new memory each time, whose first touch takes longer than a copy.
    Bench { least: 32, ..compute("memcpy", "256 KiB copied in three sizes", compute::strings::copies) },
    // The text is made first.
    Bench { least: 8, ..compute("strings", "16 KiB of text split and counted", compute::strings::words) },
    compute("sse2", "five bodies, 1,000 steps", compute::bodies::run),
    compute("avx2", "64 KiB summed in 256-bit lanes", compute::avx2::run),
    system("getppid", "system call", system::getppid),
    system("page-fault", "first touch of an anonymous page", system::page_faults),
    system("fork-exit-wait", "child process", system::forks),
    system("pipe", "byte to another process and back", system::pipe_round_trips),
    // The shell itself takes as long as an applet or two.
    Bench { least: 32, ..system("exec", "busybox applet started by a shell loop", system::execs) },
];

const fn compute(name: &'static str, unit: &'static str, run: fn(u64) -> u64) -> Bench {
    Bench { name, kind: Kind::Compute, unit, least: 1, run }
}

const fn system(name: &'static str, unit: &'static str, run: fn(u64) -> u64) -> Bench {
    Bench { name, kind: Kind::System, unit, least: 1, run }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_bench_has_a_name_of_its_own_that_is_one_word() {
        let names: BTreeSet<&str> = BENCHES.iter().map(|bench| bench.name).collect();
        assert_eq!(names.len(), BENCHES.len());
        assert!(names.iter().all(|name| !name.contains(char::is_whitespace)));
    }

    #[test]
    fn what_is_computed_depends_on_how_often_and_on_nothing_else() {
        for bench in BENCHES.iter().filter(|bench| bench.kind == Kind::Compute) {
            let once = (bench.run)(1);
            assert_eq!((bench.run)(1), once, "{}", bench.name);
            assert_ne!((bench.run)(2), once, "{}", bench.name);
        }
    }

    #[test]
    fn the_kernels_answers_are_counted() {
        for name in ["getppid", "page-fault", "fork-exit-wait", "pipe"] {
            let bench = BENCHES.iter().find(|bench| bench.name == name).expect("it is in the table");
            assert_eq!((bench.run)(3), 3, "{name}");
        }
    }
}

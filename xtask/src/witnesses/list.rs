//! The witnesses, and the packages of Debian that they come from.

/// A program, or several, with something to compute.
#[derive(Debug)]
pub(super) struct Witness {
    /// Its function in `guest/run.sh`.
    pub(super) name: &'static str,
    /// What of a CPU and a kernel it leans on.
    pub(super) shows: &'static str,
    /// Whether it is heard in every test run.
    pub(super) quick: bool,
}

/// All witnesses.
pub(super) const WITNESSES: &[Witness] = &[
    quick("openssl_digests", "integer and vector code written by hand, chosen by CPUID"),
    quick("openssl_ciphers", "AES instructions and vector code of ciphers"),
    slow("openssl_signatures", "long arithmetic: MULX, ADX, carries"),
    slow("compressors", "tight loops over memory, threads"),
    quick("sqlite_database", "a large interpreter, files, floats as text"),
    quick("perl_text", "an interpreter, regular expressions, big numbers, deep recursion"),
    slow("gawk_sed_grep", "pipelines, automata, floating point"),
    quick("ripgrep_threads", "a Rust program with eight threads, AVX2 searches"),
    quick("fzf_go_threads", "a Go program: its own stacks, threads and signals"),
    slow("busybox_32_bits", "a 32-bit program in a 64-bit guest"),
    quick("tcc_run", "code that is generated and run in one process"),
    slow("gcc_compiles", "a large compiler, and the code that it makes"),
    slow("gxx_exceptions_and_threads", "unwinding, virtual calls, locks and atomics"),
    quick(
        "processes_and_signals",
        "fork, exec, copy on write, faults that are mended, alternate stacks, timers",
    ),
    slow("python_numbers", "Python's own tests of integers, floats, structures"),
    slow("python_decimal", "Python's own tests of decimal arithmetic"),
    slow("python_text", "Python's own tests of JSON, regular expressions, bytes, digests"),
    slow("python_threads", "Python's own tests of threads and queues"),
    slow("python_ctypes", "Python's own tests of foreign calls: closures, structures by value"),
    slow("python_processes", "Python's own tests of signals, subprocesses, mmap"),
    quick("node_jit", "a just-in-time compiler that discards and rewrites its code, WebAssembly"),
];

/// Packages of the usual suite; with them comes what they depend on.
pub(super) const PACKAGES: [&str; 23] = [
    "bash",
    "coreutils",
    "dash",
    "diffutils",
    "findutils",
    "fzf",
    "g++",
    "gawk",
    "grep",
    "gzip",
    "libc6-dev",
    "libpython3.11-testsuite",
    "nodejs",
    "openssl",
    "perl",
    "python3",
    "ripgrep",
    "sed",
    "sqlite3",
    "tcc",
    "util-linux",
    "xz-utils",
    "zstd",
];

/// The busybox of 32 bits.
pub(super) const BUSYBOX_32: &str = "busybox-static:i386";

const fn quick(name: &'static str, shows: &'static str) -> Witness {
    Witness { name, shows, quick: true }
}

const fn slow(name: &'static str, shows: &'static str) -> Witness {
    Witness { name, shows, quick: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_witness_is_a_function_of_the_script() {
        let script = include_str!("guest/run.sh");
        for witness in WITNESSES {
            assert!(script.contains(&format!("\n{}() {{", witness.name)), "{}", witness.name);
        }
    }
}

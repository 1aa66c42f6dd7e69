//! A map of translated code for `perf`.
//!
//! `perf report` looks for `/tmp/perf-PID.map` when it meets addresses that belong to no file, and expects lines of
//! start and length in hexadecimal and a name (Linux, tools/perf/Documentation/jit-interface.txt). A block's name is its guest
//! address; what is emitted apart, for misses and helpers, has the same name with `.cold` behind it. The cache is
//! reused after it was emptied, so addresses can occur twice: `perf` then shows one of the two.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};

/// The file, as it grows.
#[derive(Debug)]
pub(crate) struct PerfMap(BufWriter<File>);

impl PerfMap {
    /// Creates this process's map.
    pub(crate) fn create() -> io::Result<Self> {
        let path = format!("/tmp/perf-{}.map", std::process::id());
        Ok(Self(BufWriter::new(File::create(path)?)))
    }

    /// Adds a block. A map that cannot be written is worth no more than one that is not there, so errors are ignored.
    pub(crate) fn block(&mut self, rip: u64, hot: (u32, usize), cold: (u32, usize)) {
        let _ignored = writeln!(self.0, "{:x} {:x} guest_{rip:x}", hot.0, hot.1);
        if cold.1 > 0 {
            let _ignored = writeln!(self.0, "{:x} {:x} guest_{rip:x}.cold", cold.0, cold.1);
        }
    }
}

//! Inspecting the stock kernel takes less than 100 MiB of memory.
//!
//! The one test here looks at the peak memory of its whole process, so it has the process to itself.
#![forbid(unsafe_code)]

use std::fs;

use paravane_builder::image::{inspect, read_file};
use paravane_builder::testing::data::kernel;

#[test]
fn the_stock_kernel_is_inspected_in_less_than_100_mib() {
    let inspection = inspect(&read_file(&kernel("linux-image-amd64", "boot/vmlinuz-")).unwrap()).unwrap();
    assert!(inspection.elf.len > 40 << 20, "{} bytes are no stock kernel", inspection.elf.len);
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak_kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak_kib < 100 << 10, "{peak_kib} KiB at the peak");
}

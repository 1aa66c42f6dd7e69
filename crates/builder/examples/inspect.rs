//! Inspects a kernel file: its description as JSON, and on standard error what that cost.
//!
//! `cargo run --release -p paravane-builder --example inspect -- /boot/vmlinuz`
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program's output")]

use std::error::Error;
use std::path::Path;
use std::{env, fs};

use paravane_builder::image::{inspect, read_file};

fn main() -> Result<(), Box<dyn Error>> {
    let path = env::args_os().nth(1).ok_or("usage: inspect KERNEL")?;
    let file = read_file(Path::new(&path))?;
    let inspection = inspect(&file)?;
    println!("{}", serde_json::to_string_pretty(&inspection)?);
    // Linux only, like the rest of the project. The first number of schedstat is CPU time in nanoseconds.
    let status = fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or("VmHWM: unknown");
    let schedule = fs::read_to_string("/proc/self/schedstat")?;
    eprintln!("{peak}, {} ns of CPU", schedule.split(' ').next().unwrap_or_default());
    Ok(())
}

//! `paravane run`: from arguments to a running guest.

use std::time::Duration;

use log::LevelFilter;
use paravane_abi::units::PAGE_SIZE;

use crate::{
    cli::{LogLevel, RunArgs, TraceKind},
    failure::Failure,
    run::{self, LogConfig, RunConfig, kernel_cache::KernelCache},
};

/// Runs the guest and returns the exit code that says how it ended.
///
/// # Errors
///
/// Whatever keeps the guest from starting, and failures of Paravane's own.
pub(super) fn run(args: RunArgs) -> Result<u8, Failure> {
    let config = configuration(args)?;
    Ok(run::run(&config)?.exit_code())
}

fn configuration(args: RunArgs) -> Result<RunConfig, Failure> {
    let bytes = memory_size(&args.memory)?;
    let level = match args.log {
        Some(level) => filter(level),
        None if args.log_file.is_some() => LevelFilter::Info,
        None if args.quiet => LevelFilter::Error,
        None => LevelFilter::Warn,
    };
    Ok(RunConfig {
        kernel: args.kernel,
        cache: if args.no_cache { None } else { KernelCache::of_user() },
        initrd: args.initrd,
        command_line: with_console(&args.parameters),
        pages: bytes / PAGE_SIZE,
        timeout: args.timeout.map(Duration::from_secs_f64),
        dry_run: args.dry_run,
        stats: args.stats,
        quiet: args.quiet,
        log: LogConfig { level, file: args.log_file },
        trace_hypercalls: args.trace == Some(TraceKind::Hypercalls),
        one_insn_blocks: args.one_insn_blocks,
        perf_map: args.perf_map,
        symbols: args.symbols,
    })
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::Error,
        LogLevel::Warn => LevelFilter::Warn,
        LogLevel::Info => LevelFilter::Info,
        LogLevel::Debug => LevelFilter::Debug,
        LogLevel::Trace => LevelFilter::Trace,
    }
}

/// The command line with `console=hvc0`, unless a console is named already.
fn with_console(parameters: &str) -> String {
    let named = parameters.split_whitespace().any(|word| word.starts_with("console="));
    match (named, parameters.is_empty()) {
        (true, _) => parameters.to_owned(),
        (false, true) => "console=hvc0".to_owned(),
        (false, false) => format!("{parameters} console=hvc0"),
    }
}

/// Reads a size: a number of bytes, or with a suffix K, M, G or T (with or without "iB" or "B") of units of 1024. A plain
/// number below a million is taken as MiB, as `xl` takes it.
fn memory_size(text: &str) -> Result<u64, Failure> {
    let wrong = || {
        Failure::Usage(format!(
            "looked for a size of memory, found \"{}\": write 512M or 4G",
            text.escape_debug()
        ))
    };
    let lower = text.to_ascii_lowercase();
    let digits_end = lower.find(|c: char| !c.is_ascii_digit()).unwrap_or(lower.len());
    let (digits, suffix) = lower.split_at(digits_end);
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let shift = match suffix.trim_end_matches("ib").trim_end_matches('b') {
        "" if suffix.is_empty() && number < 1_000_000 => 20,
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(wrong()),
    };
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("512M", 512 << 20),
            ("4G", 4 << 30),
            ("4GiB", 4 << 30),
            ("192", 192 << 20),
            ("8388608", 8 << 20),
            ("65536k", 64 << 20),
        ] {
            assert_eq!(memory_size(text).ok(), Some(bytes), "{text}");
        }
        for text in ["", "M", "5X", "-1M", "99999999999999999999", "18446744073709551615G"] {
            assert!(memory_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_console_is_added_unless_one_is_named() {
        for (given, used) in [
            ("", "console=hvc0"),
            ("quiet", "quiet console=hvc0"),
            ("console=ttyS0 quiet", "console=ttyS0 quiet"),
        ] {
            assert_eq!(with_console(given), used);
        }
    }
}

//! The command line of `paravane run`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// The end of the help of `run`.
pub(super) const HELP: &str = "\
The guest's console is the terminal; Ctrl-A h lists the keys, Ctrl-A x quits.

Exit codes:
  0    the guest powered off, or asked to be rebooted
  255  the guest crashed, panicked, or its watchdog expired
  124  the time of --timeout ran out
  130  stopped by Ctrl-A x or a signal
  2, 65, 66, 70, 74  as for every command: `paravane --help`

Log levels, each with those above it:
  error  what ends the guest
  warn   what is odd, and is dealt with
  info   what happens once: kernel, memory, devices that connect, the end
  debug  the layout of memory; every request of the guest's that is refused, and why; statistics
  trace  every exit of the guest, and every exception that it gets

--log and --trace write whole lines to standard error, or both to --log-file. The ending and the crash report
are printed on standard error in any case.

Examples:
  paravane run vmlinuz -i initrd.img -p 'root=/dev/ram0 quiet' -m 512M
  paravane run vmlinuz --trace hypercalls --log-file trace.txt --timeout 60
  paravane run vmlinuz --log debug --log-file paravane.log";

/// What to run, and how.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub struct RunArgs {
    /// The kernel: a bzImage or an ELF file, as it is packaged
    pub kernel: PathBuf,
    /// The initial ramdisk
    #[arg(short, long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// The kernel's command line; console=hvc0 is added unless it names a console
    #[arg(short, long, value_name = "CMDLINE", default_value = "", allow_hyphen_values = true)]
    pub parameters: String,
    /// Memory, as in 512M or 4G
    #[arg(short, long, value_name = "SIZE", default_value = "512M")]
    pub memory: String,
    /// Stop the guest after this many seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Option<f64>,
    /// Build the domain and say what it is, without running it
    #[arg(long)]
    pub dry_run: bool,
    /// Neither read nor keep the unpacked kernel in $XDG_CACHE_HOME/paravane or ~/.cache/paravane
    #[arg(long)]
    pub no_cache: bool,
    /// Print statistics at the end
    #[arg(long)]
    pub stats: bool,
    /// Print only what the guest prints, and errors
    #[arg(short, long)]
    pub quiet: bool,
    /// Log what Paravane does, down to this level [default: warn; info with --log-file; error with --quiet]
    #[arg(long, value_enum, value_name = "LEVEL", hide_possible_values = true)]
    pub log: Option<LogLevel>,
    /// Print what the guest does, a line each: `hypercalls`
    #[arg(long, value_enum, value_name = "WHAT", hide_possible_values = true)]
    pub trace: Option<TraceKind>,
    /// Write log and trace to this file instead of standard error
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    /// A symbol map for crash reports, such as System.map; else the kernel's own symbol table is used
    #[arg(long, value_name = "FILE")]
    pub symbols: Option<PathBuf>,
    /// Translate one instruction at a time: slow, to narrow down a fault of the translator
    #[arg(long)]
    pub one_insn_blocks: bool,
    /// Write /tmp/perf-PID.map, which names translated code for perf
    #[arg(long)]
    pub perf_map: bool,
}

/// Values of `--trace`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TraceKind {
    /// Every hypercall with its arguments and result
    Hypercalls,
}

/// Values of `--log`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// What ends the guest
    Error,
    /// What is odd, and is dealt with
    Warn,
    /// What happens once: kernel, memory, devices that connect, the end
    Info,
    /// The layout of memory; every request of the guest's that is refused, and why
    Debug,
    /// Every exit of the guest, and every exception that it gets
    Trace,
}

/// A time that can be waited for.
fn seconds(text: &str) -> Result<f64, String> {
    // Longer than a century is a mistake, and more than a Duration could hold is a panic.
    const LONGEST: f64 = 4e9;
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds < LONGEST => Ok(seconds),
        _ => Err("write a positive number of seconds, as in 60 or 0.5".to_owned()),
    }
}

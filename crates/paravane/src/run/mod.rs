//! `paravane run`: a guest from its kernel file to its end.
//!
//! ```text
//!   mod.rs      from configuration to ending
//!   assemble.rs image, memory, domain, devices
//!   kernel_file.rs, kernel_cache.rs: the kernel, unpacked now or before
//!   machine.rs  what the threads share: the domain, its backends, who waits
//!   vcpu.rs     the loop of one virtual CPU
//!   timer.rs    interrupts an engine when its time has come
//!   input.rs    what the person types
//!   clock.rs    the host's clocks
//!   terminal.rs raw mode and keys
//!   log.rs      the program's own log, and where it goes
//!   toolstack.rs, symbols.rs, report/
//! ```
//!
//! One thread runs the virtual CPU, one waits for its next deadline, one reads standard input, one waits for signals, and
//! the one that called waits for the end. All state that a guest can see is behind one lock; engines run outside it.

mod assemble;
mod clock;
mod input;
pub mod kernel_cache;
mod kernel_file;
mod log;
mod machine;
pub mod report;
pub mod symbols;
pub mod terminal;
mod timer;
pub mod toolstack;
mod vcpu;

use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rustix::{stdio, termios::isatty};

use crate::failure::Failure;

use assemble::{Assembled, assemble};
use kernel_cache::KernelCache;
use log::Sink;
use machine::Machine;
use symbols::Symbols;
use terminal::RawMode;

pub use log::LogConfig;

/// What to run, and how.
#[derive(Clone, Debug)]
pub struct RunConfig {
    /// The kernel file.
    pub kernel: PathBuf,
    /// Where unpacked kernels are kept.
    pub cache: Option<KernelCache>,
    /// The initial ramdisk.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub command_line: String,
    /// Pages of memory.
    pub pages: u64,
    /// How long the guest may run.
    pub timeout: Option<Duration>,
    /// Build the domain, say what it is, and do not run it.
    pub dry_run: bool,
    /// Print statistics at the end.
    pub stats: bool,
    /// Print nothing but what the guest prints, and errors.
    pub quiet: bool,
    /// What is logged, and where log and trace go.
    pub log: LogConfig,
    /// Write a line for every hypercall.
    pub trace_hypercalls: bool,
    /// Put each instruction into a block of its own.
    pub one_insn_blocks: bool,
    /// Write a map of translated code for `perf`.
    pub perf_map: bool,
    /// A symbol map for crash reports.
    pub symbols: Option<PathBuf>,
}

/// How a guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It powered off.
    PoweredOff,
    /// It asked to be started again.
    Rebooted,
    /// It crashed: its kernel gave up, or it did what its hypervisor cannot answer. The text explains.
    Crashed(String),
    /// It asked to be suspended, which nobody resumes.
    Suspended,
    /// Its watchdog expired.
    Watchdog,
    /// The time ran out.
    TimedOut,
    /// The person left, or a signal ended it.
    Quit,
}

impl Ending {
    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::PoweredOff | Self::Rebooted => 0,
            Self::Crashed(_) | Self::Watchdog | Self::Suspended => 255,
            Self::TimedOut => 124,
            Self::Quit => 130,
        }
    }

    /// One line about it.
    pub fn describe(&self) -> String {
        match self {
            Self::PoweredOff => "the guest powered off".to_owned(),
            Self::Rebooted => "the guest asked to be rebooted; run it again to do so".to_owned(),
            Self::Crashed(why) => why.clone(),
            Self::Suspended => "the guest asked to be suspended, which is not supported".to_owned(),
            Self::Watchdog => "the guest's watchdog expired".to_owned(),
            Self::TimedOut => "the time given by --timeout is over; the guest was stopped".to_owned(),
            Self::Quit => "stopped".to_owned(),
        }
    }
}

/// Runs the guest to its end.
///
/// # Errors
///
/// Whatever keeps it from starting, and failures of Paravane's own. How the guest ended is no error.
pub fn run(config: &RunConfig) -> Result<Ending, Failure> {
    let clock = clock::Calibration::start();
    let sink = Sink::open(config.log.file.as_deref())?;
    log::install(config.log.level, &sink, Instant::now());
    let given = load_symbols(config)?;
    let mut assembled = assemble(config, clock, &sink)?;
    let keeping = assembled.keeping.take();
    let ending = run_assembled(config, assembled, given, &sink);
    if let Some(keeping) = keeping {
        // It is done long before, unless the guest was not even started.
        drop(keeping.join());
    }
    ending
}

/// Runs the guest, with the symbols that were given or else those of its own file.
fn run_assembled(
    config: &RunConfig,
    assembled: Assembled,
    given: Option<Symbols>,
    sink: &Sink,
) -> Result<Ending, Failure> {
    if config.dry_run {
        crate::output::write_raw(assembled.summary.as_bytes())?;
        return Ok(Ending::PoweredOff);
    }
    if !config.quiet {
        note(&assembled.summary);
    }
    let raw = RawMode::enter().map_err(Failure::Output)?;
    sink.set_raw(raw.is_some() && isatty(stdio::stderr()));
    let Assembled { machine, engine, symbols, .. } = assembled;
    let machine = Arc::new(machine.with_symbols(given.unwrap_or(symbols)));
    let ending = supervise(config, &machine, engine, raw.as_ref())?;
    drop(raw);
    sink.set_raw(false);
    machine.log_end(&ending);
    if !config.quiet || ending.exit_code() != 0 {
        note(&format!("paravane: {}\n", ending.describe().trim_end()));
    }
    if config.stats {
        note(&machine.statistics());
    }
    sink.check()?;
    Ok(ending)
}

/// Starts the threads and waits for the end.
fn supervise(
    config: &RunConfig,
    machine: &Arc<Machine>,
    engine: paravane_translate::Translator,
    raw: Option<&RawMode>,
) -> Result<Ending, Failure> {
    let started = Instant::now();
    let timer = timer::Timer::start();
    input::watch_signals(machine, raw.map(|raw| raw.saved().clone()))?;
    input::read_standard_input(machine, raw.is_some())?;
    let runner = {
        let machine = Arc::clone(machine);
        thread::Builder::new()
            .name("vcpu0".to_owned())
            .spawn(move || vcpu::run(&machine, &timer, engine))
            .map_err(|error| Failure::Internal(format!("no thread for the vCPU: {error}")))?
    };
    let deadline = config.timeout.map(|timeout| started + timeout);
    if !machine.wait_for_end(deadline) {
        machine.end(Ending::TimedOut);
    }
    // The engine leaves the guest within microseconds of the kick that comes with the end.
    let result = runner.join().map_err(|_| {
        Failure::Internal(
            "the thread of the vCPU panicked; please report this with the output above".to_owned(),
        )
    })?;
    result?;
    Ok(machine.ending().unwrap_or(Ending::Quit))
}

fn load_symbols(config: &RunConfig) -> Result<Option<Symbols>, Failure> {
    let Some(path) = &config.symbols else { return Ok(None) };
    let text = fs::read_to_string(path).map_err(|error| Failure::Input { path: path.clone(), error })?;
    let symbols = Symbols::parse(&text);
    if symbols.is_empty() {
        return Err(Failure::Data(format!(
            "looked for symbols in {}, found none: it needs lines of address, type and name, as in System.map",
            path.display()
        )));
    }
    Ok(Some(symbols))
}

/// Writes to standard error; nothing can be done if that fails.
fn note(text: &str) {
    drop(io::stderr().lock().write_all(text.as_bytes()));
}

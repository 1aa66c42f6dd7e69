//! The program's own log: what happens when, and where the lines go.
//!
//! Every crate says what it does through the macros of the `log` crate, which cost one load and one comparison where
//! the level is off. Here is the one place that gives the lines their form,
//!
//! ```text
//! [    0.012345] info  paravane: 49152 pages of memory, machine frames 0x10000 to 0x1c2ff
//! ```
//!
//! with seconds since the start of the program, and its destination, a [`Sink`]: standard error, or the file of
//! `--log-file`. The hypercall trace goes to the same sink, as lines of its own form. A line is never torn.
//!
//! Lines at info and above come once in the life of a guest. What a guest can repeat is at debug and trace, so that it
//! fills a disk only for somebody who asked for that.

use std::{
    fmt::Write as _,
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use ::log::{LevelFilter, Log, Metadata, Record};

use crate::failure::Failure;

/// What is logged, and where log and trace go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// The least urgent level that is logged.
    pub level: LevelFilter,
    /// The file; `None` for standard error.
    pub file: Option<PathBuf>,
}

/// Where the lines of log and trace go.
#[derive(Debug)]
pub(super) struct Sink {
    /// The file and its name; `None` for standard error.
    file: Option<(Mutex<File>, PathBuf)>,
    /// Standard error is a terminal in raw mode, where a line feed alone does not go back to the left.
    raw: AtomicBool,
    /// The first failure to write a line of the log, which nobody was there to hear of.
    failed: Mutex<Option<io::Error>>,
}

impl Sink {
    /// Opens the sink. A file is created, or emptied.
    pub(super) fn open(path: Option<&Path>) -> Result<Arc<Self>, Failure> {
        let create = |path: &Path| match File::create(path) {
            Ok(file) => Ok((Mutex::new(file), path.to_owned())),
            Err(error) => Err(Failure::OutputFile { path: path.to_owned(), error }),
        };
        let file = path.map(create).transpose()?;
        Ok(Arc::new(Self { file, raw: AtomicBool::new(false), failed: Mutex::new(None) }))
    }

    /// Says whether the terminal is in raw mode.
    pub(super) fn set_raw(&self, raw: bool) {
        self.raw.store(raw, Ordering::Relaxed);
    }

    /// Writes whole lines.
    pub(super) fn write(&self, lines: &str) -> Result<(), Failure> {
        match &self.file {
            Some((_, path)) => {
                self.put(lines).map_err(|error| Failure::OutputFile { path: path.clone(), error })
            }
            None => self.put(lines).map_err(Failure::Output),
        }
    }

    fn put(&self, lines: &str) -> io::Result<()> {
        match &self.file {
            Some((file, _)) => {
                file.lock().unwrap_or_else(PoisonError::into_inner).write_all(lines.as_bytes())
            }
            None if self.raw.load(Ordering::Relaxed) => {
                io::stderr().lock().write_all(lines.replace('\n', "\r\n").as_bytes())
            }
            None => io::stderr().lock().write_all(lines.as_bytes()),
        }
    }

    /// Fails if a line of the log could not be written.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner).take();
        match (failed, &self.file) {
            (None, _) => Ok(()),
            (Some(error), Some((_, path))) => Err(Failure::OutputFile { path: path.clone(), error }),
            (Some(error), None) => Err(Failure::Output(error)),
        }
    }
}

/// The receiver of all records. There is one in a process; what it writes to is of the guest that runs.
struct Logger {
    current: Mutex<Option<(Arc<Sink>, Instant)>>,
}

static LOGGER: Logger = Logger { current: Mutex::new(None) };

/// Sends the log to `sink` from here on, with times since `started`.
pub(super) fn install(level: LevelFilter, sink: &Arc<Sink>, started: Instant) {
    *LOGGER.current.lock().unwrap_or_else(PoisonError::into_inner) = Some((Arc::clone(sink), started));
    // The second guest of a process finds it installed.
    ::log::set_logger(&LOGGER).unwrap_or_default();
    ::log::set_max_level(level);
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= ::log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((sink, started)) = &*current
            && let Err(error) = sink.put(&line(record, started.elapsed().as_secs_f64()))
        {
            sink.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
    }

    fn flush(&self) {}
}

/// A record as a line. Whatever a message contains, it stays one line and cannot steer a terminal.
fn line(record: &Record<'_>, seconds: f64) -> String {
    let source = record.target().split("::").next().unwrap_or_default();
    let source = source.strip_prefix("paravane_").unwrap_or(source);
    let level = record.level().as_str().to_ascii_lowercase();
    let mut line = format!("[{seconds:12.6}] {level:<5} {source}: ");
    for character in record.args().to_string().chars() {
        if character.is_control() {
            let _ = write!(line, "{}", character.escape_default());
        } else {
            line.push(character);
        }
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use ::log::Level;

    use super::*;

    #[test]
    fn a_record_is_one_line_with_its_crate() {
        for (target, message, expected) in [
            ("paravane_hypervisor::dispatch", "refused", "[    1.500000] debug hypervisor: refused\n"),
            ("paravane::run", "a\nb\x1b[0m", "[    1.500000] debug paravane: a\\nb\\u{1b}[0m\n"),
        ] {
            let arguments = format_args!("{message}");
            let record = Record::builder().target(target).level(Level::Debug).args(arguments).build();
            assert_eq!(line(&record, 1.5), expected);
        }
    }
}

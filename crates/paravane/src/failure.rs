//! Why the program stops, and with which exit code.
//!
//! The numbers follow `sysexits.h` where it has one. They are part of the interface and listed in the help.

use std::{io, path::PathBuf};

use paravane_builder::image::ReadError;

/// A reason to stop with a message on standard error.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The question makes no sense: a wrong option, not a number, too wide.
    #[error("{0}")]
    Usage(String),
    /// A file was read, and its contents are not what they must be.
    #[error("{0}")]
    Data(String),
    /// A file cannot be read.
    #[error("cannot read {path}: {error}; check the path and its permissions")]
    Input {
        /// The file, as named on the command line.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The answer cannot be written.
    #[error("cannot write the output: {0}")]
    Output(io::Error),
    /// A file cannot be written.
    #[error("cannot write {path}: {error}; check the path and its permissions")]
    OutputFile {
        /// The file or directory, as named on the command line.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Paravane or its host failed.
    #[error("{0}")]
    Internal(String),
    /// The answer was printed, and it is "no": a page that differs.
    #[error("{0}")]
    Negative(String),
}

impl Failure {
    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Negative(_) => 1,
            Self::Usage(_) => 2,
            Self::Data(_) => 65,
            Self::Input { .. } => 66,
            Self::Internal(_) => 70,
            Self::Output(_) | Self::OutputFile { .. } => 74,
        }
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Io { path, source } => Self::Input { path, error: source },
            ReadError::TooBig { .. } => Self::Data(error.to_string()),
        }
    }
}

/// The exit codes, for the help.
pub const EXIT_CODES: &str = "\
Exit codes:
  0   answered
  1   answered, and the answer is no: a hypercall page differs
  2   the command line is wrong: unknown option, not a number, too wide
  65  a file is not what it must be: truncated, corrupt, not a kernel
  66  a file cannot be read
  70  an error of Paravane's own: please report it
  74  the output cannot be written";

//! The arguments of `paravane completions` and `paravane man`.

use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

/// Arguments of `paravane completions`.
#[derive(Clone, Copy, Debug, Args)]
#[command(
    after_help = "Example:\n  paravane completions bash > ~/.local/share/bash-completion/completions/paravane"
)]
pub struct Completions {
    /// The shell to print completions for
    pub shell: Shell,
}

/// Arguments of `paravane man`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  paravane man | man -l -\n  paravane man --out ~/.local/share/man/man1")]
pub struct Man {
    /// Write one page for each command into this directory, which is created if need be
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

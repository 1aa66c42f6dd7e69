//! The program that guests run in, and what a run of it gave.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::bench::child::cpu_of_children;
use crate::command;
use crate::program::{self, Profile};
use crate::repo::Repo;

/// How long a guest may run, in seconds: many times what the slowest one takes, so only a guest that hangs is stopped.
const TIMEOUT: &str = "600";

/// Where guests run.
#[derive(Debug)]
pub(super) struct Host {
    /// The program.
    pub(super) paravane: PathBuf,
    /// The initial ramdisk of `paravane-initramfs`.
    pub(super) initrd: PathBuf,
    /// A folder for files that are made for a guest.
    pub(super) folder: PathBuf,
}

/// How the program is had.
#[derive(Debug)]
pub(super) enum Program<'a> {
    /// It is there.
    At(&'a Path),
    /// It is built.
    Built(Profile),
}

/// A run that came to its end.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) code: Option<i32>,
    /// What the guest printed.
    pub(super) console: String,
    /// What the program said.
    pub(super) messages: String,
    /// User and system time of the program.
    pub(super) cpu: Duration,
}

impl Host {
    /// Builds the program unless it is there, and makes the initial ramdisk.
    pub(super) fn prepare(repo: &Repo, program: &Program<'_>) -> anyhow::Result<Self> {
        let folder = program::target(repo)?.join("guests");
        fs::create_dir_all(&folder).with_context(|| format!("could not make {}", folder.display()))?;
        let paravane = match program {
            Program::At(path) => std::path::absolute(path)?,
            Program::Built(profile) => program::build(repo, *profile)?,
        };
        ensure!(paravane.is_file(), "{} is not there", paravane.display());
        let initrd = folder.join("initrd.cpio");
        program::write_initrd(repo, &initrd)?;
        Ok(Self { paravane, initrd, folder })
    }

    /// Runs a guest to its end. `typed` goes into its console as through a pipe, at once.
    pub(super) fn run(&self, kernel: &Path, options: &[&str], typed: &str) -> anyhow::Result<Ended> {
        let mut command = Command::new(&self.paravane);
        command.arg("run").arg(kernel).args(options).args(["--timeout", TIMEOUT]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let line = command::line(&command);
        let before = cpu_of_children()?;
        let mut child = command.spawn().with_context(|| format!("could not start `{line}`"))?;
        // The pipe holds it all: what is typed is far shorter than a pipe. It is closed at the end of the statement.
        let mut input = child.stdin.take().context("its input is a pipe")?;
        let written = input.write_all(typed.as_bytes());
        drop(input);
        let output = child.wait_with_output().with_context(|| format!("could not wait for `{line}`"))?;
        let cpu = cpu_of_children()?.saturating_sub(before);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let ended = Ended {
            code: output.status.code(),
            console: text(&output.stdout),
            messages: text(&output.stderr),
            cpu,
        };
        written.with_context(|| format!("`{line}` read nothing and said: {}", ended.messages.trim()))?;
        Ok(ended)
    }
}

impl Ended {
    /// What a person needs to see of a trial that failed: how the console ended, and what the program said first, since a
    /// crash report tells the cause at its top.
    pub(super) fn excerpt(&self) -> String {
        const LAST: usize = 15;
        const FIRST: usize = 40;
        let lines = |text: &str| -> Vec<String> {
            text.lines().map(|line| line.trim_end().to_owned()).filter(|line| !line.is_empty()).collect()
        };
        let console = lines(&self.console);
        let messages = lines(&self.messages);
        format!(
            "exit code {}\n-- the end of the console\n{}\n-- the beginning of the messages\n{}",
            self.code.map_or_else(|| "none: a signal ended it".to_owned(), |code| code.to_string()),
            console[console.len().saturating_sub(LAST)..].join("\n"),
            messages[..messages.len().min(FIRST)].join("\n")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn host(program: &str) -> Host {
        Host { paravane: program.into(), initrd: PathBuf::new(), folder: PathBuf::new() }
    }

    #[test]
    fn what_is_typed_arrives_and_what_it_costs_is_told() {
        let folder = std::env::temp_dir().join(format!("paravane-host-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let program = folder.join("program");
        let script =
            "#!/bin/sh\ni=0; while [ $i -lt 50000 ]; do i=$((i+1)); done\ncat; echo \"$*\" >&2; exit 3\n";
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let ended =
            host(program.to_str().unwrap()).run(Path::new("kernel"), &["-m", "64M"], "typed\n").unwrap();
        fs::remove_dir_all(folder).unwrap();

        assert_eq!((ended.code, ended.console.as_str()), (Some(3), "typed\n"));
        assert_eq!(ended.messages, format!("run kernel -m 64M --timeout {TIMEOUT}\n"));
        assert!(ended.cpu > Duration::ZERO);
        let excerpt = ended.excerpt();
        assert!(excerpt.starts_with("exit code 3\n") && excerpt.contains("typed\n"), "{excerpt}");
        assert!(excerpt.ends_with(ended.messages.trim_end()), "{excerpt}");
    }
}

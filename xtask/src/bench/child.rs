//! A child process and what it cost.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;

use crate::command;

/// What a child printed and used.
#[derive(Debug, Clone)]
pub(super) struct Finished {
    /// Its standard output.
    pub(super) output: String,
    /// User and system time of all its threads.
    pub(super) cpu: Duration,
    /// From before it was started until it was gone.
    pub(super) wall: Duration,
}

/// The most that one child may take, in seconds: many times what any takes, so only one that hangs is stopped.
const LIMIT: &str = "300";

/// Runs a child to its end; any failure of it is an error that carries what it printed.
pub(super) fn run(command: &Command) -> anyhow::Result<Finished> {
    let command = &mut limited(command);
    let before = cpu_of_children()?;
    let start = Instant::now();
    let output = command::output(command)?;
    let wall = start.elapsed();
    let cpu = cpu_of_children()?.saturating_sub(before);
    if !output.status.success() {
        let (line, printed) = (command::line(command), command::printed(&output));
        bail!("`{line}` ended with {}:\n{printed}", output.status);
    }
    Ok(Finished { output: String::from_utf8_lossy(&output.stdout).into_owned(), cpu, wall })
}

/// The same command, stopped by timeout(1) when it hangs. What it uses counts as a child's all the same, since
/// timeout waits for it.
fn limited(command: &Command) -> Command {
    let mut limited = Command::new("timeout");
    limited.args(["--kill-after=10", LIMIT]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        limited.current_dir(folder);
    }
    limited
}

/// The CPU time of all children that were waited for. Nobody else in this process starts one meanwhile.
pub(crate) fn cpu_of_children() -> anyhow::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("the CPU time of children is not told")?;
    Ok(duration(usage.user_time()) + duration(usage.system_time()))
}

fn duration(time: TimeVal) -> Duration {
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    Duration::from_secs(part(time.tv_sec())) + Duration::from_micros(part(time.tv_usec()))
}

/// The memory of a process, in bytes, by what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Memory {
    /// Its own: heap, stacks, tables, generated code.
    pub(super) anonymous: u64,
    /// Of files, mostly the program itself.
    pub(super) file: u64,
    /// Shared memory; the guest's memory, in Paravane.
    pub(super) shared: u64,
    /// The kernel's page tables for it.
    pub(super) tables: u64,
}

/// Starts a child, waits until it prints a line with `text`, and reads what memory it uses then. Ends it.
pub(super) fn memory_at(command: &mut Command, text: &str) -> anyhow::Result<Memory> {
    let line = command::line(command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().with_context(|| format!("could not start `{line}`"))?;
    let output = child.stdout.take().context("its output is a pipe")?;
    let mut lines = BufReader::new(output).split(b'\n');
    let found =
        lines.find_map(|line| Some(String::from_utf8_lossy(&line.ok()?).contains(text)).filter(|it| *it));
    let memory = status_of(child.id());
    child.kill()?;
    child.wait()?;
    ensure!(found.is_some(), "`{line}` ended without printing {text:?}");
    memory
}

fn status_of(process: u32) -> anyhow::Result<Memory> {
    let path = PathBuf::from(format!("/proc/{process}/status"));
    let status = fs::read_to_string(&path).with_context(|| format!("could not read {}", path.display()))?;
    memory_in(&status)
}

/// Reads proc_pid_status(5).
fn memory_in(status: &str) -> anyhow::Result<Memory> {
    let field = |name: &str| -> anyhow::Result<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
        Ok(kib.with_context(|| format!("the status of a process has no {name} in kB"))? << 10)
    };
    Ok(Memory {
        anonymous: field("RssAnon")?,
        file: field("RssFile")?,
        shared: field("RssShmem")?,
        tables: field("VmPTE")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_childs_output_and_cpu_time_are_its_own() {
        let script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo $i";
        let finished = run(Command::new("sh").args(["-c", script])).unwrap();

        assert_eq!(finished.output, "20000\n");
        assert!(finished.cpu > Duration::ZERO);
    }

    #[test]
    fn a_child_that_fails_is_an_error_with_what_it_printed() {
        let error = run(Command::new("sh").args(["-c", "echo broken; exit 3"])).unwrap_err().to_string();

        assert!(error.contains("exit status: 3") && error.contains("broken"), "{error}");
    }

    #[test]
    fn the_memory_of_a_child_is_read_while_it_waits() {
        let script = "echo ready; exec sleep 1000";
        let memory = memory_at(Command::new("sh").args(["-c", script]), "ready").unwrap();

        assert!(memory.anonymous > 0 && memory.tables > 0, "{memory:?}");
    }

    #[test]
    fn a_child_that_never_says_it_is_an_error() {
        let error = memory_at(Command::new("sh").args(["-c", "echo other"]), "ready").unwrap_err();

        assert!(error.to_string().contains("without printing"), "{error:#}");
    }

    #[test]
    fn memory_is_told_by_kind() {
        let status = "VmPTE:\t     92 kB\nRssAnon:\t  1024 kB\nRssFile:\t   8 kB\nRssShmem:\t  4 kB\n";
        let expected = Memory { anonymous: 1 << 20, file: 8 << 10, shared: 4 << 10, tables: 92 << 10 };

        assert_eq!(memory_in(status).unwrap(), expected);
        assert!(memory_in("RssAnon: 1 kB\n").unwrap_err().to_string().contains("RssFile"));
    }
}

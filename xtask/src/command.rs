//! Other programs, started so that a person sees what runs and learns what failed.

use std::env;
use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, ExitStatus, Output, Stdio};

use anyhow::{Context as _, bail};

use crate::repo::Repo;

/// The cargo that started this xtask, in the repository's root.
pub(crate) fn cargo(repo: &Repo) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(repo.root());
    command
}

/// Prints the command line, runs it with this process's own streams, and fails when it fails.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    println!("$ {}", line(command));
    let status = command.status().with_context(|| format!("could not start `{}`", line(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", line(command));
    }
    Ok(())
}

/// Runs a command quietly and returns its standard output; on failure the error carries all it printed.
pub(crate) fn read(command: &mut Command) -> anyhow::Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        bail!("`{}` ended with {}:\n{}", line(command), output.status, printed(&output));
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("`{}` printed something other than UTF-8", line(command)))
}

/// Runs a command without input to its end and hands each line of its standard output on as it comes, without what ends it.
pub(crate) fn follow(command: &mut Command, mut each: impl FnMut(&str)) -> anyhow::Result<ExitStatus> {
    let line = line(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("could not start `{line}`"))?;
    let output = child.stdout.take().context("its output is a pipe")?;
    for text in BufReader::new(output).split(b'\n') {
        let text = text.with_context(|| format!("could not read what `{line}` prints"))?;
        each(String::from_utf8_lossy(&text).trim_end_matches('\r'));
    }
    Ok(child.wait()?)
}

/// Runs a command quietly, whatever its status.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<Output> {
    command.stdin(Stdio::null()).output().with_context(|| format!("could not start `{}`", line(command)))
}

/// What a finished command printed on both streams, for an error message.
pub(crate) fn printed(output: &Output) -> String {
    let both =
        [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).trim_end().to_owned());
    both.join("\n").trim().to_owned()
}

/// The command line as a person would type it, with the variables that were set for it.
pub(crate) fn line(command: &Command) -> String {
    let variables = command
        .get_envs()
        .filter_map(|(name, value)| Some(format!("{}={}", name.to_string_lossy(), quoted(value?))));
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words = std::iter::once(program).chain(command.get_args()).map(quoted);
    variables.chain(words).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=/.,:@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_reads_as_it_would_be_typed() {
        let mut command = Command::new("/usr/bin/cargo");
        command.args(["doc", "--no-deps", "it's"]).env("RUSTDOCFLAGS", "-D warnings");

        assert_eq!(line(&command), r"RUSTDOCFLAGS='-D warnings' cargo doc --no-deps 'it'\''s'");
    }

    #[test]
    fn a_failed_command_is_named_with_what_it_printed() {
        let error = read(Command::new("sh").args(["-c", "echo no such thing >&2; exit 3"])).unwrap_err();

        let text = error.to_string();
        assert!(text.contains("exit status: 3") && text.contains("no such thing"), "{text}");
    }

    #[test]
    fn lines_are_handed_on_without_their_ends_whatever_the_status() {
        let mut lines = Vec::new();
        let script = "printf 'one\\r\\n\\n two \\nlast'; exit 3";
        let status =
            follow(Command::new("sh").args(["-c", script]), |line| lines.push(line.to_owned())).unwrap();

        assert_eq!(lines, ["one", "", " two ", "last"]);
        assert_eq!(status.code(), Some(3));
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = run(&mut Command::new("no-such-program-exists")).unwrap_err();

        assert_eq!(error.to_string(), "could not start `no-such-program-exists`");
    }
}

//! A run of witnesses on the host and one in a guest, and what they printed.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{bail, ensure};

use crate::command;

/// What stops a guest that hangs, in seconds: many times what all witnesses take.
const HANGS: &str = "7200";

/// Mounts what programs expect to find, and runs the script with the tree as its root.
const IN_THE_TREE: &str = r#"
root=$1; shift
mount --rbind /dev "$root/dev" && mount --rbind /proc "$root/proc" || exit 99
PATH=$PATH:/usr/sbin:/sbin
# Programs that test signals must not inherit some that are ignored, as those in a guest do not.
signals=--default-signal
env $signals true 2>/dev/null || signals=
exec env $signals -i "$(command -v chroot)" "$root" /bin/bash /witnesses/run.sh "$@"
"#;

/// All that a run printed of its witnesses.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    said: BTreeMap<String, Said>,
    /// What the guest's kernel complained of.
    pub(super) complaints: Vec<String>,
}

/// What one witness said.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) lines: Vec<String>,
    pub(super) status: u32,
    /// CPU time of user and system, as counted where it ran.
    pub(super) seconds: f64,
    ended: bool,
}

impl Outcome {
    /// What a witness said, if it came to its end.
    pub(super) fn said(&self, witness: &str) -> Option<&Said> {
        self.said.get(witness).filter(|said| said.ended)
    }

    /// Reads what a run printed.
    #[cfg(test)]
    pub(super) fn parse(text: &str) -> Self {
        let mut outcome = Self::default();
        for line in text.lines() {
            outcome.add(line);
        }
        outcome
    }

    fn add(&mut self, line: &str) {
        let Some(rest) = line.trim_end_matches('\r').strip_prefix("witness: ") else { return };
        if let Some((name, text)) = rest.split_once('|') {
            let text = text.strip_prefix(' ').unwrap_or(text).to_owned();
            if name == "kernel" {
                self.complaints.push(text);
            } else {
                self.said.entry(name.to_owned()).or_default().lines.push(text);
            }
        } else if let Some((name, end)) = rest.split_once(" done ") {
            let numbers: Vec<_> = end.split(' ').collect();
            let [status, user, system] = numbers[..] else { return };
            let (Ok(status), Ok(user), Ok(system)) =
                (status.parse(), user.parse::<f64>(), system.parse::<f64>())
            else {
                return;
            };
            let said = self.said.entry(name.to_owned()).or_default();
            said.ended = true;
            said.status = status;
            said.seconds = user + system;
        }
    }
}

/// Runs witnesses on the host, with `root` as their root: in namespaces of their own, which needs no root where the
/// system lets users make them.
pub(super) fn on_the_host(root: &Path, names: &[&str]) -> anyhow::Result<Outcome> {
    let unshare = |options: &[&str]| {
        let mut unshare = Command::new("unshare");
        unshare.args(options).args(["--mount", "sh", "-c", IN_THE_TREE, "sh"]).arg(root);
        unshare
    };
    for options in [&["--user", "--map-root-user"][..], &[]] {
        if command::output(&mut unshare(options))?.status.success() {
            return follow(unshare(options).args(names));
        }
    }
    bail!(
        "the host's results need a root of their own, and neither a user namespace nor, as root, a mount namespace could \
         be made; allow one (unshare(1)), or run this as root"
    )
}

/// Runs witnesses in a guest to its power-off.
pub(super) fn in_a_guest(
    program: &Path,
    kernel: &Path,
    initrd: &Path,
    memory: &str,
    names: &[&str],
) -> anyhow::Result<Outcome> {
    let mut guest = Command::new(program);
    guest.arg("run").arg(kernel).arg("-i").arg(initrd).args(["-m", memory, "--timeout", HANGS]);
    guest.arg("-p").arg(format!("quiet witnesses={}", names.join(",")));
    println!("$ {}", command::line(&guest));
    follow(&mut guest)
}

/// Runs a command to its end, shows who has been heard, and reads what it printed.
fn follow(run: &mut Command) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    let status = command::follow(run, |line| {
        if !line.starts_with("witness: ") || line.contains(" done ") {
            println!("{line}");
        }
        outcome.add(line);
    })?;
    ensure!(status.success(), "`{}` ended with {status}", command::line(run));
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_witnesses_say_is_told_from_what_the_kernel_prints() {
        let outcome = Outcome::parse(
            "[    0.0] Linux\nwitness: a| one\r\nwitness: a|\nwitness: b| two | three\n[ 1.0] hello\n\
             witness: a done 0 1.500 0.25\nwitness: b done 2 0.1 0.1\nwitness: c| unfinished\nwitness: kernel| BUG: x\n",
        );

        let a = outcome.said("a").unwrap();
        assert_eq!((a.lines.as_slice(), a.status), (["one".to_owned(), String::new()].as_slice(), 0));
        assert!((a.seconds - 1.75).abs() < 1e-9);
        let b = outcome.said("b").unwrap();
        assert_eq!((b.lines.as_slice(), b.status), (["two | three".to_owned()].as_slice(), 2));
        assert!(outcome.said("c").is_none(), "it did not end");
        assert_eq!(outcome.complaints, ["BUG: x"]);
    }
}

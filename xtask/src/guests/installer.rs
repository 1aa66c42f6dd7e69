//! Debian's installer: a whole small userland that others built, started as it is for an installation over the network.
//!
//! It comes as a kernel with an initial ramdisk, starts udev and its own database of questions, and reads answers from
//! the kernel's command line. One of the answers is a command that it runs before its first question
//! (`preseed/early_command`, in the appendix "Automating the installation using preseeding" of its guide). That command
//! prints facts that need the userland to work, and powers off.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use crate::fetch;
use crate::guests::host::{Ended, Host};

/// Memory that it has room in: with less it asks whether to go on with little.
const MEMORY: &str = "1G";

/// Where the package has a folder for each release.
const IMAGES: &str = "usr/lib/debian-installer/images";

/// Where such a folder has the kernel and the ramdisk.
const FILES: &str = "amd64/text/debian-installer/amd64";

/// What the shell of the installer expands, and what must come out of it.
const FACTS: [(&str, &str); 4] = [
    // The kernel and its file systems.
    ("$(cat /sys/hypervisor/type) $(uname -m)", "xen x86_64"),
    // The installer's database, which was given this answer.
    ("$(debconf-get debian-installer/locale)", "en_GB"),
    // Its packages.
    ("$(test $(grep -c ^Package: /var/lib/dpkg/status) -gt 50 && echo many packages)", "many packages"),
    // The daemon that looks after devices, and the console's.
    ("$(pidof udevd systemd-udevd >/dev/null && echo udev) $(test -c /dev/hvc0 && echo hvc0)", "udev hvc0"),
];

/// How each line with a fact begins.
const PREFIX: &str = "installer: ";

/// Starts the installer, to its early command.
pub(super) fn start(host: &Host, package: &Path) -> anyhow::Result<Ended> {
    let folder = files_in(package)?;
    let initrd = folder.join("initrd.gz");
    let initrd = initrd.to_str().context("the path of the ramdisk is not UTF-8")?;
    let command: String =
        FACTS.map(|(question, _)| format!("echo {PREFIX}{question} >/dev/console; ")).concat();
    // Linux takes a parameter with spaces in double quotes.
    let parameters = format!(
        "printk.time=0 quiet DEBIAN_FRONTEND=text locale=en_GB keymap=us preseed/early_command=\"{command}poweroff -f\""
    );
    host.run(&folder.join("linux"), &["-m", MEMORY, "-i", initrd, "-p", &parameters], "")
}

/// Judges such a run, and says how many facts hold.
pub(super) fn told(ended: &Ended) -> anyhow::Result<usize> {
    for (question, answer) in FACTS {
        let line = format!("{PREFIX}{answer}");
        ensure!(
            ended.console.lines().any(|printed| printed.trim() == line),
            "the installer did not answer {question:?} with {answer:?}"
        );
    }
    ensure!(ended.code == Some(0), "the program ended with {:?} instead of 0", ended.code);
    Ok(FACTS.len())
}

/// The folder with kernel and ramdisk, whatever the release.
fn files_in(package: &Path) -> anyhow::Result<PathBuf> {
    let mut releases = fetch::listing(&package.join(IMAGES))?;
    releases.retain(|release| release.join(FILES).join("linux").is_file());
    let [release] = releases.as_slice() else {
        anyhow::bail!(
            "{} should hold one release, and holds {}",
            package.join(IMAGES).display(),
            releases.len()
        );
    };
    Ok(release.join(FILES))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn an_installer_is_good_only_if_each_fact_is_printed_and_it_powered_off() {
        let good: String = FACTS.map(|(_, answer)| format!("{PREFIX}{answer}\r\n")).concat();
        let ended = |console: &str, code| {
            told(&Ended { code, console: console.to_owned(), messages: String::new(), cpu: Duration::ZERO })
        };
        assert_eq!(ended(&good, Some(0)).unwrap(), FACTS.len());
        assert!(ended(&good, Some(124)).unwrap_err().to_string().contains("124"));
        for (_, answer) in FACTS {
            let silent = good.replace(&format!("{PREFIX}{answer}\r\n"), "");
            assert!(ended(&silent, Some(0)).unwrap_err().to_string().contains(answer));
        }
    }

    #[test]
    fn the_commands_fit_a_quoted_parameter() {
        for (question, _) in FACTS {
            assert!(!question.contains('"'), "{question}");
        }
    }

    #[test]
    fn a_package_without_a_release_is_an_error() {
        assert!(files_in(Path::new("not-there")).unwrap_err().to_string().contains("holds 0"));
    }
}

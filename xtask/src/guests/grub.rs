//! PV-GRUB: a boot loader that is itself a PV guest.
//!
//! As packaged it comes to a prompt. An image made with `grub-mkstandalone` carries a memory disk, here with a
//! configuration, a Linux and its ramdisk. Such a GRUB unpacks that Linux, makes page tables and a start_info page for it
//! as a domain builder would, and jumps into it: the guest replaces itself, and every frame it was made of changes its
//! use without the hypervisor being told.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use crate::guests::host::{Ended, Host};
use crate::guests::linux;
use crate::repo::Repo;
use crate::{command, fetch};

/// Memory for a GRUB that stays at its prompt, in MiB.
const MEMORY_OF_PROMPT: u64 = 64;

/// Memory for a GRUB that starts a Linux: both are in memory at once, and the Linux packed and unpacked.
const MEMORY_OF_CHAIN: &str = "512M";

/// Where the package has it.
const IMAGE: &str = "usr/lib/grub-xen/grub-x86_64-xen.bin";

/// What is typed at the prompt, and the line that must answer it. None of the answers is in what is typed, which GRUB
/// echoes.
const DIALOGUE: [(&str, &str); 7] = [
    ("ls", "(memdisk) (proc)"),
    ("echo one     two", "one two"),
    ("if cpuid -l; then echo sixty    four; fi", "sixty four"),
    ("xen_cat name", "grub-x86_64-xen.bin"),
    ("time sleep 1", "Elapsed time: 1."),
    ("help halt", "Usage: halt"),
    ("lsmmap", "base_addr = 0x0, length = 0x"),
];

/// GRUB's own modules that are built into the image: those that its configuration needs, and the decompressors that
/// kernels need.
const MODULES: &str = "echo gzio linux lzopio memdisk normal tar xzio";

/// The line with which the configuration says that it is read.
const GREETING: &str = "the configuration is read";

/// Types the dialogue into GRUB at once, as through a pipe, and then what stops it.
pub(super) fn prompt(host: &Host, package: &Path) -> anyhow::Result<Ended> {
    let commands = DIALOGUE.map(|(command, _)| command).join("\n");
    let memory = format!("{MEMORY_OF_PROMPT}M");
    host.run(&package.join(IMAGE), &["-m", &memory], &format!("{commands}\nhalt\n"))
}

/// Judges the dialogue, and says how many commands were answered.
pub(super) fn answered(ended: &Ended) -> anyhow::Result<usize> {
    let console = without_escapes(&ended.console);
    let mut lines = console.lines().map(str::trim).skip_while(|line| !line.starts_with("grub>"));
    for (command, answer) in DIALOGUE {
        ensure!(
            lines.any(|line| line.starts_with(answer)),
            "the command {command:?} was not answered with {answer:?}"
        );
    }
    let memory = memory_in(&console).context("lsmmap told no lengths")?;
    ensure!(memory == MEMORY_OF_PROMPT << 20, "lsmmap told {memory} bytes of {MEMORY_OF_PROMPT} MiB");
    ensure!(ended.code == Some(0), "the program ended with {:?} instead of 0", ended.code);
    ensure!(ended.messages.contains("powered off"), "the guest did not power off: {}", ended.messages.trim());
    Ok(DIALOGUE.len() + 1)
}

/// The sum of what `lsmmap` lists.
fn memory_in(console: &str) -> Option<u64> {
    let lengths = console.lines().filter_map(|line| {
        let (_, rest) = line.trim().strip_prefix("base_addr = 0x")?.split_once(", length = 0x")?;
        u64::from_str_radix(rest.split(',').next()?, 16).ok()
    });
    lengths.reduce(u64::saturating_add)
}

/// The text without the sequences that move the cursor and set colours (ECMA-48, "Control sequences").
fn without_escapes(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, sequence)) = rest.split_once("\x1b[") {
        plain.push_str(before);
        let end = sequence.find(|c: char| ('@'..='~').contains(&c)).map_or(sequence.len(), |at| at + 1);
        rest = &sequence[end..];
    }
    plain.push_str(rest);
    plain
}

/// Starts a GRUB that starts `kernel`.
pub(super) fn start_linux(host: &Host, repo: &Repo, kernel: &Path) -> anyhow::Result<Ended> {
    let image = standalone(host, repo, kernel)?;
    let ended = host.run(&image, &["-m", MEMORY_OF_CHAIN], "");
    fs::remove_file(&image)?;
    ended
}

/// Judges such a run, and says how many checks Linux passed.
pub(super) fn linux_passed(ended: &Ended, kernel: &Path) -> anyhow::Result<usize> {
    let before_linux = ended.console.split("Linux version").next().unwrap_or_default();
    ensure!(
        without_escapes(before_linux).lines().any(|line| line.trim() == GREETING),
        "GRUB did not get as far as its configuration"
    );
    linux::passed(ended, kernel)
}

/// Makes the image with `grub-mkstandalone`.
fn standalone(host: &Host, repo: &Repo, kernel: &Path) -> anyhow::Result<PathBuf> {
    let grub = fetch::tree(repo, "grub", &fetch::GRUB_TOOLS)?;
    let configuration = host.folder.join("grub.cfg");
    let text = format!(
        "echo {GREETING}\nlinux /boot/vmlinuz console=hvc0 {}\ninitrd /boot/initrd\nboot\n",
        linux::parameters()
    );
    fs::write(&configuration, text)?;
    let image = host.folder.join("grub-with-linux.bin");
    let mut make = fetch::program_in(&grub, "usr/bin/grub-mkstandalone");
    make.args(["--format", "x86_64-xen", "--directory"]).arg(grub.join("usr/lib/grub/x86_64-xen"));
    make.args(["--install-modules", MODULES, "--modules", MODULES, "--locales=", "--fonts=", "--themes="]);
    make.arg("--output").arg(&image);
    for (inside, outside) in [
        ("boot/grub/grub.cfg", configuration.as_path()),
        ("boot/vmlinuz", kernel),
        ("boot/initrd", host.initrd.as_path()),
    ] {
        make.arg(graft(inside, outside)?);
    }
    command::read(&mut make)?;
    Ok(image)
}

/// An argument that puts a file into the memory disk.
fn graft(inside: &str, outside: &Path) -> anyhow::Result<String> {
    let outside = outside.to_str().context("a path is not UTF-8")?;
    Ok(format!("{inside}={outside}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn console() -> String {
        let mut console = "Welcome to GRUB!\r\n".to_owned();
        for (command, answer) in DIALOGUE {
            console.push_str(&format!("\r\ngrub> \x1b[9;7H{command}\x1b[9;8H\r\n{answer}"));
        }
        console
            .push_str("3fda000, available RAM\r\nbase_addr = 0x3fda000, length = 0x26000, reserved RAM\r\n");
        console
    }

    fn ended(console: String) -> Ended {
        let messages = "paravane: the guest powered off\n".to_owned();
        Ended { code: Some(0), console, messages, cpu: Duration::ZERO }
    }

    #[test]
    fn a_dialogue_is_good_only_if_every_command_is_answered() {
        assert_eq!(answered(&ended(console())).unwrap(), DIALOGUE.len() + 1);
        for (_, answer) in DIALOGUE {
            let silent = ended(console().replace(answer, ""));
            assert!(answered(&silent).unwrap_err().to_string().contains(answer));
        }
        let crashed = Ended { code: Some(255), ..ended(console()) };
        assert!(answered(&crashed).unwrap_err().to_string().contains("255"));
        let rebooted = Ended { messages: "the guest asked to be rebooted".to_owned(), ..ended(console()) };
        assert!(answered(&rebooted).unwrap_err().to_string().contains("did not power off"));
    }

    #[test]
    fn the_echo_of_a_command_is_no_answer_to_it() {
        for (command, answer) in DIALOGUE {
            assert!(!command.starts_with(answer) && !format!("grub> {command}").starts_with(answer));
        }
    }

    #[test]
    fn memory_must_be_all_there() {
        assert_eq!(memory_in(&console()), Some(64 << 20));
        assert_eq!(memory_in("grub> lsmmap\r\n"), None);
        let half = ended(console().replace("0x3fda000, avail", "0x1fda000, avail"));
        assert!(answered(&half).unwrap_err().to_string().contains("of 64 MiB"));
    }

    #[test]
    fn linux_without_its_grub_is_no_chain() {
        let kernel = Path::new("boot/vmlinuz-1.0");
        let linux = "Linux version 1.0\nHypervisor detected: Xen PV\ncheck: this is Linux (none) 1.0 #1\n\
                     check: pass one\ncheck: done, 1 passed, 0 failed\n";
        let with_grub = format!("Welcome to GRUB!\r\n\x1b[37m{GREETING}\r\n{linux}");

        assert_eq!(linux_passed(&ended(with_grub), kernel).unwrap(), 1);
        for console in [linux.to_owned(), format!("{linux}{GREETING}\n")] {
            assert!(linux_passed(&ended(console), kernel).unwrap_err().to_string().contains("GRUB did not"));
        }
    }

    #[test]
    fn escapes_are_taken_out_whole_even_the_last_one() {
        assert_eq!(without_escapes("a\x1b[37mb\x1b[1;1Hc\x1b[?25hd\x1b[3"), "abcd");
        assert_eq!(without_escapes("plain"), "plain");
    }
}

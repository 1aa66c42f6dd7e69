//! The program `paravane` as these commands run it, and the initial ramdisk that they give to a Linux.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::metadata::Metadata;
use crate::repo::Repo;
use crate::{command, fetch};

/// How cargo builds the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// As the tests have built it already.
    Dev,
    /// As a person uses it.
    Release,
}

impl Profile {
    /// What cargo is told, and the folder below the target directory.
    fn flags_and_folder(self) -> (&'static [&'static str], &'static str) {
        match self {
            Self::Dev => (&[], "debug"),
            Self::Release => (&["--release"], "release"),
        }
    }
}

/// Builds the program, and returns where it is.
pub(crate) fn build(repo: &Repo, profile: Profile) -> anyhow::Result<PathBuf> {
    let (flags, folder) = profile.flags_and_folder();
    command::run(command::cargo(repo).args(["build", "--locked", "--package", "paravane"]).args(flags))?;
    Ok(target(repo)?.join(folder).join("paravane"))
}

/// The folder that cargo builds into.
pub(crate) fn target(repo: &Repo) -> anyhow::Result<PathBuf> {
    Ok(Metadata::of(repo, "Cargo.toml")?.target_directory)
}

/// Fetches busybox and writes the initial ramdisk of `paravane-initramfs` around it.
pub(crate) fn write_initrd(repo: &Repo, to: &Path) -> anyhow::Result<()> {
    let busybox = fetch::package(repo, &fetch::BUSYBOX.parse()?)?.join("bin/busybox");
    let contents = fs::read(&busybox).with_context(|| format!("could not read {}", busybox.display()))?;
    fs::write(to, paravane_initramfs::build(&contents))
        .with_context(|| format!("could not write {}", to.display()))
}

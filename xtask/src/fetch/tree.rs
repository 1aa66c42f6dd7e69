//! Packages together with all that they depend on, unpacked over one another into one folder, as on a small system.
//!
//! No script of a package runs, so there are no users, alternatives or caches; programs that only need their files work.
//! As with single packages, a folder appears whole or not at all, and its receipt says what it was made from.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::command;
use crate::fetch::apt::Apt;
use crate::fetch::request::{USUAL_ARCHITECTURE, USUAL_SUITE};
use crate::fetch::{RECEIPT, lock, put_in_place};
use crate::repo::Repo;

/// What no program reads, and would double the size.
const LEFT_OUT: [&str; 4] = ["usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info"];

/// Makes sure that the tree `name` of these packages is there, and returns its folder.
pub(crate) fn tree(repo: &Repo, name: &str, packages: &[&str]) -> anyhow::Result<PathBuf> {
    let folder = repo.debian().join(".trees").join(name);
    let wanted = format!("{}\n", packages.join(" "));
    let is_there = || fs::read_to_string(folder.join(RECEIPT)).is_ok_and(|text| text.starts_with(&wanted));
    if !is_there() {
        let _lock = lock(repo)?;
        if !is_there() {
            fetch(repo, &folder, packages, &wanted)
                .with_context(|| format!("could not fetch the tree {name}"))?;
        }
    }
    let receipt = fs::read_to_string(folder.join(RECEIPT))?;
    println!("  {name}: {} packages", receipt.lines().count() - 1);
    Ok(folder)
}

fn fetch(repo: &Repo, folder: &Path, packages: &[&str], wanted: &str) -> anyhow::Result<()> {
    let state = repo.debian().join(".apt").join(format!("{USUAL_SUITE}-{USUAL_ARCHITECTURE}"));
    let apt = Apt::open(state, USUAL_SUITE, USUAL_ARCHITECTURE)?;
    if !apt.has_recent_lists() {
        apt.update()?;
    }
    unpack(&apt, folder, packages, wanted).or_else(|error| {
        // The lists may name a version that the mirror no longer has.
        println!("  {error:#}; trying once more with new package lists");
        apt.update()?;
        unpack(&apt, folder, packages, wanted)
    })
}

fn unpack(apt: &Apt, folder: &Path, packages: &[&str], wanted: &str) -> anyhow::Result<()> {
    let partial = folder.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial)?; // Left by an xtask that was interrupted; the lock is ours.
    }
    let (tree, archives) = (partial.join("tree"), partial.join("archives"));
    for made in [&tree, &archives] {
        fs::create_dir_all(made).with_context(|| format!("could not make {}", made.display()))?;
    }
    println!("  downloading {} and what they need", packages.join(" "));
    let files = apt.download_with_dependencies(packages, &archives)?;
    ensure!(!files.is_empty(), "apt downloaded nothing for {}", packages.join(" "));
    let mut receipt = wanted.to_owned();
    for file in &files {
        command::read(Command::new("dpkg").arg("-x").arg(file).arg(&tree))?;
        let name =
            file.file_name().and_then(|name| name.to_str()).context("a package's file has a plain name")?;
        receipt.push_str(name);
        receipt.push('\n');
    }
    for unread in LEFT_OUT {
        if tree.join(unread).exists() {
            fs::remove_dir_all(tree.join(unread))?;
        }
    }
    fs::write(tree.join(RECEIPT), receipt)?;
    put_in_place(&tree, folder)?;
    fs::remove_dir_all(&partial)?;
    Ok(())
}

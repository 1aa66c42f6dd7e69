//! Real PV guests from Debian's packages, fetched without root, each into a folder called like its request.
//!
//! A folder appears whole or not at all: a package is unpacked beside it and renamed. So a folder that is
//! there is complete, and needs no network again. Debian's versions roll, so requests name meta packages where
//! they can, and each folder records in `.fetched` which package and version it holds.

mod apt;
mod control;
mod guests;
mod request;
mod sources;
mod tree;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::command;
use crate::repo::Repo;

use apt::Apt;
use control::Stanza;
use guests::GUESTS;
pub(crate) use guests::{BUSYBOX, CLOUD_KERNEL, QEMU, STOCK_KERNEL};
pub(crate) use request::Request;
pub(crate) use tree::tree;

/// The file in each package's folder that says what was fetched.
const RECEIPT: &str = ".fetched";

/// What to fetch.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// `PACKAGE[:ARCHITECTURE][@SUITE]`; without any, every guest that the tests use
    requests: Vec<Request>,
}

/// Fetches the named packages, or all guests, and prints what each is.
pub(crate) fn run(repo: &Repo, args: &Args) -> anyhow::Result<()> {
    if args.requests.is_empty() {
        return all_guests(repo);
    }
    for request in &args.requests {
        package(repo, request)?;
    }
    Ok(())
}

/// Fetches every guest that the tests use.
pub(crate) fn all_guests(repo: &Repo) -> anyhow::Result<()> {
    for guest in GUESTS {
        println!("{}", guest.why);
        package(repo, &guest.request.parse()?)?;
    }
    Ok(())
}

/// Makes sure that a package is unpacked, prints what was used, and returns its folder.
pub(crate) fn package(repo: &Repo, request: &Request) -> anyhow::Result<PathBuf> {
    let folder = repo.debian().join(request.to_string());
    if !folder.join(RECEIPT).is_file() {
        fetch(repo, request, &folder).with_context(|| format!("could not fetch {request}"))?;
    }
    let receipt = fs::read_to_string(folder.join(RECEIPT))?;
    println!("  {request}: {}", receipt.trim());
    Ok(folder)
}

fn fetch(repo: &Repo, request: &Request, folder: &Path) -> anyhow::Result<()> {
    let cache = repo.debian();
    let _lock = lock(repo)?;
    if folder.join(RECEIPT).is_file() {
        return Ok(()); // Another xtask fetched it while this one waited for the lock.
    }
    let state = cache.join(".apt").join(format!("{}-{}", request.suite, request.architecture));
    let apt = Apt::open(state, &request.suite, &request.architecture)?;
    if !apt.has_recent_lists() {
        apt.update()?;
        return unpack(&apt, request, cache, folder);
    }
    unpack(&apt, request, cache, folder).or_else(|error| {
        // The lists may name a version that the mirror no longer has.
        println!("  {request}: {error:#}; trying once more with new package lists");
        apt.update()?;
        unpack(&apt, request, cache, folder)
    })
}

/// The right to change the cache, until it is dropped.
fn lock(repo: &Repo) -> anyhow::Result<File> {
    let cache = repo.debian();
    fs::create_dir_all(cache).with_context(|| format!("could not make {}", cache.display()))?;
    let lock = File::create(cache.join(".lock"))?;
    lock.lock().context("could not lock the cache of packages")?;
    Ok(lock)
}

/// Downloads a package and unpacks it to `folder` in one step, as others see it.
fn unpack(apt: &Apt, request: &Request, cache: &Path, folder: &Path) -> anyhow::Result<()> {
    let stanza = resolve(&request.package, |name| apt.show(name))?;
    let name = stanza.get("package").context("apt's answer names no package")?;
    let version = stanza.get("version").with_context(|| format!("apt's answer for {name} has no version"))?;
    println!("  {request}: downloading {name} {version}");

    let partial = cache.join(".partial");
    if partial.exists() {
        fs::remove_dir_all(&partial)?; // Left by an xtask that was interrupted; the lock is ours.
    }
    let tree = partial.join("tree");
    fs::create_dir_all(&tree)?;
    let file = apt.download(name, version, &partial)?;
    command::read(Command::new("dpkg").arg("-x").arg(&file).arg(&tree))?;
    let receipt = format!("{name} {version} ({}, {})\n", request.suite, request.architecture);
    fs::write(tree.join(RECEIPT), receipt)?;
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::rename(&tree, folder).with_context(|| format!("could not put {} in place", folder.display()))?;
    fs::remove_dir_all(&partial)?;
    Ok(())
}

/// Finds the package that holds the files: a kernel's meta package depends on the real one.
fn resolve(package: &str, show: impl Fn(&str) -> anyhow::Result<Stanza>) -> anyhow::Result<Stanza> {
    let mut seen = vec![package.to_owned()];
    loop {
        let stanza = show(&seen[seen.len() - 1])?;
        let Some(next) = kernel_behind(&stanza) else { return Ok(stanza) };
        ensure!(!seen.contains(&next), "the kernel packages {} depend on each other", seen.join(", "));
        seen.push(next);
    }
}

/// The kernel image that a kernel image package depends on, which makes it a meta package.
fn kernel_behind(stanza: &Stanza) -> Option<String> {
    let is_kernel = |name: &str| name.starts_with("linux-image-");
    if !is_kernel(stanza.get("package")?) {
        return None;
    }
    let names = stanza.get("depends")?.split(',').filter_map(|clause| clause.split_whitespace().next());
    names.map(str::to_owned).find(|name| is_kernel(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;

    fn archive(name: &str) -> anyhow::Result<Stanza> {
        let depends = match name {
            "linux-image-amd64" => "linux-image-6.1.0-50-amd64 (= 6.1.176-1)",
            "linux-image-6.1.0-50-amd64" => {
                "kmod, linux-base (>= 4.3~), initramfs-tools | linux-initramfs-tool"
            }
            "grub-xen-host" => "grub-common (= 2.06), linux-image-amd64",
            "linux-image-a" => "linux-image-b",
            "linux-image-b" => "kmod, linux-image-a",
            _ => bail!("unknown {name}"),
        };
        let text = format!("Package: {name}\nVersion: 1\nDepends: {depends}\n");
        Ok(control::parse(&text).remove(0))
    }

    #[test]
    fn a_kernels_meta_package_leads_to_the_real_one() {
        for (asked, found) in [
            ("linux-image-amd64", "linux-image-6.1.0-50-amd64"),
            ("linux-image-6.1.0-50-amd64", "linux-image-6.1.0-50-amd64"),
            ("grub-xen-host", "grub-xen-host"),
        ] {
            assert_eq!(resolve(asked, archive).unwrap().get("package"), Some(found), "{asked}");
        }
    }

    #[test]
    fn meta_packages_that_depend_on_each_other_end_in_an_error() {
        let error = resolve("linux-image-a", archive).unwrap_err().to_string();

        assert!(error.contains("linux-image-a, linux-image-b"), "{error}");
    }

    #[test]
    fn a_package_that_is_there_is_not_fetched_again() {
        // An unknown suite of an unknown package: any attempt to fetch would fail.
        let root = std::env::temp_dir().join(format!("paravane-xtask-{}", std::process::id()));
        let folder = root.join("debian/no-such-package@no-such-suite");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(RECEIPT), "no-such-package 1\n").unwrap();

        let found = package(&Repo::at(&root), &"no-such-package@no-such-suite".parse().unwrap());

        assert_eq!(found.unwrap(), folder);
        fs::remove_dir_all(root).unwrap();
    }
}

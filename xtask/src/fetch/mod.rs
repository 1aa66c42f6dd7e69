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

use anyhow::{Context as _, bail, ensure};

use crate::command;
use crate::repo::Repo;

use apt::Apt;
use control::Stanza;
use guests::GUESTS;
pub(crate) use guests::{BUSYBOX, CLOUD_KERNEL, GRUB_TOOLS, QEMU, STOCK_KERNEL};
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
    put_in_place(&tree, folder)?;
    fs::remove_dir_all(&partial)?;
    Ok(())
}

/// Makes a finished tree the folder that others see, in one step.
fn put_in_place(tree: &Path, folder: &Path) -> anyhow::Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::rename(tree, folder).with_context(|| format!("could not put {} in place", folder.display()))
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

/// The package that a kernel image package depends on for the image, which makes it a meta package.
///
/// Up to Linux 6 that is another image package, which holds all files. Since Linux 7 that one is empty, and the image
/// alone is in a package of its own.
fn kernel_behind(stanza: &Stanza) -> Option<String> {
    let is_image = |name: &str| name.starts_with("linux-image-");
    if !is_image(stanza.get("package")?) {
        return None;
    }
    let names = stanza.get("depends")?.split(',').filter_map(|clause| clause.split_whitespace().next());
    names.map(str::to_owned).find(|name| is_image(name) || name.starts_with("linux-binary-"))
}

/// The kernel image of an unpacked kernel package: `boot/vmlinuz-RELEASE`, or `usr/lib/modules/RELEASE/vmlinuz`.
pub(crate) fn kernel_in(folder: &Path) -> anyhow::Result<PathBuf> {
    let mut kernels: Vec<PathBuf> = listing(&folder.join("boot"))?;
    kernels
        .retain(|file| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")));
    let modules = listing(&folder.join("usr/lib/modules"))?;
    kernels.extend(modules.into_iter().map(|release| release.join("vmlinuz")).filter(|file| file.is_file()));
    let [kernel] = kernels.as_slice() else {
        bail!("{} should hold one vmlinuz, and holds {}", folder.display(), kernels.len());
    };
    Ok(kernel.clone())
}

/// What is in a folder; nothing if it is not there.
pub(crate) fn listing(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let files = fs::read_dir(folder).with_context(|| format!("could not list {}", folder.display()))?;
    Ok(files.map(|file| Ok(file?.path())).collect::<std::io::Result<_>>()?)
}

/// Which package and version an unpacked package is.
pub(crate) fn version_in(folder: &Path) -> anyhow::Result<String> {
    let receipt = fs::read_to_string(folder.join(RECEIPT))?;
    let words: Vec<&str> = receipt.split_whitespace().take(2).collect();
    Ok(words.join(" "))
}

/// A program of a tree of packages with all that they need: the C library's loader there starts it.
pub(crate) fn program_in(folder: &Path, program: &str) -> Command {
    let libraries = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"].map(|path| folder.join(path));
    let mut command = Command::new(libraries[0].join("ld-linux-x86-64.so.2"));
    let paths = libraries.map(|path| path.display().to_string());
    command.arg("--library-path").arg(paths.join(":")).arg(folder.join(program));
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(name: &str) -> anyhow::Result<Stanza> {
        let depends = match name {
            "linux-image-amd64" => "linux-image-6.1.0-50-amd64 (= 6.1.176-1)",
            "linux-image-6.1.0-50-amd64" => {
                "kmod, linux-base (>= 4.3~), initramfs-tools | linux-initramfs-tool"
            }
            "grub-xen-host" => "grub-common (= 2.06), linux-image-amd64",
            "linux-image-7.2-amd64" => {
                "dracut | initramfs-tools, linux-base-7.2-amd64, linux-binary-7.2-amd64 (= 7.2.1)"
            }
            "linux-binary-7.2-amd64" => "linux-base-7.2-amd64 (= 7.2.1)",
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
            ("linux-image-7.2-amd64", "linux-binary-7.2-amd64"),
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
    fn a_kernel_is_found_where_either_kind_of_package_puts_it() {
        let root = std::env::temp_dir().join(format!("paravane-kernels-{}", std::process::id()));
        let put = |path: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        };
        for other in ["old/boot/config-6.1", "old/usr/lib/modules/6.1/modules.order", "none/usr/share/doc/x"]
        {
            put(other);
        }
        for kernel in ["old/boot/vmlinuz-6.1", "new/usr/lib/modules/7.2/vmlinuz"] {
            put(kernel);
            let package = root.join(&kernel[..3]);
            assert_eq!(kernel_in(&package).unwrap(), root.join(kernel));
        }
        put("old/boot/vmlinuz-6.2");
        for (package, count) in [("old", "holds 2"), ("none", "holds 0"), ("not-there", "holds 0")] {
            let error = kernel_in(&root.join(package)).unwrap_err().to_string();
            assert!(error.contains(count), "{error}");
        }
        fs::remove_dir_all(root).unwrap();
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

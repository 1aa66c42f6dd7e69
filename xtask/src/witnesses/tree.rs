//! What the witnesses need, as a folder that can be a root, and as an initial ramdisk of the same.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use paravane_initramfs::cpio::Archive;

use super::list::{BUSYBOX_32, PACKAGES};
use crate::fetch;
use crate::repo::Repo;

/// Our own files, below `/witnesses`.
const OURS: [(&str, &str); 8] = [
    ("init.sh", include_str!("guest/init.sh")),
    ("run.sh", include_str!("guest/run.sh")),
    ("database.sql", include_str!("guest/database.sql")),
    ("exceptions.cc", include_str!("guest/exceptions.cc")),
    ("jit.js", include_str!("guest/jit.js")),
    ("processes.c", include_str!("guest/processes.c")),
    ("processor.c", include_str!("guest/processor.c")),
    ("text.pl", include_str!("guest/text.pl")),
];

/// Makes the folder, and returns it.
pub(super) fn make(repo: &Repo) -> anyhow::Result<PathBuf> {
    let root = fetch::tree(repo, "witnesses", &PACKAGES)?;
    let ours = root.join("witnesses");
    fs::create_dir_all(&ours)?;
    for (name, text) in OURS {
        fs::write(ours.join(name), text)?;
        fs::set_permissions(ours.join(name), fs::Permissions::from_mode(0o755))?;
    }
    for (name, request) in [("busybox", fetch::BUSYBOX), ("busybox32", BUSYBOX_32)] {
        let busybox = fetch::package(repo, &request.parse()?)?.join("bin/busybox");
        fs::copy(&busybox, ours.join(name))
            .with_context(|| format!("could not copy {}", busybox.display()))?;
    }
    for folder in ["dev", "proc", "sys", "tmp", "root"] {
        fs::create_dir_all(root.join(folder))?;
    }
    Ok(root)
}

/// Writes the folder as an initial ramdisk that starts with our `init.sh`.
pub(super) fn archive(root: &Path, to: &Path) -> anyhow::Result<()> {
    let mut archive = Archive::default();
    add(&mut archive, root, "")?;
    archive.character_device("dev/console", 5, 1);
    archive.symlink("init", "witnesses/init.sh");
    let mut file = File::create(to).with_context(|| format!("could not write {}", to.display()))?;
    file.write_all(&archive.finish())?;
    Ok(())
}

/// Adds what is in the folder `path` below `root`, in the order of the names.
fn add(archive: &mut Archive, root: &Path, path: &str) -> anyhow::Result<()> {
    let folder = root.join(path);
    let listing = fs::read_dir(&folder).with_context(|| format!("could not list {}", folder.display()))?;
    let mut entries = listing.collect::<std::io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { bail!("{} has no plain name", entry.path().display()) };
        let inside = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
        let kind = entry.file_type()?;
        if kind.is_dir() {
            archive.directory(&inside);
            add(archive, root, &inside)?;
        } else if kind.is_symlink() {
            let target = fs::read_link(entry.path())?;
            archive.symlink(&inside, target.to_str().context("a link has a plain target")?);
        } else {
            archive.file(&inside, &fs::read(entry.path())?);
        }
    }
    Ok(())
}

//! Where things are in this repository.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

/// The variable that names the folder of unpacked packages. `.cargo/config.toml` sets it for xtask and for the
/// tests that use them.
const TEST_DATA: &str = "PARAVANE_TEST_DATA";

/// The repository that contains this xtask.
#[derive(Debug, Clone)]
pub(crate) struct Repo {
    root: PathBuf,
    debian: PathBuf,
}

impl Repo {
    /// Finds the repository from the manifest folder that cargo names at run time.
    ///
    /// The folder at compile time is only the fallback: a target directory may have been moved with its clone.
    pub(crate) fn find() -> anyhow::Result<Self> {
        let manifest = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
        let root = manifest.parent().context("xtask's manifest folder has no parent")?.to_owned();
        ensure!(
            root.join("xtask/Cargo.toml").is_file(),
            "{} does not hold this repository; start xtask as `cargo xtask` inside it",
            root.display()
        );
        let debian = env::var_os(TEST_DATA)
            .with_context(|| format!("{TEST_DATA} is not set; start xtask as `cargo xtask`"))?;
        // apt takes a relative path as one from the root of the file system.
        Ok(Self { root, debian: std::path::absolute(debian)? })
    }

    /// A folder taken for a repository, for tests.
    #[cfg(test)]
    pub(crate) fn at(root: &Path) -> Self {
        Self { root: root.to_owned(), debian: root.join("debian") }
    }

    /// The repository's root folder.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// A path inside the repository.
    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// The cache of unpacked Debian packages.
    pub(crate) fn debian(&self) -> &Path {
        &self.debian
    }
}

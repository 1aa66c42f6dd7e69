//! What cargo knows of a workspace: its members, and every package they are built from.

use std::path::PathBuf;

use anyhow::Context as _;
use serde::Deserialize;

use crate::command;
use crate::repo::Repo;

/// The one platform the project is built for, so that packages of others are not looked at.
pub(crate) const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// The part of `cargo metadata --format-version 1` that the checks read.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Metadata {
    pub(crate) packages: Vec<Package>,
    workspace_members: Vec<String>,
    /// Where cargo puts what it builds.
    pub(crate) target_directory: PathBuf,
}

/// One package, a member or a dependency.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Package {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) version: String,
    /// The licence expression; old packages have none or only a file.
    pub(crate) license: Option<String>,
    /// Where it comes from; none for a folder of this repository.
    pub(crate) source: Option<String>,
    pub(crate) dependencies: Vec<Dependency>,
    pub(crate) targets: Vec<Target>,
}

/// An edge to another package, as the manifest states it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Dependency {
    pub(crate) name: String,
}

/// A crate that a package builds.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Target {
    pub(crate) kind: Vec<String>,
    pub(crate) src_path: PathBuf,
}

impl Metadata {
    /// Asks cargo about the workspace of `manifest`, a path in the repository.
    pub(crate) fn of(repo: &Repo, manifest: &str) -> anyhow::Result<Self> {
        let mut cargo = command::cargo(repo);
        cargo.args(["metadata", "--format-version=1", "--locked", "--filter-platform", PLATFORM]);
        cargo.arg("--manifest-path").arg(repo.path(manifest));
        // The fuzz workspace has a lock of its own, which a new dependency of any crate makes stale.
        let json = command::read(&mut cargo).with_context(|| {
            format!("cargo cannot resolve {manifest}; if its lock file is stale, `cargo update --workspace --manifest-path {manifest}` renews it")
        })?;
        Self::parse(&json)
    }

    /// Reads cargo's JSON.
    pub(crate) fn parse(json: &str) -> anyhow::Result<Self> {
        serde_json::from_str(json).context("cargo metadata printed something unexpected")
    }

    /// The workspace's own packages.
    pub(crate) fn members(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|package| self.workspace_members.contains(&package.id))
    }
}

//! An apt of our own: its state, lists and cache are in the repository's target directory.
//!
//! It needs no root, touches nothing of the system's apt, and works on a machine whose own lists were never
//! fetched or were deleted. From the system it takes the mirror's address, the keys, and the network settings
//! (proxies), which apt reads from its usual configuration before ours.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use crate::command;
use crate::fetch::control::{self, Stanza};
use crate::fetch::sources;

/// Package lists older than this are fetched anew before a package is looked up.
const LISTS_LAST: Duration = Duration::from_hours(24);

/// A private apt for one suite and one architecture.
#[derive(Debug)]
pub(crate) struct Apt {
    folder: PathBuf,
}

impl Apt {
    /// Opens the apt kept in `folder`, or sets it up; fetches no list yet.
    pub(crate) fn open(folder: PathBuf, suite: &str, architecture: &str) -> anyhow::Result<Self> {
        let (list, parts) = system_sources()?;
        let entries = sources::read(&list, &parts)?;
        let mirror = sources::mirror_of(&entries, suite, &sources::system_codename()?)?;
        let apt = Self { folder };
        apt.set_up(&mirror.source_for(suite, architecture), architecture)?;
        Ok(apt)
    }

    /// Whether the package lists are there and recent.
    pub(crate) fn has_recent_lists(&self) -> bool {
        let age = || self.stamp().metadata().ok()?.modified().ok()?.elapsed().ok();
        age().is_some_and(|age| age < LISTS_LAST)
    }

    /// Fetches the package lists.
    pub(crate) fn update(&self) -> anyhow::Result<()> {
        // apt-get succeeds when a list could not be had and an old one exists; that is an error to us.
        command::read(self.command("apt-get").args(["update", "--error-on=any"]))
            .context("apt could not fetch its package lists; is there a network?")?;
        fs::write(self.stamp(), "")?;
        Ok(())
    }

    /// Looks a package up: the stanza of its newest version.
    pub(crate) fn show(&self, package: &str) -> anyhow::Result<Stanza> {
        let mut show = self.command("apt-cache");
        let text = command::read(show.args(["show", "--no-all-versions", package]))
            .with_context(|| format!("apt does not know the package {package}"))?;
        let stanzas = control::parse(&text);
        let found = stanzas.into_iter().find(|stanza| stanza.get("package") == Some(package));
        found.with_context(|| format!("apt knows {package} only as a virtual package"))
    }

    /// Downloads one version of a package into `into`; apt checks it against its signed lists.
    pub(crate) fn download(&self, package: &str, version: &str, into: &Path) -> anyhow::Result<PathBuf> {
        let mut download = self.command("apt-get");
        download.args(["download", &format!("{package}={version}")]).current_dir(into);
        command::read(&mut download)
            .with_context(|| format!("apt could not download {package} {version}"))?;
        let Some(file) = packages_in(into)?.into_iter().next() else {
            bail!("apt said it downloaded {package} {version}, but {} has no .deb", into.display());
        };
        Ok(file)
    }

    /// Downloads packages and all that they depend on into `into`, sorted by name.
    pub(crate) fn download_with_dependencies(
        &self,
        packages: &[&str],
        into: &Path,
    ) -> anyhow::Result<Vec<PathBuf>> {
        fs::create_dir_all(into.join("partial"))?;
        let mut install = self.command("apt-get");
        install.args(["install", "--yes", "--no-install-recommends", "--download-only"]);
        install.arg("-o").arg(format!("Dir::Cache::archives={}/", into.display())).args(packages);
        command::read(&mut install)
            .with_context(|| format!("apt could not download {} and what they need", packages.join(" ")))?;
        packages_in(into)
    }

    fn stamp(&self) -> PathBuf {
        self.folder.join("updated")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C").arg("-q").arg("-c").arg(self.folder.join("apt.conf"));
        command
    }

    fn set_up(&self, source: &str, architecture: &str) -> anyhow::Result<()> {
        for folder in ["sources.d", "empty.d", "lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(self.folder.join(folder))
                .with_context(|| format!("could not make {}", self.folder.join(folder).display()))?;
        }
        let source_file = self.folder.join("sources.d/mirror.sources");
        if fs::read_to_string(&source_file).ok().as_deref() != Some(source) {
            // Lists of another mirror say nothing about this one.
            if self.stamp().exists() {
                fs::remove_file(self.stamp())?;
            }
            fs::write(&source_file, source)?;
        }
        fs::write(self.folder.join("status"), "")?;
        fs::write(self.folder.join("apt.conf"), configuration(&self.folder, architecture)?)?;
        Ok(())
    }
}

/// The package files in a folder, sorted by name.
fn packages_in(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let listing = fs::read_dir(folder)?.map(|file| Ok(file?.path())).collect::<std::io::Result<Vec<_>>>()?;
    let is_package = |file: &PathBuf| file.extension().is_some_and(|it| it == "deb");
    let mut files: Vec<_> = listing.into_iter().filter(is_package).collect();
    files.sort();
    Ok(files)
}

/// Where the system's apt sources are: the list, and the folder of further ones.
fn system_sources() -> anyhow::Result<(PathBuf, PathBuf)> {
    let directory = |key: &str| {
        let mut ask = Command::new("apt-config");
        let text = command::read(ask.args(["shell", "FOUND", key]))
            .context("fetching guests needs apt, on a Debian system")?;
        let value = text.trim().strip_prefix("FOUND='").and_then(|rest| rest.strip_suffix('\''));
        value.map(PathBuf::from).with_context(|| format!("apt-config has no {key}; it printed {text:?}"))
    };
    Ok((directory("Dir::Etc::sourcelist/f")?, directory("Dir::Etc::sourceparts/d")?))
}

/// The configuration that moves all of apt's state into `folder` and keeps the system's hooks out.
fn configuration(folder: &Path, architecture: &str) -> anyhow::Result<String> {
    let folder = folder.to_str().context("the path of the repository is not UTF-8, which apt cannot read")?;
    ensure!(!folder.contains('"'), "the path of the repository has a quote in it, which apt cannot read");
    Ok(format!(
        r#"Dir::State "{folder}";
Dir::State::lists "{folder}/lists";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "{folder}/sources.d";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "{folder}/empty.d";
#clear APT::Architectures;
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
// Without this, root's apt downloads as another user, who may not write here.
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "2";
"#
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_apts_state_is_inside_its_folder() {
        let text = configuration(Path::new("/some/folder"), "i386").unwrap();

        for key in
            ["Dir::State", "Dir::State::lists", "Dir::State::status", "Dir::Cache", "Dir::Etc::sourceparts"]
        {
            let line = text.lines().find(|line| line.starts_with(&format!("{key} "))).unwrap();
            assert!(line.starts_with(&format!("{key} \"/some/folder")), "{line}");
        }
        assert!(text.contains("APT::Architectures { \"i386\"; };"));
    }

    #[test]
    fn a_folder_that_apt_cannot_read_is_refused() {
        assert!(configuration(Path::new("/some/\"quoted\"/folder"), "amd64").is_err());
    }
}

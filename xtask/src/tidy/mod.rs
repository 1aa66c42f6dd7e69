//! The style rules that a machine can check, over every file that git knows or would add.
//!
//! `cargo xtask tidy` prints what it finds; a test here holds the repository to the same rules, so that plain
//! `cargo test` checks them too.

mod layers;
mod links;
mod manifests;
mod rust_files;
mod source;
mod text_files;
mod unsafety;

use std::fs;
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::command;
use crate::metadata::Metadata;
use crate::repo::Repo;

/// A file of the repository: its path from the root with `/`, and its text.
#[derive(Debug, Clone)]
struct Document {
    path: String,
    text: String,
}

/// Something that breaks a rule: where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    /// A path, with `:LINE` where that helps.
    place: String,
    what: String,
}

impl Finding {
    fn new(place: impl Into<String>, what: impl Into<String>) -> Self {
        Self { place: place.into(), what: what.into() }
    }
}

/// Checks the repository and fails if anything is found.
pub(crate) fn run(repo: &Repo) -> anyhow::Result<()> {
    let documents = documents(repo)?;
    let findings = findings(repo, &documents)?;
    for finding in &findings {
        println!("{}: {}", finding.place, finding.what);
    }
    if !findings.is_empty() {
        bail!("{} findings; mend them, or change the rule in xtask/src/tidy with a reason", findings.len());
    }
    println!("{} files are tidy", documents.len());
    Ok(())
}

fn findings(repo: &Repo, documents: &[Document]) -> anyhow::Result<Vec<Finding>> {
    let metadata = Metadata::of(repo, "Cargo.toml")?;
    let mut findings = layers::check(&metadata);
    findings.extend(manifests::check(documents));
    findings.extend(links::check(documents));
    findings.extend(unsafety::check(&metadata, repo, documents));
    for document in documents {
        findings.extend(rust_files::check(document));
        findings.extend(text_files::check(document));
    }
    Ok(findings)
}

/// Every text file that is tracked, or new and not ignored.
fn documents(repo: &Repo) -> anyhow::Result<Vec<Document>> {
    let mut git = Command::new("git");
    git.current_dir(repo.root()).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let listing = command::read(&mut git).context("the rules hold for the files that git lists")?;
    let mut documents = Vec::new();
    for path in listing.split_terminator('\0') {
        let file = repo.path(path);
        if !file.is_file() {
            continue; // Deleted and not yet committed, or a link to a folder.
        }
        let bytes = fs::read(&file).with_context(|| format!("could not read {path}"))?;
        if let Ok(text) = String::from_utf8(bytes) {
            documents.push(Document { path: path.to_owned(), text });
        }
    }
    Ok(documents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_is_tidy() {
        let repo = Repo::find().unwrap();
        let documents = documents(&repo).unwrap();

        assert!(documents.iter().any(|document| document.path == "xtask/src/tidy/mod.rs"));
        assert_eq!(findings(&repo, &documents).unwrap(), []);
    }
}

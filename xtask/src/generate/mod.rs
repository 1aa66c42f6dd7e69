//! Pages of the documentation that are written by a program from the project's own tables.
//!
//! A page is committed, so that it can be read without building anything, and a test holds it to the tables.

mod coverage;
mod translator;

use std::fs;

use anyhow::{Context as _, ensure};

use crate::repo::Repo;

/// A generated file: its path in the repository and what writes its text.
struct Page {
    path: &'static str,
    text: fn() -> String,
}

const PAGES: [Page; 2] = [
    Page { path: "docs/abi-coverage.md", text: coverage::page },
    Page { path: "docs/translator-coverage.md", text: translator::page },
];

/// Writes every page.
pub(crate) fn run(repo: &Repo) -> anyhow::Result<()> {
    for page in &PAGES {
        let path = repo.path(page.path);
        fs::write(&path, (page.text)()).with_context(|| format!("could not write {}", path.display()))?;
        println!("{}", page.path);
    }
    Ok(())
}

/// Checks that every page is what would be written.
pub(crate) fn check(repo: &Repo) -> anyhow::Result<()> {
    for page in &PAGES {
        let committed = fs::read_to_string(repo.path(page.path))
            .with_context(|| format!("could not read {}; `cargo xtask generate` writes it", page.path))?;
        ensure!(
            committed == (page.text)(),
            "{} is not what the tables say; run `cargo xtask generate`",
            page.path
        );
        println!("{} is fresh", page.path);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_generated_page_says_what_the_tables_say() {
        check(&Repo::find().unwrap()).unwrap();
    }
}

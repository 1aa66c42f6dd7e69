//! Rules for the documentation's pages: what they point at exists.
//!
//! Two kinds of pointer are checked: relative links, and paths in code spans that begin with a folder of the
//! root. A part in capitals stands for a name (`fuzz/corpus/TARGET/`) and ends the check there.

use crate::tidy::{Document, Finding};

/// Checks every page below the root and `docs/`.
pub(super) fn check(documents: &[Document]) -> Vec<Finding> {
    let pages = documents.iter().filter(|document| document.path.ends_with(".md"));
    pages.flat_map(|page| check_page(page, documents)).collect()
}

fn check_page(page: &Document, documents: &[Document]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, line) in page.text.lines().enumerate() {
        let linked = link_targets(line).filter_map(|target| relative_to(&page.path, target));
        let named = code_spans(line).filter(|span| begins_with_a_folder(span, documents)).map(str::to_owned);
        for path in linked.chain(named).filter(|path| !exists(path, documents)) {
            let place = format!("{}:{}", page.path, index + 1);
            findings.push(Finding::new(place, format!("points at {path}, which does not exist")));
        }
    }
    findings
}

/// What stands between `](` and `)` in a line, less addresses elsewhere.
fn link_targets(line: &str) -> impl Iterator<Item = &str> {
    let targets = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://"))
}

/// A link's path from the root; `None` if it stays on its own page.
fn relative_to(page: &str, target: &str) -> Option<String> {
    let path = target.split('#').next().filter(|path| !path.is_empty())?;
    let mut parts: Vec<&str> = page.split('/').collect();
    parts.pop();
    for part in path.split('/') {
        match part {
            ".." => drop(parts.pop()),
            "." => {}
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

/// The code spans of a line; text in a fenced block has none.
fn code_spans(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

fn begins_with_a_folder(span: &str, documents: &[Document]) -> bool {
    let Some((folder, _)) = span.split_once('/') else { return false };
    let is_path = span.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
    is_path && documents.iter().any(|document| document.path.split_once('/').is_some_and(|it| it.0 == folder))
}

/// Whether a path is a file or a folder, up to its first part in capitals.
fn exists(path: &str, documents: &[Document]) -> bool {
    let is_placeholder = |part: &&str| part.len() > 1 && part.chars().all(|c| c.is_ascii_uppercase());
    let parts: Vec<&str> =
        path.trim_end_matches('/').split('/').take_while(|part| !is_placeholder(part)).collect();
    let path = parts.join("/");
    let is_or_holds = |document: &Document| {
        document.path.strip_prefix(&path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    documents.iter().any(is_or_holds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        let file = |path: &str, text: &str| Document { path: path.into(), text: text.into() };
        let documents = [
            file(path, text),
            file("README.md", ""),
            file("docs/map.md", ""),
            file("crates/abi/src/lib.rs", ""),
            file("fuzz/corpus/notes/seed", ""),
        ];
        check(&documents).into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn pointers_to_what_is_there_pass() {
        for text in [
            "[map](docs/map.md), [part](docs/map.md#part), [here](#part), [there](https://x.example/y)",
            "`crates/abi/src/lib.rs`, `crates/abi/`, `fuzz/corpus/TARGET/`, `target/debian`, `a/b`",
        ] {
            assert_eq!(found("page.md", text), [""; 0], "{text}");
        }
        assert_eq!(found("docs/page.md", "[map](map.md) and [readme](../README.md)"), [""; 0]);
    }

    #[test]
    fn pointers_to_what_is_not_there_are_found() {
        for (text, path) in [
            ("[map](docs/gone.md)", "docs/gone.md"),
            ("see `crates/abi/src/gone.rs`", "crates/abi/src/gone.rs"),
            ("see `crates/ab`", "crates/ab"),
            ("see `fuzz/gone/TARGET/`", "fuzz/gone/TARGET/"),
        ] {
            assert_eq!(found("page.md", text), [format!("points at {path}, which does not exist")]);
        }
        assert_eq!(found("docs/page.md", "[map](docs/map.md)").len(), 1, "links are relative to their page");
    }

    #[test]
    fn only_pages_are_checked() {
        assert_eq!(found("page.rs", "`crates/abi/src/gone.rs`"), [""; 0]);
    }
}

//! Rules for every text file: nothing of one machine in it, and a map that stays short.

use crate::tidy::{Document, Finding};

/// The most lines that the map of the architecture may have: it is read in one sitting.
const ARCHITECTURE_LINES: usize = 400;

/// Text that ties the project to one machine or one network. Split, so that this table does not find itself.
const FORBIDDEN: [(&str, &str); 7] = [
    (concat!("/wor", "k/"), "a path of one machine"),
    (concat!("/roo", "t/"), "a path of one machine"),
    (concat!("/hom", "e/"), "a path of one machine"),
    (concat!("deb.", "debian.org"), "a mirror's address: it is read from the system at run time"),
    (concat!("security.", "debian.org"), "a mirror's address: it is read from the system at run time"),
    (concat!("snapshot.", "debian.org"), "a mirror's address: it is read from the system at run time"),
    (concat!("index.", "crates.io"), "a registry's address: cargo knows it"),
];

/// Checks one file.
pub(super) fn check(document: &Document) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, line) in document.text.lines().enumerate() {
        for (text, why) in FORBIDDEN.iter().filter(|(text, _)| has(line, text)) {
            let place = format!("{}:{}", document.path, index + 1);
            findings.push(Finding::new(place, format!("`{text}` is {why}")));
        }
    }
    let lines = document.text.lines().count();
    if document.path == "docs/architecture.md" && lines >= ARCHITECTURE_LINES {
        let what = format!("has {lines} lines; keep it below {ARCHITECTURE_LINES}");
        findings.push(Finding::new(&*document.path, what));
    }
    findings
}

/// Whether `line` has `text`, and not as the middle of a longer path: `crates/home/` is not a home folder.
fn has(line: &str, text: &str) -> bool {
    let continues = |c: char| c.is_alphanumeric() || "_-.}".contains(c);
    line.match_indices(text)
        .any(|(at, _)| !text.starts_with('/') || !line[..at].chars().next_back().is_some_and(continues))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        let document = Document { path: path.into(), text: text.into() };
        check(&document).into_iter().map(|finding| finding.place).collect()
    }

    #[test]
    fn every_forbidden_text_is_found_in_any_kind_of_file() {
        for (text, _) in FORBIDDEN {
            assert_eq!(found("notes.txt", &format!("fine\nsee {text} there\n")), ["notes.txt:2"], "{text}");
        }
    }

    #[test]
    fn a_folder_of_the_project_may_be_called_like_one_of_a_machine() {
        assert_eq!(found("a.md", concat!("crates/wor", "k/src\n")), [""; 0]);
    }

    #[test]
    fn the_architecture_page_stays_below_400_lines() {
        assert_eq!(found("docs/architecture.md", &"x\n".repeat(399)), [""; 0]);
        assert_eq!(found("docs/architecture.md", &"x\n".repeat(400)), ["docs/architecture.md"]);
        assert_eq!(found("docs/other.md", &"x\n".repeat(400)), [""; 0]);
    }
}

//! Where `unsafe` may stand: in listed files of listed crates, and nowhere else.
//!
//! All other crates forbid it at their root, which the compiler enforces. In the listed crates the compiler
//! only denies it, file by file, so the list here keeps the set of such files small and in sight.

use crate::metadata::{Metadata, Package, Target};
use crate::repo::Repo;
use crate::tidy::source::{blanked, lines_with};
use crate::tidy::{Document, Finding};

/// Crates that need `unsafe`: they map memory or run guest code, or are guest code.
const CRATES: [&str; 4] = ["paravane-memory", "paravane-translate", "paravane-kvm", "paravane-bench-guest"];

/// Files that hold `unsafe`, and what for.
const FILES: [(&str, &str); 11] = [
    ("crates/bench-guest/src/compute/avx2.rs", "calls a function that needs a CPU feature"),
    ("crates/bench-guest/src/raw.rs", "forks, and maps fresh memory"),
    ("crates/memory/src/mapping.rs", "maps guest memory and hands out its bytes"),
    ("crates/translate/src/arena.rs", "maps the memory that translated code and Rust share"),
    ("crates/translate/src/features.rs", "reads XCR0"),
    ("crates/translate/src/runs.rs", "moves guest memory between translated instructions"),
    ("crates/translate/src/signal.rs", "handles the host's fault signals"),
    ("crates/translate/src/trampoline.rs", "enters translated code and comes back"),
    ("crates/translate/src/tsc.rs", "reads the time-stamp counter"),
    ("crates/translate/src/walk.rs", "walks the guest's page tables between translated instructions"),
    ("crates/translate/tests/cpu/native/real.rs", "runs test code on the real CPU"),
];

/// Checks each crate's root, and each file's use of `unsafe` against the list.
pub(super) fn check(metadata: &Metadata, repo: &Repo, documents: &[Document]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in metadata.members().filter(|package| !CRATES.contains(&package.name.as_str())) {
        for root in crate_roots(package, repo) {
            let text =
                documents.iter().find(|document| document.path == root).map(|document| &*document.text);
            findings.extend(check_root(&root, text.unwrap_or_default()));
        }
    }
    findings.extend(check_files(documents, &FILES));
    findings
}

/// The paths of a package's library and programs; tests and build scripts are held by the list alone.
fn crate_roots(package: &Package, repo: &Repo) -> Vec<String> {
    let ships =
        |target: &&Target| target.kind.iter().any(|kind| matches!(&**kind, "lib" | "bin" | "proc-macro"));
    let path = |target: &Target| {
        let path = target.src_path.strip_prefix(repo.root()).unwrap_or(&target.src_path);
        path.to_string_lossy().into_owned()
    };
    package.targets.iter().filter(ships).map(path).collect()
}

fn check_root(path: &str, text: &str) -> Option<Finding> {
    let forbids = blanked(text).lines().any(|line| line.trim() == "#![forbid(unsafe_code)]");
    (!forbids).then(|| Finding::new(path, "must say `#![forbid(unsafe_code)]`"))
}

fn check_files(documents: &[Document], listed: &[(&str, &str)]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for document in documents.iter().filter(|document| document.path.ends_with(".rs")) {
        let lines = lines_with(&blanked(&document.text), "unsafe");
        let is_listed = listed.iter().any(|(path, _)| *path == document.path);
        match lines.first() {
            Some(line) if !is_listed => findings.push(Finding::new(
                format!("{}:{line}", document.path),
                "`unsafe` outside the files listed in xtask/src/tidy/unsafety.rs",
            )),
            None if is_listed => {
                findings.push(Finding::new(&*document.path, "is listed for `unsafe` and has none"));
            }
            Some(_) | None => {}
        }
    }
    for (path, _) in listed {
        if !documents.iter().any(|document| document.path == *path) {
            findings.push(Finding::new(*path, "is listed for `unsafe` and does not exist"));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> Document {
        Document { path: path.into(), text: text.into() }
    }

    #[test]
    fn a_crate_root_must_forbid_unsafe_code_outside_comments() {
        assert_eq!(check_root("lib.rs", "//! Docs.\n#![forbid(unsafe_code)]\n"), None);
        for text in ["", "// #![forbid(unsafe_code)]\n", "#![deny(unsafe_code)]\n"] {
            assert!(check_root("lib.rs", text).is_some(), "{text}");
        }
    }

    #[test]
    fn unsafe_is_found_in_a_file_that_is_not_listed() {
        let files =
            [file("a.rs", "fn f() {\n    unsafe { g() }\n}\n"), file("b.rs", "// unsafe\nfn f() {}\n")];

        let findings = check_files(&files, &[]);
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].place, "a.rs:2");
        assert_eq!(check_files(&files, &[("a.rs", "maps memory")]), []);
    }

    #[test]
    fn a_row_for_a_file_without_unsafe_is_found() {
        let findings = check_files(&[file("b.rs", "fn f() {}\n")], &[("b.rs", "once"), ("gone.rs", "once")]);

        let places: Vec<_> = findings.iter().map(|finding| finding.place.as_str()).collect();
        assert_eq!(places, ["b.rs", "gone.rs"]);
    }

    #[test]
    fn only_crates_of_the_project_may_hold_unsafe_files() {
        for (path, why) in FILES {
            let folders = CRATES.map(|name| format!("crates/{}/", name.trim_start_matches("paravane-")));
            assert!(folders.iter().any(|folder| path.starts_with(folder)), "{path} ({why})");
        }
    }
}

//! What is fuzzed: one module for each target, each with a function that takes bytes and panics if a promise
//! is broken.
//!
//! The programs below `fuzz_targets/` hand these functions to libFuzzer; the tests here call them with every
//! committed input, so that replaying needs neither libFuzzer nor a C++ compiler. A failing input that fuzzing
//! finds is kept in `regressions/TARGET/` and stays there after the bug is mended.
#![forbid(unsafe_code)]

pub mod commands;
pub mod descriptors;
pub mod features;
pub mod gdt_dump;
mod guest;
pub mod hypercall_page;
pub mod hypercalls;
pub mod image;
pub mod notes;
pub mod numbers;
pub mod page_tables;
pub mod payload;
pub mod xenstore;

/// A target: its name, which is also that of its program and its folders of inputs, and its body.
#[derive(Debug)]
pub struct Target {
    /// The name.
    pub name: &'static str,
    /// Checks one input.
    pub check: fn(&[u8]),
}

/// Every target, by name.
pub const TARGETS: &[Target] = &[
    Target { name: "commands", check: commands::check },
    Target { name: "descriptors", check: descriptors::check },
    Target { name: "features", check: features::check },
    Target { name: "gdt_dump", check: gdt_dump::check },
    Target { name: "hypercall_page", check: hypercall_page::check },
    Target { name: "hypercalls", check: hypercalls::check },
    Target { name: "image", check: image::check },
    Target { name: "notes", check: notes::check },
    Target { name: "numbers", check: numbers::check },
    Target { name: "page_tables", check: page_tables::check },
    Target { name: "payload", check: payload::check },
    Target { name: "xenstore", check: xenstore::check },
];

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;

    /// The files of a folder next to the manifest; none if the folder is missing, since git keeps no empty one.
    fn files(folder: &str) -> Vec<PathBuf> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let Ok(listing) = fs::read_dir(folder) else { return Vec::new() };
        let mut files: Vec<_> = listing.map(|file| file.unwrap().path()).collect();
        files.sort();
        files
    }

    #[test]
    fn every_committed_input_passes() {
        for target in TARGETS {
            let seeds = files(&format!("corpus/{}", target.name));
            assert!(!seeds.is_empty(), "{} has no seeds", target.name);
            for file in seeds.into_iter().chain(files(&format!("regressions/{}", target.name))) {
                // Printed with a failure only, and then the last line names the input.
                println!("{}", file.display());
                (target.check)(&fs::read(&file).unwrap());
            }
        }
    }

    #[test]
    fn every_target_has_a_program_and_every_program_a_target() {
        let programs: Vec<_> = files("fuzz_targets")
            .iter()
            .map(|file| file.file_stem().unwrap().to_str().unwrap().to_owned())
            .collect();
        let targets: Vec<_> = TARGETS.iter().map(|target| target.name).collect();

        assert_eq!(programs, targets);
    }

    #[test]
    fn an_input_folder_belongs_to_a_target() {
        for folder in files("corpus").into_iter().chain(files("regressions")) {
            let name = folder.file_name().unwrap().to_str().unwrap();
            assert!(TARGETS.iter().any(|target| target.name == name), "{}", folder.display());
        }
    }
}

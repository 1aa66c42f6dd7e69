//! Real kernels, which are fetched and not part of the repository.

use std::env;
use std::path::{Path, PathBuf};

/// The environment variable that names the directory with unpacked packages.
pub const VARIABLE: &str = "PARAVANE_TEST_DATA";

/// The kernel of a package, by the package's name and the start of the path within it, such as
/// `boot/vmlinuz-`. Of several the first by name.
///
/// # Panics
///
/// If the directory is not there or has no such file, with a message on how to get it. A test that needs a
/// real kernel must not pass without one.
pub fn kernel(package: &str, path_start: &str) -> PathBuf {
    let Some(root) = env::var_os(VARIABLE) else {
        panic!("{VARIABLE} is not set: run `cargo xtask test`, which fetches real kernels and sets it");
    };
    let start = Path::new(&root).join(package).join(path_start);
    let (directory, name) = (start.parent(), start.file_name().and_then(|name| name.to_str()));
    let mut found: Vec<PathBuf> = directory
        .zip(name)
        .and_then(|(directory, name)| Some((directory.read_dir().ok()?, name)))
        .into_iter()
        .flat_map(|(entries, name)| {
            entries.filter_map(Result::ok).map(|entry| entry.path()).filter(move |path| {
                path.file_name().and_then(|found| found.to_str()).is_some_and(|found| found.starts_with(name))
            })
        })
        .collect();
    found.sort();
    found.into_iter().next().unwrap_or_else(|| {
        panic!("no file {}*: run `cargo xtask test`, which fetches the package {package}", start.display())
    })
}

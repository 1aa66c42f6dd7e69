//! Rules for the manifests of the workspace's members: what is common is written once, in the root manifest.

use crate::tidy::{Document, Finding};

/// Keys of `[package]` that every member takes from the workspace.
const INHERITED: [&str; 5] = ["version", "edition", "rust-version", "license", "publish"];

/// Tables whose dependencies take their version from `[workspace.dependencies]`.
const DEPENDENCY_TABLES: [&str; 3] = ["dependencies", "dev-dependencies", "build-dependencies"];

/// Checks the manifest of every member: each but the root's and that of `fuzz`, which is another workspace.
pub(super) fn check(documents: &[Document]) -> Vec<Finding> {
    let members = documents
        .iter()
        .filter(|document| document.path.ends_with("/Cargo.toml") && !document.path.starts_with("fuzz/"));
    members.flat_map(check_one).collect()
}

fn check_one(document: &Document) -> Vec<Finding> {
    let manifest: toml::Table = match document.text.parse() {
        Ok(manifest) => manifest,
        Err(error) => return vec![Finding::new(&*document.path, format!("cannot be read: {error}"))],
    };
    let mut findings = Vec::new();
    let mut find = |what: String| findings.push(Finding::new(&*document.path, what));
    for key in INHERITED {
        if !is_inherited(manifest.get("package").and_then(|package| package.get(key))) {
            find(format!("[package] must say `{key}.workspace = true`"));
        }
    }
    if manifest.get("package").and_then(|package| package.get("description")).is_none() {
        find("[package] must have a description: one line that says what the crate is for".into());
    }
    if !is_inherited(manifest.get("lints")) {
        find("must have `[lints]` with `workspace = true`".into());
    }
    for table in DEPENDENCY_TABLES {
        for (name, dependency) in manifest.get(table).and_then(toml::Value::as_table).into_iter().flatten() {
            // A package that turns on a feature of its own for its tests names its own folder.
            let is_itself = dependency.get("path").and_then(toml::Value::as_str) == Some(".");
            if !is_itself && !is_inherited(Some(dependency)) {
                find(format!("[{table}] must take {name} from the workspace: `{name}.workspace = true`"));
            }
        }
    }
    findings
}

fn is_inherited(value: Option<&toml::Value>) -> bool {
    value.and_then(|value| value.get("workspace")).and_then(toml::Value::as_bool) == Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
[package]
name = "paravane-abi"
description = "Data"
version.workspace = true
edition.workspace = true
rust-version.workspace = true
license.workspace = true
publish.workspace = true

[dependencies]
serde.workspace = true
thiserror = { workspace = true, features = ["std"] }

[dev-dependencies]
paravane-abi = { path = ".", features = ["testing"] }

[lints]
workspace = true
"#;

    fn found(text: &str) -> Vec<String> {
        let document = Document { path: "crates/abi/Cargo.toml".into(), text: text.into() };
        check(&[document]).into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn a_manifest_that_inherits_everything_passes() {
        assert_eq!(found(GOOD), [""; 0]);
    }

    #[test]
    fn each_thing_that_is_not_inherited_is_found() {
        for (line, replacement, named) in [
            ("version.workspace = true", "version = \"1.0.0\"", "`version.workspace = true`"),
            ("license.workspace = true", "", "`license.workspace = true`"),
            ("description = \"Data\"", "", "description"),
            ("serde.workspace = true", "serde = \"1\"", "`serde.workspace = true`"),
            ("[lints]\nworkspace = true", "[lints.rust]\nunsafe_code = \"allow\"", "[lints]"),
        ] {
            let findings = found(&GOOD.replacen(line, replacement, 1));

            assert_eq!(findings.len(), 1, "{findings:?}");
            assert!(findings[0].contains(named), "{findings:?}");
        }
    }

    #[test]
    fn the_root_and_the_fuzz_workspace_have_rules_of_their_own() {
        for path in ["Cargo.toml", "fuzz/Cargo.toml"] {
            assert_eq!(check(&[Document { path: path.into(), text: "[workspace]\n".into() }]), []);
        }
    }
}

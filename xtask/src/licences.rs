//! Every dependency's licence, origin and number of versions, held to `deny.toml`.
//!
//! `deny.toml` is written for cargo-deny, which checks more (advisories, yanked versions) but has to be
//! installed. What can be told from `cargo metadata` alone is checked here, so that the file is enforced on
//! every machine. Packages for other platforms than the project's are not looked at.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, bail};
use serde::Deserialize;
use spdx::{Expression, Licensee};

use crate::metadata::{Metadata, Package};
use crate::repo::Repo;

/// The workspaces of this repository.
const MANIFESTS: [&str; 2] = ["Cargo.toml", "fuzz/Cargo.toml"];

/// The one registry that packages come from, as cargo names it.
const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// The part of `deny.toml` that is enforced here.
#[derive(Debug, Deserialize)]
struct Policy {
    licenses: Licences,
    bans: Bans,
}

#[derive(Debug, Deserialize)]
struct Licences {
    allow: Vec<String>,
    exceptions: Vec<Exception>,
}

/// Further licences for one crate.
#[derive(Debug, Deserialize)]
struct Exception {
    #[serde(rename = "crate")]
    name: String,
    allow: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Bans {
    skip: Vec<Skip>,
}

/// A crate that may be there beside another version of itself, as `NAME` or `NAME@VERSION`.
#[derive(Debug, Deserialize)]
struct Skip {
    #[serde(rename = "crate")]
    spec: String,
}

impl Skip {
    /// Whether this is about `package`; a version may be cut short, as in `syn@2`.
    fn covers(&self, package: &Package) -> bool {
        let (name, version) = self.spec.split_once('@').unwrap_or((&self.spec, ""));
        let rest = package.version.strip_prefix(version);
        name == package.name
            && rest.is_some_and(|rest| version.is_empty() || rest.is_empty() || rest.starts_with('.'))
    }
}

/// Checks the dependencies of both workspaces.
pub(crate) fn run(repo: &Repo) -> anyhow::Result<()> {
    let path = repo.path("deny.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("could not read {}", path.display()))?;
    let policy: Policy = toml::from_str(&text).context("deny.toml is not as expected")?;
    let mut findings = Vec::new();
    for manifest in MANIFESTS {
        let metadata = Metadata::of(repo, manifest)?;
        let found = policy.findings(&metadata.packages)?;
        findings.extend(found.into_iter().map(|finding| format!("{manifest}: {finding}")));
        println!("{manifest}: {} packages", metadata.packages.len());
    }
    for finding in &findings {
        println!("{finding}");
    }
    if !findings.is_empty() {
        bail!("{} dependencies are not as deny.toml wants them", findings.len());
    }
    Ok(())
}

impl Policy {
    fn findings(&self, packages: &[Package]) -> anyhow::Result<Vec<String>> {
        let mut findings = Vec::new();
        for package in packages {
            if let Some(what) = self.licence_finding(package)? {
                findings.push(format!("{} {}: {what}", package.name, package.version));
            }
            if let Some(source) = package.source.as_deref().filter(|source| *source != CRATES_IO) {
                findings.push(format!("{} {}: comes from {source}", package.name, package.version));
            }
        }
        findings.extend(self.duplicates(packages));
        Ok(findings)
    }

    fn licence_finding(&self, package: &Package) -> anyhow::Result<Option<String>> {
        let Some(text) = &package.license else {
            return Ok(Some("states no licence".to_owned()));
        };
        let Ok(expression) = Expression::parse_mode(text, spdx::ParseMode::LAX) else {
            return Ok(Some(format!("its licence {text:?} is no SPDX expression")));
        };
        let exceptions = self.licenses.exceptions.iter().filter(|exception| exception.name == package.name);
        let names = self.licenses.allow.iter().chain(exceptions.flat_map(|exception| &exception.allow));
        let allowed = names.map(|name| {
            Licensee::parse(name).with_context(|| format!("deny.toml: {name:?} is no SPDX licence"))
        });
        let allowed = allowed.collect::<anyhow::Result<Vec<_>>>()?;
        let passes = expression.evaluate(|wanted| allowed.iter().any(|licence| licence.satisfies(wanted)));
        Ok((!passes).then(|| format!("its licence {text} is not among those that deny.toml allows")))
    }

    fn duplicates(&self, packages: &[Package]) -> Vec<String> {
        let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        let is_skipped = |package: &&Package| self.bans.skip.iter().any(|skip| skip.covers(package));
        for package in packages.iter().filter(|package| !is_skipped(package)) {
            versions.entry(&package.name).or_default().push(&package.version);
        }
        let several = versions.iter().filter(|(_, versions)| versions.len() > 1);
        several
            .map(|(name, versions)| {
                format!(
                    "{name}: several versions, {}; unify them or give a reason in deny.toml",
                    versions.join(", ")
                )
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = r#"
[licenses]
allow = ["MIT", "Apache-2.0 WITH LLVM-exception"]
exceptions = [{ crate = "libfuzzer-sys", allow = ["NCSA"] }]
[bans]
multiple-versions = "deny"
skip = [{ crate = "old@1", reason = "its user has not moved on" }]
"#;

    fn package(name: &str, licence: Option<&str>, source: &str) -> Package {
        let json = serde_json::json!({
            "id": name, "name": name, "version": "1.0.0", "license": licence, "source": source,
            "dependencies": [], "targets": [],
        });
        serde_json::from_value(json).unwrap()
    }

    fn findings(packages: &[Package]) -> Vec<String> {
        toml::from_str::<Policy>(POLICY).unwrap().findings(packages).unwrap()
    }

    #[test]
    fn a_licence_passes_when_the_allowed_ones_satisfy_it() {
        for (name, licence, passes) in [
            ("a", Some("MIT"), true),
            ("a", Some("MIT OR GPL-3.0-only"), true),
            ("a", Some("MIT/GPL-3.0"), true),
            ("a", Some("Apache-2.0 WITH LLVM-exception OR Apache-2.0"), true),
            ("a", Some("MIT AND GPL-3.0-only"), false),
            ("a", Some("Apache-2.0"), false),
            ("a", Some("Do what you like"), false),
            ("a", None, false),
            ("libfuzzer-sys", Some("MIT AND NCSA"), true),
            ("another", Some("MIT AND NCSA"), false),
        ] {
            let found = findings(&[package(name, licence, CRATES_IO)]);
            assert_eq!(found.is_empty(), passes, "{name} {licence:?}: {found:?}");
        }
    }

    #[test]
    fn a_package_from_elsewhere_than_crates_io_is_found() {
        for source in ["git+https://example.org/x#abc", "registry+https://example.org/index"] {
            let found = findings(&[package("a", Some("MIT"), source)]);
            assert_eq!(found, [format!("a 1.0.0: comes from {source}")]);
        }
    }

    #[test]
    fn a_second_version_needs_a_reason() {
        for (name, versions, passes) in [
            ("new", ["1.0.0", "2.0.0"], false),
            ("old", ["1.9.0", "2.0.0"], true),
            ("old", ["10.0.0", "2.0.0"], false),
            ("old", ["2.0.0", "3.0.0"], false),
        ] {
            let packages = versions.map(|version| Package {
                version: version.to_owned(),
                ..package(name, Some("MIT"), CRATES_IO)
            });
            let found = findings(&packages);
            assert_eq!(found.is_empty(), passes, "{name} {versions:?}: {found:?}");
        }
    }
}

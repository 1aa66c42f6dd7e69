//! Which workspace crate may use which: edges run downward only.
//!
//! The table is the project's architecture in its shortest form; docs/architecture.md says why the cuts are
//! where they are. Development dependencies count too: a test that needs a higher crate belongs in that crate.

use crate::metadata::Metadata;
use crate::tidy::Finding;

/// A crate and the workspace crates it may use, lowest first. A crate uses only crates of earlier rows.
const MAY_USE: [(&str, &[&str]); 14] = [
    ("paravane-abi", &[]),
    ("paravane-x86", &["paravane-abi"]),
    ("paravane-memory", &["paravane-abi"]),
    ("paravane-engine", &["paravane-abi", "paravane-x86", "paravane-memory"]),
    ("paravane-builder", &["paravane-abi", "paravane-x86", "paravane-memory", "paravane-engine"]),
    ("paravane-hypervisor", &["paravane-abi", "paravane-x86", "paravane-memory", "paravane-engine"]),
    ("paravane-translate", &["paravane-abi", "paravane-x86", "paravane-memory", "paravane-engine"]),
    ("paravane-kvm", &["paravane-abi", "paravane-x86", "paravane-memory", "paravane-engine"]),
    ("paravane-devices", &["paravane-abi", "paravane-memory", "paravane-hypervisor"]),
    // What tests and the demo boot Linux with; the program itself does not contain it.
    ("paravane-initramfs", &[]),
    // Small kernels for tests, and what runs them; no other crate contains it either.
    (
        "paravane-minikernel",
        &[
            "paravane-abi",
            "paravane-x86",
            "paravane-memory",
            "paravane-engine",
            "paravane-builder",
            "paravane-hypervisor",
            "paravane-translate",
            "paravane-devices",
        ],
    ),
    // What the bench runs in guests.
    ("paravane-bench-guest", &[]),
    (
        "paravane",
        &[
            "paravane-abi",
            "paravane-x86",
            "paravane-memory",
            "paravane-engine",
            "paravane-builder",
            "paravane-hypervisor",
            "paravane-translate",
            "paravane-kvm",
            "paravane-devices",
            "paravane-initramfs",
            "paravane-minikernel",
        ],
    ),
    // Pages of the documentation are generated from the tables of the crates; the bench makes a kernel.
    (
        "xtask",
        &[
            "paravane-abi",
            "paravane-x86",
            "paravane-builder",
            "paravane-hypervisor",
            "paravane-translate",
            "paravane-initramfs",
            "paravane-bench-guest",
        ],
    ),
];

/// Checks every member's edges to other members against the table.
pub(super) fn check(metadata: &Metadata) -> Vec<Finding> {
    let names: Vec<&str> = metadata.members().map(|package| package.name.as_str()).collect();
    let mut findings = Vec::new();
    for package in metadata.members() {
        let place = format!("package {}", package.name);
        let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| *name == package.name) else {
            findings.push(Finding::new(place, "is not in the table of layers in xtask/src/tidy/layers.rs"));
            continue;
        };
        let used = package.dependencies.iter().map(|dependency| dependency.name.as_str());
        // A package may name itself: so its own tests turn on one of its features.
        let others = used.filter(|name| names.contains(name) && *name != package.name);
        for name in others.filter(|name| !allowed.contains(name)) {
            findings.push(Finding::new(&*place, format!("may not use {name}: it is not below it")));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::Repo;

    #[test]
    fn dependencies_between_the_crates_run_downward_only() {
        let metadata = Metadata::of(&Repo::find().unwrap(), "Cargo.toml").unwrap();

        assert!(metadata.members().count() >= 3, "cargo lists the members");
        assert_eq!(check(&metadata), []);
    }

    #[test]
    fn the_table_itself_runs_downward() {
        for (row, (name, uses)) in MAY_USE.iter().enumerate() {
            for used in *uses {
                let below = MAY_USE[..row].iter().any(|(lower, _)| lower == used);
                assert!(below, "{name} uses {used}, which is not in an earlier row");
            }
        }
    }

    /// Metadata of a workspace whose members are `packages`, each with its dependencies.
    fn workspace(packages: &[(&str, &[&str])]) -> Metadata {
        let package = |(name, uses): &(&str, &[&str])| {
            let dependencies: Vec<_> = uses.iter().map(|used| serde_json::json!({ "name": used })).collect();
            serde_json::json!({
                "id": name, "name": name, "version": "0", "targets": [],
                "dependencies": dependencies,
            })
        };
        let members: Vec<_> = packages.iter().map(|(name, _)| name).collect();
        let packages: Vec<_> = packages.iter().map(package).collect();
        let json = serde_json::json!({
            "packages": packages, "workspace_members": members, "target_directory": "/x/target",
        });
        Metadata::parse(&json.to_string()).unwrap()
    }

    #[test]
    fn an_edge_upward_or_sideways_is_found() {
        for (name, used) in [
            ("paravane-abi", "paravane-x86"),
            ("paravane-memory", "paravane-x86"),
            ("paravane-builder", "paravane-hypervisor"),
            ("paravane-translate", "paravane-hypervisor"),
            ("paravane-devices", "paravane-engine"),
        ] {
            let findings = check(&workspace(&[(name, &[used, "serde"]), (used, &[])]));

            assert_eq!(findings.len(), 1, "{findings:?}");
            assert!(findings[0].place.contains(name) && findings[0].what.contains(used), "{findings:?}");
        }
    }

    #[test]
    fn an_edge_downward_out_of_the_workspace_or_to_itself_is_allowed() {
        let metadata =
            workspace(&[("paravane-abi", &["serde", "paravane-abi"]), ("paravane-x86", &["paravane-abi"])]);

        assert_eq!(check(&metadata), []);
    }

    #[test]
    fn a_member_without_a_row_is_found() {
        let findings = check(&workspace(&[("paravane-surprise", &[])]));

        assert_eq!(findings.len(), 1);
        assert!(findings[0].what.contains("not in the table"), "{findings:?}");
    }
}

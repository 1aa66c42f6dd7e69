//! The system's own apt sources, read to find the address of its Debian mirror.
//!
//! The project names no mirror: whatever the machine uses for its own packages also serves the guests, with
//! another suite. Both formats of sources.list(5) are read, one-line entries and `.sources` stanzas.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail};

use crate::fetch::control::{self, Stanza};

/// Options of an entry that hold for its mirror whatever the suite: who signs, and what to overlook.
const MIRROR_OPTIONS: [&str; 5] =
    ["signed-by", "trusted", "check-valid-until", "allow-insecure", "allow-weak"];

/// One entry for binary packages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    uri: String,
    suites: Vec<String>,
    /// Those of `MIRROR_OPTIONS` that are set, in control format.
    options: Vec<(String, String)>,
}

impl Entry {
    /// An apt source, in control format, for one suite and architecture of this entry's mirror.
    pub(crate) fn source_for(&self, suite: &str, architecture: &str) -> String {
        // Only the package list: no translations, application metadata or file lists.
        let mut text = format!(
            "Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\nArchitectures: {architecture}\n\
             Targets: Packages\n",
            self.uri
        );
        for (name, value) in &self.options {
            text.push_str(&format!("{name}: {value}\n"));
        }
        text
    }
}

/// Reads all entries from a sources list and a folder of further ones, as `apt-config` names them.
pub(crate) fn read(list: &Path, parts: &Path) -> anyhow::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    if list.is_file() {
        entries.extend(one_line_entries(&text_of(list)?));
    }
    if parts.is_dir() {
        let listing = fs::read_dir(parts).with_context(|| format!("could not list {}", parts.display()))?;
        let mut files = listing.map(|file| Ok(file?.path())).collect::<std::io::Result<Vec<_>>>()?;
        files.sort();
        for file in files {
            match file.extension().and_then(|extension| extension.to_str()) {
                Some("list") => entries.extend(one_line_entries(&text_of(&file)?)),
                Some("sources") => entries.extend(stanza_entries(&text_of(&file)?)),
                Some(_) | None => {}
            }
        }
    }
    Ok(entries)
}

/// Finds the entry whose mirror carries `suite`.
///
/// Debian keeps security updates in an archive of their own, so the suite's kind decides. `codename` is the
/// running system's release: its entry is how the main archive is told from other vendors' archives.
pub(crate) fn mirror_of<'a>(entries: &'a [Entry], suite: &str, codename: &str) -> anyhow::Result<&'a Entry> {
    let is_security = |suite: &str| suite.ends_with("-security") || suite.ends_with("/updates");
    let is_main = |suite: &str| {
        let aliases = ["oldoldstable", "oldstable", "stable", "testing", "unstable", "sid"];
        suite == codename || aliases.contains(&suite)
    };
    let found = if is_security(suite) {
        entries.iter().find(|entry| entry.suites.iter().any(|suite| is_security(suite)))
    } else {
        entries.iter().find(|entry| entry.suites.iter().any(|suite| is_main(suite)))
    };
    let Some(entry) = found else {
        let kind = if is_security(suite) { "security" } else { "main" };
        bail!(
            "none of the system's {} apt sources is a mirror of Debian's {kind} archive; add one for \
             {codename} to the system's apt sources",
            entries.len()
        );
    };
    Ok(entry)
}

/// The release of the running system, from os-release(5).
pub(crate) fn system_codename() -> anyhow::Result<String> {
    let path = Path::new("/etc/os-release");
    codename_of(&text_of(path)?)
        .with_context(|| format!("{} names no VERSION_CODENAME; is this Debian?", path.display()))
}

fn codename_of(os_release: &str) -> Option<String> {
    let value = os_release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    Some(value.trim().trim_matches(['"', '\'']).to_owned()).filter(|name| !name.is_empty())
}

/// Reads one-line entries: `deb [name=value …] URI SUITE COMPONENT…`.
fn one_line_entries(text: &str) -> Vec<Entry> {
    text.lines().filter_map(one_line_entry).collect()
}

fn one_line_entry(line: &str) -> Option<Entry> {
    let line = line.split('#').next().unwrap_or_default().trim();
    let rest = line.strip_prefix("deb")?;
    let rest = rest.strip_prefix([' ', '\t'])?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(bracketed) => bracketed.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    let options = options.split_whitespace().filter_map(|option| option.split_once('='));
    let kept = options.filter(|(name, _)| MIRROR_OPTIONS.contains(&name.to_ascii_lowercase().as_str()));
    is_mirror(uri).then(|| Entry {
        uri: uri.to_owned(),
        suites: vec![suite.to_owned()],
        options: kept.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect(),
    })
}

/// Reads the stanzas of a `.sources` file; one with several addresses becomes several entries.
fn stanza_entries(text: &str) -> Vec<Entry> {
    control::parse(text).iter().flat_map(entries_of_stanza).collect()
}

fn entries_of_stanza(stanza: &Stanza) -> Vec<Entry> {
    let disabled = stanza.get("enabled").is_some_and(|value| matches!(value, "no" | "false" | "off" | "0"));
    if disabled || !stanza.words("types").iter().any(|kind| kind == "deb") {
        return Vec::new();
    }
    let options = MIRROR_OPTIONS.iter().filter_map(|name| Some(((*name).into(), stanza.get(name)?.into())));
    let options: Vec<(String, String)> = options.collect();
    let uris = stanza.words("uris").into_iter().filter(|uri| is_mirror(uri));
    uris.map(|uri| Entry { uri, suites: stanza.words("suites"), options: options.clone() }).collect()
}

/// Whether an address can carry other suites than the one it is listed with: a CD or a folder cannot.
fn is_mirror(uri: &str) -> bool {
    !uri.starts_with("cdrom:") && !uri.starts_with("file:") && !uri.starts_with("copy:")
}

fn text_of(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("could not read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCES: &str = "\
Types: deb deb-src
URIs: https://vendor.example/node
Suites: nodistro
Components: main

Types: deb
# a comment
URIs: https://mirror.example/debian
Suites: trixie trixie-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian.gpg

Types: deb
URIs: https://mirror.example/debian-security
Suites: trixie-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mDMEY
 -----END PGP PUBLIC KEY BLOCK-----

Enabled: no
Types: deb
URIs: https://disabled.example/debian
Suites: trixie

Types: deb-src
URIs: https://sources.example/debian
Suites: trixie
";

    const LIST: &str = "\
# deb https://commented.example/debian bookworm main
deb cdrom:[Debian]/ bookworm main
deb-src https://sources.example/debian bookworm main
deb [ arch=amd64 signed-by=/usr/share/keyrings/debian.gpg ] https://mirror.example/debian bookworm main # note
deb https://mirror.example/debian-security bookworm-security main
";

    #[test]
    fn a_suite_comes_from_the_mirror_of_the_systems_own_release() {
        let entries = stanza_entries(SOURCES);

        for suite in ["trixie", "bookworm", "bookworm-backports", "bullseye"] {
            assert_eq!(mirror_of(&entries, suite, "trixie").unwrap().uri, "https://mirror.example/debian");
        }
    }

    #[test]
    fn a_security_suite_comes_from_the_security_archive() {
        for (entries, codename) in [(stanza_entries(SOURCES), "trixie"), (one_line_entries(LIST), "bookworm")]
        {
            let entry = mirror_of(&entries, "bullseye-security", codename).unwrap();
            assert_eq!(entry.uri, "https://mirror.example/debian-security");
        }
    }

    #[test]
    fn a_source_for_another_suite_keeps_mirror_and_key() {
        let entries = one_line_entries(LIST);
        let source = mirror_of(&entries, "bullseye", "bookworm").unwrap().source_for("bullseye", "i386");

        let stanzas = control::parse(&source);
        assert_eq!(stanzas.len(), 1);
        for (field, value) in [
            ("types", "deb"),
            ("uris", "https://mirror.example/debian"),
            ("suites", "bullseye"),
            ("components", "main"),
            ("architectures", "i386"),
            ("signed-by", "/usr/share/keyrings/debian.gpg"),
        ] {
            assert_eq!(stanzas[0].get(field), Some(value), "{field}");
        }
    }

    #[test]
    fn a_key_written_into_the_entry_is_carried_over_whole() {
        let entries = stanza_entries(SOURCES);
        let entry = mirror_of(&entries, "trixie-security", "trixie").unwrap();

        let source = entry.source_for("trixie-security", "amd64");
        let key = control::parse(SOURCES)[2].get("signed-by").map(str::to_owned);
        assert_eq!(control::parse(&source)[0].get("signed-by").map(str::to_owned), key);
    }

    #[test]
    fn source_packages_disks_comments_and_disabled_entries_are_no_mirrors() {
        let uris = |entries: Vec<Entry>| entries.into_iter().map(|entry| entry.uri).collect::<Vec<_>>();

        assert_eq!(
            uris(one_line_entries(LIST)),
            ["https://mirror.example/debian", "https://mirror.example/debian-security"]
        );
        assert_eq!(
            uris(stanza_entries(SOURCES)),
            [
                "https://vendor.example/node",
                "https://mirror.example/debian",
                "https://mirror.example/debian-security"
            ]
        );
    }

    #[test]
    fn a_system_without_a_debian_mirror_is_told_what_to_add() {
        let entries = one_line_entries("deb https://vendor.example/node nodistro main\n");

        let error = mirror_of(&entries, "bullseye", "bookworm").unwrap_err().to_string();
        assert!(error.contains("Debian's main archive") && error.contains("add one for bookworm"), "{error}");
    }

    #[test]
    fn the_codename_is_read_with_and_without_quotes() {
        assert_eq!(codename_of("ID=debian\nVERSION_CODENAME=bookworm\n").as_deref(), Some("bookworm"));
        assert_eq!(codename_of("VERSION_CODENAME=\"trixie\"\n").as_deref(), Some("trixie"));
        assert_eq!(codename_of("ID=arch\nVERSION_CODENAME=\n"), None);
    }
}

//! The trials: which guest is run, how it is judged, and when.

/// A guest and how it is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Trial {
    /// What a person calls it.
    pub(super) name: &'static str,
    /// The package that holds it, as `cargo xtask fetch` takes it. Versions roll: apt says which is there.
    pub(super) request: &'static str,
    pub(super) kind: Kind,
    pub(super) when: When,
}

/// How a guest is tried and judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Linux boots with our initial ramdisk, which checks the guest from inside and powers off.
    Linux,
    /// Debian's installer starts, with its own kernel and userland, runs a command of ours, and powers off.
    Installer,
    /// PV-GRUB comes to its prompt and answers what is typed.
    GrubPrompt,
    /// PV-GRUB with this Linux in its memory disk unpacks it, replaces itself by it, and Linux passes its check.
    GrubStartsLinux,
}

impl Kind {
    /// What a passed trial proves.
    pub(super) fn proves(self) -> &'static str {
        match self {
            Self::Linux => "boots to userspace, passes every check from inside, powers off",
            Self::Installer => "starts the installer's userland, which tells what it should, powers off",
            Self::GrubPrompt => "comes to its prompt, answers each command, halts",
            Self::GrubStartsLinux => "unpacks Linux from its memory disk and becomes it; Linux as above",
        }
    }
}

/// When a trial is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    /// By `cargo xtask test` too, in its step `guests`.
    Always,
    /// By `cargo xtask guests` alone.
    Asked,
    /// By `cargo xtask test` too, but in its step `tests`: `crates/paravane/tests/boot.rs` boots it.
    InTests,
}

/// Every 64-bit PV guest that Debian's mirrors have, but for one: Debian 13's realtime kernel, 6.12 with `PREEMPT_RT`, which
/// starts its first process and from then on does nothing but send itself an event, on the port of its irq_work. That looks
/// like `rcu_read_unlock` asking for an irq_work at the end of each of them; whether it does so on real Xen is not known.
///
/// One Linux of each series and each form of its payload is tried always; the others differ in configuration, compiler
/// or age, and are tried when asked for.
pub(crate) const TRIALS: [Trial; 25] = [
    linux("Debian 12", "linux-image-amd64", When::InTests),
    linux("Debian 12, cloud", "linux-image-cloud-amd64", When::InTests),
    linux("Debian 12, realtime", "linux-image-rt-amd64", When::Asked),
    linux("Debian 12 backports", "linux-image-amd64@bookworm-backports", When::Always),
    linux("Debian 12 backports, cloud", "linux-image-cloud-amd64@bookworm-backports", When::Asked),
    linux("Debian 11", "linux-image-amd64@bullseye", When::Always),
    linux("Debian 11, cloud", "linux-image-cloud-amd64@bullseye", When::Asked),
    linux("Debian 11, realtime", "linux-image-rt-amd64@bullseye", When::Asked),
    linux("Debian 11 security", "linux-image-amd64@bullseye-security", When::Asked),
    linux("Debian 11 security, cloud", "linux-image-cloud-amd64@bullseye-security", When::Asked),
    linux("Debian 11 security, 6.1", "linux-image-6.1-amd64@bullseye-security", When::Asked),
    linux("Debian 13", "linux-image-amd64@trixie", When::Asked),
    linux("Debian 13, cloud", "linux-image-cloud-amd64@trixie", When::Asked),
    linux("Debian 13 backports", "linux-image-amd64@trixie-backports", When::Asked),
    linux("Debian 13 backports, cloud", "linux-image-cloud-amd64@trixie-backports", When::Asked),
    linux("Debian unstable", "linux-image-amd64@sid", When::Asked),
    installer("Installer of Debian 12", "debian-installer-12-netboot-amd64"),
    installer("Installer of Debian 13", "debian-installer-13-netboot-amd64@trixie"),
    grub("PV-GRUB of Debian 12", "grub-xen-host", When::Always),
    grub("PV-GRUB of Debian 11", "grub-xen-host@bullseye", When::Asked),
    grub("PV-GRUB of Debian 13", "grub-xen-host@trixie", When::Asked),
    grub("PV-GRUB of Debian unstable", "grub-xen-host@sid", When::Asked),
    chain("PV-GRUB, then Debian 11", "linux-image-amd64@bullseye", When::Always),
    chain("PV-GRUB, then Debian 11 security", "linux-image-amd64@bullseye-security", When::Asked),
    chain("PV-GRUB, then Debian 12", "linux-image-amd64", When::Asked),
];

const fn linux(name: &'static str, request: &'static str, when: When) -> Trial {
    Trial { name, request, kind: Kind::Linux, when }
}

const fn installer(name: &'static str, request: &'static str) -> Trial {
    Trial { name, request, kind: Kind::Installer, when: When::Asked }
}

const fn grub(name: &'static str, request: &'static str, when: When) -> Trial {
    Trial { name, request, kind: Kind::GrubPrompt, when }
}

const fn chain(name: &'static str, request: &'static str, when: When) -> Trial {
    Trial { name, request, kind: Kind::GrubStartsLinux, when }
}

impl Trial {
    /// The trials of the step `guests` of `cargo xtask test`.
    pub(super) fn always() -> Vec<Self> {
        TRIALS.into_iter().filter(|trial| trial.when == When::Always).collect()
    }

    /// Those whose name or request contains one of `words`, whatever the case; all if there is no word.
    ///
    /// # Errors
    ///
    /// If a word is in none of them.
    pub(super) fn chosen(words: &[String]) -> anyhow::Result<Vec<Self>> {
        let fits = |trial: &Self, word: &String| {
            let word = word.to_lowercase();
            trial.name.to_lowercase().contains(&word) || trial.request.contains(&word)
        };
        for word in words {
            anyhow::ensure!(
                TRIALS.iter().any(|trial| fits(trial, word)),
                "no guest is called like {word:?}; there are {}",
                TRIALS.map(|trial| trial.name).join("; ")
            );
        }
        let wanted = |trial: &Self| words.is_empty() || words.iter().any(|word| fits(trial, word));
        Ok(TRIALS.into_iter().filter(wanted).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::Request;
    use std::collections::BTreeSet;

    #[test]
    fn each_trial_has_a_name_of_its_own_and_a_request_in_its_shortest_spelling() {
        let names: BTreeSet<&str> = TRIALS.iter().map(|trial| trial.name).collect();
        assert_eq!(names.len(), TRIALS.len());
        for trial in TRIALS {
            let request: Request = trial.request.parse().unwrap();
            assert_eq!(request.to_string(), trial.request);
        }
    }

    #[test]
    fn every_kind_that_the_tests_have_time_for_is_tried_always() {
        let kinds = Trial::always();
        for kind in [Kind::Linux, Kind::GrubPrompt, Kind::GrubStartsLinux] {
            assert!(kinds.iter().any(|trial| trial.kind == kind), "{kind:?}");
        }
    }

    #[test]
    fn words_choose_trials_by_name_and_by_request() {
        let chosen = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
            Trial::chosen(&words)
        };
        assert_eq!(chosen(&[]).unwrap().len(), TRIALS.len());
        assert_eq!(chosen(&["UNSTABLE"]).unwrap().len(), 2);
        assert_eq!(chosen(&["grub-xen-host@trixie"]).unwrap()[0].name, "PV-GRUB of Debian 13");
        assert_eq!(chosen(&["realtime", "cloud"]).unwrap().len(), 8);
        let error = chosen(&["cloud", "netbsd"]).unwrap_err().to_string();
        assert!(error.contains("netbsd") && error.contains("Debian 12, cloud"), "{error}");
    }
}

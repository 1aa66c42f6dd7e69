//! Does it boot, as what, and if not, why not.

use core::fmt;

use paravane_abi::features::Feature;
use paravane_x86::mode::Guest;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use thiserror::Error;

use super::addresses::AddressFault;
use super::linux::Linux;
use super::metadata::{Metadata, Source};
use super::parameters::{PaeMode, Parameters};
use super::problem::Problem;

/// How `XEN_VERSION` must begin.
pub(super) const XEN_VERSION: &str = "xen-3.0";
/// How `LOADER` must begin, unless the kernel is Linux.
pub(super) const LOADER: &str = "generic";

/// How `GUEST_OS` begins of a kernel that needs no `LOADER`.
pub(super) const LINUX: &str = "linux";

/// As what a kernel boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Boot {
    /// As a 64-bit PV guest.
    Pv64,
    /// As a 32-bit PV guest with PAE.
    Pv32Pae,
    /// As a 32-bit PV guest without PAE, which no 64-bit Xen runs.
    Pv32NonPae,
    /// As a PVH guest only, which needs hardware virtualisation.
    PvhOnly,
    /// Not at all: the image describes itself to Xen, but not so that Xen loads it.
    Refused,
    /// Not at all: nothing in the image is meant for Xen.
    NotForXen,
}

impl Boot {
    /// Whether a 64-bit hypervisor can run it as a PV guest.
    pub fn is_runnable(self) -> bool {
        match self {
            Self::Pv64 | Self::Pv32Pae => true,
            Self::Pv32NonPae | Self::PvhOnly | Self::Refused | Self::NotForXen => false,
        }
    }
}

impl fmt::Display for Boot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pv64 => "boots as a 64-bit PV guest",
            Self::Pv32Pae => "boots as a 32-bit PAE PV guest",
            Self::Pv32NonPae => "is a 32-bit PV kernel without PAE, which no 64-bit Xen runs",
            Self::PvhOnly => "boots as a PVH guest only, not as a PV guest",
            Self::Refused => "describes itself to Xen, but cannot be loaded",
            Self::NotForXen => "is not made for Xen",
        })
    }
}

/// What stands between an image and a boot as a PV guest.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Reason {
    /// There is no description for Xen.
    #[error(
        "there are no ELF notes of owner Xen, neither in PT_NOTE segments nor in SHT_NOTE sections, \
         and no __xen_guest section"
    )]
    NoMetadata,
    /// Some of the description could not be read.
    #[error("some notes could not be read (see the problems); what is missing may be among them")]
    NotesLost,
    /// A value makes no sense, and so what it asks for is unknown.
    #[error("{note} has an unusable value: {reason}")]
    Unreadable {
        /// The note.
        note: paravane_abi::elfnote::ElfNote,
        /// What is wrong with the value.
        reason: String,
    },
    /// `XEN_VERSION` is absent.
    #[error("XEN_VERSION is missing; it must begin with \"{XEN_VERSION}\"")]
    XenVersionMissing,
    /// `XEN_VERSION` is another.
    #[error("XEN_VERSION is {found:?}; it must begin with \"{XEN_VERSION}\"")]
    XenVersionWrong {
        /// What it is.
        found: String,
    },
    /// `LOADER` is absent, and the kernel does not say that it is Linux.
    #[error("LOADER is missing; it must begin with \"{LOADER}\", as GUEST_OS does not begin with \"linux\"")]
    LoaderMissing,
    /// `LOADER` is another, and the kernel does not say that it is Linux.
    #[error(
        "LOADER is {found:?}; it must begin with \"{LOADER}\", as GUEST_OS does not begin with \"linux\""
    )]
    LoaderWrong {
        /// What it is.
        found: String,
    },
    /// A Linux whose notes come from its PVH support.
    #[error("the notes are Linux's, but ENTRY, the entry point of a PV start, is not among them")]
    LinuxWithoutPvEntry,
    /// The kernel demands to be the control domain.
    #[error("FEATURES requires dom0: the kernel runs only as the control domain")]
    RequiresDom0,
    /// The kernel demands what nobody knows.
    #[error("FEATURES requires what Xen does not know: {}", names.join(", "))]
    UnknownRequired {
        /// The names.
        names: Vec<String>,
    },
    /// The addresses contradict each other.
    #[error("{0}")]
    Address(AddressFault),
    /// The kernel wants two-level page tables.
    #[error("PAE_MODE does not say yes: the kernel is made for page tables without PAE")]
    WithoutPae,
}

/// A reason with advice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// What stands in the way.
    pub reason: Reason,
    /// What to do about it, where that is known.
    pub advice: Option<String>,
}

impl Serialize for Obstacle {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("text", &self.reason.to_string())?;
        map.serialize_entry("reason", &self.reason)?;
        map.serialize_entry("advice", &self.advice)?;
        map.end()
    }
}

/// The judgement on an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// As what the kernel boots.
    pub boot: Boot,
    /// Whether it boots as a PVH guest (perhaps too).
    pub pvh: bool,
    /// The judgement in one sentence.
    pub summary: String,
    /// What speaks for the kernel, in sentences. Empty if nothing does.
    pub grounds: Vec<String>,
    /// What keeps it from booting as a PV guest. Empty exactly if it boots as one.
    pub obstacles: Vec<Obstacle>,
}

/// All that a judgement rests on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case<'a> {
    pub(super) guest: Guest,
    pub(super) metadata: &'a Metadata,
    pub(super) parameters: &'a Parameters,
    pub(super) address_faults: &'a [AddressFault],
    /// The Linux that the file was recognised as by other means than its notes.
    pub(super) linux: Option<&'a Linux>,
}

impl Case<'_> {
    pub(super) fn judge(&self) -> Verdict {
        let reasons = self.reasons();
        let pvh = self.parameters.phys32_entry.is_some();
        let boot = match (reasons.as_slice(), self.guest) {
            ([], Guest::Bits64) => Boot::Pv64,
            ([], Guest::Bits32) => Boot::Pv32Pae,
            _ if self.parameters.source.is_none() => Boot::NotForXen,
            _ if pvh => Boot::PvhOnly,
            ([Reason::WithoutPae], Guest::Bits32) => Boot::Pv32NonPae,
            _ => Boot::Refused,
        };
        let also = if pvh && boot.is_runnable() { "; it boots as a PVH guest too" } else { "" };
        Verdict {
            boot,
            pvh,
            summary: format!("The kernel {boot}{also}."),
            grounds: self.grounds(),
            obstacles: reasons
                .into_iter()
                .map(|reason| Obstacle { advice: self.advice(&reason), reason })
                .collect(),
        }
    }

    fn reasons(&self) -> Vec<Reason> {
        let parameters = self.parameters;
        let Some(source) = parameters.source else {
            let lost = self.notes_lost().then_some(Reason::NotesLost);
            return [Reason::NoMetadata].into_iter().chain(lost).collect();
        };
        let mut reasons: Vec<Reason> = self.unreadable().collect();
        match parameters.xen_version.as_deref() {
            None => reasons.push(Reason::XenVersionMissing),
            Some(version) if version.starts_with(XEN_VERSION) => {}
            Some(found) => reasons.push(Reason::XenVersionWrong { found: found.to_owned() }),
        }
        match parameters.loader.as_deref() {
            _ if parameters.says_linux() => {}
            None => reasons.push(Reason::LoaderMissing),
            Some(loader) if loader.starts_with(LOADER) => {}
            Some(found) => reasons.push(Reason::LoaderWrong { found: found.to_owned() }),
        }
        let no_pv_entry =
            parameters.says_linux() && parameters.entry.is_none() && source != Source::LegacySection;
        if no_pv_entry {
            reasons.push(Reason::LinuxWithoutPvEntry);
        }
        if parameters.features.required.contains(Feature::Dom0) {
            reasons.push(Reason::RequiresDom0);
        }
        if !parameters.features.unknown_required.is_empty() {
            reasons.push(Reason::UnknownRequired { names: parameters.features.unknown_required.clone() });
        }
        reasons.extend(self.address_faults.iter().cloned().map(Reason::Address));
        if self.guest == Guest::Bits32 && parameters.pae_mode == PaeMode::No {
            reasons.push(Reason::WithoutPae);
        }
        if !reasons.is_empty() && self.notes_lost() {
            reasons.push(Reason::NotesLost);
        }
        reasons
    }

    fn unreadable(&self) -> impl Iterator<Item = Reason> {
        self.metadata.problems.iter().filter_map(|problem| {
            let Problem::Unreadable { note, reason } = problem else { return None };
            Some(Reason::Unreadable { note: *note, reason: reason.clone() })
        })
    }

    fn notes_lost(&self) -> bool {
        self.metadata.problems.iter().any(|problem| match problem {
            Problem::NotesOutside { .. }
            | Problem::HeaderCut { .. }
            | Problem::NoteCut { .. }
            | Problem::TooManyNotes { .. }
            | Problem::LegacyTooLong { .. } => true,
            Problem::Unreadable { .. } | Problem::InitP2mIgnored { .. } | Problem::NoSymbolTable(_) => false,
        })
    }

    fn grounds(&self) -> Vec<String> {
        let parameters = self.parameters;
        let mut grounds = Vec::new();
        if let Some(source) = parameters.source {
            grounds.push(format!("It describes itself to Xen by {source}."));
        }
        if let Some(version) = &parameters.xen_version {
            grounds.push(format!("It is built for the interface {version:?}."));
        }
        match (&parameters.loader, &parameters.guest_os) {
            (Some(loader), _) => grounds.push(format!("It is made for the loader {loader:?}.")),
            (None, Some(name)) if parameters.says_linux() => {
                grounds.push(format!("It is {name}, which needs no LOADER."));
            }
            (None, _) => {}
        }
        if parameters.source.is_some() {
            grounds.push(match self.guest {
                Guest::Bits64 => "It is a 64-bit ELF file.".to_owned(),
                Guest::Bits32 => format!("It is a 32-bit ELF file; page tables: {}.", parameters.pae_mode),
            });
        }
        if let Some(entry) = parameters.phys32_entry {
            grounds.push(format!("It has a PVH entry point, PHYS32_ENTRY {entry:#x}."));
        }
        grounds
    }

    /// What to do about `reason`.
    fn advice(&self, reason: &Reason) -> Option<String> {
        let is_linux = self.linux.is_some() || self.parameters.says_linux();
        let advice = match reason {
            Reason::NoMetadata if is_linux => self.linux_advice(),
            Reason::LinuxWithoutPvEntry => self.linux_advice(),
            Reason::NoMetadata => {
                "If the kernel has a Xen PV build, use that; notes that `strip` or `objcopy` removed can be \
                 had back from the unstripped file."
                    .to_owned()
            }
            Reason::WithoutPae if is_linux => {
                "Build Linux 5.8 or older with CONFIG_X86_PAE (and CONFIG_XEN), or use a 64-bit kernel."
                    .to_owned()
            }
            Reason::WithoutPae => "Use a build of the kernel with PAE, or a 64-bit one.".to_owned(),
            Reason::NotesLost => "The file may be cut short: fetch or build it again.".to_owned(),
            Reason::RequiresDom0 => "Use a build of the kernel for unprivileged domains.".to_owned(),
            Reason::UnknownRequired { .. }
            | Reason::Unreadable { .. }
            | Reason::XenVersionMissing
            | Reason::XenVersionWrong { .. }
            | Reason::LoaderMissing
            | Reason::LoaderWrong { .. }
            | Reason::Address(_) => return None,
        };
        Some(advice)
    }

    /// The configuration that a Linux without a PV entry lacks.
    fn linux_advice(&self) -> String {
        let version = self.linux.and_then(Linux::version);
        match (self.guest, version) {
            (Guest::Bits64, _) => {
                "This Linux was built without CONFIG_XEN_PV. Use a kernel whose configuration has \
                 CONFIG_XEN=y and CONFIG_XEN_PV=y."
            }
            (Guest::Bits32, Some(version)) if version < PV32_REMOVED => {
                "This Linux was built without Xen PV support. Use a 64-bit kernel, or build this one with \
                 CONFIG_X86_PAE=y, CONFIG_XEN=y and, where it is known, CONFIG_XEN_PV=y."
            }
            (Guest::Bits32, Some(_)) => {
                "32-bit Linux is no PV kernel since 5.9, which removed CONFIG_XEN_PV for 32 bits; notes that \
                 remain serve CONFIG_XEN_PVH. Use a 64-bit kernel, or a 32-bit one up to 5.8."
            }
            (Guest::Bits32, None) => {
                "32-bit Linux from 5.9 on is no PV kernel; up to 5.8 it needs CONFIG_X86_PAE=y and \
                 CONFIG_XEN=y and, where it is known, CONFIG_XEN_PV=y. Use a 64-bit kernel, or such a one."
            }
        }
        .to_owned()
    }
}

/// The version of Linux that removed 32-bit PV.
const PV32_REMOVED: (u32, u32) = (5, 9);

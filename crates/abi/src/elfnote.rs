//! ELF notes: how a kernel image tells the domain builder what it needs.
//!
//! A PV kernel carries notes of owner "Xen" in a `PT_NOTE` segment (or, failing that, in `SHT_NOTE`
//! sections). Kernels from before the notes carry one section `__xen_guest` instead: a NUL-terminated list
//! of `KEY=value` separated by commas. [`ElfNote`] is the table of the former, [`LEGACY_KEYS`] of the latter.
//!
//! Numeric notes may be 1, 2, 4 or 8 bytes wide; their width is the descriptor's size, not a property of
//! the note. Note types that the table lacks are skipped by the builder.
//!
//! Sources: `xen/include/public/elfnote.h`; `xen/common/libelf/libelf-dominfo.c` for what is read and how.

use serde::Serialize;

use crate::numbered;

/// The owner name of Xen's notes. On disk it is followed by a NUL, so `namesz` is 4.
pub const NOTE_OWNER: &str = "Xen";

/// The section in which kernels older than the notes keep the same facts as text.
pub const LEGACY_SECTION: &str = "__xen_guest";

/// The longest key that the builder reads from [`LEGACY_SECTION`], in bytes.
pub const LEGACY_KEY_MAX: usize = 31;

/// The longest value that the builder reads from [`LEGACY_SECTION`], in bytes.
pub const LEGACY_VALUE_MAX: usize = 127;

/// What the descriptor of a note holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoteValue {
    /// A NUL-terminated ASCII string.
    String,
    /// A guest virtual address.
    Address,
    /// A number used as an offset.
    Offset,
    /// A number of which only zero or non-zero matters.
    Flag,
    /// An array of 32-bit words; word `i` is the bitmap of feature submap `i`.
    FeatureWords,
    /// Pairs of (mask, value), each a 64-bit number.
    MaskValuePairs,
    /// Up to three 32-bit words: alignment, lowest and highest address.
    Relocation,
    /// A structure of another header; not read from a kernel image.
    Structure,
}

/// Where a note is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoteCarrier {
    /// A kernel image, for the domain builder.
    Image,
    /// A crash dump of the hypervisor.
    CrashDump,
    /// A core dump of a domain.
    CoreDump,
}

/// The columns of the note table beyond number, name and meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct NoteFacts {
    /// What the descriptor holds.
    pub value: NoteValue,
    /// Where the note is found.
    pub carrier: NoteCarrier,
    /// What the builder assumes when an image lacks the note.
    pub absent: &'static str,
}

use NoteCarrier::{CoreDump, CrashDump, Image};

numbered! {
    /// A note of owner "Xen", by its type number.
    pub enum ElfNote(u32), "xen/include/public/elfnote.h": NoteFacts;
    0 Info "INFO" "Free-form NAME=VALUE text; nothing reads it." {
        value: NoteValue::String, carrier: Image, absent: "nothing"
    }
    1 Entry "ENTRY" "Virtual address of the entry point." {
        value: NoteValue::Address, carrier: Image, absent: "e_entry of the ELF header"
    }
    2 HypercallPage "HYPERCALL_PAGE"
    "Virtual address of a page of the image that is filled with hypercall stubs before the start." {
        value: NoteValue::Address,
        carrier: Image,
        absent: "no page is installed; the guest asks by MSR or issues SYSCALL or INT 0x82 itself",
    }
    3 VirtBase "VIRT_BASE" "Virtual address at which pfn 0 appears in the initial mapping." {
        value: NoteValue::Address, carrier: Image, absent: "0"
    }
    4 PaddrOffset "PADDR_OFFSET"
    "What to subtract from the ELF p_paddr fields to obtain pseudo-physical addresses; needs VIRT_BASE." {
        value: NoteValue::Offset, carrier: Image, absent: "0"
    }
    5 XenVersion "XEN_VERSION" "The interface the kernel was built for; must start with \"xen-3.0\"." {
        value: NoteValue::String, carrier: Image, absent: "the image is refused"
    }
    6 GuestOs "GUEST_OS" "Name of the guest operating system, such as \"linux\"." {
        value: NoteValue::String, carrier: Image, absent: "no name; then LOADER must be \"generic\""
    }
    7 GuestVersion "GUEST_VERSION" "Version of the guest operating system, for people." {
        value: NoteValue::String, carrier: Image, absent: "nothing"
    }
    8 Loader "LOADER" "The loader the image is made for; must start with \"generic\"." {
        value: NoteValue::String,
        carrier: Image,
        absent: "the image is refused, unless GUEST_OS starts with \"linux\"",
    }
    9 PaeMode "PAE_MODE"
    "Page tables of a 32-bit kernel: \"yes\" is PAE with an L3 page anywhere, \"bimodal\" inside means either." {
        value: NoteValue::String, carrier: Image, absent: "no PAE"
    }
    10 Features "FEATURES"
    "Names of XENFEAT features separated by '|'; a leading '!' makes one required." {
        value: NoteValue::String, carrier: Image, absent: "no feature supported, none required"
    }
    11 BsdSymtab "BSD_SYMTAB" "\"yes\" asks for the ELF symbol table to be loaded after the kernel." {
        value: NoteValue::String, carrier: Image, absent: "no symbol table"
    }
    12 HvStartLow "HV_START_LOW"
    "The lowest virtual address at which the hypervisor's hole may begin." {
        value: NoteValue::Address, carrier: Image, absent: "the hole stays where it is by default"
    }
    13 L1MfnValid "L1_MFN_VALID"
    "How to tell that an L1 entry holds a machine frame: (entry & mask) == value for one of the pairs." {
        value: NoteValue::MaskValuePairs, carrier: Image, absent: "mask and value are the present bit"
    }
    14 SuspendCancel "SUSPEND_CANCEL"
    "Non-zero: the kernel understands that a suspend which returns 1 was cancelled." {
        value: NoteValue::Flag, carrier: Image, absent: "0"
    }
    15 InitP2m "INIT_P2M"
    "64-bit only: map the initial p2m list at this virtual address, outside the initial region." {
        value: NoteValue::Address, carrier: Image, absent: "the list lies inside the initial region"
    }
    16 ModStartPfn "MOD_START_PFN"
    "Non-zero: the ramdisk need not be mapped, and mod_start of start_info is then a frame number." {
        value: NoteValue::Flag, carrier: Image, absent: "0: the ramdisk is mapped"
    }
    17 SupportedFeatures "SUPPORTED_FEATURES"
    "Bitmaps of supported XENFEAT features, one word per submap; joined with FEATURES." {
        value: NoteValue::FeatureWords, carrier: Image, absent: "no feature beyond those of FEATURES"
    }
    18 Phys32Entry "PHYS32_ENTRY" "Physical entry point of a PVH start; a PV start ignores it." {
        value: NoteValue::Address, carrier: Image, absent: "no PVH start"
    }
    19 Phys32Reloc "PHYS32_RELOC"
    "PVH: the image may be moved; alignment, lowest and highest address follow. A PV start ignores it." {
        value: NoteValue::Relocation, carrier: Image, absent: "a PVH image is loaded where it says"
    }
    0x100_0001 CrashInfo "CRASH_INFO" "Facts about a crashed hypervisor, written by kexec." {
        value: NoteValue::Structure, carrier: CrashDump, absent: "nothing"
    }
    0x100_0002 CrashRegs "CRASH_REGS" "Registers of one CPU of a crashed hypervisor." {
        value: NoteValue::Structure, carrier: CrashDump, absent: "nothing"
    }
    0x200_0000 DumpcoreNone "DUMPCORE_NONE" "Marks a file as a core dump of a domain; it holds nothing." {
        value: NoteValue::Structure, carrier: CoreDump, absent: "nothing"
    }
    0x200_0001 DumpcoreHeader "DUMPCORE_HEADER" "Counts of vCPUs and pages of a core dump." {
        value: NoteValue::Structure, carrier: CoreDump, absent: "nothing"
    }
    0x200_0002 DumpcoreXenVersion "DUMPCORE_XEN_VERSION" "The Xen that the dumped domain ran on." {
        value: NoteValue::Structure, carrier: CoreDump, absent: "nothing"
    }
    0x200_0003 DumpcoreFormatVersion "DUMPCORE_FORMAT_VERSION" "Version of the core dump's format." {
        value: NoteValue::Structure, carrier: CoreDump, absent: "nothing"
    }
}

/// One key of the `__xen_guest` section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LegacyKey {
    /// The key, before the `=`.
    pub key: &'static str,
    /// The note that replaced it.
    pub note: ElfNote,
    /// How the value differs from the note's; empty if it does not.
    pub quirk: &'static str,
}

/// Every key that the builder understands in `__xen_guest`, in the order of the notes that replaced them.
///
/// The `FEATURES` list of the section must fit [`LEGACY_VALUE_MAX`] like every other value.
/// Source: `xen/common/libelf/libelf-dominfo.c`, `elf_xen_parse_guest_info`.
pub const LEGACY_KEYS: &[LegacyKey] = &[
    LegacyKey { key: "VIRT_ENTRY", note: ElfNote::Entry, quirk: "" },
    LegacyKey {
        key: "HYPERCALL_PAGE",
        note: ElfNote::HypercallPage,
        quirk: "a page index, not an address: the page is at VIRT_BASE + 4096 times the value",
    },
    LegacyKey { key: "VIRT_BASE", note: ElfNote::VirtBase, quirk: "" },
    LegacyKey {
        key: "ELF_PADDR_OFFSET",
        note: ElfNote::PaddrOffset,
        quirk: "when absent it equals VIRT_BASE, not 0",
    },
    LegacyKey { key: "XEN_VER", note: ElfNote::XenVersion, quirk: "" },
    LegacyKey { key: "GUEST_OS", note: ElfNote::GuestOs, quirk: "" },
    LegacyKey { key: "GUEST_VER", note: ElfNote::GuestVersion, quirk: "" },
    LegacyKey { key: "LOADER", note: ElfNote::Loader, quirk: "" },
    LegacyKey {
        key: "PAE",
        note: ElfNote::PaeMode,
        quirk: "\"yes\" means that the L3 page must lie below 4 GiB; only \"yes[extended-cr3]\" lifts that",
    },
    LegacyKey { key: "FEATURES", note: ElfNote::Features, quirk: "" },
    LegacyKey {
        key: "BSD_SYMTAB",
        note: ElfNote::BsdSymtab,
        quirk: "its presence counts, whatever the value",
    },
];

impl LegacyKey {
    /// The row of that key.
    pub fn from_key(key: &str) -> Option<&'static Self> {
        LEGACY_KEYS.iter().find(|row| row.key == key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::assert_well_formed;

    #[test]
    fn every_note_number_reads_back_as_itself() {
        assert_well_formed::<ElfNote>();
        assert_eq!(ElfNote::from_number(15), Some(ElfNote::InitP2m));
        assert_eq!(ElfNote::from_number(20), None);
        assert_eq!(ElfNote::from_name("HYPERCALL_PAGE"), Some(ElfNote::HypercallPage));
    }

    #[test]
    fn image_notes_are_numbered_without_a_gap() {
        let image: Vec<u32> = ElfNote::ALL
            .iter()
            .filter(|note| note.facts().carrier == Image)
            .map(|note| note.number())
            .collect();
        assert_eq!(image, (0..=19).collect::<Vec<_>>());
    }

    #[test]
    fn legacy_keys_follow_the_order_of_their_notes_and_fit_the_parser() {
        for pair in LEGACY_KEYS.windows(2) {
            assert!(pair[0].note < pair[1].note, "{pair:?}");
        }
        for row in LEGACY_KEYS {
            assert!(row.key.len() <= LEGACY_KEY_MAX);
            assert_eq!(LegacyKey::from_key(row.key), Some(row));
        }
        assert_eq!(LegacyKey::from_key("ENTRY"), None);
    }
}

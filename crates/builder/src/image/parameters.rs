//! What an image asks of its loader: its notes or legacy text, merged.

use core::fmt;

use paravane_abi::elfnote::ElfNote;
use paravane_abi::features::{self, FeatureList, FeatureSet};
use paravane_abi::units::{GuestVirt, PAGE_SHIFT};
use serde::Serialize;

use super::metadata::{Metadata, Source};
use super::value::{MaskedEntry, Relocation, Value};
use super::verdict::LINUX;

/// The page tables that a 32-bit kernel is made for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PaeMode {
    /// Two levels, as before PAE.
    #[default]
    No,
    /// PAE, with the L3 page below 4 GiB of machine memory. Only the legacy section can say so.
    Yes,
    /// PAE, with the L3 page anywhere.
    ExtendedCr3,
    /// PAE or two levels, as the hypervisor has it.
    Bimodal,
}

impl PaeMode {
    /// The meaning of a `PAE_MODE` note.
    pub fn from_note(text: &str) -> Self {
        if text.contains("bimodal") {
            Self::Bimodal
        } else if is_yes(text) {
            Self::ExtendedCr3
        } else {
            Self::No
        }
    }

    /// The meaning of the `PAE` key in the legacy section.
    pub fn from_legacy(text: &str) -> Self {
        if text == "yes[extended-cr3]" {
            Self::ExtendedCr3
        } else if text.starts_with("yes") {
            Self::Yes
        } else {
            Self::No
        }
    }
}

impl fmt::Display for PaeMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::No => "no PAE",
            Self::Yes => "PAE with the L3 page below 4 GiB",
            Self::ExtendedCr3 => "PAE",
            Self::Bimodal => "PAE or not, as the hypervisor has it",
        })
    }
}

/// Whether a note that is a switch is on.
pub(super) fn is_yes(text: &str) -> bool {
    text == "yes"
}

/// What an image asks of its loader. `None` stands for what it does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Parameters {
    /// Where all this was found; `None` if nowhere.
    pub source: Option<Source>,
    /// `ENTRY`.
    pub entry: Option<GuestVirt>,
    /// `HYPERCALL_PAGE`, as an address also where the legacy section gives an index.
    pub hypercall_page: Option<GuestVirt>,
    /// `VIRT_BASE`.
    pub virt_base: Option<GuestVirt>,
    /// `PADDR_OFFSET`, in bytes.
    pub paddr_offset: Option<u64>,
    /// `XEN_VERSION`.
    pub xen_version: Option<String>,
    /// `GUEST_OS`.
    pub guest_os: Option<String>,
    /// `GUEST_VERSION`.
    pub guest_version: Option<String>,
    /// `LOADER`.
    pub loader: Option<String>,
    /// `PAE_MODE`. Without effect in a 64-bit kernel.
    pub pae_mode: PaeMode,
    /// `FEATURES` and `SUPPORTED_FEATURES` together.
    pub features: FeatureList,
    /// `BSD_SYMTAB`: the symbol table is to be loaded behind the kernel.
    pub bsd_symtab: bool,
    /// `HV_START_LOW`.
    pub hv_start_low: Option<GuestVirt>,
    /// `L1_MFN_VALID`. Empty if absent.
    pub l1_mfn_valid: Vec<MaskedEntry>,
    /// `SUSPEND_CANCEL`.
    pub suspend_cancel: bool,
    /// `INIT_P2M`, as the image has it. See [`Addresses`](super::addresses::Addresses) for its use.
    pub init_p2m: Option<GuestVirt>,
    /// `MOD_START_PFN`: the ramdisk need not be mapped, and `start_info` gives its frame number.
    pub mod_start_pfn: bool,
    /// `PHYS32_ENTRY`: the physical entry point of a PVH start.
    pub phys32_entry: Option<u64>,
    /// `PHYS32_RELOC`.
    pub phys32_reloc: Option<Relocation>,
}

impl Parameters {
    /// Merges the entries of `metadata`. Where a note is given twice the last one counts; features add up.
    pub(super) fn new(metadata: &Metadata) -> Self {
        let mut parameters = Self { source: metadata.source, ..Self::default() };
        for (note, value) in metadata.entries() {
            parameters.set(note, value);
        }
        if let Some(index) = metadata.entries().filter_map(|(_, value)| value.as_page_index()).last() {
            let base = parameters.virt_base.unwrap_or(GuestVirt(0));
            // Wraps as in Xen; an address outside the kernel is refused when the addresses are checked.
            parameters.hypercall_page = Some(base.wrapping_add(index << PAGE_SHIFT));
        }
        parameters
    }

    /// Takes one entry. An unreadable value leaves the field empty.
    fn set(&mut self, note: ElfNote, value: &Value) {
        let legacy = self.source == Some(Source::LegacySection);
        let text = || value.as_text().map(str::to_owned);
        let is_set = || value.as_number().is_some_and(|flag| flag != 0);
        match note {
            ElfNote::Entry => self.entry = value.as_address(),
            ElfNote::HypercallPage => self.hypercall_page = value.as_address(),
            ElfNote::VirtBase => self.virt_base = value.as_address(),
            ElfNote::PaddrOffset => self.paddr_offset = value.as_number(),
            ElfNote::XenVersion => self.xen_version = text(),
            ElfNote::GuestOs => self.guest_os = text(),
            ElfNote::GuestVersion => self.guest_version = text(),
            ElfNote::Loader => self.loader = text(),
            ElfNote::PaeMode => {
                let meaning = if legacy { PaeMode::from_legacy } else { PaeMode::from_note };
                self.pae_mode = value.as_text().map_or(PaeMode::No, meaning);
            }
            ElfNote::Features => self.add_features(features::parse(value.as_text().unwrap_or_default())),
            // In the legacy section the key alone is enough.
            ElfNote::BsdSymtab => self.bsd_symtab |= legacy || value.as_text().is_some_and(is_yes),
            ElfNote::HvStartLow => self.hv_start_low = value.as_address(),
            ElfNote::L1MfnValid => self.l1_mfn_valid = value.as_masked_entries().to_vec(),
            ElfNote::SuspendCancel => self.suspend_cancel = is_set(),
            ElfNote::InitP2m => self.init_p2m = value.as_address(),
            ElfNote::ModStartPfn => self.mod_start_pfn = is_set(),
            ElfNote::SupportedFeatures => self.add_features(FeatureList {
                supported: FeatureSet::from_bits(value.as_words().first().copied().unwrap_or(0)),
                ..FeatureList::default()
            }),
            ElfNote::Phys32Entry => self.phys32_entry = value.as_number(),
            ElfNote::Phys32Reloc => self.phys32_reloc = value.as_relocation(),
            ElfNote::Info
            | ElfNote::CrashInfo
            | ElfNote::CrashRegs
            | ElfNote::DumpcoreNone
            | ElfNote::DumpcoreHeader
            | ElfNote::DumpcoreXenVersion
            | ElfNote::DumpcoreFormatVersion => {}
        }
    }

    /// Whether the kernel says that it is Linux.
    pub fn says_linux(&self) -> bool {
        self.guest_os.as_deref().is_some_and(|name| name.starts_with(LINUX))
    }

    fn add_features(&mut self, list: FeatureList) {
        let features = &mut self.features;
        features.supported = features.supported.union(list.supported);
        features.required = features.required.union(list.required);
        features.unknown_optional.extend(list.unknown_optional);
        features.unknown_required.extend(list.unknown_required);
    }
}

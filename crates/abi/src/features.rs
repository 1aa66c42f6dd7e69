//! Features: what a kernel and a hypervisor tell each other that they can do.
//!
//! The same bit numbers serve two purposes. A kernel image lists the features it *supports* or *requires*
//! ([`parse`] for the `FEATURES` string, bitmaps for the `SUPPORTED_FEATURES` note), and the builder checks
//! the list against itself and the kind of domain. A running guest asks the hypervisor which features it
//! *offers*, by `xen_version(XENVER_get_features)`, one 32-bit submap at a time; only submap 0 exists.
//!
//! Sources: `xen/include/public/features.h`; the names that the string may hold are those of
//! `xen/common/libelf/libelf-dominfo.c`; what is reported comes from `XENVER_get_features` in
//! `xen/common/kernel.c`.

use core::fmt;

use serde::Serialize;

use crate::numbered;

/// The number of 32-bit submaps; `xen_version(get_features)` refuses any other index with `EINVAL`.
pub const SUBMAPS: u32 = 1;

/// Whether `xen_version(get_features)` shows the bit to an unprivileged PV domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reported {
    /// To every PV domain.
    Yes,
    /// To every PV domain, by releases newer than 4.17.
    RecentlyYes,
    /// Only while `vm_assist` type `pae_extended_cr3` is enabled.
    WithExtendedCr3,
    /// Only to the control or hardware domain.
    Dom0,
    /// Only to domains with hardware-assisted paging.
    Translated,
    /// Never on x86.
    No,
}

/// The columns of the feature table beyond bit, name and meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct FeatureFacts {
    /// Whether the builder knows the name in a `FEATURES` string. A bit of the `SUPPORTED_FEATURES` note
    /// needs no name, so any may appear there.
    pub in_string: bool,
    /// Whether a PV guest sees the bit.
    pub reported: Reported,
    /// What Linux makes of the bit's absence, where it matters; empty otherwise.
    pub linux: &'static str,
}

numbered! {
    /// A feature, by its bit number in submap 0.
    pub enum Feature(u32), "xen/include/public/features.h": FeatureFacts;
    0 WritablePageTables "writable_page_tables"
    "The guest need not write-protect its page tables and may store to them." {
        in_string: true, reported: Reported::Translated, linux: ""
    }
    1 WritableDescriptorTables "writable_descriptor_tables"
    "The guest need not write-protect its descriptor tables and may store to them." {
        in_string: true, reported: Reported::No, linux: ""
    }
    2 AutoTranslatedPhysmap "auto_translated_physmap"
    "The hypervisor translates pseudo-physical to machine frames; page tables hold the former." {
        in_string: true, reported: Reported::Translated, linux: ""
    }
    3 SupervisorModeKernel "supervisor_mode_kernel" "The guest kernel runs in ring 0." {
        in_string: true, reported: Reported::No, linux: ""
    }
    4 PaePgdirAbove4gb "pae_pgdir_above_4gb"
    "A 32-bit guest may keep its PAE L3 page above 4 GiB of machine memory." {
        in_string: true, reported: Reported::WithExtendedCr3, linux: ""
    }
    5 MmuPtUpdatePreserveAd "mmu_pt_update_preserve_ad"
    "mmu_update has the command that keeps the accessed and dirty bits." {
        in_string: false, reported: Reported::Yes, linux: "panics without it"
    }
    6 HighmemAssist "highmem_assist" "mmuext_op has CLEAR_PAGE and COPY_PAGE." {
        in_string: false, reported: Reported::Yes, linux: ""
    }
    7 GnttabMapAvailBits "gnttab_map_avail_bits"
    "map_grant_ref places flags into the available bits of the page-table entry." {
        in_string: false, reported: Reported::Yes, linux: "panics without it"
    }
    8 HvmCallbackVector "hvm_callback_vector" "HVM: an event upcall may use an interrupt vector." {
        in_string: true, reported: Reported::Translated, linux: ""
    }
    9 HvmSafePvclock "hvm_safe_pvclock" "HVM: the pvclock algorithm is safe to use." {
        in_string: false, reported: Reported::Translated, linux: ""
    }
    10 HvmPirqs "hvm_pirqs" "HVM: physical interrupts may be event channels." {
        in_string: false, reported: Reported::Translated, linux: ""
    }
    11 Dom0 "dom0" "The kernel can be the control domain." {
        in_string: true, reported: Reported::Dom0, linux: ""
    }
    12 GrantMapIdentity "grant_map_identity"
    "Withdrawn: grants were also mapped at the pseudo-physical frame equal to the machine frame." {
        in_string: false, reported: Reported::No, linux: ""
    }
    13 MemoryOpVnodeSupported "memory_op_vnode_supported"
    "memory_op takes a virtual NUMA node in its flags." {
        in_string: false, reported: Reported::Yes, linux: ""
    }
    14 ArmSmcccSupported "ARM_SMCCC_supported" "Arm: the SMC calling convention is supported." {
        in_string: false, reported: Reported::No, linux: ""
    }
    15 LinuxRsdpUnrestricted "linux_rsdp_unrestricted"
    "PVH: the ACPI root pointer may lie anywhere." {
        in_string: false, reported: Reported::No, linux: ""
    }
    16 NotDirectMapped "not_direct_mapped"
    "Pseudo-physical frames of the domain differ from its machine frames, hidden by translation." {
        in_string: false, reported: Reported::Translated, linux: ""
    }
    17 DirectMapped "direct_mapped"
    "The frames that the domain's page tables hold are machine frames; so for every PV domain." {
        in_string: false, reported: Reported::Yes, linux: ""
    }
    18 RunstatePhysArea "runstate_phys_area" "vcpu_op has register_runstate_phys_area." {
        in_string: false, reported: Reported::RecentlyYes, linux: ""
    }
    19 VcpuTimePhysArea "vcpu_time_phys_area" "vcpu_op has register_vcpu_time_phys_area." {
        in_string: false, reported: Reported::RecentlyYes, linux: ""
    }
    20 DmMsixAllWrites "dm_msix_all_writes"
    "Device models see every write to an MSI-X vector's control word." {
        in_string: false, reported: Reported::RecentlyYes, linux: ""
    }
}

/// A set of features: the bits of submap 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FeatureSet(u32);

impl FeatureSet {
    /// The set of the given bits. Bits without a name are kept; see [`Self::unnamed`].
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The set of the given members.
    pub fn of(features: &[Feature]) -> Self {
        Self(features.iter().fold(0, |bits, feature| bits | mask(*feature)))
    }

    /// The bits of submap 0.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether the set holds `feature`.
    pub const fn contains(self, feature: Feature) -> bool {
        self.0 & mask(feature) != 0
    }

    /// Adds `feature`.
    pub const fn insert(&mut self, feature: Feature) {
        self.0 |= mask(feature);
    }

    /// The members of both sets.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The members of `self` that `other` lacks.
    pub const fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether no bit is set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The named members, in the order of their bits.
    pub fn iter(self) -> impl Iterator<Item = Feature> {
        Feature::ALL.iter().copied().filter(move |&feature| self.contains(feature))
    }

    /// The bits that [`Feature`] has no name for.
    pub fn unnamed(self) -> u32 {
        self.difference(Self::of(Feature::ALL)).bits()
    }
}

impl fmt::Display for FeatureSet {
    /// The names joined by `|`, as a `FEATURES` string writes them; unnamed bits follow as one hex number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for feature in self.iter() {
            write!(f, "{separator}{feature}")?;
            separator = "|";
        }
        match self.unnamed() {
            0 => Ok(()),
            bits => write!(f, "{separator}{bits:#x}"),
        }
    }
}

impl Serialize for FeatureSet {
    /// The list of names. Unnamed bits are left out: the note that held them is printed beside it.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

/// What a `FEATURES` string says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FeatureList {
    /// The features the kernel can work with; a required one is also supported.
    pub supported: FeatureSet,
    /// The features the kernel cannot do without (a leading `!`).
    pub required: FeatureSet,
    /// Names the builder does not know, without `!`. Harmless.
    pub unknown_optional: Vec<String>,
    /// Names after `!` that the builder does not know. It refuses such an image.
    pub unknown_required: Vec<String>,
}

/// Reads a `FEATURES` string: names separated by `|`, each optionally led by `!`.
///
/// An empty element is ignored, as Xen does; a `!` with nothing behind it is a required name that nobody
/// knows. Xen's own parser cuts an element at 63 bytes and goes on with the rest as the next one; no name
/// is that long, so here such an element is simply unknown.
///
/// ```
/// use paravane_abi::features::{Feature, parse};
///
/// let list = parse("!writable_page_tables|pae_pgdir_above_4gb|no_such_thing");
/// assert!(list.required.contains(Feature::WritablePageTables));
/// assert!(list.supported.contains(Feature::PaePgdirAbove4gb));
/// assert_eq!(list.unknown_optional, ["no_such_thing"]);
/// ```
pub fn parse(text: &str) -> FeatureList {
    let mut list = FeatureList::default();
    for element in text.split('|').filter(|element| !element.is_empty()) {
        let required = element.strip_prefix('!');
        let name = required.unwrap_or(element);
        match Feature::from_name(name).filter(|feature| feature.facts().in_string) {
            Some(feature) => {
                list.supported.insert(feature);
                if required.is_some() {
                    list.required.insert(feature);
                }
            }
            None if required.is_some() => list.unknown_required.push(name.to_owned()),
            None => list.unknown_optional.push(name.to_owned()),
        }
    }
    list
}

/// The feature's bit in submap 0.
const fn mask(feature: Feature) -> u32 {
    1 << feature.number()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::table::assert_well_formed;

    #[test]
    fn every_feature_bit_reads_back_as_itself() {
        assert_well_formed::<Feature>();
        assert_eq!(Feature::from_number(21), None);
    }

    #[test]
    fn the_string_knows_seven_names() {
        let known: Vec<u32> = Feature::ALL
            .iter()
            .filter(|feature| feature.facts().in_string)
            .map(|feature| feature.number())
            .collect();
        assert_eq!(known, [0, 1, 2, 3, 4, 8, 11]);
    }

    #[test]
    fn a_plain_pv_domain_sees_these_bits() {
        let seen = |wanted: &[Reported]| {
            FeatureSet::of(
                &Feature::ALL
                    .iter()
                    .copied()
                    .filter(|feature| wanted.contains(&feature.facts().reported))
                    .collect::<Vec<_>>(),
            )
            .bits()
        };
        assert_eq!(seen(&[Reported::Yes, Reported::RecentlyYes]), 0x001e_20e0);
        assert_eq!(seen(&[Reported::WithExtendedCr3]), 1 << 4);
    }

    #[test]
    fn required_features_are_supported_too() {
        let list = parse("!writable_page_tables|pae_pgdir_above_4gb");
        assert_eq!(list.required, FeatureSet::of(&[Feature::WritablePageTables]));
        assert_eq!(list.supported, FeatureSet::of(&[Feature::WritablePageTables, Feature::PaePgdirAbove4gb]));
        assert!(list.unknown_optional.is_empty() && list.unknown_required.is_empty());
    }

    #[test]
    fn a_name_the_builder_does_not_know_is_refused_only_when_required() {
        // Bit 5 has a name, but no image may ask for it by string.
        let list = parse("highmem_assist||!mmu_pt_update_preserve_ad|!");
        assert!(list.supported.is_empty());
        assert_eq!(list.unknown_optional, ["highmem_assist"]);
        assert_eq!(list.unknown_required, ["mmu_pt_update_preserve_ad", ""]);
    }

    proptest! {
        #[test]
        fn a_set_of_string_features_prints_as_a_string_that_parses_back(bits in any::<u32>()) {
            let named: Vec<Feature> =
                FeatureSet::from_bits(bits).iter().filter(|feature| feature.facts().in_string).collect();
            let set = FeatureSet::of(&named);
            prop_assert_eq!(parse(&set.to_string()).supported, set);
        }

        #[test]
        fn any_text_parses(text in any::<String>()) {
            let list = parse(&text);
            prop_assert!(list.required.difference(list.supported).is_empty());
        }
    }
}

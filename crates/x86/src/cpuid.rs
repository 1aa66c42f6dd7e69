//! CPUID as a PV guest sees it.
//!
//! CPUID does not fault in ring 3, unless the CPU has CPUID faulting and the hypervisor turns it on. So a PV
//! guest can execute it in two ways. Plain CPUID gives the hypervisor's policy where it faults, and otherwise
//! the bare CPU's values, with a few masked. CPUID behind the forced-emulation prefix ([`EMULATE_PREFIX`]) always
//! gives the policy: the prefix begins with UD2A, and the handler of #UD knows it.
//!
//! The hypervisor shows itself in leaves from 0x40000000 on ([`HYPERVISOR_LEAVES`]), and hides what a PV guest
//! cannot use ([`HIDDEN`]).
//!
//! Sources: `xen/include/public/arch-x86/cpuid.h`, `xen/include/public/arch-x86/cpufeatureset.h` (the letter
//! before each feature says who may have it), `xen/arch/x86/cpu-policy.c`, `xen/arch/x86/traps.c`.

use serde::Serialize;

/// UD2A and the letters "xen": force the emulation of the instruction that follows.
pub const EMULATE_PREFIX: [u8; 5] = [0x0f, 0x0b, b'x', b'e', b'n'];

/// CPUID itself, the only instruction that may follow the prefix. Both together are 7 bytes.
pub const CPUID: [u8; 2] = [0x0f, 0xa2];

/// The first leaf of the hypervisor, unless another interface sits there.
pub const FIRST_LEAF: u32 = 0x4000_0000;
/// Where the base may be instead: further up in steps of this, below [`LAST_BASE`].
pub const BASE_STEP: u32 = 0x100;
/// The end of the search for the base.
pub const LAST_BASE: u32 = 0x4001_0000;

/// "XenVMMXenVMM", in EBX, ECX and EDX of the first leaf.
pub const SIGNATURE: [u32; 3] = [0x566e_6558, 0x6558_4d4d, 0x4d4d_566e];

/// Leaves after the first one.
pub const MAX_LEAF: u32 = 5;

/// Leaf +2, ECX: `mmu_update` can keep the accessed and dirty bits.
pub const FEATURE_MMU_PT_UPDATE_PRESERVE_AD: u32 = 1;

/// Leaf +3 sub-leaf 0, EAX: RDTSC is emulated.
pub const TSC_EMULATED: u32 = 1;
/// Leaf +3 sub-leaf 0, EAX: the host's TSC is reliable.
pub const TSC_HOST_RELIABLE: u32 = 2;
/// Leaf +3 sub-leaf 0, EAX: RDTSCP exists.
pub const TSC_RDTSCP: u32 = 4;

/// The widest machine address, in bits, for which Linux uses version 1 of the grant table: leaf +5, EBX.
pub const GRANT_V1_ADDRESS_BITS: u32 = 44;

/// A leaf of the hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct HypervisorLeaf {
    /// The leaf, counted from the base.
    pub leaf: u32,
    /// The sub-leaf (ECX), where the leaf has any.
    pub subleaf: Option<u32>,
    /// What it tells.
    pub meaning: &'static str,
    /// EAX.
    pub eax: &'static str,
    /// EBX.
    pub ebx: &'static str,
    /// ECX.
    pub ecx: &'static str,
    /// EDX.
    pub edx: &'static str,
}

/// The leaves of the hypervisor, for a PV guest.
pub const HYPERVISOR_LEAVES: [HypervisorLeaf; 8] = [
    HypervisorLeaf {
        leaf: 0,
        subleaf: None,
        meaning: "Signature",
        eax: "the last leaf: base + 5",
        ebx: "\"XenV\"",
        ecx: "\"MMXe\"",
        edx: "\"nVMM\"",
    },
    HypervisorLeaf {
        leaf: 1,
        subleaf: None,
        meaning: "Version",
        eax: "major << 16 | minor",
        ebx: "0",
        ecx: "0",
        edx: "0",
    },
    HypervisorLeaf {
        leaf: 2,
        subleaf: None,
        meaning: "Hypercall page and features",
        eax: "pages: 1",
        ebx: "the MSR that fills it: 0x40000000",
        ecx: "bit 0: mmu_update can keep accessed and dirty bits; set for PV guests",
        edx: "0",
    },
    HypervisorLeaf {
        leaf: 3,
        subleaf: Some(0),
        meaning: "Time-stamp counter",
        eax: "bit 0: emulated; bit 1: the host's is reliable; bit 2: RDTSCP exists",
        ebx: "mode: 0 emulate if needed, 1 always, 2 never, 3 never, with TSC_AUX",
        ecx: "the guest's frequency in kHz",
        edx: "incarnation, which counts migrations",
    },
    HypervisorLeaf {
        leaf: 3,
        subleaf: Some(1),
        meaning: "Conversion of the time-stamp counter",
        eax: "offset, low half",
        ebx: "offset, high half",
        ecx: "multiplier to nanoseconds",
        edx: "shift",
    },
    HypervisorLeaf {
        leaf: 3,
        subleaf: Some(2),
        meaning: "Host's time-stamp counter",
        eax: "the host's frequency in kHz",
        ebx: "0",
        ecx: "0",
        edx: "0",
    },
    HypervisorLeaf {
        leaf: 4,
        subleaf: Some(0),
        meaning: "HVM features",
        eax: "0 for PV guests",
        ebx: "0",
        ecx: "0",
        edx: "0",
    },
    HypervisorLeaf {
        leaf: 5,
        subleaf: Some(0),
        meaning: "PV parameters",
        eax: "the last sub-leaf: 0",
        ebx: "bits 7..0: width of machine addresses; beyond 44 Linux takes grant table version 2",
        ecx: "0",
        edx: "0",
    },
];

/// A register that CPUID writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Output {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

/// From whom a feature is hidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HiddenFrom {
    /// Every PV guest.
    All,
    /// 32-bit ones.
    Bits32,
}

/// A feature that a PV guest is not shown, whatever the CPU has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct HiddenFeature {
    /// Its name in Xen's header.
    pub name: &'static str,
    /// The leaf.
    pub leaf: u32,
    /// The sub-leaf; 0 where the leaf has none.
    pub subleaf: u32,
    /// The register.
    pub output: Output,
    /// The bit.
    pub bit: u8,
    /// From whom.
    pub from: HiddenFrom,
    /// Why.
    pub reason: &'static str,
}

/// A feature hidden from every PV guest.
const fn hidden(
    name: &'static str,
    (leaf, subleaf, output, bit): (u32, u32, Output, u8),
    reason: &'static str,
) -> HiddenFeature {
    HiddenFeature { name, leaf, subleaf, output, bit, from: HiddenFrom::All, reason }
}

use Output::{Eax, Ebx, Ecx, Edx};

/// No large pages.
const NO_LARGE_PAGES: &str = "PV page tables have no large pages";
/// No supervisor.
const NO_SUPERVISOR: &str = "a 64-bit guest's kernel is in ring 3: supervisor pages mean nothing";
/// CR4 and CR3 are not the guest's.
const NOT_ITS_OWN: &str = "CR3 and CR4 are the hypervisor's";
/// No such device.
const NO_APIC: &str = "there is no local APIC; timers and interrupts are event channels";
/// The platform is not the guest's.
const PLATFORM: &str = "the platform is the hypervisor's";
/// A PV guest cannot run guests.
const NO_NESTING: &str = "a PV guest cannot use hardware virtualisation";

/// The features that PV guests are not shown, by leaf, register and bit.
pub const HIDDEN: &[HiddenFeature] = &[
    hidden("DTES64", (1, 0, Ecx, 2), PLATFORM),
    hidden("MONITOR", (1, 0, Ecx, 3), "idling is sched_op block"),
    hidden("VMX", (1, 0, Ecx, 5), NO_NESTING),
    hidden("SMX", (1, 0, Ecx, 6), PLATFORM),
    hidden("EIST", (1, 0, Ecx, 7), PLATFORM),
    hidden("PDCM", (1, 0, Ecx, 15), PLATFORM),
    hidden("PCID", (1, 0, Ecx, 17), NOT_ITS_OWN),
    hidden("X2APIC", (1, 0, Ecx, 21), NO_APIC),
    hidden("TSC_DEADLINE", (1, 0, Ecx, 24), NO_APIC),
    hidden("VME", (1, 0, Edx, 1), NOT_ITS_OWN),
    hidden("PSE", (1, 0, Edx, 3), NO_LARGE_PAGES),
    hidden("MTRR", (1, 0, Edx, 12), PLATFORM),
    hidden("PGE", (1, 0, Edx, 13), "global pages are how the hypervisor keeps user mappings"),
    hidden("PSE36", (1, 0, Edx, 17), NO_LARGE_PAGES),
    hidden("DS", (1, 0, Edx, 21), PLATFORM),
    hidden("TSC_ADJUST", (7, 0, Ebx, 1), PLATFORM),
    hidden("SMEP", (7, 0, Ebx, 7), NO_SUPERVISOR),
    hidden("INVPCID", (7, 0, Ebx, 10), NOT_ITS_OWN),
    hidden("MPX", (7, 0, Ebx, 14), "gone from CPUs"),
    hidden("SMAP", (7, 0, Ebx, 20), NO_SUPERVISOR),
    hidden("UMIP", (7, 0, Ecx, 2), NO_SUPERVISOR),
    hidden("PKU", (7, 0, Ecx, 3), "the key's bits in entries are software's in the PV interface"),
    hidden("CET_SS", (7, 0, Ecx, 7), NO_SUPERVISOR),
    hidden("LA57", (7, 0, Ecx, 16), "PV page tables have four levels"),
    hidden("PKS", (7, 0, Ecx, 31), NO_SUPERVISOR),
    hidden("UINTR", (7, 0, Edx, 5), NO_APIC),
    hidden("CET_IBT", (7, 0, Edx, 20), NO_SUPERVISOR),
    hidden("FRED", (7, 1, Eax, 17), NO_SUPERVISOR),
    hidden("XSAVES", (0xd, 1, Eax, 3), NO_SUPERVISOR),
    hidden("SVM", (0x8000_0001, 0, Ecx, 2), NO_NESTING),
    hidden("CR8_LEGACY", (0x8000_0001, 0, Ecx, 4), NO_APIC),
    hidden("TOPOEXT", (0x8000_0001, 0, Ecx, 22), "topology is not told by APIC numbers"),
    HiddenFeature {
        name: "SYSCALL",
        leaf: 0x8000_0001,
        subleaf: 0,
        output: Edx,
        bit: 11,
        from: HiddenFrom::Bits32,
        reason: "32-bit code has SYSCALL on AMD's CPUs only; there it is shown",
    },
    hidden("PAGE1GB", (0x8000_0001, 0, Edx, 26), NO_LARGE_PAGES),
    HiddenFeature {
        name: "LM",
        leaf: 0x8000_0001,
        subleaf: 0,
        output: Edx,
        bit: 29,
        from: HiddenFrom::Bits32,
        reason: "a 32-bit PV guest has no way into 64-bit mode",
    },
];

/// What else differs from the bare CPU.
pub const PECULIARITIES: [&str; 3] = [
    "Leaf 1 ECX bit 27, OSXSAVE: for user mode the guest's CR4.OSXSAVE; for kernel mode, where CPUID is \
     emulated, the hypervisor's own, since Linux asks before it sets the bit.",
    "Leaf 1 ECX bit 31, HYPERVISOR, is set.",
    "Leaf 1 EBX, the initial APIC number, is 0 in the policy; Linux takes its CPUs from vcpu_op.",
];

/// The bits to clear in what CPUID gives a 64-bit guest.
pub fn hidden_mask_64(leaf: u32, subleaf: u32, output: Output) -> u32 {
    mask(leaf, subleaf, output, |feature| feature.from == HiddenFrom::All)
}

/// The bits to clear in what CPUID gives a 32-bit guest. On an AMD CPU, SYSCALL stays.
pub fn hidden_mask_32(leaf: u32, subleaf: u32, output: Output) -> u32 {
    mask(leaf, subleaf, output, |_| true)
}

/// The hidden bits of one register that `wanted` picks.
fn mask(leaf: u32, subleaf: u32, output: Output, wanted: impl Fn(&HiddenFeature) -> bool) -> u32 {
    HIDDEN
        .iter()
        .filter(|feature| (feature.leaf, feature.subleaf, feature.output) == (leaf, subleaf, output))
        .filter(|feature| wanted(feature))
        .fold(0, |mask, feature| mask | 1 << feature.bit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_spells_xenvmmxenvmm() {
        let text: Vec<u8> = SIGNATURE.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(text, b"XenVMMXenVMM");
    }

    #[test]
    fn leaves_are_in_order_and_end_where_the_first_one_says() {
        assert!(HYPERVISOR_LEAVES.is_sorted_by_key(|leaf| (leaf.leaf, leaf.subleaf)));
        assert_eq!(HYPERVISOR_LEAVES.last().map(|leaf| leaf.leaf), Some(MAX_LEAF));
    }

    #[test]
    fn hidden_features_are_in_order_and_each_bit_is_named_once() {
        let key = |feature: &HiddenFeature| (feature.leaf, feature.subleaf, feature.output, feature.bit);
        for pair in HIDDEN.windows(2) {
            assert!(key(&pair[0]) < key(&pair[1]), "{} {}", pair[0].name, pair[1].name);
        }
        assert!(HIDDEN.iter().all(|feature| feature.bit < 32));
    }

    #[test]
    fn long_mode_is_hidden_from_32_bit_guests_only() {
        let lm = 1 << 29;
        assert_eq!(hidden_mask_64(0x8000_0001, 0, Edx) & lm, 0);
        assert_eq!(hidden_mask_32(0x8000_0001, 0, Edx) & lm, lm);
        assert_eq!(hidden_mask_64(0x8000_0001, 0, Edx), 1 << 26);
    }

    #[test]
    fn masks_are_those_of_their_leaf() {
        assert_eq!(hidden_mask_64(1, 0, Edx), 1 << 1 | 1 << 3 | 1 << 12 | 1 << 13 | 1 << 17 | 1 << 21);
        assert_eq!(hidden_mask_64(7, 1, Eax), 1 << 17);
        assert_eq!(hidden_mask_64(2, 0, Eax), 0);
    }
}

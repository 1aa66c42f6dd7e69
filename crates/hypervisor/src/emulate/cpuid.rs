//! CPUID as a PV guest sees it.
//!
//! The policy starts from what the engine can run on this host, hides what a PV guest cannot have whatever
//! the CPU offers (segment-based paging features, performance counters, topology), and adds Xen's own leaves at 0x40000000. It
//! is computed once; answering a CPUID instruction is a look-up and, for the leaves that depend on CR4 and XCR0, a touch-up.
//!
//! Source: `xen/arch/x86/cpuid.c` (`guest_cpuid`), `xen/arch/x86/cpu-policy.c`, `xen/include/public/arch-x86/cpuid.h`.

use std::collections::BTreeMap;

use paravane_engine::{Control4, Gpr, GuestMode};
use paravane_x86::{
    cpuid::{
        FEATURE_MMU_PT_UPDATE_PRESERVE_AD, FIRST_LEAF as XEN_BASE, GRANT_V1_ADDRESS_BITS, MAX_LEAF, Output,
        SIGNATURE, TSC_HOST_RELIABLE, TSC_RDTSCP, hidden_mask_64,
    },
    msr::HYPERCALL_PAGE_MSR,
};

use super::Emulated;
use crate::domain::Call;

/// EAX, EBX, ECX, EDX.
pub(crate) type Leaf = [u32; 4];

const EAX: usize = 0;
const EBX: usize = 1;
const ECX: usize = 2;
const EDX: usize = 3;

/// The last basic leaf that guests see: those above describe performance counters, clocks and tracing.
const MAX_BASIC: u32 = 0xd;
/// The last extended leaf that guests see.
const MAX_EXTENDED: u32 = 0x8000_0008;
/// Bytes of the prefix that forces emulation: UD2 and "xen".
const PREFIX_BYTES: u64 = 5;
/// The interface version reported in leaf 0x40000001.
const XEN_VERSION: u32 = 4 << 16 | 17;
/// Bits that are hidden beside those of [`paravane_x86::cpuid::HIDDEN`], which no PV guest has: features of a kind that this
/// hypervisor does not offer yet, or whose registers do not exist here. By leaf, subleaf and register.
const NOT_OFFERED: &[(u32, u32, usize, &[u32])] = &[
    // DSCPL SMX TM2 CNXT-ID SDBG xTPR DCA
    (1, 0, ECX, &[4, 6, 8, 10, 11, 14, 18]),
    // PSN ACPI SS HTT TM PBE
    (1, 0, EDX, &[18, 22, 27, 28, 29, 31]),
    // SGX HLE RTM PQM PQE INTEL_PT
    (7, 0, EBX, &[2, 4, 11, 12, 15, 25]),
    // OSPKE WAITPKG CET_SS KL BUS_LOCK ENQCMD SGX_LC PKS
    (7, 0, ECX, &[4, 5, 7, 23, 24, 29, 30, 31]),
    // UINTR SRBDS_CTRL MD_CLEAR RTM_ALWAYS_ABORT TSX_FORCE_ABORT HYBRID TSXLDTRK PCONFIG ARCH_LBR CET_IBT AMX STIBP
    // L1D_FLUSH CORE_CAPS SSBD
    (7, 0, EDX, &[5, 9, 10, 11, 13, 15, 16, 18, 19, 20, 22, 24, 25, 27, 28, 30, 31]),
    (0xd, 1, EAX, &[4]),
    // EXTAPIC IBS SKINIT WDT LWP NODEID PERFCTR PERFTSC MONITORX
    (0x8000_0001, 0, ECX, &[3, 10, 12, 13, 15, 19, 23, 24, 29]),
    // The speculation controls again, as AMD and many hypervisors announce them: IBPB IBRS STIBP, always-on and preferred
    // forms, SSBD, VIRT_SSBD, SSB_NO, PSFD, BTC_NO, IBPB_RET
    (0x8000_0008, 0, EBX, &[12, 14, 15, 16, 17, 18, 19, 24, 25, 26, 28, 29, 30]),
];

/// Leaves of which nothing is shown: MONITOR, power, direct cache access, performance counters, topology.
const EMPTY: &[u32] = &[3, 5, 6, 9, 0xa, 0xb];

/// What CPUID answers, by leaf and subleaf.
#[derive(Clone, Debug)]
pub struct CpuidPolicy {
    leaves: BTreeMap<(u32, u32), Leaf>,
    /// The components that XCR0 may enable.
    xcr0: u64,
}

impl CpuidPolicy {
    /// The policy over `engine`, which answers for a leaf and subleaf what the engine runs on this host
    /// (EAX, EBX, ECX, EDX). `tsc_hz` is published in Xen's time leaf.
    pub fn new(engine: impl Fn(u32, u32) -> [u32; 4], tsc_hz: u64) -> Self {
        let mut leaves = BTreeMap::new();
        let max_basic = engine(0, 0)[EAX].min(MAX_BASIC);
        for leaf in 0..=max_basic {
            for subleaf in 0..subleaf_count(leaf) {
                leaves.insert((leaf, subleaf), engine(leaf, subleaf));
            }
        }
        let max_extended = engine(0x8000_0000, 0)[EAX].clamp(0x8000_0000, MAX_EXTENDED);
        for leaf in 0x8000_0000..=max_extended {
            leaves.insert((leaf, 0), engine(leaf, 0));
        }
        let mut policy = Self { leaves, xcr0: 0 };
        policy.edit(0, 0, |leaf| leaf[EAX] = max_basic);
        policy.edit(0x8000_0000, 0, |leaf| leaf[EAX] = max_extended);
        policy.restrict();
        let [low, _, _, high] = policy.leaf(0xd, 0);
        policy.xcr0 = u64::from(high) << 32 | u64::from(low);
        policy.add_xen_leaves(tsc_hz);
        policy
    }

    fn restrict(&mut self) {
        for (&(leaf, subleaf), values) in &mut self.leaves {
            for (output, register) in
                [(Output::Eax, EAX), (Output::Ebx, EBX), (Output::Ecx, ECX), (Output::Edx, EDX)]
            {
                values[register] &= !hidden_mask_64(leaf, subleaf, output);
            }
        }
        for &(leaf, subleaf, register, bits) in NOT_OFFERED {
            self.edit(leaf, subleaf, |leaf| bits.iter().for_each(|bit| leaf[register] &= !(1 << bit)));
        }
        for &leaf in EMPTY {
            self.edit(leaf, 0, |leaf| *leaf = [0; 4]);
        }
        // The local APIC's number and the count of logical CPUs: PV guests learn their topology otherwise.
        self.edit(1, 0, |leaf| leaf[EBX] &= 0xffff);
        // IBRS and IBPB, and the register that lists what the CPU is not vulnerable to: see `msr`.
        self.edit(7, 0, |leaf| leaf[EDX] |= 1 << 26 | 1 << 29);
        // HYPERVISOR.
        self.edit(1, 0, |leaf| leaf[ECX] |= 1 << 31);
        for cache in 0..subleaf_count(4) {
            // Cores and threads that share the cache: one.
            self.edit(4, cache, |leaf| leaf[EAX] &= 0x3fff);
        }
        // The number of cores.
        self.edit(0x8000_0008, 0, |leaf| leaf[ECX] = 0);
    }

    fn add_xen_leaves(&mut self, tsc_hz: u64) {
        let [ebx, ecx, edx] = SIGNATURE;
        // Truncation: 4 THz would be needed to exceed 32 bits of kHz.
        let khz = u32::try_from(tsc_hz / 1000).unwrap_or(u32::MAX);
        const TSC_MODE_NEVER_EMULATE: u32 = 2;
        let rows = [
            (0, 0, [XEN_BASE + MAX_LEAF, ebx, ecx, edx]),
            (1, 0, [XEN_VERSION, 0, 0, 0]),
            (2, 0, [1, HYPERCALL_PAGE_MSR, FEATURE_MMU_PT_UPDATE_PRESERVE_AD, 0]),
            (3, 0, [TSC_HOST_RELIABLE | TSC_RDTSCP, TSC_MODE_NEVER_EMULATE, khz, 0]),
            (3, 2, [khz, 0, 0, 0]),
            (4, 0, [0; 4]),
            (5, 0, [0, GRANT_V1_ADDRESS_BITS, 0, 0]),
        ];
        for (leaf, subleaf, values) in rows {
            self.leaves.insert((XEN_BASE + leaf, subleaf), values);
        }
    }

    fn edit(&mut self, leaf: u32, subleaf: u32, change: impl FnOnce(&mut Leaf)) {
        if let Some(values) = self.leaves.get_mut(&(leaf, subleaf)) {
            change(values);
        }
    }

    /// What the policy says of a leaf, before CR4 and XCR0. Leaves without subleaves ignore ECX; leaves beyond
    /// the last are zero.
    pub(crate) fn leaf(&self, leaf: u32, subleaf: u32) -> Leaf {
        let subleaf = if has_subleaves(leaf) { subleaf } else { 0 };
        self.leaves.get(&(leaf, subleaf)).copied().unwrap_or_default()
    }

    /// Whether `value` may be written to XCR0: x87 always, AVX only with SSE, the three parts of AVX-512
    /// together and with AVX, and nothing that the engine does not keep.
    pub(crate) fn is_valid_xcr0(&self, value: u64) -> bool {
        const X87: u64 = 1;
        const SSE: u64 = 1 << 1;
        const AVX: u64 = 1 << 2;
        const AVX512: u64 = 7 << 5;
        value & !self.xcr0 == 0
            && value & X87 != 0
            && (value & AVX == 0 || value & SSE != 0)
            && (value & AVX512 == 0 || (value & AVX512 == AVX512 && value & AVX != 0))
    }

    /// The CR4 bits whose features exist.
    pub(crate) fn allowed_cr4(&self) -> u64 {
        const XSAVE: u32 = 1 << 26;
        const FSGSBASE: u32 = 1 << 0;
        let mut allowed = Control4::TSD | Control4::DE;
        if self.leaf(1, 0)[ECX] & XSAVE != 0 {
            allowed |= Control4::OSXSAVE;
        }
        if self.leaf(7, 0)[EBX] & FSGSBASE != 0 {
            allowed |= Control4::FSGSBASE;
        }
        allowed
    }

    /// The bytes that XSAVE needs for the components of `mask`, in the standard format.
    fn xsave_size(&self, mask: u64) -> u32 {
        const LEGACY_AND_HEADER: u32 = 576;
        (2..63)
            .filter(|component| mask >> component & 1 != 0)
            .map(|component| {
                let [size, offset, ..] = self.leaf(0xd, component);
                size.saturating_add(offset)
            })
            .fold(LEGACY_AND_HEADER, u32::max)
    }

    /// The same in the compacted format of XSAVEC.
    fn compacted_size(&self, mask: u64) -> u32 {
        const LEGACY_AND_HEADER: u32 = 576;
        const ALIGNED: u32 = 1 << 1;
        (2..63).filter(|component| mask >> component & 1 != 0).fold(LEGACY_AND_HEADER, |end, component| {
            let [size, _, flags, _] = self.leaf(0xd, component);
            let start = if flags & ALIGNED != 0 { end.next_multiple_of(64) } else { end };
            start.saturating_add(size)
        })
    }
}

/// How many subleaves of `leaf` are kept.
fn subleaf_count(leaf: u32) -> u32 {
    match leaf {
        4 => 8,
        7 => 3,
        0xd => 63,
        _ => 1,
    }
}

fn has_subleaves(leaf: u32) -> bool {
    subleaf_count(leaf) > 1 || leaf == XEN_BASE + 3
}

/// CPUID: plain or with Xen's prefix, which makes no difference here.
pub(super) fn cpuid(call: &mut Call<'_>, forced: bool) -> Emulated {
    let user = call.context.mode == GuestMode::User;
    if user && call.vcpu().cpuid_faulting {
        if forced {
            // The fault is the instruction's, which stands behind the prefix.
            call.context.rip = call.context.rip.wrapping_add(PREFIX_BYTES);
        }
        return Emulated::Refused;
    }
    #[expect(clippy::cast_possible_truncation, reason = "EAX and ECX are the lower halves")]
    let (leaf, subleaf) = (call.context.gpr(Gpr::Rax) as u32, call.context.gpr(Gpr::Rcx) as u32);
    let values = answer(call, leaf, subleaf);
    for (register, value) in [Gpr::Rax, Gpr::Rbx, Gpr::Rcx, Gpr::Rdx].into_iter().zip(values) {
        call.context.set_gpr(register, u64::from(value));
    }
    Emulated::Done
}

fn answer(call: &Call<'_>, leaf: u32, subleaf: u32) -> Leaf {
    const OSXSAVE: u32 = 1 << 27;
    const XSAVE: u32 = 1 << 26;
    let policy = &call.domain.cpuid;
    let mut values = policy.leaf(leaf, subleaf);
    match (leaf, subleaf) {
        (1, _) => {
            // The guest kernel always sees OSXSAVE, as real Xen lets its own shine through: Linux decides by it
            // whether to use XSAVE, before it sets CR4. User mode sees CR4.
            let kernel = call.context.mode == GuestMode::Kernel;
            values[ECX] &= !OSXSAVE;
            if values[ECX] & XSAVE != 0 && (kernel || call.context.cr4.has(Control4::OSXSAVE)) {
                values[ECX] |= OSXSAVE;
            }
        }
        (0xd, 0) => {
            values[EBX] = policy.xsave_size(call.context.xcr0);
            values[ECX] = policy.xsave_size(policy.xcr0);
        }
        (0xd, 1) => values[EBX] = policy.compacted_size(call.context.xcr0),
        _ => {}
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A CPU with every bit set everywhere, x87 to AVX-512 in XCR0.
    fn everything(leaf: u32, subleaf: u32) -> Leaf {
        match (leaf, subleaf) {
            (0, _) => [0x20, 0, 0, 0],
            (0x8000_0000, _) => [0x8000_0021, 0, 0, 0],
            (0xd, 0) => [0xe7, 0, 0, 0],
            (0xd, 2) => [256, 576, 0, 0],
            (0xd, 5) => [64, 1088, 0, 0],
            (0xd, 6) => [512, 1152, 2, 0],
            (0xd, 7) => [1024, 1664, 2, 0],
            (0xd, 3..) => [0; 4],
            _ => [u32::MAX; 4],
        }
    }

    fn policy() -> CpuidPolicy {
        CpuidPolicy::new(everything, 2_500_000_000)
    }

    #[test]
    fn xens_leaves_carry_its_signature_and_interface() {
        let policy = policy();
        let [max, ebx, ecx, edx] = policy.leaf(XEN_BASE, 0);
        assert_eq!(max, 0x4000_0005);
        assert_eq!((ebx, ecx, edx), (0x566e_6558, 0x6558_4d4d, 0x4d4d_566e));
        assert_eq!(policy.leaf(XEN_BASE + 2, 0), [1, 0x4000_0000, 1, 0]);
        assert!(policy.leaf(XEN_BASE + 5, 0)[EBX] <= 44);
    }

    #[test]
    fn what_pv_cannot_have_is_hidden_and_the_hypervisor_bit_shows() {
        let policy = policy();
        for (leaf, register, bit, shown) in [
            (1, ECX, 31, true),
            (1, ECX, 26, true),
            (1, ECX, 17, false),
            (1, EDX, 3, false),
            (1, EDX, 12, false),
            (1, EDX, 4, true),
            (7, EBX, 7, false),
            (7, EBX, 20, false),
            (7, EBX, 0, true),
            (7, EBX, 5, true),
            (7, ECX, 16, false),
            (0x8000_0001, EDX, 26, false),
            (0x8000_0001, EDX, 29, true),
        ] {
            assert_eq!(
                policy.leaf(leaf, 0)[register] >> bit & 1 == 1,
                shown,
                "leaf {leaf:#x} register {register} bit {bit}"
            );
        }
    }

    #[test]
    fn leaves_beyond_the_last_are_zero() {
        let policy = policy();
        assert_eq!(policy.leaf(0, 0)[EAX], 0xd);
        assert_eq!(policy.leaf(0x15, 0), [0; 4]);
        assert_eq!(policy.leaf(0x8000_001e, 0), [0; 4]);
        assert_eq!(policy.leaf(0xb, 0), [0; 4]);
    }

    #[test]
    fn xsave_sizes_follow_the_components() {
        let policy = policy();
        assert_eq!(policy.xsave_size(3), 576);
        assert_eq!(policy.xsave_size(7), 832);
        assert_eq!(policy.xsave_size(0xe7), 2688);
        assert_eq!(policy.compacted_size(0xe7), 576 + 256 + 64 + 512 + 1024);
    }

    #[test]
    fn xcr0_must_be_coherent() {
        let policy = policy();
        for (value, valid) in [
            (1, true),
            (3, true),
            (7, true),
            (0xe7, true),
            (0, false),
            (5, false),
            (0x27, false),
            (0xe3, false),
            (0x207, false),
        ] {
            assert_eq!(policy.is_valid_xcr0(value), valid, "{value:#x}");
        }
    }
}

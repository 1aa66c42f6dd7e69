//! Which instructions exist on the CPU that a guest sees.
//!
//! iced-x86 names for every instruction the CPUID features that it needs. [`FEATURES`] says of every such feature what it
//! takes here: nothing, a CPUID bit of the host, or that the engine never offers it. An instruction with a
//! feature that is absent is #UD before anything else happens, as on the CPU, which looks at no operand first.
//!
//! Features are absent for good where the instruction would need what a process cannot get from its kernel, or would
//! reach memory by an address in a register, past the translated operand: those must never be copied.

use iced_x86::CpuidFeature;

use crate::features::raw_cpuid;

/// What a feature takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    /// Every x86-64 CPU has it, or the encoding does nothing on those that lack it.
    Always,
    /// A bit of the host's CPUID: leaf, subleaf, register (0 EAX to 3 EDX), bit.
    Host(u32, u32, u8, u8),
    /// Never offered: why.
    Never(&'static str),
}

use CpuidFeature as F;
use Presence::{Always, Host, Never};

const EAX: u8 = 0;
const EBX: u8 = 1;
const ECX: u8 = 2;
const EDX: u8 = 3;

const OLD: Presence = Never("no 64-bit processor has it");
const OTHER_MAKER: Presence = Never("only processors that have no 64-bit mode or no PV guests have it");
const VIRTUALISATION: Presence = Never("a PV guest cannot virtualise");
const RING_0: Presence = Never("undefined outside ring 0");
const KERNEL: Presence = Never("needs what the host's kernel gives no process on request");
const TRANSACTIONS: Presence = Never("a transaction cannot span translated code");
const BY_REGISTER: Presence = Never("writes memory that no operand names, past the translation");
const ENCLAVES: Presence = Never("enclaves are not offered");

/// Every feature that iced-x86 knows.
pub(crate) const FEATURES: [(CpuidFeature, Presence); 178] = [
    (F::INTEL8086, Always),
    (F::INTEL8086_ONLY, OLD),
    (F::INTEL186, Always),
    (F::INTEL286, Always),
    (F::INTEL286_ONLY, OLD),
    (F::INTEL386, Always),
    (F::INTEL386_ONLY, OLD),
    (F::INTEL386_A0_ONLY, OLD),
    (F::INTEL486, Always),
    (F::INTEL486_A_ONLY, OLD),
    (F::UMOV, OLD),
    (F::IA64, OLD),
    (F::X64, Always),
    (F::ADX, Host(7, 0, EBX, 19)),
    (F::AES, Host(1, 0, ECX, 25)),
    (F::AVX, Host(1, 0, ECX, 28)),
    (F::AVX2, Host(7, 0, EBX, 5)),
    (F::AVX512_4FMAPS, Host(7, 0, EDX, 3)),
    (F::AVX512_4VNNIW, Host(7, 0, EDX, 2)),
    (F::AVX512_BF16, Host(7, 1, EAX, 5)),
    (F::AVX512_BITALG, Host(7, 0, ECX, 12)),
    (F::AVX512_IFMA, Host(7, 0, EBX, 21)),
    (F::AVX512_VBMI, Host(7, 0, ECX, 1)),
    (F::AVX512_VBMI2, Host(7, 0, ECX, 6)),
    (F::AVX512_VNNI, Host(7, 0, ECX, 11)),
    (F::AVX512_VP2INTERSECT, Host(7, 0, EDX, 8)),
    (F::AVX512_VPOPCNTDQ, Host(7, 0, ECX, 14)),
    (F::AVX512BW, Host(7, 0, EBX, 30)),
    (F::AVX512CD, Host(7, 0, EBX, 28)),
    (F::AVX512DQ, Host(7, 0, EBX, 17)),
    (F::AVX512ER, Host(7, 0, EBX, 27)),
    (F::AVX512F, Host(7, 0, EBX, 16)),
    (F::AVX512PF, OTHER_MAKER),
    (F::AVX512VL, Host(7, 0, EBX, 31)),
    (F::BMI1, Host(7, 0, EBX, 3)),
    (F::BMI2, Host(7, 0, EBX, 8)),
    (F::CET_IBT, Always),
    (F::CET_SS, Never("shadow stacks are not offered")),
    (F::CL1INVMB, OTHER_MAKER),
    (F::CLDEMOTE, Always),
    (F::CLFLUSHOPT, Host(7, 0, EBX, 23)),
    (F::CLFSH, Host(1, 0, EDX, 19)),
    (F::CLWB, Host(7, 0, EBX, 24)),
    (F::CLZERO, BY_REGISTER),
    (F::CMOV, Always),
    (F::CMPXCHG16B, Host(1, 0, ECX, 13)),
    (F::CPUID, Always),
    (F::CX8, Always),
    (F::D3NOW, OLD),
    (F::D3NOWEXT, OLD),
    (F::OSS, ENCLAVES),
    (F::ENQCMD, BY_REGISTER),
    (F::F16C, Host(1, 0, ECX, 29)),
    (F::FMA, Host(1, 0, ECX, 12)),
    (F::FMA4, OLD),
    (F::FPU, Always),
    (F::FPU287, Always),
    (F::FPU287XL_ONLY, OLD),
    (F::FPU387, Always),
    (F::FPU387SL_ONLY, OLD),
    (F::FSGSBASE, Host(7, 0, EBX, 0)),
    (F::FXSR, Always),
    (F::CYRIX_D3NOW, OTHER_MAKER),
    (F::GFNI, Host(7, 0, ECX, 8)),
    (F::HLE, Always),
    (F::HLE_or_RTM, TRANSACTIONS),
    (F::INVEPT, VIRTUALISATION),
    (F::INVPCID, Host(7, 0, EBX, 10)),
    (F::INVVPID, VIRTUALISATION),
    (F::LWP, OLD),
    // Without it the encoding is BSR.
    (F::LZCNT, Always),
    (F::MCOMMIT, KERNEL),
    (F::MMX, Always),
    (F::MONITOR, RING_0),
    (F::MONITORX, KERNEL),
    (F::MOVBE, Host(1, 0, ECX, 22)),
    (F::MOVDIR64B, BY_REGISTER),
    (F::MOVDIRI, Host(7, 0, ECX, 27)),
    // Not enabled, so these do nothing.
    (F::MPX, Always),
    (F::MSR, Always),
    (F::MULTIBYTENOP, Always),
    (F::PADLOCK_ACE, BY_REGISTER),
    (F::PADLOCK_PHE, BY_REGISTER),
    (F::PADLOCK_PMM, BY_REGISTER),
    (F::PADLOCK_RNG, BY_REGISTER),
    (F::PAUSE, Always),
    (F::PCLMULQDQ, Host(1, 0, ECX, 1)),
    (F::PCOMMIT, OLD),
    (F::PCONFIG, RING_0),
    (F::PKU, KERNEL),
    (F::POPCNT, Host(1, 0, ECX, 23)),
    (F::PREFETCHW, Always),
    (F::PREFETCHWT1, Always),
    (F::PTWRITE, Host(0x14, 0, EBX, 4)),
    (F::RDPID, Host(7, 0, ECX, 22)),
    (F::RDPMC, Always),
    (F::RDPRU, KERNEL),
    (F::RDRAND, Host(1, 0, ECX, 30)),
    (F::RDSEED, Host(7, 0, EBX, 18)),
    (F::RDTSCP, Host(0x8000_0001, 0, EDX, 27)),
    (F::RTM, TRANSACTIONS),
    (F::SEP, Always),
    (F::SGX1, ENCLAVES),
    (F::SHA, Host(7, 0, EBX, 29)),
    (F::SKINIT, VIRTUALISATION),
    (F::SKINIT_or_SVM, VIRTUALISATION),
    (F::SMAP, RING_0),
    (F::SMX, VIRTUALISATION),
    (F::SSE, Always),
    (F::SSE2, Always),
    (F::SSE3, Host(1, 0, ECX, 0)),
    (F::SSE4_1, Host(1, 0, ECX, 19)),
    (F::SSE4_2, Host(1, 0, ECX, 20)),
    (F::SSE4A, Host(0x8000_0001, 0, ECX, 6)),
    (F::SSSE3, Host(1, 0, ECX, 9)),
    (F::SVM, VIRTUALISATION),
    (F::SEV_ES, VIRTUALISATION),
    (F::SYSCALL, Always),
    (F::TBM, Host(0x8000_0001, 0, ECX, 21)),
    (F::TSC, Always),
    (F::VAES, Host(7, 0, ECX, 9)),
    (F::VMX, VIRTUALISATION),
    (F::VPCLMULQDQ, Host(7, 0, ECX, 10)),
    (F::WAITPKG, KERNEL),
    (F::WBNOINVD, Always),
    (F::XOP, OLD),
    (F::XSAVE, Always),
    (F::XSAVEC, Host(0xd, 1, EAX, 1)),
    (F::XSAVEOPT, Host(0xd, 1, EAX, 0)),
    (F::XSAVES, Always),
    (F::SEV_SNP, VIRTUALISATION),
    (F::SERIALIZE, Host(7, 0, EDX, 14)),
    (F::TSXLDTRK, TRANSACTIONS),
    (F::INVLPGB, RING_0),
    (F::AMX_BF16, KERNEL),
    (F::AMX_TILE, KERNEL),
    (F::AMX_INT8, KERNEL),
    (F::CYRIX_FPU, OTHER_MAKER),
    (F::CYRIX_SMM, OTHER_MAKER),
    (F::CYRIX_SMINT, OTHER_MAKER),
    (F::CYRIX_SMINT_0F7E, OTHER_MAKER),
    (F::CYRIX_SHR, OTHER_MAKER),
    (F::CYRIX_DDI, OTHER_MAKER),
    (F::CYRIX_EMMI, OTHER_MAKER),
    (F::CYRIX_DMI, OTHER_MAKER),
    (F::CENTAUR_AIS, OTHER_MAKER),
    (F::MOV_TR, OLD),
    (F::SMM, RING_0),
    (F::TDX, VIRTUALISATION),
    (F::KL, KERNEL),
    (F::AESKLE, KERNEL),
    (F::WIDE_KL, KERNEL),
    (F::UINTR, KERNEL),
    (F::HRESET, RING_0),
    (F::AVX_VNNI, Host(7, 1, EAX, 4)),
    (F::PADLOCK_GMI, BY_REGISTER),
    (F::FRED, RING_0),
    (F::LKGS, RING_0),
    (F::AVX512_FP16, Host(7, 0, EDX, 23)),
    (F::UDBG, OLD),
    (F::KNC, OTHER_MAKER),
    (F::PADLOCK_UNDOC, BY_REGISTER),
    (F::RMPQUERY, VIRTUALISATION),
    (F::RAO_INT, Host(7, 1, EAX, 3)),
    (F::PREFETCHITI, Always),
    (F::AMX_FP16, KERNEL),
    (F::CMPCCXADD, Host(7, 1, EAX, 7)),
    (F::AVX_IFMA, Host(7, 1, EAX, 23)),
    (F::AVX_NE_CONVERT, Host(7, 1, EDX, 5)),
    (F::AVX_VNNI_INT8, Host(7, 1, EDX, 4)),
    (F::MSRLIST, RING_0),
    (F::WRMSRNS, RING_0),
    (F::AMX_COMPLEX, KERNEL),
    (F::SHA512, Host(7, 1, EAX, 0)),
    (F::SM3, Host(7, 1, EAX, 1)),
    (F::SM4, Host(7, 1, EAX, 2)),
    (F::TSE, RING_0),
    (F::AVX_VNNI_INT16, Host(7, 1, EDX, 10)),
];

/// A set of features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Present([u64; 4]);

impl Present {
    /// Those that instructions may use on this host.
    pub(crate) fn on_this_host() -> Self {
        Self::of(|leaf, subleaf, register, bit| {
            raw_cpuid(leaf, subleaf)[usize::from(register)] >> bit & 1 != 0
        })
    }

    fn of(host_has: impl Fn(u32, u32, u8, u8) -> bool) -> Self {
        let mut set = Self([0; 4]);
        for (feature, presence) in FEATURES {
            let present = match presence {
                Always => true,
                Host(leaf, subleaf, register, bit) => host_has(leaf, subleaf, register, bit),
                Never(_) => false,
            };
            if present {
                set.0[feature as usize >> 6 & 3] |= 1 << (feature as usize & 63);
            }
        }
        set
    }

    /// Whatever is offered on some host.
    pub(crate) fn everything() -> Self {
        Self::of(|_, _, _, _| true)
    }

    pub(crate) fn has(&self, feature: CpuidFeature) -> bool {
        self.0[feature as usize >> 6 & 3] >> (feature as usize & 63) & 1 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_that_the_decoder_knows_has_one_row() {
        for feature in CpuidFeature::values() {
            assert_eq!(FEATURES.iter().filter(|(row, _)| *row == feature).count(), 1, "{feature:?}");
        }
        assert_eq!(CpuidFeature::values().count(), FEATURES.len());
    }

    #[test]
    fn what_is_never_offered_is_never_present() {
        let present = Present::on_this_host();
        for (feature, presence) in FEATURES {
            if let Never(why) = presence {
                assert!(!present.has(feature), "{feature:?}: {why}");
            }
        }
        assert!(present.has(CpuidFeature::SSE2));
    }
}

//! What the engine can run on this host.

use std::arch::x86_64::{__cpuid_count, _xgetbv};

use crate::presence::Present;

/// The host CPU, as far as it matters.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    components: u64,
    bmi2: bool,
    is_amd: bool,
    present: Present,
    /// CPUID's leaves of state components, by number. Asked once: under another hypervisor each CPUID costs a
    /// microsecond.
    state_leaves: [Leaf; STATE_LEAVES],
}

/// State components that [`SUPPORTED_COMPONENTS`] can name.
const STATE_LEAVES: usize = 8;

/// XCR0 components that the engine passes on: x87, SSE, AVX and the three of AVX-512.
const SUPPORTED_COMPONENTS: u64 = 0xe7;

/// One CPUID leaf, as EAX, EBX, ECX, EDX.
pub type Leaf = [u32; 4];

impl Host {
    /// Looks at the host CPU; the error names what it lacks.
    pub(crate) fn detect() -> Result<Self, &'static str> {
        let basic = cpuid(1, 0);
        if basic[2] & 1 << 27 == 0 {
            return Err("XSAVE");
        }
        if cpuid(0xd, 1)[0] & 1 == 0 {
            return Err("XSAVEOPT");
        }
        if cpuid(0x8000_0001, 0)[2] & 1 == 0 {
            return Err("LAHF in 64-bit mode");
        }
        let components = enabled_components() & SUPPORTED_COMPONENTS;
        // "AuthenticAMD" and "HygonGenuine", by their first letters.
        let is_amd = matches!(&cpuid(0, 0)[1].to_le_bytes(), b"Auth" | b"Hygo");
        let bmi2 = cpuid(7, 0)[1] & 1 << 8 != 0;
        let mut state_leaves = [[0; 4]; STATE_LEAVES];
        for (number, leaf) in (0..).zip(&mut state_leaves) {
            if number >= 2 && components >> number & 1 != 0 {
                *leaf = cpuid(0xd, number);
            }
        }
        Ok(Self { components, bmi2, is_amd, present: Present::on_this_host(), state_leaves })
    }

    /// The extended state components that a guest may enable, with their CPUID leaves.
    pub(crate) fn extended_components(&self) -> impl Iterator<Item = (usize, Leaf)> {
        let supported = self.components;
        let leaves = self.state_leaves.into_iter().enumerate().skip(2);
        leaves.filter(move |(number, _)| supported >> number & 1 != 0)
    }

    /// The XCR0 components that a guest may enable.
    pub fn state_components(&self) -> u64 {
        self.components
    }

    /// Whether the CPU follows AMD where it differs from Intel.
    pub(crate) fn is_amd(&self) -> bool {
        self.is_amd
    }

    /// Features that instructions may use.
    pub(crate) fn present(&self) -> Present {
        self.present
    }

    pub(crate) fn has_bmi2(&self) -> bool {
        self.bmi2
    }

    /// Reads the host's CPUID and removes what the engine does not run: features that need kernel support which a
    /// process cannot pass on, and instructions that the translator answers with #UD.
    ///
    /// What a hypervisor policy hides beyond that is the caller's business.
    pub fn cpuid(&self, leaf: u32, subleaf: u32) -> Leaf {
        let mut regs = cpuid(leaf, subleaf);
        for rule in HIDDEN.iter().filter(|rule| rule.leaf == leaf && rule.subleaf == subleaf) {
            regs[rule.register] &= !rule.bits;
        }
        if leaf == 0xd {
            self.limit_state_leaf(subleaf, &mut regs);
        }
        regs
    }

    fn limit_state_leaf(&self, subleaf: u32, regs: &mut Leaf) {
        match subleaf {
            0 => {
                regs[0] = crate::bits::low32(self.components);
                regs[3] = 0;
                regs[2] = self.state_bytes();
                regs[1] = regs[2];
            }
            // XSAVEOPT and XSAVEC; not XGETBV(1), not XSAVES.
            1 => *regs = [regs[0] & 3, 0, 0, 0],
            component if component >= 64 || self.components >> component & 1 == 0 => *regs = [0; 4],
            _ => {}
        }
    }

    /// Bytes of the standard-format XSAVE area for all supported components.
    fn state_bytes(&self) -> u32 {
        self.extended_components().map(|(_, [size, offset, _, _])| size + offset).fold(576, u32::max)
    }
}

/// Feature bits that a guest must not see.
struct Hidden {
    leaf: u32,
    subleaf: u32,
    register: usize,
    bits: u32,
}

/// Index of a register in [`Leaf`].
const EBX: usize = 1;
const ECX: usize = 2;
const EDX: usize = 3;

/// The table of what the engine does not run (Intel SDM vol. 2A, "CPUID"; AMD APM vol. 3, "CPUID").
const HIDDEN: [Hidden; 11] = [
    // MONITOR, VMX, SMX, PDCM, PCID, x2APIC, TSC deadline.
    Hidden {
        leaf: 1,
        subleaf: 0,
        register: ECX,
        bits: 1 << 3 | 1 << 5 | 1 << 6 | 1 << 15 | 1 << 17 | 1 << 21 | 1 << 24,
    },
    // TSC_ADJUST, SGX, HLE, RTM, MPX, RDT, PT.
    Hidden {
        leaf: 7,
        subleaf: 0,
        register: EBX,
        bits: 1 << 1 | 1 << 2 | 1 << 4 | 1 << 11 | 1 << 12 | 1 << 14 | 1 << 15 | 1 << 25,
    },
    // UMIP, PKU, OSPKE, WAITPKG, CET_SS, LA57, KL, MOVDIR64B, ENQCMD, SGX_LC, PKS.
    Hidden {
        leaf: 7,
        subleaf: 0,
        register: ECX,
        bits: 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 16 | 1 << 23 | 0xf << 28,
    },
    // UINTR, RTM_ALWAYS_ABORT, TSXLDTRK, CET_IBT, AMX_BF16, AMX_TILE, AMX_INT8.
    Hidden {
        leaf: 7,
        subleaf: 0,
        register: EDX,
        bits: 1 << 5 | 1 << 11 | 1 << 16 | 1 << 20 | 1 << 22 | 1 << 24 | 1 << 25,
    },
    // AMX_FP16, FRED, LKGS, LAM.
    Hidden { leaf: 7, subleaf: 1, register: 0, bits: 1 << 17 | 1 << 18 | 1 << 21 | 1 << 26 },
    // SVM, XOP, LWP, FMA4, MONITORX.
    Hidden {
        leaf: 0x8000_0001,
        subleaf: 0,
        register: ECX,
        bits: 1 << 2 | 1 << 11 | 1 << 15 | 1 << 16 | 1 << 29,
    },
    // 3DNow and its extensions.
    Hidden { leaf: 0x8000_0001, subleaf: 0, register: EDX, bits: 1 << 30 | 1 << 31 },
    // CLZERO, RDPRU, MCOMMIT.
    Hidden { leaf: 0x8000_0008, subleaf: 0, register: EBX, bits: 1 << 0 | 1 << 4 | 1 << 8 },
    // Nothing of AMX's own leaves.
    Hidden { leaf: 0x1d, subleaf: 0, register: 0, bits: u32::MAX },
    Hidden { leaf: 0x1e, subleaf: 0, register: EBX, bits: u32::MAX },
    // SGX.
    Hidden { leaf: 0x12, subleaf: 0, register: 0, bits: u32::MAX },
];

/// A leaf as the host's CPU has it; zero beyond its highest leaf.
pub(crate) fn raw_cpuid(leaf: u32, subleaf: u32) -> Leaf {
    if leaf > cpuid(leaf & 0x8000_0000, 0)[0] { [0; 4] } else { cpuid(leaf, subleaf) }
}

fn cpuid(leaf: u32, subleaf: u32) -> Leaf {
    let found = __cpuid_count(leaf, subleaf);
    [found.eax, found.ebx, found.ecx, found.edx]
}

/// XCR0 of the host.
#[expect(unsafe_code, reason = "reading XCR0 is an intrinsic that needs XSAVE")]
fn enabled_components() -> u64 {
    // SAFETY: the caller saw OSXSAVE in CPUID.
    unsafe { _xgetbv(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_features_are_absent_and_the_state_leaf_fits_the_engine() {
        let host = Host::detect().unwrap();
        assert_eq!(host.cpuid(7, 0)[ECX] & 1 << 3, 0);
        assert_eq!(u64::from(host.cpuid(0xd, 0)[0]) & !SUPPORTED_COMPONENTS, 0);
        assert!(host.cpuid(0xd, 0)[ECX] as usize <= paravane_engine::FPU_AREA_BYTES);
        assert_eq!(host.cpuid(0xd, 9), [0; 4]);
    }
}

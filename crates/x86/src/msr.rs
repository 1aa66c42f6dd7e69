//! The model-specific registers that a PV guest can read and write.
//!
//! RDMSR and WRMSR fault in rings 1 and 3, and the hypervisor emulates them. A few registers work (the segment
//! bases above all: 64-bit Linux sets GS_BASE in its very first instructions), a few read as something harmless,
//! and the rest is #GP. Two rules stand beside the table:
//!
//! * [`FAKED_READ`]: before a guest has a #GP handler a refused RDMSR gives 0, or the domain would be crashed.
//! * With `msr_relaxed` in its configuration a domain reads 0 from, and may write to, any register that the host
//!   has.
//!
//! Sources: `xen/arch/x86/msr.c` (`guest_rdmsr`, `guest_wrmsr`), `xen/arch/x86/pv/emul-priv-op.c` (`read_msr`,
//! `write_msr`); Intel SDM vol. 4; AMD APM vol. 2, "Model-Specific Registers (MSRs)".

use serde::Serialize;

/// When a refused RDMSR gives 0 instead of #GP.
pub const FAKED_READ: &str = "while trap-table entry 13 has no address, RDMSR of a register that the host \
                              has and that is not 0x4000xxxx gives 0";

/// What RDMSR gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Read {
    /// This number.
    Number(u64),
    /// What the words say.
    Told(&'static str),
    /// #GP.
    Fault,
}

/// What WRMSR does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Write {
    /// What the words say.
    Told(&'static str),
    /// Nothing, if the value is the one that RDMSR gives; otherwise #GP.
    SameOnly,
    /// Nothing.
    Ignored,
    /// #GP.
    Fault,
}

/// On which host CPUs a row holds. On the others the registers are #GP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Host {
    /// All.
    Any,
    /// Intel's.
    Intel,
    /// AMD's, and mostly Hygon's.
    Amd,
}

/// One register, or a range of registers that are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Msr {
    /// The first number.
    pub first: u32,
    /// The last number.
    pub last: u32,
    /// The manuals' name.
    pub name: &'static str,
    /// On which CPUs.
    pub host: Host,
    /// What RDMSR gives.
    pub read: Read,
    /// What WRMSR does.
    pub write: Write,
}

/// APIC_BASE as every vCPU reads it: the default address, enabled.
pub const APIC_BASE: u64 = 0xfee0_0000 | 1 << 11;
/// The bit of [`APIC_BASE`] that vCPU 0 reads besides: bootstrap processor.
pub const APIC_BASE_BSP: u64 = 1 << 8;
/// The PAT register: WB, WT, UC-, UC, WC, WP, UC, UC. PV guests rely on it, since they set PAT bits in entries.
pub const PAT: u64 = 0x0000_0501_0007_0406;
/// The register through which a guest asks for a hypercall page, as CPUID leaf 0x40000002 names it.
pub const HYPERCALL_PAGE_MSR: u32 = 0x4000_0000;

/// A register.
const fn one(number: u32, name: &'static str, host: Host, read: Read, write: Write) -> Msr {
    Msr { first: number, last: number, name, host, read, write }
}

/// A range of registers.
const fn range(first: u32, last: u32, name: &'static str, host: Host, read: Read, write: Write) -> Msr {
    Msr { first, last, name, host, read, write }
}

/// The performance counters' row.
const COUNTERS: Read = Read::Told("#GP unless the domain has a virtual PMU");
/// The performance counters' row.
const COUNTERS_WRITE: Write = Write::Told("ignored where other domains have virtual PMUs, else #GP");

/// Every register that is not simply #GP, in the order of the numbers.
pub const MSRS: &[Msr] = &[
    range(0x0, 0x1, "P5_MC_ADDR, P5_MC_TYPE", Host::Any, Read::Number(0), Write::Fault),
    one(0x10, "TSC", Host::Any, Read::Told("the time-stamp counter, as RDTSC gives it"), Write::Fault),
    one(0x17, "PLATFORM_ID", Host::Intel, Read::Told("the host's"), Write::Fault),
    one(
        0x1b,
        "APIC_BASE",
        Host::Any,
        Read::Told("0xfee00800, and bit 8 on vCPU 0: an enabled APIC, which is not there"),
        Write::Fault,
    ),
    one(0x3a, "FEATURE_CONTROL", Host::Intel, Read::Told("the lock bit"), Write::Fault),
    one(
        0x48,
        "SPEC_CTRL",
        Host::Any,
        Read::Told("the guest's, if its CPUID has the feature, else #GP"),
        Write::Told("takes effect, if its CPUID has the feature, else #GP"),
    ),
    one(
        0x49,
        "PRED_CMD",
        Host::Any,
        Read::Fault,
        Write::Told("takes effect, if its CPUID has the feature, else #GP"),
    ),
    one(
        0x8b,
        "UCODE_REV, PATCH_LEVEL",
        Host::Any,
        Read::Told("the host's"),
        Write::Told("ignored if 0 and the CPU is Intel's, else #GP"),
    ),
    range(0xc1, 0xc8, "PMC0 to PMC7", Host::Intel, COUNTERS, COUNTERS_WRITE),
    one(0xce, "PLATFORM_INFO", Host::Any, Read::Told("whether CPUID faulting exists, bit 31"), Write::Fault),
    range(0xe7, 0xe8, "MPERF, APERF", Host::Any, Read::Fault, Write::Ignored),
    one(
        0x10a,
        "ARCH_CAPABILITIES",
        Host::Any,
        Read::Told("the policy's, if its CPUID has the feature, else #GP"),
        Write::Fault,
    ),
    one(
        0x10b,
        "FLUSH_CMD",
        Host::Any,
        Read::Fault,
        Write::Told("takes effect, if its CPUID has the feature, else #GP"),
    ),
    one(
        0x140,
        "MISC_FEATURES_ENABLES",
        Host::Any,
        Read::Told("whether CPUID faults in user mode, bit 0"),
        Write::Told("turns CPUID faulting in user mode on and off, where it exists"),
    ),
    range(
        0x179,
        0x17b,
        "MCG_CAP, MCG_STATUS, MCG_CTL",
        Host::Any,
        Read::Told("the virtual machine-check banks"),
        Write::Told("the virtual machine-check banks, where sane"),
    ),
    range(0x186, 0x18d, "PERFEVTSEL0 to PERFEVTSEL7", Host::Intel, COUNTERS, COUNTERS_WRITE),
    one(0x198, "PERF_STATUS", Host::Intel, Read::Number(0), Write::Fault),
    one(0x199, "PERF_CTL", Host::Intel, Read::Number(0), Write::Ignored),
    one(0x19a, "CLOCK_MODULATION", Host::Intel, Read::Fault, Write::Ignored),
    one(0x19c, "THERM_STATUS", Host::Intel, Read::Number(0), Write::Fault),
    one(0x1a0, "MISC_ENABLE", Host::Any, Read::Told("the host's, made harmless"), Write::Ignored),
    one(0x1b0, "ENERGY_PERF_BIAS", Host::Intel, Read::Fault, Write::Ignored),
    one(0x277, "PAT", Host::Any, Read::Number(PAT), Write::Fault),
    range(
        0x280,
        0x29f,
        "MC0_CTL2 to MC31_CTL2",
        Host::Any,
        Read::Told("the virtual machine-check banks"),
        Write::Told("the virtual machine-check banks, where sane"),
    ),
    range(0x309, 0x30b, "FIXED_CTR0 to FIXED_CTR2", Host::Intel, COUNTERS, COUNTERS_WRITE),
    one(0x345, "PERF_CAPABILITIES", Host::Any, Read::Number(0), Write::Fault),
    range(0x38d, 0x390, "FIXED_CTR_CTRL to PERF_GLOBAL_OVF_CTRL", Host::Intel, COUNTERS, COUNTERS_WRITE),
    range(
        0x400,
        0x47f,
        "MC0_CTL to MC31_MISC",
        Host::Any,
        Read::Told("the virtual machine-check banks"),
        Write::Told("the virtual machine-check banks, where sane"),
    ),
    one(
        HYPERCALL_PAGE_MSR,
        "Xen hypercall page",
        Host::Any,
        Read::Number(0),
        Write::Told(
            "bits 11..0 the page's index, 0; the rest the frame to fill: #GP if the index is another or \
             the frame is not the guest's or not writable",
        ),
    ),
    one(
        0xc000_0080,
        "EFER",
        Host::Any,
        Read::Told(
            "the host's known bits, without SVME and AIBRSE; for a 32-bit guest without LME and LMA, and \
             on Intel SCE",
        ),
        Write::SameOnly,
    ),
    one(
        0xc000_0100,
        "FS_BASE",
        Host::Any,
        Read::Told("the FS base; #GP for a 32-bit guest"),
        Write::Told("sets the FS base; #GP if not canonical, or for a 32-bit guest"),
    ),
    one(
        0xc000_0101,
        "GS_BASE",
        Host::Any,
        Read::Told("the kernel's GS base, which is in use; #GP for a 32-bit guest"),
        Write::Told("sets the kernel's GS base; #GP if not canonical, or for a 32-bit guest"),
    ),
    one(
        0xc000_0102,
        "KERNEL_GS_BASE",
        Host::Any,
        Read::Told("the user GS base; #GP for a 32-bit guest"),
        Write::Told("sets the user GS base; #GP if not canonical, or for a 32-bit guest"),
    ),
    one(
        0xc000_0103,
        "TSC_AUX",
        Host::Any,
        Read::Told("the guest's, if its CPUID has RDTSCP or RDPID, else #GP"),
        Write::Told("sets it, if its CPUID has RDTSCP or RDPID, else #GP"),
    ),
    range(
        0xc001_0000,
        0xc001_0007,
        "PERF_LEGACY_CTL0 to PERF_LEGACY_CTR3",
        Host::Amd,
        COUNTERS,
        COUNTERS_WRITE,
    ),
    one(0xc001_0015, "HWCR", Host::Amd, Read::Number(0), Write::Ignored),
    one(0xc001_001f, "NB_CFG", Host::Any, Read::Number(0), Write::Ignored),
    range(0xc001_0041, 0xc001_0042, "FIDVID_CTL, FIDVID_STATUS", Host::Amd, Read::Number(0), Write::Ignored),
    range(
        0xc001_0061,
        0xc001_006b,
        "P-state limit, control, status and P-states 0 to 7",
        Host::Amd,
        Read::Number(0),
        Write::Ignored,
    ),
    range(0xc001_0200, 0xc001_020b, "PERF_CTL0 to PERF_CTR5", Host::Amd, COUNTERS, COUNTERS_WRITE),
    range(
        0xc001_1019,
        0xc001_101b,
        "DR1 to DR3 address masks",
        Host::Amd,
        Read::Told("the guest's, if its CPUID has DBEXT, else #GP"),
        Write::Told("sets it, if its CPUID has DBEXT, else #GP"),
    ),
    one(
        0xc001_1027,
        "DR0 address mask",
        Host::Amd,
        Read::Told("the guest's, if its CPUID has DBEXT, else #GP"),
        Write::Told("sets it, if its CPUID has DBEXT, else #GP"),
    ),
    one(0xc001_1029, "DE_CFG", Host::Amd, Read::Number(2), Write::Ignored),
];

/// The row of a register; `None` if reading and writing it are simply #GP.
///
/// ```
/// use paravane_x86::msr::{Read, find};
///
/// assert_eq!(find(0xc000_0101).map(|msr| msr.name), Some("GS_BASE"));
/// assert_eq!(find(0x345).map(|msr| msr.read), Some(Read::Number(0)));
/// assert!(find(0xc000_0082).is_none(), "LSTAR is the hypervisor's");
/// ```
pub fn find(number: u32) -> Option<&'static Msr> {
    MSRS.iter().find(|msr| (msr.first..=msr.last).contains(&number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transitions::star::ENTRY_MSRS;

    #[test]
    fn rows_are_in_order_and_do_not_overlap() {
        for pair in MSRS.windows(2) {
            assert!(pair[0].last < pair[1].first, "{} {}", pair[0].name, pair[1].name);
        }
        assert!(MSRS.iter().all(|msr| msr.first <= msr.last));
    }

    #[test]
    fn a_range_is_found_by_its_ends_and_not_beyond() {
        for msr in MSRS {
            assert_eq!(find(msr.first), Some(msr));
            assert_eq!(find(msr.last), Some(msr));
        }
        assert_eq!(find(0x178), None);
        assert_eq!(find(0x47f).map(|msr| msr.first), Some(0x400));
        assert_eq!(find(0x480), None);
    }

    #[test]
    fn the_registers_of_syscall_and_sysenter_are_not_the_guests() {
        for msr in ENTRY_MSRS {
            assert_eq!(find(msr.number), None, "{}", msr.name);
        }
    }

    #[test]
    fn pat_and_apic_base_are_these_numbers() {
        assert_eq!(PAT, 0x0000_0501_0007_0406);
        assert_eq!(APIC_BASE | APIC_BASE_BSP, 0xfee0_0900);
        // Entries 0 to 7: WB 6, WT 4, UC- 7, UC 0, WC 1, WP 5, UC 0, UC 0.
        assert_eq!(PAT.to_le_bytes(), [6, 4, 7, 0, 1, 5, 0, 0]);
    }

    #[test]
    fn every_row_lets_the_guest_do_something() {
        for msr in MSRS {
            assert!(msr.read != Read::Fault || msr.write != Write::Fault, "{}", msr.name);
        }
    }
}

//! Model-specific registers as a PV guest sees them.
//!
//! Few exist: segment bases, the TSC, EFER and PAT as constants, the machine-check banks that Linux probes, and
//! Xen's own register that installs a hypercall page. [`read`] and [`write()`] know the whole list; what is
//! not on it is #GP.
//!
//! # Speculation controls
//!
//! A guest's mitigations work by the exact instructions that its kernel executes: retpolines, buffer-clearing VERW, writes
//! to SPEC_CTRL at each entry. A translating engine executes other instructions, so these would cost time and protect
//! nothing. The CPU is therefore presented as one that needs none of them: enhanced IBRS, and not vulnerable to the rest.
//! What keeps guest programs from reading each other through speculation is the host's affair, as it is
//! between the threads of one process.
//!
//! Source: `read_msr` and `write_msr` in `xen/arch/x86/pv/emul-priv-op.c`, `xen/arch/x86/msr.c`,
//! `xen/arch/x86/cpu/mcheck/vmce.c`.

use paravane_abi::units::{GuestVirt, MachAddr, PAGE_SIZE, VcpuId};
use paravane_engine::SegmentRegister;
use paravane_x86::msr::{self, HYPERCALL_PAGE_MSR};

use crate::{domain::Call, frames};

const P5_MC_ADDR: u32 = 0;
const P5_MC_TYPE: u32 = 1;
const PLATFORM_ID: u32 = 0x17;
const TSC: u32 = 0x10;
const APIC_BASE: u32 = 0x1b;
const FEATURE_CONTROL: u32 = 0x3a;
const SPEC_CTRL: u32 = 0x48;
const PRED_CMD: u32 = 0x49;
const MICROCODE_REVISION: u32 = 0x8b;
const PLATFORM_INFO: u32 = 0xce;
const MPERF: u32 = 0xe7;
const APERF: u32 = 0xe8;
const ARCH_CAPABILITIES: u32 = 0x10a;
const MISC_FEATURES_ENABLES: u32 = 0x140;
const MCG_CAP: u32 = 0x179;
const MCG_STATUS: u32 = 0x17a;
const MCG_CTL: u32 = 0x17b;
const PERF_STATUS: u32 = 0x198;
const PERF_CTL: u32 = 0x199;
const THERM_CONTROL: u32 = 0x19a;
const THERM_STATUS: u32 = 0x19c;
const MISC_ENABLE: u32 = 0x1a0;
const ENERGY_PERF_BIAS: u32 = 0x1b0;
const PAT: u32 = 0x277;
const MC0_CTL2: u32 = 0x280;
const PERF_CAPABILITIES: u32 = 0x345;
const MC0_CTL: u32 = 0x400;
const EFER: u32 = 0xc000_0080;
const FS_BASE: u32 = 0xc000_0100;
const GS_BASE: u32 = 0xc000_0101;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const TSC_AUX: u32 = 0xc000_0103;

/// Machine-check banks a guest sees, each of four registers from `MC0_CTL` on.
const MCE_BANKS: u32 = 2;
/// Banks that the numbers have room for. Those that a guest does not have read as zero and take any value.
const MCE_NUMBERS: u32 = 32;
/// SCE, LME, LMA, NX.
const EFER_VALUE: u64 = 0xd01;
/// Fast strings; no branch trace storage, no PEBS, no xTPR.
const MISC_ENABLE_VALUE: u64 = 1 | 1 << 11 | 1 << 12 | 1 << 23;
/// CPUID faulting, in `PLATFORM_INFO`.
const CPUID_FAULTING: u64 = 1 << 31;

/// RDCL_NO, IBRS_ALL, SKIP_L1DFL_VMENTRY, SSB_NO, MDS_NO, IF_PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO, FBSDP_NO, PSDP_NO,
/// BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO, ITS_NO.
const ARCH_CAPABILITIES_VALUE: u64 = 1
    | 1 << 1
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 8
    | 1 << 13
    | 1 << 14
    | 1 << 15
    | 1 << 20
    | 1 << 24
    | 1 << 26
    | 1 << 27
    | 1 << 62;
/// IBRS, the one bit of `SPEC_CTRL` that a guest may set.
const SPEC_CTRL_IBRS: u64 = 1;
/// IBPB, the one command of `PRED_CMD`.
const PRED_CMD_IBPB: u64 = 1;

/// The value of a register; `None` if reading it is #GP.
pub(super) fn read(call: &Call<'_>, number: u32) -> Option<u64> {
    let context = &call.context;
    Some(match number {
        FS_BASE => context.segment(SegmentRegister::Fs).base,
        GS_BASE => context.segment(SegmentRegister::Gs).base,
        KERNEL_GS_BASE => context.inactive_gs_base,
        TSC => call.now.0,
        TSC_AUX => u64::from(context.tsc_aux),
        EFER => EFER_VALUE,
        PAT => msr::PAT,
        MISC_ENABLE => MISC_ENABLE_VALUE,
        APIC_BASE => msr::APIC_BASE | if call.vcpu == VcpuId(0) { msr::APIC_BASE_BSP } else { 0 },
        SPEC_CTRL => call.vcpu().spec_ctrl,
        ARCH_CAPABILITIES => ARCH_CAPABILITIES_VALUE,
        PLATFORM_INFO => CPUID_FAULTING,
        MISC_FEATURES_ENABLES => u64::from(call.vcpu().cpuid_faulting),
        // Locked, everything off.
        FEATURE_CONTROL => 1,
        // The revision is in the upper half; any will do.
        MICROCODE_REVISION => 1 << 32,
        MCG_CAP => u64::from(MCE_BANKS),
        PLATFORM_ID | PERF_CAPABILITIES | PERF_STATUS | PERF_CTL | THERM_STATUS | HYPERCALL_PAGE_MSR => 0,
        P5_MC_ADDR | P5_MC_TYPE | MCG_STATUS | MCG_CTL => 0,
        _ if is_machine_check_control(number) => u64::MAX,
        _ if is_machine_check(number) => 0,
        _ => return None,
    })
}

/// Writes a register; false if that is #GP.
pub(super) fn write(call: &mut Call<'_>, number: u32, value: u64) -> bool {
    match number {
        FS_BASE | GS_BASE | KERNEL_GS_BASE if !GuestVirt(value).is_canonical() => return false,
        FS_BASE => call.context.segment_mut(SegmentRegister::Fs).base = value,
        GS_BASE => call.context.segment_mut(SegmentRegister::Gs).base = value,
        KERNEL_GS_BASE => call.context.inactive_gs_base = value,
        TSC_AUX => match u32::try_from(value) {
            Ok(aux) => call.context.tsc_aux = aux,
            Err(_) => return false,
        },
        SPEC_CTRL if value & !SPEC_CTRL_IBRS == 0 => call.vcpu_mut().spec_ctrl = value,
        PRED_CMD => return value & !PRED_CMD_IBPB == 0,
        EFER => return value == EFER_VALUE,
        MISC_FEATURES_ENABLES if value & !1 == 0 => call.vcpu_mut().cpuid_faulting = value == 1,
        HYPERCALL_PAGE_MSR => return install_hypercall_page(call, value),
        // Nothing in the register can change; the guest is told nothing.
        MISC_ENABLE | MPERF | APERF | THERM_CONTROL | ENERGY_PERF_BIAS | PERF_CTL => {}
        MCG_CAP | MCG_STATUS | MCG_CTL => {}
        // Written before it is read, by the manual's own advice.
        MICROCODE_REVISION => return value == 0,
        _ => return is_machine_check(number),
    }
    true
}

fn is_machine_check(number: u32) -> bool {
    (MC0_CTL..MC0_CTL + 4 * MCE_NUMBERS).contains(&number)
        || (MC0_CTL2..MC0_CTL2 + MCE_NUMBERS).contains(&number)
}

fn is_machine_check_control(number: u32) -> bool {
    (MC0_CTL..MC0_CTL + 4 * MCE_BANKS).contains(&number) && number.is_multiple_of(4)
}

/// Fills the guest frame whose address `value` is with the hypercall page. The low twelve bits are the page's index,
/// and there is only page 0.
fn install_hypercall_page(call: &mut Call<'_>, value: u64) -> bool {
    if value & (PAGE_SIZE - 1) != 0 {
        return false;
    }
    let page = paravane_x86::hypercall_page::page(paravane_x86::hypercall_page::Form::Syscall);
    frames::fill_guest_page(call.domain, MachAddr(value).frame(), &page).is_ok()
}

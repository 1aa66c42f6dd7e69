//! `shared_info`: the page that guest and hypervisor both write, and the vCPU information inside it.
//!
//! Events arrive here. In the two-level ABI a port is one bit of `evtchn_pending`; the word it lies in is one
//! bit of the vCPU's `evtchn_pending_sel`; and `evtchn_upcall_pending` says that the selector is not empty.
//! `evtchn_upcall_mask` is what a PV guest has instead of the interrupt flag.
//!
//! Time is here too: the guest scales the TSC by [`VcpuTimeInfo`], and adds the wall clock of the page.
//! Both are read under a version number that is odd while the writer is at work.
//!
//! Sources: `xen/include/public/xen.h`, `xen/include/public/arch-x86/xen-x86_64.h`, `xen-x86_32.h`.

use crate::layout::{Ty, abi_struct};

/// vCPUs that have a `vcpu_info` in the page; others must register one elsewhere.
pub const LEGACY_MAX_VCPUS: usize = 32;

/// `VcpuTimeInfo::flags`: the TSC runs alike on every CPU, so the values need not be read per vCPU.
pub const TIME_TSC_STABLE: u8 = 1;

/// `VcpuTimeInfo::flags`: the guest was stopped, as a hint that time has jumped.
pub const TIME_GUEST_STOPPED: u8 = 2;

abi_struct! {
    /// How to turn the TSC into nanoseconds of system time, per vCPU.
    pub struct VcpuTimeInfo = "vcpu_time_info", "xen/include/public/xen.h", 32 / 32;
    [0 / 0] version: u32 = Ty::U32, "Odd while an update is under way.";
    [4 / 4] pad0: u32 = Ty::U32, "Unused.";
    [8 / 8] tsc_timestamp: u64 = Ty::U64, "The TSC when system_time was true.";
    [16 / 16] system_time: u64 = Ty::U64, "System time in nanoseconds at tsc_timestamp.";
    [24 / 24] tsc_to_system_mul: u32 = Ty::U32, "Nanoseconds per shifted tick, as a fraction of 2^32.";
    [28 / 28] tsc_shift: i8 = Ty::I8, "Shift the tick count left by this first; right if negative.";
    [29 / 29] flags: u8 = Ty::U8, "Bit 0: TSC stable; bit 1: guest was stopped.";
    [30 / 30] pad1: [u8; 2] = Ty::Array(&Ty::U8, 2, 2), "Unused.";
}

abi_struct! {
    /// The part of a vCPU's information that x86 defines.
    pub struct ArchVcpuInfo = "arch_vcpu_info", "xen/include/public/arch-x86/xen-x86_64.h", 16 / 24;
    [0 / 0] cr2: u64 = Ty::Word, "The address of the last page fault, written before it is delivered.";
    [8 / 4] pad: [u64; 1] = Ty::Array(&Ty::Word, 1, 5), "Unused; makes vcpu_info 64 bytes.";
}

abi_struct! {
    /// What a vCPU shares with the hypervisor: its event state, CR2 and time.
    pub struct VcpuInfo = "vcpu_info", "xen/include/public/xen.h", 64 / 64;
    [0 / 0] evtchn_upcall_pending: u8 = Ty::U8, "Non-zero: some event is pending for this vCPU.";
    [1 / 1] evtchn_upcall_mask: u8 = Ty::U8, "Non-zero: deliver no event; stands in for a clear RFLAGS.IF.";
    pad _pad0: [u8; 6];
    [8 / 4] evtchn_pending_sel: u64 = Ty::Word, "One bit for each word of evtchn_pending that has news.";
    [16 / 8] arch: ArchVcpuInfo = Ty::Struct(ArchVcpuInfo::LAYOUT), "CR2.";
    [32 / 32] time: VcpuTimeInfo = Ty::Struct(VcpuTimeInfo::LAYOUT), "Time.";
}

abi_struct! {
    /// The part of the shared page that x86 defines.
    pub struct ArchSharedInfo = "arch_shared_info", "xen/include/public/arch-x86/xen.h", 48 / 28;
    [0 / 0] max_pfn: u64 = Ty::Word, "Entries of the p2m list, as the guest keeps it for the tools.";
    [8 / 4] pfn_to_mfn_frame_list_list: u64 = Ty::Pfn,
        "Frame of the guest's list of lists of p2m frames; 0 not yet, all ones not used.";
    [16 / 8] nmi_reason: u64 = Ty::Word, "Why an NMI came, as bits.";
    [24 / 12] p2m_cr3: u64 = Ty::Word, "Root in which p2m_vaddr is mapped; 0 if the linear list is not used.";
    [32 / 16] p2m_vaddr: u64 = Ty::Word, "Virtual address of the guest's linear p2m list.";
    [40 / 20] p2m_generation: u64 = Ty::Word, "Odd while the guest changes the mapping of its list.";
    [- / 24] wc_sec_hi = Ty::U32, "Bits 63..32 of wc_sec; the 64-bit ABI has it in the common part.";
}

abi_struct! {
    /// The page that a domain and the hypervisor share.
    pub struct SharedInfo = "shared_info", "xen/include/public/xen.h", 3136 / 2344;
    [0 / 0] vcpu_info: [VcpuInfo; 32] = Ty::Array(&Ty::Struct(VcpuInfo::LAYOUT), 32, 32),
        "The first 32 vCPUs' information.";
    [2048 / 2048] evtchn_pending: [u64; 64] = Ty::Array(&Ty::Word, 64, 32),
        "One bit per port: an event is pending.";
    [2560 / 2176] evtchn_mask: [u64; 64] = Ty::Array(&Ty::Word, 64, 32),
        "One bit per port: do not raise an upcall.";
    [3072 / 2304] wc_version: u32 = Ty::U32, "Odd while the wall clock is being updated.";
    [3076 / 2308] wc_sec: u32 = Ty::U32, "UTC seconds at system time 0, bits 31..0.";
    [3080 / 2312] wc_nsec: u32 = Ty::U32, "UTC nanoseconds at system time 0.";
    [3084 / -] wc_sec_hi: u32 = Ty::U32, "UTC seconds at system time 0, bits 63..32.";
    [3088 / 2316] arch: ArchSharedInfo = Ty::Struct(ArchSharedInfo::LAYOUT), "What x86 adds.";
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Abi;

    #[test]
    fn a_port_bit_and_its_selector_bit_cover_the_same_channels() {
        for (abi, channels) in [(Abi::Bits64, 4096), (Abi::Bits32, 1024)] {
            let pending = SharedInfo::LAYOUT.field("evtchn_pending", abi).unwrap();
            let words = pending.ty.size(abi) / abi.word();
            assert_eq!(words, 8 * abi.word(), "one selector bit per word");
            assert_eq!(words * 8 * abi.word(), channels);
            let mask = SharedInfo::LAYOUT.field("evtchn_mask", abi).unwrap();
            assert_eq!(mask.ty, pending.ty);
        }
    }

    #[test]
    fn time_of_a_vcpu_sits_at_the_same_place_in_both_layouts() {
        for abi in Abi::ALL {
            assert_eq!(VcpuInfo::LAYOUT.offset("time", abi), Some(32));
        }
    }

    #[test]
    fn the_high_seconds_move_with_the_layout() {
        assert_eq!(SharedInfo::LAYOUT.offset("wc_sec_hi", Abi::Bits64), Some(3084));
        assert_eq!(SharedInfo::LAYOUT.offset("wc_sec_hi", Abi::Bits32), None);
        let arch = SharedInfo::LAYOUT.offset("arch", Abi::Bits32).unwrap();
        let high = ArchSharedInfo::LAYOUT.offset("wc_sec_hi", Abi::Bits32).unwrap();
        assert_eq!(arch + high, 2340);
    }
}

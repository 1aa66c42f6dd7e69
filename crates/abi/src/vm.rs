//! The small families: console, assists, callbacks, segment bases and NMIs.

use crate::errno::Errno;
use crate::hypercall::{DomU, SubOpFacts};
use crate::layout::{Ty, abi_struct};
use crate::numbered;

numbered! {
    /// An operation of `console_io`, Xen's own console.
    ///
    /// A release build of Xen refuses both for an ordinary domU; a verbose debugging build takes its writes.
    pub enum ConsoleIoOp(u32), "xen/include/public/xen.h": SubOpFacts;
    0 Write "write" "Prints text on Xen's console; returns 0." {
        arg: "char[]", domu: DomU::Refused(Errno::Eperm)
    }
    1 Read "read" "Reads what was typed on Xen's console; returns the number of bytes." {
        arg: "char[]", domu: DomU::Refused(Errno::Eperm)
    }
}

numbered! {
    /// A command of `vm_assist`.
    pub enum VmAssistCommand(u32), "xen/include/public/xen.h": SubOpFacts;
    0 Enable "enable" "Turns the assist on." { arg: "", domu: DomU::Available }
    1 Disable "disable" "Turns the assist off." { arg: "", domu: DomU::Available }
}

numbered! {
    /// Something that the hypervisor does for the whole domain while it is on.
    ///
    /// An unknown type is `EINVAL`, found before an unknown command, which is `ENOSYS`.
    /// A 64-bit guest may turn on those that only matter to 32-bit guests; `m2p_strict` is `EINVAL` for a 32-bit
    /// guest.
    pub enum VmAssistType(u32), "xen/include/public/xen.h": SubOpFacts;
    0 FourGbSegments "4gb_segments"
    "32-bit Xen: emulate accesses beyond the truncated segment limit, as thread-local storage makes them." {
        arg: "", domu: DomU::Available
    }
    1 FourGbSegmentsNotify "4gb_segments_notify" "32-bit Xen: raise exception 15 at each such emulation." {
        arg: "", domu: DomU::Available
    }
    2 WritablePagetables "writable_pagetables" "Emulate stores to read-only L1 page tables." {
        arg: "", domu: DomU::Available
    }
    3 PaeExtendedCr3 "pae_extended_cr3" "32-bit guest: L3 pages may lie above 4 GiB of machine memory." {
        arg: "", domu: DomU::Available
    }
    4 ArchitecturalIopl "architectural_iopl"
    "Carry IOPL in frames and in the iret hypercall, and count the kernel as ring 0 for I/O checks." {
        arg: "", domu: DomU::Available
    }
    5 RunstateUpdateFlag "runstate_update_flag"
    "Set bit 63 of state_entry_time in the run state while it is being written." {
        arg: "", domu: DomU::Available
    }
    32 M2pStrict "m2p_strict" "64-bit guest: hide the machine-to-physical table from user mode." {
        arg: "", domu: DomU::Available
    }
}

numbered! {
    /// An operation of `callback_op`.
    pub enum CallbackOp(u32), "xen/include/public/callback.h": SubOpFacts;
    0 Register "register" "Sets an entry point of the calling vCPU." {
        arg: "callback_register", domu: DomU::Available
    }
    1 Unregister "unregister" "Clears an entry point; only that of NMIs can be cleared, else EINVAL." {
        arg: "callback_unregister", domu: DomU::Available
    }
}

numbered! {
    /// An entry point that `callback_op` sets. An unknown type is `ENOSYS`.
    pub enum CallbackType(u32), "xen/include/public/callback.h": SubOpFacts;
    0 Event "event" "Events are pending; the event mask is always set on entry." {
        arg: "", domu: DomU::Available
    }
    1 Failsafe "failsafe" "A segment register could not be loaded on the way back to the guest." {
        arg: "", domu: DomU::Available
    }
    2 Syscall "syscall" "64-bit guest: user mode executed SYSCALL in 64-bit code." {
        arg: "", domu: DomU::Available
    }
    3 SysenterDeprecated "sysenter_deprecated" "The first number of sysenter." {
        arg: "", domu: DomU::Removed(Errno::Enosys)
    }
    4 Nmi "nmi" "The same as entry 2 of the trap table, with events masked." {
        arg: "", domu: DomU::Available
    }
    5 Sysenter "sysenter" "User mode executed SYSENTER." { arg: "", domu: DomU::Available }
    7 Syscall32 "syscall32" "User mode executed SYSCALL in 32-bit code." {
        arg: "", domu: DomU::Available
    }
}

/// Flag of `callback_op`'s register: set the event mask on entry.
pub const CALLBACKF_MASK_EVENTS: u16 = 1;

numbered! {
    /// A base that `set_segment_base` sets. An unknown number is `EINVAL`.
    pub enum SegmentBase(u32), "xen/include/public/arch-x86/xen-x86_64.h": SubOpFacts;
    0 Fs "FS" "The FS base; EINVAL if not canonical." { arg: "", domu: DomU::Available }
    1 GsUser "GS_USER" "The GS base of user mode; EINVAL if not canonical." {
        arg: "", domu: DomU::Available
    }
    2 GsKernel "GS_KERNEL" "The GS base of kernel mode, in use now; EINVAL if not canonical." {
        arg: "", domu: DomU::Available
    }
    3 GsUserSel "GS_USER_SEL"
    "Loads the selector in the low 16 bits into user mode's GS; a bad one becomes null, without an error." {
        arg: "", domu: DomU::Available
    }
}

numbered! {
    /// An operation of `nmi_op`.
    pub enum NmiOp(u32), "xen/include/public/nmi.h": SubOpFacts;
    0 RegisterCallback "register_callback" "Sets the vCPU's NMI handler, entry 2 of the trap table." {
        arg: "xennmi_callback", domu: DomU::Available
    }
    1 UnregisterCallback "unregister_callback" "Clears the vCPU's NMI handler." {
        arg: "", domu: DomU::Available
    }
}

abi_struct! {
    /// An entry point to set. In the 32-bit ABI it is a selector and an offset.
    pub struct CallbackRegister = "callback_register", "xen/include/public/callback.h", 16 / 12;
    [0 / 0] kind: u16 = Ty::U16, "Which entry point (C name: type).";
    [2 / 2] flags: u16 = Ty::U16, "Bit 0: mask events on entry.";
    pad _pad0: [u8; 4];
    [8 / -] address: u64 = Ty::Word, "The handler.";
    [- / 4] address_cs = Ty::Word, "The handler's code selector.";
    [- / 8] address_eip = Ty::Word, "The handler.";
}

abi_struct! {
    /// An entry point to clear.
    pub struct CallbackUnregister = "callback_unregister", "xen/include/public/callback.h", 4 / 4;
    [0 / 0] kind: u16 = Ty::U16, "Which entry point (C name: type).";
    [2 / 2] unused: u16 = Ty::U16, "Unused.";
}

abi_struct! {
    /// The NMI handler.
    pub struct NmiCallback = "xennmi_callback", "xen/include/public/nmi.h", 16 / 8;
    [0 / 0] handler_address: u64 = Ty::Word, "The handler.";
    [8 / 4] pad: u64 = Ty::Word, "Unused.";
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::assert_well_formed;

    #[test]
    fn every_small_family_reads_back() {
        assert_well_formed::<ConsoleIoOp>();
        assert_well_formed::<VmAssistCommand>();
        assert_well_formed::<VmAssistType>();
        assert_well_formed::<CallbackOp>();
        assert_well_formed::<CallbackType>();
        assert_well_formed::<SegmentBase>();
        assert_well_formed::<NmiOp>();
        assert_eq!(CallbackType::from_number(6), None);
    }
}

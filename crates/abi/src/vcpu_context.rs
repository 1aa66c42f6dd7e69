//! A vCPU's whole state, as the builder and `VCPUOP_initialise` hand it to the hypervisor.
//!
//! [`VcpuGuestContext`] holds the FPU image, the registers, the trap table, the descriptor tables, the kernel
//! stack, control and debug registers, and the callbacks. It is the one structure whose two layouts have
//! little in common: the registers are others and stand in another order, and the tails differ.
//!
//! Source: `xen/include/public/arch-x86/xen.h`, `xen-x86_64.h`, `xen-x86_32.h`.

use crate::layout::{Ty, abi_struct};
use crate::numbered;

numbered! {
    /// A bit of `VcpuGuestContext::flags`, by its number. Bit 8 appears only in the frame of the iret
    /// hypercall.
    pub enum ContextFlag(u32), "xen/include/public/arch-x86/xen.h";
    0 I387Valid "VGCF_i387_valid" "fpu_ctxt holds a state; otherwise the FPU starts as after RESET.";
    2 InKernel "VGCF_in_kernel" "The vCPU starts in kernel mode.";
    3 FailsafeDisablesEvents "VGCF_failsafe_disables_events" "The failsafe callback is entered with events masked.";
    4 SyscallDisablesEvents "VGCF_syscall_disables_events" "The SYSCALL callback is entered with events masked.";
    5 Online "VGCF_online" "The vCPU runs at once; otherwise it stays down.";
    8 InSyscall "VGCF_in_syscall" "iret frame: return by SYSRET, giving up RCX and R11.";
}

impl ContextFlag {
    /// The flag as a mask.
    pub const fn mask(self) -> u64 {
        1 << self.number()
    }
}

/// Bits of `TrapInfo::flags`.
pub mod trap_flags {
    /// The least privileged virtual ring that may enter by a software interrupt: 0 none, 1 and 2 the kernel,
    /// 3 everybody.
    pub const DPL_MASK: u8 = 3;
    /// Set the event mask on entry.
    pub const MASK_EVENTS: u8 = 4;
}

abi_struct! {
    /// One entry of the trap table: where an exception or software interrupt goes.
    pub struct TrapInfo = "trap_info", "xen/include/public/arch-x86/xen.h", 16 / 8;
    [0 / 0] vector: u8 = Ty::U8, "The vector, which is the entry's index in a context.";
    [1 / 1] flags: u8 = Ty::U8, "Bits 1..0: DPL for software interrupts; bit 2: mask events on entry.";
    [2 / 2] cs: u16 = Ty::U16, "The handler's code selector; 64-bit Xen ignores it for 64-bit guests.";
    pad _pad0: [u8; 4];
    [8 / 4] address: u64 = Ty::Word, "The handler; 0 is no handler, and ends the list of set_trap_table.";
}

abi_struct! {
    /// The general registers of a vCPU.
    pub struct UserRegs = "cpu_user_regs", "xen/include/public/arch-x86/xen.h", 200 / 68;
    [0 / -] r15: u64 = Ty::U64, "R15.";
    [8 / -] r14: u64 = Ty::U64, "R14.";
    [16 / -] r13: u64 = Ty::U64, "R13.";
    [24 / -] r12: u64 = Ty::U64, "R12.";
    [32 / -] rbp: u64 = Ty::U64, "RBP.";
    [40 / -] rbx: u64 = Ty::U64, "RBX.";
    [48 / -] r11: u64 = Ty::U64, "R11.";
    [56 / -] r10: u64 = Ty::U64, "R10.";
    [64 / -] r9: u64 = Ty::U64, "R9.";
    [72 / -] r8: u64 = Ty::U64, "R8.";
    [80 / -] rax: u64 = Ty::U64, "RAX.";
    [88 / -] rcx: u64 = Ty::U64, "RCX.";
    [96 / -] rdx: u64 = Ty::U64, "RDX.";
    [104 / -] rsi: u64 = Ty::U64, "RSI; the address of start_info at the start.";
    [112 / -] rdi: u64 = Ty::U64, "RDI.";
    [120 / -] error_code: u32 = Ty::U32, "Private to Xen.";
    [124 / -] entry_vector: u32 = Ty::U32, "Private to Xen.";
    [128 / -] rip: u64 = Ty::U64, "RIP.";
    [136 / -] cs: u16 = Ty::U16, "CS.";
    [138 / -] pad0: u16 = Ty::U16, "Unused.";
    [140 / -] saved_upcall_mask: u8 = Ty::U8, "The event mask when the registers were saved.";
    [141 / -] pad1: [u8; 3] = Ty::Array(&Ty::U8, 3, 3), "Unused.";
    [144 / -] rflags: u64 = Ty::U64, "RFLAGS.";
    [152 / -] rsp: u64 = Ty::U64, "RSP.";
    [160 / -] ss: u16 = Ty::U16, "SS.";
    [162 / -] pad2: [u16; 3] = Ty::Array(&Ty::U16, 3, 3), "Unused.";
    [168 / -] es: u16 = Ty::U16, "ES.";
    [170 / -] pad3: [u16; 3] = Ty::Array(&Ty::U16, 3, 3), "Unused.";
    [176 / -] ds: u16 = Ty::U16, "DS.";
    [178 / -] pad4: [u16; 3] = Ty::Array(&Ty::U16, 3, 3), "Unused.";
    [184 / -] fs: u16 = Ty::U16, "FS.";
    [186 / -] pad5: [u16; 3] = Ty::Array(&Ty::U16, 3, 3), "Unused.";
    [192 / -] gs: u16 = Ty::U16, "GS.";
    [194 / -] pad6: [u16; 3] = Ty::Array(&Ty::U16, 3, 3), "Unused.";
    [- / 0] ebx = Ty::U32, "EBX.";
    [- / 4] ecx = Ty::U32, "ECX.";
    [- / 8] edx = Ty::U32, "EDX.";
    [- / 12] esi = Ty::U32, "ESI; the address of start_info at the start.";
    [- / 16] edi = Ty::U32, "EDI.";
    [- / 20] ebp = Ty::U32, "EBP.";
    [- / 24] eax = Ty::U32, "EAX.";
    [- / 28] error_code = Ty::U16, "Private to Xen.";
    [- / 30] entry_vector = Ty::U16, "Private to Xen.";
    [- / 32] eip = Ty::U32, "EIP.";
    [- / 36] cs = Ty::U16, "CS.";
    [- / 38] saved_upcall_mask = Ty::U8, "The event mask when the registers were saved.";
    [- / 39] pad0 = Ty::U8, "Unused.";
    [- / 40] eflags = Ty::U32, "EFLAGS.";
    [- / 44] esp = Ty::U32, "ESP.";
    [- / 48] ss = Ty::U16, "SS.";
    [- / 50] pad1 = Ty::U16, "Unused.";
    [- / 52] es = Ty::U16, "ES.";
    [- / 54] pad2 = Ty::U16, "Unused.";
    [- / 56] ds = Ty::U16, "DS.";
    [- / 58] pad3 = Ty::U16, "Unused.";
    [- / 60] fs = Ty::U16, "FS.";
    [- / 62] pad4 = Ty::U16, "Unused.";
    [- / 64] gs = Ty::U16, "GS.";
    [- / 66] pad5 = Ty::U16, "Unused.";
}

abi_struct! {
    /// The whole state of a vCPU.
    pub struct VcpuGuestContext = "vcpu_guest_context", "xen/include/public/arch-x86/xen.h", 5168 / 2800;
    [0 / 0] fpu_ctxt: [u8; 512] = Ty::Array(&Ty::Char, 512, 512), "The FPU, as FXSAVE writes it.";
    [512 / 512] flags: u64 = Ty::Word, "VGCF_ bits.";
    [520 / 516] user_regs: UserRegs = Ty::Struct(UserRegs::LAYOUT), "The general registers.";
    [720 / 584] trap_ctxt: [TrapInfo; 256] = Ty::Array(&Ty::Struct(TrapInfo::LAYOUT), 256, 256),
        "The trap table, one entry per vector.";
    [4816 / 2632] ldt_base: u64 = Ty::Word, "Virtual address of the LDT, page-aligned.";
    [4824 / 2636] ldt_ents: u64 = Ty::Word, "Entries of the LDT, at most 8192.";
    [4832 / 2640] gdt_frames: [u64; 16] = Ty::Array(&Ty::Word, 16, 16), "Machine frames of the guest's GDT.";
    [4960 / 2704] gdt_ents: u64 = Ty::Word, "Entries of the guest's GDT, at most 7168.";
    [4968 / 2708] kernel_ss: u64 = Ty::Word, "SS for entries from user mode.";
    [4976 / 2712] kernel_sp: u64 = Ty::Word, "Stack for entries from user mode.";
    [4984 / 2716] ctrlreg: [u64; 8] = Ty::Array(&Ty::Word, 8, 8),
        "CR0 to CR7; CR3 is the kernel root, CR1 holds the user root of a 64-bit guest.";
    [5048 / 2748] debugreg: [u64; 8] = Ty::Array(&Ty::Word, 8, 8), "DR0 to DR7.";
    [- / 2780] event_callback_cs = Ty::Word, "Selector of the event callback.";
    [5112 / 2784] event_callback_eip: u64 = Ty::Word, "The event callback.";
    [- / 2788] failsafe_callback_cs = Ty::Word, "Selector of the failsafe callback.";
    [5120 / 2792] failsafe_callback_eip: u64 = Ty::Word, "The failsafe callback.";
    [5128 / -] syscall_callback_eip: u64 = Ty::Word, "Where SYSCALL of 64-bit user mode goes.";
    [5136 / 2796] vm_assist: u64 = Ty::Word, "Assists that are on, one bit per type; read from vCPU 0 only.";
    [5144 / -] fs_base: u64 = Ty::U64, "FS base.";
    [5152 / -] gs_base_kernel: u64 = Ty::U64, "GS base of kernel mode.";
    [5160 / -] gs_base_user: u64 = Ty::U64, "GS base of user mode.";
}

abi_struct! {
    /// The frame on the kernel stack that the iret hypercall consumes.
    ///
    /// The 32-bit ABI has no C structure for it; ESP and SS are read only when the target is ring 2 or 3.
    pub struct IretContext = "iret_context", "xen/include/public/arch-x86/xen-x86_64.h", 72 / 24;
    [0 / -] rax: u64 = Ty::U64, "RAX, pushed by the hypercall page's stub.";
    [8 / -] r11: u64 = Ty::U64, "R11, pushed by the hypercall page's stub.";
    [16 / -] rcx: u64 = Ty::U64, "RCX, pushed by the hypercall page's stub.";
    [24 / -] flags: u64 = Ty::U64, "VGCF_in_syscall or 0.";
    [32 / -] rip: u64 = Ty::U64, "Where to go.";
    [40 / -] cs: u64 = Ty::U64, "The code selector; its RPL says whether to user mode.";
    [48 / -] rflags: u64 = Ty::U64, "The flags; IF sets the event mask.";
    [56 / -] rsp: u64 = Ty::U64, "The stack.";
    [64 / -] ss: u64 = Ty::U64, "The stack selector.";
    [- / 0] eax = Ty::U32, "EAX, pushed by the hypercall page's stub.";
    [- / 4] eip = Ty::U32, "Where to go.";
    [- / 8] cs = Ty::U32, "The code selector.";
    [- / 12] eflags = Ty::U32, "The flags; IF sets the event mask.";
    [- / 16] esp = Ty::U32, "The stack.";
    [- / 20] ss = Ty::U32, "The stack selector.";
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Abi;
    use crate::table::assert_well_formed;

    #[test]
    fn flags_read_back() {
        assert_well_formed::<ContextFlag>();
        assert_eq!(ContextFlag::InKernel.mask() | ContextFlag::Online.mask(), 0x24);
        assert_eq!(ContextFlag::InSyscall.mask(), 0x100);
    }

    #[test]
    fn registers_of_the_two_layouts_share_only_the_names_without_a_width() {
        let names = |abi| UserRegs::LAYOUT.fields_of(abi).map(|field| field.name).collect::<Vec<_>>();
        let (wide, narrow) = (names(Abi::Bits64), names(Abi::Bits32));
        assert_eq!((wide.len(), narrow.len()), (34, 25));
        let shared: Vec<&str> =
            narrow.into_iter().filter(|name| wide.contains(name) && !name.starts_with("pad")).collect();
        assert_eq!(
            shared,
            ["error_code", "entry_vector", "cs", "saved_upcall_mask", "ss", "es", "ds", "fs", "gs"]
        );
    }

    #[test]
    fn the_fpu_image_comes_first_so_that_it_can_be_aligned() {
        assert_eq!(VcpuGuestContext::LAYOUT.offset("fpu_ctxt", Abi::Bits64), Some(0));
        assert_eq!(VcpuGuestContext::LAYOUT.field("fs_base", Abi::Bits32), None);
    }
}

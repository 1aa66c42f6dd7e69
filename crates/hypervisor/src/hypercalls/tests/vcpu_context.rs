//! `VCPUOP_initialise`.

use paravane_abi::{
    errno::Errno,
    hypercall::Hypercall,
    units::{DomId, GuestVirt, MachAddr, PAGE_SHIFT, Pfn, VcpuId},
    vcpu::VcpuOp,
    vcpu_context::{ContextFlag, VcpuGuestContext},
};
use paravane_engine::{Gpr, GuestMode, SegmentRegister, vector};
use zerocopy::{FromZeros, IntoBytes};

use crate::{
    Verdict,
    testing::{BUFFER, FREE, Guest, frame, machine_address, virt},
};

const HOLE: u64 = 0x0000_8000_0000_0000;
/// Two pages for the context, since it crosses one.
const CONTEXT: Pfn = Pfn(FREE.0 + 10);
/// A page of descriptors, mapped read-only by nobody yet.
const GDT: Pfn = Pfn(FREE.0 + 12);
/// A user root.
const USER_ROOT: Pfn = Pfn(FREE.0 + 13);

/// What Linux hands over for a secondary CPU.
fn context() -> Box<VcpuGuestContext> {
    let mut context: Box<VcpuGuestContext> = VcpuGuestContext::new_box_zeroed().unwrap();
    context.flags = ContextFlag::InKernel.mask();
    context.user_regs.rip = virt(FREE).0;
    context.user_regs.rsp = virt(Pfn(FREE.0 + 1)).0;
    context.user_regs.rflags = 0x1000;
    context.user_regs.cs = 0xe030;
    context.user_regs.ss = 0xe028;
    context.user_regs.rsi = 77;
    context.kernel_ss = 0xe028;
    context.kernel_sp = virt(Pfn(FREE.0 + 1)).0;
    context.gs_base_kernel = 0xffff_8880_0000_0000;
    context.gs_base_user = 0x1234;
    context.fs_base = 0x5678;
    context.event_callback_eip = virt(FREE).0 + 1;
    context.failsafe_callback_eip = virt(FREE).0 + 2;
    context.syscall_callback_eip = virt(FREE).0 + 3;
    context.ctrlreg[3] = frame(Pfn(0)).0 << PAGE_SHIFT;
    context.trap_ctxt[14].address = virt(FREE).0 + 14;
    context.trap_ctxt[14].flags = 4 | 3;
    context
}

impl Guest {
    fn initialise(&mut self, vcpu: u32, context: &VcpuGuestContext) -> Result<i64, Errno> {
        self.domain.memory.write(machine_address(CONTEXT), context.as_bytes()).unwrap();
        let args = [VcpuOp::Initialise.number().into(), vcpu.into(), virt(CONTEXT).0];
        self.call(Hypercall::VcpuOp, &args)
    }
}

#[test]
fn a_context_waits_until_its_vcpu_is_brought_up() {
    let mut guest = Guest::new(2);
    assert_eq!(guest.initialise(1, &context()), Ok(0));
    assert_eq!(guest.vcpu_command(VcpuOp::IsUp, 1), Ok(0));
    assert_eq!(guest.initialise(1, &context()), Err(Errno::Eexist));
    assert!(guest.domain.take_started_vcpus().is_empty());
    guest.vcpu_command(VcpuOp::Up, 1).unwrap();
    let mut started = guest.domain.take_started_vcpus();
    let started = started.pop().unwrap().context.unwrap();
    assert_eq!((started.rip, started.gpr(Gpr::Rsi)), (virt(FREE).0, 77));
    assert_eq!(started.rflags, 0x202, "IOPL is virtual, and IF is set");
    assert_eq!(started.mode, GuestMode::Kernel);
    assert_eq!(started.kernel_root, frame(Pfn(0)));
    assert_eq!(started.user_root, None);
    let cs = started.segment(SegmentRegister::Cs);
    let ss = started.segment(SegmentRegister::Ss);
    assert_eq!((cs.selector, ss.selector), (0xe033, 0xe02b));
    assert!(started.is_64_bit());
    assert_eq!(started.segment(SegmentRegister::Gs).base, 0xffff_8880_0000_0000);
    assert_eq!(started.inactive_gs_base, 0x1234);
    assert_eq!(started.segment(SegmentRegister::Fs).base, 0x5678);
    assert_eq!(started.fpu.legacy[..2], [0x40, 0], "the FPU is as after RESET");
    assert_eq!((started.debug[6], started.debug[7]), (0xffff_0ff0, 0x400));
    let vcpu = &guest.domain.vcpus[1];
    assert_eq!((vcpu.iopl, vcpu.kernel_ss), (1, 0xe02b));
    assert_eq!(vcpu.kernel_sp, virt(Pfn(FREE.0 + 1)));
    assert_eq!(vcpu.callbacks.event.address, GuestVirt(virt(FREE).0 + 1));
    assert!(!vcpu.callbacks.failsafe.masks_events);
    assert_eq!(vcpu.traps[14].handler.address, GuestVirt(virt(FREE).0 + 14));
    assert_eq!((vcpu.traps[14].dpl, vcpu.traps[14].handler.masks_events), (3, true));
    guest.contexts[1] = *started;
    assert!(matches!(guest.enter(VcpuId(1)), Verdict::Run));
    guest.domain.recount().unwrap();
}

#[test]
fn what_no_vcpu_can_be_is_refused_and_leaves_nothing() {
    type Spoil = fn(&mut VcpuGuestContext);
    let spoils: [(&str, Spoil); 22] = [
        ("rip", |context| context.user_regs.rip = HOLE),
        ("rsp", |context| context.user_regs.rsp = HOLE),
        ("kernel_sp", |context| context.kernel_sp = HOLE),
        ("fs_base", |context| context.fs_base = HOLE),
        ("gs_base_kernel", |context| context.gs_base_kernel = HOLE),
        ("gs_base_user", |context| context.gs_base_user = HOLE),
        ("event", |context| context.event_callback_eip = HOLE),
        ("failsafe", |context| context.failsafe_callback_eip = HOLE),
        ("syscall", |context| context.syscall_callback_eip = HOLE),
        ("trap", |context| context.trap_ctxt[255].address = HOLE),
        ("dr6", |context| context.debugreg[6] = 1 << 32),
        ("dr7", |context| context.debugreg[7] = 1 << 32),
        ("dr0", |context| context.debugreg[0] = 0xffff_8000_0000_0000),
        ("ldt alignment", |context| context.ldt_base = 8),
        ("ldt in Xen", |context| context.ldt_base = 0xffff_8000_0000_0000),
        ("ldt size", |context| context.ldt_ents = 8193),
        ("gdt size", |context| context.gdt_ents = 7169),
        ("gdt size overflow", |context| context.gdt_ents = u64::MAX),
        ("gdt frame", |context| (context.gdt_ents, context.gdt_frames[0]) = (1, u64::MAX)),
        ("user mode without a root", |context| context.flags = 0),
        ("kernel root", |context| context.ctrlreg[3] = 0),
        ("kernel root of L3", |context| context.ctrlreg[3] = frame(Pfn(1)).0 << PAGE_SHIFT),
    ];
    let mut guest = Guest::new(2);
    for (what, spoil) in spoils {
        let mut context = context();
        spoil(&mut context);
        assert_eq!(guest.initialise(1, &context), Err(Errno::Einval), "{what}");
        guest.domain.recount().unwrap();
        assert_eq!(guest.vcpu_command(VcpuOp::Up, 1), Err(Errno::Einval), "{what}");
    }
    assert_eq!(guest.initialise(1, &context()), Ok(0));
}

#[test]
fn a_vcpu_needs_its_vcpu_info_first() {
    let mut guest = Guest::new(33);
    assert_eq!(guest.initialise(32, &context()), Err(Errno::Einval));
    assert_eq!(guest.vcpu_command(VcpuOp::Initialise, 1), Err(Errno::Efault));
    assert_eq!(guest.vcpu_command(VcpuOp::Initialise, 0), Err(Errno::Efault), "the context is read first");
    assert_eq!(guest.initialise(0, &context()), Err(Errno::Eexist));
}

#[test]
fn an_online_context_runs_at_once() {
    let mut guest = Guest::new(2);
    let mut context = context();
    context.flags |= ContextFlag::Online.mask() | ContextFlag::FailsafeDisablesEvents.mask();
    assert_eq!(guest.initialise(1, &context), Ok(0));
    assert_eq!(guest.vcpu_command(VcpuOp::IsUp, 1), Ok(1));
    assert_eq!(guest.domain.take_started_vcpus().len(), 1);
    assert!(guest.domain.vcpus[1].callbacks.failsafe.masks_events);
}

#[test]
fn a_valid_fpu_state_is_taken_with_sane_bits() {
    let mut guest = Guest::new(2);
    let mut context = context();
    context.flags |= ContextFlag::I387Valid.mask() | ContextFlag::Online.mask();
    context.fpu_ctxt[0] = 0x7f;
    context.fpu_ctxt[24..28].copy_from_slice(&0xffff_1f80_u32.to_le_bytes());
    context.ctrlreg[0] = 1 << 3;
    context.ctrlreg[4] = u64::MAX;
    context.debugreg[3] = 0x1000;
    context.debugreg[7] = 1;
    guest.initialise(1, &context).unwrap();
    let started = guest.domain.take_started_vcpus().pop().unwrap().context.unwrap();
    assert_eq!(started.fpu.legacy[0], 0x7f);
    assert_eq!(started.fpu.legacy[24..28], 0x1f80_u32.to_le_bytes());
    assert!(started.task_switched);
    assert_eq!(started.cr4.0, 1 << 2 | 1 << 3 | 1 << 16 | 1 << 18);
    assert_eq!((started.debug[3], started.debug[7]), (0x1000, 0x401));
}

#[test]
fn a_gdt_and_a_user_root_are_claimed() {
    let mut guest = Guest::new(2);
    // The pages must not be writable anywhere: take their mappings away.
    for page in [GDT, USER_ROOT] {
        let slot = machine_address(Pfn(3)).0 + page.0 * 8;
        guest.put(machine_address(BUFFER), &[slot, 0_u64]);
        let args = [virt(BUFFER).0, 1, 0, u64::from(DomId::SELF.0)];
        assert_eq!(guest.call(Hypercall::MmuUpdate, &args), Ok(0));
    }
    guest.put(MachAddr(machine_address(GDT).0 + 16), &0x00af_9b00_0000_ffff_u64);
    let mut context = context();
    context.flags = ContextFlag::Online.mask();
    context.ctrlreg[1] = frame(USER_ROOT).0 << PAGE_SHIFT;
    (context.gdt_ents, context.gdt_frames[0]) = (16, frame(GDT).0);
    context.user_regs.cs = 0x10;
    assert_eq!(guest.initialise(1, &context), Ok(0));
    guest.domain.recount().unwrap();
    let started = guest.domain.take_started_vcpus().pop().unwrap().context.unwrap();
    assert_eq!(started.mode, GuestMode::User);
    assert_eq!(started.user_root, Some(frame(USER_ROOT)));
    assert_eq!(started.segment(SegmentRegister::Cs).selector, 0x13, "its own code segment");
    assert_eq!(started.segment(SegmentRegister::Gs).base, 0x1234, "user mode's base is active");
}

#[test]
fn a_bad_code_segment_is_a_fault_that_the_vcpu_starts_with() {
    let mut guest = Guest::new(2);
    let mut context = context();
    context.flags |= ContextFlag::Online.mask();
    context.user_regs.cs = 0x10;
    context.trap_ctxt[usize::from(vector::GENERAL_PROTECTION)].address = virt(FREE).0 + 13;
    assert_eq!(guest.initialise(1, &context), Ok(0));
    let started = guest.domain.take_started_vcpus().pop().unwrap().context.unwrap();
    assert_eq!(started.rip, virt(FREE).0 + 13);
    let error_code: u64 =
        guest.domain.space(started.kernel_root).read_value(GuestVirt(started.gpr(Gpr::Rsp) + 16)).unwrap();
    assert_eq!(error_code, 0x10);
}

//! `VCPUOP_initialise`: a vCPU's first registers.
//!
//! The guest hands over a `vcpu_guest_context`: everything a vCPU is, from general registers to the trap table. It
//! is checked as a whole before anything changes; then the parts that need frames (descriptor tables, page-table
//! roots) are claimed, and the registers wait until the vCPU is brought up.
//!
//! Source: `arch_set_info_guest` in `xen/arch/x86/domain.c`, `load_segments` there for the segment bases.

use paravane_abi::{
    errno::Errno,
    units::{GuestVirt, Mfn, PAGE_SHIFT, PAGE_SIZE, VcpuId},
    vcpu_context::{ContextFlag, TrapInfo, VcpuGuestContext, trap_flags},
};
use paravane_engine::{
    Control4, FpuArea, GDT_FRAMES, Gpr, GuestMode, Segment, SegmentRegister, VcpuContext, rflags,
};
use paravane_x86::{gdt, selector::Selector};

use super::{iret::ALL_FLAGS, vcpu};
use crate::{
    domain::Call,
    exits,
    guest::is_guest_address,
    refusal::Refusal,
    selectors,
    vcpu::{Availability, Callbacks, Handler, TrapEntry, Vcpu},
};

/// Descriptors in a page.
const DESCRIPTORS_PER_PAGE: u64 = PAGE_SIZE / 8;
/// The most descriptors of an LDT.
const LDT_ENTRIES: u64 = 8192;
/// CR0.TS.
const TASK_SWITCHED: u64 = 1 << 3;
/// The bits of CR4 that a guest chooses.
///
/// Source: `PV_CR4_GUEST_MASK` in `xen/arch/x86/include/asm/pv/domain.h`.
const CR4_GUEST: u64 = Control4::TSD | Control4::DE | Control4::FSGSBASE | Control4::OSXSAVE;
/// Where an FXSAVE image has MXCSR.
const MXCSR: core::ops::Range<usize> = 24..28;
/// The bits of MXCSR that every 64-bit CPU has. FXRSTOR faults on others.
const MXCSR_BITS: u32 = 0xffff;

/// `VCPUOP_initialise`. The vCPU stays down unless its flags say that it is online.
///
/// # Errors
///
/// `EINVAL` for a vCPU that has no `vcpu_info` yet or a context that cannot be; `EFAULT` if it cannot be read;
/// `EEXIST` the second time.
pub(super) fn initialise(call: &mut Call<'_>, id: VcpuId, at: GuestVirt) -> Result<(), Refusal> {
    let vcpu = &call.domain.vcpus[id.0 as usize];
    if !vcpu.has_info() {
        return Err(Errno::Einval.into());
    }
    let first = vcpu.availability == Availability::Uninitialised;
    let request: Box<VcpuGuestContext> = Box::new(call.space().read_value(at)?);
    if !first {
        return Err(Errno::Eexist.into());
    }
    check(&request)?;
    let mut context = registers(&request);
    claim_frames(call, id, &request, &mut context)?;
    configure(&mut call.domain.vcpus[id.0 as usize], &request);
    load_segments(call, id, &request, &mut context)?;
    let vcpu = &mut call.domain.vcpus[id.0 as usize];
    vcpu.availability = Availability::Down;
    vcpu.first_context = Some(context);
    if has(&request, ContextFlag::Online) {
        vcpu::up(call, id)?;
    }
    Ok(())
}

fn has(request: &VcpuGuestContext, flag: ContextFlag) -> bool {
    request.flags & flag.mask() != 0
}

/// Refuses what no vCPU can be.
fn check(request: &VcpuGuestContext) -> Result<(), Errno> {
    let regs = &request.user_regs;
    let canonical = [
        regs.rip,
        regs.rsp,
        request.kernel_sp,
        if request.ldt_ents == 0 { 0 } else { request.ldt_base },
        request.fs_base,
        request.gs_base_kernel,
        request.gs_base_user,
        request.event_callback_eip,
        request.syscall_callback_eip,
        request.failsafe_callback_eip,
    ];
    let traps = request.trap_ctxt.iter().map(|trap| trap.address);
    let addresses_fit = canonical.into_iter().chain(traps).all(|address| GuestVirt(address).is_canonical());
    let [breakpoints @ .., _, _, status, control] = request.debugreg;
    let debug_fits = status >> 32 == 0
        && control >> 32 == 0
        && breakpoints.into_iter().all(|address| is_guest_address(GuestVirt(address)));
    let ldt_fits = is_guest_address(GuestVirt(request.ldt_base))
        && request.ldt_base.is_multiple_of(PAGE_SIZE)
        && request.ldt_ents <= LDT_ENTRIES;
    let gdt_fits = request.gdt_ents <= u64::from(gdt::FIRST_RESERVED_BYTE) / 8;
    let has_root = has(request, ContextFlag::InKernel) || request.ctrlreg[1] != 0;
    if addresses_fit && debug_fits && ldt_fits && gdt_fits && has_root { Ok(()) } else { Err(Errno::Einval) }
}

/// The registers, without what needs frames.
fn registers(request: &VcpuGuestContext) -> Box<VcpuContext> {
    let regs = &request.user_regs;
    let mut context = Box::new(VcpuContext::new());
    for (register, value) in [
        (Gpr::Rax, regs.rax),
        (Gpr::Rbx, regs.rbx),
        (Gpr::Rcx, regs.rcx),
        (Gpr::Rdx, regs.rdx),
        (Gpr::Rsi, regs.rsi),
        (Gpr::Rdi, regs.rdi),
        (Gpr::Rbp, regs.rbp),
        (Gpr::Rsp, regs.rsp),
        (Gpr::R8, regs.r8),
        (Gpr::R9, regs.r9),
        (Gpr::R10, regs.r10),
        (Gpr::R11, regs.r11),
        (Gpr::R12, regs.r12),
        (Gpr::R13, regs.r13),
        (Gpr::R14, regs.r14),
        (Gpr::R15, regs.r15),
    ] {
        context.set_gpr(register, value);
    }
    context.rip = regs.rip;
    context.rflags = regs.rflags & ALL_FLAGS & !(rflags::IOPL | rflags::VM) | rflags::IF | rflags::FIXED;
    context.mode = if has(request, ContextFlag::InKernel) { GuestMode::Kernel } else { GuestMode::User };
    context.task_switched = request.ctrlreg[0] & TASK_SWITCHED != 0;
    context.cr4 = Control4(request.ctrlreg[4] & CR4_GUEST);
    context.descriptors.ldt_base = GuestVirt(if request.ldt_ents == 0 { 0 } else { request.ldt_base });
    // Checked against the LDT's size.
    context.descriptors.ldt_entries = u16::try_from(request.ldt_ents).unwrap_or(0);
    context.fpu = fpu(request);
    context
}

fn fpu(request: &VcpuGuestContext) -> FpuArea {
    if !has(request, ContextFlag::I387Valid) {
        return FpuArea::reset();
    }
    let mut image = request.fpu_ctxt;
    let mxcsr = &mut image[MXCSR];
    let mut bits = [0; 4];
    bits.copy_from_slice(mxcsr);
    mxcsr.copy_from_slice(&(u32::from_le_bytes(bits) & MXCSR_BITS).to_le_bytes());
    FpuArea::of_legacy(image)
}

/// Claims the frames of the GDT and the page-table roots.
fn claim_frames(
    call: &mut Call<'_>,
    id: VcpuId,
    request: &VcpuGuestContext,
    context: &mut VcpuContext,
) -> Result<(), Errno> {
    let count = request.gdt_ents.div_ceil(DESCRIPTORS_PER_PAGE);
    let pages: Vec<Mfn> = (0..count).zip(&request.gdt_frames).map(|(_, frame)| Mfn(*frame)).collect();
    let own = call.domain.claim_gdt(id, &pages)?;
    let kernel = Mfn(request.ctrlreg[3] >> PAGE_SHIFT);
    let user = (request.ctrlreg[1] != 0).then_some(Mfn(request.ctrlreg[1] >> PAGE_SHIFT));
    call.domain.claim_roots(id, kernel, user).inspect_err(|_| {
        // Dropping all pages does not fail.
        let _dropped = call.domain.claim_gdt(id, &[]);
    })?;
    context.descriptors.gdt[..own.len()].copy_from_slice(&own);
    // Xen's own page is the same for all.
    context.descriptors.gdt[GDT_FRAMES - 1] = call.context.descriptors.gdt[GDT_FRAMES - 1];
    context.kernel_root = kernel;
    context.user_root = user;
    Ok(())
}

/// What the hypervisor keeps of the vCPU.
fn configure(vcpu: &mut Vcpu, request: &VcpuGuestContext) {
    let handler = |address, masks_events| Handler { address: GuestVirt(address), masks_events };
    for (entry, info) in vcpu.traps.iter_mut().zip(&request.trap_ctxt) {
        *entry = trap(info);
    }
    vcpu.callbacks = Callbacks {
        event: handler(request.event_callback_eip, true),
        failsafe: handler(request.failsafe_callback_eip, has(request, ContextFlag::FailsafeDisablesEvents)),
        syscall: handler(request.syscall_callback_eip, has(request, ContextFlag::SyscallDisablesEvents)),
        ..Callbacks::default()
    };
    vcpu.kernel_sp = GuestVirt(request.kernel_sp);
    vcpu.kernel_ss = selector(request.kernel_ss) | 3;
    // Two bits.
    vcpu.iopl = (request.user_regs.rflags >> 12 & 3) as u8;
}

fn trap(info: &TrapInfo) -> TrapEntry {
    TrapEntry {
        handler: Handler {
            address: GuestVirt(info.address),
            masks_events: info.flags & trap_flags::MASK_EVENTS != 0,
        },
        cs: info.cs | 3,
        dpl: info.flags & trap_flags::DPL_MASK,
    }
}

/// Debug registers and segments, with the rules that hold when the guest loads them itself. A data segment that
/// cannot be loaded is null; a bad CS or SS is a fault that the vCPU starts with.
fn load_segments(
    call: &mut Call<'_>,
    id: VcpuId,
    request: &VcpuGuestContext,
    context: &mut VcpuContext,
) -> Result<(), Refusal> {
    let regs = &request.user_regs;
    let mut new = Call { domain: call.domain, vcpu: id, context, now: call.now };
    for (number, value) in (0..).zip(request.debugreg) {
        // Registers that refuse their value keep that of RESET, as on real Xen.
        if number != 4 && number != 5 {
            let _refused = super::segments::write_debug(&mut new, number, value);
        }
    }
    for (register, image) in [
        (SegmentRegister::Es, regs.es),
        (SegmentRegister::Ds, regs.ds),
        (SegmentRegister::Fs, regs.fs),
        (SegmentRegister::Gs, regs.gs),
    ] {
        let selector = Selector(if image & !3 == 0 { image } else { image | 3 });
        let loaded = selectors::load_data(&mut new, selector).unwrap_or_else(|_| Segment::null(0));
        *new.context.segment_mut(register) = loaded;
    }
    set_bases(new.context, request);
    let (cs, ss) = (Selector(regs.cs | 3), Selector(regs.ss | 3));
    if let Err(bad) = selectors::load_code_and_stack(&mut new, cs, ss) {
        exits::inject(&mut new, bad.vector(), Some(bad.error_code))?;
    }
    Ok(())
}

/// The bases of FS and GS. A base of 0 leaves that of the selector, except GS in kernel mode.
fn set_bases(context: &mut VcpuContext, request: &VcpuGuestContext) {
    if request.fs_base != 0 {
        context.segment_mut(SegmentRegister::Fs).base = request.fs_base;
    }
    let gs = context.segment_mut(SegmentRegister::Gs);
    let user = if request.gs_base_user != 0 { request.gs_base_user } else { gs.base };
    let kernel = request.gs_base_kernel;
    let (active, inactive) =
        if has(request, ContextFlag::InKernel) { (kernel, user) } else { (user, kernel) };
    gs.base = active;
    context.inactive_gs_base = inactive;
}

/// The selector in a word.
#[expect(clippy::cast_possible_truncation, reason = "a selector has 16 bits")]
fn selector(word: u64) -> u16 {
    word as u16
}

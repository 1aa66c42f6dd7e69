//! From a hypercall number to its handler.

use paravane_abi::{errno::Errno, hypercall::Hypercall};
use paravane_engine::Gpr;

use crate::{
    crash::CrashCause,
    domain::{Call, Verdict},
    history::PastHypercall,
    hypercalls::{
        control, descriptors, event_channel, grant_table, iret, memory, misc, mmu_update, mmuext, multicall,
        physdev, sched, segments, traps, va_mapping, vcpu, version,
    },
    refusal::Refusal,
    support::Supported as _,
    trace::Entry,
};

/// The five arguments of a hypercall, in the order of the ABI.
///
/// Source: `xen/include/public/arch-x86/xen-x86_64.h`: RDI, RSI, RDX, R10, R8.
pub(crate) type Args = [u64; 5];

/// The registers that hold them.
const ARGUMENTS: [Gpr; 5] = [Gpr::Rdi, Gpr::Rsi, Gpr::Rdx, Gpr::R10, Gpr::R8];

/// What a handler did.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// RAX becomes this value, and the guest goes on.
    Return(i64),
    /// The handler set the registers itself.
    Resume,
    /// RAX becomes this value, and the vCPU does as the verdict says.
    Then(i64, Verdict),
    /// Only a part was done. The guest makes the same hypercall again with these arguments, which stand for the
    /// rest, when the vCPU has done as the verdict says.
    Again(Args, Verdict),
}

impl From<u64> for Outcome {
    fn from(value: u64) -> Self {
        Self::Return(value.cast_signed())
    }
}

impl From<()> for Outcome {
    fn from((): ()) -> Self {
        Self::Return(0)
    }
}

/// Carries out the hypercall in the registers.
///
/// # Errors
///
/// The crash of a guest that cannot be answered.
pub(crate) fn hypercall(call: &mut Call<'_>) -> Result<Verdict, CrashCause> {
    let number = call.context.gpr(Gpr::Rax);
    let args = ARGUMENTS.map(|register| call.context.gpr(register));
    let entry = call.domain.trace.is_some().then(|| Entry::new(&call.space(), number, args));
    let (value, verdict) = match invoke(call, number, args) {
        Ok(Outcome::Return(value)) => (Some(value), Ok(Verdict::Run)),
        Ok(Outcome::Then(value, verdict)) => (Some(value), Ok(verdict)),
        Ok(Outcome::Resume) => (None, Ok(Verdict::Run)),
        Ok(Outcome::Again(args, verdict)) => {
            repeat(call, args);
            (None, Ok(verdict))
        }
        Err(Refusal::Errno(errno)) => {
            let result = errno_value(errno);
            log_refusal(call, number, args, result);
            (Some(result), Ok(Verdict::Run))
        }
        Err(Refusal::Crash(cause)) => (None, Err(cause)),
    };
    call.domain.history.push(PastHypercall { number, args, result: value });
    if let Some(entry) = entry {
        let line = entry.finish(&call.space(), value);
        call.domain.trace_line(line);
    }
    if let Some(value) = value {
        call.context.set_gpr(Gpr::Rax, value.cast_unsigned());
    }
    verdict
}

/// Says in the log that a hypercall is refused.
pub(crate) fn log_refusal(call: &Call<'_>, number: u64, args: Args, result: i64) {
    let (vcpu, rip) = (call.vcpu, call.context.rip);
    log::debug!("vCPU {vcpu}: {} at {rip:#x}", PastHypercall { number, args, result: Some(result) });
}

/// Sets the registers so that the guest makes the hypercall again with `args`. RAX still holds the number.
///
/// SYSCALL and INT n are both two bytes long.
fn repeat(call: &mut Call<'_>, args: Args) {
    const INSTRUCTION_BYTES: u64 = 2;
    for (register, value) in ARGUMENTS.into_iter().zip(args) {
        call.context.set_gpr(register, value);
    }
    call.context.rip = call.context.rip.wrapping_sub(INSTRUCTION_BYTES);
}

/// A number as a C prototype with an `int` or `unsigned int` takes it: the low half of the register.
#[expect(clippy::cast_possible_truncation, reason = "as the C prototype narrows")]
pub(crate) fn narrow(word: u64) -> u32 {
    word as u32
}

/// The result that reports `errno`.
pub(crate) fn errno_value(errno: Errno) -> i64 {
    -i64::from(errno.number())
}

/// Carries out one hypercall by number, from the registers or from a multicall.
pub(crate) fn invoke(call: &mut Call<'_>, number: u64, args: Args) -> Result<Outcome, Refusal> {
    let known = u32::try_from(number).ok().and_then(Hypercall::from_number);
    let Some(hypercall) = known else {
        return Err(Errno::Enosys.into());
    };
    let [a0, a1, a2, a3, _] = args;
    match hypercall {
        Hypercall::SetTrapTable => traps::set_trap_table(call, a0),
        Hypercall::SetCallbacks => traps::set_callbacks(call, a0, a1, a2),
        Hypercall::CallbackOp => traps::callback_op(call, a0, a1),
        Hypercall::NmiOp => traps::nmi_op(call, a0, a1),
        Hypercall::Iret => iret::iret(call),
        Hypercall::StackSwitch => segments::stack_switch(call, a0, a1),
        Hypercall::SetSegmentBase => segments::set_segment_base(call, a0, a1),
        Hypercall::FpuTaskswitch => segments::fpu_taskswitch(call, a0),
        Hypercall::SetDebugreg => segments::set_debugreg(call, a0, a1),
        Hypercall::GetDebugreg => segments::get_debugreg(call, a0),
        Hypercall::EventChannelOp => event_channel::event_channel_op(call, a0, a1),
        Hypercall::EventChannelOpCompat => event_channel::event_channel_op_compat(call, a0),
        Hypercall::SchedOp => sched::sched_op(call, a0, a1),
        Hypercall::SchedOpCompat => sched::sched_op_compat(call, a0, a1),
        Hypercall::SetTimerOp => Ok(sched::set_timer_op(call, a0)),
        Hypercall::VcpuOp => vcpu::vcpu_op(call, a0, a1, a2),
        Hypercall::Multicall => multicall::multicall(call, a0, a1),
        Hypercall::GrantTableOp => grant_table::grant_table_op(call, a0, a1, a2),
        Hypercall::XenVersion => version::xen_version(call, a0, a1),
        Hypercall::ConsoleIo => misc::console_io(call, a0, a1, a2),
        Hypercall::VmAssist => misc::vm_assist(call, a0, a1),
        Hypercall::HvmOp => misc::hvm_op(call, a0, a1),
        Hypercall::PhysdevOp => physdev::physdev_op(call, a0, a1),
        Hypercall::PhysdevOpCompat => physdev::physdev_op_compat(call, a0),
        Hypercall::MmuUpdate => mmu_update::mmu_update(call, args),
        Hypercall::MmuextOp => mmuext::mmuext_op(call, args),
        Hypercall::UpdateVaMapping => va_mapping::update_va_mapping(call, a0, a1, a2),
        Hypercall::UpdateVaMappingOtherdomain => va_mapping::other_domain(call, a0, a1, a2, a3),
        Hypercall::SetGdt => descriptors::set_gdt(call, a0, a1),
        Hypercall::UpdateDescriptor => descriptors::update_descriptor(call, a0, a1),
        Hypercall::MemoryOp => memory::memory_op(call, a0, a1),
        Hypercall::PlatformOp => control::platform_op(call, a0),
        Hypercall::Sysctl => control::sysctl(call, a0),
        Hypercall::Domctl => control::domctl(call, a0),
        // Those that an unprivileged domain does not have, each with its own error.
        Hypercall::XenpmuOp
        | Hypercall::KexecOp
        | Hypercall::DmOp
        | Hypercall::Mca
        | Hypercall::XsmOp
        | Hypercall::XenoprofOp
        | Hypercall::TmemOp
        | Hypercall::ArgoOp
        | Hypercall::HypfsOp
        | Hypercall::PagingDomctlCont => Err(hypercall.refusal().into()),
    }
}

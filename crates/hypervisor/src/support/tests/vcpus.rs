//! Requests of the families about vCPUs and scheduling.

use paravane_abi::{
    sched::{SchedPoll, SchedWatchdog},
    units::{PAGE_SHIFT, Pfn},
    vcpu::{RegisterVcpuInfo, SetSingleshotTimer},
    vcpu_context::{ContextFlag, VcpuGuestContext},
};
use zerocopy::FromZeros;

use super::*;
use crate::{
    testing::{FREE, frame},
    vcpu::Availability,
};

/// Two pages for a vCPU's context.
const CONTEXT: Pfn = Pfn(FREE.0 + 1);
/// A page for a registered area.
const AREA: Pfn = Pfn(FREE.0 + 3);

#[test]
fn scheduling() {
    census(Hypercall::SchedOp, |guest, op: SchedOp| {
        let mut returns = 0;
        let argument = match op {
            SchedOp::Poll => {
                let mut request = SchedPoll::new_zeroed();
                request.ports = virt(FREE).0;
                guest.place(&request)
            }
            SchedOp::Watchdog => {
                returns = 1;
                guest.place(&SchedWatchdog { id: 0, timeout: 10 })
            }
            // A control domain, and a reason.
            SchedOp::RemoteShutdown
            | SchedOp::Shutdown
            | SchedOp::ShutdownCode
            | SchedOp::PinOverride
            | SchedOp::Yield
            | SchedOp::Block => guest.place(&0_u64),
        };
        Request::new(&[op.number().into(), argument]).returns(returns)
    });
    census(Hypercall::SchedOpCompat, |_, op: SchedOpCompat| {
        Request::new(&[op.number().into(), 0]).returns(0)
    });
}

/// A context that a vCPU can be.
fn context() -> Box<VcpuGuestContext> {
    let mut context: Box<VcpuGuestContext> = VcpuGuestContext::new_box_zeroed().unwrap();
    context.flags = ContextFlag::InKernel.mask();
    (context.user_regs.cs, context.user_regs.ss) = (0xe030, 0xe028);
    context.ctrlreg[3] = frame(Pfn(0)).0 << PAGE_SHIFT;
    context
}

#[test]
fn operations_on_vcpus() {
    census(Hypercall::VcpuOp, |guest, op: VcpuOp| {
        let mut vcpu = 1;
        let argument = match op {
            VcpuOp::Initialise => {
                guest.domain.memory.write(machine_address(CONTEXT), context().as_bytes()).unwrap();
                virt(CONTEXT).0
            }
            VcpuOp::Up => {
                guest.domain.vcpus[1].availability = Availability::Down;
                0
            }
            VcpuOp::RegisterRunstateMemoryArea | VcpuOp::RegisterVcpuTimeMemoryArea => {
                guest.place(&virt(AREA).0)
            }
            VcpuOp::RegisterRunstatePhysArea | VcpuOp::RegisterVcpuTimePhysArea => {
                guest.place(&machine_address(AREA).0)
            }
            VcpuOp::SetPeriodicTimer => guest.place(&1_000_000_u64),
            VcpuOp::SetSingleshotTimer | VcpuOp::StopSingleshotTimer => {
                vcpu = 0;
                let mut request = SetSingleshotTimer::new_zeroed();
                request.timeout_abs_ns = 1 << 40;
                guest.place(&request)
            }
            VcpuOp::RegisterVcpuInfo => {
                guest.place(&RegisterVcpuInfo { mfn: frame(AREA).0, offset: 64, rsvd: 0 })
            }
            VcpuOp::GetRunstateInfo | VcpuOp::GetPhysid => virt(AREA).0,
            VcpuOp::Down | VcpuOp::IsUp | VcpuOp::StopPeriodicTimer | VcpuOp::SendNmi => 0,
        };
        Request::new(&[op.number().into(), vcpu, argument]).returns(0)
    });
}

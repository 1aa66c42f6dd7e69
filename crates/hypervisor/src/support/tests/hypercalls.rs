//! One request of every hypercall, sub-operations aside.

use paravane_abi::{
    event_channel::EventChannelOp,
    units::{DomId, Pfn},
    vcpu_context::IretContext,
};
use paravane_engine::Gpr;
use zerocopy::FromZeros;

use super::*;
use crate::testing::{FREE, frame};

const SELF: u64 = DomId::SELF.0 as u64;
/// The version of the tools' requests, and of `platform_op`'s.
const TOOLS: u32 = 0x15;
const PLATFORM: u32 = 0x0300_0001;

/// A good descriptor: a flat data segment of ring 3.
const DATA: u64 = 0x00cf_f300_0000_ffff;

impl Guest {
    /// Puts a frame for the iret hypercall where the stack pointer is.
    fn iret_frame(&mut self) {
        let mut frame = IretContext::new_zeroed();
        (frame.rip, frame.cs, frame.ss) = (virt(FREE).0, 0xe030, 0xe02b);
        (frame.rflags, frame.rsp) = (0x202, virt(FREE).0);
        let at = self.place(&frame);
        self.contexts[0].set_gpr(Gpr::Rsp, at);
    }
}

const TABLE: Pfn = Pfn(FREE.0 + 2);

/// How a hypercall's arguments are made.
type Arguments = fn(&mut Guest) -> Vec<u64>;

/// The arguments of hypercalls for which zeroes are no good request.
const ARGUMENTS: &[(Hypercall, Arguments)] = &[
    (Hypercall::SetGdt, |guest| {
        guest.unmap_page(TABLE);
        vec![guest.place(&frame(TABLE).0), 512]
    }),
    (Hypercall::UpdateDescriptor, |_| vec![machine_address(TABLE).0, DATA]),
    (Hypercall::UpdateVaMapping, |_| vec![virt(TABLE).0, 0, 0]),
    (Hypercall::UpdateVaMappingOtherdomain, |_| vec![virt(TABLE).0, 0, 0, SELF]),
    (Hypercall::MmuUpdate, |_| vec![virt(BUFFER).0, 0, 0, SELF]),
    (Hypercall::MmuextOp, |_| vec![virt(BUFFER).0, 0, 0, SELF]),
    (Hypercall::Iret, |guest| {
        guest.iret_frame();
        Vec::new()
    }),
    (Hypercall::StackSwitch, |_| vec![0xe02b, virt(TABLE).0]),
    (Hypercall::SetCallbacks, |_| vec![virt(TABLE).0; 3]),
    (Hypercall::SetDebugreg, |_| vec![0, virt(TABLE).0]),
    (Hypercall::EventChannelOpCompat, |guest| {
        let op = EventChannelOp::AllocUnbound.number();
        vec![guest.place(&[op, u32::from(DomId::SELF.0), 0, 0, 0, 0, 0])]
    }),
    (Hypercall::EventChannelOp, |guest| {
        let port = guest.place(&[u32::from(DomId::SELF.0), 0]);
        vec![EventChannelOp::AllocUnbound.number().into(), port]
    }),
    (Hypercall::PhysdevOpCompat, |guest| vec![guest.place(&[u64::from(PhysdevOp::SetIopl.number()), 1, 0])]),
    (Hypercall::PhysdevOp, |guest| vec![PhysdevOp::SetIopl.number().into(), guest.place(&1_u32)]),
    (Hypercall::GrantTableOp, |_| vec![GrantTableOp::Copy.number().into(), virt(BUFFER).0, 0]),
    (Hypercall::MemoryOp, |_| vec![MemoryOp::MaximumRamPage.number().into(), 0]),
    (Hypercall::VcpuOp, |_| vec![VcpuOp::IsUp.number().into(), 0, 0]),
    (Hypercall::NmiOp, |_| vec![NmiOp::UnregisterCallback.number().into(), 0]),
    (Hypercall::CallbackOp, |guest| {
        vec![CallbackOp::Register.number().into(), guest.place(&[0, virt(FREE).0])]
    }),
    // The time.
    (Hypercall::HvmOp, |_| vec![10, virt(BUFFER).0]),
    (Hypercall::PlatformOp, |guest| vec![guest.place(&[0, PLATFORM])]),
    (Hypercall::Sysctl, |guest| vec![guest.place(&[0, TOOLS])]),
    // Pausing the control domain.
    (Hypercall::Domctl, |guest| vec![guest.place(&[3, TOOLS, 0])]),
];

#[test]
fn every_hypercall() {
    for &hypercall in Hypercall::ALL {
        let mut guest = Guest::new(2);
        let made = ARGUMENTS.iter().find(|(of, _)| *of == hypercall);
        let args = made.map_or_else(|| vec![0; 5], |(_, arguments)| arguments(&mut guest));
        let request = Request::new(&args);
        guest.take_part(&hypercall, hypercall, hypercall.support(), &request);
    }
}

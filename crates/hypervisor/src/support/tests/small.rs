//! Requests of the small families.

use paravane_abi::units::Pfn;

use super::*;
use crate::testing::{FREE, frame};

#[test]
fn questions_about_the_version() {
    census(Hypercall::XenVersion, |guest, op: XenVersionOp| {
        // Room for any text; the first word is its length.
        guest.place(&[0_u32, 0]);
        guest.put(
            machine_address(BUFFER),
            &match op {
                XenVersionOp::Extraversion2
                | XenVersionOp::Capabilities2
                | XenVersionOp::Changeset2
                | XenVersionOp::BuildId
                | XenVersionOp::Commandline2 => 1000_u32,
                XenVersionOp::Version
                | XenVersionOp::Extraversion
                | XenVersionOp::CompileInfo
                | XenVersionOp::Capabilities
                | XenVersionOp::Changeset
                | XenVersionOp::PlatformParameters
                | XenVersionOp::GetFeatures
                | XenVersionOp::Pagesize
                | XenVersionOp::GuestHandle
                | XenVersionOp::Commandline => 0,
            },
        );
        let argument = if op == XenVersionOp::Pagesize { 0 } else { virt(BUFFER).0 };
        Request::new(&[op.number().into(), argument])
    });
}

#[test]
fn console_operations() {
    census(Hypercall::ConsoleIo, |_, op: ConsoleIoOp| Request::new(&[op.number().into(), 5, virt(BUFFER).0]));
}

#[test]
fn assists() {
    census(Hypercall::VmAssist, |_, op: VmAssistCommand| Request::new(&[op.number().into(), 2]).returns(0));
    census(Hypercall::VmAssist, |_, kind: VmAssistType| Request::new(&[0, kind.number().into()]).returns(0));
}

#[test]
fn segment_bases() {
    census(Hypercall::SetSegmentBase, |_, which: SegmentBase| {
        Request::new(&[which.number().into(), 0x1000]).returns(0)
    });
}

#[test]
fn nmi_operations() {
    census(Hypercall::NmiOp, |guest, op: NmiOp| {
        let argument = guest.place(&[virt(FREE).0, 0]);
        Request::new(&[op.number().into(), argument]).returns(0)
    });
}

#[test]
fn callback_operations() {
    census(Hypercall::CallbackOp, |guest, op: CallbackOp| {
        // Only the NMI callback can be taken back.
        let argument = guest.place(&[u64::from(CallbackType::Nmi.number()), virt(FREE).0]);
        Request::new(&[op.number().into(), argument]).returns(0)
    });
    census(Hypercall::CallbackOp, |guest, kind: CallbackType| {
        let argument = guest.place(&[u64::from(kind.number()), virt(FREE).0]);
        Request::new(&[CallbackOp::Register.number().into(), argument]).returns(0)
    });
}

#[test]
fn physdev_operations() {
    census(Hypercall::PhysdevOp, |guest, op: PhysdevOp| {
        let words = match op {
            PhysdevOp::PirqEoiGmfnV1 | PhysdevOp::PirqEoiGmfnV2 => [frame(Pfn(FREE.0 + 1)).0, 0],
            PhysdevOp::SetIobitmap => [virt(FREE).0, 1024],
            PhysdevOp::IrqUnmaskNotify
            | PhysdevOp::IrqStatusQuery
            | PhysdevOp::SetIopl
            | PhysdevOp::ApicRead
            | PhysdevOp::ApicWrite
            | PhysdevOp::AllocIrqVector
            | PhysdevOp::FreeIrqVector
            | PhysdevOp::Eoi
            | PhysdevOp::MapPirq
            | PhysdevOp::UnmapPirq
            | PhysdevOp::ManagePciAdd
            | PhysdevOp::ManagePciRemove
            | PhysdevOp::RestoreMsi
            | PhysdevOp::ManagePciAddExt
            | PhysdevOp::SetupGsi
            | PhysdevOp::GetFreePirq
            | PhysdevOp::PciMmcfgReserved
            | PhysdevOp::PciDeviceAdd
            | PhysdevOp::PciDeviceRemove
            | PhysdevOp::RestoreMsiExt
            | PhysdevOp::DbgpOp
            | PhysdevOp::PrepareMsix
            | PhysdevOp::ReleaseMsix
            | PhysdevOp::PciDeviceReset => [1, 0],
        };
        let argument = guest.place(&words);
        Request::new(&[op.number().into(), argument]).returns(0)
    });
}

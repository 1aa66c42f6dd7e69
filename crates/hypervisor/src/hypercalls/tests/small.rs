//! `xen_version`, `console_io`, `vm_assist`, `hvm_op`, `physdev_op`, and what is refused.

use paravane_abi::{
    errno::Errno,
    hypercall::{DomU, Hypercall},
    physdev::{Eoi, IrqStatusQuery, PhysdevOp, PirqEoiGmfn, SetIobitmap, SetIopl},
    table::Numbered as _,
    units::Pfn,
    version::{CompileInfo, FeatureInfo, XenVersionOp},
    vm::{VmAssistCommand, VmAssistType},
};
use zerocopy::FromZeros;

use crate::{
    ConsoleText,
    testing::{BUFFER, FREE, Guest, frame, machine_address, virt},
};

impl Guest {
    fn version_text(&mut self, op: XenVersionOp) -> (Result<i64, Errno>, String) {
        let mut buffer = [0xaa_u8; 2048];
        let result = self.op(Hypercall::XenVersion, op.number(), &mut buffer);
        let text = buffer.split(|byte| *byte == 0).next().unwrap_or(&[]);
        (result, String::from_utf8_lossy(text).into_owned())
    }

    fn features(&mut self) -> u32 {
        let mut info = FeatureInfo { submap_idx: 0, submap: 0 };
        self.op(Hypercall::XenVersion, XenVersionOp::GetFeatures.number(), &mut info).unwrap();
        info.submap
    }

    fn assist(&mut self, command: u32, kind: u64) -> Result<i64, Errno> {
        self.call(Hypercall::VmAssist, &[command.into(), kind])
    }

    fn physdev<T>(&mut self, op: PhysdevOp, argument: &mut T) -> Result<i64, Errno>
    where
        T: zerocopy::FromBytes + zerocopy::IntoBytes + zerocopy::Immutable,
    {
        self.op(Hypercall::PhysdevOp, op.number(), argument)
    }
}

#[test]
fn the_version_needs_no_argument() {
    let mut guest = Guest::new(1);
    assert_eq!(guest.call(Hypercall::XenVersion, &[0, 0]), Ok(4 << 16 | 17));
    // The C prototype takes an int: the upper half does not count.
    assert_eq!(guest.call(Hypercall::XenVersion, &[1 << 32, 0]), Ok(4 << 16 | 17));
    assert_eq!(guest.call(Hypercall::XenVersion, &[15, 0]), Err(Errno::Enosys));
}

#[test]
fn texts_end_with_zero_in_fields_of_fixed_size() {
    let mut guest = Guest::new(1);
    for (op, text) in [
        (XenVersionOp::Extraversion, ".0-paravane"),
        (XenVersionOp::Capabilities, "xen-3.0-x86_64 "),
        (XenVersionOp::Changeset, "paravane"),
        (XenVersionOp::Commandline, "<denied>"),
        (XenVersionOp::CompileInfo, "rustc"),
    ] {
        assert_eq!(guest.version_text(op), (Ok(0), text.to_owned()), "{op}");
        let args = [op.number().into(), 0];
        assert_eq!(guest.call(Hypercall::XenVersion, &args), Err(Errno::Efault), "{op}");
    }
    let mut info = CompileInfo::new_zeroed();
    guest.op(Hypercall::XenVersion, XenVersionOp::CompileInfo.number(), &mut info).unwrap();
    assert_eq!(&info.compile_by[..9], b"paravane\0");
    let mut handle = [0_u8; 16];
    guest.op(Hypercall::XenVersion, XenVersionOp::GuestHandle.number(), &mut handle).unwrap();
    assert_eq!(&handle, b"0123456789abcdef");
}

#[test]
fn features_are_those_of_a_pv_domain() {
    let mut guest = Guest::new(1);
    // Linux cannot do without 5 and 7.
    assert_eq!(guest.features() & (1 << 5 | 1 << 7), 1 << 5 | 1 << 7);
    assert_eq!(guest.features(), 1 << 5 | 1 << 6 | 1 << 7 | 1 << 13 | 1 << 17 | 1 << 18 | 1 << 19 | 1 << 20);
    guest.assist(0, VmAssistType::PaeExtendedCr3.number().into()).unwrap();
    assert_eq!(guest.features() & 1 << 4, 1 << 4);
    let mut other = FeatureInfo { submap_idx: 1, submap: 0 };
    let op = XenVersionOp::GetFeatures.number();
    assert_eq!(guest.op(Hypercall::XenVersion, op, &mut other), Err(Errno::Einval));
}

#[test]
fn platform_and_page_size_are_fixed() {
    let mut guest = Guest::new(1);
    let mut start = 0_u64;
    let op = XenVersionOp::PlatformParameters.number();
    assert_eq!(guest.op(Hypercall::XenVersion, op, &mut start), Ok(0));
    assert_eq!(start, 0xffff_8000_0000_0000);
    let op = u64::from(XenVersionOp::Pagesize.number());
    assert_eq!(guest.call(Hypercall::XenVersion, &[op, 0]), Ok(4096));
    assert_eq!(guest.call(Hypercall::XenVersion, &[op, 8]), Err(Errno::Einval));
}

#[test]
fn texts_of_any_length_say_how_long_they_are() {
    let mut guest = Guest::new(1);
    let op = XenVersionOp::Capabilities2.number();
    assert_eq!(guest.call(Hypercall::XenVersion, &[op.into(), 0]), Ok(15));
    let mut buffer = [0_u8; 32];
    buffer[0] = 14;
    assert_eq!(guest.op(Hypercall::XenVersion, op, &mut buffer), Err(Errno::Enobufs));
    buffer[0] = 15;
    assert_eq!(guest.op(Hypercall::XenVersion, op, &mut buffer), Ok(15));
    assert_eq!(&buffer[4..20], b"xen-3.0-x86_64 \0");
    for op in [XenVersionOp::BuildId, XenVersionOp::Commandline2] {
        assert_eq!(guest.call(Hypercall::XenVersion, &[op.number().into(), 0]), Err(Errno::Eperm), "{op}");
    }
}

#[test]
fn console_output_is_kept_for_the_caller() {
    let mut guest = Guest::new(1);
    guest.domain.memory.write(machine_address(BUFFER), b"hello\n").unwrap();
    assert_eq!(guest.call(Hypercall::ConsoleIo, &[0, 6, virt(BUFFER).0]), Ok(0));
    assert_eq!(guest.call(Hypercall::ConsoleIo, &[0, 0, 0]), Ok(0));
    let text = ConsoleText { bytes: b"hello\n".to_vec(), dropped: 0 };
    assert_eq!(guest.domain.take_console_output(), text);
    assert_eq!(guest.call(Hypercall::ConsoleIo, &[0, 6, 0]), Err(Errno::Efault));
    assert_eq!(guest.call(Hypercall::ConsoleIo, &[1, 10, virt(BUFFER).0]), Ok(0));
    assert_eq!(guest.call(Hypercall::ConsoleIo, &[1, 1 << 31, 0]), Err(Errno::E2big));
    assert_eq!(guest.call(Hypercall::ConsoleIo, &[2, 0, 0]), Err(Errno::Enosys));
    // Longer than the guest's memory: what is mapped is written, then the call fails.
    let whole = [0, u64::from(u32::MAX), virt(Pfn(0)).0];
    assert_eq!(guest.call(Hypercall::ConsoleIo, &whole), Err(Errno::Efault));
    let text = guest.domain.take_console_output();
    let pages = usize::try_from(crate::testing::PAGES).unwrap();
    assert_eq!(text.bytes.len() as u64 + text.dropped, pages as u64 * 4096);
}

#[test]
fn assists_are_checked_before_commands() {
    let mut guest = Guest::new(1);
    for &kind in VmAssistType::ALL {
        let number = u64::from(kind.number());
        assert_eq!(guest.assist(VmAssistCommand::Enable.number(), number), Ok(0), "{kind}");
        assert_eq!(guest.domain.assists, 1 << number);
        assert_eq!(guest.assist(VmAssistCommand::Disable.number(), number), Ok(0), "{kind}");
        assert_eq!(guest.domain.assists, 0);
    }
    assert_eq!(guest.assist(2, 0), Err(Errno::Enosys));
    for kind in [6, 31, 33, 63, 64, 1 << 31] {
        assert_eq!(guest.assist(2, kind), Err(Errno::Einval), "{kind}");
    }
}

#[test]
fn hvm_operations_are_not_for_pv_except_the_time() {
    let mut guest = Guest::new(1);
    guest.now = 12345;
    assert_eq!(guest.call(Hypercall::HvmOp, &[10, virt(BUFFER).0]), Ok(0));
    assert_eq!(guest.get::<u64>(machine_address(BUFFER)), 12345);
    assert_eq!(guest.call(Hypercall::HvmOp, &[10, 0]), Err(Errno::Efault));
    for op in [0, 1, 5, 9, 15, 23] {
        assert_eq!(guest.call(Hypercall::HvmOp, &[op, 0]), Err(Errno::Einval), "{op}");
    }
    assert_eq!(guest.call(Hypercall::HvmOp, &[24, 0]), Ok(0));
    assert_eq!(guest.call(Hypercall::HvmOp, &[25, 0]), Err(Errno::Eopnotsupp));
    assert_eq!(guest.call(Hypercall::HvmOp, &[11, 0]), Err(Errno::Efault));
    for (event, extra_bytes, result) in [
        (0xfff, 28, Ok(0)),
        (0x1000, 0, Err(Errno::Einval)),
        (1, 2, Err(Errno::Einval)),
        (1, 32, Err(Errno::Einval)),
    ] {
        let mut record = [0_u16; 16];
        [record[0], record[1]] = [event, extra_bytes];
        guest.put(machine_address(BUFFER), &record);
        assert_eq!(guest.call(Hypercall::HvmOp, &[11, virt(BUFFER).0]), result, "{event:#x} {extra_bytes}");
    }
    assert_eq!(guest.call(Hypercall::HvmOp, &[2, 0]), Err(Errno::Enosys));
}

#[test]
fn io_privilege_is_the_vcpus_own() {
    let mut guest = Guest::new(1);
    for (iopl, result) in [(3, Ok(0)), (1, Ok(0)), (4, Err(Errno::Einval)), (256, Err(Errno::Einval))] {
        assert_eq!(guest.physdev(PhysdevOp::SetIopl, &mut SetIopl { iopl }), result, "{iopl}");
    }
    assert_eq!(guest.domain.vcpus[0].iopl, 1);
    for (bitmap, nr_ports, result) in [
        (virt(FREE).0, 65536, Ok(0)),
        (virt(FREE).0, 65537, Err(Errno::Einval)),
        (0xffff_8000_0000_0000, 8, Err(Errno::Einval)),
        (0x1000, 1024, Ok(0)),
    ] {
        let mut request = SetIobitmap::new_zeroed();
        (request.bitmap, request.nr_ports) = (bitmap, nr_ports);
        assert_eq!(guest.physdev(PhysdevOp::SetIobitmap, &mut request), result, "{bitmap:#x} {nr_ports}");
    }
    assert_eq!(guest.domain.vcpus[0].io_bitmap.map(|bitmap| bitmap.ports), Some(1024));
}

#[test]
fn the_page_of_ends_of_interrupts_is_registered_once() {
    let mut guest = Guest::new(1);
    for gmfn in [u64::MAX, 1, frame(Pfn(3)).0] {
        let result = guest.physdev(PhysdevOp::PirqEoiGmfnV2, &mut PirqEoiGmfn { gmfn });
        assert_eq!(result, Err(Errno::Einval), "{gmfn:#x}");
    }
    let mut page = PirqEoiGmfn { gmfn: frame(FREE).0 };
    assert_eq!(guest.physdev(PhysdevOp::PirqEoiGmfnV2, &mut page), Ok(0));
    assert_eq!(guest.physdev(PhysdevOp::PirqEoiGmfnV1, &mut page), Err(Errno::Ebusy));
    guest.domain.recount().unwrap();
}

#[test]
fn a_domain_without_interrupts_ends_none() {
    let mut guest = Guest::new(1);
    assert_eq!(guest.physdev(PhysdevOp::Eoi, &mut Eoi { irq: 1 }), Err(Errno::Einval));
    for (irq, result) in [(0, Ok(0)), (15, Ok(0)), (16, Err(Errno::Einval)), (u32::MAX, Err(Errno::Einval))] {
        let mut query = IrqStatusQuery { irq, flags: 0xffff };
        assert_eq!(guest.physdev(PhysdevOp::IrqStatusQuery, &mut query), result, "{irq}");
        // As far as it can tell, each may need an end.
        assert_eq!(query.flags, if result.is_ok() { 1 } else { 0xffff }, "{irq}");
    }
    assert_eq!(guest.physdev(PhysdevOp::IrqUnmaskNotify, &mut 0_u64), Ok(0));
    assert_eq!(guest.physdev(PhysdevOp::GetFreePirq, &mut 0_u64), Err(Errno::Enospc));
    for &op in PhysdevOp::ALL {
        if let DomU::Refused(errno) | DomU::Removed(errno) = op.facts().domu {
            assert_eq!(guest.physdev(op, &mut 0_u64), Err(errno), "{op}");
        }
    }
    assert_eq!(guest.call(Hypercall::PhysdevOp, &[0, 0]), Err(Errno::Enosys));
    assert_eq!(
        guest.call(Hypercall::PhysdevOp, &[PhysdevOp::SetIopl.number().into(), 0]),
        Err(Errno::Efault)
    );
}

#[test]
fn the_old_physdev_form_has_the_command_in_front() {
    let mut guest = Guest::new(1);
    guest.put(machine_address(BUFFER), &[u64::from(PhysdevOp::SetIopl.number()), 2]);
    assert_eq!(guest.call(Hypercall::PhysdevOpCompat, &[virt(BUFFER).0]), Ok(0));
    assert_eq!(guest.domain.vcpus[0].iopl, 2);
    assert_eq!(guest.call(Hypercall::PhysdevOpCompat, &[0]), Err(Errno::Efault));
}

#[test]
fn requests_of_tools_are_looked_at_before_they_are_refused() {
    const DOMCTL: Hypercall = Hypercall::Domctl;
    let mut guest = Guest::new(1);
    for (call, request, errno) in [
        (Hypercall::PlatformOp, [0, 0x0300_0001, 0], Errno::Eperm),
        (Hypercall::PlatformOp, [0, 0, 0], Errno::Eacces),
        (Hypercall::Sysctl, [0, 0x15, 0], Errno::Eperm),
        (Hypercall::Sysctl, [0, 0x14, 0], Errno::Eacces),
        (DOMCTL, [2, 0x15, 0], Errno::Eperm),
        (DOMCTL, [2, 0x15, u32::from(crate::testing::OWN.0)], Errno::Eperm),
        (DOMCTL, [2, 0x15, 9], Errno::Esrch),
        (DOMCTL, [2, 0x16, 9], Errno::Eacces),
        // A domain that is to be created does not exist; one that is searched for may not.
        (DOMCTL, [1, 0x15, 9], Errno::Eperm),
        (DOMCTL, [5, 0x15, 9], Errno::Eperm),
    ] {
        guest.put(machine_address(BUFFER), &request);
        assert_eq!(guest.call(call, &[virt(BUFFER).0]), Err(errno), "{call} {request:?}");
        assert_eq!(guest.call(call, &[0]), Err(Errno::Efault), "{call}");
    }
}

#[test]
fn numbers_without_a_hypercall_return_enosys() {
    let mut guest = Guest::new(1);
    let unused = Hypercall::ALL.iter().map(|call| call.row().number).max().unwrap();
    let context = &mut guest.contexts[0];
    for number in [11, 43, 63, 64, u64::MAX, 1 << 32, unused.unsigned_abs() + 1] {
        context.set_gpr(paravane_engine::Gpr::Rax, number);
        let exit = paravane_engine::Exit::Hypercall;
        guest.domain.handle(super::BOOT, exit, context, crate::Tsc(0));
        assert_eq!(context.gpr(paravane_engine::Gpr::Rax), Errno::Enosys.to_rax(), "{number}");
    }
}

//! `set_trap_table`, `set_callbacks`, `callback_op`, `nmi_op`.

use paravane_abi::{
    units::GuestVirt,
    vcpu_context::TrapInfo,
    vm::{CallbackOp, CallbackRegister, CallbackType, NmiOp},
};
use paravane_engine::vector;
use zerocopy::FromZeros;

use super::*;
use crate::{
    testing::FREE,
    vcpu::{Handler, TrapEntry},
};

const HOLE: u64 = 0x0000_8000_0000_0000;
const CODE: u64 = 0xffff_ffff_8000_1000;

fn trap(vector: u8, flags: u8, cs: u16, address: u64) -> TrapInfo {
    let mut info = TrapInfo::new_zeroed();
    (info.vector, info.flags, info.cs, info.address) = (vector, flags, cs, address);
    info
}

fn handler(address: u64, masks_events: bool) -> Handler {
    Handler { address: GuestVirt(address), masks_events }
}

impl Guest {
    fn set_traps(&mut self, list: &[TrapInfo]) -> Result<i64, Errno> {
        self.domain.memory.write(machine_address(FREE), list.as_bytes()).unwrap();
        self.call(Hypercall::SetTrapTable, &[virt(FREE).0])
    }

    fn trap(&self, vector: u8) -> TrapEntry {
        self.domain.vcpus[0].traps[usize::from(vector)]
    }

    fn register(&mut self, kind: u16, flags: u16, address: u64) -> Result<i64, Errno> {
        let mut request = CallbackRegister::new_zeroed();
        (request.kind, request.flags, request.address) = (kind, flags, address);
        self.op(Hypercall::CallbackOp, CallbackOp::Register.number(), &mut request)
    }
}

#[test]
fn a_trap_table_ends_at_its_first_address_of_0() {
    let mut guest = Guest::new(1);
    let list = [
        trap(14, 4, 0xe030, CODE),
        trap(0x80, 3, 0x10, CODE + 1),
        trap(3, 0xff, 0, CODE + 2),
        TrapInfo::new_zeroed(),
        trap(0, 0, 0, CODE),
    ];
    assert_eq!(guest.set_traps(&list), Ok(0));
    assert_eq!(guest.trap(14), TrapEntry { handler: handler(CODE, true), cs: 0xe033, dpl: 0 });
    assert_eq!(guest.trap(0x80), TrapEntry { handler: handler(CODE + 1, false), cs: 0x13, dpl: 3 });
    assert_eq!(guest.trap(3), TrapEntry { handler: handler(CODE + 2, true), cs: 3, dpl: 3 });
    assert_eq!(guest.trap(0), TrapEntry::default());
}

#[test]
fn a_table_adds_to_the_one_before_and_none_clears_all() {
    let mut guest = Guest::new(1);
    assert_eq!(guest.set_traps(&[trap(1, 0, 0, CODE), TrapInfo::new_zeroed()]), Ok(0));
    assert_eq!(guest.set_traps(&[trap(2, 0, 0, CODE), TrapInfo::new_zeroed()]), Ok(0));
    assert_ne!(guest.trap(1), TrapEntry::default());
    assert_eq!(guest.call(Hypercall::SetTrapTable, &[0]), Ok(0));
    assert!(guest.domain.vcpus[0].traps.iter().all(|entry| *entry == TrapEntry::default()));
}

#[test]
fn entries_before_a_bad_one_stay() {
    let mut guest = Guest::new(1);
    let list = [trap(1, 0, 0, CODE), trap(2, 0, 0, HOLE), trap(3, 0, 0, CODE)];
    assert_eq!(guest.set_traps(&list), Err(Errno::Einval));
    assert_eq!(guest.trap(1).handler.address, GuestVirt(CODE));
    assert_eq!((guest.trap(2), guest.trap(3)), (TrapEntry::default(), TrapEntry::default()));
    assert_eq!(guest.call(Hypercall::SetTrapTable, &[0x1000]), Err(Errno::Efault));
    assert_eq!(guest.call(Hypercall::SetTrapTable, &[0xffff_8000_0000_0000]), Err(Errno::Efault));
}

#[test]
fn a_table_without_an_end_is_read_to_where_memory_ends() {
    let mut guest = Guest::new(1);
    let list = vec![trap(9, 0, 0, CODE); 256];
    for page in FREE.0..crate::testing::PAGES {
        let at = machine_address(paravane_abi::units::Pfn(page));
        guest.domain.memory.write(at, list.as_bytes()).unwrap();
    }
    assert_eq!(guest.call(Hypercall::SetTrapTable, &[virt(FREE).0]), Err(Errno::Efault));
    assert_eq!(guest.trap(9).handler.address, GuestVirt(CODE));
}

#[test]
fn three_callbacks_are_set_at_once_and_a_bad_one_is_left_out() {
    let mut guest = Guest::new(1);
    assert_eq!(guest.call(Hypercall::SetCallbacks, &[CODE, CODE + 1, CODE + 2]), Ok(0));
    assert_eq!(guest.call(Hypercall::SetCallbacks, &[CODE + 3, HOLE, 0]), Ok(0));
    let callbacks = &guest.domain.vcpus[0].callbacks;
    assert_eq!(callbacks.event.address, GuestVirt(CODE + 3));
    assert_eq!(callbacks.failsafe.address, GuestVirt(CODE + 1));
    assert_eq!(callbacks.syscall.address, GuestVirt(0));
}

#[test]
fn each_callback_is_registered_with_its_flag() {
    let mut guest = Guest::new(1);
    for &kind in CallbackType::ALL {
        for flags in [0, 1] {
            let expected = if kind == CallbackType::SysenterDeprecated { Err(Errno::Enosys) } else { Ok(0) };
            let number = u16::try_from(kind.number()).unwrap();
            assert_eq!(guest.register(number, flags, CODE + u64::from(number)), expected, "{kind}");
            assert_eq!(guest.register(number, flags, HOLE), Err(Errno::Einval), "{kind}");
            let vcpu = &guest.domain.vcpus[0];
            let registered = match kind {
                CallbackType::Event => vcpu.callbacks.event,
                CallbackType::Failsafe => vcpu.callbacks.failsafe,
                CallbackType::Syscall => vcpu.callbacks.syscall,
                CallbackType::Sysenter => vcpu.callbacks.sysenter,
                CallbackType::Syscall32 => vcpu.callbacks.syscall32,
                // An NMI always comes with events masked.
                CallbackType::Nmi => {
                    let handler = vcpu.traps[usize::from(vector::NMI)].handler;
                    assert!(handler.masks_events);
                    Handler { masks_events: flags == 1, ..handler }
                }
                CallbackType::SysenterDeprecated => continue,
            };
            assert_eq!(registered, handler(CODE + u64::from(number), flags == 1), "{kind}");
        }
    }
    for unknown in [6, 8, u16::MAX] {
        assert_eq!(guest.register(unknown, 0, CODE), Err(Errno::Enosys));
        assert_eq!(guest.register(unknown, 0, HOLE), Err(Errno::Einval), "the address comes first");
    }
}

#[test]
fn only_the_nmi_callback_can_be_taken_back() {
    let mut guest = Guest::new(1);
    for &kind in CallbackType::ALL {
        let expected = match kind {
            CallbackType::Nmi => Ok(0),
            CallbackType::SysenterDeprecated => Err(Errno::Enosys),
            CallbackType::Event
            | CallbackType::Failsafe
            | CallbackType::Syscall
            | CallbackType::Sysenter
            | CallbackType::Syscall32 => Err(Errno::Einval),
        };
        guest.handle_vector(vector::NMI, 0, true);
        let mut request = [kind.number(), 0];
        assert_eq!(guest.op(Hypercall::CallbackOp, CallbackOp::Unregister.number(), &mut request), expected);
        assert_eq!(guest.trap(vector::NMI) == TrapEntry::default(), kind == CallbackType::Nmi, "{kind}");
    }
    assert_eq!(
        guest.op(Hypercall::CallbackOp, CallbackOp::Unregister.number(), &mut 8_u32),
        Err(Errno::Enosys)
    );
    assert_eq!(guest.call(Hypercall::CallbackOp, &[0, 0]), Err(Errno::Efault));
    assert_eq!(guest.call(Hypercall::CallbackOp, &[1, 0]), Err(Errno::Efault));
    assert_eq!(guest.call(Hypercall::CallbackOp, &[2, 0]), Err(Errno::Enosys));
}

#[test]
fn the_older_nmi_operations_are_for_the_first_vcpu() {
    let mut guest = Guest::new(2).all_up();
    let register = |guest: &mut Guest, vcpu, address: u64| {
        guest.put(machine_address(BUFFER), &[address, 0]);
        guest.call_on(vcpu, Hypercall::NmiOp, &[NmiOp::RegisterCallback.number().into(), virt(BUFFER).0])
    };
    assert_eq!(register(&mut guest, BOOT, CODE), Ok(0));
    assert_eq!(guest.trap(vector::NMI).handler, handler(CODE, true));
    assert_eq!(register(&mut guest, BOOT, HOLE), Err(Errno::Einval));
    assert_eq!(register(&mut guest, VcpuId(1), CODE), Err(Errno::Einval));
    assert_eq!(guest.call(Hypercall::NmiOp, &[0, 0]), Err(Errno::Efault));
    assert_eq!(guest.call(Hypercall::NmiOp, &[2, 0]), Err(Errno::Enosys));
    assert_eq!(guest.call(Hypercall::NmiOp, &[1, 0]), Ok(0));
    assert_eq!(guest.trap(vector::NMI), TrapEntry::default());
}

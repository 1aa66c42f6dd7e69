//! `stack_switch`, `set_segment_base`, `fpu_taskswitch`, and the debug registers.

use paravane_engine::{Control4, SegmentRegister};

use super::*;
use crate::testing::FREE;

const HOLE: u64 = 0x0000_8000_0000_0000;

#[test]
fn a_stack_is_kept_as_it_is_given_with_the_guests_privilege() {
    let mut guest = Guest::new(1);
    for (ss, sp, kept) in [(0xe028, 0x1000, 0xe02b), (0, u64::MAX, 3), (0x1_0010, HOLE, 0x13)] {
        assert_eq!(guest.call(Hypercall::StackSwitch, &[ss, sp]), Ok(0));
        let vcpu = &guest.domain.vcpus[0];
        assert_eq!((vcpu.kernel_ss, vcpu.kernel_sp.0), (kept, sp), "looked at when it is used");
    }
}

#[test]
fn segment_bases_are_canonical() {
    let mut guest = Guest::new(1);
    for which in 0..3 {
        let set = |guest: &mut Guest, base| guest.call(Hypercall::SetSegmentBase, &[which, base]);
        assert_eq!(set(&mut guest, HOLE), Err(Errno::Einval));
        assert_eq!(set(&mut guest, HOLE - 1), Ok(0));
        assert_eq!(set(&mut guest, 0xffff_8000_0000_0000), Ok(0), "whatever lies there");
        assert_eq!(set(&mut guest, 0x1000 + which), Ok(0));
    }
    let context = &guest.contexts[0];
    let base = |register| context.segment(register).base;
    assert_eq!(
        (base(SegmentRegister::Fs), context.inactive_gs_base, base(SegmentRegister::Gs)),
        (0x1000, 0x1001, 0x1002)
    );
    assert_eq!(guest.call(Hypercall::SetSegmentBase, &[4, 0]), Err(Errno::Einval));
    assert_eq!(guest.call(Hypercall::SetSegmentBase, &[1 << 32, 5]), Ok(0), "an unsigned int");
}

#[test]
fn a_selector_for_user_mode_changes_its_base_alone() {
    let mut guest = Guest::new(1);
    for (selector, visible) in [
        (0xe02b, 0xe02b),
        // The privilege is the guest's, null stays null, and what cannot be loaded becomes null.
        (0xe028, 0xe02b),
        (0, 0),
        (2, 2),
        (0xe008, 0),
        (0x1010, 0),
        (0xfff8, 0),
        (0x5_0000_e02b, 0xe02b),
    ] {
        let context = &mut guest.contexts[0];
        context.segment_mut(SegmentRegister::Gs).base = 0x1234;
        context.inactive_gs_base = 0x5678;
        assert_eq!(guest.call(Hypercall::SetSegmentBase, &[3, selector]), Ok(0), "{selector:#x}");
        let context = &guest.contexts[0];
        let gs = context.segment(SegmentRegister::Gs);
        assert_eq!((gs.selector, gs.base, context.inactive_gs_base), (visible, 0x1234, 0), "{selector:#x}");
    }
}

#[test]
fn the_fpu_is_taken_away_and_given_back() {
    let mut guest = Guest::new(1);
    for (set, switched) in [(1, true), (0, false), (7, true), (1 << 32, false)] {
        assert_eq!(guest.call(Hypercall::FpuTaskswitch, &[set]), Ok(0));
        assert_eq!(guest.contexts[0].task_switched, switched, "{set:#x}");
    }
}

impl Guest {
    fn set_debugreg(&mut self, register: u64, value: u64) -> Result<i64, Errno> {
        self.call(Hypercall::SetDebugreg, &[register, value])
    }

    fn get_debugreg(&mut self, register: u64) -> Result<i64, Errno> {
        self.call(Hypercall::GetDebugreg, &[register])
    }
}

#[test]
fn breakpoints_are_at_guest_addresses() {
    let mut guest = Guest::new(1);
    for register in 0..4 {
        assert_eq!(guest.set_debugreg(register, virt(FREE).0 + register), Ok(0));
        for address in [0xffff_8000_0000_0000, 0xffff_87ff_ffff_ffff] {
            assert_eq!(guest.set_debugreg(register, address), Err(Errno::Eperm), "{address:#x}");
        }
        assert_eq!(guest.get_debugreg(register), Ok((virt(FREE).0 + register).cast_signed()));
    }
}

#[test]
fn status_and_control_have_reserved_bits() {
    let mut guest = Guest::new(1);
    for register in [6, 7] {
        assert_eq!(guest.set_debugreg(register, 1 << 32), Err(Errno::Einval));
    }
    assert_eq!(guest.set_debugreg(6, 0x1001), Ok(0));
    assert_eq!(guest.get_debugreg(6), Ok(0xffff_0ff1));
    assert_eq!(guest.set_debugreg(7, 0xd801), Ok(0));
    assert_eq!(guest.get_debugreg(7), Ok(0x401));
    assert_eq!(guest.set_debugreg(7, 1 << 13), Err(Errno::Eperm), "general detect is the hypervisor's");
    assert_eq!(guest.get_debugreg(7), Ok(0x401));
}

#[test]
fn registers_4_and_5_are_aliases_until_debugging_extensions_take_them_away() {
    let mut guest = Guest::new(1);
    assert_eq!(guest.set_debugreg(5, 0x403), Ok(0));
    assert_eq!((guest.get_debugreg(5), guest.get_debugreg(7)), (Ok(0x403), Ok(0x403)));
    assert_eq!(guest.get_debugreg(4), guest.get_debugreg(6));
    guest.contexts[0].cr4 = Control4(Control4::DE);
    for register in [4, 5, 8, u64::from(u32::MAX)] {
        assert_eq!(guest.set_debugreg(register, 0), Err(Errno::Enodev), "{register}");
        assert_eq!(guest.get_debugreg(register), Err(Errno::Enodev), "{register}");
    }
}

#[test]
fn an_io_breakpoint_needs_debugging_extensions_and_reads_back() {
    const ON_IO: u64 = 0x400 | 1 | 2 << 16;
    let mut guest = Guest::new(1);
    assert_eq!(guest.set_debugreg(7, ON_IO), Err(Errno::Eperm));
    // Not enabled, it is just a number.
    assert_eq!(guest.set_debugreg(7, 2 << 16), Ok(0));
    guest.contexts[0].cr4 = Control4(Control4::DE);
    assert_eq!(guest.set_debugreg(7, ON_IO), Ok(0));
    assert_eq!(guest.get_debugreg(7), Ok(ON_IO.cast_signed()));
    assert_eq!(guest.contexts[0].debug[7], ON_IO & !1, "the CPU does not see it enabled");
    assert_eq!(guest.set_debugreg(7, 0), Ok(0));
    assert_eq!((guest.get_debugreg(7), guest.domain.vcpus[0].io_breakpoints), (Ok(0x400), 0));
}

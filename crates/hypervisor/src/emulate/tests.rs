//! Privileged instructions as a guest kernel, and a guest program, executes them.

use paravane_abi::units::{GuestVirt, Pfn};
use paravane_engine::{Exit, PageFault, SegmentRegister, StringIo, Width};
use paravane_memory::paging::FaultCode;

use super::*;
use crate::{
    testing::{BASE, BUFFER, EVENT_HANDLER, FREE, Guest, frame, machine_address, virt},
    vcpu::IoBitmap,
};

const RIP: u64 = BASE + 0x1000;
const LENGTH: u8 = 3;
const HOLE: u64 = 0x0000_8000_0000_0000;

/// How an instruction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// RIP is behind it.
    Done,
    /// It runs again.
    Again,
    /// An exception, with its error code if it has one, and the RIP that it left behind.
    Fault(u8, Option<u32>, u64),
}

const REFUSED: End = End::Fault(vector::GENERAL_PROTECTION, Some(0), RIP);
const UNDEFINED: End = End::Fault(vector::INVALID_OPCODE, None, RIP);

impl Guest {
    /// A guest with handlers for the faults.
    fn with_faults() -> Self {
        let mut guest = Self::new(1);
        for vector in FAULTS {
            guest.handle_vector(vector, 0, false);
        }
        guest
    }

    fn executes(&mut self, op: PrivilegedOp) -> End {
        let stack = self.contexts[0].gpr(Gpr::Rsp);
        self.contexts[0].rip = RIP;
        self.exit_and_run(Exit::Privileged(Privileged { length: LENGTH, op }));
        let rip = self.contexts[0].rip;
        let traps = &self.domain.vcpus[0].traps;
        let raised = FAULTS.into_iter().find(|vector| traps[usize::from(*vector)].handler.address.0 == rip);
        let end = match raised {
            Some(vector) if vector == vector::GENERAL_PROTECTION || vector == vector::PAGE_FAULT => {
                let [_, _, code, rip]: [u64; 4] = self.stack();
                End::Fault(vector, u32::try_from(code).ok(), rip)
            }
            Some(vector) => End::Fault(vector, None, self.stack::<3>()[2]),
            None if rip == RIP => End::Again,
            None => {
                assert_eq!(rip, RIP + u64::from(LENGTH));
                End::Done
            }
        };
        self.contexts[0].set_gpr(Gpr::Rsp, stack);
        end
    }

    fn rdmsr(&mut self, number: u32) -> Option<u64> {
        self.contexts[0].set_gpr(Gpr::Rcx, 0xffff_ffff_0000_0000 | u64::from(number));
        match self.executes(PrivilegedOp::Rdmsr) {
            End::Done => Some(self.contexts[0].gpr(Gpr::Rdx) << 32 | self.contexts[0].gpr(Gpr::Rax)),
            end @ (End::Again | End::Fault(..)) => {
                assert_eq!(end, REFUSED, "{number:#x}");
                None
            }
        }
    }

    fn wrmsr(&mut self, number: u32, value: u64) -> bool {
        let context = &mut self.contexts[0];
        context.set_gpr(Gpr::Rcx, number.into());
        // The upper halves mean nothing.
        context.set_gpr(Gpr::Rax, value | 0xdead << 32);
        context.set_gpr(Gpr::Rdx, value >> 32 | 0xdead << 32);
        match self.executes(PrivilegedOp::Wrmsr) {
            End::Done => true,
            end @ (End::Again | End::Fault(..)) => {
                assert_eq!(end, REFUSED, "{number:#x}");
                false
            }
        }
    }

    fn read_control(&mut self, from: ControlRegister) -> u64 {
        assert_eq!(self.executes(PrivilegedOp::ReadControl { from, to: Gpr::Rbx }), End::Done);
        self.contexts[0].gpr(Gpr::Rbx)
    }
}

const FAULTS: [u8; 4] =
    [vector::DEBUG, vector::INVALID_OPCODE, vector::GENERAL_PROTECTION, vector::PAGE_FAULT];

const IN: PrivilegedOp = PrivilegedOp::In { port: 0x3f8, width: Width::Byte };

#[test]
fn what_needs_the_kernel_is_refused_in_user_mode() {
    for op in [
        PrivilegedOp::Rdmsr,
        PrivilegedOp::Wrmsr,
        PrivilegedOp::ReadControl { from: ControlRegister::Cr0, to: Gpr::Rax },
        PrivilegedOp::WriteControl { to: ControlRegister::Cr2, value: 0 },
        PrivilegedOp::ReadDebug { from: 0, to: Gpr::Rax },
        PrivilegedOp::WriteDebug { to: 0, value: 0 },
        PrivilegedOp::Clts,
        PrivilegedOp::Wbinvd,
        PrivilegedOp::Xsetbv,
        PrivilegedOp::Rdtsc,
        PrivilegedOp::Rdtscp,
        PrivilegedOp::Cli,
        PrivilegedOp::Sti,
        IN,
    ] {
        let mut guest = Guest::with_faults();
        guest.enter_user_mode();
        guest.domain.vcpus[0].iopl = 2;
        assert_eq!(guest.executes(op), REFUSED, "{op:?}");
    }
}

#[test]
fn what_stock_xen_does_not_emulate_is_refused() {
    for op in [
        PrivilegedOp::Hlt,
        PrivilegedOp::Lmsw(1),
        PrivilegedOp::Invd,
        PrivilegedOp::Invlpg(RIP),
        PrivilegedOp::Rdpmc,
        PrivilegedOp::Swapgs,
        PrivilegedOp::Sysret,
        PrivilegedOp::Sysexit,
        PrivilegedOp::LoadTable,
        PrivilegedOp::Other,
    ] {
        let mut guest = Guest::with_faults();
        guest.domain.vcpus[0].iopl = 3;
        assert_eq!(guest.executes(op), REFUSED, "{op:?}");
    }
}

#[test]
fn the_virtual_iopl_opens_cli_sti_and_all_ports() {
    for op in [PrivilegedOp::Cli, PrivilegedOp::Sti, IN] {
        for (user, architectural, iopl, end) in [
            (false, false, 0, REFUSED),
            (false, false, 1, End::Done),
            (false, true, 0, End::Done),
            (true, false, 2, REFUSED),
            (true, true, 2, REFUSED),
            (true, false, 3, End::Done),
        ] {
            let mut guest = Guest::with_faults();
            guest.domain.vcpus[0].iopl = iopl;
            guest.domain.assists = if architectural { bounce::ARCHITECTURAL_IOPL } else { 0 };
            if user {
                guest.enter_user_mode();
            }
            let mask = guest.info(paravane_abi::units::VcpuId(0)).evtchn_upcall_mask;
            assert_eq!(guest.executes(op), end, "{op:?} {user} {architectural} {iopl}");
            let after = guest.info(paravane_abi::units::VcpuId(0)).evtchn_upcall_mask;
            assert_eq!(mask, after, "interrupts are masked in memory, and nowhere else");
        }
    }
}

#[test]
fn a_clear_bit_in_the_bitmap_opens_a_port() {
    let mut guest = Guest::with_faults();
    let mut bits = [0xff_u8; 256];
    // Ports 0x3f6 to 0x3fb, across a byte.
    (bits[0x7e], bits[0x7f]) = (0x3f, 0xf0);
    guest.domain.memory.write(machine_address(BUFFER), &bits).unwrap();
    guest.domain.vcpus[0].io_bitmap = Some(IoBitmap { at: virt(BUFFER), ports: 0x3fa });
    for (port, width, end) in [
        (0x3f6, Width::Byte, End::Done),
        (0x3f5, Width::Byte, REFUSED),
        (0x3f6, Width::Dword, End::Done),
        (0x3f7, Width::Word, End::Done),
        (0x3f5, Width::Word, REFUSED),
        // Clear, but beyond the ports that the bitmap covers.
        (0x3f9, Width::Word, REFUSED),
        (0x3fa, Width::Byte, REFUSED),
        (0xffff, Width::Dword, REFUSED),
    ] {
        for user in [false, true] {
            if user {
                guest.enter_user_mode();
            }
            assert_eq!(guest.executes(PrivilegedOp::In { port, width }), end, "{port:#x} {width:?} {user}");
            guest.contexts[0].mode = GuestMode::Kernel;
            guest.contexts[0].set_gpr(Gpr::Rsp, virt(FREE).0 + 4096);
        }
    }
}

#[test]
fn a_bitmap_that_cannot_be_read_is_a_page_fault() {
    let mut guest = Guest::with_faults();
    guest.domain.vcpus[0].io_bitmap = Some(IoBitmap { at: GuestVirt(0x10_0000), ports: 65536 });
    assert_eq!(guest.executes(IN), End::Fault(vector::PAGE_FAULT, Some(0), RIP));
    assert_eq!(guest.read_control(ControlRegister::Cr2), 0x10_0000 + 0x3f8 / 8);
}

#[test]
fn ports_that_are_not_there_read_as_ones_and_take_anything() {
    let mut guest = Guest::with_faults();
    guest.domain.vcpus[0].iopl = 1;
    for (port, width, value) in [
        (0x3f8, Width::Byte, 0x1234_5678_9abc_deff),
        (0x42, Width::Word, 0x1234_5678_9abc_ffff),
        (0xcfc, Width::Dword, 0xffff_ffff),
    ] {
        guest.contexts[0].set_gpr(Gpr::Rax, 0x1234_5678_9abc_def0);
        assert_eq!(guest.executes(PrivilegedOp::Out { port, width, value: 0 }), End::Done);
        assert_eq!(guest.executes(PrivilegedOp::In { port, width }), End::Done);
        assert_eq!(guest.contexts[0].gpr(Gpr::Rax), value, "{port:#x}");
    }
}

#[test]
fn two_index_registers_remember_what_was_written() {
    let mut guest = Guest::with_faults();
    guest.domain.vcpus[0].iopl = 1;
    let mut swap = |port, width, value| {
        assert_eq!(guest.executes(PrivilegedOp::Out { port, width, value }), End::Done);
        guest.contexts[0].set_gpr(Gpr::Rax, 0);
        assert_eq!(guest.executes(PrivilegedOp::In { port, width }), End::Done);
        guest.contexts[0].gpr(Gpr::Rax)
    };
    assert_eq!(swap(0xcf8, Width::Dword, 0x8000_1234), 0x8000_1234);
    assert_eq!(swap(0xcf8, Width::Word, 0x55), 0xffff, "the register has 32 bits or is not there");
    assert_eq!(swap(0xcf8, Width::Dword, 0), 0);
    // The upper bit of the CMOS index is the mask of NMIs.
    assert_eq!(swap(0x70, Width::Byte, 0x8f), 0x0f);
    assert_eq!(swap(0x6f, Width::Word, 0x0a_00), 0x0a_ff);
    assert_eq!(swap(0x71, Width::Byte, 1), 0xff, "there is no memory behind it");
}

#[test]
fn string_io_moves_its_registers_and_faults_where_memory_ends() {
    let mut guest = Guest::with_faults();
    guest.domain.vcpus[0].iopl = 1;
    let end = virt(Pfn(crate::testing::PAGES)).0;
    guest.contexts[0].set_gpr(Gpr::Rdi, end - 4);
    guest.contexts[0].set_gpr(Gpr::Rcx, 9);
    let string = StringIo { port: 0x80, width: Width::Word, address: end - 4, count: 9, repeated: true };
    let code = FaultCode::WRITE;
    assert_eq!(guest.executes(PrivilegedOp::Ins(string)), End::Fault(vector::PAGE_FAULT, Some(code), RIP));
    let context = &guest.contexts[0];
    assert_eq!((context.gpr(Gpr::Rdi), guest.read_control(ControlRegister::Cr2)), (end, end));
    let string = StringIo { address: virt(BUFFER).0, count: 600, ..string };
    guest.contexts[0].set_gpr(Gpr::Rsi, virt(BUFFER).0);
    assert_eq!(guest.executes(PrivilegedOp::Outs(string)), End::Again, "events come first");
    assert_eq!(guest.contexts[0].gpr(Gpr::Rsi), virt(BUFFER).0 + 1024);
}

#[test]
fn an_io_breakpoint_traps_behind_the_access() {
    let mut guest = Guest::with_faults();
    guest.domain.vcpus[0].iopl = 1;
    guest.contexts[0].cr4 = Control4(Control4::DE);
    let set = |guest: &mut Guest, to, value| {
        assert_eq!(guest.executes(PrivilegedOp::WriteDebug { to, value }), End::Done);
    };
    // Breakpoint 1 on the four ports from 0x3f8, breakpoint 3 on one port elsewhere.
    set(&mut guest, 1, 0x3f9);
    set(&mut guest, 3, 0x80);
    set(&mut guest, 7, 0x4 | 0x40 | 0xe << 20 | 0x2 << 28);
    for (port, width, hit) in [
        (0x3f8, Width::Byte, 2),
        (0x3fb, Width::Byte, 2),
        (0x3f6, Width::Dword, 2),
        (0x80, Width::Byte, 8),
        (0x7f, Width::Word, 8),
        (0x3fc, Width::Byte, 0),
        (0x3f6, Width::Word, 0),
    ] {
        guest.contexts[0].debug[6] = 0xffff_0ff0;
        let end = if hit == 0 { End::Done } else { End::Fault(vector::DEBUG, None, RIP + u64::from(LENGTH)) };
        assert_eq!(guest.executes(PrivilegedOp::In { port, width }), end, "{port:#x} {width:?}");
        assert_eq!(guest.contexts[0].debug[6], 0xffff_0ff0 | hit, "{port:#x} {width:?}");
    }
}

#[test]
fn a_step_over_an_emulated_instruction_traps_behind_it() {
    let mut guest = Guest::with_faults();
    guest.contexts[0].rflags |= rflags::TF;
    assert_eq!(guest.executes(PrivilegedOp::Clts), End::Fault(vector::DEBUG, None, RIP + u64::from(LENGTH)));
    assert_eq!(guest.contexts[0].debug[6] & SINGLE_STEP, SINGLE_STEP);
    guest.contexts[0].rflags |= rflags::TF;
    assert_eq!(guest.executes(PrivilegedOp::Hlt), REFUSED, "a fault comes before the step");
}

#[test]
fn segment_bases_are_read_and_written_as_registers() {
    let mut guest = Guest::with_faults();
    for (number, value) in [(0xc000_0100, 1), (0xc000_0101, 2), (0xc000_0102, 3)] {
        assert!(!guest.wrmsr(number, HOLE));
        assert!(guest.wrmsr(number, 0xffff_8880_0000_0000 + value));
        assert_eq!(guest.rdmsr(number), Some(0xffff_8880_0000_0000 + value));
    }
    let context = &guest.contexts[0];
    assert_eq!(context.segment(SegmentRegister::Fs).base & 0xf, 1);
    assert_eq!(context.segment(SegmentRegister::Gs).base & 0xf, 2);
    assert_eq!(context.inactive_gs_base & 0xf, 3);
}

#[test]
fn registers_that_guests_probe_are_constants() {
    let mut guest = Guest::with_faults();
    guest.now = 0x1_2345_6789;
    for (number, value, writable) in [
        // The time, the local APIC, EFER, PAT.
        (0x10, Some(0x1_2345_6789), false),
        (0x1b, Some(0xfee0_0900), false),
        (0xc000_0080, Some(0xd01), true),
        (0x277, Some(0x0501_0007_0406), false),
        // What the machine check, power and performance say.
        (0x345, Some(0), false),
        (0x198, Some(0), false),
        (0x199, Some(0), true),
        (0x19c, Some(0), false),
        (0x179, Some(2), true),
        (0x17a, Some(0), true),
        (0x17b, Some(0), true),
        (0, Some(0), false),
        (0x400, Some(u64::MAX), true),
        (0x401, Some(0), true),
        // Banks that are not there.
        (0x408, Some(0), true),
        (0x47f, Some(0), true),
        (0x480, None, false),
        (0x29f, Some(0), true),
        (0x2a0, None, false),
        (0x4d0, None, false),
        (0xe7, None, true),
        // Xen's own, counters of performance, nothing at all.
        (0x4000_0000, Some(0), true),
        (0x4000_0001, None, false),
        (0xc1, None, false),
        (0x186, None, false),
        (0x1234_5678, None, false),
    ] {
        assert_eq!(guest.rdmsr(number), value, "{number:#x}");
        let same = if number == 0x4000_0000 { machine_address(FREE).0 } else { value.unwrap_or(0) };
        assert_eq!(guest.wrmsr(number, same), writable, "{number:#x}");
    }
    assert!(!guest.wrmsr(0xc000_0080, 0x500), "EFER keeps its value");
    assert!(guest.wrmsr(0x8b, 0), "the revision is asked for");
    assert!(!guest.wrmsr(0x8b, 1));
}

#[test]
fn a_refused_read_is_zero_until_there_is_a_handler() {
    let mut guest = Guest::new(1);
    guest.contexts[0].set_gpr(Gpr::Rax, 1);
    assert_eq!(guest.rdmsr(0xc1), Some(0));
    // Not in Xen's own range, and no write.
    for (op, number) in [(PrivilegedOp::Rdmsr, 0x4000_0001), (PrivilegedOp::Wrmsr, 0xc1)] {
        guest.contexts[0].set_gpr(Gpr::Rcx, number);
        let exit = Exit::Privileged(Privileged { length: LENGTH, op });
        assert!(matches!(guest.exit_and_crash(exit), CrashCause::NoHandler { .. }), "{number:#x}");
    }
}

#[test]
fn the_hypercall_page_goes_into_a_page_that_may_be_written() {
    let mut guest = Guest::with_faults();
    let page = machine_address(FREE).0;
    assert!(!guest.wrmsr(0x4000_0000, page | 1), "there is one page only");
    assert!(!guest.wrmsr(0x4000_0000, machine_address(Pfn(3)).0), "a page table");
    assert!(!guest.wrmsr(0x4000_0000, 0x1000), "no page of the guest's");
    assert!(guest.wrmsr(0x4000_0000, page));
    let stub: [u8; 14] = guest.get(machine_address(FREE));
    assert_eq!(stub, [0x51, 0x41, 0x53, 0xb8, 0, 0, 0, 0, 0x0f, 0x05, 0x41, 0x5b, 0x59, 0xc3]);
    guest.domain.recount().unwrap();
}

#[test]
fn cr0_changes_in_one_bit_only() {
    let mut guest = Guest::with_faults();
    let value = guest.read_control(ControlRegister::Cr0);
    assert_eq!(value, 0x8005_0033);
    let write = |guest: &mut Guest, value| {
        guest.executes(PrivilegedOp::WriteControl { to: ControlRegister::Cr0, value })
    };
    assert_eq!(write(&mut guest, value | CR0_TS), End::Done);
    assert_eq!(guest.read_control(ControlRegister::Cr0), value | CR0_TS);
    assert_eq!(guest.executes(PrivilegedOp::Clts), End::Done);
    assert_eq!(guest.read_control(ControlRegister::Cr0), value);
    for bit in (0..32).filter(|bit| *bit != 3) {
        assert_eq!(write(&mut guest, value ^ 1 << bit), REFUSED, "{bit}");
    }
}

#[test]
fn cr2_and_cr3_are_the_guests_own() {
    let mut guest = Guest::with_faults();
    let write = |guest: &mut Guest, to, value| guest.executes(PrivilegedOp::WriteControl { to, value });
    assert_eq!(write(&mut guest, ControlRegister::Cr2, 77), End::Done);
    assert_eq!(guest.read_control(ControlRegister::Cr2), 77);
    let root = frame(Pfn(0)).0 << 12;
    assert_eq!(guest.read_control(ControlRegister::Cr3), root);
    assert_eq!(write(&mut guest, ControlRegister::Cr3, root), End::Done);
    for bad in [frame(Pfn(3)).0 << 12, frame(FREE).0 << 12, 0, u64::MAX] {
        assert_eq!(write(&mut guest, ControlRegister::Cr3, bad), REFUSED, "{bad:#x}");
    }
    assert_eq!(guest.read_control(ControlRegister::Cr3), root);
    guest.domain.recount().unwrap();
}

#[test]
fn cr4_takes_what_the_cpu_offers_and_drops_the_rest() {
    let mut guest = Guest::with_faults();
    // The CPU of these tests has no feature, so that no bit can be set.
    assert_eq!(
        guest.executes(PrivilegedOp::WriteControl { to: ControlRegister::Cr4, value: u64::MAX }),
        End::Done
    );
    assert_eq!(
        guest.read_control(ControlRegister::Cr4),
        CR4_FIXED | guest.domain.cpuid.allowed_cr4() & CR4_GUEST
    );
    assert_eq!(guest.executes(PrivilegedOp::WriteControl { to: ControlRegister::Cr8, value: 0 }), REFUSED);
    let read = PrivilegedOp::ReadControl { from: ControlRegister::Cr8, to: Gpr::Rax };
    assert_eq!(guest.executes(read), REFUSED);
}

#[test]
fn debug_registers_fault_as_the_cpu_does() {
    let mut guest = Guest::with_faults();
    guest.contexts[0].cr4 = Control4(Control4::DE);
    for (to, value, end) in [
        (0, RIP, End::Done),
        (0, 0xffff_8000_0000_0000, REFUSED),
        (4, 0, UNDEFINED),
        (5, 0, UNDEFINED),
        (7, 1 << 32, REFUSED),
        (7, 1 << 13, REFUSED),
    ] {
        assert_eq!(guest.executes(PrivilegedOp::WriteDebug { to, value }), end, "{to} {value:#x}");
    }
    assert_eq!(guest.executes(PrivilegedOp::ReadDebug { from: 0, to: Gpr::Rbx }), End::Done);
    assert_eq!(guest.contexts[0].gpr(Gpr::Rbx), RIP);
    assert_eq!(guest.executes(PrivilegedOp::ReadDebug { from: 5, to: Gpr::Rbx }), UNDEFINED);
}

#[test]
fn a_guest_can_take_cpuid_from_its_programs() {
    let mut guest = Guest::with_faults();
    assert!(!guest.wrmsr(0x140, 2));
    assert!(guest.wrmsr(0x140, 1));
    for forced in [false, true] {
        assert_eq!(guest.executes(PrivilegedOp::Cpuid { forced }), End::Done, "the kernel keeps it");
    }
    guest.enter_user_mode();
    assert_eq!(guest.executes(PrivilegedOp::Cpuid { forced: false }), REFUSED);
    guest.contexts[0].mode = GuestMode::User;
    let behind_prefix = End::Fault(vector::GENERAL_PROTECTION, Some(0), RIP + 5);
    assert_eq!(guest.executes(PrivilegedOp::Cpuid { forced: true }), behind_prefix);
}

#[test]
fn the_forced_prefix_answers_in_both_modes() {
    for user in [false, true] {
        let mut guest = Guest::with_faults();
        if user {
            guest.enter_user_mode();
        }
        guest.contexts[0].set_gpr(Gpr::Rax, 0x4000_0000);
        assert_eq!(guest.executes(PrivilegedOp::Cpuid { forced: true }), End::Done);
        let words = [Gpr::Rbx, Gpr::Rcx, Gpr::Rdx].map(|register| guest.contexts[0].gpr(register));
        assert_eq!(words, [0x566e_6558, 0x6558_4d4d, 0x4d4d_566e]);
    }
}

#[test]
fn xsetbv_is_invalid_until_cr4_allows_it() {
    let mut guest = Guest::with_faults();
    assert_eq!(guest.executes(PrivilegedOp::Xsetbv), UNDEFINED);
    guest.contexts[0].cr4 = Control4(Control4::OSXSAVE);
    guest.contexts[0].set_gpr(Gpr::Rcx, 1);
    assert_eq!(guest.executes(PrivilegedOp::Xsetbv), REFUSED, "there is one register");
    guest.contexts[0].set_gpr(Gpr::Rcx, 0);
    guest.contexts[0].set_gpr(Gpr::Rax, 0);
    guest.contexts[0].set_gpr(Gpr::Rdx, 0);
    assert_eq!(guest.executes(PrivilegedOp::Xsetbv), REFUSED, "x87 cannot be turned off");
}

#[test]
fn an_event_that_came_meanwhile_follows_the_instruction() {
    let mut guest = Guest::with_faults().take_events();
    guest.put(guest.domain.vcpus[0].vcpu_info, &1_u8);
    guest.mask_events(paravane_abi::units::VcpuId(0), false);
    guest.contexts[0].rip = RIP;
    guest.exit_and_run(Exit::Privileged(Privileged { length: LENGTH, op: PrivilegedOp::Clts }));
    assert_eq!(guest.contexts[0].rip, EVENT_HANDLER.0);
    assert_eq!(guest.stack::<7>()[2], RIP + u64::from(LENGTH));
}

#[test]
fn a_page_fault_of_an_operand_is_the_guests() {
    let mut guest = Guest::with_faults();
    let fault = PageFault { address: 0x1000, code: FaultCode(0) };
    guest.contexts[0].rip = RIP;
    guest.exit_and_run(Exit::PageFault(fault));
    assert_eq!(guest.read_control(ControlRegister::Cr2), 0x1000);
}

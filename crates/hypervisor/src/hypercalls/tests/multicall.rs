//! `multicall`.

use core::mem::offset_of;

use paravane_abi::{
    errno::Errno,
    hypercall::Hypercall,
    mmu::MulticallEntry,
    sched::SchedOp,
    units::{MachAddr, PAGE_SIZE, Pfn},
    version::XenVersionOp,
    vm::ConsoleIoOp,
};
use paravane_engine::{Gpr, SegmentRegister};
use zerocopy::FromZeros;

use super::BOOT;
use crate::{
    Verdict,
    testing::{FREE, Guest, machine_address, virt},
};

fn entry(call: Hypercall, args: &[u64]) -> MulticallEntry {
    let mut entry = MulticallEntry::new_zeroed();
    entry.op = call.number().into();
    entry.args[..args.len()].copy_from_slice(args);
    entry.result = 0x5555;
    entry
}

/// An entry that returns the version.
fn version() -> MulticallEntry {
    entry(Hypercall::XenVersion, &[XenVersionOp::Version.number().into()])
}

const VERSION: u64 = 4 << 16 | 17;

fn at(index: u64) -> MachAddr {
    MachAddr(machine_address(FREE).0 + index * size_of::<MulticallEntry>() as u64)
}

impl Guest {
    fn put_list(&self, entries: &[MulticallEntry]) {
        for (index, entry) in (0..).zip(entries) {
            self.put(at(index), entry);
        }
    }

    fn result(&self, index: u64) -> u64 {
        self.get(MachAddr(at(index).0 + offset_of!(MulticallEntry, result) as u64))
    }

    fn multicall(&mut self, count: u64) -> Result<i64, Errno> {
        self.call(Hypercall::Multicall, &[virt(FREE).0, count])
    }
}

#[test]
fn every_result_is_stored_and_the_call_returns_0() {
    let mut guest = Guest::new(1);
    let mut unknown = version();
    unknown.op = u64::MAX;
    let refused = entry(Hypercall::KexecOp, &[0]);
    guest.put_list(&[version(), unknown, refused, version()]);
    assert_eq!(guest.multicall(3), Ok(0));
    let results: Vec<u64> = (0..4).map(|index| guest.result(index)).collect();
    assert_eq!(results, [VERSION, Errno::Enosys.to_rax(), Errno::Eperm.to_rax(), 0x5555]);
    assert_eq!(guest.multicall(0), Ok(0));
}

#[test]
fn a_multicall_inside_is_refused_and_the_rest_goes_on() {
    let mut guest = Guest::new(1);
    guest.put_list(&[entry(Hypercall::Multicall, &[virt(FREE).0, 1]), version()]);
    assert_eq!(guest.multicall(2), Ok(0));
    assert_eq!((guest.result(0), guest.result(1)), (Errno::Einval.to_rax(), VERSION));
    assert!(!guest.domain.vcpus[0].in_multicall);
}

#[test]
fn a_list_that_cannot_be_read_fails_where_it_ends() {
    let mut guest = Guest::new(1);
    for list in [0, 0xffff_8000_0000_0000, u64::MAX - 63] {
        assert_eq!(guest.call(Hypercall::Multicall, &[list, 1]), Err(Errno::Efault), "{list:#x}");
    }
    // The last page of the guest: nothing is mapped behind it.
    let last = Pfn(crate::testing::PAGES - 1);
    let size = size_of::<MulticallEntry>() as u64;
    let start = PAGE_SIZE - size;
    guest.put(MachAddr(machine_address(last).0 + start), &version());
    let list = virt(last).0 + start;
    assert_eq!(guest.call(Hypercall::Multicall, &[list, 2]), Err(Errno::Efault));
    let result = MachAddr(machine_address(last).0 + start + offset_of!(MulticallEntry, result) as u64);
    assert_eq!(guest.get::<u64>(result), VERSION, "the first one was done");
    assert!(!guest.domain.vcpus[0].in_multicall);
}

#[test]
fn a_long_list_is_continued_by_the_guest_itself() {
    let mut guest = Guest::new(1);
    guest.put_list(&vec![version(); 600]);
    let rip = guest.contexts[0].rip;
    let (verdict, rax) = guest.invoke(BOOT, Hypercall::Multicall, &[virt(FREE).0, 600]);
    assert!(matches!(verdict, Verdict::Run));
    assert_eq!((guest.contexts[0].rip, rax), (rip - 2, Hypercall::Multicall.number().into()));
    let batch = 256;
    assert_eq!(guest.contexts[0].gpr(Gpr::Rdi), virt(FREE).0 + batch * 64);
    assert_eq!(guest.contexts[0].gpr(Gpr::Rsi), 600 - batch);
    assert_eq!((guest.result(batch - 1), guest.result(batch)), (VERSION, 0x5555));
    guest.contexts[0].rip = rip;
    assert_eq!(guest.multicall(600), Ok(0));
    assert!((0..600).all(|index| guest.result(index) == VERSION));
}

#[test]
fn a_vcpu_that_blocks_inside_goes_on_with_the_rest_when_it_wakes() {
    let mut guest = Guest::new(1).take_events();
    let block = entry(Hypercall::SchedOp, &[SchedOp::Block.number().into()]);
    guest.put_list(&[block, version()]);
    let (verdict, _) = guest.invoke(BOOT, Hypercall::Multicall, &[virt(FREE).0, 2]);
    assert!(matches!(verdict, Verdict::Block { .. }));
    assert_eq!((guest.result(0), guest.result(1)), (0, 0x5555));
    assert_eq!(guest.contexts[0].gpr(Gpr::Rsi), 1);
    guest.put_list(&[version(), block]);
    guest.domain.wake(BOOT);
    assert!(matches!(guest.enter(BOOT), Verdict::Run));
    let (verdict, rax) = guest.invoke(BOOT, Hypercall::Multicall, &[virt(FREE).0, 2]);
    assert!(matches!(verdict, Verdict::Block { .. }));
    assert_eq!(rax, 0, "nothing is left to do");
}

#[test]
fn an_entry_that_is_done_in_part_keeps_the_arguments_of_the_rest() {
    let mut guest = Guest::new(1);
    // A write of three pages, which is taken a page at a time.
    let write = [ConsoleIoOp::Write.number().into(), 2 * PAGE_SIZE + 5, virt(Pfn(FREE.0 + 4)).0];
    guest.put_list(&[entry(Hypercall::ConsoleIo, &write), version()]);
    let (verdict, _) = guest.invoke(BOOT, Hypercall::Multicall, &[virt(FREE).0, 2]);
    assert!(matches!(verdict, Verdict::Run));
    let rest: MulticallEntry = guest.get(at(0));
    assert_eq!(rest.args[1..3], [PAGE_SIZE + 5, virt(Pfn(FREE.0 + 5)).0]);
    assert_eq!(guest.contexts[0].gpr(Gpr::Rsi), 2);
    guest.contexts[0].rip += 2;
    assert_eq!(guest.multicall(2), Ok(0));
    assert_eq!((guest.result(0), guest.result(1)), (0, VERSION));
    assert_eq!(guest.domain.take_console_output().bytes.len(), 2 * 4096 + 5);
}

#[test]
fn an_iret_inside_leaves_the_list() {
    let mut guest = Guest::new(1);
    let frame = [99_u64, 0, 0, 0, virt(FREE).0 + 7, 0xe030, 0x202, virt(FREE).0, 0xe028];
    let stack = guest.contexts[0].gpr(Gpr::Rsp) - 72;
    guest.contexts[0].set_gpr(Gpr::Rsp, stack);
    guest
        .domain
        .space(guest.contexts[0].kernel_root)
        .write_value(paravane_abi::units::GuestVirt(stack), &frame)
        .unwrap();
    guest.mask_events(BOOT, true);
    guest.put_list(&[entry(Hypercall::Iret, &[]), version()]);
    let (verdict, rax) = guest.invoke(BOOT, Hypercall::Multicall, &[virt(FREE).0, 2]);
    assert!(matches!(verdict, Verdict::Run));
    assert_eq!((guest.contexts[0].rip, rax), (virt(FREE).0 + 7, 99));
    assert_eq!(guest.contexts[0].segment(SegmentRegister::Cs).selector, 0xe033);
    assert_eq!((guest.result(0), guest.result(1)), (99, 0x5555));
}

//! Walks of the page tables, by translated code itself or by Rust: the same answers, the same accessed and dirty bits.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up fails")]

use crate::native::{CODE, Cpu, DATA, Machine, STACK_TOP, machine, map_page};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use paravane_abi::units::{GuestVirt, MachAddr, PAGE_SIZE};
use paravane_engine::{Engine as _, Exit, Gpr, PageFault, Privileged, PrivilegedOp, TlbFlush};
use paravane_memory::paging::{FaultCode, inspect};

const HLT: Exit = Exit::Privileged(Privileged { length: 1, op: PrivilegedOp::Hlt });
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const NO_EXECUTE: u64 = 1 << 63;

fn assemble(write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(64).unwrap();
    write(&mut assembler).unwrap();
    assembler.assemble(CODE).unwrap()
}

/// Runs code from its start, with an emptied TLB.
fn run(machine: &mut Machine, code: &[u8]) -> Exit {
    machine.memory.write(machine.machine_address(CODE), code).unwrap();
    machine.load(&Cpu::plain(CODE));
    let context = machine.engine.context_mut();
    context.set_gpr(Gpr::Rsp, STACK_TOP);
    context.set_gpr(Gpr::Rbx, DATA);
    machine.engine.flush_tlb(TlbFlush::All);
    machine.engine.run()
}

/// The address and contents of the last-level entry for an address.
fn leaf(machine: &Machine, address: u64) -> (MachAddr, u64) {
    let root = machine.engine.context().kernel_root;
    let (steps, _) = inspect(&machine.memory, root, GuestVirt(address));
    (steps[3].address, steps[3].entry.unwrap())
}

#[test]
fn accesses_are_allowed_and_noted_as_the_tables_say_whoever_walks() {
    let fault = |code| Exit::PageFault(PageFault { address: DATA, code: FaultCode(code) });
    let read = assemble(|a| {
        a.mov(rcx, qword_ptr(rbx))?;
        a.hlt()
    });
    let write = assemble(|a| {
        a.mov(qword_ptr(rbx), rcx)?;
        a.hlt()
    });
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    // Whoever runs first finds the tables' root in the engine only then.
    assert_eq!(run(machine, &read), HLT);
    let (at, before) = leaf(machine, DATA);
    let frame = before & !0xfff;
    for (flags, code, exit, after) in [
        (7, &read, HLT, 7 | ACCESSED),
        (7, &write, HLT, 7 | ACCESSED | DIRTY),
        (7 | ACCESSED, &read, HLT, 7 | ACCESSED),
        (7 | ACCESSED, &write, HLT, 7 | ACCESSED | DIRTY),
        (5 | ACCESSED | DIRTY, &read, HLT, 5 | ACCESSED | DIRTY),
        (5 | ACCESSED | DIRTY, &write, fault(7), 5 | ACCESSED | DIRTY),
        (3 | ACCESSED | DIRTY, &read, fault(5), 3 | ACCESSED | DIRTY),
        (3 | ACCESSED | DIRTY, &write, fault(7), 3 | ACCESSED | DIRTY),
        (6 | ACCESSED | DIRTY, &read, fault(4), 6 | ACCESSED | DIRTY),
        (6 | ACCESSED | DIRTY, &write, fault(6), 6 | ACCESSED | DIRTY),
    ] {
        // Once for the translation, once for the walk alone.
        for _ in 0..2 {
            machine.memory.store_u64(at, frame | flags).unwrap();
            assert_eq!(run(machine, code), exit, "{flags:#x}");
            assert_eq!(leaf(machine, DATA).1, frame | after, "{flags:#x}");
        }
    }
    machine.memory.store_u64(at, before).unwrap();
    machine.engine.flush_tlb(TlbFlush::All);
}

#[test]
fn pages_that_were_walked_before_are_found_again_without_rust() {
    // Calls another page, which reads, writes and returns.
    let code = assemble(|a| {
        a.call(CODE + PAGE_SIZE)?;
        a.hlt()
    });
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    // Whatever other tests left there, these pages hold no code now.
    for address in [DATA, STACK_TOP & !(PAGE_SIZE - 1)] {
        machine.memory.zero_frame(machine.machine_address(address).frame()).unwrap();
    }
    let inner = [0x48, 0x8b, 0x0b, 0x48, 0x89, 0x4b, 0x08, 0xc3];
    machine.memory.write(machine.machine_address(CODE + PAGE_SIZE), &inner).unwrap();
    assert_eq!(run(machine, &code), HLT);
    assert_eq!(run(machine, &code), HLT);
    let before = machine.engine.stats();
    machine.engine.context_mut().rip = CODE;
    machine.engine.flush_tlb(TlbFlush::All);
    assert_eq!(machine.engine.run(), HLT);
    let after = machine.engine.stats();
    // The stack for writing and for reading, the data for both; Rust may be asked for a page that needs it.
    let (refills, misses) =
        (after.tlb_refills - before.tlb_refills, after.access_misses - before.access_misses);
    assert_eq!(refills + misses, 4);
    assert!(refills >= 3, "{refills} of 4 in place");
    assert_eq!(after.page_checks, before.page_checks);
    // The page that the run starts on, and the one that it calls.
    assert_eq!(after.page_refills - before.page_refills, 2);
    // Without the right to execute, the walk finds the page no more.
    let (at, entry) = leaf(machine, CODE + PAGE_SIZE);
    machine.memory.store_u64(at, entry | NO_EXECUTE).unwrap();
    machine.engine.context_mut().rip = CODE;
    machine.engine.flush_tlb(TlbFlush::All);
    let fetch = PageFault { address: CODE + PAGE_SIZE, code: FaultCode(0x15) };
    assert_eq!(machine.engine.run(), Exit::PageFault(fetch));
    machine.memory.store_u64(at, entry).unwrap();
    machine.engine.flush_tlb(TlbFlush::All);
}

#[test]
fn a_frame_that_holds_code_is_never_written_in_place() {
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    // Overwrites the immediate of an instruction on another page, then calls it.
    let code = assemble(|a| {
        a.mov(rbx, CODE + PAGE_SIZE + 1)?;
        a.call(CODE + PAGE_SIZE)?;
        a.mov(edx, eax)?;
        a.mov(byte_ptr(rbx), 7)?;
        a.call(CODE + PAGE_SIZE)?;
        a.hlt()
    });
    let inner = [0xb8, 3, 0, 0, 0, 0xc3];
    for _ in 0..3 {
        machine.memory.write(machine.machine_address(CODE + PAGE_SIZE), &inner).unwrap();
        assert_eq!(run(machine, &code), HLT);
        let context = machine.engine.context();
        assert_eq!((context.gpr(Gpr::Rdx), context.gpr(Gpr::Rax)), (3, 7));
    }
    let mut next = 230;
    let root = machine.engine.context().kernel_root;
    let frame = machine.machine_address(CODE + PAGE_SIZE).frame();
    map_page(&machine.memory, root, CODE + PAGE_SIZE, frame, 7, &mut next);
    machine.engine.flush_tlb(TlbFlush::All);
}

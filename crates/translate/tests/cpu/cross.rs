//! Code that changes while another vCPU runs it, each vCPU on a thread of its own.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up fails")]
#![expect(clippy::wildcard_enum_match_arm, reason = "any exit that is not expected ends a test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use paravane_abi::units::{MachAddr, PAGE_SIZE};
use paravane_engine::{Engine as _, Exit, Gpr, Interrupt};
use paravane_memory::Memory;
use paravane_translate::{Options, Translator};

use crate::native::{CODE, DATA, Machine, STACK_TOP, machine};
use crate::promises::{HLT, assemble, prepare};
use crate::smc::{ALIAS, FRAME, TARGET, map, returns};

/// Where the second vCPU's code is.
const SECOND: u64 = CODE + PAGE_SIZE;
/// Its stack.
const SECOND_STACK: u64 = STACK_TOP + 1024;
/// A word in the data that ends its loop.
const STOP: u64 = DATA + 64;

/// A second vCPU with code of its own and the machine's address space.
fn second(machine: &mut Machine, code: &[u8]) -> Translator {
    machine.memory.write(machine.machine_address(SECOND), code).unwrap();
    machine.memory.store_u64(machine.machine_address(STOP), 0).unwrap();
    let mut engine = Translator::new(Arc::clone(&machine.memory), Options::default()).unwrap();
    *engine.context_mut() = machine.engine.context().clone();
    let context = engine.context_mut();
    context.rip = SECOND;
    context.set_gpr(Gpr::Rsp, SECOND_STACK);
    engine
}

/// Code for the second vCPU, where it will be.
fn at_second(write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(64).unwrap();
    write(&mut assembler).unwrap();
    assembler.assemble(SECOND).unwrap()
}

/// Runs to HLT, whoever interrupts.
fn run_to_end(engine: &mut Translator) -> Exit {
    loop {
        match engine.run() {
            Exit::Interrupted => {}
            exit => return exit,
        }
    }
}

/// The number in a `mov eax, number` at the start of the target page.
fn number(memory: &Memory) -> u32 {
    let mut bytes = [0; 4];
    memory.read(MachAddr(FRAME.0 * PAGE_SIZE + 1), &mut bytes).unwrap();
    u32::from_le_bytes(bytes)
}

fn set_up(machine: &mut Machine, code: &[u8]) {
    prepare(machine, code);
    map(machine, TARGET, FRAME);
    map(machine, ALIAS, FRAME);
    machine.memory.zero_frame(FRAME).unwrap();
    machine.memory.write(FRAME.base().unwrap(), &returns(0)).unwrap();
}

#[test]
fn a_page_that_another_vcpu_writes_all_the_time_can_become_code() {
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    // Each loop of the second vCPU has a way of its own to hold on to a host address.
    let plain = at_second(|a| {
        let mut again = a.create_label();
        a.mov(rbx, TARGET + 1)?;
        a.mov(rcx, STOP)?;
        a.set_label(&mut again)?;
        a.inc(dword_ptr(rbx))?;
        a.cmp(dword_ptr(rcx), 0)?;
        a.je(again)?;
        a.hlt()
    });
    let shared = at_second(|a| {
        let mut again = a.create_label();
        a.mov(rbx, ALIAS)?;
        a.mov(rcx, STOP)?;
        a.set_label(&mut again)?;
        a.mov(byte_ptr(rbx + 16), 1)?;
        a.mov(rdx, qword_ptr(rcx))?;
        a.inc(dword_ptr(rbx + 1))?;
        a.test(rdx, rdx)?;
        a.je(again)?;
        a.hlt()
    });
    let locked = at_second(|a| {
        let mut again = a.create_label();
        a.mov(rbx, ALIAS + 1)?;
        a.mov(rcx, STOP)?;
        a.set_label(&mut again)?;
        a.mov(eax, 1)?;
        a.lock().xadd(dword_ptr(rbx), eax)?;
        a.cmp(dword_ptr(rcx), 0)?;
        a.je(again)?;
        a.hlt()
    });
    for code in [plain, shared, locked] {
        set_up(
            machine,
            &assemble(|a| {
                a.call(TARGET)?;
                a.hlt()
            }),
        );
        let mut other = second(machine, &code);
        let writer = thread::spawn(move || run_to_end(&mut other));
        while number(&machine.memory) < 100 {
            thread::yield_now();
        }
        for _ in 0..50 {
            let before = number(&machine.memory);
            let context = machine.engine.context_mut();
            context.rip = CODE;
            context.set_gpr(Gpr::Rsp, STACK_TOP);
            assert_eq!(run_to_end(&mut machine.engine), HLT);
            let found = u32::try_from(machine.engine.context().gpr(Gpr::Rax)).unwrap();
            // The number wraps.
            let is_since = |since: u32, number: u32| number.wrapping_sub(since) < 1 << 31;
            assert!(is_since(before, found), "{found} was overwritten by {before} long ago");
            while !is_since(before.wrapping_add(5), number(&machine.memory)) {
                thread::yield_now();
            }
        }
        machine.memory.store_u64(machine.machine_address(STOP), 1).unwrap();
        assert_eq!(writer.join().unwrap(), HLT);
        let last = number(&machine.memory);
        machine.engine.context_mut().rip = CODE;
        assert_eq!(run_to_end(&mut machine.engine), HLT);
        assert_eq!(machine.engine.context().gpr(Gpr::Rax), u64::from(last));
    }
}

/// What the site returns before and after.
const OLD: u32 = 0x1111_1111;
const NEW: u32 = 0x2222_2222;
/// Words through which the vCPU that changes code asks the other to show that it has gone on, and is answered.
const ASKED: u64 = DATA + 128;
const ANSWERED: u64 = DATA + 192;
const ROUNDS: u32 = 200;

/// Calls the site for ever, and stops at UD2 if it returns anything but what it may.
fn caller() -> Vec<u8> {
    assemble(|a| {
        let (mut again, mut fine) = (a.create_label(), a.create_label());
        a.mov(rbx, DATA)?;
        a.set_label(&mut again)?;
        a.call(TARGET)?;
        a.inc(r13)?;
        a.cmp(eax, OLD)?;
        a.je(fine)?;
        a.cmp(eax, NEW)?;
        a.je(fine)?;
        a.ud2()?;
        a.set_label(&mut fine)?;
        a.mov(ecx, dword_ptr(rbx + 128))?;
        a.mov(dword_ptr(rbx + 192), ecx)?;
        a.cmp(dword_ptr(rbx + 64), 0)?;
        a.je(again)?;
        a.hlt()
    })
}

/// Calls the site until told to stop; a breakpoint there does what the old code did. Returns how many there were.
fn call_until_stopped(engine: &mut Translator) -> (Exit, u64) {
    let mut breakpoints = 0;
    loop {
        match engine.run() {
            Exit::Interrupted => {}
            Exit::SoftwareInterrupt(Interrupt { vector: 3, next_rip }) => {
                assert_eq!(next_rip, TARGET + 1);
                breakpoints += 1;
                let context = engine.context_mut();
                context.rip = TARGET + 5;
                context.set_gpr(Gpr::Rax, u64::from(OLD));
            }
            exit => return (exit, breakpoints),
        }
    }
}

#[test]
fn a_site_that_is_changed_as_linux_does_is_old_a_breakpoint_or_new() {
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    // The second vCPU: INT3, everybody, the tail, everybody, the first byte, everybody; to and fro.
    let poker = at_second(|a| {
        let (mut round, mut wait) = (a.create_label(), a.create_label());
        let (mut sync, mut over) = (a.create_label(), a.create_label());
        a.mov(rbx, DATA)?;
        a.mov(rdi, ALIAS)?;
        a.mov(r12d, ROUNDS)?;
        a.mov(r14d, OLD ^ NEW)?;
        a.mov(esi, OLD)?;
        a.xor(ecx, ecx)?;
        a.set_label(&mut round)?;
        a.mov(byte_ptr(rdi), 0xcc)?;
        a.call(sync)?;
        a.xor(esi, r14d)?;
        a.mov(dword_ptr(rdi + 1), esi)?;
        a.call(sync)?;
        a.mov(byte_ptr(rdi), 0xb8)?;
        a.call(sync)?;
        a.dec(r12d)?;
        a.jnz(round)?;
        a.mov(dword_ptr(rbx + 64), 1)?;
        a.jmp(over)?;
        a.set_label(&mut sync)?;
        a.inc(ecx)?;
        a.mov(dword_ptr(rbx + 128), ecx)?;
        a.set_label(&mut wait)?;
        a.pause()?;
        a.cmp(dword_ptr(rbx + 192), ecx)?;
        a.jne(wait)?;
        a.ret()?;
        a.set_label(&mut over)?;
        a.hlt()
    });
    set_up(machine, &caller());
    machine.memory.write(FRAME.base().unwrap(), &returns(OLD)).unwrap();
    for word in [ASKED, ANSWERED] {
        machine.memory.store_u64(machine.machine_address(word), 0).unwrap();
    }
    let mut other = second(machine, &poker);
    let poking = thread::spawn(move || run_to_end(&mut other));
    let (exit, breakpoints) = call_until_stopped(&mut machine.engine);
    assert_eq!(exit, HLT, "at {:#x}", machine.engine.context().rip);
    assert_eq!(poking.join().unwrap(), HLT);
    let calls = machine.engine.context().gpr(Gpr::R13);
    println!("{calls} calls, {breakpoints} breakpoints in {ROUNDS} changes");
    assert!(breakpoints > 0);
}

#[test]
fn a_site_that_the_hypervisor_changes_is_old_a_breakpoint_or_new() {
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    set_up(machine, &caller());
    machine.memory.write(FRAME.base().unwrap(), &returns(OLD)).unwrap();
    let memory = Arc::clone(&machine.memory);
    let [asked, answered, stop] = [ASKED, ANSWERED, STOP].map(|word| machine.machine_address(word));
    for word in [asked, answered, stop] {
        memory.store_u64(word, 0).unwrap();
    }
    // A second vCPU is there, so that the first is told of what others write at once.
    let idle = second(machine, &[0xf4]);
    let done = Arc::new(AtomicBool::new(false));
    let finished = Arc::clone(&done);
    let writer = thread::spawn(move || {
        let (mut round, mut value) = (0, OLD);
        let mut write = |offset: u64, bytes: &[u8]| {
            memory.write(MachAddr(FRAME.0 * PAGE_SIZE + offset), bytes).unwrap();
            round += 1;
            memory.store_u32(asked, round).unwrap();
            while memory.load_u32(answered).unwrap() != round && !finished.load(Ordering::Relaxed) {
                thread::yield_now();
            }
        };
        for _ in 0..ROUNDS {
            write(0, &[0xcc]);
            value ^= OLD ^ NEW;
            write(1, &value.to_le_bytes());
            write(0, &[0xb8]);
        }
        memory.store_u32(stop, 1).unwrap();
    });
    let (exit, breakpoints) = call_until_stopped(&mut machine.engine);
    done.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    drop(idle);
    assert_eq!(exit, HLT, "at {:#x}", machine.engine.context().rip);
    assert!(breakpoints > 0);
}

#[test]
fn locked_counters_beside_code_lose_no_count() {
    const COUNT: u32 = 20_000;
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    // Both count in the page that holds the function which both call.
    let counts = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        a.mov(rbx, ALIAS + 2048)?;
        a.mov(r12d, COUNT)?;
        a.set_label(&mut again)?;
        a.lock().inc(dword_ptr(rbx))?;
        a.call(TARGET)?;
        a.dec(r12d)?;
        a.jnz(again)?;
        a.hlt()
    };
    set_up(machine, &assemble(counts));
    let mut other = second(machine, &at_second(counts));
    let counting = thread::spawn(move || run_to_end(&mut other));
    assert_eq!(run_to_end(&mut machine.engine), HLT);
    assert_eq!(counting.join().unwrap(), HLT);
    let at = MachAddr(FRAME.0 * PAGE_SIZE + 2048);
    assert_eq!(machine.memory.load_u32(at).unwrap(), 2 * COUNT);
}

#[test]
fn an_engine_may_come_and_go_while_another_runs() {
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    set_up(machine, &[0xeb, 0xfe]);
    let memory = Arc::clone(&machine.memory);
    let kick = machine.engine.kick_handle();
    let comer = thread::spawn(move || {
        for _ in 0..20 {
            drop(Translator::new(Arc::clone(&memory), Options::default()).unwrap());
        }
        kick.kick();
    });
    while !comer.is_finished() {
        assert_eq!(machine.engine.run(), Exit::Interrupted);
    }
    comer.join().unwrap();
    // The last kick may still be there.
    machine.engine.kick_handle().kick();
    assert_eq!(machine.engine.run(), Exit::Interrupted);
}

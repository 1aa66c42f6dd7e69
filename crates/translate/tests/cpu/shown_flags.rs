//! Status flags that nobody will read, when a fault or a kick shows them.
//!
//! Random programs whose pointers lead to pages that are not there or cannot be written: most of the flags at such a
//! fault are about to be replaced, and all must be the CPU's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use paravane_engine::{Engine as _, Exit, Gpr, rflags};

use crate::faults::protect;
use crate::native::random::{Random, seed};
use crate::native::real::Access;
use crate::native::{CODE, Cpu, End, STACK_TOP, machine};
use crate::programs::Programs;
use crate::promises::{assemble, prepare};

const ROUNDS: u64 = 60;
const PROGRAMS_IN_A_ROUND: u64 = 50;

#[test]
fn a_fault_shows_the_flags_that_the_cpu_shows() {
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    let mut random = Random(seed() ^ 0xf1a6);
    let mut programs = Programs::new(random.next());
    let mut failures = Vec::new();
    let mut faults = 0;
    for _ in 0..ROUNDS {
        let pages: [Access; 8] =
            std::array::from_fn(|_| random.pick(&[Access::All, Access::All, Access::ReadOnly, Access::None]));
        protect(machine, &pages);
        for _ in 0..PROGRAMS_IN_A_ROUND {
            let case = programs.case(machine);
            let (end, outcome) = case.run(machine);
            faults += u64::from(end != End::Done);
            failures.extend(outcome.err().map(|why| format!("{why}\n  {}", case.line())));
        }
    }
    protect(machine, &[Access::All; 8]);
    println!("{} programs, {faults} of them faulted", ROUNDS * PROGRAMS_IN_A_ROUND);
    assert!(failures.is_empty(), "{}:\n{}", failures.len(), failures[..failures.len().min(5)].join("\n"));
    assert!(faults > 500, "only {faults} programs faulted");
}

/// How a loop begins.
type Head = fn(&mut CodeAssembler) -> Result<(), IcedError>;

#[test]
fn a_kick_shows_the_flags_that_the_jump_back_left() {
    // All end with CMP RCX, RDX; JNE, and differ in what comes first: an access, what replaces the flags, an access by a
    // register that was compared, part of the flags.
    let heads: [Head; 5] = [
        |a| a.add(rax, qword_ptr(rbx)),
        |a| a.xor(esi, esi),
        |a| {
            a.mov(rsi, qword_ptr(rbx))?;
            a.and(ecx, 0xfff)?;
            a.add(rsi, qword_ptr(rbx + 8))
        },
        |a| {
            a.rol(rsi, 3)?;
            a.mov(qword_ptr(rbx), rsi)
        },
        |a| a.push(rsi).and_then(|()| a.pop(rsi)),
    ];
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    for (number, head) in heads.into_iter().enumerate() {
        let code = assemble(|a| {
            a.mov(edx, -1)?;
            let mut start = a.create_label();
            a.set_label(&mut start)?;
            head(a)?;
            a.inc(rcx)?;
            a.cmp(rcx, rdx)?;
            a.jne(start)
        });
        prepare(machine, &code);
        let compare = assemble(|a| a.cmp(rcx, rdx));
        let kick = machine.engine.kick_handle();
        let enough = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&enough);
        let kicker = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                kick.kick();
                std::thread::yield_now();
            }
        });
        let mut seen = Vec::new();
        // A kick may come before the loop has begun, or once more before it goes on.
        while seen.len() < 50 {
            assert_eq!(machine.engine.run(), Exit::Interrupted);
            let context = machine.engine.context();
            if context.gpr(Gpr::Rcx) > 1 {
                seen.push((context.gpr(Gpr::Rcx), context.gpr(Gpr::Rdx), context.rflags & rflags::STATUS));
            }
        }
        enough.store(true, Ordering::Relaxed);
        kicker.join().unwrap();
        machine.engine.kick_handle().kick();
        assert_eq!(machine.engine.run(), Exit::Interrupted);
        for (left, right, flags) in seen {
            let mut before = Cpu::plain(CODE);
            (before.gprs[1], before.gprs[2], before.gprs[4]) = (left, right, STACK_TOP);
            let native = machine.native(&compare, &before, &[], &[]);
            assert_eq!(flags, native.cpu.flags & rflags::STATUS, "loop {number}: {left:#x}, {right:#x}");
        }
    }
}

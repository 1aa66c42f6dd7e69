//! Kicks: a vCPU leaves whatever it does, soon, and with nothing lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use iced_x86::code_asm::*;
use paravane_engine::{Engine as _, Exit, Gpr};

use paravane_abi::units::{GuestVirt, PAGE_SIZE};
use paravane_engine::TlbFlush;

use crate::native::{CODE, DATA, machine, map_page};
use crate::promises::{HLT, assemble, prepare};

#[test]
fn a_kick_ends_loops_of_every_kind() {
    let loops: Vec<Vec<u8>> = vec![
        vec![0xeb, 0xfe],
        // stc; jc: the flag is live at the loop's head.
        vec![0xf9, 0x72, 0xfe],
        // A computed jump to itself.
        assemble(|a| a.jmp(rcx)),
        // A long string operation, again and again.
        assemble(|a| {
            a.mov(rdi, rbx)?;
            a.mov(ecx, 4096)?;
            a.rep().stosb()?;
            a.jmp(CODE)
        }),
    ];
    for code in loops {
        let mut guard = machine();
        let machine = guard.as_mut().unwrap();
        prepare(machine, &code);
        machine.engine.context_mut().set_gpr(Gpr::Rcx, CODE);
        let kick = machine.engine.kick_handle();
        let entered = Arc::new(std::sync::Barrier::new(2));
        let waiting = Arc::clone(&entered);
        let kicker = std::thread::spawn(move || {
            waiting.wait();
            kick.kick();
        });
        entered.wait();
        assert_eq!(machine.engine.run(), Exit::Interrupted, "{code:02x?}");
        kicker.join().unwrap();
        assert!((CODE..CODE + code.len() as u64).contains(&machine.engine.context().rip));
        // The kick is used up: a bounded run works again.
        prepare(machine, &[0xf4]);
        assert_eq!(machine.engine.run(), HLT);
    }
}

#[test]
fn kicks_without_end_are_never_taken_for_a_fault() {
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    // The flag is live at the loop's head, so the poll is a load that faults.
    prepare(machine, &[0xf9, 0x72, 0xfe]);
    let kick = machine.engine.kick_handle();
    let enough = Arc::new(AtomicBool::new(false));
    let until = Arc::clone(&enough);
    let kicker = std::thread::spawn(move || {
        while !until.load(Ordering::Relaxed) {
            kick.kick();
        }
    });
    let exits: Vec<Exit> = (0..5_000).map(|_| machine.engine.run()).collect();
    enough.store(true, Ordering::Relaxed);
    kicker.join().unwrap();
    // One more may be pending: nobody else's run shall see it.
    machine.engine.kick_handle().kick();
    assert_eq!(machine.engine.run(), Exit::Interrupted);
    assert_eq!(exits.iter().find(|exit| **exit != Exit::Interrupted), None);
}

#[test]
fn a_kick_in_a_long_run_finds_it_between_two_elements() {
    /// Pages of the run; all are the same frame.
    const PAGES: u64 = 400;
    let start = CODE + 1024 * PAGE_SIZE;
    for (code, element) in [
        (assemble(|a| a.rep().stosq()), 8),
        (assemble(|a| a.rep().movsb()), 1),
        (assemble(|a| a.rep().movsw()), 2),
    ] {
        let mut guard = machine();
        let machine = guard.as_mut().unwrap();
        // The engine learns of the tables here.
        prepare(machine, &code);
        let (root, mut next) = (machine.engine.context().kernel_root, 240);
        let frame = machine.machine_address(DATA).frame();
        for page in 0..2 * PAGES {
            map_page(&machine.memory, root, start + page * PAGE_SIZE, frame, 7, &mut next);
        }
        let kick = machine.engine.kick_handle();
        let enough = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&enough);
        let kicker = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                kick.kick();
                std::thread::yield_now();
            }
        });
        let target = start + PAGES * PAGE_SIZE;
        let count = PAGES * PAGE_SIZE / element;
        let mut inside = 0;
        // A busy host may not run both threads at once for a while.
        for round in 0..2000 {
            if round >= 20 && inside > 0 {
                break;
            }
            prepare(machine, &[&code[..], &[0xf4]].concat());
            let context = machine.engine.context_mut();
            context.set_gpr(Gpr::Rsi, start);
            context.set_gpr(Gpr::Rdi, target);
            context.set_gpr(Gpr::Rcx, count);
            loop {
                let exit = machine.engine.run();
                let context = machine.engine.context();
                let left = context.gpr(Gpr::Rcx);
                assert_eq!(context.gpr(Gpr::Rdi), target + (count - left) * element);
                let moved = if code.contains(&0xab) { 0 } else { (count - left) * element };
                assert_eq!(context.gpr(Gpr::Rsi), start + moved);
                if exit == HLT {
                    assert_eq!((left, context.rip), (0, CODE + code.len() as u64));
                    break;
                }
                assert_eq!(exit, Exit::Interrupted);
                inside += u64::from(left > 0 && left < count);
                assert!(left == 0 || context.rip == CODE);
            }
        }
        enough.store(true, Ordering::Relaxed);
        kicker.join().unwrap();
        machine.engine.kick_handle().kick();
        assert_eq!(machine.engine.run(), Exit::Interrupted);
        assert!(inside > 0, "no kick of many fell into a run of {PAGES} pages");
        for page in 0..2 * PAGES {
            map_page(&machine.memory, root, start + page * PAGE_SIZE, frame, 0, &mut next);
        }
        machine.engine.flush_tlb(TlbFlush::Page(GuestVirt(start)));
        machine.engine.flush_tlb(TlbFlush::All);
    }
}

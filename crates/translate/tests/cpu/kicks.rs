//! Kicks: a vCPU leaves whatever it does, soon, and with nothing lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use iced_x86::code_asm::*;
use paravane_engine::{Engine as _, Exit, Gpr};

use crate::native::{CODE, machine};
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

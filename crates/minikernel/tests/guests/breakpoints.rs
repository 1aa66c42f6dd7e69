//! Breakpoints that a kernel sets in its debug registers.

use iced_x86::code_asm::*;
use paravane_abi::hypercall::Hypercall;
use paravane_minikernel::{Assembled, Entry, Program, both_ways};

/// DR7 that enables breakpoint `number` by its L bit, with R/W and LEN fields.
fn control(number: u64, access: u64, length: u64) -> u64 {
    1 << (2 * number) | (access | length << 2) << (16 + 4 * number)
}

const EXECUTE: u64 = 0;
const WRITE: u64 = 1;
const ACCESS: u64 = 3;

/// Sets a breakpoint.
fn set(p: &mut Program, number: u64, address: u64, control: u64) -> Assembled {
    p.call_gives("an address is set", Hypercall::SetDebugreg, &[number, address], 0)?;
    p.call_gives("it is enabled", Hypercall::SetDebugreg, &[7, control], 0)
}

fn none(p: &mut Program) -> Assembled {
    p.call_gives("none is enabled", Hypercall::SetDebugreg, &[7, 0], 0)
}

/// Checks which breakpoints DR6 names, and clears it.
fn hit(p: &mut Program, what: &str, bits: u64) -> Assembled {
    p.call(Hypercall::GetDebugreg, &[6])?;
    p.a.and(eax, 0x400f)?;
    p.check(what, bits)?;
    p.call_gives("DR6 is cleared", Hypercall::SetDebugreg, &[6, 0], 0)
}

#[test]
fn an_instruction_breakpoint_faults_before_the_instruction_and_lets_it_run_on_return() {
    for outcome in both_ways(|p| {
        let mut here = p.a.create_label();
        p.a.xor(ebx, ebx)?;
        p.a.lea(rsi, qword_ptr(here))?;
        p.a.mov(rdi, 1_u64)?;
        p.invoke(Hypercall::SetDebugreg)?;
        p.check("an address is set", 0)?;
        p.call_gives("it is enabled", Hypercall::SetDebugreg, &[7, control(1, EXECUTE, 0)], 0)?;
        // The handler returns to where it was: RF in the frame lets the instruction run.
        p.pass_over(0, |p| {
            p.a.set_label(&mut here)?;
            p.a.inc(ebx)
        })?;
        hit(p, "DR6 names the breakpoint", 2)?;
        none(p)?;
        p.a.mov(rax, rbx)?;
        p.check("the instruction ran once", 1)
    }) {
        let trap = outcome.trap();
        assert_eq!(trap.entry, Entry::Vector(1), "{outcome}");
        assert_eq!(trap.rflags() & 0x1_0000, 0x1_0000, "RF: {outcome}");
        assert_eq!(trap.entry_rflags & 0x1_0000, 0, "{outcome}");
    }
}

#[test]
fn a_breakpoint_in_a_loop_is_hit_in_each_round() {
    for outcome in both_ways(|p| {
        let mut here = p.a.create_label();
        p.a.lea(rsi, qword_ptr(here))?;
        p.a.xor(edi, edi)?;
        p.invoke(Hypercall::SetDebugreg)?;
        p.call_gives("it is enabled", Hypercall::SetDebugreg, &[7, control(0, EXECUTE, 0)], 0)?;
        p.a.mov(ebx, 10)?;
        p.pass_over(0, |p| {
            p.a.set_label(&mut here)?;
            p.a.dec(ebx)?;
            p.a.jne(here)
        })?;
        none(p)
    }) {
        assert_eq!(outcome.traps().len(), 10, "{outcome}");
    }
}

#[test]
fn a_data_breakpoint_traps_behind_the_instruction_that_touches_it() {
    type Touch = fn(&mut Program, u64) -> Assembled;
    let touches: [(&str, u64, u64, Touch, bool); 12] = [
        ("a write", WRITE, 3, |p, at| p.a.mov(dword_ptr(at), eax), true),
        ("a read, of a breakpoint for writes", WRITE, 3, |p, at| p.a.mov(eax, dword_ptr(at)), false),
        ("a read", ACCESS, 3, |p, at| p.a.mov(eax, dword_ptr(at)), true),
        ("a read-modify-write", WRITE, 3, |p, at| p.a.inc(dword_ptr(at)), true),
        ("a byte in the middle", WRITE, 3, |p, at| p.a.mov(byte_ptr(at + 2), al), true),
        ("a word that ends in it", WRITE, 3, |p, at| p.a.mov(qword_ptr(at - 4), rax), true),
        ("a word before it", WRITE, 3, |p, at| p.a.mov(dword_ptr(at - 4), eax), false),
        ("a word behind it", WRITE, 3, |p, at| p.a.mov(dword_ptr(at + 4), eax), false),
        ("the last of eight bytes", WRITE, 2, |p, at| p.a.mov(byte_ptr(at + 7), al), true),
        (
            "a push",
            WRITE,
            2,
            |p, at| {
                p.a.mov(rbx, rsp)?;
                p.a.mov(rsp, at + 8)?;
                p.a.push(rax)
            },
            true,
        ),
        ("the address only", ACCESS, 3, |p, at| p.a.lea(rax, dword_ptr(at)), false),
        ("a vector's store", WRITE, 3, |p, at| p.a.movups(xmmword_ptr(at - 12), xmm0), true),
    ];
    for (what, access, length, touch, hits) in touches {
        for outcome in both_ways(|p| {
            let at = p.pages(1) + 64;
            set(p, 2, at, control(2, access, length))?;
            p.catch(|p| {
                touch(p, at)?;
                p.a.nop()
            })?;
            none(p)?;
            hit(p, what, if hits { 4 } else { 0 })
        }) {
            assert_eq!(outcome.traps().len(), usize::from(hits), "{what}: {outcome}");
            if hits {
                assert_eq!(outcome.trap().entry, Entry::Vector(1), "{what}: {outcome}");
            }
        }
    }
}

#[test]
fn a_string_instruction_stops_in_the_round_that_hits() {
    for outcome in both_ways(|p| {
        let at = p.pages(1);
        set(p, 3, at + 20, control(3, WRITE, 0))?;
        p.a.mov(rdi, at)?;
        p.a.mov(ecx, 100)?;
        p.catch(|p| p.a.rep().stosb())?;
        p.a.mov(rax, at + 21)?;
        p.a.sub(rax, rdi)?;
        p.check("RDI is behind it", 0)?;
        none(p)
    }) {
        assert_eq!(outcome.trap().entry, Entry::Vector(1), "{outcome}");
        assert_eq!(outcome.trap().rcx(), 100 - 21, "rounds that are left: {outcome}");
    }
}

#[test]
fn a_disabled_breakpoint_is_none() {
    for outcome in both_ways(|p| {
        let at = p.pages(1);
        p.call_gives("an address is set", Hypercall::SetDebugreg, &[0, at], 0)?;
        p.store(at, 1)?;
        hit(p, "nothing is hit", 0)
    }) {
        assert_eq!(outcome.traps(), [], "{outcome}");
    }
}

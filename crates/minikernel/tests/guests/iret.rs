//! The `iret` hypercall: every way back.

use iced_x86::code_asm::*;
use paravane_abi::hypercall::Hypercall;
use paravane_minikernel::{Assembled, Entry, Program, both_ways};

/// Goes by `iret` to the next instruction with these words of the frame: flags, CS, RFLAGS, SS.
fn to_next(p: &mut Program, [flags, code, rflags, stack]: [u64; 4]) -> Assembled {
    let mut next = p.a.create_label();
    p.a.mov(r15, rsp)?;
    p.a.mov(r14, rax)?;
    for word in [stack, u64::MAX, rflags, code] {
        if word == u64::MAX {
            p.a.push(r15)?;
        } else {
            p.a.mov(r13, word)?;
            p.a.push(r13)?;
        }
    }
    p.a.lea(r13, qword_ptr(next))?;
    p.a.push(r13)?;
    p.a.mov(r13, flags)?;
    p.a.push(r13)?;
    p.iret_here()?;
    p.a.set_label(&mut next)?;
    p.a.nop()
}

#[test]
fn a_return_to_kernel_mode_restores_every_register() {
    both_ways(|p| {
        p.a.mov(rax, 0x1111_u64)?;
        p.a.mov(rcx, 0x2222_u64)?;
        p.a.mov(r11, 0x4444_u64)?;
        p.a.mov(rdi, 0x8888_u64)?;
        to_next(p, [0, 0xe030, 0x2, 0xe02b])?;
        p.a.add(rax, rcx)?;
        p.a.add(rax, r11)?;
        p.a.add(rax, rdi)?;
        p.check("RAX, RCX, R11, RDI", 0x1_0000 - 1)?;
        p.a.mov(rax, rsp)?;
        p.a.sub(rax, r15)?;
        p.check("RSP", 0)?;
        p.a.mov(eax, cs)?;
        p.check("CS with RPL 3", 0xe033)
    });
}

#[test]
fn a_return_as_from_a_system_call_leaves_rip_and_rflags_in_rcx_and_r11() {
    both_ways(|p| {
        p.a.mov(rcx, 0x2222_u64)?;
        p.a.mov(r11, 0x4444_u64)?;
        let mut at = p.a.create_label();
        // CS and SS of the frame are not looked at: garbage will do.
        to_next(p, [0x100, 0x1234 & !3, 0x2, 0x5678])?;
        p.a.set_label(&mut at)?;
        p.a.lea(rax, qword_ptr(at))?;
        // RCX is at the NOP before the label.
        p.a.sub(rax, rcx)?;
        p.check("RCX is RIP", 1)?;
        p.a.mov(rax, r11)?;
        p.a.and(eax, 0x202)?;
        p.check("R11 is RFLAGS, with the CPU's own IF", 0x202)?;
        p.a.mov(eax, ss)?;
        p.check("SS is the flat one", 0xe02b)
    });
}

#[test]
fn the_interrupt_flag_of_the_frame_is_the_event_mask() {
    both_ways(|p| {
        let mask = p.layout.shared_info() + 1;
        for (rflags, masked) in [(0x2, 1), (0x202, 0), (0x2, 1)] {
            to_next(p, [0, 0xe030, rflags, 0xe02b])?;
            p.a.mov(rax, mask)?;
            p.a.movzx(eax, byte_ptr(rax))?;
            p.check(&format!("the mask after RFLAGS {rflags:#x}"), masked)?;
            p.a.pushfq()?;
            p.a.pop(rax)?;
            p.a.and(eax, 0x200)?;
            p.check("the CPU's own flag is always set", 0x200)?;
        }
        // A plain IRETQ does nothing of that.
        let mut next = p.a.create_label();
        p.a.mov(rbx, rsp)?;
        p.a.mov(rax, 0xe02b_u64)?;
        p.a.push(rax)?;
        p.a.push(rbx)?;
        p.a.push(0x202)?;
        p.a.mov(rax, 0xe033_u64)?;
        p.a.push(rax)?;
        p.a.lea(rax, qword_ptr(next))?;
        p.a.push(rax)?;
        p.a.iretq()?;
        p.a.set_label(&mut next)?;
        p.a.mov(rax, mask)?;
        p.a.movzx(eax, byte_ptr(rax))?;
        p.check("the mask after IRETQ", 1)
    });
}

#[test]
fn flags_come_from_the_frame_but_for_those_of_the_hypervisor() {
    both_ways(|p| {
        to_next(p, [0, 0xe030, 0x2 | 0x8d5 | 0x400 | 0x3000 | 0x2_0000, 0xe02b])?;
        p.a.pushfq()?;
        p.a.cld()?;
        p.a.pop(rax)?;
        p.check("status flags and DF, no IOPL, no VM", 0x2 | 0x8d5 | 0x400 | 0x200)
    });
}

#[test]
fn a_trap_flag_in_the_frame_steps_the_first_instruction() {
    for outcome in both_ways(|p| p.catch(|p| to_next(p, [0, 0xe030, 0x102, 0xe02b]))) {
        let trap = outcome.trap();
        assert_eq!(trap.entry, Entry::Vector(1), "{outcome}");
    }
}

#[test]
fn user_mode_and_back_a_thousand_times() {
    for outcome in both_ways(|p| {
        p.set_user_root(p.layout.mfn(p.layout.table(4)))?;
        p.a.mov(rbx, 1000_u64)?;
        p.a.xor(ebp, ebp)?;
        let mut again = p.a.create_label();
        p.a.set_label(&mut again)?;
        p.in_user_mode(|p| {
            p.a.inc(ebp)?;
            p.a.syscall()
        })?;
        p.a.dec(ebx)?;
        p.a.jne(again)?;
        p.a.mov(rax, rbp)?;
        p.check("rounds", 1000)?;
        p.call_gives("the kernel is in kernel mode", Hypercall::XenVersion, &[7, 0], 4096)
    }) {
        assert!(outcome.traps().iter().all(|trap| trap.entry == Entry::Syscall), "{outcome}");
    }
}

//! Guests that do what no kernel should: each ends in an error, a fault or a crash report that says why.

use std::time::Duration;

use iced_x86::code_asm::*;
use paravane_abi::hypercall::Hypercall;
use paravane_minikernel::{Assembled, End, Entry, Limits, Outcome, Program, Setup};

type Emit = fn(&mut Program) -> Assembled;

/// Where no page is.
const UNMAPPED: u64 = 0x1234_5000;
const NON_CANONICAL: u64 = 0x8000_0000_0000_0000;
/// In Xen's part of the address space, behind the M2P.
const XENS: u64 = 0xffff_8280_0000_0000;

fn without_runtime(body: Emit) -> Outcome {
    Program::assemble(&Setup { runtime: false, ..Setup::default() }, body).run()
}

/// Expects a crash report whose cause has these words.
fn crashes_with(what: &str, outcome: &Outcome, words: &str) {
    let Some(cause) = outcome.crash() else { panic!("{what} does not crash: {outcome}") };
    assert!(cause.to_string().contains(words), "{what}: {cause}");
    assert_eq!(outcome.recount, Ok(()), "{what}: {outcome}");
}

#[test]
fn a_trap_without_a_handler_is_a_crash_that_names_it() {
    let cases: [(&str, Emit, &str); 9] = [
        ("UD2", |p| p.a.ud2(), "exception 6"),
        ("INT3", |p| p.a.int3(), "exception 3"),
        ("a jump to nothing", |p| p.a.jmp(0x1234_5000), "exception 14 with error code 0x10"),
        (
            "a jump to no address",
            |p| {
                p.a.mov(rax, NON_CANONICAL)?;
                p.a.jmp(rax)
            },
            "exception 13",
        ),
        (
            "a return to no address",
            |p| {
                p.a.mov(rax, NON_CANONICAL)?;
                p.a.push(rax)?;
                p.a.ret()
            },
            "exception 13",
        ),
        ("INT 0x42", |p| p.a.int(0x42), "exception 13 with error code 0x212"),
        (
            "a push to nothing",
            |p| {
                p.a.mov(rsp, UNMAPPED)?;
                p.a.push(rax)
            },
            "exception 14",
        ),
        (
            "a jump into Xen's part",
            |p| {
                p.a.mov(rax, XENS)?;
                p.a.jmp(rax)
            },
            "exception 14",
        ),
        (
            "a jump into the M2P, which is no code",
            |p| {
                p.a.mov(rax, 0xffff_8000_0000_0000 + p.layout.machine.memory.start.0 * 8)?;
                p.a.jmp(rax)
            },
            "exception 14 with error code 0x11",
        ),
    ];
    for (what, body, words) in cases {
        crashes_with(what, &without_runtime(body), words);
    }
}

#[test]
fn a_stack_that_takes_no_frame_is_a_crash_that_says_where() {
    type Place = fn(&Program) -> u64;
    let cases: [(&str, Place, &str); 5] = [
        ("nothing", |_| UNMAPPED, "not mapped writable"),
        ("no address", |_| NON_CANONICAL, "stack"),
        ("Xen's part", |_| XENS, "reserved for Xen"),
        ("a page table", |p| p.layout.table(1) + 64, "not mapped writable"),
        ("address zero", |_| 0, "stack"),
    ];
    for (what, stack, words) in cases {
        let outcome = Program::assemble(&Setup::default(), |p| {
            p.a.mov(rsp, stack(p))?;
            p.a.ud2()
        })
        .run();
        crashes_with(what, &outcome, words);
        // The same as the stack for entries from user mode: it is looked at only when it is needed.
        let outcome = Program::assemble(&Setup::default(), |p| {
            p.call_gives("any stack is taken", Hypercall::StackSwitch, &[0xe02b, stack(p)], 0)?;
            p.set_user_root(p.layout.mfn(p.layout.table(4)))?;
            p.in_user_mode(|p| p.a.int(0x80))
        })
        .run();
        crashes_with(what, &outcome, words);
    }
}

#[test]
fn handlers_that_are_nowhere_fault_until_the_stack_is_full() {
    let outcome = Program::assemble(&Setup::default(), |p| {
        let table = p.words(&[0xe033_0000 | 14, UNMAPPED, 0xe033_0000 | 6, UNMAPPED, 0, 0]);
        p.call_gives("addresses are not looked at", Hypercall::SetTrapTable, &[table], 0)?;
        p.a.ud2()
    })
    .run();
    crashes_with("endless faults", &outcome, "not mapped writable");
}

#[test]
fn a_handler_that_faults_itself_runs_out_of_stack() {
    let outcome = Program::assemble(&Setup::default(), |p| {
        let table = p.words(&[0xe033_0000 | 6, p.layout.code().start, 0, 0]);
        let mut again = p.a.create_label();
        p.a.jmp(again)?;
        p.a.set_label(&mut again)?;
        p.call(Hypercall::SetTrapTable, &[table])?;
        p.a.ud2()
    })
    .run();
    crashes_with("endless faults", &outcome, "not mapped writable");
}

#[test]
fn a_trap_table_takes_no_address_that_is_none() {
    let outcome = Program::assemble(&Setup::default(), |p| {
        let table = p.words(&[0xe033_0000 | 14, NON_CANONICAL, 0, 0]);
        p.call_gives("not canonical", Hypercall::SetTrapTable, &[table], -22)?;
        p.call_gives("unreadable", Hypercall::SetTrapTable, &[UNMAPPED], -14)?;
        let callback = p.words(&[0, NON_CANONICAL]);
        p.call_gives("callbacks", Hypercall::CallbackOp, &[0, callback], -22)?;
        // The older hypercall does not tell.
        let args = [NON_CANONICAL, NON_CANONICAL, NON_CANONICAL];
        p.call_gives("all callbacks", Hypercall::SetCallbacks, &args, 0)?;
        // The entries from before are still there.
        p.set_user_root(p.layout.mfn(p.layout.table(4)))?;
        p.in_user_mode(|p| p.a.syscall())
    })
    .run();
    assert!(outcome.passed(), "{outcome}");
    assert_eq!(outcome.trap().entry, Entry::Syscall);
}

#[test]
fn an_iret_frame_of_garbage_ends_in_a_fault_or_a_crash() {
    const FLAGS: u64 = 0x202;
    type Frame = fn(&Program) -> [u64; 6];
    let cases: [(&str, Frame, u8); 8] = [
        ("RIP is unmapped", |p| [0, UNMAPPED, 0xe030, FLAGS, p.layout.user_stack_top(), 0xe02b], 14),
        ("RIP is no address", |p| [0, NON_CANONICAL, 0xe030, FLAGS, p.layout.user_stack_top(), 0xe02b], 13),
        ("CS is null", |p| [0, p.layout.code().start, 0, FLAGS, p.layout.user_stack_top(), 0xe02b], 13),
        ("CS is data", |p| [0, p.layout.code().start, 0xe028, FLAGS, p.layout.user_stack_top(), 0xe02b], 13),
        ("CS is Xen's", |p| [0, p.layout.code().start, 0xe008, FLAGS, p.layout.user_stack_top(), 0xe02b], 13),
        (
            "CS is beyond the table",
            |p| [0, p.layout.code().start, 0xfff8, FLAGS, p.layout.user_stack_top(), 0xe02b],
            13,
        ),
        ("SS is code", |p| [0, p.layout.code().start, 0xe030, FLAGS, p.layout.user_stack_top(), 0xe033], 13),
        (
            "SS is in the missing LDT",
            |p| [0, p.layout.code().start, 0xe030, FLAGS, p.layout.user_stack_top(), 0x0f],
            13,
        ),
    ];
    for (what, frame, vector) in cases {
        let outcome = Program::assemble(&Setup::default(), |p| p.catch(|p| p.iret(frame(p)))).run();
        assert!(outcome.passed(), "{what}: {outcome}");
        assert_eq!(outcome.trap().entry, Entry::Vector(vector), "{what}: {outcome}");
    }
    let outcome = Program::assemble(&Setup::default(), |p| {
        p.a.mov(rsp, UNMAPPED)?;
        p.a.mov(eax, 23)?;
        p.a.syscall()
    })
    .run();
    crashes_with("no frame", &outcome, "iret frame");
}

#[test]
fn a_page_table_is_never_writable_by_the_guest() {
    for outcome in paravane_minikernel::both_ways(|p| {
        for level in 1..=4 {
            let table = p.layout.table(level);
            let entry = p.layout.maddr(table).0 | 0x67;
            let what = format!("L{level} by update_va_mapping");
            p.call_gives(&what, Hypercall::UpdateVaMapping, &[table, entry, 2], -16)?;
            let at = p.layout.maddr(p.layout.l1_entry(table)).0;
            let request = p.words(&[at, entry]);
            let what = format!("L{level} by mmu_update");
            p.call_gives(&what, Hypercall::MmuUpdate, &[request, 1, 0, 0x7ff0], -16)?;
            // Nor can a frame that is writable become one.
            let pin = p.words(&[level - 1, p.layout.mfn(p.layout.free_page(0)).0, 0]);
            let what = format!("pinning a writable page at level {level}");
            p.call_gives(&what, Hypercall::MmuextOp, &[pin, 1, 0, 0x7ff0], -22)?;
        }
        // Hypercalls that write to frames by number.
        let table = p.layout.mfn(p.layout.table(1)).0;
        let other = p.layout.mfn(p.layout.free_page(0)).0;
        let clear = p.words(&[16, table, 0]);
        p.call_gives("clearing one", Hypercall::MmuextOp, &[clear, 1, 0, 0x7ff0], -22)?;
        let copy = p.words(&[17, table, other]);
        p.call_gives("copying to one", Hypercall::MmuextOp, &[copy, 1, 0, 0x7ff0], -22)?;
        let info = p.words(&[table, 0]);
        p.call_gives("vcpu_info in one", Hypercall::VcpuOp, &[10, 0, info], -13)?;
        // And results that are written to one fault.
        let into = p.layout.table(1);
        p.call_gives("capabilities into one", Hypercall::XenVersion, &[3, into], -14)
    }) {
        assert_eq!(outcome.traps(), [], "{outcome}");
    }
}

#[test]
fn the_hypercall_page_is_the_guests_to_ruin() {
    let outcome = Program::assemble(&Setup::default(), |p| {
        let page = p.layout.hypercall_page();
        // Overwritten: a call returns at once with what was in RAX.
        p.a.mov(rax, page)?;
        p.a.mov(byte_ptr(rax + 17 * 32), 0xc3)?;
        p.a.mov(eax, 42)?;
        p.a.call(page + 17 * 32)?;
        p.check("the stub is overwritten", 42)?;
        // Replaced by another frame, which has nothing in it but a return.
        let other = p.pages(1);
        p.a.mov(rax, other)?;
        p.a.mov(byte_ptr(rax + 17 * 32), 0xc3)?;
        let entry = p.layout.maddr(other).0 | 0x67;
        p.call_gives("remapped", Hypercall::UpdateVaMapping, &[page, entry, 2], 0)?;
        p.a.mov(eax, 43)?;
        p.a.call(page + 17 * 32)?;
        p.check("another frame is called", 43)?;
        // Gone.
        p.call_gives("unmapped", Hypercall::UpdateVaMapping, &[page, 0, 2], 0)?;
        p.catch(|p| p.a.call(page + 17 * 32))?;
        p.call_gives("SYSCALL works as ever", Hypercall::XenVersion, &[7, 0], 4096)
    })
    .run();
    assert!(outcome.passed(), "{outcome}");
    assert_eq!(outcome.trap().entry, Entry::Vector(14), "{outcome}");
}

#[test]
fn an_infinite_loop_is_stopped_from_outside() {
    type Loop = fn(&mut Program) -> Assembled;
    let loops: [(&str, Loop); 5] = [
        ("a jump to itself", |p| p.a.db(&[0xeb, 0xfe])),
        ("an indirect jump to itself", |p| {
            let mut here = p.a.create_label();
            p.a.lea(rbx, qword_ptr(here))?;
            p.a.set_label(&mut here)?;
            p.a.jmp(rbx)
        }),
        ("a hypercall after the other", |p| {
            let mut here = p.a.create_label();
            p.a.set_label(&mut here)?;
            p.call(Hypercall::XenVersion, &[0, 0])?;
            p.a.jmp(here)
        }),
        ("a fault after the other", |p| p.pass_over(0, |p| p.a.ud2())),
        ("a string instruction of 2^64 rounds", |p| {
            p.a.mov(rcx, u64::MAX)?;
            p.a.mov(rsi, p.layout.free_page(0))?;
            p.a.xor(edx, edx)?;
            // LODSB over 4 GiB wraps around nothing: it faults at the end, so go back and forth.
            let mut here = p.a.create_label();
            p.a.set_label(&mut here)?;
            p.a.mov(ecx, 4096)?;
            p.a.mov(rsi, p.layout.free_page(0))?;
            p.a.rep().lodsb()?;
            p.a.jmp(here)
        }),
    ];
    let limits = Limits { time: Duration::from_millis(50), ..Limits::default() };
    for (what, body) in loops {
        let outcome = Program::assemble(&Setup::default(), body).run_within(&limits);
        assert!(matches!(outcome.end, End::TimedOut), "{what}: {outcome}");
        assert_eq!(outcome.recount, Ok(()), "{what}");
    }
}

#[test]
fn of_all_selectors_exactly_xens_flat_ones_and_null_can_be_loaded_as_data() {
    type Load = fn(&mut Program) -> Assembled;
    let loads: [(&str, Load, u64); 5] = [
        ("DS", |p| p.a.mov(ds, eax), 2),
        ("ES", |p| p.a.mov(es, eax), 2),
        ("FS", |p| p.a.mov(fs, eax), 2),
        ("GS", |p| p.a.mov(gs, eax), 2),
        ("SS", |p| p.a.mov(ss, eax), 2),
    ];
    for (what, load, bytes) in loads {
        let outcome = Program::assemble(&Setup::default(), |p| {
            p.a.xor(ebx, ebx)?;
            let mut again = p.a.create_label();
            p.pass_over(i32::try_from(bytes).unwrap_or(0), |p| {
                p.a.set_label(&mut again)?;
                p.a.mov(eax, ebx)?;
                load(p)?;
                p.a.inc(ebx)?;
                p.a.cmp(ebx, 0x1_0000)?;
                p.a.jne(again)
            })?;
            // The runtime's count of traps.
            p.load(p.layout.page(3) + 8)?;
            // Null four times; data and two kinds of code with any RPL. SS: data only, with RPL 3.
            let loaded = if what == "SS" { 1 } else { 16 };
            p.check("so many were refused", 0x1_0000 - loaded)
        })
        .run();
        assert!(outcome.passed(), "{what}: {outcome}");
    }
}

#[test]
fn a_multicall_of_any_length_ends() {
    for outcome in paravane_minikernel::both_ways(|p| {
        let end = p.layout.page(p.layout.plan.mapped_end.0);
        let list = end - 64;
        p.store(list, Hypercall::XenVersion.number().into())?;
        p.store(list + 16, 7)?;
        // It runs off the end of what is mapped.
        p.call_gives("a list that does not end", Hypercall::Multicall, &[list, u64::from(u32::MAX)], -14)?;
        p.call_gives("a list nowhere", Hypercall::Multicall, &[UNMAPPED, 1], -14)?;
        p.call_gives("no list", Hypercall::Multicall, &[UNMAPPED, 0], 0)?;
        p.call_gives("a list in Xen's part", Hypercall::Multicall, &[XENS, 1], -14)?;
        // One that calls itself.
        let nested = p.words(&[13, 0, 0, 1, 0, 0, 0, 0]);
        p.store(nested + 16, nested)?;
        p.call_gives("the outer one", Hypercall::Multicall, &[nested, 1], 0)?;
        p.check_word("the inner one", nested + 8, 22_u64.wrapping_neg())?;
        p.check_word("what was done before the end", list + 8, 4096)
    }) {
        assert_eq!(outcome.traps(), [], "{outcome}");
    }
}

#[test]
fn no_hypercall_minds_a_bad_pointer() {
    let pointers =
        [0, 1, UNMAPPED, UNMAPPED + 4095, NON_CANONICAL, XENS, 0xffff_8000_0000_0000, u64::MAX, u64::MAX - 7];
    let outcome = Program::assemble(&Setup::default(), |p| {
        let pointers = p.words(&pointers);
        // RBX: the hypercall. RBP: its first argument as a command. R12: the index of a pointer. R13: that is argument
        // 1, 2 or 3.
        let (mut call, mut command, mut pointer, mut skip) =
            (p.a.create_label(), p.a.create_label(), p.a.create_label(), p.a.create_label());
        p.a.xor(ebx, ebx)?;
        // vcpu_op sends an NMI among others: its handler comes back.
        p.pass_over(0, |p| {
            p.a.set_label(&mut call)?;
            p.a.xor(ebp, ebp)?;
            p.a.set_label(&mut command)?;
            p.a.xor(r12d, r12d)?;
            p.a.set_label(&mut pointer)?;
            // Without those that end the guest by themselves: iret, blocking and shutting down, the vCPU going down, and
            // those that take away what the runtime has registered.
            for (number, only_command) in
                [(23, None), (6, Some(1)), (6, Some(2)), (29, Some(1)), (24, Some(2)), (4, None), (0, None)]
            {
                let mut other = p.a.create_label();
                p.a.cmp(ebx, number)?;
                p.a.jne(other)?;
                match only_command {
                    None => p.a.jmp(skip)?,
                    Some(command) => {
                        p.a.cmp(ebp, command)?;
                        p.a.je(skip)?;
                    }
                }
                p.a.set_label(&mut other)?;
                p.a.nop()?;
            }
            p.a.mov(rdi, rbp)?;
            p.a.mov(rsi, qword_ptr(r12 * 8 + pointers))?;
            p.a.mov(edx, 1)?;
            p.a.mov(r10, 0x7ff0_u64)?;
            p.a.xor(r8d, r8d)?;
            p.a.mov(eax, ebx)?;
            p.a.syscall()?;
            // vcpu_op, callback_op: a vCPU or count before the pointer. mmu_update: the pointer first.
            p.a.mov(rdi, rbp)?;
            p.a.xor(esi, esi)?;
            p.a.mov(rdx, qword_ptr(r12 * 8 + pointers))?;
            p.a.mov(eax, ebx)?;
            p.a.syscall()?;
            // With a pointer of 1 as the command, sched_op blocks.
            p.a.cmp(ebx, 29)?;
            p.a.je(skip)?;
            p.a.cmp(ebx, 6)?;
            p.a.je(skip)?;
            p.a.mov(rdi, qword_ptr(r12 * 8 + pointers))?;
            p.a.mov(rsi, rbp)?;
            p.a.mov(rdx, rdi)?;
            p.a.mov(eax, ebx)?;
            p.a.syscall()?;
            p.a.set_label(&mut skip)?;
            p.a.inc(r12d)?;
            p.a.cmp(r12d, 9)?;
            p.a.jne(pointer)?;
            p.a.inc(ebp)?;
            p.a.cmp(ebp, 40)?;
            p.a.jne(command)?;
            p.a.inc(ebx)?;
            p.a.cmp(ebx, 64)?;
            p.a.jne(call)
        })?;
        p.print("all made\n")
    })
    .run();
    assert!(outcome.recount.is_ok(), "{outcome}");
    assert!(outcome.console.ends_with("all made\n"), "{outcome}");
    assert!(outcome.traps().iter().all(|trap| trap.entry == Entry::Vector(2)), "{outcome}");
}

//! Code that changes under itself, in every way in which memory can be written: the new code is what runs.

use iced_x86::{IcedError, code_asm::*};
use paravane_abi::hypercall::Hypercall;
use paravane_minikernel::{Assembled, Program, Setup};

type Emit = fn(&mut Program) -> Assembled;

/// `mov eax, imm32; ret` with two bytes to fill eight.
fn returns(value: u32) -> u64 {
    let [a, b, c, d] = value.to_le_bytes();
    u64::from_le_bytes([0xb8, a, b, c, d, 0xc3, 0x90, 0x90])
}

const OLD: u32 = 1;
const NEW: u32 = 2;

/// Ways of writing RAX to the eight bytes at RDI. RSI points to a copy of RAX in memory.
const WAYS: [(&str, Emit); 25] = [
    ("MOV", |p| p.a.mov(qword_ptr(rdi), rax)),
    ("two MOVs of 32 bits", |p| {
        p.a.mov(dword_ptr(rdi), eax)?;
        p.a.shr(rax, 32)?;
        p.a.mov(dword_ptr(rdi + 4), eax)
    }),
    ("one byte by MOV", |p| p.a.mov(byte_ptr(rdi + 1), 2)),
    ("one byte by INC", |p| p.a.inc(byte_ptr(rdi + 1))),
    ("XCHG", |p| p.a.xchg(qword_ptr(rdi), rax)),
    ("LOCK CMPXCHG", |p| {
        p.a.mov(rdx, rax)?;
        p.a.mov(rax, qword_ptr(rdi))?;
        p.a.lock().cmpxchg(qword_ptr(rdi), rdx)
    }),
    ("LOCK CMPXCHG16B", |p| {
        p.a.mov(rbx, rax)?;
        p.a.mov(rax, qword_ptr(rdi))?;
        p.a.mov(rdx, qword_ptr(rdi + 8))?;
        p.a.mov(rcx, rdx)?;
        p.a.lock().cmpxchg16b(xmmword_ptr(rdi))
    }),
    ("LOCK XADD", |p| {
        p.a.mov(eax, 1)?;
        p.a.lock().xadd(byte_ptr(rdi + 1), al)
    }),
    ("BTS and BTR", |p| {
        p.a.bts(dword_ptr(rdi), 9)?;
        p.a.btr(dword_ptr(rdi), 8)
    }),
    ("PUSH", |p| {
        p.a.mov(rbx, rsp)?;
        p.a.lea(rsp, qword_ptr(rdi + 8))?;
        p.a.push(rax)?;
        p.a.mov(rsp, rbx)
    }),
    ("POP to memory", |p| {
        p.a.push(rax)?;
        p.a.pop(qword_ptr(rdi))
    }),
    ("STOSQ", |p| p.a.stosq()),
    ("REP MOVSB", |p| {
        p.a.mov(ecx, 8)?;
        p.a.rep().movsb()
    }),
    ("REP STOSD", |p| {
        p.a.mov(rdx, rax)?;
        p.a.mov(ecx, 1)?;
        p.a.rep().stosd()?;
        p.a.mov(rax, rdx)?;
        p.a.shr(rax, 32)?;
        p.a.mov(ecx, 1)?;
        p.a.rep().stosd()
    }),
    ("REP MOVSQ of a whole page around it", |p| {
        // The page of the function, copied over itself with the change made in the copy.
        p.a.mov(rbx, rdi)?;
        p.a.and(rbx, !4095)?;
        p.a.mov(rdx, rdi)?;
        p.a.sub(rdx, rbx)?;
        p.a.mov(r8, rax)?;
        p.a.mov(r9, p.layout.free_page(3))?;
        p.a.mov(rsi, rbx)?;
        p.a.mov(rdi, r9)?;
        p.a.mov(ecx, 512)?;
        p.a.rep().movsq()?;
        p.a.mov(qword_ptr(r9 + rdx), r8)?;
        p.a.mov(rsi, r9)?;
        p.a.mov(rdi, rbx)?;
        p.a.mov(ecx, 512)?;
        p.a.rep().movsq()
    }),
    ("an SSE store", |p| {
        p.a.movq(xmm0, rax)?;
        p.a.movq(qword_ptr(rdi), xmm0)
    }),
    ("a non-temporal store", |p| p.a.movnti(qword_ptr(rdi), rax)),
    ("an x87 store", |p| {
        p.a.fninit()?;
        p.a.fild(qword_ptr(rsi))?;
        p.a.fistp(qword_ptr(rdi))
    }),
    ("SETcc", |p| {
        p.a.xor(edx, edx)?;
        p.a.sete(byte_ptr(rdi + 1))?;
        p.a.inc(byte_ptr(rdi + 1))
    }),
    ("mmu_update, which stores raw words to plain pages", |p| {
        let request = p.words(&[p.layout.maddr(function(p)).0, returns(NEW)]);
        p.call_gives("stored", Hypercall::MmuUpdate, &[request, 1, 0, 0x7ff0], 0)
    }),
    ("COPY_PAGE", |p| {
        let source = prepared_page(p)?;
        let (to, from) = (p.layout.mfn(function(p)).0, p.layout.mfn(source).0);
        let op = p.words(&[17, to, from]);
        p.call_gives("copied", Hypercall::MmuextOp, &[op, 1, 0, 0x7ff0], 0)
    }),
    ("another frame mapped in its place", |p| {
        let source = prepared_page(p)?;
        let (at, entry) = (function(p), p.layout.maddr(source).0 | 0x67);
        p.call_gives("mapped", Hypercall::UpdateVaMapping, &[at & !4095, entry, 2], 0)
    }),
    ("another mapping of its frame", |p| {
        let (at, alias) = (function(p), p.layout.free_page(5));
        let entry = p.layout.maddr(at & !4095).0 | 0x67;
        p.a.push(rax)?;
        p.call_gives("mapped", Hypercall::UpdateVaMapping, &[alias, entry, 2], 0)?;
        p.a.pop(rax)?;
        p.a.mov(rdx, alias + at % 4096)?;
        p.a.mov(qword_ptr(rdx), rax)
    }),
    ("a grant copy", |p| {
        let from = p.words(&[returns(NEW)]);
        let (to, source) = (function(p), p.layout.mfn(from).0);
        let place = |address: u64| 0x7ff0 | (address & 4095) << 16;
        let op = p.words(&[source, place(from), p.layout.mfn(to).0, place(to), 8]);
        p.call_gives("copied", Hypercall::GrantTableOp, &[5, op, 1], 0)?;
        p.load(op + 32)?;
        p.check("length, no flags, status 0", 8)
    }),
    ("the result of a hypercall", |p| {
        // A multicall's entry laid over the function so that its result is: the value of DR0.
        let entry = function(p) - 8;
        // `push 2; pop rax; ret`, which is an address that a breakpoint can have.
        let code = u64::from_le_bytes([0x6a, 2, 0x58, 0xc3, 0, 0, 0, 0]);
        p.call_gives("DR0 is set", Hypercall::SetDebugreg, &[0, code], 0)?;
        p.store(entry, Hypercall::GetDebugreg.number().into())?;
        p.call_gives("the entry is done", Hypercall::Multicall, &[entry, 1], 0)
    }),
];

/// Where the function is: at the start of the program's data, on a page of its own.
fn function(p: &Program) -> u64 {
    p.layout.page(16)
}

/// A page with the new function where the old one is in its page.
fn prepared_page(p: &mut Program) -> Result<u64, IcedError> {
    let page = p.pages(1);
    p.store(page + function(p) % 4096, returns(NEW))?;
    Ok(page)
}

fn call(p: &mut Program, what: &str, expected: u32) -> Assembled {
    p.a.mov(rax, function(p))?;
    p.a.call(rax)?;
    p.check(what, expected.into())
}

#[test]
fn whatever_writes_over_code_the_new_code_runs() {
    for one_instruction_blocks in [false, true] {
        let setup = Setup { one_instruction_blocks, ..Setup::default() };
        for (what, write) in WAYS {
            let outcome = Program::assemble(&setup, |p| {
                let at = p.pages(1);
                assert_eq!(at, function(p));
                let copy = p.words(&[returns(NEW)]);
                p.store(at, returns(OLD))?;
                call(p, "before", OLD)?;
                // Hot, so that it is linked to its caller.
                let mut again = p.a.create_label();
                p.a.mov(ebx, 100)?;
                p.a.set_label(&mut again)?;
                p.a.mov(rax, at)?;
                p.a.call(rax)?;
                p.a.dec(ebx)?;
                p.a.jne(again)?;
                p.a.mov(rdi, at)?;
                p.a.mov(rsi, copy)?;
                p.a.mov(rax, returns(NEW))?;
                write(p)?;
                call(p, "after", NEW)
            })
            .run();
            assert!(outcome.passed(), "{what}: {outcome}");
        }
    }
}

#[test]
fn an_instruction_can_change_the_next_one() {
    for one_instruction_blocks in [false, true] {
        let setup = Setup { one_instruction_blocks, ..Setup::default() };
        let outcome = Program::assemble(&setup, |p| {
            let mut next = p.a.create_label();
            p.a.lea(rdi, qword_ptr(next))?;
            p.a.mov(byte_ptr(rdi + 1), 7)?;
            p.a.set_label(&mut next)?;
            p.a.mov(eax, 1)?;
            p.check("the next instruction is the changed one", 7)?;
            // And one that was translated long ago, from within the same block.
            let mut again = p.a.create_label();
            let mut changed = p.a.create_label();
            p.a.xor(ebx, ebx)?;
            p.a.lea(rdi, qword_ptr(changed))?;
            p.a.set_label(&mut again)?;
            p.a.mov(byte_ptr(rdi + 1), bl)?;
            p.a.set_label(&mut changed)?;
            p.a.mov(eax, 0)?;
            p.a.add(rdx, rax)?;
            p.a.cmp(eax, ebx)?;
            let mut wrong = p.a.create_label();
            p.a.jne(wrong)?;
            p.a.inc(ebx)?;
            p.a.cmp(ebx, 100)?;
            p.a.jne(again)?;
            p.a.set_label(&mut wrong)?;
            p.a.mov(rax, rbx)?;
            p.check("each round runs its own instruction", 100)
        })
        .run();
        assert!(outcome.passed(), "{outcome}");
    }
}

#[test]
fn a_string_instruction_can_overwrite_itself() {
    // REP STOSB over its own bytes with NOPs: the CPU finishes the instruction, then runs the NOPs.
    let outcome = Program::assemble(&Setup::default(), |p| {
        let mut itself = p.a.create_label();
        p.a.lea(rdi, qword_ptr(itself))?;
        p.a.mov(eax, 0x90)?;
        p.a.mov(ecx, 2)?;
        p.a.set_label(&mut itself)?;
        p.a.rep().stosb()?;
        p.a.mov(eax, ecx)?;
        p.check("it ran to its end", 0)
    })
    .run();
    assert!(outcome.passed(), "{outcome}");
}

#[test]
fn code_across_two_pages_is_code_of_both() {
    let outcome = Program::assemble(&Setup::default(), |p| {
        let pages = p.pages(2);
        // mov eax, imm32 whose immediate lies half on each page, then ret.
        let at = pages + 4096 - 3;
        p.a.mov(rdi, at)?;
        p.a.mov(rax, returns(0x0101_0101))?;
        p.a.mov(qword_ptr(rdi), rax)?;
        p.a.call(rdi)?;
        p.check("before", 0x0101_0101)?;
        p.a.mov(rdi, at)?;
        p.a.mov(byte_ptr(rdi + 1), 2)?;
        p.a.call(rdi)?;
        p.check("the first page changes", 0x0101_0102)?;
        p.a.mov(rdi, at)?;
        p.a.mov(byte_ptr(rdi + 4), 3)?;
        p.a.call(rdi)?;
        p.check("the second page changes", 0x0301_0102)?;
        // The second page becomes another frame.
        let other = p.pages(1);
        p.a.mov(rax, other)?;
        p.a.mov(dword_ptr(rax), 0x90c3_0505_u32)?;
        let entry = p.layout.maddr(other).0 | 0x67;
        p.call_gives("mapped", Hypercall::UpdateVaMapping, &[pages + 4096, entry, 2], 0)?;
        p.a.mov(rdi, at)?;
        p.a.call(rdi)?;
        p.check("the second page is another frame", 0x0505_0102)?;
        // And vanishes.
        p.call_gives("unmapped", Hypercall::UpdateVaMapping, &[pages + 4096, 0, 2], 0)?;
        p.catch(|p| {
            p.a.mov(rdi, at)?;
            p.a.call(rdi)
        })
    })
    .run();
    assert!(outcome.passed(), "{outcome}");
    let trap = outcome.trap();
    // The instruction begins before the page that is missing.
    assert_eq!(trap.cr2, trap.rip() + 3, "{outcome}");
}

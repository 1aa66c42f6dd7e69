//! Code that breaks a rule is refused, and for that rule. All of it stands for the guest's `mov rax, [rbx]`.

use core::mem::offset_of;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use paravane_engine::{GuestMode, VcpuContext};

use super::*;
use crate::classify::{Class, Helper};
use crate::emit::{Bits, Conditions, Decoded};
use crate::limits::Strict;
use crate::liveness::Effect;
use crate::sites::{Chain, HelperSite, Mark, PageId, offset_in_page};
use crate::state::{Layout, State, tlb_index};
use crate::walk::Walk;

const LAYOUT: Layout = Layout(0x4000_0000);
const MODE: GuestMode = GuestMode::Kernel;
const RIP: u64 = 0x20_0000_0000;

type Write = fn(&mut CodeAssembler, Places) -> Result<(), IcedError>;

/// Addresses that code may want to name.
#[derive(Clone, Copy)]
struct Places {
    hot: u32,
    leave: u64,
    walk: u64,
    read: i32,
    write: i32,
    jumps: i32,
}

fn places() -> Places {
    let signed = |address: u32| address.cast_signed();
    let stubs = LAYOUT.code() + 0x1000;
    Places {
        hot: LAYOUT.code() + 0x2000,
        leave: u64::from(stubs),
        walk: u64::from(stubs) + 64,
        read: signed(LAYOUT.tlb(MODE, Path::Read)),
        write: signed(LAYOUT.tlb(MODE, Path::Write)),
        jumps: signed(LAYOUT.jumps(MODE)),
    }
}

/// Sites that code may leave for, by their numbers.
const ENTER: u32 = 0;
const PERFORM: u32 = 1;
const LINK: u32 = 2;

/// An emitter that has emitted this for the guest's instruction; whether to mark it, and with a register borrowed.
fn emitted(bytes: &[u8], mark: Option<Option<u8>>) -> Emitter {
    let places = places();
    let mut emitter = Emitter::new(LAYOUT);
    let conditions = Conditions {
        mode: MODE,
        bits: Bits::B64,
        flat: true,
        strict: Strict::default(),
        aligned: false,
        single: false,
        rorx: true,
    };
    emitter.stubs.leave = low32(places.leave);
    emitter.stubs.leave_with_flags = low32(places.leave) + 32;
    emitter.stubs.read_walk = low32(places.walk);
    emitter.stubs.write_walk = low32(places.walk) + 32;
    emitter.stubs.code_walk = low32(places.walk) + 48;
    emitter.start(places.hot, places.hot + 0x1_0000, PageId(1), conditions);
    let instruction = Decoder::with_ip(64, &[0x48, 0x8b, 0x03], RIP, DecoderOptions::NONE).decode();
    let effect = Effect::of(&instruction);
    let decoded = Decoded::alone(instruction, Class::Plain, effect);
    emitter.record.instruction(&decoded, places.hot, places.hot + 0x1_0000);
    emitter.hot.put(bytes);
    if let Some(borrowed) = mark {
        emitter.hot_marks.push(Mark {
            host: places.hot,
            borrowed,
            host_flags: false,
            is_x87: false,
            page: emitter.page,
            offset: offset_in_page(RIP),
        });
    }
    emitter.site(Site::Enter { rip: RIP + 3 });
    let helper = HelperSite { rip: RIP, helper: Helper::Enter, instruction: 0, resume: 0, page: PageId(1) };
    emitter.site(Site::Helper(helper));
    let chain = Chain {
        at: places.hot,
        target: RIP,
        page: PageId(1),
        kind: ChainKind::Near,
        flags_in_memory: false,
        flags_exact: true,
    };
    emitter.site(Site::Chain(chain));
    emitter
}

fn judged(write: Write, mark: Option<Option<u8>>) -> Result<(), Objection> {
    let places = places();
    let mut assembler = CodeAssembler::new(64).unwrap();
    write(&mut assembler, places).unwrap();
    let bytes = assembler.assemble(u64::from(places.hot)).unwrap();
    verify(&emitted(&bytes, mark), places.hot - 16)
}

/// The check of an access of 8 bytes, as the emitter makes it.
fn check(a: &mut CodeAssembler, table: i32) -> Result<(), IcedError> {
    a.lea(r14, ptr(rbx))?;
    a.mov(r15, r14)?;
    a.shr(r15, 8)?;
    a.and(r15d, 0xfff0)?;
    a.sub(r14, qword_ptr(r15 + table))?;
    a.cmp(r14, 4088)
}

fn checked(a: &mut CodeAssembler, table: i32, miss: u64) -> Result<(), IcedError> {
    check(a, table)?;
    a.ja(miss)?;
    a.add(r14, qword_ptr(r15 + table + 8))
}

/// Leaves for a site.
fn leave(a: &mut CodeAssembler, places: Places, site: u32) -> Result<(), IcedError> {
    a.mov(r15d, site)?;
    a.jmp(places.leave)
}

/// Where jumps may lead that are not for this block.
fn elsewhere(places: Places) -> u64 {
    u64::from(places.hot) - 16
}

fn field(offset: usize) -> u32 {
    LAYOUT.field(offset)
}

#[test]
fn code_as_the_translator_makes_it_is_accepted() {
    let rows: [(&str, Write); 6] = [
        ("a checked load", |a, p| {
            checked(a, p.read, elsewhere(p))?;
            a.mov(rax, qword_ptr(r14))?;
            leave(a, p, ENTER)
        }),
        ("a checked store", |a, p| {
            checked(a, p.write, elsewhere(p))?;
            a.mov(qword_ptr(r14), rcx)?;
            leave(a, p, ENTER)
        }),
        ("a constant address", |a, p| {
            let entry = u32::try_from(p.read).unwrap() + low32(tlb_index(0x5000) as u64 * 16);
            a.cmp(qword_ptr(entry), 0x5000)?;
            a.jne(elsewhere(p))?;
            a.mov(r14, qword_ptr(entry + 8))?;
            a.mov(rax, qword_ptr(r14 + 0xff8))?;
            leave(a, p, ENTER)
        }),
        ("a host address in a slot", |a, p| {
            checked(a, p.read, elsewhere(p))?;
            a.mov(qword_ptr(LAYOUT.shared(3)), r14)?;
            a.xor(r14d, r14d)?;
            a.mov(r14, qword_ptr(LAYOUT.shared(3)))?;
            a.mov(eax, dword_ptr(r14 + 4))?;
            leave(a, p, ENTER)
        }),
        ("a register kept aside", |a, p| {
            a.mov(r15, rcx)?;
            a.xor(ecx, ecx)?;
            a.mov(rcx, r15)?;
            leave(a, p, ENTER)
        }),
        ("a computed jump", |a, p| {
            a.movzx(r15d, r14w)?;
            a.mov(r15d, dword_ptr(r15 * 4 + p.jumps))?;
            a.jmp(r15)
        }),
    ];
    for (name, write) in rows {
        assert_eq!(judged(write, Some(None)), Ok(()), "{name}");
    }
}

/// Asserts that each row's code is refused for what its text says.
fn refused(rows: &[(&str, &str, Write)]) {
    for (name, why, write) in rows {
        let objection = judged(*write, Some(None)).expect_err(name);
        assert!(objection.why.contains(why), "{name}: {}", objection.why);
    }
}

#[test]
fn instructions_for_the_system_are_refused() {
    // Each with a leave behind it, so that only the instruction itself is at fault.
    let rows: [(&[u8], &str); 34] = [
        (&[0x06], "is no instruction"),
        (&[0x0f, 0x05], "transfers control"),
        (&[0x0f, 0x34], "transfers control"),
        (&[0xcd, 0x80], "transfers control"),
        (&[0xcc], "transfers control"),
        (&[0xf1], "transfers control"),
        (&[0x0f, 0x0b], "transfers control"),
        (&[0xf4], "is privileged"),
        (&[0xfa], "is privileged"),
        (&[0xfb], "is privileged"),
        (&[0xec], "privileged"),
        (&[0xe6, 0x80], "privileged"),
        (&[0x0f, 0x30], "is privileged"),
        (&[0x0f, 0x01, 0xd0], "asks or tells"),
        (&[0x0f, 0x20, 0xd8], "is privileged"),
        (&[0x0f, 0x21, 0xc0], "is privileged"),
        (&[0x9c], "stack"),
        (&[0x9d], "stack"),
        (&[0x50], "stack"),
        (&[0x58], "stack"),
        (&[0xc9], "stack"),
        (&[0xc3], "stack"),
        (&[0xcf], "stack"),
        (&[0x48, 0xcf], "stack"),
        (&[0xcb], "stack"),
        (&[0xff, 0xd0], "stack"),
        (&[0xfd], "flags"),
        (&[0xfc], "flags"),
        (&[0x8e, 0xd8], "segment"),
        (&[0x8c, 0xd8], "segment"),
        (&[0x0f, 0xa2], "asks or tells"),
        (&[0xf3, 0x48, 0x0f, 0xae, 0xd0], "asks or tells"),
        (&[0x0f, 0x01, 0xef], "asks or tells"),
        (&[0xf3, 0xa4], "string"),
    ];
    for (bytes, why) in rows {
        let mut code = bytes.to_vec();
        // mov r15d, ENTER; jmp leave
        let places = places();
        let mut tail = Buffer::default();
        tail.restart(places.hot + low32(code.len() as u64));
        tail.constant(crate::asm::reg::R15, u64::from(ENTER));
        tail.jmp(low32(places.leave));
        code.extend(tail.bytes);
        let objection = verify(&emitted(&code, Some(None)), places.hot - 16).expect_err("bad code");
        assert!(objection.why.contains(why), "{bytes:02x?}: {}", objection.why);
        assert_eq!(objection.at, places.hot, "{bytes:02x?}");
    }
}

#[expect(clippy::too_many_lines, reason = "a table")]
#[test]
fn addresses_that_were_not_checked_are_refused() {
    refused(&[
        ("the guest's own address", "not checked", |a, p| {
            a.mov(rax, qword_ptr(rbx))?;
            leave(a, p, ENTER)
        }),
        ("an address of 32 bits", "form", |a, p| {
            checked(a, p.read, elsewhere(p))?;
            a.mov(rax, qword_ptr(r14d))?;
            leave(a, p, ENTER)
        }),
        ("an index beside it", "form", |a, p| {
            checked(a, p.read, elsewhere(p))?;
            a.mov(rax, qword_ptr(r14 + rcx))?;
            leave(a, p, ENTER)
        }),
        ("a comparison without a jump", "not checked", |a, p| {
            check(a, p.read)?;
            a.add(r14, qword_ptr(r15 + p.read + 8))?;
            a.mov(rax, qword_ptr(r14))?;
            leave(a, p, ENTER)
        }),
        ("a jump on another condition", "not checked", |a, p| {
            check(a, p.read)?;
            a.jg(elsewhere(p))?;
            a.add(r14, qword_ptr(r15 + p.read + 8))?;
            a.mov(rax, qword_ptr(r14))?;
            leave(a, p, ENTER)
        }),
        ("flags changed before the jump", "not checked", |a, p| {
            check(a, p.read)?;
            a.test(rcx, rcx)?;
            a.ja(elsewhere(p))?;
            a.add(r14, qword_ptr(r15 + p.read + 8))?;
            a.mov(rax, qword_ptr(r14))?;
            leave(a, p, ENTER)
        }),
        ("another entry's host address", "not checked", |a, p| {
            check(a, p.read)?;
            a.ja(elsewhere(p))?;
            a.and(r15d, 0xff0)?;
            a.add(r14, qword_ptr(r15 + p.read + 8))?;
            a.mov(rax, qword_ptr(r14))?;
            leave(a, p, ENTER)
        }),
        ("the other table's host address", "not checked", |a, p| {
            check(a, p.read)?;
            a.ja(elsewhere(p))?;
            a.add(r14, qword_ptr(r15 + p.write + 8))?;
            a.mov(rax, qword_ptr(r14))?;
            leave(a, p, ENTER)
        }),
        ("an address changed after its check", "not checked", |a, p| {
            checked(a, p.read, elsewhere(p))?;
            a.inc(r14)?;
            a.mov(rax, qword_ptr(r14))?;
            leave(a, p, ENTER)
        }),
        ("a selector with more bits", "not checked", |a, p| {
            a.mov(r15, rbx)?;
            a.and(r15d, 0x1_fff0)?;
            a.sub(r14, qword_ptr(r15 + p.read))?;
            leave(a, p, ENTER)
        }),
        ("another page's entry", "not checked", |a, p| {
            let entry = u32::try_from(p.read).unwrap();
            a.cmp(qword_ptr(entry), 0x5000)?;
            a.jne(elsewhere(p))?;
            a.mov(r14, qword_ptr(entry + 8))?;
            a.mov(rax, qword_ptr(r14))?;
            leave(a, p, ENTER)
        }),
        ("a slot that holds something else", "not checked", |a, p| {
            checked(a, p.read, elsewhere(p))?;
            a.mov(qword_ptr(LAYOUT.shared(0)), r14)?;
            a.mov(dword_ptr(LAYOUT.shared(0) + 4), ecx)?;
            a.mov(r14, qword_ptr(LAYOUT.shared(0)))?;
            a.mov(rax, qword_ptr(r14))?;
            leave(a, p, ENTER)
        }),
        ("a way around the check", "not checked", |a, p| {
            let mut around = a.create_label();
            a.test(rcx, rcx)?;
            a.je(around)?;
            checked(a, p.read, elsewhere(p))?;
            a.set_label(&mut around)?;
            a.mov(rax, qword_ptr(r14))?;
            leave(a, p, ENTER)
        }),
    ]);
}

#[test]
fn accesses_beyond_what_was_checked_are_refused() {
    refused(&[
        ("too many bytes", "beyond what was checked", |a, p| {
            checked(a, p.read, elsewhere(p))?;
            a.movdqu(xmm0, xmmword_ptr(r14))?;
            leave(a, p, ENTER)
        }),
        ("bytes behind", "beyond what was checked", |a, p| {
            checked(a, p.read, elsewhere(p))?;
            a.mov(rax, qword_ptr(r14 + 1))?;
            leave(a, p, ENTER)
        }),
        ("bytes in front", "beyond what was checked", |a, p| {
            checked(a, p.read, elsewhere(p))?;
            a.mov(al, byte_ptr(r14 - 1))?;
            leave(a, p, ENTER)
        }),
        ("a store to what was checked for loads", "for reading", |a, p| {
            checked(a, p.read, elsewhere(p))?;
            a.mov(qword_ptr(r14), rcx)?;
            leave(a, p, ENTER)
        }),
        ("any bit from there", "a bit beyond", |a, p| {
            checked(a, p.read, elsewhere(p))?;
            a.bt(qword_ptr(r14), rcx)?;
            leave(a, p, ENTER)
        }),
        ("a host segment", "host segment", |a, p| {
            checked(a, p.read, elsewhere(p))?;
            a.mov(rax, qword_ptr(r14).fs())?;
            leave(a, p, ENTER)
        }),
        ("memory before the arena", "outside the arena", |a, p| {
            a.mov(rax, qword_ptr(LAYOUT.0 - 1))?;
            leave(a, p, ENTER)
        }),
        ("the code", "outside the arena", |a, p| {
            a.mov(dword_ptr(p.hot), ecx)?;
            leave(a, p, ENTER)
        }),
        ("a TLB entry", "not the code's to write", |a, p| {
            a.mov(qword_ptr(p.read), rcx)?;
            leave(a, p, ENTER)
        }),
        ("where guest memory is said to be", "not the code's to write", |a, p| {
            a.mov(qword_ptr(field(offset_of!(State, walk) + offset_of!(Walk, base))), rcx)?;
            leave(a, p, ENTER)
        }),
        ("where the leave stub jumps", "not the code's to write", |a, p| {
            a.mov(qword_ptr(field(offset_of!(State, leave))), rcx)?;
            leave(a, p, ENTER)
        }),
        ("page tables' root", "not the code's to write", |a, p| {
            let root = offset_of!(State, context) + offset_of!(VcpuContext, kernel_root);
            a.mov(qword_ptr(field(root)), rcx)?;
            leave(a, p, ENTER)
        }),
    ]);
}

#[test]
fn jumps_to_anywhere_else_are_refused() {
    refused(&[
        ("out of the cache", "no instruction, entry or stub", |a, _| a.jmp(0x1000)),
        ("the middle of a stub", "no instruction, entry or stub", |a, p| a.jmp(p.leave + 1)),
        ("the middle of an instruction", "no instruction, entry or stub", |a, p| {
            a.jmp(u64::from(p.hot) + 3)?;
            a.mov(eax, 0x1234_5678)?;
            leave(a, p, ENTER)
        }),
        ("a register of the guest", "not from the jump cache", |a, _| a.jmp(rax)),
        ("a number", "not from the jump cache", |a, _| {
            a.mov(r15d, 0x1000)?;
            a.jmp(r15)
        }),
        ("memory", "not from the jump cache", |a, _| a.jmp(qword_ptr(field(offset_of!(State, scratch))))),
        ("the jump cache by an index of any size", "form", |a, p| {
            a.mov(r15, r14)?;
            a.mov(r15d, dword_ptr(r15 * 4 + p.jumps))?;
            a.jmp(r15)
        }),
        ("nowhere", "off the end", |a, _| a.nop()),
        ("a stub without a site", "no site", |a, p| {
            a.mov(r15, rcx)?;
            a.jmp(p.leave)
        }),
        ("a stub with a site that is not there", "not this block's", |a, p| leave(a, p, 9)),
        ("a stub to link what is no jump", "no jump of this block", |a, p| leave(a, p, LINK)),
        ("a walk without an access", "wrong walk", |a, p| {
            a.mov(r15, u64::from(p.hot) << 32)?;
            a.jmp(p.walk)
        }),
    ]);
}

#[test]
fn registers_and_memory_that_the_guest_would_find_changed_are_refused() {
    refused(&[
        ("a register that the instruction does not write", "keeps: 0x0002", |a, p| {
            a.xor(ecx, ecx)?;
            leave(a, p, ENTER)
        }),
        ("the stack pointer", "keeps: 0x0010", |a, p| {
            a.lea(rsp, ptr(rsp - 8))?;
            leave(a, p, ENTER)
        }),
        ("a register with another's value", "keeps: 0x0002", |a, p| {
            a.mov(rcx, rdx)?;
            leave(a, p, ENTER)
        }),
        ("a register kept aside and lost", "keeps: 0x0002", |a, p| {
            a.mov(r15, rcx)?;
            a.xor(ecx, ecx)?;
            a.xor(r15d, r15d)?;
            a.mov(rcx, r15)?;
            leave(a, p, ENTER)
        }),
        ("a register before Rust performs the instruction", "in the middle", |a, p| {
            a.xor(eax, eax)?;
            leave(a, p, PERFORM)
        }),
        ("memory before Rust performs the instruction", "in the middle", |a, p| {
            checked(a, p.write, elsewhere(p))?;
            a.mov(qword_ptr(r14), rcx)?;
            leave(a, p, PERFORM)
        }),
        ("the guest's R15 before Rust performs the instruction", "in the middle", |a, p| {
            a.mov(qword_ptr(LAYOUT.gpr(15)), rcx)?;
            leave(a, p, PERFORM)
        }),
        ("a register when the access can fault", "state has changed", |a, p| {
            checked(a, p.read, elsewhere(p))?;
            a.xor(ecx, ecx)?;
            a.mov(rax, qword_ptr(r14))?;
            leave(a, p, ENTER)
        }),
    ]);
}

#[test]
fn a_borrowed_register_needs_a_mark_that_says_so() {
    let borrows: Write = |a, p| {
        checked(a, p.read, elsewhere(p))?;
        a.mov(qword_ptr(LAYOUT.spill(1)), rcx)?;
        a.mov(rcx, r14)?;
        a.mov(rax, qword_ptr(rcx))?;
        a.mov(rcx, qword_ptr(LAYOUT.spill(1)))?;
        leave(a, p, ENTER)
    };
    assert_eq!(judged(borrows, Some(Some(1))), Ok(()));
    for (mark, why) in
        [(None, "no mark"), (Some(None), "state has changed"), (Some(Some(2)), "state has changed")]
    {
        let objection = judged(borrows, mark).expect_err("bad code");
        assert!(objection.why.contains(why), "{}", objection.why);
    }
}

//! Code that changes, as kernels and programs change it: by every kind of store, through every mapping, under their
//! own feet, for ever.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up fails")]

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use paravane_abi::units::{GuestVirt, MachAddr, Mfn, PAGE_SIZE};
use paravane_engine::{Engine as _, Exit, Gpr, GuestMode, TlbFlush};

use crate::native::{CODE, Machine, STACK_TOP, machine, map_page};
use crate::promises::{HLT, assemble, prepare};

/// A page for code that changes.
pub(crate) const TARGET: u64 = CODE + 0x4_0000;
/// The same page again.
pub(crate) const ALIAS: u64 = TARGET + 0x4_0000;
/// From the one to the other.
const DISTANCE: i32 = 0x4_0000;
/// Its frame, and another for the same place.
pub(crate) const FRAME: Mfn = Mfn(0x8000 + 50);
const TWIN: Mfn = Mfn(0x8000 + 51);
/// Where in the page the function is: where FXSAVE and XSAVE put XMM0.
const FUNCTION: u64 = TARGET + 160;

/// `mov eax, number; ret`.
pub(crate) fn returns(number: u32) -> [u8; 6] {
    let [a, b, c, d] = number.to_le_bytes();
    [0xb8, a, b, c, d, 0xc3]
}

/// The same as a number, with two bytes to spare.
fn returns_word(number: u32) -> u64 {
    let mut bytes = [0; 8];
    bytes[..6].copy_from_slice(&returns(number));
    u64::from_le_bytes(bytes)
}

pub(crate) fn map(machine: &mut Machine, address: u64, frame: Mfn) {
    let root = machine.engine.context().kernel_root;
    // Its tables are there: those of the code.
    let mut none = 255;
    map_page(&machine.memory, root, address, frame, 7, &mut none);
    assert_eq!(none, 255, "the page's tables are there");
    machine.engine.flush_tlb(TlbFlush::Page(GuestVirt(address)));
}

fn set_up(machine: &mut Machine, code: &[u8]) {
    prepare(machine, code);
    map(machine, TARGET, FRAME);
    map(machine, ALIAS, FRAME);
    map(machine, ALIAS - PAGE_SIZE, TWIN);
    machine.memory.zero_frame(FRAME).unwrap();
    machine.memory.write(MachAddr(FRAME.0 * PAGE_SIZE + 160), &returns(1)).unwrap();
}

type Write = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Ways to make a function that returns 1 return 7. R12 is its address, R13 that of its page, XMM0 and R8 its new bytes.
#[expect(clippy::too_many_lines, reason = "a table")]
fn stores() -> Vec<(&'static str, Write)> {
    vec![
        ("a store", |a| a.mov(byte_ptr(r12 + 1), 7)),
        ("a store through another mapping", |a| a.mov(byte_ptr(r12 + DISTANCE + 1), 7)),
        ("a store of everything", |a| a.mov(qword_ptr(r12), r8)),
        ("two stores that share a check", |a| {
            a.mov(byte_ptr(r13 + 156), 0)?;
            a.mov(byte_ptr(r13 + 161), 7)
        }),
        ("a locked addition", |a| a.lock().add(dword_ptr(r12 + 1), 6)),
        ("an exchange", |a| a.xchg(qword_ptr(r12), r8)),
        ("a compare and exchange", |a| {
            a.mov(eax, 1)?;
            a.mov(ecx, 7)?;
            a.lock().cmpxchg(dword_ptr(r12 + 1), ecx)
        }),
        ("bits", |a| {
            a.mov(ecx, 9)?;
            a.bts(dword_ptr(r12), ecx)?;
            a.bts(dword_ptr(r12), 10)
        }),
        ("a vector", |a| a.movups(xmmword_ptr(r12), xmm0)),
        ("a store past the cache", |a| a.movnti(qword_ptr(r12), r8)),
        ("an x87 store", |a| {
            a.mov(qword_ptr(rbx), 7)?;
            a.fild(dword_ptr(rbx))?;
            a.fistp(dword_ptr(r12 + 1))
        }),
        ("a push", |a| {
            a.mov(r9, rsp)?;
            a.lea(rsp, ptr(r12 + 8))?;
            a.push(r8)?;
            a.mov(rsp, r9)
        }),
        ("a byte of a string", |a| {
            a.mov(al, 7)?;
            a.lea(rdi, ptr(r12 + 1))?;
            a.stosb()
        }),
        ("a string", |a| {
            a.mov(qword_ptr(rbx), r8)?;
            a.mov(rsi, rbx)?;
            a.mov(rdi, r12)?;
            a.mov(ecx, 6)?;
            a.rep().movsb()
        }),
        ("a string downward", |a| {
            a.mov(qword_ptr(rbx), r8)?;
            a.lea(rsi, ptr(rbx + 5))?;
            a.lea(rdi, ptr(r12 + 5))?;
            a.mov(ecx, 6)?;
            a.std()?;
            a.rep().movsb()?;
            a.cld()
        }),
        ("a string over pages", |a| {
            a.mov(rax, r8)?;
            a.mov(rdi, ALIAS - PAGE_SIZE + 160)?;
            a.mov(ecx, 0x1008 / 8)?;
            a.rep().stosq()
        }),
        ("FXSAVE", |a| a.fxsave(ptr(r13))),
        ("XSAVE", |a| {
            a.mov(eax, 3)?;
            a.xor(edx, edx)?;
            a.xsave(ptr(r13))
        }),
        ("selected bytes", |a| {
            a.pcmpeqd(xmm1, xmm1)?;
            a.mov(rdi, r12)?;
            a.maskmovdqu(xmm0, xmm1)
        }),
    ]
}

#[test]
fn a_function_is_what_the_last_store_made_it_whatever_stored() {
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    for (name, write) in stores() {
        let code = assemble(|a| {
            a.mov(r12, FUNCTION)?;
            a.mov(r13, TARGET)?;
            a.mov(r8, returns_word(7))?;
            a.movq(xmm0, r8)?;
            a.call(FUNCTION)?;
            a.mov(r15d, eax)?;
            write(a)?;
            a.call(FUNCTION)?;
            a.hlt()
        });
        // The second time the code before and behind is translated, and linked.
        for round in 0..2 {
            set_up(machine, &code);
            assert_eq!(machine.engine.run(), HLT, "{name}");
            let context = machine.engine.context();
            assert_eq!((context.gpr(Gpr::R15), context.gpr(Gpr::Rax)), (1, 7), "{name}, round {round}");
        }
    }
}

#[test]
fn a_store_across_pages_changes_code_in_both() {
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    // From the end of CODE's first page (where a `nop; ret` is) into its second.
    let code = assemble(|a| {
        a.call(CODE + PAGE_SIZE - 4)?;
        a.mov(r14d, eax)?;
        a.call(CODE + PAGE_SIZE)?;
        a.mov(r15d, eax)?;
        // mov al, 5; ret; nop | mov al, 6; ret; nop
        a.mov(rcx, 0x90c3_06b0_90c3_05b0_u64)?;
        a.mov(rdx, CODE + PAGE_SIZE - 4)?;
        a.mov(qword_ptr(rdx), rcx)?;
        a.call(CODE + PAGE_SIZE - 4)?;
        a.mov(r12d, eax)?;
        a.call(CODE + PAGE_SIZE)?;
        a.hlt()
    });
    for _ in 0..2 {
        prepare(machine, &code);
        let end = machine.machine_address(CODE + PAGE_SIZE - 4);
        machine.memory.write(end, &[0xb0, 1, 0xc3, 0x90, 0xb0, 2, 0xc3, 0x90]).unwrap();
        assert_eq!(machine.engine.run(), HLT);
        let context = machine.engine.context();
        let found = [Gpr::R14, Gpr::R15, Gpr::R12, Gpr::Rax].map(|register| context.gpr(register) & 0xff);
        assert_eq!(found, [1, 2, 5, 6]);
    }
}

#[test]
fn a_store_to_any_later_instruction_of_its_own_block_takes_effect() {
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    for distance in 0..12_u8 {
        // mov byte [rip + distance + 1], 7; nops; mov eax, 1; hlt
        let mut code = vec![0xc6, 0x05, distance + 1, 0, 0, 0, 7];
        code.extend(vec![0x90; usize::from(distance)]);
        code.extend([0xb8, 1, 0, 0, 0, 0xf4]);
        prepare(machine, &code);
        assert_eq!(machine.engine.run(), HLT);
        assert_eq!(machine.engine.context().gpr(Gpr::Rax), 7, "{distance}");
        // A second run finds the block as it is now, and stores once more.
        machine.engine.context_mut().rip = CODE;
        assert_eq!(machine.engine.run(), HLT);
        assert_eq!(machine.engine.context().gpr(Gpr::Rax), 7, "{distance}");
    }
}

#[test]
fn instructions_that_overlap_change_together() {
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    // mov eax, 0xc3_03b0: inside it is mov al, 3; ret.
    let code = assemble(|a| {
        a.mov(r12, FUNCTION)?;
        a.call(FUNCTION)?;
        a.mov(r14d, eax)?;
        a.call(FUNCTION + 1)?;
        a.mov(r15d, eax)?;
        a.mov(byte_ptr(r12 + 2), 9)?;
        a.call(FUNCTION)?;
        a.mov(r13d, eax)?;
        a.call(FUNCTION + 1)?;
        a.hlt()
    });
    for _ in 0..2 {
        set_up(machine, &code);
        machine.memory.write(MachAddr(FRAME.0 * PAGE_SIZE + 160), &returns(0xc3_03b0)).unwrap();
        assert_eq!(machine.engine.run(), HLT);
        let context = machine.engine.context();
        assert_eq!(context.gpr(Gpr::R14), 0xc3_03b0);
        assert_eq!(context.gpr(Gpr::R15) & 0xff, 3);
        assert_eq!(context.gpr(Gpr::R13), 0xc3_09b0);
        assert_eq!(context.gpr(Gpr::Rax) & 0xff, 9);
    }
}

#[test]
fn what_the_hypervisor_writes_runs_in_both_modes() {
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    let code = assemble(|a| {
        a.call(FUNCTION)?;
        a.hlt()
    });
    set_up(machine, &code);
    let at = MachAddr(FRAME.0 * PAGE_SIZE + 160);
    let mut modes = [GuestMode::Kernel, GuestMode::User].into_iter().cycle();
    for number in 1..20 {
        machine.memory.write(at, &returns(number)).unwrap();
        for _ in 0..2 {
            let context = machine.engine.context_mut();
            context.user_root = Some(context.kernel_root);
            context.mode = modes.next().unwrap();
            context.rip = CODE;
            context.set_gpr(Gpr::Rsp, STACK_TOP);
            assert_eq!(machine.engine.run(), HLT);
            assert_eq!(machine.engine.context().gpr(Gpr::Rax), u64::from(number));
        }
    }
}

#[test]
fn a_page_is_code_then_data_then_code_again() {
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    // Fills the page with a number, by a loop of stores, then makes it a function again.
    let code = assemble(|a| {
        let mut fill = a.create_label();
        a.mov(r12, TARGET)?;
        a.call(FUNCTION)?;
        a.mov(r15d, eax)?;
        a.xor(ecx, ecx)?;
        a.set_label(&mut fill)?;
        a.mov(qword_ptr(r12 + rcx * 8), rcx)?;
        a.inc(ecx)?;
        a.cmp(ecx, 512)?;
        a.jb(fill)?;
        a.mov(rdx, qword_ptr(r12 + 160))?;
        a.mov(r8, returns_word(7))?;
        a.mov(qword_ptr(r12 + 160), r8)?;
        a.call(FUNCTION)?;
        a.hlt()
    });
    for _ in 0..4 {
        set_up(machine, &code);
        let before = machine.engine.stats();
        assert_eq!(machine.engine.run(), HLT);
        let context = machine.engine.context();
        let found = [Gpr::R15, Gpr::Rdx, Gpr::Rax].map(|register| context.gpr(register));
        assert_eq!(found, [1, 160 / 8, 7]);
        // As data, the page is written in place: only stores beside and to the code come to Rust.
        let misses = machine.engine.stats().access_misses - before.access_misses;
        assert!(misses < 50, "{misses} of 512 stores");
    }
}

/// Runs until a kick, with somebody kicking.
fn interrupted(machine: &mut Machine) {
    let kick = machine.engine.kick_handle();
    let kicker = std::thread::spawn(move || kick.kick());
    assert_eq!(machine.engine.run(), Exit::Interrupted);
    kicker.join().unwrap();
}

#[test]
fn a_loop_finds_that_its_page_or_one_it_calls_is_mapped_elsewhere() {
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    let code = assemble(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.call(FUNCTION)?;
        a.add(rcx, rax)?;
        a.jmp(again)
    });
    // The page that is called: its twin has a HLT there.
    set_up(machine, &code);
    machine.memory.fill(TWIN.base().unwrap(), 4096, 0xf4).unwrap();
    for _ in 0..3 {
        machine.engine.context_mut().rip = CODE;
        interrupted(machine);
        map(machine, TARGET, TWIN);
        assert_eq!(machine.engine.run(), HLT);
        assert!((TARGET..TARGET + PAGE_SIZE).contains(&machine.engine.context().rip));
        map(machine, TARGET, FRAME);
    }
    // The page that runs.
    let own = machine.machine_address(CODE).frame();
    for _ in 0..3 {
        let context = machine.engine.context_mut();
        context.rip = CODE;
        context.set_gpr(Gpr::Rsp, STACK_TOP);
        interrupted(machine);
        map(machine, CODE, TWIN);
        assert_eq!(machine.engine.run(), HLT);
        assert!((CODE..CODE + PAGE_SIZE).contains(&machine.engine.context().rip));
        map(machine, CODE, own);
    }
}

#[test]
fn code_can_be_made_for_ever() {
    const ROUNDS: u32 = 90_000;
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    // Makes a function that returns the round's number, at one of many places, and adds up what it returns.
    let code = assemble(|a| {
        let mut again = a.create_label();
        a.mov(r12, TARGET)?;
        a.xor(r13d, r13d)?;
        a.mov(r14d, ROUNDS)?;
        a.set_label(&mut again)?;
        a.mov(ecx, r14d)?;
        a.and(ecx, 0xff8)?;
        a.lea(rdi, ptr(r12 + rcx))?;
        a.mov(byte_ptr(rdi), 0xb8)?;
        a.mov(dword_ptr(rdi + 1), r14d)?;
        a.mov(byte_ptr(rdi + 5), 0xc3)?;
        a.call(rdi)?;
        a.add(r13, rax)?;
        a.dec(r14d)?;
        a.jnz(again)?;
        a.hlt()
    });
    set_up(machine, &code);
    let before = machine.engine.stats();
    assert_eq!(machine.engine.run(), HLT);
    let context = machine.engine.context();
    assert_eq!(context.gpr(Gpr::R13), u64::from(ROUNDS) * u64::from(ROUNDS + 1) / 2);
    let flushes = machine.engine.stats().cache_flushes - before.cache_flushes;
    println!("{flushes} times the cache was full");
    assert!(flushes > 0, "more code than the cache holds");
}

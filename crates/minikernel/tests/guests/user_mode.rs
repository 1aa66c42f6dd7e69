//! Entries from user mode, and the difference between the modes.

use iced_x86::{IcedError, code_asm::*};
use paravane_abi::hypercall::Hypercall;
use paravane_hypervisor::CrashCause;
use paravane_minikernel::{Assembled, Entry, Outcome, Program, Setup, Trap, Way};

/// Runs `user` in user mode, with the kernel's own root as that of user mode, both ways.
fn in_user_mode(user: impl Fn(&mut Program) -> Assembled) -> [Outcome; 2] {
    in_user_mode_of(&Setup::default(), user)
}

fn in_user_mode_of(setup: &Setup, user: impl Fn(&mut Program) -> Assembled) -> [Outcome; 2] {
    [Way::Page, Way::Raw].map(|way| {
        let outcome = Program::assemble(&Setup { way, ..setup.clone() }, |p| {
            p.set_user_root(p.layout.mfn(p.layout.table(4)))?;
            p.in_user_mode(&user)
        })
        .run();
        assert!(outcome.passed(), "{outcome}");
        outcome
    })
}

/// What all frames from 64-bit user mode have in common.
fn frame_is_a_users(trap: &Trap, outcome: &Outcome) {
    let layout = paravane_minikernel::Layout::new(&Setup::default());
    assert_eq!(trap.cs(), 0xe033 | 1 << 32, "{outcome}");
    assert_eq!(trap.ss(), 0xe02b, "{outcome}");
    let words = 7 + u64::from(trap.entry.has_error_code());
    assert_eq!(trap.frame_at, layout.kernel_stack_top() - words * 8, "the registered stack: {outcome}");
}

#[test]
fn traps_from_user_mode_come_on_the_registered_stack() {
    type User = fn(&mut Program) -> Assembled;
    let cases: [(&str, User, Entry, Option<u64>); 12] = [
        ("UD2", |p| p.a.ud2(), Entry::Vector(6), None),
        ("INT3", |p| p.a.int3(), Entry::Vector(3), None),
        ("INT 0x80", |p| p.a.int(0x80), Entry::Vector(0x80), None),
        ("INT 0x81, open to the kernel only", |p| p.a.int(0x81), Entry::Vector(13), Some(0x81 * 8 + 2)),
        ("SYSCALL", |p| p.a.syscall(), Entry::Syscall, None),
        ("SYSENTER", |p| p.a.sysenter(), Entry::Sysenter, None),
        ("HLT", |p| p.a.hlt(), Entry::Vector(13), Some(0)),
        ("RDMSR", |p| p.a.rdmsr(), Entry::Vector(13), Some(0)),
        ("MOV from CR0", |p| p.a.mov(rax, cr0), Entry::Vector(13), Some(0)),
        (
            "a read of nothing",
            |p| {
                p.a.mov(rbx, 0x1234_5678_u64)?;
                p.a.mov(rax, qword_ptr(rbx))
            },
            Entry::Vector(14),
            // U is set.
            Some(4),
        ),
        (
            "a write to nothing",
            |p| {
                p.a.mov(rbx, 0x1234_5678_u64)?;
                p.a.mov(qword_ptr(rbx), rax)
            },
            Entry::Vector(14),
            Some(6),
        ),
        (
            "a jump to nothing",
            |p| {
                p.a.mov(rbx, 0x1234_5678_u64)?;
                p.a.jmp(rbx)
            },
            Entry::Vector(14),
            Some(0x14),
        ),
    ];
    for (what, user, entry, error_code) in cases {
        for outcome in in_user_mode(user) {
            let trap = outcome.trap();
            assert_eq!(trap.entry, entry, "{what}: {outcome}");
            assert_eq!(trap.error_code(), error_code, "{what}: {outcome}");
            if entry == Entry::Sysenter {
                // It forgets where it came from.
                let words = (trap.cs() & 0xffff, trap.rip(), trap.rsp(), trap.ss());
                assert_eq!(words, (3, 0, 0, 0xe02b), "{what}: {outcome}");
            } else {
                frame_is_a_users(&trap, &outcome);
            }
            if entry == Entry::Vector(14) {
                assert_eq!(trap.cr2, 0x1234_5678, "{what}");
            }
        }
    }
}

#[test]
fn a_system_call_enters_with_df_clear_and_rcx_r11_as_the_cpu_leaves_them() {
    for outcome in in_user_mode(|p| {
        p.a.std()?;
        p.a.mov(eax, 42)?;
        p.a.syscall()
    }) {
        let trap = outcome.trap();
        assert_eq!(trap.entry, Entry::Syscall);
        assert_eq!(trap.rax, 42);
        assert_eq!(trap.entry_rflags & 0x400, 0, "DF is clear: {outcome}");
        assert_eq!(trap.rflags() & 0x400, 0x400, "the frame has it set: {outcome}");
        assert_eq!(trap.rcx(), trap.rip(), "SYSCALL puts RIP into RCX: {outcome}");
        assert_eq!(trap.r11() & 0x400, 0x400, "and RFLAGS into R11: {outcome}");
    }
}

#[test]
fn other_traps_leave_df_as_it_was() {
    for outcome in in_user_mode(|p| {
        p.a.std()?;
        p.a.int(0x80)
    }) {
        assert_eq!(outcome.trap().entry_rflags & 0x400, 0x400, "{outcome}");
    }
}

#[test]
fn a_trap_entry_can_mask_events() {
    for (vector, mask) in [(0x80, 0), (0x90, 1)] {
        for way in [Way::Page, Way::Raw] {
            let outcome = Program::assemble(&Setup { way, ..Setup::default() }, |p| {
                // Unmasked, with nothing pending.
                p.a.mov(byte_ptr(p.layout.shared_info() + 1), 0)?;
                p.catch(|p| p.a.int(vector))?;
                p.a.movzx(eax, byte_ptr(p.layout.shared_info() + 1))?;
                p.check("the mask afterwards", mask)
            })
            .run();
            assert!(outcome.passed(), "{outcome}");
            let trap = outcome.trap();
            assert_eq!(trap.cs(), 0xe030, "the saved mask is 0: {outcome}");
            assert_eq!(trap.rflags() & 0x200, 0x200, "so IF is set: {outcome}");
        }
    }
}

#[test]
fn returning_to_user_mode_without_a_user_root_is_fatal() {
    for way in [Way::Page, Way::Raw] {
        let outcome =
            Program::assemble(&Setup { way, ..Setup::default() }, |p| p.in_user_mode(|p| p.a.ud2())).run();
        assert_eq!(outcome.crash(), Some(&CrashCause::NoUserRoot), "{outcome}");
    }
}

#[test]
fn a_system_call_without_a_callback_is_an_invalid_opcode_where_it_stands() {
    let mut at = 0;
    let outcome = Program::assemble(&Setup::default(), |p| {
        let event = p.entry_point(Entry::Event);
        p.call_gives("callbacks", Hypercall::SetCallbacks, &[event, 0, 0], 0)?;
        p.set_user_root(p.layout.mfn(p.layout.table(4)))?;
        let mut label = p.a.create_label();
        at = p.note(label)?;
        p.in_user_mode(|p| {
            p.a.set_label(&mut label)?;
            p.a.syscall()
        })
    })
    .run();
    assert!(outcome.passed(), "{outcome}");
    let trap = outcome.trap();
    assert_eq!((trap.entry, trap.rip()), (Entry::Vector(6), outcome.word(at)), "{outcome}");
}

/// The code selector of 32-bit programs.
const CS32: u64 = 0xe023;

/// Runs 32-bit code, in user mode, below 4 GiB.
fn in_32_bit_user_mode(code: &[u8]) -> Outcome {
    let setup = Setup { base: 0x40_0000, ..Setup::default() };
    let outcome = Program::assemble(&setup, |p| {
        p.set_user_root(p.layout.mfn(p.layout.table(4)))?;
        let at = p.data(code);
        let stack = p.layout.user_stack_top();
        p.catch(|p| p.iret([0, at, CS32, 2, stack, 0xe02b]))
    })
    .run();
    assert!(outcome.passed(), "{outcome}");
    outcome
}

#[test]
fn programs_of_32_bits_have_entries_of_their_own_for_system_calls() {
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    const SYSENTER: [u8; 2] = [0x0f, 0x34];
    const INT_80: [u8; 2] = [0xcd, 0x80];
    let cases: [(&str, [u8; 2], Entry); 3] = [
        ("SYSCALL", SYSCALL, Entry::Syscall32),
        ("SYSENTER", SYSENTER, Entry::Sysenter),
        ("INT 0x80", INT_80, Entry::Vector(0x80)),
    ];
    // 32-bit code has SYSCALL on CPUs of AMD, and SYSENTER on those of Intel; the other is an invalid opcode.
    const MISSING: Entry = Entry::Vector(6);
    let mut missing = 0;
    for (what, instruction, entry) in cases {
        // mov eax, 42 first, to see that the program ran as 32-bit code: inc ecx is a prefix in 64-bit code.
        let code = [&[0xb8, 42, 0, 0, 0, 0x41, 0x31, 0xc9, 0x41][..], &instruction].concat();
        let trap = in_32_bit_user_mode(&code).trap();
        assert_eq!(trap.rax, 42, "{what}: {trap:?}");
        if trap.entry == MISSING {
            missing += 1;
        } else {
            assert_eq!(trap.entry, entry, "{what}: {trap:?}");
        }
        if entry == Entry::Vector(0x80) {
            assert_eq!((trap.cs(), trap.rcx()), (CS32 | 1 << 32, 1), "{what}: {trap:?}");
        }
        if trap.entry == Entry::Syscall32 {
            assert_eq!(trap.cs(), CS32 | 1 << 32, "{what}: {trap:?}");
        }
    }
    assert!(missing <= 1, "there is at least one of SYSCALL and SYSENTER");
}

#[test]
fn programs_of_32_bits_have_the_exceptions_that_64_bit_code_lost() {
    let cases: [(&str, &[u8], u8); 4] = [
        // mov eax, 0x7fffffff; inc eax; into
        ("INTO after an overflow", &[0xb8, 0xff, 0xff, 0xff, 0x7f, 0x40, 0xce], 4),
        // push 1; push 0; mov eax, 5; bound eax, [esp]
        ("BOUND out of bounds", &[0x6a, 1, 0x6a, 0, 0xb8, 5, 0, 0, 0, 0x62, 0x04, 0x24], 5),
        // ud2
        ("UD2", &[0x0f, 0x0b], 6),
        // xor eax, eax; div eax
        ("DIV by zero", &[0x31, 0xc0, 0xf7, 0xf0], 0),
    ];
    for (what, code, vector) in cases {
        let trap = in_32_bit_user_mode(code).trap();
        assert_eq!(trap.entry, Entry::Vector(vector), "{what}: {trap:?}");
        assert_eq!(trap.cs() & 0xffff, CS32, "{what}");
    }
}

/// Makes a user root: a copy of the kernel's root that lacks slot `without`.
fn root_without(p: &mut Program, without: u64) -> Result<u64, IcedError> {
    let root = p.pages(1);
    p.a.mov(rsi, p.layout.table(4))?;
    p.a.mov(rdi, root)?;
    p.a.mov(ecx, 512)?;
    p.a.rep().movsq()?;
    // Xen's own slots are not the guest's to copy.
    for slot in (256..272).chain([without]) {
        p.store(root + slot * 8, 0)?;
    }
    // A page table may not be writable.
    let entry = p.layout.maddr(root).0 | 0x25;
    p.call_gives("it becomes read-only", Hypercall::UpdateVaMapping, &[root, entry, 2], 0)?;
    Ok(root)
}

#[test]
fn user_mode_sees_the_user_root_only() {
    let outcome = Program::assemble(&Setup::default(), |p| {
        // A root without the kernel's slot: the first fetch in user mode faults, in user mode.
        let root = root_without(p, 511)?;
        p.set_user_root(p.layout.mfn(root))?;
        p.in_user_mode(|p| p.a.int(0x80))?;
        // The kernel's own accesses go by its own root still.
        p.load(p.layout.start_info())?;
        p.print("the kernel goes on")
    })
    .run();
    assert!(outcome.passed(), "{outcome}");
    assert_eq!(outcome.console, "the kernel goes on");
    let trap = outcome.trap();
    assert_eq!((trap.entry, trap.error_code()), (Entry::Vector(14), Some(0x14)), "{outcome}");
    assert_eq!(trap.rip(), trap.cr2);
}

#[test]
fn gs_bases_are_swapped_with_the_mode() {
    for outcome in paravane_minikernel::both_ways(|p| {
        let (kernel, user) = (p.words(&[0x1111]), p.words(&[0x2222]));
        p.call_gives("GS of user mode", Hypercall::SetSegmentBase, &[1, user], 0)?;
        p.call_gives("GS of kernel mode", Hypercall::SetSegmentBase, &[2, kernel], 0)?;
        p.call_gives("FS", Hypercall::SetSegmentBase, &[0, kernel], 0)?;
        p.set_user_root(p.layout.mfn(p.layout.table(4)))?;
        p.a.mov(rax, qword_ptr(0).gs())?;
        p.check("the kernel's GS", 0x1111)?;
        p.in_user_mode(|p| {
            p.a.mov(rax, qword_ptr(0).gs())?;
            p.a.mov(rbx, qword_ptr(0).fs())?;
            p.a.int(0x80)
        })?;
        p.check("the program's GS", 0x2222)?;
        p.a.mov(rax, rbx)?;
        p.check("FS is the same", 0x1111)?;
        p.a.mov(rax, qword_ptr(0).gs())?;
        p.check("the kernel's GS again", 0x1111)
    }) {
        assert_eq!(outcome.trap().entry, Entry::Vector(0x80));
    }
}

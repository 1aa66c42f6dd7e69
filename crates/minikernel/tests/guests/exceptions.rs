//! Every exception that a kernel can raise in its own mode: which entry it takes, with what frame.

use iced_x86::code_asm::*;
use paravane_abi::hypercall::Hypercall;
use paravane_minikernel::{Assembled, Entry, Layout, Program, Setup, Trap, Way};

/// Where the frame's RIP is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rip {
    /// At the instruction.
    At,
    /// After it.
    After,
}
use Rip::{After, At};

type Emit = fn(&mut Program) -> Assembled;

/// An instruction, what comes before it, and what its trap is to be.
struct Case {
    what: &'static str,
    prepare: Emit,
    instruction: Emit,
    vector: u8,
    error_code: Option<u64>,
    rip: Rip,
}

fn case(
    what: &'static str,
    prepare: Emit,
    instruction: Emit,
    vector: u8,
    error_code: Option<u64>,
    rip: Rip,
) -> Case {
    Case { what, prepare, instruction, vector, error_code, rip }
}

const NOTHING: Emit = |_| Ok(());
/// An address that nothing is mapped at.
const UNMAPPED: u64 = 0x1234_5678;
/// No address at all.
const NON_CANONICAL: u64 = 0x8000_0000_0000_0000;

/// Runs a case and gives its trap and the addresses before and behind its instruction.
fn trap_of(case: &Case, setup: &Setup) -> (Trap, u64, u64) {
    let mut places = [0; 2];
    let outcome = Program::assemble(setup, |p| {
        let mut at = p.a.create_label();
        let mut after = p.a.create_label();
        places = [p.note(at)?, p.note(after)?];
        p.catch(|p| {
            (case.prepare)(p)?;
            p.a.set_label(&mut at)?;
            (case.instruction)(p)?;
            p.a.set_label(&mut after)?;
            p.print("it went on\n")
        })
    })
    .run();
    assert!(outcome.passed(), "{}: {outcome}", case.what);
    assert_eq!(outcome.console, "", "{}", case.what);
    (outcome.trap(), outcome.word(places[0]), outcome.word(places[1]))
}

fn holds(cases: &[Case]) {
    for case in cases {
        for one_instruction_blocks in [false, true] {
            let setup = Setup { one_instruction_blocks, ..Setup::default() };
            let (trap, at, after) = trap_of(case, &setup);
            let what = case.what;
            assert_eq!(trap.entry, Entry::Vector(case.vector), "{what}: {trap:?}");
            assert_eq!(trap.error_code(), case.error_code, "{what}: {trap:?}");
            let rip = if case.rip == At { at } else { after };
            assert_eq!(trap.rip(), rip, "{what}: {trap:?}");
            frame_is_a_kernels(what, &trap, &Layout::new(&setup));
        }
    }
}

/// What all frames from kernel mode have in common when events are masked, and the state on entry.
fn frame_is_a_kernels(what: &str, trap: &Trap, layout: &Layout) {
    // RPL 0, although the CPU runs in ring 3, and the saved upcall mask.
    assert_eq!(trap.cs(), 0x1_0000_e030, "{what}");
    assert_eq!(trap.ss(), 0xe02b, "{what}");
    assert_eq!(trap.rflags() & 0x3200, 0, "IF is the mask's inverse, IOPL 0: {what}");
    // RF is set in the frames of faults; INT n and debug traps leave it clear.
    let fault = !matches!(trap.entry, Entry::Vector(1 | 3 | 0x80..));
    assert_eq!(trap.rflags() & 0x1_0000 != 0, fault, "{what}: {trap:?}");
    let words = 7 + u64::from(trap.entry.has_error_code());
    assert_eq!(trap.frame_at, (trap.rsp() & !15) - words * 8, "{what}");
    assert!(layout.page(layout.plan.boot_stack.0) < trap.frame_at, "{what}");
    // Entered as SYSRET does.
    let Entry::Vector(vector) = trap.entry else { panic!("{what}: {trap:?}") };
    assert_eq!(trap.entry_rcx, layout.vector_entry(vector), "{what}");
    assert_eq!(trap.entry_r11, trap.entry_rflags, "{what}");
    assert_eq!(trap.entry_rflags & 0x7_4100, 0, "TF, NT, RF, VM, AC are clear: {what}");
    assert_eq!(trap.mask, 1, "{what}");
}

fn zero_divisor(p: &mut Program) -> Assembled {
    p.a.mov(eax, 1)?;
    p.a.xor(edx, edx)?;
    p.a.xor(ebx, ebx)
}

#[test]
fn arithmetic_and_invalid_instructions_fault_where_they_stand() {
    holds(&[
        case("DIV by zero", zero_divisor, |p| p.a.div(ebx), 0, None, At),
        case("8-bit DIV by zero", zero_divisor, |p| p.a.div(bl), 0, None, At),
        case(
            "IDIV whose quotient does not fit",
            |p| {
                p.a.mov(eax, i32::MIN)?;
                p.a.cdq()?;
                p.a.mov(ebx, -1)
            },
            |p| p.a.idiv(ebx),
            0,
            None,
            At,
        ),
        case("UD2", NOTHING, |p| p.a.ud2(), 6, None, At),
        case("UD0", NOTHING, |p| p.a.db(&[0x0f, 0xff, 0xc1]), 6, None, At),
        case("LOCK where it is not allowed", NOTHING, |p| p.a.db(&[0xf0, 0x89, 0xc8]), 6, None, At),
        case("INTO, which 64-bit mode lacks", NOTHING, |p| p.a.db(&[0xce]), 6, None, At),
        case("PUSH CS, which 64-bit mode lacks", NOTHING, |p| p.a.db(&[0x0e]), 6, None, At),
        case(
            "the emulation prefix before something else than CPUID",
            NOTHING,
            |p| p.a.db(&[0x0f, 0x0b, b'x', b'e', b'n', 0x0f, 0x30]),
            6,
            None,
            At,
        ),
        case("a load of CS", |p| p.a.xor(eax, eax), |p| p.a.db(&[0x8e, 0xc8]), 6, None, At),
    ]);
}

#[test]
fn breakpoint_instructions_trap_behind_themselves() {
    holds(&[
        case("INT3", NOTHING, |p| p.a.int3(), 3, None, After),
        case("INT 3 in two bytes", NOTHING, |p| p.a.db(&[0xcd, 3]), 3, None, After),
        case("INT1", NOTHING, |p| p.a.int1(), 1, None, After),
    ]);
}

#[test]
fn software_interrupts_ask_the_trap_table_for_permission() {
    // The error code names the vector, with bit 1 for the interrupt table.
    holds(&[
        case("INT 0x80, open to all", NOTHING, |p| p.a.int(0x80), 0x80, None, After),
        case("INT 0x81, open to the kernel", NOTHING, |p| p.a.int(0x81), 0x81, None, After),
        case("INT 0x21, not registered", NOTHING, |p| p.a.int(0x21), 13, Some(0x21 * 8 + 2), At),
        case("INT 14, open to nobody", NOTHING, |p| p.a.int(14), 13, Some(14 * 8 + 2), At),
        case(
            "INT 0x82, which only 32-bit guests call with",
            NOTHING,
            |p| p.a.int(0x82),
            13,
            Some(0x82 * 8 + 2),
            At,
        ),
    ]);
}

#[test]
fn the_fpu_faults_as_its_exceptions_are_unmasked() {
    let task_switched: Emit = |p| p.call(Hypercall::FpuTaskswitch, &[1]);
    holds(&[
        case("x87 after fpu_taskswitch", task_switched, |p| p.a.fld1(), 7, None, At),
        case("MMX after fpu_taskswitch", task_switched, |p| p.a.pxor(mm0, mm0), 7, None, At),
        case("SSE after fpu_taskswitch", task_switched, |p| p.a.xorps(xmm0, xmm0), 7, None, At),
        case("FXSAVE after fpu_taskswitch", task_switched, |p| p.a.fxsave(ptr(rsp - 1024)), 7, None, At),
        case(
            "a pending x87 division by zero at FWAIT",
            |p| {
                p.a.fninit()?;
                p.a.mov(word_ptr(rsp - 128), 0x37b)?;
                p.a.fldcw(word_ptr(rsp - 128))?;
                p.a.fld1()?;
                p.a.fldz()?;
                p.a.fdivp(st1, st0)
            },
            |p| p.a.wait(),
            16,
            None,
            At,
        ),
        case(
            "an SSE division by zero",
            |p| {
                p.a.mov(dword_ptr(rsp - 128), 0x1d80)?;
                p.a.ldmxcsr(dword_ptr(rsp - 128))?;
                p.a.xorps(xmm0, xmm0)?;
                p.a.mov(eax, 0x3f80_0000)?;
                p.a.movd(xmm1, eax)
            },
            |p| p.a.divss(xmm1, xmm0),
            19,
            None,
            At,
        ),
    ]);
}

#[test]
fn a_device_not_available_fault_clears_ts() {
    let outcome = Program::assemble(&Setup::default(), |p| {
        // Out of reset all exceptions are unmasked and the register stack is full.
        p.a.fninit()?;
        p.call(Hypercall::FpuTaskswitch, &[1])?;
        p.pass_over(0, |p| p.a.fld1())?;
        p.a.fstp(st0)
    })
    .run();
    assert!(outcome.passed(), "{outcome}");
    assert_eq!(outcome.trap().entry, Entry::Vector(7));
}

#[test]
fn privileged_instructions_that_pv_does_not_emulate_are_general_protection_faults() {
    holds(&[
        case("HLT", NOTHING, |p| p.a.hlt(), 13, Some(0), At),
        case("LGDT", NOTHING, |p| p.a.lgdt(ptr(rsp)), 13, Some(0), At),
        case("LIDT", NOTHING, |p| p.a.lidt(ptr(rsp)), 13, Some(0), At),
        case("LTR", |p| p.a.xor(eax, eax), |p| p.a.ltr(ax), 13, Some(0), At),
        case("INVD", NOTHING, |p| p.a.invd(), 13, Some(0), At),
        case("INVLPG", NOTHING, |p| p.a.invlpg(ptr(rsp)), 13, Some(0), At),
        case("SWAPGS", NOTHING, |p| p.a.swapgs(), 13, Some(0), At),
        case("SYSRET", NOTHING, |p| p.a.sysretq(), 13, Some(0), At),
        case("MOV to CR8", NOTHING, |p| p.a.mov(cr8, rax), 13, Some(0), At),
        case("CLI without virtual IOPL", NOTHING, |p| p.a.cli(), 13, Some(0), At),
        case("STI without virtual IOPL", NOTHING, |p| p.a.sti(), 13, Some(0), At),
        case("IN without virtual IOPL", NOTHING, |p| p.a.in_(al, 0x60), 13, Some(0), At),
        case("OUT without virtual IOPL", NOTHING, |p| p.a.out(0x60, al), 13, Some(0), At),
        case(
            "a write to an MSR that is not there",
            |p| p.a.mov(ecx, 0x4242_4242_u32),
            |p| p.a.wrmsr(),
            13,
            Some(0),
            At,
        ),
        case(
            "a non-canonical GS base",
            |p| {
                p.a.mov(ecx, 0xc000_0101_u32)?;
                p.a.xor(eax, eax)?;
                p.a.mov(edx, 0x8000_0000_u32)
            },
            |p| p.a.wrmsr(),
            13,
            Some(0),
            At,
        ),
    ]);
}

#[test]
fn addresses_that_do_not_exist_fault_by_the_segment_that_they_are_in() {
    holds(&[
        case(
            "a load from a non-canonical address",
            |p| p.a.mov(rbx, NON_CANONICAL),
            |p| p.a.mov(rax, qword_ptr(rbx)),
            13,
            Some(0),
            At,
        ),
        case(
            "a load from a non-canonical stack address",
            |p| p.a.mov(rbp, NON_CANONICAL),
            |p| p.a.mov(rax, qword_ptr(rbp)),
            12,
            Some(0),
            At,
        ),
        case("a misaligned SSE store", NOTHING, |p| p.a.movaps(ptr(rsp - 127), xmm0), 13, Some(0), At),
        case(
            "a misaligned access with AC set",
            |p| {
                p.a.pushfq()?;
                p.a.or(dword_ptr(rsp), 1 << 18)?;
                p.a.popfq()
            },
            |p| p.a.mov(eax, dword_ptr(rsp - 127)),
            17,
            Some(0),
            At,
        ),
    ]);
}

#[test]
fn loading_a_bad_selector_faults_with_the_selector() {
    fn load(selector: u32) -> impl Fn(&mut Program) -> Assembled {
        move |p| p.a.mov(eax, selector)
    }
    // Selectors beyond the GDT, of Xen's ring-0 segments, of code where data is wanted, of the missing LDT.
    for (selector, vector) in [(0x10, 13), (0xe008, 13), (0xe010, 13), (0xfff8, 13), (0x0f, 13), (0xe060, 13)]
    {
        let outcome = Program::assemble(&Setup::default(), |p| {
            p.catch(|p| {
                load(selector)(p)?;
                p.a.mov(ds, eax)
            })
        })
        .run();
        assert!(outcome.passed(), "{selector:#x}: {outcome}");
        let trap = outcome.trap();
        assert_eq!(trap.entry, Entry::Vector(vector), "{selector:#x}: {trap:?}");
        assert_eq!(trap.error_code(), Some(u64::from(selector & !3)), "{selector:#x}: {trap:?}");
    }
    // SS takes neither null, nor 64-bit code: what 0xe033 is in a 64-bit guest.
    for selector in [0, 3, 0xe033] {
        let outcome = Program::assemble(&Setup::default(), |p| {
            p.catch(|p| {
                load(selector)(p)?;
                p.a.mov(ss, eax)
            })
        })
        .run();
        assert!(outcome.passed(), "{selector:#x}: {outcome}");
        assert_eq!(outcome.trap().entry, Entry::Vector(13), "{selector:#x}");
        assert_eq!(outcome.trap().error_code(), Some(u64::from(selector & !3)), "{selector:#x}");
    }
}

#[test]
fn page_faults_say_what_was_done_where() {
    let table: Emit = |p| p.a.mov(rbx, p.layout.table(1));
    let cases = [
        case(
            "a read of nothing",
            |p| p.a.mov(rbx, UNMAPPED),
            |p| p.a.mov(rax, qword_ptr(rbx)),
            14,
            Some(0),
            At,
        ),
        case(
            "a write to nothing",
            |p| p.a.mov(rbx, UNMAPPED),
            |p| p.a.mov(qword_ptr(rbx), rax),
            14,
            Some(2),
            At,
        ),
        case(
            "a read-modify-write of nothing",
            |p| p.a.mov(rbx, UNMAPPED),
            |p| p.a.lock().inc(qword_ptr(rbx)),
            14,
            Some(2),
            At,
        ),
        case("a write to a page table", table, |p| p.a.mov(qword_ptr(rbx), rax), 14, Some(3), At),
        case(
            "a read in Xen's part, behind the M2P",
            |p| p.a.mov(rbx, 0xffff_8280_0000_0000_u64),
            |p| p.a.mov(rax, qword_ptr(rbx)),
            14,
            Some(0),
            At,
        ),
        case(
            "a write to the M2P",
            |p| p.a.mov(rbx, 0xffff_8000_0000_0000 + p.layout.machine.memory.start.0 * 8),
            |p| p.a.mov(qword_ptr(rbx), rax),
            14,
            Some(3),
            At,
        ),
    ];
    holds(&cases);
    let addresses = |layout: &Layout| {
        [
            UNMAPPED,
            UNMAPPED,
            UNMAPPED,
            layout.table(1),
            0xffff_8280_0000_0000,
            0xffff_8000_0000_0000 + layout.machine.memory.start.0 * 8,
        ]
    };
    let setup = Setup::default();
    for (case, address) in cases.iter().zip(addresses(&Layout::new(&setup))) {
        assert_eq!(trap_of(case, &setup).0.cr2, address, "{}", case.what);
    }
}

#[test]
fn a_fetch_faults_at_its_target() {
    for (what, target, error_code) in
        [("a jump to nothing", UNMAPPED, 0x10), ("a jump to no address", NON_CANONICAL, 0)]
    {
        let outcome = Program::assemble(&Setup::default(), |p| {
            p.catch(|p| {
                p.a.mov(rbx, target)?;
                p.a.jmp(rbx)
            })
        })
        .run();
        assert!(outcome.passed(), "{what}: {outcome}");
        let trap = outcome.trap();
        let vector = if target == UNMAPPED { 14 } else { 13 };
        assert_eq!(
            (trap.entry, trap.error_code()),
            (Entry::Vector(vector), Some(error_code)),
            "{what}: {trap:?}"
        );
        if target == UNMAPPED {
            assert_eq!((trap.rip(), trap.cr2), (UNMAPPED, UNMAPPED), "{what}");
        }
    }
}

#[test]
fn a_single_step_traps_behind_the_instruction_that_follows_popf() {
    let step: Emit = |p| {
        p.a.pushfq()?;
        p.a.or(dword_ptr(rsp), 0x100)?;
        p.a.popfq()
    };
    let stepped = case("a NOP with TF set", step, |p| p.a.nop(), 1, None, After);
    let (trap, _, _) = trap_of(&stepped, &Setup::default());
    assert_eq!(trap.rflags() & 0x100, 0x100, "the frame still has TF: {trap:?}");
    holds(&[stepped]);
    // DR6 says that it was a step.
    let outcome = Program::assemble(&Setup::default(), |p| {
        p.catch(|p| {
            step(p)?;
            p.a.nop()
        })?;
        p.call(Hypercall::GetDebugreg, &[6])?;
        p.a.and(rax, 0x4000)?;
        p.check("DR6.BS is set", 0x4000)
    })
    .run();
    assert!(outcome.passed(), "{outcome}");
}

#[test]
fn a_kernel_can_step_through_itself() {
    let outcome = Program::assemble(&Setup::default(), |p| {
        p.a.xor(ebx, ebx)?;
        p.pass_over(0, |p| {
            p.a.pushfq()?;
            p.a.or(dword_ptr(rsp), 0x100)?;
            p.a.popfq()?;
            for _ in 0..5 {
                p.a.inc(ebx)?;
            }
            p.a.pushfq()?;
            p.a.and(dword_ptr(rsp), !0x100)?;
            p.a.popfq()
        })?;
        p.a.mov(rax, rbx)?;
        p.check("all of it ran", 5)
    })
    .run();
    assert!(outcome.passed(), "{outcome}");
    // Five INCs, PUSHF, AND, and POPF, which still runs with TF set.
    let traps = outcome.traps();
    assert_eq!(traps.len(), 8, "{outcome}");
    assert!(traps.iter().all(|trap| trap.entry == Entry::Vector(1)), "{outcome}");
    assert!(traps.is_sorted_by(|first, second| first.rip() < second.rip()), "{outcome}");
}

#[test]
fn the_emulation_prefix_makes_cpuid_answer_for_xen() {
    for plain in [false, true] {
        let outcome = Program::assemble(&Setup { way: Way::Page, ..Setup::default() }, |p| {
            p.a.mov(eax, 0x4000_0000_u32)?;
            if !plain {
                p.a.db(&[0x0f, 0x0b, b'x', b'e', b'n'])?;
            }
            p.a.cpuid()?;
            p.a.mov(eax, ebx)?;
            p.check("EBX begins XenVMMXenVMM", 0x566e_6558)?;
            p.a.mov(eax, edx)?;
            p.check("EDX ends it", 0x4d4d_566e)
        })
        .run();
        assert!(outcome.passed(), "{outcome}");
        assert_eq!(outcome.traps(), []);
    }
}

#[test]
fn a_fault_inside_a_handler_leads_to_the_handler_of_that() {
    let outcome = Program::assemble(&Setup::default(), |p| {
        // The page-fault handler of this kernel executes UD2; the runtime's #UD entry catches that.
        let mut handler = p.a.create_label();
        let mut main = p.a.create_label();
        p.a.jmp(main)?;
        p.a.set_label(&mut handler)?;
        p.a.ud2()?;
        p.a.set_label(&mut main)?;
        p.a.nop()?;
        let table = p.words(&[0xe033_0000 | 14, 0, 0, 0]);
        p.a.lea(rax, qword_ptr(handler))?;
        p.a.mov(qword_ptr(table + 8), rax)?;
        p.call_gives("the table is taken", Hypercall::SetTrapTable, &[table], 0)?;
        p.catch(|p| {
            p.a.mov(rbx, UNMAPPED)?;
            p.a.mov(rax, qword_ptr(rbx))
        })
    })
    .run();
    assert!(outcome.passed(), "{outcome}");
    let trap = outcome.trap();
    assert_eq!(trap.entry, Entry::Vector(6), "{trap:?}");
    // The second frame lies below the first, which has eight words.
    assert_eq!(trap.rsp() & 7, 0);
    assert!(trap.frame_at <= trap.rsp() - 56, "{trap:?}");
}

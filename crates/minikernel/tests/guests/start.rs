//! What a kernel finds when it starts.

use iced_x86::code_asm::*;
use paravane_abi::hypercall::Hypercall;
use paravane_minikernel::{Assembled, Program, Setup};

/// Stores every register before the kernel changes any, as words from an address on.
fn keep_registers(p: &mut Program, at: u64) -> Assembled {
    // One general register is needed to get at the flags: it is stored first.
    let general = [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];
    for (word, register) in (0..).step_by(8).zip(general) {
        p.a.mov(qword_ptr(at + word), register)?;
    }
    p.a.pushfq()?;
    p.a.pop(qword_ptr(at + 16 * 8))?;
    for (word, register) in (17 * 8..).step_by(8).zip([cs, ss, ds, es, fs, gs]) {
        p.a.xor(eax, eax)?;
        p.a.mov(eax, register)?;
        p.a.mov(qword_ptr(at + word), rax)?;
    }
    Ok(())
}

#[test]
fn registers_are_as_the_abi_says() {
    let mut at = 0;
    let outcome = Program::assemble(&Setup { runtime: false, ..Setup::default() }, |p| {
        at = p.words(&[0xdead; 23]);
        keep_registers(p, at)
    })
    .run();
    assert!(outcome.passed(), "{outcome}");
    let plan = &outcome.built.plan;
    let names = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
        "r14", "r15", "rflags", "cs", "ss", "ds", "es", "fs", "gs",
    ];
    for (index, name) in (0_u64..).zip(names) {
        let expected = match name {
            "rsp" => plan.virt_of(plan.boot_stack).0 + 4096,
            "rsi" => plan.virt_of(plan.start_info).0,
            "rflags" => 0x202,
            "cs" => 0xe033,
            "ss" => 0xe02b,
            _ => 0,
        };
        assert_eq!(outcome.word(at + index * 8), expected, "{name}");
    }
}

#[test]
fn start_info_names_what_is_there() {
    let outcome = Program::assemble(&Setup::default(), |p| {
        let info = p.layout.start_info();
        let plan = p.layout.plan.clone();
        let first_frame = p.layout.machine.memory.start.0;
        let mfn = |pfn: u64| first_frame + pfn;
        let (store, console) = (mfn(plan.xenstore.0), mfn(plan.console.0));
        let shared = p.layout.machine.shared_info.0 << 12;
        let tables = plan.tables.end.0 - plan.tables.start.0;
        let [first, second] = [*b"xen-3.0-", *b"x86_64\0\0"].map(u64::from_le_bytes);
        for (what, offset, value) in [
            ("the magic", 0, first),
            ("its rest", 8, second),
            ("the pages", 32, plan.pages),
            ("shared_info's machine address", 40, shared),
            ("the store's frame", 56, store),
            ("the console's frame", 72, console),
            ("the page tables", 88, p.layout.table(4)),
            ("their frames", 96, tables),
            ("the p2m list", 104, plan.virt_of(plan.p2m.start).0),
            ("no module", 112, 0),
            ("of no length", 120, 0),
            ("no command line", 128, 0),
        ] {
            p.check_word(what, info + offset, value)?;
        }
        // The p2m list and the M2P name each other.
        let list = plan.virt_of(plan.p2m.start).0;
        for pfn in [0, 1, 500, plan.pages - 1] {
            p.check_word(&format!("frame of page {pfn}"), list + pfn * 8, mfn(pfn))?;
            p.check_word(&format!("page of frame {pfn}"), 0xffff_8000_0000_0000 + mfn(pfn) * 8, pfn)?;
        }
        // Events are masked; the scale of the clock is set.
        p.load(p.layout.shared_info())?;
        p.check("vcpu_info", 0x100)?;
        p.load(p.layout.shared_info() + 32 + 24)?;
        p.a.mov(eax, eax)?;
        p.a.test(rax, rax)?;
        p.a.setne(al)?;
        p.a.movzx(eax, al)?;
        p.check("tsc_to_system_mul is not zero", 1)
    })
    .run();
    assert!(outcome.passed(), "{outcome}");
}

#[test]
fn the_fpu_is_as_after_reset() {
    let outcome = Program::assemble(&Setup { runtime: false, ..Setup::default() }, |p| {
        let at = p.words(&[0, 0]);
        p.a.fnstcw(word_ptr(at))?;
        p.a.stmxcsr(dword_ptr(at + 8))?;
        p.check_word("the control word", at, 0x40)?;
        p.check_word("MXCSR", at + 8, 0x1f80)
    })
    .run();
    assert!(outcome.passed(), "{outcome}");
}

#[test]
fn the_console_ring_is_heard_by_its_port() {
    let outcome = Program::assemble(&Setup::default(), |p| {
        let ring = p.layout.page(p.layout.plan.console.0);
        // Output of 2048 bytes at 1024; its producer at 3084.
        p.store(ring + 1024, u64::from_le_bytes(*b"by ring\n"))?;
        p.a.mov(rax, ring + 3084)?;
        p.a.mov(dword_ptr(rax), 8)?;
        // start_info.console.domU.evtchn.
        p.load(p.layout.start_info() + 80)?;
        let send = p.words(&[0]);
        p.a.mov(dword_ptr(send), eax)?;
        p.call_gives("notified", Hypercall::EventChannelOp, &[4, send], 0)?;
        p.a.mov(rax, ring + 3080)?;
        p.a.mov(eax, dword_ptr(rax))?;
        p.check("all of it was taken", 8)
    })
    .run();
    assert!(outcome.passed(), "{outcome}");
    assert_eq!((outcome.ring.as_str(), outcome.console.as_str()), ("by ring\n", ""));
}

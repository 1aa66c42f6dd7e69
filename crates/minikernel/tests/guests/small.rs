//! Hypercalls that answer at once: versions, registrations, debug registers, memory, I/O privilege, multicall; and those
//! that an unprivileged domain does not have.

use iced_x86::code_asm::*;
use paravane_abi::hypercall::Hypercall;
use paravane_minikernel::{Entry, Program, Setup, both_ways};

const EPERM: i64 = -1;
const EACCES: i64 = -13;
const EFAULT: i64 = -14;
const EBUSY: i64 = -16;
const ENODEV: i64 = -19;
const EINVAL: i64 = -22;
const ENOSYS: i64 = -38;
const UNMAPPED: u64 = 0x1234_5000;
const XENS: u64 = 0xffff_8280_0000_0000;

#[test]
fn what_is_for_others_is_refused() {
    let refused = [
        // A request of version 0 is refused for that first.
        (Hypercall::PlatformOp, EACCES),
        (Hypercall::Sysctl, EACCES),
        (Hypercall::Domctl, EACCES),
        (Hypercall::KexecOp, EPERM),
        (Hypercall::DmOp, EPERM),
        (Hypercall::Mca, EPERM),
        (Hypercall::XsmOp, ENOSYS),
        (Hypercall::XenoprofOp, ENOSYS),
        (Hypercall::TmemOp, ENOSYS),
        (Hypercall::ArgoOp, ENOSYS),
        (Hypercall::XenpmuOp, -95),
    ];
    both_ways(|p| {
        for (call, result) in refused {
            let argument = p.words(&[0; 16]);
            p.call_gives(call.name(), call, &[argument, argument, 1], result)?;
        }
        Ok(())
    });
}

#[test]
fn numbers_that_are_no_hypercalls_do_not_exist() {
    // Slots of the page that stand for nothing, and numbers beyond it.
    let unused: Vec<u32> = (0..128)
        .filter(|&number| Hypercall::from_number(number).is_none())
        .chain([128, 1000, u32::MAX])
        .collect();
    assert!(unused.contains(&11) && unused.contains(&127));
    let outcome = Program::assemble(&Setup::default(), |p| {
        for number in &unused {
            let what = format!("number {number}");
            p.a.mov(eax, *number)?;
            p.a.syscall()?;
            p.check(&what, ENOSYS.cast_unsigned())?;
            if *number < 128 {
                p.a.call(p.layout.hypercall_page() + u64::from(*number) * 32)?;
                p.check(&what, ENOSYS.cast_unsigned())?;
            }
        }
        // All of RAX is the number.
        p.a.mov(rax, 1_u64 << 32 | 17)?;
        p.a.xor(edi, edi)?;
        p.a.syscall()?;
        p.check("17 in the low half only", ENOSYS.cast_unsigned())
    })
    .run();
    assert!(outcome.passed(), "{outcome}");
}

#[test]
fn the_page_keeps_the_registers_that_syscall_destroys() {
    let outcome = Program::assemble(&Setup::default(), |p| {
        p.a.mov(rcx, 0x1111_u64)?;
        p.a.mov(r11, 0x2222_u64)?;
        p.a.xor(edi, edi)?;
        p.a.xor(esi, esi)?;
        p.a.call(p.layout.hypercall_page() + 17 * 32)?;
        p.a.lea(rax, qword_ptr(rcx + r11))?;
        p.check("RCX and R11", 0x3333)?;
        // By itself it leaves RIP and RFLAGS in them.
        let mut after = p.a.create_label();
        p.a.xor(edi, edi)?;
        p.a.mov(eax, 17)?;
        p.a.syscall()?;
        p.a.set_label(&mut after)?;
        p.a.lea(rdx, qword_ptr(after))?;
        p.a.mov(rax, rcx)?;
        p.a.sub(rax, rdx)?;
        p.check("RCX is RIP", 0)?;
        p.a.mov(rbx, 0x1122_3344_5566_7788_u64)?;
        p.a.mov(r12, rbx)?;
        p.a.mov(r15, rbx)?;
        p.call(Hypercall::XenVersion, &[0, 0])?;
        p.a.mov(rax, rbx)?;
        p.a.xor(rax, r12)?;
        p.a.xor(rax, r15)?;
        p.check("the others are kept", 0x1122_3344_5566_7788)
    })
    .run();
    assert!(outcome.passed(), "{outcome}");
}

#[test]
fn xen_tells_about_itself() {
    for outcome in both_ways(|p| {
        p.call(Hypercall::XenVersion, &[0, 0])?;
        p.a.shr(rax, 16)?;
        p.check("the major version", 4)?;
        p.call_gives("pages", Hypercall::XenVersion, &[7, 0], 4096)?;
        p.call_gives("pages, with an argument", Hypercall::XenVersion, &[7, 1], EINVAL)?;
        let features = p.words(&[0]);
        p.call_gives("features", Hypercall::XenVersion, &[6, features], 0)?;
        p.load(features)?;
        p.a.shr(rax, 32)?;
        p.a.and(eax, 1 << 5 | 1 << 7)?;
        p.check("those that Linux cannot do without", 1 << 5 | 1 << 7)?;
        let more = p.words(&[7]);
        p.call_gives("a submap that is not there", Hypercall::XenVersion, &[6, more], EINVAL)?;
        let parameters = p.words(&[0]);
        p.call_gives("parameters", Hypercall::XenVersion, &[5, parameters], 0)?;
        p.check_word("where Xen begins", parameters, 0xffff_8000_0000_0000)?;
        let uuid = p.words(&[0, 0]);
        p.call_gives("the UUID", Hypercall::XenVersion, &[8, uuid], 0)?;
        let capabilities = p.pages(1);
        p.call_gives("capabilities", Hypercall::XenVersion, &[3, capabilities], 0)?;
        p.call(Hypercall::ConsoleIo, &[0, 14, capabilities])?;
        for op in [1, 2, 3, 4, 5, 6, 8, 9] {
            p.call_gives(&format!("{op} to nowhere"), Hypercall::XenVersion, &[op, UNMAPPED], EFAULT)?;
            p.call_gives(&format!("{op} to Xen"), Hypercall::XenVersion, &[op, XENS], EFAULT)?;
        }
        p.call_gives("no such thing", Hypercall::XenVersion, &[99, 0], ENOSYS)
    }) {
        assert_eq!(outcome.console, "xen-3.0-x86_64");
    }
}

#[test]
fn the_console_takes_what_is_written() {
    for outcome in both_ways(|p| {
        let text = p.data(&[b'x'; 10000]);
        p.call_gives("much", Hypercall::ConsoleIo, &[0, 10000, text], 0)?;
        p.call_gives("nothing", Hypercall::ConsoleIo, &[0, 0, UNMAPPED], 0)?;
        p.call_gives("from nowhere", Hypercall::ConsoleIo, &[0, 5, UNMAPPED], EFAULT)?;
        p.call_gives("no such command", Hypercall::ConsoleIo, &[2, 0, 0], ENOSYS)?;
        p.call_gives("nothing was typed", Hypercall::ConsoleIo, &[1, 10, text], 0)
    }) {
        assert_eq!(outcome.console, "x".repeat(10000));
    }
}

#[test]
fn callbacks_are_registered_and_not_taken_back() {
    both_ways(|p| {
        for kind in [0, 1, 2, 4, 5, 7] {
            let at = p.entry_point(Entry::Event);
            let request = p.words(&[kind, at]);
            p.call_gives(&format!("kind {kind}"), Hypercall::CallbackOp, &[0, request], 0)?;
            let result = if kind == 4 { 0 } else { EINVAL };
            p.call_gives(&format!("kind {kind} back"), Hypercall::CallbackOp, &[1, request], result)?;
            p.store(request + 8, 1 << 63)?;
            p.call_gives(&format!("kind {kind}, nowhere"), Hypercall::CallbackOp, &[0, request], EINVAL)?;
        }
        for kind in [3, 6, 8, 0xffff] {
            let request = p.words(&[kind, 0]);
            p.call_gives(&format!("kind {kind}"), Hypercall::CallbackOp, &[0, request], ENOSYS)?;
            p.call_gives(&format!("kind {kind} back"), Hypercall::CallbackOp, &[1, request], ENOSYS)?;
        }
        p.call_gives("no structure", Hypercall::CallbackOp, &[0, UNMAPPED], EFAULT)?;
        p.call_gives("no such command", Hypercall::CallbackOp, &[2, UNMAPPED], ENOSYS)?;
        p.call_gives("an NMI's handler", Hypercall::NmiOp, &[0, UNMAPPED], EFAULT)?;
        p.call_gives("is taken back", Hypercall::NmiOp, &[1, 0], 0)?;
        p.call_gives("no such command", Hypercall::NmiOp, &[2, 0], ENOSYS)
    });
}

#[test]
fn assists_are_turned_on_and_off() {
    both_ways(|p| {
        for kind in [0, 1, 2, 3, 4, 5, 32] {
            p.call_gives(&format!("{kind} on"), Hypercall::VmAssist, &[0, kind], 0)?;
            p.call_gives(&format!("{kind} off"), Hypercall::VmAssist, &[1, kind], 0)?;
        }
        for kind in [6, 31, 33, 64, 0xffff_ffff] {
            p.call_gives(&format!("{kind}"), Hypercall::VmAssist, &[0, kind], EINVAL)?;
        }
        p.call_gives("the type is looked at first", Hypercall::VmAssist, &[2, 33], EINVAL)?;
        p.call_gives("then the command", Hypercall::VmAssist, &[2, 0], ENOSYS)
    });
}

#[test]
fn debug_registers_hold_what_a_guest_may_have_there() {
    both_ways(|p| {
        for register in 0..4 {
            let what = format!("DR{register}");
            p.call_gives(&what, Hypercall::SetDebugreg, &[register, 0x1000 * register], 0)?;
            p.call_gives(&what, Hypercall::GetDebugreg, &[register], 0x1000 * register.cast_signed())?;
            p.call_gives("in Xen", Hypercall::SetDebugreg, &[register, XENS], EPERM)?;
        }
        p.call_gives("DR6", Hypercall::GetDebugreg, &[6], 0xffff_0ff0)?;
        p.call_gives("DR7", Hypercall::GetDebugreg, &[7], 0x400)?;
        p.call_gives("DR4 is DR6", Hypercall::GetDebugreg, &[4], 0xffff_0ff0)?;
        p.call_gives("general detect", Hypercall::SetDebugreg, &[7, 1 << 13], EPERM)?;
        p.call_gives("an I/O breakpoint", Hypercall::SetDebugreg, &[7, 1 | 2 << 16], EPERM)?;
        p.call_gives("beyond 32 bits", Hypercall::SetDebugreg, &[7, 1 << 32], EINVAL)?;
        p.call_gives("DR8", Hypercall::SetDebugreg, &[8, 0], ENODEV)?;
        p.call_gives("DR8", Hypercall::GetDebugreg, &[8], ENODEV)?;
        // The same by MOV.
        p.a.mov(rax, 0x5555_u64)?;
        p.a.mov(dr0, rax)?;
        p.a.xor(eax, eax)?;
        p.a.mov(rax, dr0)?;
        p.check("MOV to and from DR0", 0x5555)
    });
}

#[test]
fn memory_is_asked_about_given_back_and_taken() {
    both_ways(|p| {
        const SELF: u64 = 0x7ff0;
        let pages = p.layout.plan.pages.cast_signed();
        let domain = p.words(&[SELF]);
        p.call_gives("what it has", Hypercall::MemoryOp, &[3, domain], pages)?;
        p.call_gives("what it may have", Hypercall::MemoryOp, &[4, domain], pages)?;
        let other = p.words(&[5]);
        p.call_gives("what another has", Hypercall::MemoryOp, &[3, other], -3)?;
        p.call_gives("no domain", Hypercall::MemoryOp, &[3, UNMAPPED], EFAULT)?;
        let mapping = p.words(&[0, 0, 0]);
        p.call_gives("where the M2P is", Hypercall::MemoryOp, &[12, mapping], 0)?;
        p.check_word("its start", mapping, 0xffff_8000_0000_0000)?;
        p.check_word("its end", mapping + 8, 0xffff_8040_0000_0000)?;
        // The memory map: one range.
        let buffer = p.words(&[0; 8]);
        let map = p.words(&[4, buffer]);
        p.call_gives("the map", Hypercall::MemoryOp, &[9, map], 0)?;
        p.check_word("one entry", map, 1)?;
        p.check_word("from 0", buffer, 0)?;
        p.check_word("to the end", buffer + 8, p.layout.plan.pages * 4096)?;
        // A page that is no longer mapped is given back and another taken.
        let page = p.layout.free_page(0);
        let frame = p.layout.mfn(page).0;
        p.call_gives("unmapped", Hypercall::UpdateVaMapping, &[page, 0, 2], 0)?;
        let list = p.words(&[frame]);
        let reservation = p.words(&[list, 1, 0, SELF]);
        p.call_gives("given back", Hypercall::MemoryOp, &[1, reservation], 1)?;
        p.check_word("its M2P entry is invalid", 0xffff_8000_0000_0000 + frame * 8, u64::MAX)?;
        p.call_gives("not twice", Hypercall::MemoryOp, &[1, reservation], 0)?;
        p.call_gives("one fewer", Hypercall::MemoryOp, &[3, domain], pages - 1)?;
        let pfn = (page - p.layout.base) / 4096;
        p.store(list, pfn)?;
        p.call_gives("taken", Hypercall::MemoryOp, &[6, reservation], 1)?;
        p.load(list)?;
        p.a.mov(rcx, 0xffff_8000_0000_0000_u64)?;
        p.a.mov(rax, qword_ptr(rcx + rax * 8))?;
        p.check("the M2P names the page", pfn)?;
        p.call_gives("as many as before", Hypercall::MemoryOp, &[3, domain], pages)?;
        p.call_gives("no more than it may have", Hypercall::MemoryOp, &[0, reservation], 0)?;
        p.call_gives("problems are short counts", Hypercall::MemoryOp, &[1, UNMAPPED], 0)?;
        p.call_gives("for domains with a map", Hypercall::MemoryOp, &[7, domain], EACCES)?;
        p.call_gives("no such operation", Hypercall::MemoryOp, &[60, 0], ENOSYS)
    });
}

#[test]
fn io_privilege_is_virtual() {
    for outcome in both_ways(|p| {
        let iopl = p.words(&[4]);
        p.call_gives("no such level", Hypercall::PhysdevOp, &[6, iopl], EINVAL)?;
        p.catch(|p| p.a.in_(al, 0x80))?;
        p.store(iopl, 1)?;
        p.call_gives("the kernel's own", Hypercall::PhysdevOp, &[6, iopl], 0)?;
        p.a.in_(al, 0x80)?;
        p.a.movzx(eax, al)?;
        p.check("nothing is at that port", 0xff)?;
        p.a.out(0x80, al)?;
        // CLI and STI do nothing then.
        p.a.cli()?;
        p.a.sti()?;
        let bitmap = p.words(&[UNMAPPED, 65537]);
        p.call_gives("too many ports", Hypercall::PhysdevOp, &[7, bitmap], EINVAL)?;
        p.call_gives("no such operation", Hypercall::PhysdevOp, &[99, iopl], ENOSYS)?;
        // The old form: command, then the structure at 8.
        let old = p.words(&[6, 0]);
        p.call_gives("back to none", Hypercall::PhysdevOpCompat, &[old], 0)?;
        p.catch(|p| p.a.cli())?;
        let page = p.pages(1);
        let gmfn = p.words(&[p.layout.mfn(page).0]);
        p.call_gives("a page for ends of interrupts", Hypercall::PhysdevOp, &[28, gmfn], 0)?;
        p.call_gives("only one", Hypercall::PhysdevOp, &[28, gmfn], EBUSY)
    }) {
        let traps = outcome.traps();
        assert_eq!(traps.len(), 2, "{outcome}");
        assert!(traps.iter().all(|trap| trap.entry == Entry::Vector(13)), "{outcome}");
    }
}

#[test]
fn a_multicall_makes_each_call_and_stores_its_result() {
    let outcomes = both_ways(|p| {
        let entry = |call: Hypercall, args: [u64; 2]| [call.number().into(), 0, args[0], args[1], 0, 0, 0, 0];
        let text = p.data(b"printed");
        let mut print = entry(Hypercall::ConsoleIo, [0, 7]);
        print[4] = text;
        let mut unknown = entry(Hypercall::XenVersion, [0, 0]);
        unknown[0] = 11;
        let list = [
            entry(Hypercall::XenVersion, [7, 0]),
            unknown,
            entry(Hypercall::FpuTaskswitch, [0, 0]),
            entry(Hypercall::GetDebugreg, [7, 0]),
            print,
        ];
        let list = p.words(&list.concat());
        p.call_gives("all of them", Hypercall::Multicall, &[list, 5], 0)?;
        for (index, result) in [4096, ENOSYS, 0, 0x400, 0].into_iter().enumerate() {
            p.check_word(&format!("result {index}"), list + index as u64 * 64 + 8, result.cast_unsigned())?;
        }
        Ok(())
    });
    for outcome in outcomes {
        assert_eq!(outcome.console, "printed");
    }
}

#[test]
fn control_registers_are_read_and_written_as_far_as_a_guest_may() {
    let outcome = Program::assemble(&Setup::default(), |p| {
        p.a.mov(rax, cr3)?;
        p.check("CR3 is the root's machine address", p.layout.maddr(p.layout.table(4)).0)?;
        p.a.mov(rax, cr0)?;
        p.a.and(eax, 8)?;
        p.check("TS is clear", 0)?;
        p.call(Hypercall::FpuTaskswitch, &[1])?;
        p.a.mov(rax, cr0)?;
        p.a.and(eax, 8)?;
        p.check("TS is set", 8)?;
        p.a.clts()?;
        p.a.mov(rax, cr0)?;
        p.a.and(eax, 8)?;
        p.check("CLTS clears it", 0)?;
        p.a.mov(rax, cr0)?;
        p.a.or(eax, 8)?;
        p.a.mov(cr0, rax)?;
        p.catch(|p| p.a.fld1())?;
        p.catch(|p| {
            p.a.mov(rax, cr0)?;
            p.a.xor(eax, 1 << 16)?;
            p.a.mov(cr0, rax)
        })?;
        p.a.mov(rax, 0x1234_u64)?;
        p.a.mov(cr2, rax)?;
        p.check_word("CR2 is in vcpu_info", p.layout.shared_info() + 16, 0x1234)?;
        p.a.mov(rax, cr4)?;
        p.a.or(eax, 4)?;
        p.a.mov(cr4, rax)?;
        p.a.rdtsc()?;
        p.a.test(eax, eax)?;
        p.a.setne(al)?;
        p.a.movzx(eax, al)?;
        p.check("RDTSC answers with CR4.TSD set", 1)
    })
    .run();
    assert!(outcome.passed(), "{outcome}");
    let entries: Vec<_> = outcome.traps().iter().map(|trap| trap.entry).collect();
    assert_eq!(entries, [Entry::Vector(7), Entry::Vector(13)], "{outcome}");
}

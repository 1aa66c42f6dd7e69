//! What the engine promises beside right results: precise faults, self-modifying code, steps, modes.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up fails")]

use crate::native::{CODE, Cpu, DATA, Machine, STACK_TOP, machine, map_page};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use paravane_abi::units::{GuestVirt, MachAddr, Mfn, PAGE_SIZE};
use paravane_engine::{
    Engine as _, Exception, Exit, Gpr, GuestMode, Interrupt, PageFault, Privileged, PrivilegedOp, ShadowStep,
    SyscallKind, TlbFlush, Width, rflags,
};
use paravane_memory::paging::FaultCode;

/// A page that no table maps.
pub(crate) const UNMAPPED: u64 = DATA + 8 * PAGE_SIZE;

pub(crate) fn assemble(write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(64).unwrap();
    write(&mut assembler).unwrap();
    assembler.assemble(CODE).unwrap()
}

/// Loads code and a plain state, ready to run.
pub(crate) fn prepare(machine: &mut Machine, code: &[u8]) {
    machine.memory.write(machine.machine_address(CODE), code).unwrap();
    machine.load(&Cpu::plain(CODE));
    let context = machine.engine.context_mut();
    context.set_gpr(Gpr::Rsp, STACK_TOP);
    context.set_gpr(Gpr::Rbx, DATA);
    context.mode = GuestMode::Kernel;
    context.user_root = None;
    context.task_switched = false;
}

pub(crate) fn run(code: Vec<u8>) -> (Exit, paravane_engine::VcpuContext) {
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    prepare(machine, &code);
    let exit = machine.engine.run();
    (exit, machine.engine.context().clone())
}

pub(crate) fn page_fault(address: u64, code: u32) -> Exit {
    Exit::PageFault(PageFault { address, code: FaultCode(code) })
}

pub(crate) const HLT: Exit = Exit::Privileged(Privileged { length: 1, op: PrivilegedOp::Hlt });

#[expect(clippy::too_many_lines, reason = "a table")]
#[test]
fn faults_name_the_instruction_the_address_and_the_access() {
    let protection = Exit::Exception(Exception { vector: 13, error_code: Some(0) });
    let stack = Exit::Exception(Exception { vector: 12, error_code: Some(0) });
    let cases: Vec<(&str, Vec<u8>, Exit, u64)> = vec![
        (
            "read",
            assemble(|a| {
                a.mov(rax, UNMAPPED + 4)?;
                a.mov(ecx, dword_ptr(rax))
            }),
            page_fault(UNMAPPED + 4, 4),
            10,
        ),
        (
            "write",
            assemble(|a| {
                a.mov(rax, UNMAPPED)?;
                a.mov(qword_ptr(rax + 8), rcx)
            }),
            page_fault(UNMAPPED + 8, 6),
            10,
        ),
        (
            "update",
            assemble(|a| {
                a.mov(rax, UNMAPPED)?;
                a.add(byte_ptr(rax), 1)
            }),
            page_fault(UNMAPPED, 6),
            10,
        ),
        (
            "crossing",
            assemble(|a| {
                a.mov(rax, UNMAPPED - 4)?;
                a.mov(rcx, qword_ptr(rax))
            }),
            page_fault(UNMAPPED, 4),
            10,
        ),
        (
            "fetch",
            assemble(|a| {
                a.mov(rax, UNMAPPED)?;
                a.jmp(rax)
            }),
            page_fault(UNMAPPED, 0x14),
            UNMAPPED - CODE,
        ),
        (
            "push",
            assemble(|a| {
                a.mov(rsp, UNMAPPED + 8)?;
                a.push(rax)
            }),
            page_fault(UNMAPPED, 6),
            10,
        ),
        (
            "second of two reads that one check covers",
            assemble(|a| {
                a.mov(rax, UNMAPPED - 8)?;
                a.mov(rcx, qword_ptr(rax))?;
                a.mov(rdx, qword_ptr(rax + 8))
            }),
            page_fault(UNMAPPED, 4),
            13,
        ),
        (
            "second of two writes that one check covers",
            assemble(|a| {
                a.mov(rax, UNMAPPED - 8)?;
                a.mov(dword_ptr(rax + 4), ecx)?;
                a.mov(qword_ptr(rax + 12), rdx)
            }),
            page_fault(UNMAPPED + 4, 6),
            13,
        ),
        (
            "first of two",
            assemble(|a| {
                a.mov(rax, UNMAPPED + 8)?;
                a.mov(rcx, qword_ptr(rax + 16))?;
                a.mov(rdx, qword_ptr(rax - 8))
            }),
            page_fault(UNMAPPED + 24, 4),
            10,
        ),
        (
            "second push",
            assemble(|a| {
                a.mov(rsp, DATA + 8)?;
                a.push(rcx)?;
                a.push(rdx)
            }),
            page_fault(DATA - 8, 6),
            11,
        ),
        (
            "hole",
            assemble(|a| {
                a.mov(rax, 1_u64 << 47)?;
                a.mov(rcx, qword_ptr(rax))
            }),
            protection,
            10,
        ),
        (
            "hole by rsp",
            assemble(|a| {
                a.mov(rsp, 1_u64 << 47)?;
                a.pop(rcx)
            }),
            stack,
            10,
        ),
        ("misaligned", assemble(|a| a.movaps(xmm0, xmmword_ptr(rbx + 8))), protection, 0),
        (
            "divide",
            assemble(|a| {
                a.xor(ecx, ecx)?;
                a.div(ecx)
            }),
            Exit::Exception(Exception { vector: 0, error_code: None }),
            2,
        ),
        ("undefined", assemble(|a| a.ud2()), Exit::Exception(Exception { vector: 6, error_code: None }), 0),
    ];
    for (name, code, exit, offset) in cases {
        let (found, context) = run(code);
        assert_eq!(found, exit, "{name}");
        assert_eq!(context.rip, CODE + offset, "{name}");
        match name {
            "push" => assert_eq!(context.gpr(Gpr::Rsp), UNMAPPED + 8),
            "second push" => assert_eq!(context.gpr(Gpr::Rsp), DATA),
            _ => {}
        }
    }
}

#[test]
fn a_fault_finds_registers_as_they_were_before_the_instruction() {
    let (exit, context) = run(assemble(|a| {
        a.mov(r14, 0x1111_u64)?;
        a.mov(r15, 0x2222_u64)?;
        a.mov(rax, UNMAPPED)?;
        a.xadd(qword_ptr(rax), r14)
    }));
    assert_eq!(exit, page_fault(UNMAPPED, 6));
    assert_eq!((context.gpr(Gpr::R14), context.gpr(Gpr::R15)), (0x1111, 0x2222));
}

#[test]
fn system_calls_and_interrupts_leave_as_the_hardware_does() {
    let (exit, context) = run(assemble(|a| {
        a.stc()?;
        a.syscall()
    }));
    assert_eq!((exit, context.rip), (Exit::Hypercall, CODE + 3));
    assert_eq!((context.gpr(Gpr::Rcx), context.gpr(Gpr::R11)), (CODE + 3, 0x203));
    let (exit, context) = run(assemble(|a| a.int(0x80)));
    assert_eq!(exit, Exit::SoftwareInterrupt(Interrupt { vector: 0x80, next_rip: CODE + 2 }));
    assert_eq!(context.rip, CODE);
    let (exit, _) = run(assemble(|a| a.int3()));
    assert_eq!(exit, Exit::SoftwareInterrupt(Interrupt { vector: 3, next_rip: CODE + 1 }));
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    prepare(machine, &assemble(|a| a.syscall()));
    let context = machine.engine.context_mut();
    context.user_root = Some(context.kernel_root);
    context.toggle_mode();
    assert_eq!(machine.engine.run(), Exit::GuestSyscall(SyscallKind::Syscall));
}

#[test]
fn privileged_instructions_come_with_their_operands() {
    let cases: Vec<(Vec<u8>, u8, PrivilegedOp)> = vec![
        (assemble(|a| a.cpuid()), 2, PrivilegedOp::Cpuid { forced: false }),
        (vec![0x0f, 0x0b, 0x78, 0x65, 0x6e, 0x0f, 0xa2], 7, PrivilegedOp::Cpuid { forced: true }),
        (assemble(|a| a.rdmsr()), 2, PrivilegedOp::Rdmsr),
        (assemble(|a| a.out(0x80, al)), 2, PrivilegedOp::Out { port: 0x80, width: Width::Byte, value: 0 }),
        (assemble(|a| a.in_(eax, dx)), 1, PrivilegedOp::In { port: 0, width: Width::Dword }),
        (
            assemble(|a| a.mov(r15, cr3)),
            4,
            PrivilegedOp::ReadControl { from: paravane_engine::ControlRegister::Cr3, to: Gpr::R15 },
        ),
        (assemble(|a| a.mov(dr7, rbx)), 3, PrivilegedOp::WriteDebug { to: 7, value: DATA }),
        (assemble(|a| a.invlpg(byte_ptr(rbx + 16))), 4, PrivilegedOp::Invlpg(DATA + 16)),
        (assemble(|a| a.cli()), 1, PrivilegedOp::Cli),
    ];
    for (code, length, op) in cases {
        let (exit, context) = run(code);
        assert_eq!(exit, Exit::Privileged(Privileged { length, op }));
        assert_eq!(context.rip, CODE);
    }
}

#[test]
fn code_that_changes_itself_runs_as_changed() {
    // mov byte [rip + 1], 7 changes the immediate of the instruction that follows at once.
    let mut code = vec![0xc6, 0x05, 1, 0, 0, 0, 7, 0xb8, 0, 0, 0, 0, 0xf4];
    let (exit, context) = run(code.clone());
    assert_eq!((exit, context.gpr(Gpr::Rax)), (HLT, 7));
    // Twice round, the second time with another value: inc byte [rip - ...] of an executed loop body.
    // loop: mov al, 1 (patched); add ecx, eax; inc byte [loop + 1]; dec edx; jnz loop; hlt
    code = vec![0xb0, 1, 0x01, 0xc1, 0xfe, 0x05, 0xf7, 0xff, 0xff, 0xff, 0xff, 0xca, 0x75, 0xf2, 0xf4];
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    prepare(machine, &code);
    machine.engine.context_mut().set_gpr(Gpr::Rdx, 5);
    assert_eq!(machine.engine.run(), HLT);
    assert_eq!(machine.engine.context().gpr(Gpr::Rcx), 1 + 2 + 3 + 4 + 5);
    // Somebody else (a hypercall, a backend) overwrites code that was translated.
    prepare(machine, &[0xb8, 1, 0, 0, 0, 0xf4]);
    assert_eq!(machine.engine.run(), HLT);
    machine.memory.write(MachAddr(machine.machine_address(CODE).0 + 1), &[9]).unwrap();
    machine.engine.context_mut().rip = CODE;
    assert_eq!(machine.engine.run(), HLT);
    assert_eq!(machine.engine.context().gpr(Gpr::Rax), 9);
}

#[test]
fn an_instruction_across_two_code_pages_runs_and_faults_at_the_second() {
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    prepare(machine, &[]);
    let start = CODE + PAGE_SIZE - 3;
    // mov eax, 0x11223344 across the boundary, in a loop of two.
    let code = [0xb8, 0x44, 0x33, 0x22, 0x11, 0x01, 0xc3, 0xff, 0xca, 0x75, 0xf5, 0xf4];
    machine.memory.write(machine.machine_address(start), &code).unwrap();
    let context = machine.engine.context_mut();
    context.rip = start;
    context.set_gpr(Gpr::Rdx, 3);
    context.set_gpr(Gpr::Rbx, 0);
    assert_eq!(machine.engine.run(), HLT);
    assert_eq!(machine.engine.context().gpr(Gpr::Rbx), 3 * 0x1122_3344);
    // Again, with nothing known of the second page.
    machine.engine.flush_tlb(TlbFlush::All);
    let context = machine.engine.context_mut();
    context.rip = start;
    context.set_gpr(Gpr::Rdx, 2);
    assert_eq!(machine.engine.run(), HLT);
    assert_eq!(machine.engine.context().gpr(Gpr::Rbx), 5 * 0x1122_3344);
    let end = CODE + 2 * PAGE_SIZE;
    machine.memory.write(machine.machine_address(end - 2), &code[..2]).unwrap();
    machine.engine.context_mut().rip = end - 2;
    assert_eq!(machine.engine.run(), page_fault(end, 0x14));
    assert_eq!(machine.engine.context().rip, end - 2);
}

#[test]
fn single_steps_stop_after_each_instruction() {
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    prepare(
        machine,
        &assemble(|a| {
            a.mov(eax, 5)?;
            a.push(rax)?;
            a.pop(r15)?;
            a.jmp(rbx)?;
            a.hlt()
        }),
    );
    let ends: Vec<u64> = (0..4)
        .map(|_| {
            assert_eq!(machine.engine.step(), None);
            machine.engine.context().rip
        })
        .collect();
    assert_eq!(ends, [CODE + 5, CODE + 6, CODE + 8, DATA]);
    assert_eq!(machine.engine.context().gpr(Gpr::R15), 5);
    let context = machine.engine.context_mut();
    context.rip = CODE;
    context.rflags |= rflags::TF;
    assert_eq!(machine.engine.run(), Exit::Exception(Exception { vector: 1, error_code: None }));
    assert_eq!(machine.engine.context().rip, CODE + 5);
    machine.engine.context_mut().rflags &= !rflags::TF;
}

#[test]
fn a_shadow_page_takes_the_write_and_the_guest_page_stays() {
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    prepare(
        machine,
        &assemble(|a| {
            a.mov(eax, 7)?;
            a.lock().xadd(qword_ptr(rbx + 16), rax)?;
            a.hlt()
        }),
    );
    machine.memory.store_u64(machine.machine_address(DATA + 16), 100).unwrap();
    assert_eq!(machine.engine.step(), None);
    let mut copy = [0; 4096];
    copy[16] = 35;
    assert_eq!(machine.engine.step_with_shadow_page(GuestVirt(DATA), &mut copy), ShadowStep::Completed);
    assert_eq!((copy[16], machine.engine.context().gpr(Gpr::Rax)), (42, 35));
    assert_eq!(machine.memory.load_u64(machine.machine_address(DATA + 16)).unwrap(), 100);
    assert_eq!(machine.engine.run(), HLT);
}

#[test]
fn a_write_to_a_read_only_page_faults_until_it_is_writable_and_flushed() {
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    prepare(
        machine,
        &assemble(|a| {
            a.mov(qword_ptr(rbx), rax)?;
            a.hlt()
        }),
    );
    let root = machine.engine.context().kernel_root;
    let frame = machine.machine_address(DATA).frame();
    let mut next = 200;
    map_page(&machine.memory, root, DATA, frame, 5, &mut next);
    machine.engine.flush_tlb(TlbFlush::Page(GuestVirt(DATA)));
    assert_eq!(machine.engine.run(), page_fault(DATA, 7));
    map_page(&machine.memory, root, DATA, frame, 7, &mut next);
    machine.engine.flush_tlb(TlbFlush::All);
    assert_eq!(machine.engine.run(), HLT);
}

#[test]
fn the_same_address_in_another_address_space_is_other_code() {
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    // Kernel code calls CODE + PAGE_SIZE, which differs between two roots.
    prepare(
        machine,
        &assemble(|a| {
            a.call(CODE + PAGE_SIZE)?;
            a.call(CODE + PAGE_SIZE)?;
            a.hlt()
        }),
    );
    machine.memory.write(machine.machine_address(CODE + PAGE_SIZE), &[0xff, 0xc0, 0xc3]).unwrap();
    let first = machine.engine.context().kernel_root;
    let other = Mfn(first.0 + 100);
    let mut next = 64 + 101;
    let twin = Mfn(first.0 + 99);
    machine.memory.write(twin.base().unwrap(), &[0x83, 0xc0, 16, 0xc3]).unwrap();
    for (address, frame) in [
        (CODE, machine.machine_address(CODE).frame()),
        (CODE + PAGE_SIZE, twin),
        (STACK_TOP & !4095, machine.machine_address(STACK_TOP & !4095).frame()),
        (DATA, machine.machine_address(DATA).frame()),
    ] {
        map_page(&machine.memory, other, address, frame, 7, &mut next);
    }
    for (root, sum) in [(first, 2), (other, 32), (first, 2), (other, 32)] {
        let context = machine.engine.context_mut();
        context.kernel_root = root;
        context.rip = CODE;
        context.set_gpr(Gpr::Rax, 0);
        assert_eq!(machine.engine.run(), HLT);
        assert_eq!(machine.engine.context().gpr(Gpr::Rax), sum);
    }
}

#[test]
fn code_that_was_translated_for_another_task_switched_flag_is_not_run() {
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    // Calls CODE + PAGE_SIZE, where an x87 instruction is: another page, so reached by a linked jump.
    prepare(
        machine,
        &assemble(|a| {
            a.call(CODE + PAGE_SIZE)?;
            a.hlt()
        }),
    );
    machine.memory.write(machine.machine_address(CODE + PAGE_SIZE), &[0xd9, 0xd0, 0xc3]).unwrap();
    let no_device = Exit::Exception(Exception { vector: 7, error_code: None });
    for (task_switched, exit, rip) in [
        (false, HLT, CODE + 5),
        (true, no_device, CODE + PAGE_SIZE),
        (false, HLT, CODE + 5),
        (true, no_device, CODE + PAGE_SIZE),
    ] {
        let context = machine.engine.context_mut();
        context.rip = CODE;
        context.set_gpr(Gpr::Rsp, STACK_TOP);
        context.task_switched = task_switched;
        assert_eq!(machine.engine.run(), exit);
        assert_eq!(machine.engine.context().rip, rip);
    }
}

#[test]
fn recursion_and_computed_jumps_work() {
    let code = assemble(|a| {
        let mut fib = a.create_label();
        let mut small = a.create_label();
        let mut done = a.create_label();
        a.mov(edi, 15)?;
        a.lea(r14, ptr(fib))?;
        a.call(r14)?;
        a.jmp(done)?;
        a.set_label(&mut fib)?;
        a.cmp(edi, 2)?;
        a.jb(small)?;
        a.push(rdi)?;
        a.sub(edi, 1)?;
        a.call(fib)?;
        a.mov(rdi, qword_ptr(rsp))?;
        a.push(rax)?;
        a.sub(edi, 2)?;
        a.call(qword_ptr(rbx))?;
        a.pop(rcx)?;
        a.add(rax, rcx)?;
        a.pop(rdi)?;
        a.ret()?;
        a.set_label(&mut small)?;
        a.mov(eax, edi)?;
        a.ret()?;
        a.set_label(&mut done)?;
        a.hlt()
    });
    let fib = CODE + 5 + 7 + 3 + 2;
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    prepare(machine, &code);
    machine.memory.store_u64(machine.machine_address(DATA), fib).unwrap();
    assert_eq!(machine.engine.run(), HLT);
    assert_eq!(machine.engine.context().gpr(Gpr::Rax), 610);
    assert_eq!(machine.engine.context().gpr(Gpr::Rsp), STACK_TOP);
}

#[test]
fn carry_survives_a_return() {
    // call f; adc eax, 0; hlt; f: stc; ret
    let code = assemble(|a| {
        let mut f = a.create_label();
        a.xor(eax, eax)?;
        a.call(f)?;
        a.adc(eax, 0)?;
        a.hlt()?;
        a.set_label(&mut f)?;
        a.stc()?;
        a.ret()
    });
    let (exit, context) = run(code);
    assert_eq!((exit, context.gpr(Gpr::Rax)), (HLT, 1));
}

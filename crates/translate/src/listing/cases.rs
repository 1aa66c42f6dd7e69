//! The sequences that are listed, a snapshot for each treatment.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use paravane_abi::units::PAGE_SIZE;
use paravane_engine::{Control4, Segment, SegmentRegister, VcpuContext, rflags};

use super::{CODE, Case};
use crate::block::Need;

type Write = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Ends every sequence; it is not shown.
const HLT: u8 = 0xf4;

fn nothing(_context: &mut VcpuContext) {}

/// 64-bit code from the start of its page.
fn plain(name: &'static str, write: Write) -> Case {
    Case {
        name,
        code: assembled(64, write),
        offset: 0,
        need: Need::Body,
        bits: 64,
        setup: nothing,
        single: false,
    }
}

fn assembled(bits: u32, write: Write) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(bits).expect("a size of code");
    write(&mut assembler).expect("an instruction that exists");
    let mut code = assembler.assemble(CODE).expect("code");
    code.push(HLT);
    code
}

fn shown(name: &str, cases: &[Case]) {
    let text: Vec<String> = cases.iter().map(Case::text).collect();
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false, snapshot_path => "snapshots" }, {
        insta::assert_snapshot!(name, text.join("\n"));
    });
}

#[test]
fn instructions_without_memory() {
    shown(
        "plain",
        &[
            plain("copied", |a| {
                a.add(rax, rcx)?;
                a.pxor(xmm1, xmm2)
            }),
            plain("with registers that the translation uses itself", |a| {
                a.mov(r14, rax)?;
                a.imul_2(r15d, r14d)?;
                a.xchg(r14, r15)?;
                a.setb(r15b)
            }),
            plain("without effect", |a| {
                a.prefetcht0(byte_ptr(rbx))?;
                a.nop()
            }),
            plain("addresses", |a| {
                a.lea(rax, ptr(rbx + rcx * 4 + 8))?;
                a.lea(r14, ptr(r15 + rcx * 4 + 8))?;
                // lea ecx, [rip + 0x100]
                a.db(&[0x8d, 0x0d, 0, 1, 0, 0])?;
                a.lea(r15w, ptr(rbx))
            }),
        ],
    );
}

#[test]
fn instructions_with_a_memory_operand() {
    shown(
        "memory",
        &[
            plain("a load", |a| a.mov(rax, qword_ptr(rbx + rcx * 8 + 16))),
            plain("a store", |a| a.mov(word_ptr(rbx), cx)),
            plain("an update", |a| a.lock().xadd(dword_ptr(rbx), ecx)),
            plain("registers that the translation uses itself", |a| a.xadd(qword_ptr(r14 + r15 * 2), r15)),
            plain("a high byte, which allows no other register's prefix", |a| a.mov(byte_ptr(rbx), ah)),
            plain("a constant address", |a| {
                a.mov(eax, dword_ptr(0x1234_5678_u64))?;
                // mov [rip + 0x100000], rcx
                a.db(&[0x48, 0x89, 0x0d, 0, 0, 0x10, 0])
            }),
            plain("a segment with a base", |a| a.mov(rax, qword_ptr(0x28).gs())),
            plain("a vector", |a| a.movaps(xmmword_ptr(rbx), xmm3)),
            plain("an x87 store, which may not happen", |a| a.fstp(qword_ptr(rbx))),
        ],
    );
}

#[test]
fn operands_whose_address_is_made_otherwise() {
    shown(
        "address",
        &[
            plain("a bit anywhere", |a| a.bts(dword_ptr(rbx), ecx)),
            plain("a table of bytes", |a| a.xlatb()),
            plain("an address of 32 bits", |a| a.mov(eax, dword_ptr(ebx + 8))),
        ],
    );
}

#[test]
fn accesses_that_share_a_check() {
    shown(
        "shared",
        &[
            plain("fields", |a| {
                a.mov(rax, qword_ptr(rbx + 8))?;
                a.mov(rcx, qword_ptr(rbx + 24))
            }),
            plain("fields with another address between", |a| {
                a.mov(qword_ptr(rbx), rax)?;
                a.mov(rcx, qword_ptr(rdi))?;
                a.mov(rdx, qword_ptr(rbx + 8))
            }),
            plain("a frame", |a| {
                a.push(rbp)?;
                a.push(rbx)?;
                a.sub(rsp, 24)?;
                a.mov(qword_ptr(rsp + 8), rdi)
            }),
        ],
    );
}

#[test]
fn status_flags() {
    shown(
        "flags",
        &[
            plain("live across an access", |a| {
                a.cmp(rax, rcx)?;
                a.mov(rdx, qword_ptr(rbx))?;
                a.setb(al)
            }),
            plain("dead at an access", |a| {
                a.cmp(rax, rcx)?;
                a.add(rdx, qword_ptr(rbx))
            }),
            plain("read by the access's own instruction", |a| {
                a.add(rax, rcx)?;
                a.adc(qword_ptr(rbx), 0)
            }),
        ],
    );
}

#[test]
fn stack_operations() {
    shown(
        "stack",
        &[
            plain("push", |a| a.push(rax)),
            plain("push of a register that the translation uses itself", |a| a.push(r14)),
            plain("push of a constant", |a| a.push(-5_i32)),
            plain("push from memory", |a| a.push(qword_ptr(rbx))),
            plain("pop", |a| a.pop(r12)),
            plain("pop of the stack pointer", |a| a.pop(rsp)),
            plain("pop to memory", |a| a.pop(qword_ptr(rsp + 8))),
            plain("leave", |a| a.leave()),
            plain("push of flags", |a| a.pushfq()),
        ],
    );
}

#[test]
fn control_flow() {
    shown(
        "flow",
        &[
            plain("jump in the page", |a| a.jmp(CODE + 0x100)),
            plain("jump back", |a| {
                a.nop()?;
                a.jmp(CODE)
            }),
            plain("jump to another page", |a| a.jmp(CODE + PAGE_SIZE)),
            plain("conditional, in the page", |a| a.je(CODE + 0x100)),
            plain("conditional, to another page", |a| a.ja(CODE + PAGE_SIZE)),
            plain("counted", |a| a.loop_(CODE + 0x40)),
            plain("call", |a| a.call(CODE + PAGE_SIZE)),
            plain("computed call", |a| a.call(qword_ptr(rbx + 8))),
            plain("computed jump", |a| a.jmp(r14)),
            plain("return", |a| a.ret_1(16)),
        ],
    );
}

#[test]
fn state_that_is_kept_in_memory() {
    shown(
        "state",
        &[
            plain("direction", |a| {
                a.std()?;
                a.cld()
            }),
            plain("a selector", |a| {
                a.mov(eax, fs)?;
                a.mov(r14w, gs)
            }),
            plain("time", |a| a.rdtsc()),
            Case {
                setup: |context| context.cr4.0 |= Control4::TSD,
                ..plain("time, for the hypervisor only", |a| a.rdtsc())
            },
        ],
    );
}

#[test]
fn moves_of_strings() {
    shown("moves", &[plain("one", |a| a.movsd()), plain("many", |a| a.rep().stosq())]);
}

#[test]
fn instructions_that_rust_performs() {
    shown(
        "helpers",
        &[
            plain("and goes on", |a| {
                a.add(rax, rcx)?;
                a.cmpsb()?;
                a.adc(rax, 0)
            }),
            Case { single: true, ..plain("and hands on", |a| a.cpuid()) },
        ],
    );
}

#[test]
fn the_ways_into_blocks() {
    let crossing = PAGE_SIZE - 3;
    let live: Write = |a| a.adc(rax, rcx);
    shown(
        "entries",
        &[
            Case { need: Need::Pad, ..plain("a pad, flags live", live) },
            Case { need: Need::Pad, ..plain("a pad, flags dead", |a| a.add(rax, rcx)) },
            Case { need: Need::Poll, ..plain("a poll, flags live", live) },
            Case { need: Need::Poll, ..plain("a poll, flags dead", |a| a.add(rax, rcx)) },
            Case {
                offset: crossing,
                ..plain("an instruction that crosses into the next page", |a| a.mov(eax, 5))
            },
        ],
    );
}

#[test]
fn conditions_that_code_is_translated_under() {
    let in_32_bits = |name, setup, write: Write| Case {
        code: assembled(32, write),
        bits: 32,
        setup,
        ..plain(name, |a| a.nop())
    };
    let based = |context: &mut VcpuContext| context.segment_mut(SegmentRegister::Ds).base = 0x1000;
    let strict = |context: &mut VcpuContext| *context.segment_mut(SegmentRegister::Es) = Segment::null(0);
    shown(
        "conditions",
        &[
            Case {
                setup: |context| context.rflags |= rflags::AC,
                ..plain("alignment checks", |a| a.mov(rax, qword_ptr(rbx)))
            },
            Case { single: true, ..plain("one instruction at a time", |a| a.je(CODE + 0x10)) },
            in_32_bits("32-bit code", nothing, |a| {
                a.mov(eax, dword_ptr(ebx + esi * 4))?;
                a.push(ecx)?;
                a.inc(edx)
            }),
            in_32_bits("32-bit code with a segment that has a base", based, |a| a.mov(eax, dword_ptr(ebx))),
            in_32_bits("32-bit code with a segment that restricts", strict, |a| {
                a.mov(dword_ptr(ebx).es(), eax)
            }),
        ],
    );
}

#[test]
fn the_ways_out_of_translated_code() {
    let case = plain("stubs", |a| a.nop());
    let text = super::stubs(&super::translator(&case));
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false, snapshot_path => "snapshots" }, {
        insta::assert_snapshot!("stubs", text);
    });
}

//! How much slower than native a few kernels run in the engine: `cargo bench -p paravane-translate`.
//!
//! Each kernel runs the same bytes on the CPU and in the engine, long enough that translation does not count.
#![expect(clippy::print_stdout, reason = "a benchmark reports")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot assemble its kernels has nothing to report")]

#[expect(dead_code, reason = "the tests' harness; a benchmark needs a part of it")]
#[path = "../tests/cpu/native/mod.rs"]
mod native;

use std::time::Instant;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use native::{CODE, Cpu, DATA, Machine, STACK_TOP, machine};

type Write = fn(&mut CodeAssembler) -> Result<(), IcedError>;

const KERNELS: [(&str, Write); 6] = [
    ("sum of an array", sum),
    ("hash with stores", hash),
    ("byte copy", byte_copy),
    ("recursion", recursion),
    ("computed jumps", computed_jumps),
    ("rep movsb of 4 KiB", string_move),
];

fn main() {
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    for (name, write) in KERNELS {
        let mut assembler = CodeAssembler::new(64).unwrap();
        write(&mut assembler).unwrap();
        let code = assembler.assemble(CODE).unwrap();
        let (native, translated) = (best(machine, &code, Side::Native), best(machine, &code, Side::Engine));
        println!("{:?}", machine.engine.stats());
        println!(
            "{name:20} native {native:7.1} ms, engine {translated:7.1} ms, ratio {:.2}",
            translated / native
        );
    }
    println!("{:?}", machine.engine.stats());
}

#[derive(Clone, Copy)]
enum Side {
    Native,
    Engine,
}

/// The best of three runs, in milliseconds.
fn best(machine: &mut Machine, code: &[u8], side: Side) -> f64 {
    let mut cpu = Cpu::plain(CODE);
    cpu.gprs[4] = STACK_TOP;
    cpu.gprs[3] = DATA;
    let data = vec![1; 32768];
    let stack = vec![0; 8192];
    (0..3)
        .map(|_| {
            let start = Instant::now();
            match side {
                Side::Native => drop(machine.native(code, &cpu, &data, &stack)),
                Side::Engine => drop(machine.translated(code, &cpu, &data, &stack)),
            }
            start.elapsed().as_secs_f64() * 1e3
        })
        .fold(f64::INFINITY, f64::min)
}

fn sum(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(edx, 50_000)?;
    let mut outer = a.create_label();
    let mut inner = a.create_label();
    a.set_label(&mut outer)?;
    a.xor(ecx, ecx)?;
    a.set_label(&mut inner)?;
    a.add(rax, qword_ptr(rbx + rcx * 8))?;
    a.inc(rcx)?;
    a.cmp(rcx, 4096)?;
    a.jne(inner)?;
    a.dec(edx)?;
    a.jne(outer)
}

fn hash(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(edx, 20_000)?;
    let mut outer = a.create_label();
    let mut inner = a.create_label();
    a.set_label(&mut outer)?;
    a.xor(ecx, ecx)?;
    a.set_label(&mut inner)?;
    a.movzx(esi, byte_ptr(rbx + rcx))?;
    a.imul_3(r14d, r14d, 31)?;
    a.add(r14d, esi)?;
    a.mov(edi, r14d)?;
    a.and(edi, 0xfff)?;
    a.add(dword_ptr(rbx + rdi * 4 + 0x2000), esi)?;
    a.inc(rcx)?;
    a.cmp(rcx, 4096)?;
    a.jne(inner)?;
    a.dec(edx)?;
    a.jne(outer)
}

fn byte_copy(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(edx, 20_000)?;
    let mut outer = a.create_label();
    let mut inner = a.create_label();
    a.set_label(&mut outer)?;
    a.mov(ecx, 4096)?;
    a.set_label(&mut inner)?;
    a.mov(al, byte_ptr(rbx + rcx))?;
    a.mov(byte_ptr(rbx + rcx + 0x4000), al)?;
    a.dec(rcx)?;
    a.jne(inner)?;
    a.dec(edx)?;
    a.jne(outer)
}

fn recursion(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut fib = a.create_label();
    let mut small = a.create_label();
    let mut done = a.create_label();
    a.mov(edi, 32)?;
    a.call(fib)?;
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
    a.call(fib)?;
    a.pop(rcx)?;
    a.add(rax, rcx)?;
    a.pop(rdi)?;
    a.ret()?;
    a.set_label(&mut small)?;
    a.mov(eax, edi)?;
    a.ret()?;
    a.set_label(&mut done)?;
    a.nop()
}

fn computed_jumps(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut one = a.create_label();
    let mut two = a.create_label();
    let mut done = a.create_label();
    a.lea(r8, ptr(one))?;
    a.lea(r9, ptr(two))?;
    a.mov(edx, 50_000_000)?;
    a.set_label(&mut one)?;
    a.add(rax, 1)?;
    a.dec(edx)?;
    a.je(done)?;
    a.jmp(r9)?;
    a.set_label(&mut two)?;
    a.add(rax, 2)?;
    a.jmp(r8)?;
    a.set_label(&mut done)?;
    a.nop()
}

fn string_move(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(edx, 1_000_000)?;
    let mut outer = a.create_label();
    a.set_label(&mut outer)?;
    a.mov(rsi, rbx)?;
    a.lea(rdi, ptr(rbx + 0x4000))?;
    a.mov(ecx, 4096)?;
    a.rep().movsb()?;
    a.dec(edx)?;
    a.jne(outer)
}

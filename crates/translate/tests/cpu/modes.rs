//! Code of other kinds: 32-bit, and with operands of which parts are masked out.

use crate::native::{machine, map_page};
use crate::promises::{HLT, UNMAPPED, assemble, page_fault, prepare, run};
use iced_x86::code_asm::*;
use paravane_abi::units::Mfn;
use paravane_engine::{Engine as _, Gpr, Segment, SegmentRegister, TlbFlush};

#[test]
fn elements_that_are_masked_out_do_not_fault() {
    if !std::arch::is_x86_feature_detected!("avx512bw") {
        println!("no AVX-512 on this host: masked accesses are not tested");
        return;
    }
    let store = |address: u64, mask: u64| {
        assemble(move |a| {
            a.mov(rax, address)?;
            a.mov(rcx, mask)?;
            a.kmovq(k1, rcx)?;
            a.vmovdqu8(zmmword_ptr(rax).k1(), zmm0)?;
            a.vmovdqu8(zmm2.k1().z(), zmmword_ptr(rax))?;
            a.hlt()
        })
    };
    assert_eq!(run(store(0, 0)).0, HLT);
    assert_eq!(run(store(UNMAPPED - 16, 0xffff)).0, HLT);
    // Which of the two elements behind the boundary CR2 names differs between processors.
    let fault = run(store(UNMAPPED - 16, 0x6_0003)).0;
    assert!([1, 2].iter().any(|byte| fault == page_fault(UNMAPPED + byte, 6)), "{fault:?}");
    let load = assemble(|a| {
        a.mov(rax, UNMAPPED - 8)?;
        a.vpcmpeqd(xmm1, xmm1, xmm1)?;
        a.vpsrldq(xmm1, xmm1, 8)?;
        a.vpmaskmovd(xmm2, xmm1, xmmword_ptr(rax))?;
        a.hlt()
    });
    assert_eq!(run(load).0, HLT);
}

#[test]
fn thirty_two_bit_code_wraps_addresses_and_keeps_its_own_forms() {
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    // 32-bit addresses: map low pages.
    let (low_code, low_stack) = (0x10_0000_u64, 0x20_0000_u64);
    prepare(machine, &[]);
    let root = machine.engine.context().kernel_root;
    let mut next = 220;
    map_page(&machine.memory, root, low_code, Mfn(0x8000 + 60), 7, &mut next);
    map_page(&machine.memory, root, low_stack, Mfn(0x8000 + 61), 7, &mut next);
    machine.engine.flush_tlb(TlbFlush::All);
    let mut a = CodeAssembler::new(32).unwrap();
    let mut over = a.create_label();
    a.mov(eax, 0xffff_ff00_u32).unwrap();
    a.mov(dword_ptr(eax + 0x20_0200), 0x1234).unwrap();
    a.inc(ecx).unwrap();
    a.push(0x55).unwrap();
    a.pop(edx).unwrap();
    a.pushad().unwrap();
    a.popad().unwrap();
    a.call(over).unwrap();
    a.set_label(&mut over).unwrap();
    a.pop(esi).unwrap();
    a.mov(edi, dword_ptr(0x20_0100)).unwrap();
    a.hlt().unwrap();
    let code = a.assemble(low_code).unwrap();
    machine.memory.write(Mfn(0x8000 + 60).base().unwrap(), &code).unwrap();
    let context = machine.engine.context_mut();
    *context.segment_mut(SegmentRegister::Cs) = Segment::of_descriptor(0xe023, 0x00cf_fb00_0000_ffff);
    context.rip = low_code;
    context.gprs = [0; 16];
    context.set_gpr(Gpr::Rsp, low_stack + 0x800);
    assert_eq!(machine.engine.run(), HLT);
    let context = machine.engine.context();
    let hlt = low_code + code.len() as u64 - 1;
    assert_eq!(context.rip, hlt);
    assert_eq!(context.gpr(Gpr::Rdi), 0x1234);
    assert_eq!((context.gpr(Gpr::Rcx), context.gpr(Gpr::Rdx)), (1, 0x55));
    assert_eq!(context.gpr(Gpr::Rsp), low_stack + 0x800);
    assert!((low_code..hlt).contains(&context.gpr(Gpr::Rsi)));
}

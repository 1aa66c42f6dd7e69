//! Faults at every kind of access, against the real CPU: every form whose operand lies in, or crosses into, pages
//! that are not there or cannot be written. Vector, error code, CR2, RIP and all state must agree.

use std::collections::BTreeMap;

use crate::forms::{forget, forget_state, is_whole, prepare};
use crate::native::compare::compare;
use crate::native::generate::{instance, is_incomparable};
use crate::native::random::{Random, registers_for, seed};
use crate::native::real::Access;
use crate::native::{Bits, DATA, DATA_BYTES, DATA_PAGES, End, Machine, machine};
use iced_x86::{Code, Encoder, FlowControl, OpKind};
use paravane_abi::units::{PAGE_BYTES, PAGE_SIZE};

/// What every data page allows: holes and read-only pages beside ordinary ones.
const PAGES: [Access; 8] = [
    Access::None,
    Access::All,
    Access::None,
    Access::All,
    Access::ReadOnly,
    Access::None,
    Access::ReadOnly,
    Access::All,
];

fn protect(machine: &mut Machine, pages: &[Access]) {
    for (page, access) in pages.iter().enumerate() {
        machine.protect(page, *access);
    }
}

/// Whether an instruction has an operand in memory, named or not.
fn accesses_memory(instruction: &iced_x86::Instruction) -> bool {
    (0..instruction.op_count()).any(|op| {
        !matches!(
            instruction.op_kind(op),
            OpKind::Register | OpKind::Immediate8 | OpKind::Immediate16 | OpKind::Immediate32
        )
    })
}

#[test]
fn every_form_faults_as_the_cpu_does() {
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    let mut random = Random(seed() ^ 0xfa17);
    let (mut cases, mut faults) = (0_u64, 0_u64);
    let mut failures: BTreeMap<String, String> = BTreeMap::new();
    let stack = random.bytes(2 * PAGE_BYTES);
    let data = random.bytes(DATA_BYTES);
    protect(machine, &PAGES);
    // What differs between processors: which bytes MASKMOVDQU looks at beside the selected ones, which page of two XSAVE
    // names, whether a store of 10 bytes leaves the first 8, what gathers leave in the unused half of a mask.
    const DIFFERENT: [&str; 6] =
        ["askmovdqu", "Xsave", "Fstp_m80", "Fbstp", "VEX_Vgatherqps", "VEX_Vpgatherqd"];
    let differs = |name: String| DIFFERENT.iter().any(|part| name.contains(part));
    let codes = Code::values().filter(|code| !differs(format!("{code:?}")));
    for code in codes.filter(|code| code.flow_control() == FlowControl::Next) {
        let info = code.op_code();
        for bits in [Bits::B64, Bits::B32] {
            let exists = if bits == Bits::B64 { info.mode64() } else { info.mode32() };
            if !exists {
                continue;
            }
            for _ in 0..4 {
                let mut before = registers_for(machine, &mut random, bits, true);
                prepare(code, machine.mask, &mut before.gprs, &mut random);
                edges(&mut before.gprs, &mut random);
                let Some(instruction) = instance(code, &before, &mut random) else { break };
                if is_incomparable(&instruction) || !accesses_memory(&instruction) {
                    break;
                }
                let mut encoder = Encoder::new(if bits == Bits::B64 { 64 } else { 32 });
                let Ok(_) = encoder.encode(&instruction, before.rip) else { continue };
                let bytes = encoder.take_buffer();
                if !is_whole(&bytes, bits) {
                    continue;
                }
                let (mut native, mut translated) = machine.both(&bytes, &before, &data, &stack);
                forget(code, &mut native.end);
                forget(code, &mut translated.end);
                forget_state(code, &native, &mut translated);
                cases += 1;
                faults += u64::from(native.end != End::Done);
                if let Err(why) = compare(&native, &translated, 0) {
                    failures.entry(format!("{code:?} {bits:?}")).or_insert(format!("{bytes:02x?}: {why}"));
                    break;
                }
            }
        }
    }
    protect(machine, &[Access::All; 8]);
    println!("{cases} cases, {faults} of them faulted on both sides");
    let report: Vec<String> = failures.iter().take(300).map(|(form, why)| format!("{form} {why}")).collect();
    assert!(failures.is_empty(), "{} forms:\n{}", failures.len(), report.join("\n"));
    assert!(faults > 1000, "only {faults} cases faulted");
}

/// Makes every pointer a place near the border of two pages.
fn edges(gprs: &mut [u64; 16], random: &mut Random) {
    let data = crate::native::low(DATA);
    for gpr in gprs.iter_mut() {
        if (data..data + DATA_PAGES * PAGE_SIZE).contains(gpr) {
            let border = data + (1 + random.below(DATA_PAGES - 1)) * PAGE_SIZE;
            let distance = random.pick(&[0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 63, 64, 100]);
            *gpr = border - distance;
        }
    }
}

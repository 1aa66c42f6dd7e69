//! Every instruction form that iced-x86 can encode and the host CPU runs, on random operands, against the real CPU.

use crate::native::generate::{instance, is_incomparable, registers};
use crate::native::{DATA_BYTES, End, Random, compare, machine, seed};
use iced_x86::{Code, Encoder, FlowControl};
use paravane_abi::units::PAGE_BYTES;

/// Cases per form.
const ROUNDS: usize = 6;

#[test]
fn every_form_does_what_the_cpu_does() {
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    let mut random = Random(seed());
    let (mut cases, mut faults, mut forms) = (0_u64, 0_u64, 0_u64);
    let mut failures: Vec<String> = Vec::new();
    let stack = random.bytes(2 * PAGE_BYTES);
    for code in Code::values() {
        let info = code.op_code();
        let skip = !info.mode64() || info.must_be_cpl0() || code.flow_control() != FlowControl::Next;
        if skip {
            continue;
        }
        let mut used = false;
        let data = random.bytes(DATA_BYTES);
        for _ in 0..ROUNDS {
            let before = registers(machine, &mut random);
            let Some(instruction) = instance(code, &before, &mut random) else { break };
            if is_incomparable(&instruction) {
                break;
            }
            let mut encoder = Encoder::new(64);
            let Ok(_) = encoder.encode(&instruction, before.rip) else { continue };
            let bytes = encoder.take_buffer();
            let (native, translated) = machine.both(&bytes, &before, &data, &stack);
            cases += 1;
            used = true;
            faults += u64::from(native.end != End::Done);
            if let Err(why) = compare(&native, &translated, 0) {
                failures.push(format!("{code:?} {bytes:02x?}: {why}"));
                break;
            }
        }
        forms += u64::from(used);
    }
    println!("{forms} forms, {cases} cases, {faults} of them faulted on both sides");
    assert!(
        failures.is_empty(),
        "{} of {cases}:\n{}",
        failures.len(),
        failures[..failures.len().min(60)].join("\n")
    );
    assert!(cases > 5000, "only {cases} cases were made");
}

//! Random bytes as code: whatever they are, each step ends, in the next instruction or in an exit.

use crate::native::random::{Random, registers_for, seed};
use crate::native::{Bits, DATA_BYTES, machine};
use paravane_abi::units::PAGE_BYTES;
use paravane_engine::Engine as _;

#[test]
fn random_bytes_run_into_an_exit_or_on() {
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    let mut random = Random(seed() ^ 0x6a5b);
    let data = random.bytes(DATA_BYTES);
    let stack = random.bytes(2 * PAGE_BYTES);
    let (mut steps, mut exits) = (0_u64, 0_u64);
    for round in 0..1500 {
        let bits = if round % 3 == 0 { Bits::B32 } else { Bits::B64 };
        let before = registers_for(machine, &mut random, bits, bits == Bits::B32 || round % 2 == 0);
        let code = random.bytes(200);
        machine.fill(&code, &before, &data, &stack);
        for _ in 0..40 {
            steps += 1;
            if machine.engine.step().is_some() {
                exits += 1;
                break;
            }
        }
    }
    println!("{steps} steps, {exits} exits");
    assert!(exits > 100 && steps > exits);
}

//! Every instruction form that iced-x86 can encode and the host CPU runs, on random operands, against the real CPU:
//! in 64-bit code with addresses above and below 4 GiB, and in 32-bit code.

use std::collections::BTreeMap;

use crate::native::compare::compare;
use crate::native::generate::{instance, is_incomparable};
use crate::native::random::{Random, registers_for, seed};
use crate::native::{After, Bits, DATA_BYTES, End, machine};
use iced_x86::{Code, Decoder, DecoderOptions, Encoder, FlowControl, Mnemonic, OpCodeOperandKind};
use paravane_abi::units::PAGE_BYTES;

/// Cases per form and kind of code.
const ROUNDS: usize = 6;

/// Where code runs: its kind, and whether its addresses are below 4 GiB.
const PLACES: [(Bits, bool); 3] = [(Bits::B64, false), (Bits::B64, true), (Bits::B32, true)];

#[test]
fn every_form_does_what_the_cpu_does() {
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    let mut random = Random(seed());
    let (mut cases, mut faults, mut forms) = (0_u64, 0_u64, 0_u64);
    let mut failures: BTreeMap<String, String> = BTreeMap::new();
    let stack = random.bytes(2 * PAGE_BYTES);
    // POP CS is no whole instruction since the 8086.
    let codes = Code::values().filter(|code| *code != Code::Popw_CS);
    for code in codes.filter(|code| code.flow_control() == FlowControl::Next) {
        let info = code.op_code();
        let name = format!("{:?}", code.mnemonic());
        let mut used = false;
        for (bits, is_low) in PLACES {
            let exists = if bits == Bits::B64 { info.mode64() } else { info.mode32() };
            if !exists {
                continue;
            }
            let data = random.bytes(DATA_BYTES);
            for _ in 0..ROUNDS {
                let mut before = registers_for(machine, &mut random, bits, is_low);
                prepare(code, machine.mask, &mut before.gprs, &mut random);
                if bits == Bits::B32 {
                    before.gprs.iter_mut().for_each(|gpr| *gpr &= 0xffff_ffff);
                }
                let Some(instruction) = instance(code, &before, &mut random) else { break };
                if is_incomparable(&instruction) {
                    break;
                }
                let mut encoder = Encoder::new(if bits == Bits::B64 { 64 } else { 32 });
                let Ok(_) = encoder.encode(&instruction, before.rip) else { continue };
                let mut bytes = encoder.take_buffer();
                if name.starts_with("Popf") {
                    // The trap flag it may set works behind the next instruction.
                    bytes.push(0x90);
                }
                if !is_whole(&bytes, bits) {
                    continue;
                }
                let (mut native, mut translated) = machine.both(&bytes, &before, &data, &stack);
                cases += 1;
                used = true;
                faults += u64::from(native.end != End::Done);
                if name.contains("askmovdqu") && native.end != End::Done {
                    // Which bytes and pages it looks at beside the selected ones differs between processors.
                    continue;
                }
                forget(code, &mut native.end);
                forget(code, &mut translated.end);
                forget_state(code, &native, &mut translated);
                if let Err(why) = compare(&native, &translated, 0) {
                    failures.entry(format!("{code:?} {bits:?}")).or_insert(format!("{bytes:02x?}: {why}"));
                    break;
                }
            }
        }
        forms += u64::from(used);
    }
    println!("{forms} forms, {cases} cases, {faults} of them faulted on both sides");
    let report: Vec<String> = failures.iter().take(300).map(|(form, why)| format!("{form} {why}")).collect();
    assert!(failures.is_empty(), "{} of {forms} forms:\n{}", failures.len(), report.join("\n"));
    assert!(cases > 5000, "only {cases} cases were made");
}

/// Takes from a fault's address what differs between processors: which byte of a long operand it names, which of two
/// operands that both fault.
pub(crate) fn forget(code: Code, end: &mut End) {
    let name = format!("{:?}", code.mnemonic());
    let kept = match name.as_str() {
        _ if name.starts_with("Cmps") || name.starts_with("Xsave") => 0,
        _ if is_long_x87(&name) || name.contains("askmov") => !0xfff,
        _ => return,
    };
    if let End::Fault { vector: 14, address, .. } = end {
        *address &= kept;
    }
}

fn is_long_x87(name: &str) -> bool {
    ["Fx", "Fldenv", "Frstor", "Fnstenv", "Fnsave"].iter().any(|start| name.starts_with(start))
}

/// Takes over state that faulting stores change on some processors: MMX stores clear TOP, conversions raise flags.
pub(crate) fn forget_state(code: Code, native: &After, translated: &mut After) {
    let info = code.op_code();
    let mmx = (0..info.op_count())
        .any(|op| matches!(info.op_kind(op), OpCodeOperandKind::mm_reg | OpCodeOperandKind::mm_or_mem));
    if native.end == End::Done {
        return;
    }
    let kept = if mmx {
        [0..8, 32..160]
    } else if code.mnemonic() == Mnemonic::Vcvtps2ph {
        [24..28, 24..28]
    } else {
        return;
    };
    for range in kept {
        translated.cpu.area[range.clone()].copy_from_slice(&native.cpu.area[range]);
    }
}

/// Whether the bytes are one instruction, and not the beginning of one: some forms exist on old processors only.
pub(crate) fn is_whole(bytes: &[u8], bits: Bits) -> bool {
    let bitness = if bits == Bits::B64 { 64 } else { 32 };
    let instruction = Decoder::new(bitness, bytes, DecoderOptions::NONE).decode();
    instruction.len() == bytes.len() || bytes.last() == Some(&0x90)
}

/// Registers that instructions of a family need to do more than fault.
pub(crate) fn prepare(code: Code, mask: u64, gprs: &mut [u64; 16], random: &mut Random) {
    // Not 0x7b: its limit is the number of the host's CPU.
    const SELECTORS: [u64; 9] = [0, 3, 0x2b, 0x2b, 0x28, 0x33, 0x23, 0x10, 0xfff8];
    let info = code.op_code();
    let name = format!("{:?}", code.mnemonic());
    if name.starts_with('X') && name.contains("sav") || name.starts_with("Xrstor") {
        // PKRU is the process's own.
        gprs[0] &= mask;
        gprs[2] = 0;
        for pointer in [3, 5, 6, 7] {
            gprs[pointer] &= !63;
        }
    }
    let about_selectors = matches!(
        code.mnemonic(),
        Mnemonic::Lar | Mnemonic::Lsl | Mnemonic::Verr | Mnemonic::Verw | Mnemonic::Arpl
    ) || (0..info.op_count()).any(|op| info.op_kind(op) == OpCodeOperandKind::seg_reg);
    if about_selectors {
        for gpr in [0, 1, 2, 8, 9, 10, 11, 12, 13, 14, 15] {
            gprs[gpr] = random.next() << 16 | random.pick(&SELECTORS);
        }
    }
}

//! Every instruction form that iced-x86 can encode and the host CPU runs, on random operands, against the real CPU:
//! in 64-bit code with addresses above and below 4 GiB, and in 32-bit code.

use crate::native::compare::compare;
use crate::native::generate::{instance, is_incomparable};
use crate::native::random::{Random, registers_for, seed};
use crate::native::{Bits, Cpu, DATA, DATA_BYTES, DATA_PAGES, End, Machine, low, machine};
use crate::tally::{Contents, Tally};
use iced_x86::{
    Code, Decoder, DecoderOptions, Encoder, FlowControl, Instruction, Mnemonic, OpCodeOperandKind, OpKind,
};
use paravane_abi::units::{PAGE_BYTES, PAGE_SIZE};
use paravane_engine::rflags;

/// Cases per form and kind of code.
const ROUNDS: usize = 6;

/// Makes random instructions of a form, with registers for them.
pub(crate) struct Forms {
    pub(crate) random: Random,
}

/// Where and how an instruction runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) bits: Bits,
    /// Whether addresses are below 4 GiB.
    pub(crate) is_low: bool,
    /// Whether pointers are near the ends of pages.
    pub(crate) edges: bool,
    /// EFLAGS.AC.
    pub(crate) aligned: bool,
}

/// The places of ordinary cases.
pub(crate) const PLACES: [Place; 3] = [
    Place { bits: Bits::B64, is_low: false, edges: false, aligned: false },
    Place { bits: Bits::B64, is_low: true, edges: false, aligned: false },
    Place { bits: Bits::B32, is_low: true, edges: false, aligned: false },
];

/// Every form that goes on with the next instruction. POP CS is no whole instruction since the 8086.
pub(crate) fn forms() -> impl Iterator<Item = Code> {
    Code::values().filter(|code| *code != Code::Popw_CS && code.flow_control() == FlowControl::Next)
}

impl Forms {
    /// Code with one instruction of a form. `None` if there is none, or it cannot be compared.
    pub(crate) fn case(&mut self, machine: &Machine, code: Code, place: Place) -> Option<(Vec<u8>, Cpu)> {
        let info = code.op_code();
        let exists = if place.bits == Bits::B64 { info.mode64() } else { info.mode32() };
        if !exists {
            return None;
        }
        let mut before = registers_for(machine, &mut self.random, place.bits, place.is_low);
        prepare(code, machine.mask, &mut before.gprs, &mut self.random);
        if place.edges {
            edges(&mut before.gprs, place.is_low, &mut self.random);
        }
        if place.aligned {
            before.flags |= rflags::AC;
        }
        if place.bits == Bits::B32 {
            before.gprs.iter_mut().for_each(|gpr| *gpr &= 0xffff_ffff);
        }
        let instruction = instance(code, &before, &mut self.random)?;
        // Below 4 GiB a bit's number reaches what this process has there beside the tests' pages.
        let wanders = place.is_low
            && format!("{code:?}").starts_with("Bt")
            && instruction.op0_kind() == OpKind::Memory
            && instruction.op1_kind() == OpKind::Register;
        if wanders || is_incomparable(&instruction) || (place.edges && !accesses_memory(&instruction)) {
            return None;
        }
        let mut encoder = Encoder::new(if place.bits == Bits::B64 { 64 } else { 32 });
        encoder.encode(&instruction, before.rip).ok()?;
        let mut bytes = encoder.take_buffer();
        if !is_whole(&bytes, place.bits) {
            return None;
        }
        if format!("{:?}", code.mnemonic()).starts_with("Popf") {
            // The trap flag it may set works behind the next instruction.
            bytes.push(0x90);
        }
        Some((bytes, before))
    }

    /// Makes and runs one case of a form. Says whether there was one.
    pub(crate) fn check(
        &mut self,
        machine: &mut Machine,
        code: Code,
        place: Place,
        contents: &Contents,
        tally: &mut Tally,
    ) -> bool {
        let Some((bytes, before)) = self.case(machine, code, place) else { return false };
        self.run(machine, code, &bytes, &before, contents, tally);
        true
    }

    /// Runs a case of a form.
    pub(crate) fn run(
        &self,
        machine: &mut Machine,
        code: Code,
        bytes: &[u8],
        before: &Cpu,
        contents: &Contents,
        tally: &mut Tally,
    ) {
        let (mut native, mut translated) = machine.both(bytes, before, &contents.data, &contents.stack);
        if native.end != End::Done && format!("{code:?}").contains("askmovdqu") {
            // "Exceptions associated with addressing memory and page faults may still be signaled (implementation
            // dependent)" for bytes that the mask leaves out: Intel SDM vol. 2, "MASKMOVDQU".
            return;
        }
        if is_of_state(code) {
            // In which order XSAVE and its relatives access the parts of their area is documented nowhere.
            forget_place(&mut native.end);
            forget_place(&mut translated.end);
        }
        let outcome = compare(&native, &translated).map_err(|why| format!("{bytes:02x?}: {why}"));
        tally.note(&format!("{code:?} {:?}", before.bits()), native.end, outcome);
    }

    pub(crate) fn contents(&mut self) -> Contents {
        Contents { data: self.random.bytes(DATA_BYTES), stack: self.random.bytes(2 * PAGE_BYTES) }
    }
}

#[test]
fn every_form_does_what_the_cpu_does() {
    let mut guard = machine();
    let machine = guard.as_mut().unwrap();
    let mut forms = Forms { random: Random(seed()) };
    let mut tally = Tally::default();
    let mut used = 0_u64;
    for code in self::forms() {
        let mut made = false;
        for place in PLACES {
            let contents = forms.contents();
            for _ in 0..ROUNDS {
                made |= forms.check(machine, code, place, &contents, &mut tally);
            }
        }
        used += u64::from(made);
    }
    println!("{used} forms");
    assert!(tally.cases > 5000, "only {} cases were made", tally.cases);
    tally.finish();
}

/// Whether an instruction has an operand in memory, named or not.
fn accesses_memory(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|op| {
        !matches!(
            instruction.op_kind(op),
            OpKind::Register | OpKind::Immediate8 | OpKind::Immediate16 | OpKind::Immediate32
        )
    })
}

/// Makes every pointer a place near the border of two pages.
fn edges(gprs: &mut [u64; 16], is_low: bool, random: &mut Random) {
    let data = if is_low { low(DATA) } else { DATA };
    for gpr in gprs.iter_mut() {
        if (data..data + DATA_PAGES * PAGE_SIZE).contains(gpr) {
            let border = data + (1 + random.below(DATA_PAGES - 1)) * PAGE_SIZE;
            let distance = random.pick(&[0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 63, 64, 100]);
            *gpr = border - distance;
        }
    }
}

/// Whether a form saves or restores extended state.
fn is_of_state(code: Code) -> bool {
    let name = format!("{code:?}");
    name.starts_with("Xsave") || name.starts_with("Xrstor")
}

/// Takes from a page fault which of several pages it names.
fn forget_place(end: &mut End) {
    if let End::Fault { vector: 14, error, address, .. } = end {
        *error &= !1;
        *address = 0;
    }
}

/// Whether the bytes are one instruction, and not the beginning of one: some forms exist on old processors only.
pub(crate) fn is_whole(bytes: &[u8], bits: Bits) -> bool {
    let bitness = if bits == Bits::B64 { 64 } else { 32 };
    let instruction = Decoder::new(bitness, bytes, DecoderOptions::NONE).decode();
    instruction.len() == bytes.len()
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

//! Random numbers, registers and vector state from a printed seed.
#![expect(clippy::print_stdout, reason = "the seed, so that a failure can be repeated")]

use paravane_abi::units::PAGE_SIZE;

use super::{AREA, Bits, CODE, Cpu, DATA, Machine, STACK_TOP, USER_CODE_32, low, real};

/// The seed to use: from the environment, so that a failure can be repeated. Printed.
pub(crate) fn seed() -> u64 {
    let seed = std::env::var("PARAVANE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0x9e37_79b9);
    println!("PARAVANE_SEED={seed}");
    seed
}

/// A small generator with a printed seed.
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 11) % limit
    }

    pub(crate) fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| (self.next() >> 33) as u8).collect()
    }
}

/// Numbers at which integer instructions change their mind.
const EDGES: [u64; 10] = [0, 0, 1, 2, 0x7f, 0x7fff, 0x7fff_ffff, 0x8000_0000, i64::MAX as u64, 1 << 63];
/// Single-precision numbers of every kind: zeros, denormal, normal, infinite, quiet and signalling not-a-numbers.
const SINGLES: [u32; 10] = [
    0,
    0x8000_0000,
    0x3f80_0000,
    0xc040_0000,
    1,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    0x7f80_0001,
    0x4f00_0000,
];

/// Random registers: pointers into the data, small numbers, edges, anything.
pub(crate) fn registers(machine: &Machine, random: &mut Random) -> Cpu {
    registers_for(machine, random, Bits::B64, false)
}

/// The same for code of a kind; `is_low` for addresses below 4 GiB.
pub(crate) fn registers_for(machine: &Machine, random: &mut Random, bits: Bits, is_low: bool) -> Cpu {
    let place = |address: u64| if is_low { low(address) } else { address };
    let mut cpu = Cpu::plain(place(CODE) + random.below(64));
    for gpr in &mut cpu.gprs {
        let near = place(DATA) + PAGE_SIZE * (2 + random.below(4)) - 40 + random.below(80);
        *gpr = match random.below(10) {
            0 | 1 => place(DATA) + 2 * PAGE_SIZE + (random.below(2 * PAGE_SIZE) & !63),
            2 => near,
            3 | 4 => random.below(64),
            5 => random.next() >> 33,
            6 => random.pick(&EDGES),
            7 => random.pick(&EDGES).wrapping_neg(),
            _ => random.next(),
        };
    }
    for pointer in [3, 5, 6, 7] {
        let aligned = place(DATA) + 2 * PAGE_SIZE + (random.below(3 * PAGE_SIZE) & !63);
        cpu.gprs[pointer] = if random.one_in(3) { aligned + random.below(64) } else { aligned };
    }
    cpu.gprs[1] = random.below(40);
    cpu.gprs[9] = random.below(64);
    cpu.gprs[4] = place(STACK_TOP);
    cpu.flags = 0x202 | random.next() & 0x8d5;
    if bits == Bits::B32 {
        cpu.selectors[1] = u64::from(USER_CODE_32);
        for gpr in &mut cpu.gprs {
            *gpr &= 0xffff_ffff;
        }
    } else if real::has_bases() {
        cpu.bases = [place(DATA) + 8 * random.below(64), random.below(256)];
    }
    cpu.area = area(machine.mask, random);
    cpu
}

/// Random vector and x87 state that XRSTOR accepts.
pub(crate) fn area(mask: u64, random: &mut Random) -> [u8; AREA] {
    let mut area = [0; AREA];
    area.copy_from_slice(&random.bytes(AREA));
    for at in (160..416).chain(576..AREA - 64).step_by(4) {
        if random.one_in(3) {
            area[at..at + 4].copy_from_slice(&random.pick(&SINGLES).to_le_bytes());
        }
    }
    area[..32].fill(0);
    area[32..160].fill(0);
    x87(&mut area, random);
    let masks = if random.one_in(8) { random.next() as u32 & 0x1f80 } else { 0x1f80 };
    let modes = if random.one_in(3) { random.next() as u32 & 0xe07f } else { 0 };
    area[24..28].copy_from_slice(&(masks | modes).to_le_bytes());
    area[416..512].fill(0);
    area[512..576].fill(0);
    area[512..520].copy_from_slice(&mask.to_le_bytes());
    // Vectors 1 to 3 hold small numbers, for use as indices.
    for start in [160 + 16, 576 + 16, 1152 + 32] {
        for qword in area[start..start + if start == 1184 { 96 } else { 48 }].chunks_mut(8) {
            let small = random.below(400);
            qword.copy_from_slice(&small.to_le_bytes());
        }
    }
    area
}

/// x87 state: as after FNINIT, or anything the unit can hold.
fn x87(area: &mut [u8; AREA], random: &mut Random) {
    area[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
    if random.one_in(2) {
        return;
    }
    let masks = if random.one_in(6) { random.next() as u16 & 0x3f } else { 0x3f };
    let control = 0x40 | masks | random.next() as u16 & 0x0f00;
    let raised = if random.one_in(4) { random.next() as u16 & 0x3f } else { 0 };
    let summary = if raised & !masks == 0 { 0 } else { 0x8080 };
    let status = random.next() as u16 & 0x7f00 | raised | summary;
    area[..2].copy_from_slice(&control.to_le_bytes());
    area[2..4].copy_from_slice(&status.to_le_bytes());
    area[4] = if random.one_in(3) { random.next() as u8 } else { 0xff };
    for register in 0..8 {
        let at = 32 + 16 * register;
        let exponent = match random.below(6) {
            0 => 0,
            1 => 0x7fff,
            2 => 0x3fff + random.below(70) as u16,
            3 => 0xbfff,
            4 => random.next() as u16,
            _ => 0x4000,
        };
        let mantissa = match random.below(5) {
            0 => 1 << 63,
            1 => 0,
            2 => 3 << 62,
            3 => random.next(),
            _ => random.next() | 1 << 63,
        };
        area[at..at + 8].copy_from_slice(&mantissa.to_le_bytes());
        area[at + 8..at + 10].copy_from_slice(&exponent.to_le_bytes());
    }
}

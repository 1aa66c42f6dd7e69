//! A byte-code interpreter: computed jumps that are hard to predict, and small loads.

/// The operations of a machine with one accumulator and sixteen cells.
#[derive(Clone, Copy)]
enum Op {
    Load(u8),
    Store(u8),
    Add(u8),
    Xor(u8),
    Multiply(u8),
    Rotate(u8),
    /// Goes back to the start while the cell, counted down, is not 0.
    Repeat(u8),
    End,
}

const REPEATS: u64 = 4000;
/// Ten operations a turn: 40,000 steps.
const PROGRAM: [Op; 11] = [
    Op::Load(1),
    Op::Multiply(2),
    Op::Add(3),
    Op::Store(1),
    Op::Rotate(13),
    Op::Xor(4),
    Op::Store(4),
    Op::Load(4),
    Op::Add(1),
    Op::Repeat(0),
    Op::End,
];

/// Interprets the program `count` times.
pub fn run(count: u64) -> u64 {
    let program = std::hint::black_box(&PROGRAM);
    (0..count).fold(1, |seed, _| interpret(program, seed))
}

fn interpret(program: &[Op], seed: u64) -> u64 {
    let mut cells = [0_u64; 16];
    cells[..4].copy_from_slice(&[REPEATS, seed, 6_364_136_223_846_793_005, 1_442_695_040_888_963_407]);
    let (mut at, mut accumulator) = (0, 0_u64);
    loop {
        let op = program[at];
        at += 1;
        match op {
            Op::Load(cell) => accumulator = cells[usize::from(cell & 15)],
            Op::Store(cell) => cells[usize::from(cell & 15)] = accumulator,
            Op::Add(cell) => accumulator = accumulator.wrapping_add(cells[usize::from(cell & 15)]),
            Op::Xor(cell) => accumulator ^= cells[usize::from(cell & 15)],
            Op::Multiply(cell) => accumulator = accumulator.wrapping_mul(cells[usize::from(cell & 15)]),
            Op::Rotate(bits) => accumulator = accumulator.rotate_left(u32::from(bits)),
            Op::Repeat(cell) => {
                let left = &mut cells[usize::from(cell & 15)];
                *left -= 1;
                if *left != 0 {
                    at = 0;
                }
            }
            Op::End => return accumulator,
        }
    }
}

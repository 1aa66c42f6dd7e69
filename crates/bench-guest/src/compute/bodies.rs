//! Five bodies that attract each other: double-precision arithmetic with divisions and square roots.

const STEPS: usize = 1000;
const STEP: f64 = 0.01;

#[derive(Clone, Copy)]
struct Body {
    position: [f64; 3],
    velocity: [f64; 3],
    mass: f64,
}

/// Moves the bodies `count` thousand steps; the result is the bits of the energy at the end.
pub fn run(count: u64) -> u64 {
    let mut bodies = start();
    for _ in 0..count {
        for _ in 0..STEPS {
            step(&mut bodies);
        }
    }
    energy(&bodies).to_bits()
}

fn start() -> [Body; 5] {
    [0.0_f64, 1.0, 2.0, 3.0, 4.0].map(|n| Body {
        position: [n * 5.2, n * n * 1.1 - n, n * 0.3],
        velocity: [0.01 * n * n, 0.4 - 0.1 * n, 0.002 * n],
        mass: if n == 0.0 { 39.0 } else { 0.04 / n },
    })
}

fn step(bodies: &mut [Body; 5]) {
    for i in 0..bodies.len() {
        for j in i + 1..bodies.len() {
            let (a, b) = (bodies[i], bodies[j]);
            let distance: [f64; 3] = std::array::from_fn(|axis| a.position[axis] - b.position[axis]);
            let square: f64 = distance.iter().map(|d| d * d).sum();
            let strength = STEP / (square * square.sqrt());
            for (axis, d) in distance.iter().enumerate() {
                bodies[i].velocity[axis] -= d * b.mass * strength;
                bodies[j].velocity[axis] += d * a.mass * strength;
            }
        }
    }
    for body in bodies {
        for (position, velocity) in body.position.iter_mut().zip(body.velocity) {
            *position += STEP * velocity;
        }
    }
}

fn energy(bodies: &[Body; 5]) -> f64 {
    bodies.iter().map(|body| body.mass * body.velocity.iter().map(|v| v * v).sum::<f64>() / 2.0).sum()
}

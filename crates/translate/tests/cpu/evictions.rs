//! Programs that run while the cache of translated code fills up and is emptied, wherever they are at that moment.

use crate::native::machine;
use crate::native::random::seed;
use crate::sequences::Sequences;
use crate::tally::Tally;

/// Programs at most until the cache was full.
const PROGRAMS: u64 = 20_000;

#[test]
fn programs_survive_that_the_cache_is_emptied_under_them() {
    let mut guard = machine();
    let machine = guard.as_mut().expect("made on the first call");
    let mut sequences = Sequences::new(seed() ^ 0xe71c);
    let mut tally = Tally::default();
    let before = machine.engine.stats().cache_flushes;
    for number in 0..PROGRAMS {
        if machine.engine.stats().cache_flushes > before {
            break;
        }
        let case = sequences.case(machine);
        let (native, outcome) = case.run(machine);
        let told = outcome.map_err(|why| format!("{why}\n  {}", case.line()));
        tally.note(&format!("program {number}"), native, told);
    }
    assert!(machine.engine.stats().cache_flushes > before, "the cache was never full");
    tally.finish();
}

//! The check of a hypercall page found in memory: any page is told apart from the forms that existed, every
//! difference is really there, and a page that is mostly whole is recognised.
//!
//! The input chooses a form (one byte, and six for the target of a far call) and then damages the page that
//! Xen would have written: three bytes for each byte changed, the place and the value.

use std::collections::BTreeSet;

use paravane_x86::hypercall_page::{Form, SLOT_BYTES, SLOTS, check as check_page, page};
use paravane_x86::selector::Selector;

/// Checks the page that `data` describes, and `data` itself taken for a page.
pub fn check(data: &[u8]) {
    assert_eq!(check_page(data).is_ok(), data.len() == SLOTS * SLOT_BYTES, "only the right size is a page");

    let Some(([form, target @ ..], damage)) = data.split_first_chunk::<7>() else { return };
    let [o0, o1, o2, o3, s0, s1] = *target;
    let form = match form % 3 {
        0 => Form::Syscall,
        1 => Form::Int82,
        _ => Form::FarCall {
            selector: Selector(u16::from_le_bytes([s0, s1])),
            offset: u32::from_le_bytes([o0, o1, o2, o3]),
        },
    };
    let whole = page(form);
    let mut found = whole;
    for [low, high, value] in damage.as_chunks::<3>().0 {
        found[usize::from(u16::from_le_bytes([*low, *high])) % found.len()] = *value;
    }

    let answer = check_page(&found).expect("a page has the size of a page");
    assert_eq!(answer.matching_slots + answer.differences.len(), SLOTS);
    for difference in &answer.differences {
        assert_eq!(found[difference.offset], difference.found);
        assert_ne!(difference.found, difference.expected);
        assert_eq!(difference.offset / SLOT_BYTES, difference.slot as usize);
    }

    let damaged: BTreeSet<usize> =
        (0..found.len()).filter(|at| found[*at] != whole[*at]).map(|at| at / SLOT_BYTES).collect();
    if damaged.len() < SLOTS / 2 {
        assert_eq!(answer.form, form, "a page with most slots whole is recognised");
        let reported: BTreeSet<usize> = answer.differences.iter().map(|it| it.slot as usize).collect();
        assert_eq!(reported, damaged);
    }
}

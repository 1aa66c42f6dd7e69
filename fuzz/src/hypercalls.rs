//! Whatever a guest does: a sequence of system calls, stores and faults, after which the hypervisor still runs
//! and its books still balance.
//!
//! The input is a sequence of records of 16 bytes: what to do, then five operands of three bytes each. An
//! operand has a kind, so that a fuzzer hits on addresses and frames that exist: they are rare among numbers.

use paravane_abi::units::{GuestVirt, PAGE_SHIFT, PAGE_SIZE, Pfn};
use paravane_engine::{Exception, Exit, Gpr, Privileged, PrivilegedOp};

use crate::guest::{Guest, PAGES, State, VIRT_BASE};

/// The most records of an input that are played.
const STEPS: usize = 64;

/// Plays `data` to a new guest.
pub fn check(data: &[u8]) {
    let (records, _) = data.as_chunks::<16>();
    let mut guest = Guest::new();
    for record in records.iter().take(STEPS) {
        if play(&mut guest, record) == State::Ended {
            break;
        }
    }
    if let Err(miscount) = guest.domain.recount() {
        panic!("{miscount}");
    }
}

fn play(guest: &mut Guest, record: &[u8; 16]) -> State {
    let [what, operands @ ..] = record;
    let (operands, _) = operands.as_chunks::<3>();
    let value = |index: usize| operands.get(index).map_or(0, |operand| operand_value(guest, *operand));
    let values: [u64; 5] = std::array::from_fn(value);
    match what {
        // All numbers of the table, and some beyond.
        0..0x60 => guest.syscall(u64::from(*what), values),
        0x60..0xc0 => store_words(guest, values),
        0xc0..0xe0 => guest.exit(Exit::Exception(Exception {
            vector: what & 0x1f,
            error_code: (what & 1 != 0).then_some(u32::from(operands[0][1])),
        })),
        0xe0..0xf8 => guest.exit(Exit::Privileged(Privileged { length: 2, op: privileged(*what, &values) })),
        0xf8..=0xff => guest.exit(Exit::Interrupted),
    }
}

/// Four words, one after the other: a structure for a hypercall, or page-table entries.
fn store_words(guest: &mut Guest, [at, words @ ..]: [u64; 5]) -> State {
    for (index, word) in (0..).zip(words) {
        if guest.store(GuestVirt(at.wrapping_add(8 * index)), word) == State::Ended {
            return State::Ended;
        }
    }
    State::Runs
}

/// The meaning of an operand: mostly something that exists in the guest.
fn operand_value(guest: &Guest, [kind, low, high]: [u8; 3]) -> u64 {
    let number = u64::from(u16::from_le_bytes([low, high]));
    // The upper bits choose a page, the lower ones a place in it.
    let (page, place) = (Pfn((number >> 6) % PAGES), number & 0x3f);
    let machine_address = |page| guest.frame(page).0 << PAGE_SHIFT;
    match kind % 11 {
        0 => number,
        1 => number.wrapping_neg(),
        2 => VIRT_BASE + page.0 * PAGE_SIZE + place * 64,
        3 => machine_address(page) + place * 8,
        4 => guest.frame(page).0,
        5 => page.0,
        // A page-table entry: present, writable, user, accessed, dirty and the page-size bit as chosen.
        6 => machine_address(page) | (place & 0x7) | (place & 0x38) << 2,
        // DOMID_SELF and its neighbours, DOMID_IO and DOMID_XEN among them.
        7 => 0x7ff0 + (number & 0xf),
        // Where an entry of the first page tables is.
        8 => guest.table_entry(number >> 9, number),
        // Two small numbers in the halves of a word.
        9 => number << 32 | place,
        _ => number << 48 | page.0,
    }
}

fn privileged(what: u8, values: &[u64; 5]) -> PrivilegedOp {
    match what % 12 {
        0 => PrivilegedOp::Rdmsr,
        1 => PrivilegedOp::Wrmsr,
        2 => PrivilegedOp::Cpuid { forced: true },
        3 => PrivilegedOp::Cli,
        4 => PrivilegedOp::Sti,
        5 => PrivilegedOp::Hlt,
        6 => PrivilegedOp::Clts,
        7 => PrivilegedOp::Invlpg(values[0]),
        8 => PrivilegedOp::Xsetbv,
        9 => PrivilegedOp::WriteDebug { to: (values[0] & 7) as u8, value: values[1] },
        10 => PrivilegedOp::ReadDebug { from: (values[0] & 7) as u8, to: Gpr::Rax },
        _ => PrivilegedOp::Other,
    }
}

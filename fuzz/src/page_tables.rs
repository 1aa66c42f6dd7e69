//! The page-table walk over tables that a guest could write: it always ends, stays inside guest memory, and agrees
//! with the inspection of the same tables.
//!
//! The input is the address (8 bytes), the access and the privilege (one byte each), and then one record for
//! each level from the root down: which frame the entry names, and its other bits. Frames may be used twice
//! and for several levels, so tables can name themselves.

use paravane_abi::units::{GuestVirt, MachAddr, Mfn, PAGE_SHIFT, PAGE_SIZE};
use paravane_memory::Memory;
use paravane_memory::paging::{Access, FaultCode, Privilege, WalkFault, inspect, walk};

/// The frames of the guest. The last ones that a record can name lie outside.
const FIRST: Mfn = Mfn(0x1000);
const FRAMES: u64 = 6;
const NAMED: u64 = 8;

/// Bits of an entry that hold the frame.
const FRAME_BITS: u64 = 0x000f_ffff_ffff_f000;

/// Builds the tables of `data` and walks them.
pub fn check(data: &[u8]) {
    let Some((head, records)) = data.split_first_chunk::<10>() else { return };
    let [address @ .., access, privilege] = *head;
    let address = GuestVirt(u64::from_le_bytes(address));
    let access = [Access::Read, Access::Write, Access::Execute][usize::from(access % 3)];
    let privilege = [Privilege::Supervisor, Privilege::User][usize::from(privilege % 2)];
    let memory = Memory::new(FIRST, FRAMES).expect("six frames can be had");
    write_tables(&memory, address, records);

    let (steps, seen) = inspect(&memory, FIRST, address);
    assert!(!steps.is_empty() && steps.len() <= 4, "a walk has four steps at most");

    match walk(&memory, FIRST, address, access, privilege) {
        Ok(found) => {
            assert!(memory.contains(found.frame), "{:?} is not the guest's", found.frame);
            assert!(access != Access::Write || found.writable);
            assert!(access != Access::Execute || found.executable);
            assert!(privilege != Privilege::User || found.user);
            assert_eq!(walk(&memory, FIRST, address, access, privilege), Ok(found), "a walk can be repeated");
            // A walk that met a table naming itself may have changed what is inspected, so look again.
            assert_eq!(inspect(&memory, FIRST, address).1, Some(found));
        }
        Err(WalkFault::NotCanonical(at)) => assert!(at == address && !address.is_canonical()),
        Err(WalkFault::Page { address: at, code }) => {
            assert_eq!(at, address);
            assert_eq!(code.0 & FaultCode::WRITE != 0, access == Access::Write);
            assert_eq!(code.0 & FaultCode::FETCH != 0, access == Access::Execute);
            assert_eq!(code.0 & FaultCode::USER != 0, privilege == Privilege::User);
            assert!(code.0 & FaultCode::PRESENT != 0 || seen.is_none(), "what is there is not missing");
        }
    }
}

/// Writes one entry for each record, each into the table that the entry before it names.
fn write_tables(memory: &Memory, address: GuestVirt, records: &[u8]) {
    let (records, _) = records.as_chunks::<9>();
    let mut table = FIRST;
    for (record, level) in records.iter().zip([4_u32, 3, 2, 1]) {
        let [named, bits @ ..] = *record;
        let frame = Mfn(FIRST.0 + u64::from(named) % NAMED);
        let entry = (u64::from_le_bytes(bits) & !FRAME_BITS) | frame.0 << PAGE_SHIFT;
        let index = (address.0 >> (PAGE_SHIFT + 9 * (level - 1))) & 0x1ff;
        let at = MachAddr(table.0 * PAGE_SIZE + index * 8);
        if memory.store_u64(at, entry).is_err() {
            assert!(!memory.contains(table), "only a table outside guest memory cannot be written");
            return;
        }
        table = frame;
    }
}

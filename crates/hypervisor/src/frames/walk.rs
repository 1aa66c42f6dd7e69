//! From an address to the L1 entry that decides about it.

use paravane_abi::units::{GuestVirt, Mfn};
use paravane_memory::{Memory, paging::FaultCode};

use super::{
    entry::{Entry, NO_EXECUTE, USER},
    level::{Level, slot_of},
    validate::slot_address,
};
use crate::guest::is_guest_address;

/// The L1 entry of an address, present or not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leaf {
    /// The table it lies in.
    pub(crate) table: Mfn,
    /// Its slot.
    pub(crate) slot: usize,
    /// The entry.
    pub(crate) entry: Entry,
    /// What all levels allow together: the bits of an entry, with the no-execute bit set if any level has it.
    rights: u64,
}

/// Finds the L1 entry of `address`, as far as the levels above are present. Sets no accessed bits.
pub(crate) fn find_leaf(memory: &Memory, root: Mfn, address: GuestVirt) -> Option<Leaf> {
    if !is_guest_address(address) {
        return None;
    }
    let mut table = root;
    let mut rights = !NO_EXECUTE;
    for level in [Level::L4, Level::L3, Level::L2, Level::L1] {
        let slot = slot_of(level, address.0);
        let entry = Entry(memory.load_u64(slot_address(table, slot)).ok()?);
        rights = rights & entry.0 | (rights | entry.0) & NO_EXECUTE;
        if level == Level::L1 {
            return Some(Leaf { table, slot, entry, rights });
        }
        if !entry.is_present() {
            return None;
        }
        table = entry.frame();
    }
    None
}

impl Leaf {
    /// Whether the translation allows an access that faulted with `code`.
    pub(crate) fn allows(&self, code: FaultCode) -> bool {
        let granted = self.entry.is_present() && self.rights & USER != 0;
        let may_write = code.0 & FaultCode::WRITE == 0 || Entry(self.rights).is_writable();
        let may_execute = code.0 & FaultCode::FETCH == 0 || self.rights & NO_EXECUTE == 0;
        granted && may_write && may_execute && code.0 & FaultCode::RESERVED == 0
    }
}

//! From a selector to the descriptor it names.

use paravane_abi::units::MachAddr;
use paravane_memory::Memory;

use crate::context::{DescriptorTables, GDT_FRAMES};

/// Why a selector names no descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookupFault {
    /// It lies beyond the table's end: #GP(selector).
    BeyondLimit,
    /// It lies in this page of the LDT, whose frame is not known yet.
    LdtPage(u8),
}

/// The descriptor quadword that `selector` names in `tables`. The null selector names entry 0 like any other;
/// callers treat it first.
///
/// # Errors
///
/// [`LookupFault`].
pub fn lookup(memory: &Memory, tables: &DescriptorTables, selector: u16) -> Result<u64, LookupFault> {
    const LDT: u16 = 1 << 2;
    const PAGE: u16 = 4096;
    let (page, offset) = (usize::from(selector / PAGE), u64::from((selector % PAGE) & !7));
    let frame = if selector & LDT == 0 {
        if page >= GDT_FRAMES {
            return Err(LookupFault::BeyondLimit);
        }
        tables.gdt[page]
    } else {
        if selector >> 3 >= tables.ldt_entries {
            return Err(LookupFault::BeyondLimit);
        }
        #[expect(clippy::cast_possible_truncation, reason = "a selector names one of 16 pages")]
        let missing = LookupFault::LdtPage(page as u8);
        Some(tables.ldt[page].ok_or(missing)?)
    };
    // Pages that the guest never filled hold null descriptors, and so does a frame that is not memory.
    let descriptor =
        frame.and_then(|frame| frame.base()).and_then(|base| memory.load_u64(MachAddr(base.0 + offset)).ok());
    Ok(descriptor.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use paravane_abi::units::Mfn;

    use super::*;

    #[test]
    fn selectors_find_their_entries_and_ends_of_tables() {
        let memory = Memory::new(Mfn(16), 4).unwrap();
        memory.store_u64(MachAddr(16 << 12 | 0x10), 0xaaaa).unwrap();
        memory.store_u64(MachAddr(17 << 12 | 0x8), 0xbbbb).unwrap();
        let mut tables = DescriptorTables::default();
        tables.gdt[0] = Some(Mfn(16));
        tables.ldt_entries = 600;
        tables.ldt[1] = Some(Mfn(17));
        for (selector, found) in [
            (0x13, Ok(0xaaaa)),
            (0x1000, Ok(0)),
            (0xeff8, Ok(0)),
            (0xf000, Err(LookupFault::BeyondLimit)),
            (0x0004, Err(LookupFault::LdtPage(0))),
            (0x100c, Ok(0xbbbb)),
            (600 << 3 | 4, Err(LookupFault::BeyondLimit)),
        ] {
            assert_eq!(lookup(&memory, &tables, selector), found, "{selector:#x}");
        }
    }
}

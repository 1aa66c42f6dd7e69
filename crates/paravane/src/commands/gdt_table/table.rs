//! A table placed in the GDT, split into descriptors, each with its fate.

use paravane_x86::{
    descriptor::{Descriptor, Kind},
    gdt::{self, Contents, ReservedEntry},
    mode::Mode,
    selector::{Ring, Selector, Table},
    submit::{Submission, submit},
};

use super::super::{
    descriptor::{Entry, Pairing, group, known_form},
    gdt_file::{Dump, Format},
};
use crate::failure::Failure;

/// Entries that a selector can name.
const MAX_ENTRIES: usize = 8192;

/// A table, placed in the GDT and split into descriptors.
#[derive(Clone, Debug)]
pub(super) struct DescriptorTable {
    /// How it was written.
    pub format: Format,
    /// The address of its first byte, where the dump says it.
    pub address: Option<u64>,
    /// Index of the first entry.
    pub first: u16,
    /// Number of entries.
    pub len: usize,
    /// Whose rules the fates follow.
    pub mode: Mode,
    /// How that was found.
    pub mode_origin: ModeOrigin,
    /// The descriptors; a 16-byte one counts once.
    pub slots: Vec<Slot>,
}

/// Where the mode comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ModeOrigin {
    /// The options.
    Asked,
    /// The reserved page in the table.
    ReservedPage,
    /// Nothing says otherwise.
    Assumed,
}

/// One descriptor with its place and its fate.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    /// Its number in the GDT.
    pub index: u16,
    /// The descriptor.
    pub entry: Entry,
    /// What becomes of it.
    pub fate: Fate,
}

/// Whose an entry is, and what that means for it.
#[derive(Clone, Debug)]
pub(super) enum Fate {
    /// The guest's: Xen checks it.
    Guest(Submission),
    /// In the reserved page, and what Xen has there.
    Reserved(&'static ReservedEntry),
    /// In the reserved page, but not what Xen has there.
    Unexpected(&'static ReservedEntry),
    /// After the reserved page: the hardware limit hides it.
    BeyondLimit,
}

impl DescriptorTable {
    /// Places `dump` at entry `first`, or where its contents say, and reads it in the mode `chosen`, or that of
    /// the reserved page in it.
    ///
    /// # Errors
    ///
    /// [`Failure::Usage`] if the table does not fit after `first`.
    pub(super) fn new(dump: &Dump, first: Option<u16>, chosen: Option<Mode>) -> Result<Self, Failure> {
        let quadwords = dump.quadwords.as_slice();
        let whole_page = reserved_mode(quadwords).filter(|_| quadwords.len() <= 512);
        let first = first.unwrap_or(if whole_page.is_some() { gdt::FIRST_RESERVED_ENTRY } else { 0 });
        if usize::from(first) + quadwords.len() > MAX_ENTRIES {
            return Err(Failure::Usage(format!(
                "a table has at most {MAX_ENTRIES} entries, and {} of them do not fit from entry {first} on: check \
                 --first",
                quadwords.len()
            )));
        }
        let split = usize::from(gdt::FIRST_RESERVED_ENTRY.saturating_sub(first)).min(quadwords.len());
        let (guests, reserved) = quadwords.split_at(split);
        let recognised = if first <= gdt::FIRST_RESERVED_ENTRY { reserved_mode(reserved) } else { None };
        let (mode, mode_origin) = match (chosen, recognised) {
            (Some(mode), _) => (mode, ModeOrigin::Asked),
            (None, Some(mode)) => (mode, ModeOrigin::ReservedPage),
            (None, None) => (Mode::Guest64, ModeOrigin::Assumed),
        };
        let mut slots = Vec::new();
        let mut index = first;
        // A descriptor of the guest's does not reach into the reserved page.
        for entry in
            [guests, reserved].into_iter().flat_map(|part| group(part, mode, Pairing::WherePlausible))
        {
            slots.push(Slot { index, entry, fate: fate(mode, index, entry) });
            index += entry.len();
        }
        Ok(Self {
            format: dump.format,
            address: dump.address,
            first,
            len: quadwords.len(),
            mode,
            mode_origin,
            slots,
        })
    }

    /// The number of the last entry.
    pub(super) fn last(&self) -> usize {
        usize::from(self.first) + self.len - 1
    }
}

impl Slot {
    /// Whether it can be left out of a listing: nothing is here, and nothing should be.
    pub(super) fn is_empty(&self) -> bool {
        match self.fate {
            Fate::Guest(_) | Fate::Reserved(_) | Fate::BeyondLimit => self.entry.is_empty(),
            Fate::Unexpected(_) => false,
        }
    }

    /// The selector by which it is meant to be loaded: with its DPL as RPL.
    pub(super) fn selector(&self) -> Option<Selector> {
        let rpl = match self.entry.low.kind() {
            Kind::Code(_) | Kind::Data(_) => self.entry.low.dpl(),
            Kind::System(_) => Ring::R0,
        };
        Selector::new(self.index, Table::Gdt, rpl)
    }
}

fn fate(mode: Mode, index: u16, entry: Entry) -> Fate {
    match gdt::reserved_entry(mode, index) {
        Some(reserved) if is_as_reserved(reserved, entry.low) => Fate::Reserved(reserved),
        Some(reserved) => Fate::Unexpected(reserved),
        None if index < gdt::FIRST_RESERVED_ENTRY => Fate::Guest(submit(mode, entry.low)),
        None => Fate::BeyondLimit,
    }
}

/// Whether `descriptor` can be found where Xen has `reserved`.
fn is_as_reserved(reserved: &ReservedEntry, descriptor: Descriptor) -> bool {
    match reserved.contents {
        Contents::Hole => descriptor == Descriptor::NULL,
        Contents::FormerlyUsed { .. } => {
            descriptor == Descriptor::NULL || known_form(reserved, descriptor).is_some()
        }
        Contents::Fixed { .. } => known_form(reserved, descriptor).is_some(),
        // Written when the CPU starts; before that it is empty.
        Contents::PerCpu { .. } | Contents::PerCpuWide => true,
    }
}

/// The mode whose reserved page `quadwords` begin: every fixed descriptor of it is in its place.
fn reserved_mode(quadwords: &[u64]) -> Option<Mode> {
    Mode::ALL.into_iter().find(|&mode| {
        gdt::reserved_entries(mode)
            .iter()
            .filter(|reserved| matches!(reserved.contents, Contents::Fixed { .. }))
            .all(|reserved| {
                let quadword = quadwords.get(usize::from(reserved.index() - gdt::FIRST_RESERVED_ENTRY));
                quadword.is_some_and(|&quadword| known_form(reserved, Descriptor(quadword)).is_some())
            })
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The reserved page of `mode` as Xen fills it on CPU 7, with a TSS and an LDT.
    pub(in super::super) fn reserved_page(mode: Mode) -> Vec<u64> {
        let mut page = vec![0; 512];
        for reserved in gdt::reserved_entries(mode) {
            let place = usize::from(reserved.index() - gdt::FIRST_RESERVED_ENTRY);
            match reserved.contents {
                Contents::Hole | Contents::FormerlyUsed { .. } => {}
                Contents::Fixed { current, .. } => page[place] = current.0,
                Contents::PerCpu { fixed } => page[place] = fixed.0 | 7,
                Contents::PerCpuWide => {
                    page[place] = 0x8000_8953_1040_0067;
                    page[place + 1] = 0xffff_82d0;
                }
            }
        }
        page
    }

    pub(in super::super) fn table(
        quadwords: Vec<u64>,
        first: Option<u16>,
        chosen: Option<Mode>,
    ) -> DescriptorTable {
        let dump = Dump { format: Format::Binary, address: None, quadwords };
        DescriptorTable::new(&dump, first, chosen).unwrap()
    }

    #[test]
    fn the_reserved_page_is_recognised_in_every_mode() {
        for mode in Mode::ALL {
            let table = table(reserved_page(mode), None, None);
            assert_eq!((table.first, table.mode), (7168, mode));
            assert_eq!(table.mode_origin, ModeOrigin::ReservedPage);
            assert!(table.slots.iter().all(|slot| matches!(slot.fate, Fate::Reserved(_))), "{mode}");
        }
    }

    #[test]
    fn a_whole_gdt_tells_its_mode_by_its_end() {
        let mut quadwords = vec![0; 7168];
        quadwords[2] = 0x00af_9b00_0000_ffff;
        quadwords.extend(reserved_page(Mode::Guest32On64));
        quadwords.push(0x00cf_f300_0000_ffff);
        let table = table(quadwords, None, None);
        assert_eq!((table.first, table.mode, table.last()), (0, Mode::Guest32On64, 7680));
        let fate = |index: u16| table.slots.iter().find(|slot| slot.index == index).map(|slot| &slot.fate);
        // 64-bit code is not for 32-bit guests.
        assert!(matches!(fate(2), Some(Fate::Guest(Submission::Refused(_)))));
        assert!(matches!(fate(7174), Some(Fate::Reserved(_))));
        assert!(matches!(fate(7680), Some(Fate::BeyondLimit)));
    }

    #[test]
    fn what_is_not_xens_in_the_reserved_page_is_noticed() {
        let mut quadwords = reserved_page(Mode::Guest64);
        quadwords[6] = 0x00af_9b00_0000_ffff;
        quadwords[300] = 0x00cf_f300_0000_ffff;
        let table = table(quadwords, Some(7168), None);
        assert_eq!(table.mode_origin, ModeOrigin::Assumed);
        let unexpected: Vec<u16> = table
            .slots
            .iter()
            .filter(|slot| matches!(slot.fate, Fate::Unexpected(_)))
            .map(|slot| slot.index)
            .collect();
        assert_eq!(unexpected, [7174, 7468]);
    }

    #[test]
    fn a_wide_descriptor_does_not_reach_into_the_reserved_page() {
        let mut quadwords = vec![0x0000_8900_0000_0067];
        quadwords.extend(reserved_page(Mode::Guest64));
        let table = table(quadwords, Some(7167), None);
        assert_eq!(table.mode, Mode::Guest64);
        assert_eq!(table.slots[0].entry.len(), 1);
        assert_eq!(table.slots[1].index, 7168);
    }

    #[test]
    fn a_table_that_does_not_fit_is_refused() {
        let dump = Dump { format: Format::Binary, address: None, quadwords: vec![0; 3] };
        assert!(DescriptorTable::new(&dump, Some(8189), None).is_ok());
        assert!(DescriptorTable::new(&dump, Some(8190), None).is_err());
    }
}

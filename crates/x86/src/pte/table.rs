//! The fields of an entry as a table, and an entry explained field by field.

use serde::Serialize;

use super::rules::{CacheRights, disallowed};
use super::{Level, Pte, PteFlags};
use crate::mode::Guest;

/// A field of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PteField {
    /// The highest bit.
    pub high: u8,
    /// The lowest bit.
    pub low: u8,
    /// Its name.
    pub name: &'static str,
    /// What it means in level 1.
    pub in_leaf: &'static str,
    /// What it means in levels 2 to 4.
    pub in_table: &'static str,
}

/// What a PV hypervisor does about a field of a present entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Treatment {
    /// The guest decides.
    Allowed,
    /// The hypervisor sets it, in the case that the words tell.
    Set(&'static str),
    /// The guest may not set it: EINVAL.
    Refused,
    /// The guest may set it only if it may choose cache attributes, which a domain without devices may not:
    /// EINVAL.
    NeedsCacheRights,
}

/// A field of an entry with its value and all that is to say about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct FieldView {
    /// The field.
    pub field: &'static PteField,
    /// Its value, shifted down.
    pub value: u64,
    /// What it means on this level.
    pub meaning: &'static str,
    /// What a PV hypervisor does about it.
    pub treatment: Treatment,
}

/// A field of one bit.
const fn bit(bit: u8, name: &'static str, in_leaf: &'static str, in_table: &'static str) -> PteField {
    PteField { high: bit, low: bit, name, in_leaf, in_table }
}

/// Every field, from low to high.
pub const PTE_FIELDS: &[PteField] = &[
    bit(0, "P", "The page is mapped; otherwise the other bits are software's.", "The table below exists."),
    bit(1, "RW", "Writes are allowed, if every level allows them.", "Writes are allowed below."),
    bit(2, "US", "Ring 3 is allowed, if every level allows it.", "Ring 3 is allowed below."),
    bit(
        3,
        "PWT",
        "Bit 0 of the index into the PAT register.",
        "Bit 0 of the PAT index with which the CPU reads the table.",
    ),
    bit(
        4,
        "PCD",
        "Bit 1 of the index into the PAT register.",
        "Bit 1 of the PAT index with which the CPU reads the table.",
    ),
    bit(5, "A", "The CPU has used the entry.", "The CPU has used the entry."),
    bit(6, "D", "The CPU has written to the page.", "Ignored by the CPU."),
    bit(
        7,
        "PAT or PS",
        "Bit 2 of the index into the PAT register.",
        "The entry maps a large page instead of a table; in level 4 it must be 0.",
    ),
    bit(8, "G", "The translation outlives a load of CR3.", "Ignored by the CPU."),
    PteField {
        high: 11,
        low: 9,
        name: "AVL",
        in_leaf: "For software; ignored by the CPU.",
        in_table: "For software; ignored by the CPU.",
    },
    PteField {
        high: 51,
        low: 12,
        name: "frame",
        in_leaf: "The machine frame of the page.",
        in_table: "The machine frame of the table below.",
    },
    bit(
        52,
        "kernel mark",
        "Xen's mark of a kernel mapping; ignored by the CPU.",
        "For software; ignored by the CPU.",
    ),
    PteField {
        high: 62,
        low: 53,
        name: "AVL high",
        in_leaf: "For software. Bits 62..59 are a protection key on other systems; debugging builds of Xen \
                  keep bit 62.",
        in_table: "For software; ignored by the CPU.",
    },
    bit(
        63,
        "NX",
        "Instructions may not be fetched, if any level says so.",
        "Instructions may not be fetched below.",
    ),
];

impl PteField {
    /// The field's bits.
    pub const fn mask(&self) -> u64 {
        (u64::MAX >> (63 - (self.high - self.low))) << self.low
    }

    /// What a PV hypervisor does about the field in a present entry of that level. A 32-bit guest has no level 4.
    pub fn treatment(&self, level: Level, guest: Guest) -> Treatment {
        let refused = |rights| disallowed(level, guest, rights).bits() & self.mask() != 0;
        if refused(CacheRights::Granted) {
            Treatment::Refused
        } else if refused(CacheRights::None) {
            Treatment::NeedsCacheRights
        } else {
            set_when(PteFlags::from_bits_truncate(self.mask()), level, guest)
                .map_or(Treatment::Allowed, Treatment::Set)
        }
    }
}

/// In which case [`super::adjust`] sets the flag.
fn set_when(flag: PteFlags, level: Level, guest: Guest) -> Option<&'static str> {
    let (flags, when) = match (level, guest) {
        (Level::L1, Guest::Bits64) => {
            return [
                (PteFlags::USER, "always: both halves of the guest are in ring 3"),
                (PteFlags::GUEST_KERNEL, "if US is clear: a kernel mapping"),
                (PteFlags::GLOBAL, "if US is set and bit 52 is clear: a user mapping"),
            ]
            .into_iter()
            .find_map(|(set, when)| (set == flag).then_some(when));
        }
        (Level::L2 | Level::L3, Guest::Bits64) => {
            (PteFlags::USER, "always: both halves of the guest are in ring 3")
        }
        (Level::L4, Guest::Bits64) => (PteFlags::USER | PteFlags::ACCESSED, "always"),
        (Level::L3, Guest::Bits32) => {
            (PteFlags::USER | PteFlags::RW, "always: the table is a real L3, not PAE's four pointers")
        }
        (Level::L4, Guest::Bits32) => (PteFlags::ACCESSED, "always"),
        (Level::L1 | Level::L2, Guest::Bits32) => return None,
    };
    flags.intersects(flag).then_some(when)
}

/// Every field of an entry, explained for its level.
pub fn explain(level: Level, guest: Guest, pte: Pte) -> Vec<FieldView> {
    PTE_FIELDS
        .iter()
        .map(|field| FieldView {
            field,
            value: (pte.0 & field.mask()) >> field.low,
            meaning: match level {
                Level::L1 => field.in_leaf,
                Level::L2 | Level::L3 | Level::L4 => field.in_table,
            },
            treatment: field.treatment(level, guest),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pte::adjust;

    #[test]
    fn the_fields_cover_every_bit_once() {
        let mut covered = 0_u64;
        for field in PTE_FIELDS {
            assert_eq!(covered & field.mask(), 0, "{}", field.name);
            covered |= field.mask();
            assert!(field.in_leaf.ends_with('.') && field.in_table.ends_with('.'), "{}", field.name);
        }
        assert_eq!(covered, u64::MAX);
        assert!(PTE_FIELDS.is_sorted_by_key(|field| field.low));
    }

    #[test]
    fn a_field_is_said_to_be_set_exactly_where_adjustment_can_set_it() {
        for level in Level::ALL {
            for guest in [Guest::Bits64, Guest::Bits32] {
                // Whether a bit is set depends on US and bit 52 alone.
                let settable = [PteFlags::empty(), PteFlags::USER, PteFlags::GUEST_KERNEL]
                    .map(|flags| Pte((flags | PteFlags::PRESENT).bits()))
                    .into_iter()
                    .fold(0, |bits, pte| bits | (adjust(level, guest, pte).0 & !pte.0));
                for field in PTE_FIELDS {
                    let set = matches!(field.treatment(level, guest), Treatment::Set(_));
                    assert_eq!(set, settable & field.mask() != 0, "{level} {guest} {}", field.name);
                }
            }
        }
    }

    #[test]
    fn cache_bits_are_a_matter_of_rights_in_the_leaf_and_refused_above() {
        let pwt = PTE_FIELDS.iter().find(|field| field.name == "PWT").unwrap();
        assert_eq!(pwt.treatment(Level::L1, Guest::Bits64), Treatment::NeedsCacheRights);
        assert_eq!(pwt.treatment(Level::L2, Guest::Bits64), Treatment::Refused);
    }

    #[test]
    fn an_entry_is_taken_apart_completely() {
        let pte = Pte(0x8010_0000_1234_5067);
        let views = explain(Level::L1, Guest::Bits64, pte);
        let rebuilt = views.iter().fold(0, |bits, view| bits | view.value << view.field.low);
        assert_eq!(rebuilt, pte.0);
        let frame = views.iter().find(|view| view.field.name == "frame").unwrap();
        assert_eq!(frame.value, 0x12345);
    }
}

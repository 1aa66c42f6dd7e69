//! Segment selectors: the 16 bits that a segment register holds.
//!
//! ```text
//!   15                              3   2   1   0
//!  +----------------------------------+----+-------+
//!  |              index               | TI |  RPL  |
//!  +----------------------------------+----+-------+
//! ```
//!
//! The index counts 8-byte descriptors, so a selector without its low three bits is the byte offset into the
//! table. TI chooses the GDT (0) or the LDT (1). RPL is the ring in whose name the access is made.
//!
//! Source: AMD APM vol. 2, "Segment Selectors"; Intel SDM vol. 3A, "Segment Selectors".

use core::fmt;

use serde::Serialize;

/// A privilege level, 0 (most privileged) to 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(into = "u8")]
pub enum Ring {
    /// The hypervisor's own ring.
    R0,
    /// The kernel of a 32-bit PV guest.
    R1,
    /// Unused by Xen.
    R2,
    /// Everything in a 64-bit PV guest; user programs of a 32-bit one.
    R3,
}

impl Ring {
    /// The ring named by the low two bits of `bits`.
    pub fn from_bits(bits: u8) -> Self {
        [Self::R0, Self::R1, Self::R2, Self::R3][usize::from(bits & 3)]
    }
}

impl From<Ring> for u8 {
    fn from(ring: Ring) -> Self {
        match ring {
            Ring::R0 => 0,
            Ring::R1 => 1,
            Ring::R2 => 2,
            Ring::R3 => 3,
        }
    }
}

impl fmt::Display for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", u8::from(*self))
    }
}

/// Which descriptor table a selector indexes (its TI bit).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Table {
    /// The global descriptor table.
    #[serde(rename = "GDT")]
    Gdt,
    /// The local descriptor table.
    #[serde(rename = "LDT")]
    Ldt,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gdt => "GDT",
            Self::Ldt => "LDT",
        })
    }
}

/// The value of a segment register.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
#[serde(transparent)]
pub struct Selector(pub u16);

impl Selector {
    /// The null selector: no segment.
    pub const NULL: Self = Self(0);

    /// The selector of entry `index` of `table` with requested privilege `rpl`; `None` if the index does not
    /// fit in 13 bits.
    pub fn new(index: u16, table: Table, rpl: Ring) -> Option<Self> {
        let ti = match table {
            Table::Gdt => 0,
            Table::Ldt => 4,
        };
        (index < 8192).then(|| Self(index << 3 | ti | u16::from(u8::from(rpl))))
    }

    /// The descriptor's number in its table, 0 to 8191.
    pub fn index(self) -> u16 {
        self.0 >> 3
    }

    /// The table that the selector names.
    pub fn table(self) -> Table {
        if self.0 & 4 == 0 { Table::Gdt } else { Table::Ldt }
    }

    /// The requested privilege level.
    pub fn rpl(self) -> Ring {
        // The mask leaves two bits.
        Ring::from_bits((self.0 & 3) as u8)
    }

    /// The descriptor's first byte, counted from the start of its table.
    pub fn byte_offset(self) -> u16 {
        self.0 & !7
    }

    /// Whether this is one of the four null selectors: GDT entry 0 with any RPL.
    pub fn is_null(self) -> bool {
        self.0 & !3 == 0
    }

    /// The same selector asked for in the name of `ring`.
    pub fn with_rpl(self, ring: Ring) -> Self {
        Self(self.0 & !3 | u16::from(u8::from(ring)))
    }
}

impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Selector({:#06x})", self.0)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#06x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_selector_is_rebuilt_from_its_fields() {
        for value in 0..=u16::MAX {
            let selector = Selector(value);
            assert_eq!(Selector::new(selector.index(), selector.table(), selector.rpl()), Some(selector));
        }
    }

    #[test]
    fn an_index_beyond_13_bits_has_no_selector() {
        assert_eq!(Selector::new(8192, Table::Gdt, Ring::R0), None);
    }

    #[test]
    fn the_four_null_selectors_differ_only_in_rpl() {
        let null: Vec<u16> = (0..=u16::MAX).filter(|&value| Selector(value).is_null()).collect();
        assert_eq!(null, [0, 1, 2, 3]);
    }
}

//! Names for addresses of the guest kernel, from a symbol map.
//!
//! The format is that of `/proc/kallsyms` and Linux's `System.map`: address, type letter, name, a line each.

use std::collections::BTreeMap;

/// Symbols by address.
#[derive(Clone, Debug, Default)]
pub struct Symbols {
    by_address: BTreeMap<u64, String>,
}

/// An address further behind a symbol than this does not belong to it.
const MAX_DISTANCE: u64 = 1 << 20;

impl Symbols {
    /// Reads a map. Lines that are no symbols are passed over; the number of symbols tells whether it was one.
    pub fn parse(text: &str) -> Self {
        let mut by_address = BTreeMap::new();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let address =
                words.next().and_then(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok());
            let (Some(address), Some(_kind), Some(name)) = (address, words.next(), words.next()) else {
                continue;
            };
            if address != 0 {
                by_address.entry(address).or_insert_with(|| name.to_owned());
            }
        }
        Self { by_address }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_address.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_address.is_empty()
    }

    /// `name+0x12` for an address within a symbol's reach.
    pub fn name(&self, address: u64) -> Option<String> {
        let (&start, name) = self.by_address.range(..=address).next_back()?;
        let distance = address - start;
        (distance < MAX_DISTANCE).then(|| format!("{name}+{distance:#x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_named_by_the_symbol_before_it() {
        let map =
            "0000000000000000 A fixed\nffffffff81000000 T startup_xen\nffffffff81000060 t next\nrubbish\n";
        let symbols = Symbols::parse(map);
        assert_eq!(symbols.len(), 2);
        assert_eq!(symbols.name(0xffff_ffff_8100_0010).as_deref(), Some("startup_xen+0x10"));
        assert_eq!(symbols.name(0xffff_ffff_8100_0060).as_deref(), Some("next+0x0"));
        assert_eq!(symbols.name(0x1000), None);
        assert_eq!(symbols.name(0xffff_ffff_9100_0000), None);
    }
}

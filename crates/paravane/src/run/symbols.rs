//! Names for addresses of the guest kernel, from a symbol map or from the symbol table of the kernel file.
//!
//! The format of a map is that of `/proc/kallsyms` and Linux's `System.map`: address, type letter, name, a line each.

use paravane_builder::image::Image;

/// Symbols by address.
#[derive(Clone, Debug, Default)]
pub struct Symbols {
    /// In the order of their addresses, one for each.
    symbols: Vec<Symbol>,
}

#[derive(Clone, Debug)]
struct Symbol {
    address: u64,
    /// The first address behind it, or as far as it could reach.
    end: u64,
    name: Box<str>,
}

/// An address further behind a symbol of unknown length than this does not belong to it.
const MAX_DISTANCE: u64 = 1 << 20;

impl Symbols {
    /// Reads a map. Lines that are no symbols are passed over; the number of symbols tells whether it was one.
    pub fn parse(text: &str) -> Self {
        Self::new(text.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            let address = u64::from_str_radix(words.next()?.trim_start_matches("0x"), 16).ok()?;
            let (_kind, name) = (words.next()?, words.next()?);
            Some((address, 0, name))
        }))
    }

    /// The symbols in the ELF file of a kernel: none if that was stripped, as distributions' kernels are.
    pub fn of_image(image: &Image<'_>) -> Self {
        Self::new(image.symbols().map(|symbol| (symbol.address.0, symbol.len, symbol.name)))
    }

    /// Of symbols with addresses, lengths (0 where unknown) and names.
    fn new<'a>(symbols: impl Iterator<Item = (u64, u64, &'a str)>) -> Self {
        let mut symbols: Vec<Symbol> = symbols
            // Many maps begin with symbols that are offsets into the area of a CPU.
            .filter(|&(address, _, _)| address != 0)
            .map(|(address, len, name)| Symbol {
                address,
                end: address.saturating_add(if len == 0 { MAX_DISTANCE } else { len }),
                name: name.into(),
            })
            .collect();
        // Of several with the same address the first one counts.
        symbols.sort_by_key(|symbol| symbol.address);
        symbols.dedup_by_key(|symbol| symbol.address);
        Self { symbols }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.symbols.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.symbols.is_empty()
    }

    /// The symbol that an address belongs to.
    fn of(&self, address: u64) -> Option<&Symbol> {
        let behind = self.symbols.partition_point(|symbol| symbol.address <= address);
        self.symbols.get(behind.checked_sub(1)?).filter(|symbol| address < symbol.end)
    }

    /// `name+0x12` for an address within a symbol's reach.
    pub fn name(&self, address: u64) -> Option<String> {
        self.of(address).map(|symbol| format!("{}+{:#x}", symbol.name, address - symbol.address))
    }

    /// Where the symbol begins that an address belongs to.
    pub fn start_of(&self, address: u64) -> Option<u64> {
        self.of(address).map(|symbol| symbol.address)
    }

    /// An address, with its symbol where that is known.
    pub fn place(&self, address: u64) -> String {
        match self.name(address) {
            Some(name) => format!("{address:#x} ({name})"),
            None => format!("{address:#x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_symbol_with_a_length_reaches_no_further() {
        let symbols =
            Symbols::new([(0x1000, 0x10, "short"), (0x1000, 0, "alias"), (0x2000, 0, "open")].into_iter());
        assert_eq!(symbols.len(), 2);
        assert_eq!(symbols.name(0x100f).as_deref(), Some("short+0xf"));
        assert_eq!(symbols.name(0x1010), None);
        assert_eq!(symbols.place(0x2ff0), "0x2ff0 (open+0xff0)");
        assert_eq!(symbols.place(0x1010), "0x1010");
        assert_eq!(symbols.start_of(0x1008), Some(0x1000));
    }

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

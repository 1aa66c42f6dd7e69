//! The backend of the guest's console: two byte rings in one page.
//!
//! Source: `xen/include/public/io/console.h`.

use core::mem::offset_of;

use paravane_abi::{
    console::{CONNECTED, ConsoleRing},
    units::{MachAddr, Mfn, PAGE_SHIFT},
};
use paravane_memory::Memory;

use crate::byte_ring::{ByteRing, RingError, RingLayout};

#[expect(clippy::cast_possible_truncation, reason = "offsets in a page")]
const INPUT: RingLayout = RingLayout {
    data: offset_of!(ConsoleRing, input) as u32,
    size: 1024,
    consumer: offset_of!(ConsoleRing, in_cons) as u32,
    producer: offset_of!(ConsoleRing, in_prod) as u32,
};
#[expect(clippy::cast_possible_truncation, reason = "offsets in a page")]
const OUTPUT: RingLayout = RingLayout {
    data: offset_of!(ConsoleRing, output) as u32,
    size: 2048,
    consumer: offset_of!(ConsoleRing, out_cons) as u32,
    producer: offset_of!(ConsoleRing, out_prod) as u32,
};

/// A console page that this side serves.
#[derive(Clone, Copy, Debug)]
pub struct Console<'a> {
    memory: &'a Memory,
    page: Mfn,
}

impl<'a> Console<'a> {
    /// The console in the page `page`.
    pub fn new(memory: &'a Memory, page: Mfn) -> Self {
        Self { memory, page }
    }

    /// Tells the guest that somebody serves its console.
    ///
    /// # Errors
    ///
    /// [`RingError`] if the page is not in machine memory.
    pub fn connect(&self) -> Result<(), RingError> {
        let at = MachAddr(self.page.0 << PAGE_SHIFT | offset_of!(ConsoleRing, connection) as u64);
        Ok(self.memory.store_u8(at, CONNECTED)?)
    }

    /// Appends what the guest printed to `into`. The guest is to be notified if there was anything, since it may
    /// wait for room. Returns how many bytes there were.
    ///
    /// # Errors
    ///
    /// [`RingError`].
    pub fn take_output(&self, into: &mut Vec<u8>) -> Result<usize, RingError> {
        ByteRing::new(self.memory, self.page, OUTPUT).take(into, usize::MAX)
    }

    /// Gives the guest what was typed. The guest is to be notified of it. Returns how many bytes there was room
    /// for.
    ///
    /// # Errors
    ///
    /// [`RingError`].
    pub fn give_input(&self, bytes: &[u8]) -> Result<usize, RingError> {
        ByteRing::new(self.memory, self.page, INPUT).give(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_read_where_the_guest_writes_it_and_input_appears_where_it_reads() {
        let memory = Memory::new(Mfn(8), 1).unwrap();
        let at = |offset: usize| MachAddr(8 << PAGE_SHIFT | offset as u64);
        memory.write(at(1024), b"hello").unwrap();
        memory.store_u32(at(3084), 5).unwrap();
        memory.store_u8(at(3088), 1).unwrap();
        let console = Console::new(&memory, Mfn(8));
        console.connect().unwrap();
        assert_eq!(memory.load_u8(at(3088)).unwrap(), 0);
        let mut printed = Vec::new();
        assert_eq!(console.take_output(&mut printed), Ok(5));
        assert_eq!(printed, b"hello");
        assert_eq!(memory.load_u32(at(3080)).unwrap(), 5);
        assert_eq!(console.give_input(b"ls\n"), Ok(3));
        let mut typed = [0; 3];
        memory.read(at(0), &mut typed).unwrap();
        assert_eq!((&typed, memory.load_u32(at(3076)).unwrap()), (b"ls\n", 3));
    }
}

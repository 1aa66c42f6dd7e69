//! A ring of bytes in a page shared with the guest: one direction of the console's and xenstore's pages.
//!
//! Producer and consumer each own one index, a free-running 32-bit counter; a byte's place is the index modulo the
//! ring's size. The guest owns the other index and may put anything there: more than a ring's worth between the two is
//! reported, never believed.

use paravane_abi::units::{MachAddr, Mfn, PAGE_SHIFT};
use paravane_memory::{Memory, OutOfRange};
use thiserror::Error;

/// Where a ring and its indexes lie in the page, in bytes. `size` is a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingLayout {
    /// The first byte.
    pub data: u32,
    /// How many bytes.
    pub size: u32,
    /// The consumer's index.
    pub consumer: u32,
    /// The producer's index.
    pub producer: u32,
}

/// A ring that can no longer be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RingError {
    /// The guest let the indexes run apart.
    #[error("the guest broke its ring: {filled} bytes between the indexes of a ring of {size}")]
    Indexes {
        /// Producer minus consumer.
        filled: u32,
        /// The ring's size.
        size: u32,
    },
    /// The page is not in machine memory.
    #[error(transparent)]
    Memory(#[from] OutOfRange),
}

/// One direction of a shared page.
#[derive(Clone, Copy, Debug)]
pub struct ByteRing<'a> {
    memory: &'a Memory,
    page: Mfn,
    layout: RingLayout,
}

impl<'a> ByteRing<'a> {
    /// The ring with this layout in the page `page`.
    pub fn new(memory: &'a Memory, page: Mfn, layout: RingLayout) -> Self {
        Self { memory, page, layout }
    }

    /// Takes all bytes that the guest produced and appends them to `into`, at most `limit` of them. Returns how many.
    ///
    /// # Errors
    ///
    /// [`RingError`].
    pub fn take(&self, into: &mut Vec<u8>, limit: usize) -> Result<usize, RingError> {
        let (consumer, filled) = self.state()?;
        let count = (filled as usize).min(limit);
        let start = into.len();
        into.resize(start + count, 0);
        let mut done = 0;
        while done < count {
            let (at, room) = self.piece(consumer, done);
            let piece = room.min(count - done);
            self.memory.read(at, &mut into[start + done..start + done + piece])?;
            done += piece;
        }
        // Published after the bytes were read: the guest may overwrite them now.
        self.memory.store_u32(self.at(self.layout.consumer), advanced(consumer, count))?;
        Ok(count)
    }

    /// Gives the guest as many of `bytes` as there is room for. Returns how many.
    ///
    /// # Errors
    ///
    /// [`RingError`].
    pub fn give(&self, bytes: &[u8]) -> Result<usize, RingError> {
        let (consumer, filled) = self.state()?;
        let producer = consumer.wrapping_add(filled);
        let count = ((self.layout.size - filled) as usize).min(bytes.len());
        let mut done = 0;
        while done < count {
            let (at, room) = self.piece(producer, done);
            let piece = room.min(count - done);
            self.memory.write(at, &bytes[done..done + piece])?;
            done += piece;
        }
        // Published after the bytes were written.
        self.memory.store_u32(self.at(self.layout.producer), advanced(producer, count))?;
        Ok(count)
    }

    /// The consumer's index and how many bytes lie before the producer's.
    fn state(&self) -> Result<(u32, u32), RingError> {
        let consumer = self.memory.load_u32(self.at(self.layout.consumer))?;
        let producer = self.memory.load_u32(self.at(self.layout.producer))?;
        let filled = producer.wrapping_sub(consumer);
        if filled > self.layout.size {
            return Err(RingError::Indexes { filled, size: self.layout.size });
        }
        Ok((consumer, filled))
    }

    /// The place of byte `index + done`, and how many bytes follow up to the ring's end.
    fn piece(&self, index: u32, done: usize) -> (MachAddr, usize) {
        let place = advanced(index, done) & (self.layout.size - 1);
        (self.at(self.layout.data + place), (self.layout.size - place) as usize)
    }

    fn at(&self, offset: u32) -> MachAddr {
        MachAddr(self.page.0 << PAGE_SHIFT | u64::from(offset))
    }
}

/// An index moved on by `count`, which is less than a ring's size.
#[expect(clippy::cast_possible_truncation, reason = "rings are smaller than a page")]
fn advanced(index: u32, count: usize) -> u32 {
    index.wrapping_add(count as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: RingLayout = RingLayout { data: 0, size: 16, consumer: 64, producer: 68 };

    fn memory() -> Memory {
        Memory::new(Mfn(8), 1).unwrap()
    }

    #[test]
    fn bytes_pass_through_in_order_across_the_wrap_of_ring_and_counter() {
        let memory = memory();
        let ring = ByteRing::new(&memory, Mfn(8), LAYOUT);
        for index in [LAYOUT.consumer, LAYOUT.producer] {
            memory.store_u32(ring.at(index), u32::MAX - 4).unwrap();
        }
        let (mut sent, mut received) = (Vec::new(), Vec::new());
        for round in 0..20u8 {
            let bytes: Vec<u8> = (0..11).map(|byte| byte ^ round).collect();
            assert_eq!(ring.give(&bytes), Ok(11));
            sent.extend(&bytes);
            assert_eq!(ring.take(&mut received, usize::MAX), Ok(11));
        }
        assert_eq!(received, sent);
    }

    #[test]
    fn a_full_ring_takes_no_more_and_an_empty_one_gives_nothing() {
        let memory = memory();
        let ring = ByteRing::new(&memory, Mfn(8), LAYOUT);
        assert_eq!(ring.give(&[7; 40]), Ok(16));
        assert_eq!(ring.give(&[7; 40]), Ok(0));
        let mut bytes = Vec::new();
        assert_eq!(ring.take(&mut bytes, 10), Ok(10));
        assert_eq!(ring.take(&mut bytes, 10), Ok(6));
        assert_eq!(ring.take(&mut bytes, 10), Ok(0));
    }

    #[test]
    fn indexes_that_ran_apart_are_reported() {
        let memory = memory();
        let ring = ByteRing::new(&memory, Mfn(8), LAYOUT);
        memory.store_u32(ring.at(LAYOUT.producer), 17).unwrap();
        let broken = RingError::Indexes { filled: 17, size: 16 };
        assert_eq!(ring.take(&mut Vec::new(), 1), Err(broken));
        assert_eq!(ring.give(&[0]), Err(broken));
    }
}

//! [`Memory`]: machine frames and checked access to them.

use core::ptr::NonNull;
use core::sync::atomic::Ordering;
use std::os::fd::BorrowedFd;

use paravane_abi::units::{MachAddr, Mfn, PAGE_BYTES, PAGE_SIZE};
use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::code::CodeMarks;
use crate::mapping::Mapping;

/// Guest machine memory could not be made or asked about.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The size or the frame numbers do not fit the machine.
    #[error("{frames} frames from frame {first} do not fit a 52-bit machine address space; ask for fewer")]
    Size {
        /// The first frame asked for.
        first: Mfn,
        /// The number of frames asked for.
        frames: u64,
    },
    /// The host refused.
    #[error("the host refused to {attempt} guest memory: {errno}")]
    Host {
        /// What was tried.
        attempt: &'static str,
        /// The host's answer.
        errno: rustix::io::Errno,
    },
}

/// An access to machine memory named bytes outside of it, or a misaligned word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{len} bytes at machine address {address} are not (aligned) guest memory")]
pub struct OutOfRange {
    /// The first byte named.
    pub address: MachAddr,
    /// How many bytes were named.
    pub len: usize,
}

/// The machine frames `first .. first + frames` of one guest.
///
/// Shared by all engines, the hypervisor core and the backends; every method takes `&self`.
#[derive(Debug)]
pub struct Memory {
    mapping: Mapping,
    first: Mfn,
    frames: u64,
    code: CodeMarks,
}

/// Machine addresses have at most 52 bits (AMD APM vol. 2, "Long-Mode Page Translation").
const MAX_FRAMES: u64 = 1 << 40;

impl Memory {
    /// Makes `frames` zeroed frames, numbered from `first`. The host backs them when they are touched.
    pub fn new(first: Mfn, frames: u64) -> Result<Self, MemoryError> {
        let size = MemoryError::Size { first, frames };
        let end = first.checked_add(frames).filter(|end| end.0 <= MAX_FRAMES && frames > 0);
        let (Some(_), Ok(count)) = (end, usize::try_from(frames)) else { return Err(size) };
        let Some(len) = count.checked_mul(PAGE_BYTES) else { return Err(size) };
        let mapping = Mapping::new(len).map_err(|errno| MemoryError::Host { attempt: "allocate", errno })?;
        Ok(Self { mapping, first, frames, code: CodeMarks::new(first, count) })
    }

    /// The first frame.
    pub fn first_frame(&self) -> Mfn {
        self.first
    }

    /// The number of frames.
    pub fn frame_count(&self) -> u64 {
        self.frames
    }

    /// Whether `frame` is guest memory.
    pub fn contains(&self, frame: Mfn) -> bool {
        frame.0.checked_sub(self.first.0).is_some_and(|index| index < self.frames)
    }

    /// The memfd behind all frames, in frame order: for engines and processes that map it themselves.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.mapping.fd()
    }

    /// Bytes of host memory that the guest's frames occupy now.
    pub fn resident_bytes(&self) -> Result<u64, MemoryError> {
        let stat = rustix::fs::fstat(self.mapping.fd())
            .map_err(|errno| MemoryError::Host { attempt: "measure", errno })?;
        // st_blocks counts units of 512 bytes whatever the file system.
        Ok(u64::try_from(stat.st_blocks).unwrap_or(0) * 512)
    }

    /// Which frames hold code that an engine derived something from.
    pub fn code(&self) -> &CodeMarks {
        &self.code
    }

    /// The host address of a whole frame, for engines that let guest code access it directly. Valid as long as
    /// `self`. Whoever writes through it owes [`CodeMarks::written`].
    pub fn frame_pointer(&self, frame: Mfn) -> Option<NonNull<u8>> {
        let offset = self.offset(frame.base()?)?;
        self.mapping.pointer(offset, PAGE_BYTES)
    }

    /// Copies bytes out. A range may cross frames.
    pub fn read(&self, from: MachAddr, into: &mut [u8]) -> Result<(), OutOfRange> {
        let len = into.len();
        self.offset(from).and_then(|offset| self.mapping.read(offset, into)).ok_or(out_of_range(from, len))
    }

    /// Copies bytes in. A range may cross frames.
    pub fn write(&self, to: MachAddr, from: &[u8]) -> Result<(), OutOfRange> {
        let written = self.offset(to).and_then(|offset| self.mapping.write(offset, from));
        written.ok_or(out_of_range(to, from.len()))?;
        self.note_write(to, from.len());
        Ok(())
    }

    /// Copies bytes from one place to another, lowest first: where the ranges overlap, a byte that was written is
    /// read again.
    pub fn copy(&self, from: MachAddr, to: MachAddr, len: usize) -> Result<(), OutOfRange> {
        let source = self.offset(from).ok_or(out_of_range(from, len))?;
        let target = self.offset(to).ok_or(out_of_range(to, len))?;
        self.mapping.copy(source, target, len).ok_or(out_of_range(to, len))?;
        self.note_write(to, len);
        Ok(())
    }

    /// Fills bytes.
    pub fn fill(&self, to: MachAddr, len: usize, byte: u8) -> Result<(), OutOfRange> {
        let done = self.offset(to).and_then(|offset| self.mapping.fill(offset, len, byte));
        done.ok_or(out_of_range(to, len))?;
        self.note_write(to, len);
        Ok(())
    }

    /// Reads a plain value.
    pub fn read_value<T: FromBytes + IntoBytes>(&self, from: MachAddr) -> Result<T, OutOfRange> {
        let mut value = T::new_zeroed();
        self.read(from, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Writes a plain value.
    pub fn write_value<T: IntoBytes + Immutable>(&self, to: MachAddr, value: &T) -> Result<(), OutOfRange> {
        self.write(to, value.as_bytes())
    }

    /// Fills a frame with zeros.
    pub fn zero_frame(&self, frame: Mfn) -> Result<(), OutOfRange> {
        let base = frame.base().unwrap_or(MachAddr(u64::MAX));
        self.fill(base, PAGE_BYTES, 0)
    }

    /// Gives a frame's page back to the host. The frame stays usable and reads as zeros.
    pub fn release_frame(&self, frame: Mfn) -> Result<(), MemoryError> {
        let offset = frame.base().and_then(|base| self.offset(base));
        let offset = offset.ok_or(MemoryError::Size { first: frame, frames: 1 })?;
        self.mapping
            .punch(offset, PAGE_BYTES)
            .map_err(|errno| MemoryError::Host { attempt: "release", errno })?;
        self.note_write(MachAddr(frame.0 * PAGE_SIZE), PAGE_BYTES);
        Ok(())
    }

    /// Reads a byte that others write.
    pub fn load_u8(&self, from: MachAddr) -> Result<u8, OutOfRange> {
        let word = self.offset(from).and_then(|offset| self.mapping.atomic_u8(offset));
        Ok(word.ok_or(out_of_range(from, 1))?.load(Ordering::SeqCst))
    }

    /// Writes a byte that others read.
    pub fn store_u8(&self, to: MachAddr, value: u8) -> Result<(), OutOfRange> {
        self.swap_u8(to, value).map(|_old| ())
    }

    /// Replaces a byte, and returns the old one.
    pub fn swap_u8(&self, at: MachAddr, value: u8) -> Result<u8, OutOfRange> {
        let word = self.offset(at).and_then(|offset| self.mapping.atomic_u8(offset));
        let old = word.ok_or(out_of_range(at, 1))?.swap(value, Ordering::SeqCst);
        self.note_write(at, 1);
        Ok(old)
    }
}

/// The operations on one width of naturally aligned shared words.
macro_rules! words {
    ($type:ty, $bytes:literal, $atomic:ident, $load:ident, $store:ident, $swap:ident, $cas:ident, $or:ident,
     $and:ident) => {
        impl Memory {
            #[doc = concat!("Reads an aligned `", stringify!($type), "` that others write.")]
            pub fn $load(&self, from: MachAddr) -> Result<$type, OutOfRange> {
                let word = self.offset(from).and_then(|offset| self.mapping.$atomic(offset));
                Ok(word.ok_or(out_of_range(from, $bytes))?.load(Ordering::SeqCst))
            }

            #[doc = concat!("Writes an aligned `", stringify!($type), "` that others read.")]
            pub fn $store(&self, to: MachAddr, value: $type) -> Result<(), OutOfRange> {
                self.$swap(to, value).map(|_old| ())
            }

            #[doc = concat!("Replaces an aligned `", stringify!($type), "`, and returns the old one.")]
            pub fn $swap(&self, at: MachAddr, value: $type) -> Result<$type, OutOfRange> {
                let word = self.offset(at).and_then(|offset| self.mapping.$atomic(offset));
                let old = word.ok_or(out_of_range(at, $bytes))?.swap(value, Ordering::SeqCst);
                self.note_write(at, $bytes);
                Ok(old)
            }

            #[doc = concat!("Replaces an aligned `", stringify!($type), "` if it is `old`; `Ok(Err(found))` if not.")]
            pub fn $cas(
                &self,
                at: MachAddr,
                old: $type,
                new: $type,
            ) -> Result<Result<$type, $type>, OutOfRange> {
                let word = self.offset(at).and_then(|offset| self.mapping.$atomic(offset));
                let word = word.ok_or(out_of_range(at, $bytes))?;
                let outcome = word.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst);
                self.note_write(at, $bytes);
                Ok(outcome)
            }

            #[doc = concat!("Sets bits of an aligned `", stringify!($type), "`, and returns the old value.")]
            pub fn $or(&self, at: MachAddr, bits: $type) -> Result<$type, OutOfRange> {
                let word = self.offset(at).and_then(|offset| self.mapping.$atomic(offset));
                let old = word.ok_or(out_of_range(at, $bytes))?.fetch_or(bits, Ordering::SeqCst);
                self.note_write(at, $bytes);
                Ok(old)
            }

            #[doc = concat!("Keeps only `bits` of an aligned `", stringify!($type), "`, and returns the old value.")]
            pub fn $and(&self, at: MachAddr, bits: $type) -> Result<$type, OutOfRange> {
                let word = self.offset(at).and_then(|offset| self.mapping.$atomic(offset));
                let old = word.ok_or(out_of_range(at, $bytes))?.fetch_and(bits, Ordering::SeqCst);
                self.note_write(at, $bytes);
                Ok(old)
            }
        }
    };
}

words!(u32, 4, atomic_u32, load_u32, store_u32, swap_u32, compare_exchange_u32, fetch_or_u32, fetch_and_u32);
words!(u64, 8, atomic_u64, load_u64, store_u64, swap_u64, compare_exchange_u64, fetch_or_u64, fetch_and_u64);

impl Memory {
    /// The offset of a machine address in the mapping, if its frame is guest memory.
    fn offset(&self, address: MachAddr) -> Option<usize> {
        let index = address.frame().0.checked_sub(self.first.0).filter(|index| *index < self.frames)?;
        // Fits: the whole mapping's length is a usize.
        usize::try_from(index * PAGE_SIZE).ok().map(|offset| offset + address.offset())
    }

    /// Tells the code marks of every frame in a range that was just written.
    fn note_write(&self, to: MachAddr, len: usize) {
        let (mut frame, mut offset, mut left) = (to.frame(), to.offset(), len);
        while left > 0 {
            let chunk = left.min(PAGE_BYTES - offset);
            self.code.written(frame, offset, chunk);
            (frame, offset, left) = (Mfn(frame.0 + 1), 0, left - chunk);
        }
    }
}

fn out_of_range(address: MachAddr, len: usize) -> OutOfRange {
    OutOfRange { address, len }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::code::{CodeEvent, Cursor, Missed};

    const FIRST: Mfn = Mfn(0x8_0000);

    fn memory() -> Memory {
        Memory::new(FIRST, 4).unwrap()
    }

    fn at(offset: u64) -> MachAddr {
        MachAddr(FIRST.0 * PAGE_SIZE + offset)
    }

    #[test]
    fn bytes_come_back_across_a_frame_boundary() {
        let memory = memory();
        memory.write(at(4090), b"hello, frames").unwrap();
        let mut back = [0; 13];
        memory.read(at(4090), &mut back).unwrap();
        assert_eq!(&back, b"hello, frames");
        assert_eq!(memory.read_value::<u32>(at(4090)).unwrap(), u32::from_le_bytes(*b"hell"));
    }

    #[test]
    fn copies_go_upward_and_fills_stay_inside() {
        let memory = memory();
        memory.write(at(0), b"abcdef").unwrap();
        memory.copy(at(0), at(1), 5).unwrap();
        assert_eq!(memory.read_value::<[u8; 6]>(at(0)).unwrap(), *b"aaaaaa");
        memory.fill(at(4095), 2, 9).unwrap();
        assert_eq!(memory.read_value::<[u8; 4]>(at(4094)).unwrap(), [0, 9, 9, 0]);
        assert!(memory.fill(at(4 * PAGE_SIZE - 1), 2, 9).is_err());
        assert!(memory.copy(at(0), at(4 * PAGE_SIZE - 1), 2).is_err());
    }

    #[test]
    fn addresses_outside_the_range_are_errors_at_both_ends() {
        let memory = memory();
        let mut byte = [0];
        for address in [at(0).0 - 1, at(4 * PAGE_SIZE).0, 0, u64::MAX] {
            let error = OutOfRange { address: MachAddr(address), len: 1 };
            assert_eq!(memory.read(MachAddr(address), &mut byte), Err(error));
            assert_eq!(memory.write(MachAddr(address), &byte), Err(error));
            assert_eq!(memory.load_u8(MachAddr(address)), Err(error));
        }
        assert!(memory.write(at(4 * PAGE_SIZE - 1), &[1, 2]).is_err());
        assert!(memory.load_u64(at(4)).is_err());
        assert!(memory.zero_frame(Mfn(FIRST.0 + 4)).is_err());
        assert!(Memory::new(Mfn(MAX_FRAMES), 1).is_err());
        assert!(Memory::new(Mfn(1), u64::MAX).is_err());
        assert!(Memory::new(Mfn(1), 0).is_err());
    }

    #[test]
    fn words_are_compared_and_exchanged() {
        let memory = memory();
        memory.store_u64(at(8), 5).unwrap();
        assert_eq!(memory.compare_exchange_u64(at(8), 4, 9).unwrap(), Err(5));
        assert_eq!(memory.compare_exchange_u64(at(8), 5, 9).unwrap(), Ok(5));
        assert_eq!(memory.fetch_or_u64(at(8), 0x10).unwrap(), 9);
        assert_eq!(memory.fetch_and_u32(at(8), 0x11).unwrap(), 0x19);
        assert_eq!(memory.load_u32(at(8)).unwrap(), 0x11);
    }

    #[test]
    fn a_released_frame_reads_as_zeros_and_costs_nothing() {
        let memory = memory();
        memory.write(at(0), &[7; PAGE_BYTES]).unwrap();
        assert_eq!(memory.resident_bytes().unwrap(), PAGE_SIZE);
        memory.release_frame(FIRST).unwrap();
        assert_eq!(memory.resident_bytes().unwrap(), 0);
        assert_eq!(memory.load_u64(at(0)).unwrap(), 0);
    }

    #[test]
    fn writes_of_every_kind_reach_the_code_marks() {
        let memory = memory();
        type Write = fn(&Memory);
        let writes: [Write; 6] = [
            |m| m.write(at(4096 + 60), &[1; 8]).unwrap(),
            |m| m.write(at(10), &[1; 3 * PAGE_BYTES]).unwrap(),
            |m| m.store_u8(at(4096 + 64), 1).unwrap(),
            |m| m.store_u64(at(4096 + 64), 1).unwrap(),
            |m| m.zero_frame(Mfn(FIRST.0 + 1)).unwrap(),
            |m| m.release_frame(Mfn(FIRST.0 + 1)).unwrap(),
        ];
        for (index, write) in writes.iter().enumerate() {
            memory.code().mark(Mfn(FIRST.0 + 1), 64, 1);
            let mut cursor = Cursor::default();
            memory.code().missed(&mut cursor);
            write(&memory);
            let expected = Missed::Events(vec![CodeEvent::Overwritten(Mfn(FIRST.0 + 1))]);
            assert_eq!(memory.code().missed(&mut cursor), expected, "write {index}");
        }
    }
}

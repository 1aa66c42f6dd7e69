//! The page-table walk.
//!
//! [`walk`] does what the CPU does on a TLB miss: it goes from the root through four levels, checks
//! permissions, and sets the accessed and dirty bits with atomic updates. [`inspect`] goes the same way without
//! permissions and without side effects, for debuggers and crash reports.
//!
//! Source: AMD APM vol. 2, "Long-Mode Page Translation" and "Page-Protection Checks"; Intel SDM vol. 3A,
//! "4-Level Paging and 5-Level Paging". CR0.WP and EFER.NXE count as set, SMEP, SMAP and protection keys as
//! clear: that is what a PV guest lives with. An entry that names a frame outside guest memory faults as one
//! that names an unimplemented physical address: with the reserved bit in the error code.

use paravane_abi::units::{GuestVirt, MachAddr, Mfn, PAGE_SHIFT, PAGE_SIZE};
use thiserror::Error;

use crate::memory::Memory;

/// Present bit of an entry.
const PRESENT: u64 = 1 << 0;
/// Read/write bit.
const WRITABLE: u64 = 1 << 1;
/// User/supervisor bit.
const USER: u64 = 1 << 2;
/// Accessed bit.
const ACCESSED: u64 = 1 << 5;
/// Dirty bit of a leaf.
const DIRTY: u64 = 1 << 6;
/// Page-size bit of a level 2 or 3 entry.
const LARGE: u64 = 1 << 7;
/// No-execute bit.
const NO_EXECUTE: u64 = 1 << 63;
/// Bits 51..12: the frame's address.
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// What an instruction does at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// A data read.
    Read,
    /// A data write, or a read-modify-write.
    Write,
    /// An instruction fetch.
    Execute,
}

/// With which privilege.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Privilege {
    /// Rings 0 to 2.
    Supervisor,
    /// Ring 3: where both modes of a 64-bit PV guest run.
    User,
}

/// The error code of a page fault (AMD APM vol. 2, "#PF—Page-Fault Exception").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FaultCode(pub u32);

impl FaultCode {
    /// Bit 0: the page was present, the access was not allowed.
    pub const PRESENT: u32 = 1 << 0;
    /// Bit 1: a write.
    pub const WRITE: u32 = 1 << 1;
    /// Bit 2: from ring 3.
    pub const USER: u32 = 1 << 2;
    /// Bit 3: a reserved bit (here also: a frame outside guest memory).
    pub const RESERVED: u32 = 1 << 3;
    /// Bit 4: an instruction fetch.
    pub const FETCH: u32 = 1 << 4;
}

/// Why a walk found nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WalkFault {
    /// The address is not canonical: the CPU raises #GP (or #SS), not #PF.
    #[error("{0} is not a canonical address")]
    NotCanonical(GuestVirt),
    /// A page fault with this error code.
    #[error("page fault at {address}, error code {:#x}", code.0)]
    Page {
        /// The faulting address (CR2).
        address: GuestVirt,
        /// The error code.
        code: FaultCode,
    },
}

/// The page behind a virtual address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The 4 KiB machine frame (within a large page, the right one).
    pub frame: Mfn,
    /// Whether the path allows writes.
    pub writable: bool,
    /// Whether the path allows instruction fetches.
    pub executable: bool,
    /// Whether the path allows ring 3.
    pub user: bool,
}

/// One level of a walk, as [`inspect`] reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// 4 for the root down to 1.
    pub level: u8,
    /// Where the entry lies.
    pub address: MachAddr,
    /// The entry, or `None` if the table is not guest memory.
    pub entry: Option<u64>,
}

/// Translates `address` for `access` as the CPU does, setting accessed and dirty bits.
///
/// # Errors
///
/// The fault that the CPU raises. Nothing is marked dirty then.
pub fn walk(
    memory: &Memory,
    root: Mfn,
    address: GuestVirt,
    access: Access,
    privilege: Privilege,
) -> Result<Translation, WalkFault> {
    if !address.is_canonical() {
        return Err(WalkFault::NotCanonical(address));
    }
    // An entry that changes under the walk makes the update fail; the walk then starts over, as the CPU's does.
    // Only a guest that rewrites its tables in a loop on another vCPU can keep this going, and each round
    // means that it got its own update through.
    loop {
        match attempt(memory, root, address, access, privilege) {
            Ok(translation) => return Ok(translation),
            Err(Retry::Fault(code)) => return Err(WalkFault::Page { address, code }),
            Err(Retry::Raced) => {}
        }
    }
}

/// Walks without permissions and without side effects; the steps end at the leaf or where the way ends.
pub fn inspect(memory: &Memory, root: Mfn, address: GuestVirt) -> (Vec<Step>, Option<Translation>) {
    let mut steps = Vec::with_capacity(4);
    let mut rights = Rights::ALL;
    let mut table = root;
    for level in (1..=4).rev() {
        let at = entry_address(table, address, level);
        let entry = memory.load_u64(at).ok();
        steps.push(Step { level, address: at, entry });
        let Some(entry) = entry.filter(|entry| entry & PRESENT != 0) else { return (steps, None) };
        rights = rights.through(entry);
        if is_leaf(entry, level) {
            let frame = leaf_frame(entry, address, level);
            return (steps, Some(rights.translation(frame)));
        }
        table = Mfn((entry & FRAME) >> PAGE_SHIFT);
    }
    (steps, None)
}

/// How one attempt ended without a translation.
enum Retry {
    Fault(FaultCode),
    Raced,
}

/// What the entries so far allow.
#[derive(Clone, Copy)]
struct Rights {
    writable: bool,
    executable: bool,
    user: bool,
}

impl Rights {
    const ALL: Self = Self { writable: true, executable: true, user: true };

    fn through(self, entry: u64) -> Self {
        Self {
            writable: self.writable && entry & WRITABLE != 0,
            executable: self.executable && entry & NO_EXECUTE == 0,
            user: self.user && entry & USER != 0,
        }
    }

    fn allow(self, access: Access, privilege: Privilege) -> bool {
        let mode = match privilege {
            Privilege::Supervisor => true,
            Privilege::User => self.user,
        };
        let kind = match access {
            Access::Read => true,
            Access::Write => self.writable,
            Access::Execute => self.executable,
        };
        mode && kind
    }

    fn translation(self, frame: Mfn) -> Translation {
        Translation { frame, writable: self.writable, executable: self.executable, user: self.user }
    }
}

fn attempt(
    memory: &Memory,
    root: Mfn,
    address: GuestVirt,
    access: Access,
    privilege: Privilege,
) -> Result<Translation, Retry> {
    let fault = |extra: u32| Retry::Fault(fault_code(access, privilege, extra));
    let outside = |_| fault(FaultCode::PRESENT | FaultCode::RESERVED);
    let mut rights = Rights::ALL;
    let mut table = root;
    for level in (1..=4).rev() {
        let at = entry_address(table, address, level);
        let entry = memory.load_u64(at).map_err(outside)?;
        if entry & PRESENT == 0 {
            return Err(fault(0));
        }
        rights = rights.through(entry);
        if !is_leaf(entry, level) {
            set_bits(memory, at, entry, ACCESSED)?;
            table = Mfn((entry & FRAME) >> PAGE_SHIFT);
            continue;
        }
        let frame = leaf_frame(entry, address, level);
        if level == 4 || !memory.contains(frame) {
            return Err(fault(FaultCode::PRESENT | FaultCode::RESERVED));
        }
        if !rights.allow(access, privilege) {
            return Err(fault(FaultCode::PRESENT));
        }
        let bits = match access {
            Access::Write => ACCESSED | DIRTY,
            Access::Read | Access::Execute => ACCESSED,
        };
        set_bits(memory, at, entry, bits)?;
        return Ok(rights.translation(frame));
    }
    // Level 1 is always a leaf.
    Err(fault(FaultCode::PRESENT | FaultCode::RESERVED))
}

/// Sets accessed or dirty bits in an entry that still is what the walk saw.
fn set_bits(memory: &Memory, at: MachAddr, entry: u64, bits: u64) -> Result<(), Retry> {
    if entry & bits == bits {
        return Ok(());
    }
    match memory.compare_exchange_u64(at, entry, entry | bits) {
        Ok(Ok(_old)) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(Retry::Raced),
    }
}

fn entry_address(table: Mfn, address: GuestVirt, level: u8) -> MachAddr {
    let index = (address.0 >> (PAGE_SHIFT + 9 * (u32::from(level) - 1))) & 0x1ff;
    MachAddr((table.0 & (FRAME >> PAGE_SHIFT)) * PAGE_SIZE + index * 8)
}

/// Whether an entry ends the walk: always at level 1, at the others with the page-size bit (which level 4
/// reserves, so that the caller faults).
fn is_leaf(entry: u64, level: u8) -> bool {
    level == 1 || entry & LARGE != 0
}

fn leaf_frame(entry: u64, address: GuestVirt, level: u8) -> Mfn {
    let inside = (1_u64 << (9 * (u32::from(level) - 1))) - 1;
    let frame = (entry & FRAME) >> PAGE_SHIFT;
    Mfn((frame & !inside) | ((address.0 >> PAGE_SHIFT) & inside))
}

fn fault_code(access: Access, privilege: Privilege, extra: u32) -> FaultCode {
    let access = match access {
        Access::Read => 0,
        Access::Write => FaultCode::WRITE,
        Access::Execute => FaultCode::FETCH,
    };
    let privilege = match privilege {
        Privilege::Supervisor => 0,
        Privilege::User => FaultCode::USER,
    };
    FaultCode(access | privilege | extra)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Mfn = Mfn(0x100);
    const VIRT: GuestVirt = GuestVirt(0xffff_8880_1234_5678);

    /// Four tables in the first four frames, the page in the fifth; `flags` per level from 4 down to 1.
    fn tables(flags: [u64; 4]) -> Memory {
        let memory = Memory::new(FIRST, 16).unwrap();
        let mut table = FIRST;
        for (index, flags) in flags.into_iter().enumerate() {
            let level = 4 - u8::try_from(index).unwrap();
            let next = Mfn(table.0 + 1);
            memory.store_u64(entry_address(table, VIRT, level), next.0 << PAGE_SHIFT | flags).unwrap();
            table = next;
        }
        memory
    }

    fn entry(memory: &Memory, level: u8) -> u64 {
        memory.load_u64(entry_address(Mfn(FIRST.0 + 4 - u64::from(level)), VIRT, level)).unwrap()
    }

    #[test]
    fn a_read_sets_accessed_on_the_whole_path_and_a_write_dirty_on_the_leaf() {
        let memory = tables([7; 4]);
        let found = walk(&memory, FIRST, VIRT, Access::Read, Privilege::User).unwrap();
        assert_eq!(
            found,
            Translation { frame: Mfn(FIRST.0 + 4), writable: true, executable: true, user: true }
        );
        assert!((1..=4).all(|level| entry(&memory, level) & (ACCESSED | DIRTY) == ACCESSED));
        walk(&memory, FIRST, VIRT, Access::Write, Privilege::User).unwrap();
        assert!((2..=4).all(|level| entry(&memory, level) & DIRTY == 0));
        assert_eq!(entry(&memory, 1) & DIRTY, DIRTY);
    }

    #[test]
    fn every_denial_has_the_error_code_of_the_machine() {
        use Access::{Execute, Read, Write};
        use Privilege::{Supervisor, User};
        for (flags, access, privilege, code) in [
            ([7, 7, 7, 6], Read, User, 4),
            ([7, 6, 7, 7], Write, User, 6),
            ([0, 7, 7, 7], Execute, Supervisor, 0x10),
            ([7, 5, 7, 7], Write, User, 7),
            ([7, 7, 7, 5], Write, Supervisor, 3),
            ([7, 7, 3, 7], Read, User, 5),
            ([7, 7, 7, 7 | NO_EXECUTE], Execute, User, 0x15),
            ([7 | LARGE, 7, 7, 7], Read, User, 0xd),
            ([7, 7, 7, 7 | 1 << 40], Read, User, 0xd),
            ([7, 7 | 1 << 40, 7, 7], Read, User, 0xd),
        ] {
            let memory = tables(flags);
            let fault = WalkFault::Page { address: VIRT, code: FaultCode(code) };
            assert_eq!(walk(&memory, FIRST, VIRT, access, privilege), Err(fault), "{flags:x?} {access:?}");
            assert_eq!(entry(&memory, 1) & (ACCESSED | DIRTY), 0);
        }
    }

    #[test]
    fn large_pages_name_the_frame_inside() {
        let memory = Memory::new(Mfn(0), 1024).unwrap();
        memory.store_u64(entry_address(Mfn(0), VIRT, 4), 1 << 12 | 7).unwrap();
        memory.store_u64(entry_address(Mfn(1), VIRT, 3), 2 << 12 | 7).unwrap();
        memory.store_u64(entry_address(Mfn(2), VIRT, 2), 512 << 12 | 7 | LARGE).unwrap();
        let found = walk(&memory, Mfn(0), VIRT, Access::Read, Privilege::User).unwrap();
        assert_eq!(found.frame, Mfn(512 + (VIRT.0 >> 12 & 511)));
        assert_eq!(inspect(&memory, Mfn(0), VIRT).1, Some(found));
    }

    #[test]
    fn inspection_reports_the_path_and_changes_nothing() {
        let memory = tables([7, 7, 7, 6]);
        let (steps, found) = inspect(&memory, FIRST, VIRT);
        assert_eq!(found, None);
        assert_eq!(steps.iter().map(|step| step.level).collect::<Vec<_>>(), [4, 3, 2, 1]);
        assert_eq!(steps[3].entry, Some((FIRST.0 + 4) << 12 | 6));
        assert!((2..=4).all(|level| entry(&memory, level) & ACCESSED == 0));
    }

    #[test]
    fn addresses_with_a_hole_in_the_sign_do_not_page() {
        let memory = tables([7; 4]);
        let hole = GuestVirt(0x0000_8000_0000_0000);
        assert_eq!(
            walk(&memory, FIRST, hole, Access::Read, Privilege::User),
            Err(WalkFault::NotCanonical(hole))
        );
    }
}

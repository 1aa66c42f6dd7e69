//! Filling and emptying the software TLBs.
//!
//! There is one pair (read, write) per guest mode, and blocks are translated for a mode, so changing modes
//! empties nothing. Entries of a mode go when its root changes. The write TLB never holds a frame with code in
//! it, nor a page that a step redirects (other than to its copy).

use core::mem::offset_of;

use paravane_abi::units::{GuestVirt, MachAddr, Mfn, PAGE_SIZE};
use paravane_engine::{Exception, Exit, GuestMode, PageFault, vector};
use paravane_memory::paging::{Access, FaultCode, Privilege, Translation, WalkFault, walk};

use crate::engine::Translator;
use crate::sites::PageId;
use crate::state::{Path, State, TlbEntry, code_page_index, note, noted, tlb_index, tlb_number};

/// What is behind a page of the guest's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Page {
    /// A frame of guest memory.
    Frame(Mfn),
    /// The copy that a step works on.
    Shadow,
}

impl Translator {
    /// Translates a linear address by the page tables of the current mode.
    pub(crate) fn walk(&self, linear: GuestVirt, access: Access) -> Result<Translation, Exit> {
        let context = &self.cpu.state().context;
        let privilege = if context.cpl() == 3 { Privilege::User } else { Privilege::Supervisor };
        let Some(root) = context.root() else {
            let code = FaultCode(FaultCode::USER);
            return Err(Exit::PageFault(PageFault { address: linear.0, code }));
        };
        walk(&self.memory, root, linear, access, privilege).map_err(|fault| match fault {
            WalkFault::NotCanonical(_) => {
                Exit::Exception(Exception { vector: vector::GENERAL_PROTECTION, error_code: Some(0) })
            }
            WalkFault::Page { address, code } => Exit::PageFault(PageFault { address: address.0, code }),
        })
    }

    /// What `linear` refers to for a data access, checked and with accessed and dirty bits set.
    pub(crate) fn page(&mut self, linear: u64, path: Path) -> Result<Page, Exit> {
        if self.shadow == Some(linear & !(PAGE_SIZE - 1)) {
            return Ok(Page::Shadow);
        }
        let access = match path {
            Path::Read => Access::Read,
            Path::Write => Access::Write,
        };
        // The TLB knows it already, most of the time.
        let entry = self.cpu.tlb(self.env.mode, path)[tlb_index(linear)];
        if entry.tag == linear & !(PAGE_SIZE - 1)
            && let Some(frame) = self.frame_at(entry.host)
        {
            return Ok(Page::Frame(frame));
        }
        Ok(Page::Frame(self.walk(GuestVirt(linear), access)?.frame))
    }

    /// The host address of a page.
    pub(crate) fn host_address(&self, page: Page) -> u64 {
        match page {
            Page::Frame(frame) => {
                self.memory.frame_pointer(frame).map_or(0, |pointer| pointer.as_ptr() as usize as u64)
            }
            Page::Shadow => u64::from(self.cpu.layout().field(offset_of!(State, shadow))),
        }
    }

    /// Lets translated code reach a page on its own.
    pub(crate) fn fill(&mut self, linear: u64, path: Path, page: Page) {
        let index = tlb_index(linear);
        let mode = self.env.mode;
        let host = self.host_address(page);
        self.cpu.tlb(mode, path)[index] = TlbEntry { tag: linear & !(PAGE_SIZE - 1), host };
        note(&mut self.cpu.state_mut().filled[tlb_number(mode, path)], index);
    }

    /// As [`Translator::fill`], for a page that Rust accessed on behalf of the guest, if translated code may reach it.
    pub(crate) fn learn(&mut self, linear: u64, path: Path, page: Page) {
        if let Page::Frame(frame) = page
            && !(path == Path::Write && self.memory.code().holds_code(frame))
        {
            self.fill(linear, path, page);
        }
    }

    /// Forgets a whole TLB that may hold anything.
    pub(crate) fn reset_tlb(&mut self, mode: GuestMode) {
        for path in [Path::Read, Path::Write] {
            self.cpu.state_mut().filled[tlb_number(mode, path)] = [0; 64];
            for (index, entry) in self.cpu.tlb(mode, path).iter_mut().enumerate() {
                *entry = empty(index);
            }
        }
    }

    /// Forgets all translations of one TLB.
    pub(crate) fn empty_tlb(&mut self, mode: GuestMode, path: Path) {
        let filled = core::mem::replace(&mut self.cpu.state_mut().filled[tlb_number(mode, path)], [0; 64]);
        let table = self.cpu.tlb(mode, path);
        for index in noted(filled) {
            table[index] = empty(index);
        }
    }

    /// Makes no code page current.
    pub(crate) fn empty_code_pages(&mut self, mode: GuestMode) {
        let filled = core::mem::replace(&mut self.cpu.state_mut().code_filled[mode as usize], [0; 64]);
        let table = self.cpu.code_pages(mode);
        for index in noted(filled) {
            table[index] = 0;
        }
    }

    /// Makes a code page current.
    pub(crate) fn set_code_page(&mut self, linear: u64, id: PageId) {
        let (mode, index) = (self.env.mode, code_page_index(linear));
        self.cpu.code_pages(mode)[index] = id.0;
        note(&mut self.cpu.state_mut().code_filled[mode as usize], index);
        if let Some(alive) = self.cpu.alive().get_mut(id.0 as usize) {
            *alive = 1;
        }
    }

    /// Forgets one page, in both modes.
    pub(crate) fn flush_page(&mut self, linear: u64) {
        let index = tlb_index(linear);
        for mode in [GuestMode::Kernel, GuestMode::User] {
            for path in [Path::Read, Path::Write] {
                let entry = &mut self.cpu.tlb(mode, path)[index];
                if entry.tag == linear {
                    *entry = empty(index);
                }
            }
            self.cpu.code_pages(mode)[code_page_index(linear)] = 0;
        }
    }

    /// A frame now holds code: writes to it must come here.
    pub(crate) fn drop_write_entries(&mut self, frame: Mfn) {
        let host = self.host_address(Page::Frame(frame));
        for mode in [GuestMode::Kernel, GuestMode::User] {
            let filled = self.cpu.state().filled[tlb_number(mode, Path::Write)];
            let table = self.cpu.tlb(mode, Path::Write);
            for index in noted(filled) {
                if table[index].host == host {
                    table[index] = empty(index);
                }
            }
        }
    }

    /// The frame at a host address, if it is guest memory.
    pub(crate) fn frame_at(&self, host: u64) -> Option<Mfn> {
        let first = self.memory.first_frame();
        let base = self.memory.frame_pointer(first)?.as_ptr() as usize as u64;
        let index = host.checked_sub(base)? / PAGE_SIZE;
        (index < self.memory.frame_count()).then(|| Mfn(first.0 + index))
    }

    /// Copies machine memory that page tables named, so it is there.
    pub(crate) fn read_machine(&self, from: MachAddr, into: &mut [u8]) {
        if self.memory.read(from, into).is_err() {
            into.fill(0);
        }
    }
}

/// An entry that matches nothing: its page selects the entry's neighbour.
fn empty(index: usize) -> TlbEntry {
    TlbEntry { tag: ((index ^ 1) as u64) << 12, host: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::TLB_ENTRIES;

    #[test]
    fn an_empty_entry_matches_no_address_that_selects_it() {
        for index in 0..TLB_ENTRIES {
            let tag = empty(index).tag;
            assert_ne!(tlb_index(tag), index);
            for high in [0, 1 << 24, u64::MAX << 24] {
                for offset in [0, 4095] {
                    let address = high | (index as u64) << 12 | offset;
                    assert!(address.wrapping_sub(tag) > 4095, "{index} {address:#x}");
                }
            }
        }
    }
}

//! Memory accesses that translated code could not do alone.

use core::mem::offset_of;

use paravane_abi::units::{MachAddr, PAGE_BYTES, PAGE_SIZE};
use paravane_engine::{Exception, Exit, PageFault, vector};

use crate::block::Need;
use crate::emit::Bits;
use crate::engine::{Go, Translator};
use crate::sites::{Access, Commit, find_mark};
use crate::state::{Bounce, HOT_BYTES, HostFault, Path, State};
use crate::tlb::Page;

/// A write that translated code performs on the bounce pages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounced {
    linear: u64,
    len: usize,
    pages: [Option<Page>; 2],
}

impl Translator {
    /// An access that missed, crosses pages, or is a write next to code.
    pub(crate) fn slow_access(&mut self, access: Access) -> Result<Go, Exit> {
        self.stats.access_misses += 1;
        if access.shared {
            return self.shared_access(access);
        }
        let linear = self.cpu.state().scratch;
        self.cpu.state_mut().context.rip = access.rip;
        let misaligned = self.env.aligned
            && matches!(access.size, 2 | 4 | 8)
            && linear & (u64::from(access.size) - 1) != 0;
        if misaligned {
            return Err(Exit::Exception(Exception { vector: vector::ALIGNMENT, error_code: Some(0) }));
        }
        let size = access.size as usize;
        let offset = (linear & (PAGE_SIZE - 1)) as usize;
        let crosses = offset + size > PAGE_BYTES;
        let next = self.next_page(linear);
        let found = self.page(linear, access.path).and_then(|first| {
            let second = if crosses { self.page(next, access.path)? } else { first };
            Ok([first, second])
        });
        let [first, second] = match (found, access.masked) {
            (Ok(pages), _) => pages,
            (Err(_), Some(instruction)) => return self.masked_access(access, linear, instruction),
            (Err(exit), None) => return Err(blame_stack(exit, access.stack)),
        };
        if crosses {
            return Ok(self.bounce(access, linear, [Some(first), Some(second)]));
        }
        if access.path == Path::Write
            && let Page::Frame(frame) = first
            && self.memory.code().holds_code(frame)
        {
            let overwrites = self.memory.code().written(frame, offset, size);
            if overwrites {
                self.catch_up();
                // If the code that is running is what changes, it must not run on behind this instruction.
                if !self.pages.is_alive(access.page) {
                    return Ok(self.bounce(access, linear, [Some(first); 2]));
                }
            }
            // No entry in the TLB: the next write must come here too.
            return Ok(self.resume_access(access, self.host_address(first) + offset as u64));
        }
        self.fill(linear, access.path, first);
        Ok(self.resume_access(access, self.host_address(first) + offset as u64))
    }

    /// The check of several accesses missed. Anything but a plain page is left to the plain variant of the block.
    fn shared_access(&mut self, access: Access) -> Result<Go, Exit> {
        let linear = self.cpu.state().scratch;
        self.cpu.state_mut().context.rip = access.rip;
        let offset = linear & (PAGE_SIZE - 1);
        let fits = offset + u64::from(access.size) <= PAGE_SIZE;
        if let (true, Ok(Page::Frame(frame))) = (fits, self.page(linear, access.path))
            && !(access.path == Path::Write && self.memory.code().holds_code(frame))
        {
            let page = Page::Frame(frame);
            self.fill(linear, access.path, page);
            return Ok(self.resume_access(access, self.host_address(page) + offset));
        }
        let body = self.block_at(access.rip, Need::Plain)?.body;
        self.cpu.state_mut().resume = u64::from(body);
        Ok(Go::Resume)
    }

    fn resume_access(&mut self, access: Access, host: u64) -> Go {
        let state = self.cpu.state_mut();
        state.scratch = host - u64::from(access.bias);
        state.resume = u64::from(access.resume);
        Go::Resume
    }

    /// An access of which some bytes cannot be reached: allowed if those are masked out.
    fn masked_access(&mut self, access: Access, linear: u64, instruction: u32) -> Result<Go, Exit> {
        let size = access.size as usize;
        let active = match self.emitter.instructions.get(instruction as usize).copied() {
            Some(instruction) => self.active_bytes(&instruction, size),
            None => !0,
        };
        let first_part = size.min(PAGE_BYTES - (linear & (PAGE_SIZE - 1)) as usize);
        let mut pages = [None; 2];
        for (page, range) in pages.iter_mut().zip([0..first_part, first_part..size]) {
            if let Some(byte) = range.clone().find(|byte| active >> byte & 1 != 0) {
                *page = Some(self.page(linear.wrapping_add(byte as u64), access.path)?);
            }
        }
        Ok(self.bounce(access, linear, pages))
    }

    /// Lets the instruction run on a copy of its operand. Pages that are not there read as zero and are not written.
    fn bounce(&mut self, access: Access, linear: u64, pages: [Option<Page>; 2]) -> Go {
        let offset = (linear & (PAGE_SIZE - 1)) as usize;
        let size = access.size as usize;
        let mut bytes = [0; 512];
        let bytes = &mut bytes[..size.min(512)];
        self.read_pages(linear, pages, bytes);
        let bounce = self.cpu.layout().field(offset_of!(State, bounce) + offset_of!(Bounce, 0));
        let state = self.cpu.state_mut();
        state.bounce.0[offset..offset + bytes.len()].copy_from_slice(bytes);
        state.scratch = u64::from(bounce) + offset as u64 - u64::from(access.bias);
        match access.path {
            Path::Read => state.resume = u64::from(access.resume),
            Path::Write => {
                state.resume = u64::from(access.aside);
                self.bounced = Some(Bounced { linear, len: bytes.len(), pages });
            }
        }
        Go::Resume
    }

    /// An instruction ran on the bounce pages: writes what it left there to guest memory.
    pub(crate) fn commit(&mut self, commit: Commit) -> Result<Go, Exit> {
        if let Some(Bounced { linear, len, pages }) = self.bounced.take() {
            let offset = (linear & (PAGE_SIZE - 1)) as usize;
            let mut bytes = [0; 512];
            let bytes = &mut bytes[..len];
            bytes.copy_from_slice(&self.cpu.state().bounce.0[offset..offset + len]);
            self.write_pages(linear, pages, bytes);
            self.catch_up();
        }
        if let Some(next) = commit.next
            && !self.pages.is_alive(commit.page)
        {
            return Ok(Go::At(next));
        }
        self.cpu.state_mut().resume = u64::from(commit.resume);
        Ok(Go::Resume)
    }

    /// Translated code faulted on the host CPU.
    pub(crate) fn host_fault(&mut self) -> Result<Go, Exit> {
        let fault = core::mem::take(&mut self.cpu.state_mut().fault);
        self.bounced = None;
        let HostFault { host_rip, vector, pending: _ } = fault;
        let host = u32::try_from(host_rip).unwrap_or(0);
        let hot_end = self.cpu.layout().code() + HOT_BYTES;
        let marks = if host < hot_end { &self.emitter.hot_marks } else { &self.emitter.cold_marks };
        let Some(mark) = find_mark(marks, host).copied() else {
            return Ok(Go::At(self.cpu.state().context.rip));
        };
        let state = self.cpu.state_mut();
        if let Some(register) = mark.borrowed {
            state.context.gprs[usize::from(register)] = state.spill[1];
        }
        if !mark.host_flags {
            // The handler saved the host's flags, but the guest's are where the code had put them.
            state.status = state.kept_status;
        }
        state.context.rip = mark.rip;
        if vector == u64::from(vector::PAGE_FAULT) {
            if self.cpu.is_kicked() {
                // A poll's load through the nulled pointer.
                return Ok(Go::At(mark.rip));
            }
            // The host could not provide the memory behind a valid translation.
            return Err(Exit::Exception(Exception { vector: vector::MACHINE_CHECK, error_code: None }));
        }
        #[expect(clippy::cast_possible_truncation, reason = "vectors are below 32")]
        let vector = vector as u8;
        let error_code = match vector {
            vector::GENERAL_PROTECTION | vector::STACK | vector::ALIGNMENT => Some(0),
            _ => None,
        };
        Err(Exit::Exception(Exception { vector, error_code }))
    }

    // Guest memory for helpers.

    /// Reads guest memory at a linear address.
    pub(crate) fn read_linear(&mut self, linear: u64, into: &mut [u8]) -> Result<(), Exit> {
        let pages = self.pages_for(linear, into.len(), Path::Read)?;
        self.read_pages(linear, pages, into);
        Ok(())
    }

    /// Writes guest memory at a linear address: all of it or, on a fault, nothing.
    pub(crate) fn write_linear(&mut self, linear: u64, from: &[u8]) -> Result<(), Exit> {
        let pages = self.pages_for(linear, from.len(), Path::Write)?;
        self.write_pages(linear, pages, from);
        Ok(())
    }

    /// Reads an unsigned number of up to 8 bytes.
    pub(crate) fn read_number(&mut self, linear: u64, size: usize) -> Result<u64, Exit> {
        let mut bytes = [0; 8];
        self.read_linear(linear, &mut bytes[..size.min(8)])?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Writes the low bytes of a number.
    pub(crate) fn write_number(&mut self, linear: u64, size: usize, value: u64) -> Result<(), Exit> {
        self.write_linear(linear, &value.to_le_bytes()[..size.min(8)])
    }

    /// The one or two pages that a range of at most a page's length touches.
    pub(crate) fn pages_for(&mut self, linear: u64, len: usize, path: Path) -> Result<[Page; 2], Exit> {
        let first = self.page(linear, path)?;
        let offset = (linear & (PAGE_SIZE - 1)) as usize;
        let second = if offset + len > PAGE_BYTES { self.page(self.next_page(linear), path)? } else { first };
        Ok([first, second])
    }

    fn next_page(&self, linear: u64) -> u64 {
        let next = (linear & !(PAGE_SIZE - 1)).wrapping_add(PAGE_SIZE);
        match self.env.bits {
            Bits::B64 => next,
            Bits::B32 => next & 0xffff_ffff,
        }
    }

    pub(crate) fn read_pages<P: Into<Option<Page>>>(&self, linear: u64, pages: [P; 2], into: &mut [u8]) {
        let [first, second] = pages.map(Into::into);
        let offset = (linear & (PAGE_SIZE - 1)) as usize;
        let (head, tail) = into.split_at_mut(into.len().min(PAGE_BYTES - offset));
        if let Some(page) = first {
            self.read_page(page, offset, head);
        }
        if let Some(page) = second
            && !tail.is_empty()
        {
            self.read_page(page, 0, tail);
        }
    }

    pub(crate) fn write_pages<P: Into<Option<Page>>>(&mut self, linear: u64, pages: [P; 2], from: &[u8]) {
        let [first, second] = pages.map(Into::into);
        let offset = (linear & (PAGE_SIZE - 1)) as usize;
        let (head, tail) = from.split_at(from.len().min(PAGE_BYTES - offset));
        if let Some(page) = first {
            self.write_page(page, offset, head);
        }
        if let Some(page) = second
            && !tail.is_empty()
        {
            self.write_page(page, 0, tail);
        }
    }

    fn read_page(&self, page: Page, offset: usize, into: &mut [u8]) {
        match page {
            Page::Frame(frame) => {
                self.read_machine(MachAddr(frame.0 * PAGE_SIZE + offset as u64), into);
            }
            Page::Shadow => {
                into.copy_from_slice(&self.cpu.state().shadow.0[offset..offset + into.len()]);
            }
        }
    }

    fn write_page(&mut self, page: Page, offset: usize, from: &[u8]) {
        match page {
            Page::Frame(frame) => {
                let to = MachAddr(frame.0 * PAGE_SIZE + offset as u64);
                let written = self.memory.write(to, from);
                debug_assert!(written.is_ok(), "the walk only names guest memory");
            }
            Page::Shadow => self.cpu.state_mut().shadow.0[offset..offset + from.len()].copy_from_slice(from),
        }
    }

    /// RFLAGS.DF.
    pub(crate) fn goes_down(&self) -> bool {
        self.cpu.state().direction != 0
    }
}

/// A non-canonical address is #SS(0) for stack accesses.
pub(crate) fn blame_stack(exit: Exit, stack: bool) -> Exit {
    match exit {
        Exit::Exception(Exception { vector: vector::GENERAL_PROTECTION, error_code }) if stack => {
            Exit::Exception(Exception { vector: vector::STACK, error_code })
        }
        Exit::Exception(_)
        | Exit::Hypercall
        | Exit::GuestSyscall(_)
        | Exit::SoftwareInterrupt(_)
        | Exit::PageFault(PageFault { .. })
        | Exit::Privileged(_)
        | Exit::LdtPage { .. }
        | Exit::Interrupted => exit,
    }
}

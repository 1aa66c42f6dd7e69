//! Memory accesses that translated code could not do alone.

use paravane_abi::units::{GuestVirt, MachAddr, PAGE_BYTES, PAGE_SIZE};
use paravane_engine::{Exception, Exit, PageFault, vector};

use crate::block::Need;
use crate::check::alignment;
use crate::crossings::Crossing;
use crate::emit::Bits;
use crate::engine::{Entry, Go, Translator};
use crate::help::exception_with;
use crate::sites::{Access, Commit, Mark, find_mark};
use crate::state::{HOT_BYTES, HostFault, Path};
use crate::tlb::Page;

/// An access that translated code performs on the bounce pages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounced {
    linear: u64,
    len: usize,
    /// Where it is: bytes from the first bounce page that can be accessed.
    at: isize,
    /// Whether it goes through SS.
    stack: bool,
    /// The guest's pages, or what an access to them raises.
    pages: [Result<Page, Exit>; 2],
}

impl Bounced {
    /// A write across pages that translated code prepared.
    pub(crate) fn of_crossing(linear: u64, len: usize, pages: [Page; 2]) -> Self {
        Self { linear, len, at: page_offset(linear).cast_signed(), stack: false, pages: pages.map(Ok) }
    }

    /// Bytes of the access in its first page.
    fn first_part(&self) -> usize {
        self.len.min(PAGE_BYTES - page_offset(self.linear))
    }

    /// The bytes of the middle pages that stand for the guest page `index`, if that is there.
    fn range(&self, index: usize) -> Option<(Page, core::ops::Range<usize>)> {
        let page = self.pages[index].ok()?;
        let start = self.at + if index == 0 { 0 } else { self.first_part().cast_signed() };
        let len = if index == 0 { self.first_part() } else { self.len - self.first_part() };
        let start = usize::try_from(start).ok()?;
        Some((page, start..start + len))
    }
}

fn page_offset(linear: u64) -> usize {
    (linear & (PAGE_SIZE - 1)) as usize
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
        if let Some(segment) = access.segment {
            let check = |at, len| self.check_segment(segment, at, len, access.path);
            match check(linear, u64::from(access.size)) {
                // As below, the CPU knows what comes before the limit, and what is left out.
                Err(_) if access.masked || access.size >= 16 => {
                    let len = u64::from(access.size);
                    let first = len.min(PAGE_SIZE - page_offset(linear) as u64);
                    let second = self.next_page(linear);
                    let parts = [check(linear, first), check(second, len - first)];
                    let pages = [
                        parts[0].and_then(|()| self.page(linear, access.path)),
                        parts[1].and_then(|()| self.page(second, access.path)),
                    ];
                    return Ok(self.bounce(access, linear, pages));
                }
                checked => checked?,
            }
        }
        if !access.masked {
            self.canonical_to_its_end(linear, access.size as usize)
                .map_err(|exit| blame_stack(exit, access.stack))?;
        }
        self.check_alignment(linear, u64::from(access.size))?;
        let size = access.size as usize;
        let offset = page_offset(linear);
        let crosses = offset + size > PAGE_BYTES;
        let first = self.page(linear, access.path);
        let second = if crosses { self.page(self.next_page(linear), access.path) } else { first };
        let (first, second) = match (first, second) {
            (Ok(first), Ok(second)) => (first, second),
            // Operands from 16 bytes on may have to be aligned, which the CPU checks first, long ones are accessed in
            // parts, and masks may leave nothing to access: the CPU itself is asked.
            (first, second) if access.masked || size > 8 => {
                return Ok(self.bounce(access, linear, [first, second]));
            }
            (Err(exit), _) | (_, Err(exit)) => return Err(blame_stack(exit, access.stack)),
        };
        if crosses {
            // The next one need not come here.
            self.learn(linear, access.path, first);
            self.learn(self.next_page(linear), access.path, second);
            return Ok(self.bounce(access, linear, [Ok(first), Ok(second)]));
        }
        if access.path == Path::Write
            && let Page::Frame(frame) = first
            && self.memory.code().holds_code(frame)
        {
            if self.seat.is_shared() {
                let host = self.host_address(first) + offset as u64;
                return Ok(self.write_beside_code(access, frame, offset, host));
            }
            let overwrites = self.memory.code().written(frame, offset, size);
            if overwrites {
                self.catch_up();
                // If the code that is running is what changes, it must not run on behind this instruction.
                if !self.pages.is_alive(access.page) {
                    return Ok(self.bounce(access, linear, [Ok(first); 2]));
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
        Ok(Go::Resume(Entry::Start))
    }

    fn resume_access(&mut self, access: Access, host: u64) -> Go {
        let state = self.cpu.state_mut();
        state.scratch = host - u64::from(access.bias);
        state.resume = u64::from(access.resume);
        Go::Resume(Entry::Middle)
    }

    /// Lets the instruction run on a copy of its operand. Pages that are not there are replaced by some that the host's
    /// CPU cannot access either.
    fn bounce(&mut self, access: Access, linear: u64, pages: [Result<Page, Exit>; 2]) -> Go {
        let crosses = page_offset(linear) + access.size as usize > PAGE_BYTES;
        let first_page = match (pages[0].is_ok(), crosses, pages[1].is_ok()) {
            (true, true, true) | (true, false, _) => 0,
            (true, true, false) => 1,
            (false, true, true) => -1,
            (false, true, false) | (false, false, _) => -2,
        };
        let at = first_page * PAGE_BYTES.cast_signed() + page_offset(linear).cast_signed();
        let bounced = Bounced { linear, len: access.size as usize, at, stack: access.stack, pages };
        for index in 0..2 {
            let Some((page, range)) = bounced.range(index).filter(|(_, range)| !range.is_empty()) else {
                continue;
            };
            let mut bytes = [0; 512];
            let bytes = &mut bytes[..range.len().min(512)];
            self.read_page(page, if index == 0 { page_offset(linear) } else { 0 }, bytes);
            self.cpu.bounce()[range].copy_from_slice(bytes);
        }
        self.bounced = Some(bounced);
        let host = u64::from(self.cpu.layout().bounce()).wrapping_add_signed(at as i64);
        let state = self.cpu.state_mut();
        state.scratch = host - u64::from(access.bias);
        state.resume = u64::from(match access.path {
            Path::Read => access.resume,
            Path::Write => access.aside,
        });
        Go::Resume(Entry::Middle)
    }

    /// An instruction ran on the bounce pages: writes what it left there to guest memory.
    pub(crate) fn commit(&mut self, commit: Commit) -> Result<Go, Exit> {
        self.seat.end_write();
        if let Some(bounced) = self.noted_crossing().or_else(|| self.bounced.take()) {
            for index in 0..2 {
                let Some((page, range)) = bounced.range(index).filter(|(_, range)| !range.is_empty()) else {
                    continue;
                };
                let mut bytes = [0; 512];
                let bytes = &mut bytes[..range.len().min(512)];
                bytes.copy_from_slice(&self.cpu.bounce()[range]);
                self.write_page(page, if index == 0 { page_offset(bounced.linear) } else { 0 }, bytes);
            }
            self.catch_up();
        }
        if let Some(next) = commit.next {
            if !self.pages.is_alive(commit.page) {
                return Ok(Go::At(next));
            }
            self.cpu.state_mut().context.rip = next;
        }
        self.cpu.state_mut().resume = u64::from(commit.resume);
        // A step that is looked up again would not count as one.
        let can_be_looked_up = commit.next.is_some() && !self.env.single;
        Ok(Go::Resume(if can_be_looked_up { Entry::Middle } else { Entry::End }))
    }

    /// Translated code faulted on the host CPU.
    pub(crate) fn host_fault(&mut self) -> Result<Go, Exit> {
        let fault = core::mem::take(&mut self.cpu.state_mut().fault);
        let bounced = self.bounced.take();
        self.seat.end_write();
        // Whatever faulted, a prepared write did not happen.
        self.cpu.state_mut().walk.crossing = Crossing::default();
        let HostFault { host_rip, vector, pending: _, address } = fault;
        let host = u32::try_from(host_rip).unwrap_or(0);
        let Some(mark) = self.mark_at(host) else {
            return Ok(Go::At(self.cpu.state().context.rip));
        };
        let rip = self.rip_of(mark);
        let state = self.cpu.state_mut();
        if let Some(register) = mark.borrowed {
            state.context.gprs[usize::from(register)] = state.spill[1];
        }
        if !mark.host_flags {
            // The handler saved the host's flags, but the guest's are where the code had put them.
            state.status = state.kept_status;
        }
        state.context.rip = rip;
        self.settle_flags();
        if vector == u64::from(vector::PAGE_FAULT) {
            if let Some(exit) = bounced.and_then(|bounced| self.bounce_fault(bounced, address)) {
                return Err(exit);
            }
            if self.cpu.is_kicked() {
                // A poll's load through the nulled pointer.
                return Ok(Go::At(rip));
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

    /// The guest address of a mark's instruction.
    pub(crate) fn rip_of(&self, mark: Mark) -> u64 {
        let page = self.pages.get(mark.page).map_or(0, |page| page.linear);
        page + u64::from(mark.offset)
    }

    /// What host code in the cache belongs to.
    pub(crate) fn mark_at(&self, host: u32) -> Option<Mark> {
        let hot_end = self.cpu.layout().code() + HOT_BYTES;
        let marks = if host < hot_end { &self.emitter.hot_marks } else { &self.emitter.cold_marks };
        find_mark(marks, host).copied()
    }

    /// What a fault on the bounce pages is for the guest.
    fn bounce_fault(&self, bounced: Bounced, address: u64) -> Option<Exit> {
        let distance = address.wrapping_sub(u64::from(self.cpu.layout().bounce())).cast_signed();
        let within = usize::try_from(distance - bounced.at as i64).ok().filter(|at| *at < bounced.len)?;
        let exit = bounced.pages[usize::from(within >= bounced.first_part())].err()?;
        let linear = bounced.linear.wrapping_add(within as u64);
        let linear = if self.env.bits == Bits::B32 { linear & 0xffff_ffff } else { linear };
        if let Exit::PageFault(PageFault { address: _, code }) = exit {
            return Some(Exit::PageFault(PageFault { address: linear, code }));
        }
        Some(blame_stack(exit, bounced.stack))
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
        self.canonical_to_its_end(linear, len)?;
        let first = self.page(linear, path)?;
        let offset = (linear & (PAGE_SIZE - 1)) as usize;
        let second = if offset + len > PAGE_BYTES { self.page(self.next_page(linear), path)? } else { first };
        Ok([first, second])
    }

    /// Checks an address against EFLAGS.AC. That comes before any page is looked at, too.
    pub(crate) fn check_alignment(&self, linear: u64, size: u64) -> Result<(), Exit> {
        if self.env.aligned && !linear.is_multiple_of(alignment(size)) {
            return Err(exception_with(vector::ALIGNMENT, 0));
        }
        Ok(())
    }

    /// Checks that the end of an operand is canonical: that comes before any page is looked at.
    pub(crate) fn canonical_to_its_end(&self, linear: u64, len: usize) -> Result<(), Exit> {
        let last = linear.wrapping_add(len.saturating_sub(1) as u64);
        if self.env.bits == Bits::B64 && !GuestVirt(last).is_canonical() {
            return Err(exception_with(vector::GENERAL_PROTECTION, 0));
        }
        Ok(())
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

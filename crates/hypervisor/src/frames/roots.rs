//! What holds frames apart from mappings: pins, page-table roots, descriptor tables, loans to backends.
//!
//! Source: `do_mmuext_op`, `new_guest_cr3` in `xen/arch/x86/mm.c`; `pv_set_gdt`, `pv_destroy_gdt`,
//! `pv_destroy_ldt` in `xen/arch/x86/pv/descriptor-tables.c`.

use paravane_abi::{
    errno::Errno,
    units::{Mfn, VcpuId},
};

use super::{
    counts::Frames,
    level::{Level, Use},
    table::{OWN_GDT_FRAMES, Owner, VcpuFrames, flags},
};

/// Whether a root was the one already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RootChange {
    /// It was.
    Same,
    /// It is a new one.
    New,
}

impl Frames<'_> {
    /// Makes a frame a page table of `level` until it is unpinned.
    ///
    /// # Errors
    ///
    /// `EINVAL` if it is not the guest's, is in use as something else, or is pinned already; else what validation says.
    pub(crate) fn pin(&mut self, frame: Mfn, level: Level) -> Result<(), Errno> {
        self.get_with_use(frame, Use::table(level))?;
        let pinned = self.table.record(frame).is_some_and(|record| record.has(flags::PINNED));
        if pinned {
            self.put_with_use(frame);
            return Err(Errno::Einval);
        }
        if let Some(record) = self.table.record_mut(frame) {
            record.flags |= flags::PINNED;
        }
        Ok(())
    }

    /// Undoes [`Frames::pin`].
    ///
    /// # Errors
    ///
    /// `EINVAL` if the frame is not pinned.
    pub(crate) fn unpin(&mut self, frame: Mfn) -> Result<(), Errno> {
        if self.table.owner(frame) != Owner::Guest {
            return Err(Errno::Einval);
        }
        let record = self.table.record_mut(frame).ok_or(Errno::Einval)?;
        if !record.has(flags::PINNED) {
            return Err(Errno::Einval);
        }
        record.flags &= !flags::PINNED;
        self.put_with_use(frame);
        Ok(())
    }

    /// Makes `root` the root of a vCPU's kernel mode, and drops the old one and the pages of the LDT.
    ///
    /// # Errors
    ///
    /// `EINVAL` and what validation says; the old root then stays.
    pub(crate) fn load_kernel_root(&mut self, vcpu: VcpuId, root: Mfn) -> Result<RootChange, Errno> {
        let old = self.holder(vcpu).ok_or(Errno::Einval)?.kernel_root;
        if old == Some(root) {
            return Ok(RootChange::Same);
        }
        self.get_with_use(root, Use::L4)?;
        self.drop_ldt(vcpu);
        if !self.strict_m2p {
            self.show_m2p(root);
        }
        if let Some(holder) = self.holder(vcpu) {
            holder.kernel_root = Some(root);
        }
        if let Some(old) = old {
            self.put_with_use(old);
        }
        Ok(RootChange::New)
    }

    /// Makes `root` the root of a vCPU's user mode, or leaves it without one.
    ///
    /// # Errors
    ///
    /// As for [`Frames::load_kernel_root`].
    pub(crate) fn load_user_root(&mut self, vcpu: VcpuId, root: Option<Mfn>) -> Result<RootChange, Errno> {
        let old = self.holder(vcpu).ok_or(Errno::Einval)?.user_root;
        if old == root {
            return Ok(RootChange::Same);
        }
        if let Some(root) = root {
            self.get_with_use(root, Use::L4)?;
            if self.strict_m2p {
                self.hide_m2p(root);
            }
        }
        if let Some(holder) = self.holder(vcpu) {
            holder.user_root = root;
        }
        if let Some(old) = old {
            self.put_with_use(old);
        }
        Ok(RootChange::New)
    }

    /// Makes `pages` the guest's part of a vCPU's GDT. Returns all frames by page.
    ///
    /// # Errors
    ///
    /// `EINVAL` if one cannot hold descriptors; the old table then stays.
    pub(crate) fn load_gdt(
        &mut self,
        vcpu: VcpuId,
        pages: &[Mfn],
    ) -> Result<[Option<Mfn>; OWN_GDT_FRAMES], Errno> {
        if pages.len() > OWN_GDT_FRAMES || self.holder(vcpu).is_none() {
            return Err(Errno::Einval);
        }
        for (index, page) in pages.iter().enumerate() {
            if self.get_with_use(*page, Use::SegmentDescriptors).is_err() {
                pages[..index].iter().for_each(|page| self.put_with_use(*page));
                return Err(Errno::Einval);
            }
        }
        let mut gdt = [None; OWN_GDT_FRAMES];
        for (slot, page) in gdt.iter_mut().zip(pages) {
            *slot = Some(*page);
        }
        let old = self.holder(vcpu).map(|holder| core::mem::replace(&mut holder.gdt, gdt));
        for page in old.into_iter().flatten().flatten() {
            self.put_with_use(page);
        }
        Ok(gdt)
    }

    /// Makes a frame a page of a vCPU's LDT.
    ///
    /// # Errors
    ///
    /// `EINVAL` if it cannot hold descriptors.
    pub(crate) fn load_ldt_page(&mut self, vcpu: VcpuId, index: u8, page: Mfn) -> Result<(), Errno> {
        let index = usize::from(index);
        let holder = self.holder(vcpu).ok_or(Errno::Einval)?;
        match holder.ldt.get(index) {
            Some(None) => {}
            Some(Some(_)) | None => return Err(Errno::Einval),
        }
        self.get_with_use(page, Use::SegmentDescriptors)?;
        if let Some(holder) = self.holder(vcpu) {
            holder.ldt[index] = Some(page);
        }
        Ok(())
    }

    /// Drops the pages of a vCPU's LDT. They come in again when they are used.
    pub(crate) fn drop_ldt(&mut self, vcpu: VcpuId) {
        let old = self.holder(vcpu).map(|holder| core::mem::take(&mut holder.ldt));
        for page in old.into_iter().flatten().flatten() {
            self.put_with_use(page);
        }
    }

    /// Lends a frame to a backend, which keeps it from becoming a page table while it may be written.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the frame is not the guest's, or is to be written and is a page table or holds descriptors.
    pub(crate) fn lend(&mut self, frame: Mfn, writable: bool) -> Result<(), Errno> {
        if writable {
            self.get_with_use(frame, Use::Writable)?;
        } else {
            self.get(frame)?;
        }
        let loan = self.table.loans.entry(frame).or_default();
        *(if writable { &mut loan.writers } else { &mut loan.readers }) += 1;
        Ok(())
    }

    /// Takes a frame back that was lent with the same rights.
    ///
    /// # Errors
    ///
    /// `EINVAL` if it was not lent so.
    pub(crate) fn take_back(&mut self, frame: Mfn, writable: bool) -> Result<(), Errno> {
        let loan = self.table.loans.get_mut(&frame).ok_or(Errno::Einval)?;
        let count = if writable { &mut loan.writers } else { &mut loan.readers };
        *count = count.checked_sub(1).ok_or(Errno::Einval)?;
        if *loan == super::table::Loan::default() {
            self.table.loans.remove(&frame);
        }
        if writable {
            self.put_use(frame);
        }
        self.put(frame);
        Ok(())
    }

    fn holder(&mut self, vcpu: VcpuId) -> Option<&mut VcpuFrames> {
        self.table.vcpus.get_mut(vcpu.0 as usize)
    }
}

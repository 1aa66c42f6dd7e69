//! What event channels, grants and vCPUs ask of machine frames.
//!
//! Whoever keeps the number of a guest's frame must be sure of two things: that the frame is the guest's, and
//! that it keeps its use. A frame that the hypervisor writes on the guest's behalf counts as writable for as
//! long, so that it cannot become a page table meanwhile.
//!
//! Source: `get_page_from_gfn`, `get_page_type` in `xen/arch/x86/mm.c`.

use paravane_abi::{
    errno::Errno,
    units::{Mfn, VcpuId},
};
use paravane_engine::GDT_FRAMES;

use crate::{domain::Domain, frames::Owner};

/// Why a frame cannot be claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unclaimable {
    /// It is not the guest's.
    NotOwned,
    /// It is in use as something that must not be written.
    NotWritable,
}

impl Domain {
    /// Keeps `frame` from going away and, with `writable`, from being used as anything that must not be written,
    /// until [`Domain::release`].
    pub(crate) fn claim(&mut self, frame: Mfn, writable: bool) -> Result<(), Unclaimable> {
        if self.frame_table.owner(frame) != Owner::Guest {
            return Err(Unclaimable::NotOwned);
        }
        self.frames().lend(frame, writable).map_err(|_| Unclaimable::NotWritable)
    }

    /// Undoes one [`Domain::claim`] with the same rights.
    pub(crate) fn release(&mut self, frame: Mfn, writable: bool) {
        let released = self.frames().take_back(frame, writable);
        debug_assert!(released.is_ok(), "frame {frame} was claimed");
    }

    /// [`Domain::claim`] for writing.
    pub(crate) fn claim_writable(&mut self, frame: Mfn) -> Result<(), Unclaimable> {
        self.claim(frame, true)
    }

    /// Undoes one [`Domain::claim_writable`].
    pub(crate) fn release_writable(&mut self, frame: Mfn) {
        self.release(frame, true);
    }

    /// Makes `pages` the guest's part of a vCPU's GDT, and returns them by page.
    ///
    /// # Errors
    ///
    /// `EINVAL` if there are too many or one cannot hold descriptors.
    pub(crate) fn claim_gdt(
        &mut self,
        vcpu: VcpuId,
        pages: &[Mfn],
    ) -> Result<[Option<Mfn>; GDT_FRAMES - 1], Errno> {
        self.frames().load_gdt(vcpu, pages)
    }

    /// Makes `kernel` and `user` a vCPU's page-table roots.
    ///
    /// # Errors
    ///
    /// `EINVAL` if one is not the guest's or not a root, and what validation says.
    pub(crate) fn claim_roots(&mut self, vcpu: VcpuId, kernel: Mfn, user: Option<Mfn>) -> Result<(), Errno> {
        self.frames().load_kernel_root(vcpu, kernel)?;
        self.frames().load_user_root(vcpu, user)?;
        Ok(())
    }
}

//! Machine frames: who owns them, what they are used as, and what page tables may say about them.
//!
//! A PV guest sees machine frames and writes its own page tables, so its hypervisor must know of each frame what it
//! is. The rule that everything follows from: a page table, or a page of descriptors, is never mapped writable.
//! Then its contents change only by request, and a request can be checked.
//!
//! | file | what it knows |
//! | --- | --- |
//! | `machine.rs` | which frames there are, and what Xen keeps in its own |
//! | `table.rs`, `free.rs` | the records of frames: owners, counts, uses; free frames |
//! | `counts.rs` | taking and dropping references and uses |
//! | `level.rs`, `entry.rs` | levels, uses, page-table entries |
//! | `validate.rs`, `update.rs` | whole tables; single entries |
//! | `roots.rs` | pins, roots, descriptor tables, loans |
//! | `walk.rs` | from an address to its L1 entry |
//! | `write_fault.rs`, `ldt.rs` | faults that are not the guest's to see |
//! | `adopt.rs` | taking a domain over from its builder |
//! | `recount.rs` | counting all over again |
//!
//! # Several vCPUs
//!
//! Requests are serialised by the domain; guest code on other vCPUs is not stopped. When a frame that was writable
//! becomes a page table, other vCPUs may hold stale translations to it; the flushes for them are in the domain's
//! list when the request returns, and the caller carries them out before the asking vCPU goes on. A guest that
//! writes through a stale translation in between corrupts its own page tables and nobody else's: engines check
//! every frame against the bounds of memory, and counts that turn out wrong crash the domain.
//!
//! Source: `xen/arch/x86/mm.c`, whose head describes the rules.

mod adopt;
mod counts;
pub(crate) mod entry;
mod free;
mod ldt;
mod level;
mod machine;
mod recount;
mod roots;
mod table;
mod update;
mod validate;
mod walk;
mod write_fault;

use paravane_abi::{
    errno::Errno,
    units::{Mfn, PAGE_BYTES},
    vm::VmAssistType,
};
use paravane_engine::TlbFlush;

pub use adopt::AdoptError;
pub(crate) use counts::Frames;
pub(crate) use entry::Entry;
pub(crate) use ldt::{bring_in_ldt_page, ldt_page};
pub(crate) use level::{Level, Use};
pub use machine::{BadSize, Machine};
pub(crate) use machine::{M2P_END, M2P_ENTRIES, M2P_START};
pub use recount::Miscount;
pub(crate) use roots::RootChange;
pub(crate) use table::{FrameTable, OWN_GDT_FRAMES, Owner};
pub(crate) use update::Store;
pub(crate) use validate::Mappable;
pub(crate) use walk::find_leaf;
pub use write_fault::ShadowWrite;
pub(crate) use write_fault::{RecentFaults, write_fault};

use crate::{
    crash::CrashCause,
    domain::{Call, Domain},
};

impl Domain {
    /// The frames, with all that a change of a count may touch.
    pub(crate) fn frames(&mut self) -> Frames<'_> {
        Frames {
            memory: &self.memory,
            table: &mut self.frame_table,
            flushes: &mut self.flushes,
            strict_m2p: self.assists & 1 << VmAssistType::M2pStrict.number() != 0,
        }
    }

    /// Whether no count was found wrong.
    ///
    /// # Errors
    ///
    /// The crash of a domain whose page tables cannot be trusted any more.
    pub(crate) fn check_frames(&mut self) -> Result<(), CrashCause> {
        match self.frame_table.damage.take() {
            None => Ok(()),
            Some(damage) => Err(CrashCause::Fatal(format!(
                "the counts of frame {} are wrong: {}; a vCPU wrote to a page table through a stale translation",
                damage.frame, damage.what
            ))),
        }
    }
}

impl Call<'_> {
    /// The recent page faults of the vCPU that asks.
    pub(crate) fn recent_faults(&mut self) -> &mut RecentFaults {
        &mut self.domain.recent_faults[self.vcpu.0 as usize]
    }
}

/// Makes `root` the kernel's page-table root (`MMUEXT_NEW_BASEPTR`, MOV to CR3).
///
/// # Errors
///
/// `EINVAL` if it cannot be one, and what validation says.
pub(crate) fn set_kernel_root(call: &mut Call<'_>, root: Mfn) -> Result<(), Errno> {
    let vcpu = call.vcpu;
    match call.domain.frames().load_kernel_root(vcpu, root)? {
        // The CPU forgets its translations even so.
        RootChange::Same => call.flush_local(TlbFlush::All),
        // The engine sees that the root is another.
        RootChange::New => {
            call.context.kernel_root = root;
            call.context.descriptors.ldt = Default::default();
        }
    }
    Ok(())
}

/// Overwrites a page of the guest's with `contents`.
///
/// # Errors
///
/// `EINVAL` if the frame is not the guest's or is in use as something that a guest may not write.
pub(crate) fn fill_guest_page(
    domain: &mut Domain,
    frame: Mfn,
    contents: &[u8; PAGE_BYTES],
) -> Result<(), Errno> {
    domain.frames().fill(frame, contents)
}

#[cfg(test)]
pub(crate) mod test_guest;
#[cfg(test)]
mod tests;

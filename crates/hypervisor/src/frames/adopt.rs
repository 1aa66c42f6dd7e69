//! Taking a domain over from its builder.
//!
//! The builder writes memory and knows no counts. Adoption makes its work a domain's: it fills Xen's own frames, and
//! validates and pins the page tables as `MMUEXT_PIN_L4_TABLE` would, which rewrites their entries. The root then
//! has two uses, the pin and vCPU 0, as after a build on Xen.

use paravane_abi::{
    errno::Errno,
    units::{Mfn, VcpuId},
};
use paravane_engine::VcpuContext;
use thiserror::Error;

use super::{
    level::Level,
    machine::Machine,
    recount::{Miscount, recount},
    table::{BadEntry, FrameTable},
};
use crate::domain::Domain;

/// A built domain cannot run.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AdoptError {
    /// The memory does not have the frames of the machine.
    #[error(
        "memory has {found} frames from {first}, the machine needs {needed} from {start}: allocate it with the same machine"
    )]
    WrongMemory {
        /// The memory's first frame.
        first: Mfn,
        /// Its number of frames.
        found: u64,
        /// The machine's first frame.
        start: Mfn,
        /// Its number of frames.
        needed: u64,
    },
    /// More pages are populated than the guest may have.
    #[error("{pages} pages are populated, but the machine has room for {max_pages}")]
    TooManyPages {
        /// The populated pages.
        pages: u64,
        /// The machine's room.
        max_pages: u64,
    },
    /// `shared_info` is elsewhere.
    #[error("shared_info is configured in frame {configured}, but the machine has it in frame {planned}")]
    WrongSharedInfo {
        /// Where the domain has it.
        configured: Mfn,
        /// Where the machine has it.
        planned: Mfn,
    },
    /// The records of the frames do not fit the host.
    #[error("the host has no memory for the records of {frames} frames: give the guest less memory")]
    NoRecords {
        /// How many frames there are.
        frames: u64,
    },
    /// The page tables do not validate.
    #[error("the page tables with the root {root} are refused with {errno}: {why}")]
    BadTables {
        /// The root.
        root: Mfn,
        /// What pinning it would have returned.
        errno: Errno,
        /// The entry to blame.
        why: String,
    },
}

impl Domain {
    /// Takes the domain over from its builder: the first `pages` pages of the machine's memory are populated in order,
    /// and `context` is vCPU 0's with the root of its page tables.
    ///
    /// # Errors
    ///
    /// [`AdoptError`]; the domain cannot be used then.
    pub fn adopt(
        &mut self,
        machine: &Machine,
        pages: u64,
        context: &mut VcpuContext,
    ) -> Result<(), AdoptError> {
        self.check(machine, pages)?;
        let vcpus = self.frame_table.vcpus.len();
        self.frame_table = FrameTable::new(machine.clone(), pages, vcpus);
        if self.frame_table.record(machine.frames.start).is_none() {
            return Err(AdoptError::NoRecords { frames: machine.frame_count() });
        }
        let wrong_memory = |_| AdoptError::WrongMemory {
            first: self.memory.first_frame(),
            found: self.memory.frame_count(),
            start: machine.frames.start,
            needed: machine.frame_count(),
        };
        machine.furnish(&self.memory, pages).map_err(wrong_memory)?;
        self.set_grant_frames(machine.grants.clone(), machine.grant_status.clone());
        let root = context.kernel_root;
        let mut frames = self.frames();
        let pinned = frames.pin(root, Level::L4).and_then(|()| frames.load_kernel_root(VcpuId(0), root));
        let bad_entry = frames.table.bad_entry;
        pinned.map_err(|errno| AdoptError::BadTables { root, errno, why: explain(errno, bad_entry) })?;
        self.install_reserved_gdt(context);
        self.boot(context);
        Ok(())
    }

    /// Gives a vCPU the page of the GDT that is Xen's.
    pub fn install_reserved_gdt(&self, context: &mut VcpuContext) {
        let reserved = context.descriptors.gdt.last_mut();
        if let Some(page) = reserved {
            *page = Some(self.frame_table.machine.gdt);
        }
    }

    /// Counts all references and uses of frames from nothing and compares them with what is kept: for tests and
    /// for diagnosis. Takes time in proportion to memory.
    ///
    /// # Errors
    ///
    /// The first wrong count.
    pub fn recount(&self) -> Result<(), Miscount> {
        recount(&self.frame_table, &self.memory)
    }

    fn check(&self, machine: &Machine, pages: u64) -> Result<(), AdoptError> {
        let (first, found) = (self.memory.first_frame(), self.memory.frame_count());
        let (start, needed) = (machine.frames.start, machine.frame_count());
        if (first, found) != (start, needed) {
            return Err(AdoptError::WrongMemory { first, found, start, needed });
        }
        if pages > machine.max_pages {
            return Err(AdoptError::TooManyPages { pages, max_pages: machine.max_pages });
        }
        if self.shared_info != machine.shared_info {
            let (configured, planned) = (self.shared_info, machine.shared_info);
            return Err(AdoptError::WrongSharedInfo { configured, planned });
        }
        Ok(())
    }
}

fn explain(errno: Errno, bad: Option<BadEntry>) -> String {
    bad.map_or_else(
        || "the root is not a frame of the guest's that can be a page table".to_owned(),
        |bad| bad.explain(errno),
    )
}

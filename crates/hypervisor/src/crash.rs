//! Why a domain crashed, and what can be said about it.

use core::fmt;

use paravane_abi::units::{GuestVirt, Mfn, VcpuId};
use paravane_engine::{Exit, VcpuContext};

/// What the guest did that its hypervisor cannot answer with an error or a fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CrashCause {
    /// An exception, interrupt or callback for which the guest has registered no handler.
    NoHandler {
        /// What was to be delivered.
        what: String,
    },
    /// A frame could not be written to the guest's stack.
    BadStack {
        /// Where it was to be written.
        at: GuestVirt,
        /// Why not.
        why: String,
    },
    /// The iret hypercall's frame could not be read.
    BadIretFrame {
        /// Where it was looked for.
        at: GuestVirt,
    },
    /// A return to user mode without a user page table.
    NoUserRoot,
    /// A page-table root that is not one.
    BadRoot {
        /// The frame.
        frame: Mfn,
        /// Why it is not a root.
        why: String,
    },
    /// Anything else that real Xen answers with `domain_crash`.
    Fatal(String),
}

/// A crash as it happened: enough to explain it.
#[derive(Clone, Debug)]
pub struct CrashReport {
    /// The vCPU that did it.
    pub vcpu: VcpuId,
    /// What it did.
    pub cause: CrashCause,
    /// The exit that led to it.
    pub exit: Exit,
    /// The registers at that exit.
    pub context: Box<VcpuContext>,
}

impl fmt::Display for CrashCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHandler { what } => write!(f, "no handler is registered for {what}"),
            Self::BadStack { at, why } => {
                write!(f, "cannot write a frame to the guest's stack at {at}: {why}")
            }
            Self::BadIretFrame { at } => {
                write!(f, "cannot read the iret frame from the guest's stack at {at}")
            }
            Self::NoUserRoot => f.write_str("return to user mode, but no user page table is set"),
            Self::BadRoot { frame, why } => write!(f, "frame {frame} cannot be a page-table root: {why}"),
            Self::Fatal(what) => f.write_str(what),
        }
    }
}

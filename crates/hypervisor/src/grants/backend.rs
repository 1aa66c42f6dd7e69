//! Use of a guest's grants by a backend, which lives in this process and counts as the control domain.

use core::fmt;

use paravane_abi::{
    grant_table::GrantStatus,
    units::{GrantRef, Mfn},
};
use thiserror::Error;

use super::pins::{Purpose, Refused, Uses};
use crate::domain::{CONTROL_DOMAIN, Domain};

/// What a backend does with a granted page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrantAccess {
    /// Reads only.
    Read,
    /// Reads and writes.
    Write,
}

/// A page that a guest granted, in use by a backend until [`Domain::release_grant`].
///
/// Deliberately no copy of itself can be made: each stands for one use, which is counted.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the guest cannot end the grant before it is released"]
pub struct BackendGrant {
    reference: GrantRef,
    frame: Mfn,
    access: GrantAccess,
}

impl BackendGrant {
    /// The page's machine frame.
    pub fn frame(&self) -> Mfn {
        self.frame
    }

    /// What it may be used for.
    pub fn access(&self) -> GrantAccess {
        self.access
    }
}

/// A guest's grant cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub struct GrantRefusal {
    /// The grant.
    pub reference: GrantRef,
    /// What a backend in a domain of its own would have been told.
    pub status: GrantStatus,
    /// Why.
    pub why: &'static str,
}

impl fmt::Display for GrantRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "grant {} of the guest cannot be used: {} ({})", self.reference, self.why, self.status)
    }
}

impl GrantAccess {
    fn is_write(self) -> bool {
        match self {
            Self::Read => false,
            Self::Write => true,
        }
    }
}

/// One use, by a CPU.
const ONCE: Uses = Uses { by_cpu: 1, by_device: 0 };

impl Domain {
    /// Uses a page that the guest granted to the control domain. The entry says that it is in use, and the page stays
    /// what it is, until the grant is released.
    ///
    /// # Errors
    ///
    /// [`GrantRefusal`] with the status that a mapping by another domain would have.
    pub fn backend_grant(
        &mut self,
        reference: GrantRef,
        access: GrantAccess,
    ) -> Result<BackendGrant, GrantRefusal> {
        let writable = access.is_write();
        let refusal = |Refused { status, why }: Refused| GrantRefusal { reference, status, why };
        let purpose = Purpose { writable, mapping: true, count: ONCE };
        let frame = self.pin_grant(reference, CONTROL_DOMAIN, purpose).map_err(refusal)?.frame;
        if let Err(why) = self.claim(frame, writable) {
            self.unpin_grant(reference, writable, ONCE);
            return Err(refusal(why.into()));
        }
        Ok(BackendGrant { reference, frame, access })
    }

    /// Ends the use of a granted page.
    #[expect(clippy::needless_pass_by_value, reason = "a use ends once")]
    pub fn release_grant(&mut self, grant: BackendGrant) {
        let writable = grant.access.is_write();
        self.release(grant.frame, writable);
        self.unpin_grant(grant.reference, writable, ONCE);
    }

    /// Grants a page of the guest's to the control domain, as the builder does for the rings of the console and of
    /// xenstore before the guest runs.
    ///
    /// # Errors
    ///
    /// [`GrantRefusal`] for a reference beyond the table, or a frame that its layout cannot name.
    pub fn seed_grant(&mut self, reference: GrantRef, frame: Mfn) -> Result<(), GrantRefusal> {
        self.write_grant(reference, CONTROL_DOMAIN, frame).map_err(|Refused { status, why }| GrantRefusal {
            reference,
            status,
            why,
        })
    }
}

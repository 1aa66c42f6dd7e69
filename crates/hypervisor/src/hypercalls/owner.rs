//! The domain that an MMU request names: whose frames may be mapped.
//!
//! Source: `get_pg_owner` in `xen/common/page_alloc.c`; the default policy in `xen/include/xsm/dummy.h`.

use paravane_abi::{errno::Errno, units::DomId};

use crate::{domain::Call, frames::Mappable};

/// The domain that runs the backends.
const CONTROL: DomId = DomId(0);

/// The owner of the frames of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrameOwner {
    /// The guest itself.
    Own,
    /// Nobody: frames of devices (`DOMID_IO`).
    Devices,
    /// Another domain, or Xen. An unprivileged guest may not touch its frames.
    Foreign,
}

impl FrameOwner {
    /// The owner that `id` names.
    ///
    /// # Errors
    ///
    /// `ESRCH` for a domain that does not exist, and for the guest's own number: it has to say `DOMID_SELF`.
    pub(crate) fn named(call: &Call<'_>, id: DomId) -> Result<Self, Errno> {
        match id {
            DomId::SELF => Ok(Self::Own),
            id if id == call.domain.id => Err(Errno::Esrch),
            DomId::IO => Ok(Self::Devices),
            DomId::XEN | CONTROL => Ok(Self::Foreign),
            _ => Err(Errno::Esrch),
        }
    }

    /// What entries may map in this owner's name.
    ///
    /// # Errors
    ///
    /// `EPERM` for a foreign owner.
    pub(crate) fn mappable(self) -> Result<Mappable, Errno> {
        match self {
            Self::Own => Ok(Mappable::Own),
            Self::Devices => Ok(Mappable::Devices),
            Self::Foreign => Err(Errno::Eperm),
        }
    }
}

/// Whether a request of the memory family names the guest itself, by number or as `DOMID_SELF`.
///
/// # Errors
///
/// `ESRCH` for a domain that does not exist, `EPERM` for another one.
pub(crate) fn require_own(call: &Call<'_>, id: DomId) -> Result<(), Errno> {
    match id {
        DomId::SELF => Ok(()),
        id if id == call.domain.id => Ok(()),
        CONTROL => Err(Errno::Eperm),
        _ => Err(Errno::Esrch),
    }
}

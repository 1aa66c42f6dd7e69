//! What an unprivileged PV domain gets from a hypercall or a sub-operation.

use core::fmt;

use serde::Serialize;

use crate::errno::Errno;

/// What an unprivileged PV domain without passed-through devices gets from stock Xen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DomU {
    /// It works; its own errors apply.
    Available,
    /// It exists for others; this domain is refused with the error.
    Refused(Errno),
    /// It depends on how Xen was built or configured; without it the error is returned.
    Optional(Errno),
    /// It existed once; the error is what is returned now.
    Removed(Errno),
    /// Xen uses it on itself; a guest that calls it gets the error.
    Internal(Errno),
}

impl DomU {
    /// The error that the domain gets where the operation is not there for it.
    pub const fn errno(self) -> Option<Errno> {
        match self {
            Self::Available => None,
            Self::Refused(errno) | Self::Optional(errno) | Self::Removed(errno) | Self::Internal(errno) => {
                Some(errno)
            }
        }
    }

    /// Whether the error, if there is one, is a number that guests can see.
    #[cfg(test)]
    pub(crate) fn is_guest_visible(self) -> bool {
        self.errno().is_none_or(|errno| errno.facts().exposure == crate::errno::Exposure::Guest)
    }
}

impl fmt::Display for DomU {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Available => f.write_str("available"),
            Self::Refused(errno) => write!(f, "refused with {errno}"),
            Self::Optional(errno) => write!(f, "optional, else {errno}"),
            Self::Removed(errno) => write!(f, "removed, now {errno}"),
            Self::Internal(errno) => write!(f, "internal, {errno} to a guest"),
        }
    }
}

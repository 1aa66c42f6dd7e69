//! How a request of the guest's ends when it does not succeed.

use paravane_abi::errno::Errno;

use crate::crash::CrashCause;

/// Why a hypercall or an emulated instruction did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The guest is told, by a negative result.
    Errno(Errno),
    /// The domain cannot go on.
    Crash(CrashCause),
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

impl From<CrashCause> for Refusal {
    fn from(cause: CrashCause) -> Self {
        Self::Crash(cause)
    }
}

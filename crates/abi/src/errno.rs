//! Xen's error numbers, and how a hypercall's result tells them from values.
//!
//! A hypercall returns one machine word. Failure is a small negative number whose magnitude is one of
//! these; the numbers are Linux's for x86, whatever the guest's own kernel uses. Two of them exist only
//! inside Xen and never reach a guest.
//!
//! Source: `xen/include/public/errno.h`.

use core::fmt;

use serde::Serialize;

use crate::numbered;

/// The largest magnitude that a result is read as an error: negative results beyond it are values.
///
/// Xen's numbers end far lower. The bound is the one that Linux uses to tell errors from pointers, so that
/// a number this table lacks is still shown as an error.
pub const MAX_ERRNO: u16 = 4095;

/// Whether a guest can see the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exposure {
    /// Hypercalls return it.
    Guest,
    /// Only Xen's own functions return it to one another.
    Internal,
}

/// The columns of the table beyond number, name and meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ErrnoFacts {
    /// Whether a guest can see the number.
    pub exposure: Exposure,
    /// A second name of the same number; empty if there is none.
    pub alias: &'static str,
}

use Exposure::{Guest, Internal};

numbered! {
    /// An error number. Hypercalls return it negated.
    pub enum Errno(u16), "xen/include/public/errno.h": ErrnoFacts;
    1 Eperm "EPERM" "Operation not permitted." { exposure: Guest, alias: "" }
    2 Enoent "ENOENT" "No such object." { exposure: Guest, alias: "" }
    3 Esrch "ESRCH" "No such domain." { exposure: Guest, alias: "" }
    4 Eintr "EINTR" "Interrupted." { exposure: Internal, alias: "" }
    5 Eio "EIO" "Input or output failed." { exposure: Guest, alias: "" }
    6 Enxio "ENXIO" "No such device or address." { exposure: Guest, alias: "" }
    7 E2big "E2BIG" "Argument list too long." { exposure: Guest, alias: "" }
    8 Enoexec "ENOEXEC" "Not an executable format." { exposure: Guest, alias: "" }
    9 Ebadf "EBADF" "Bad file number." { exposure: Guest, alias: "" }
    10 Echild "ECHILD" "No child." { exposure: Guest, alias: "" }
    11 Eagain "EAGAIN" "Try again later." { exposure: Guest, alias: "EWOULDBLOCK" }
    12 Enomem "ENOMEM" "Out of memory." { exposure: Guest, alias: "" }
    13 Eacces "EACCES" "Permission denied." { exposure: Guest, alias: "" }
    14 Efault "EFAULT" "Bad guest address." { exposure: Guest, alias: "" }
    16 Ebusy "EBUSY" "The object is in use." { exposure: Guest, alias: "" }
    17 Eexist "EEXIST" "The object exists already." { exposure: Guest, alias: "" }
    18 Exdev "EXDEV" "The objects belong to different devices or domains." { exposure: Guest, alias: "" }
    19 Enodev "ENODEV" "No such device." { exposure: Guest, alias: "" }
    20 Enotdir "ENOTDIR" "Not a directory." { exposure: Guest, alias: "" }
    21 Eisdir "EISDIR" "Is a directory." { exposure: Guest, alias: "" }
    22 Einval "EINVAL" "Invalid argument." { exposure: Guest, alias: "" }
    23 Enfile "ENFILE" "A table is full." { exposure: Guest, alias: "" }
    24 Emfile "EMFILE" "Too many open files." { exposure: Guest, alias: "" }
    28 Enospc "ENOSPC" "No space left." { exposure: Guest, alias: "" }
    30 Erofs "EROFS" "Read-only file system." { exposure: Guest, alias: "" }
    31 Emlink "EMLINK" "Too many links." { exposure: Guest, alias: "" }
    33 Edom "EDOM" "Argument outside the function's domain." { exposure: Guest, alias: "" }
    34 Erange "ERANGE" "Value outside the permitted range." { exposure: Guest, alias: "" }
    35 Edeadlk "EDEADLK" "Waiting would never end." { exposure: Guest, alias: "EDEADLOCK" }
    36 Enametoolong "ENAMETOOLONG" "Name too long." { exposure: Guest, alias: "" }
    37 Enolck "ENOLCK" "No lock available." { exposure: Guest, alias: "" }
    38 Enosys "ENOSYS" "No such hypercall or sub-operation." { exposure: Guest, alias: "" }
    39 Enotempty "ENOTEMPTY" "Directory not empty." { exposure: Guest, alias: "" }
    61 Enodata "ENODATA" "No data available." { exposure: Guest, alias: "" }
    62 Etime "ETIME" "The time has passed." { exposure: Guest, alias: "" }
    74 Ebadmsg "EBADMSG" "Malformed message." { exposure: Guest, alias: "" }
    75 Eoverflow "EOVERFLOW" "Value too large for its type." { exposure: Guest, alias: "" }
    84 Eilseq "EILSEQ" "Illegal byte sequence." { exposure: Guest, alias: "" }
    85 Erestart "ERESTART" "Execute the hypercall again." { exposure: Internal, alias: "" }
    88 Enotsock "ENOTSOCK" "Not a socket." { exposure: Guest, alias: "" }
    90 Emsgsize "EMSGSIZE" "Message too large." { exposure: Guest, alias: "" }
    95 Eopnotsupp "EOPNOTSUPP" "Operation not supported." { exposure: Guest, alias: "" }
    98 Eaddrinuse "EADDRINUSE" "Address in use." { exposure: Guest, alias: "" }
    99 Eaddrnotavail "EADDRNOTAVAIL" "Address not available." { exposure: Guest, alias: "" }
    105 Enobufs "ENOBUFS" "No buffer space." { exposure: Guest, alias: "" }
    106 Eisconn "EISCONN" "Connected already." { exposure: Guest, alias: "" }
    107 Enotconn "ENOTCONN" "Not connected." { exposure: Guest, alias: "" }
    110 Etimedout "ETIMEDOUT" "Timed out." { exposure: Guest, alias: "" }
    111 Econnrefused "ECONNREFUSED" "Connection refused." { exposure: Guest, alias: "" }
}

impl Errno {
    /// The number of that name or alias, such as `ENOSYS` or `EWOULDBLOCK`.
    pub fn from_symbol(symbol: &str) -> Option<Self> {
        let alias = || Self::ALL.iter().copied().find(|errno| errno.facts().alias == symbol);
        Self::from_name(symbol).or_else(alias).filter(|_| !symbol.is_empty())
    }

    /// What a hypercall leaves in RAX when it fails with this number.
    pub const fn to_rax(self) -> u64 {
        0_u64.wrapping_sub(self.number() as u64)
    }

    /// What a hypercall leaves in EAX when it fails with this number.
    pub const fn to_eax(self) -> u32 {
        0_u32.wrapping_sub(self.number() as u32)
    }
}

/// What the word that a hypercall returned means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HypercallResult {
    /// Success, or a value such as a count. May be negative beyond [`MAX_ERRNO`], as an address is.
    Value(i64),
    /// Failure with a number of the table.
    Error(Errno),
    /// A number that looks like a failure and is not in the table.
    UnknownError(u16),
}

impl HypercallResult {
    /// Reads the result of a 64-bit guest's hypercall, RAX.
    ///
    /// `get_debugreg` returns a register's content, and so may return any word: its result is not an
    /// error even when it looks like one here.
    pub fn from_i64(result: i64) -> Self {
        let magnitude = u16::try_from(result.unsigned_abs()).ok().filter(|&number| number <= MAX_ERRNO);
        match magnitude {
            Some(number) if result < 0 => {
                Errno::from_number(number).map_or(Self::UnknownError(number), Self::Error)
            }
            _ => Self::Value(result),
        }
    }

    /// Reads the result of a 32-bit guest's hypercall, EAX.
    pub fn from_i32(result: i32) -> Self {
        Self::from_i64(i64::from(result))
    }
}

impl fmt::Display for HypercallResult {
    /// `0`, `-38 (ENOSYS)` or `-4000 (not an error number of Xen)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(value) => write!(f, "{value}"),
            Self::Error(errno) => write!(f, "-{} ({errno})", errno.number()),
            Self::UnknownError(number) => write!(f, "-{number} (not an error number of Xen)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::table::assert_well_formed;

    #[test]
    fn every_error_number_reads_back_as_itself() {
        assert_well_formed::<Errno>();
        for &errno in Errno::ALL {
            assert_eq!(Errno::from_symbol(errno.name()), Some(errno));
            assert!(errno.number() <= MAX_ERRNO);
        }
    }

    #[test]
    fn aliases_name_the_same_number() {
        assert_eq!(Errno::from_symbol("EWOULDBLOCK"), Some(Errno::Eagain));
        assert_eq!(Errno::from_symbol("EDEADLOCK"), Some(Errno::Edeadlk));
        assert_eq!(Errno::from_symbol(""), None);
        assert_eq!(Errno::from_symbol("ENOTTY"), None);
    }

    #[test]
    fn results_are_told_apart_by_sign_and_size() {
        for (result, expected, text) in [
            (0, HypercallResult::Value(0), "0"),
            (4096, HypercallResult::Value(4096), "4096"),
            (-38, HypercallResult::Error(Errno::Enosys), "-38 (ENOSYS)"),
            (-4000, HypercallResult::UnknownError(4000), "-4000 (not an error number of Xen)"),
            (-4096, HypercallResult::Value(-4096), "-4096"),
            (i64::MIN, HypercallResult::Value(i64::MIN), "-9223372036854775808"),
        ] {
            assert_eq!(HypercallResult::from_i64(result), expected);
            assert_eq!(expected.to_string(), text);
        }
    }

    #[test]
    fn a_register_holds_the_negated_number() {
        assert_eq!(Errno::Einval.to_rax(), 0xffff_ffff_ffff_ffea);
        assert_eq!(Errno::Einval.to_eax(), 0xffff_ffea);
    }

    proptest! {
        #[test]
        fn both_widths_agree(result in any::<i32>()) {
            prop_assert_eq!(HypercallResult::from_i32(result), HypercallResult::from_i64(i64::from(result)));
        }
    }
}

//! The system calls that the standard library does not offer: a copy of this process, and memory that is certainly new.
#![expect(unsafe_code, reason = "fork and mmap have no safe form")]

use std::{io, ptr};

/// A child process, which must be waited for.
#[derive(Debug)]
pub(crate) struct Child(libc::pid_t);

impl Child {
    /// Makes a copy of this process that does `work` and exits.
    ///
    /// # Errors
    ///
    /// If the kernel makes no process.
    pub(crate) fn fork(work: impl FnOnce()) -> io::Result<Self> {
        // SAFETY: this process has one thread, so the child holds no lock that nobody would release.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                work();
                // SAFETY: ends the child at once; nothing runs after it.
                unsafe { libc::_exit(0) }
            }
            pid => Ok(Self(pid)),
        }
    }

    /// Waits for its end; says whether it exited with 0.
    ///
    /// # Errors
    ///
    /// If there is nothing to wait for.
    pub(crate) fn wait(self) -> io::Result<bool> {
        let mut status = 0;
        // SAFETY: the pointer is to a live integer.
        let waited = unsafe { libc::waitpid(self.0, &raw mut status, 0) };
        if waited == self.0 { Ok(status == 0) } else { Err(io::Error::last_os_error()) }
    }
}

/// Anonymous memory that nobody has touched, in small pages.
#[derive(Debug)]
pub(crate) struct FreshMemory {
    start: *mut u8,
    len: usize,
}

impl FreshMemory {
    /// Maps `len` bytes.
    ///
    /// # Errors
    ///
    /// If the kernel has none.
    pub(crate) fn map(len: usize) -> io::Result<Self> {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // A kernel without huge pages refuses, and does what is wanted anyway.
        // SAFETY: advice about the mapping that was just made.
        unsafe { libc::madvise(start, len, libc::MADV_NOHUGEPAGE) };
        Ok(Self { start: start.cast(), len })
    }

    /// Its bytes.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is readable, writable, zeroed, this long, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

impl Drop for FreshMemory {
    fn drop(&mut self) {
        // SAFETY: the whole mapping, to which no borrow is left.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

//! The image side: from the bytes of a kernel file to an understood PV kernel.
//!
//! ```text
//! file ─► container ─► payload ─► contents ─► elf ─► metadata ─► parameters ─► addresses ─► verdict
//!         bzImage,     bounded    bytes, or   checked  notes, or   what they     where it     boots,
//!         ELF, .gz     unpacking  parts       headers  old text    ask for       will lie     or why not
//! ```
//!
//! Each step is a file here, works on plain values, and trusts nothing that the step before did not check.
//! An error ends the chain where a file is no kernel or is damaged. A sound kernel that does not boot is no
//! error but a [`Verdict`], with reasons.
//!
//! There are two ways in. [`inspect`] describes a file and keeps little of it in memory. [`Image`] keeps the
//! ELF file, to load or to extract it.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use paravane_x86::mode::Guest;
use thiserror::Error;

pub use self::inspection::{ElfSummary, Inspection, inspect};
pub use self::verdict::Verdict;

use self::addresses::Addresses;
use self::container::{Container, ContainerError};
use self::elf::{Elf, ElfError, LoadAddr, Segment};
use self::inspection::Understanding;
use self::parameters::Parameters;
use self::payload::DecompressError;
use self::symbol_table::{Symbol, SymbolTable};

pub mod addresses;
mod blocks;
pub mod bzimage;
pub mod container;
mod contents;
pub mod elf;
mod explain;
mod inspection;
pub mod legacy;
pub mod linux;
mod lz4;
mod lzo;
pub mod metadata;
pub mod notes;
pub mod parameters;
pub mod payload;
pub mod problem;
pub mod symbol_table;
pub mod value;
pub mod verdict;

/// Why a file yields no kernel image.
#[derive(Debug, Error)]
pub enum ImageError {
    /// The file is not of a known kind, or its wrapping is damaged.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// What is inside cannot be decompressed.
    #[error(transparent)]
    Decompress(#[from] DecompressError),
    /// What is inside is no ELF file that could be a kernel.
    #[error(transparent)]
    Elf(#[from] ElfError),
}

/// A kernel image, unpacked.
#[derive(Clone, Debug)]
pub struct Image<'a> {
    understanding: Understanding,
    bytes: Cow<'a, [u8]>,
}

impl<'a> Image<'a> {
    /// Unpacks and reads a kernel file.
    ///
    /// # Errors
    ///
    /// [`ImageError`] if the file is no kernel or is damaged.
    pub fn open(file: &'a [u8]) -> Result<Self, ImageError> {
        Self::open_with_limit(file, payload::DEFAULT_LIMIT)
    }

    /// As [`Self::open`], but a file that decompresses to more than `limit` bytes is refused.
    ///
    /// # Errors
    ///
    /// [`ImageError`] if the file is no kernel, is damaged or holds too much.
    pub fn open_with_limit(file: &'a [u8], limit: u64) -> Result<Self, ImageError> {
        let (understanding, bytes) = Understanding::whole(file, limit)?;
        Ok(Self { understanding, bytes })
    }

    /// What the ELF file was wrapped in.
    pub fn container(&self) -> &Container {
        &self.understanding.container
    }

    /// The headers of the ELF file.
    pub fn elf(&self) -> &Elf {
        &self.understanding.elf
    }

    /// The ELF file itself, as `extract` gives it out.
    ///
    /// It ends where the ELF file ends. What Linux's build puts behind it in a bzImage (a table of
    /// relocations, for the kernel's own decompressor) is left out: no tool that takes an ELF file expects
    /// it, and no offset in the ELF file refers to it.
    pub fn elf_bytes(&self) -> &[u8] {
        let len = usize::try_from(self.understanding.elf.len).unwrap_or(usize::MAX);
        &self.bytes[..len.min(self.bytes.len())]
    }

    /// As [`Self::elf_bytes`], giving up the image.
    pub fn into_elf(self) -> Cow<'a, [u8]> {
        let len = self.elf_bytes().len();
        match self.bytes {
            Cow::Borrowed(bytes) => Cow::Borrowed(&bytes[..len]),
            Cow::Owned(mut bytes) => {
                bytes.truncate(len);
                Cow::Owned(bytes)
            }
        }
    }

    /// The bytes of a segment of this image; the rest of its memory is zero.
    pub fn segment_bytes(&self, segment: &Segment) -> &[u8] {
        let range = segment.file_range();
        // A segment of this image lies in the file, as was checked; one of another image may not.
        let place = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
        place.and_then(|(start, end)| self.bytes.get(start..end)).unwrap_or_default()
    }

    /// The bytes of the symbol table that the kernel wants behind itself, in pieces with their places.
    pub fn symbol_table_pieces(&self, table: &SymbolTable) -> [(LoadAddr, Cow<'_, [u8]>); 3] {
        table.pieces(self.understanding.elf.guest, &self.bytes)
    }

    /// What the ELF file's symbol table names: functions and data with their addresses and sizes, in the table's order.
    /// Nothing if it has no usable table, as in a stripped kernel.
    pub fn symbols(&self) -> impl Iterator<Item = Symbol<'_>> {
        symbol_table::symbols(&self.understanding.elf, &self.bytes)
    }

    /// Everything there is to say about the image.
    pub fn inspect(&self) -> Inspection {
        self.understanding.clone().into_inspection()
    }

    /// What a domain builder needs to start this kernel as a PV guest.
    ///
    /// # Errors
    ///
    /// [`NotBootable`] with the verdict on it, if it does not boot as a PV guest on a 64-bit hypervisor.
    pub fn pv_kernel(&self) -> Result<PvKernel<'_>, NotBootable> {
        let verdict = self.understanding.verdict();
        if !verdict.boot.is_runnable() {
            return Err(NotBootable { verdict: Box::new(verdict) });
        }
        Ok(PvKernel {
            guest: self.understanding.elf.guest,
            parameters: &self.understanding.parameters,
            addresses: &self.understanding.addresses,
            image: self,
        })
    }
}

/// A kernel that boots as a PV guest: consistent addresses, and what it asks of its loader.
#[derive(Clone, Copy, Debug)]
pub struct PvKernel<'a> {
    /// Its width.
    pub guest: Guest,
    /// What it asks for.
    pub parameters: &'a Parameters,
    /// Where it wants to be.
    pub addresses: &'a Addresses,
    /// The image that it is in.
    pub image: &'a Image<'a>,
}

/// An image that is no bootable PV kernel.
#[derive(Clone, Debug, Error)]
#[error("{}", self.describe())]
pub struct NotBootable {
    /// The judgement, with all reasons.
    pub verdict: Box<Verdict>,
}

impl NotBootable {
    fn describe(&self) -> String {
        let mut text = self.verdict.summary.clone();
        for obstacle in &self.verdict.obstacles {
            text.push_str(&format!(" {}.", obstacle.reason));
            if let Some(advice) = &obstacle.advice {
                text.push_str(&format!(" {advice}"));
            }
        }
        text
    }
}

/// The largest kernel file that [`read_file`] reads: 1 GiB, enough for one with debugging information.
pub const FILE_MAX_BYTES: u64 = 1 << 30;

/// Why a kernel file cannot be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The system refused.
    #[error("cannot read the kernel file {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is no kernel by its size alone.
    #[error("the kernel file {} has more than {FILE_MAX_BYTES} bytes; no kernel is that large", path.display())]
    TooBig {
        /// The file.
        path: PathBuf,
    },
}

/// Reads a kernel file into memory, unless it is absurdly large.
///
/// # Errors
///
/// [`ReadError`] if it cannot be read or has more than [`FILE_MAX_BYTES`].
pub fn read_file(path: &Path) -> Result<Vec<u8>, ReadError> {
    let failed = |source| ReadError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let expected = file.metadata().map_err(failed)?.len();
    let mut bytes = Vec::new();
    // A device or pipe has no length to go by, so the limit holds for what is read.
    bytes.reserve_exact(usize::try_from(expected.min(FILE_MAX_BYTES)).unwrap_or(0));
    file.take(FILE_MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_MAX_BYTES {
        return Err(ReadError::TooBig { path: path.to_owned() });
    }
    Ok(bytes)
}

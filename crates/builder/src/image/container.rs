//! What kind of file a kernel came in.

use serde::Serialize;
use thiserror::Error;

use super::bzimage::{self, BzImage, BzImageError, Payload};
use super::elf;
use super::payload::{Compression, Stream};

/// The wrapping around the kernel's ELF file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Container {
    /// None: the file is the ELF file.
    Elf,
    /// The file is a compressed ELF file.
    Compressed {
        /// How it is compressed.
        compression: Compression,
    },
    /// A Linux bzImage.
    #[serde(rename = "bzImage")]
    BzImage(BzImage),
}

/// Why a file is taken for no kernel.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ContainerError {
    /// The file has no bytes.
    #[error("the kernel file is empty; looked for a bzImage, an ELF file or a compressed ELF file")]
    Empty,
    /// The file is something else.
    #[error(
        "the file is no kernel: looked for a bzImage, an ELF file or a compressed ELF file, \
         found {found}"
    )]
    NotAKernel {
        /// What the first bytes look like.
        found: String,
    },
    /// The file is a bzImage that cannot be read.
    #[error(transparent)]
    BzImage(#[from] BzImageError),
}

/// Recognises the container of `file` and finds the ELF file in it.
pub(super) fn open(file: &[u8]) -> Result<(Container, Payload<'_>), ContainerError> {
    if file.is_empty() {
        return Err(ContainerError::Empty);
    }
    if file.starts_with(elf::MAGIC) {
        return Ok((Container::Elf, Payload::Plain(file)));
    }
    if bzimage::is_bzimage(file) {
        let (image, payload) = bzimage::read(file)?;
        return Ok((Container::BzImage(image), payload));
    }
    if let Some(compression) = Compression::recognise(file) {
        let stream = Stream { format: compression, bytes: file, claimed_len: None };
        return Ok((Container::Compressed { compression }, Payload::Packed(stream)));
    }
    Err(ContainerError::NotAKernel { found: describe(file, file.len() as u64) })
}

/// What people give instead of a kernel, by its first bytes.
const LOOKALIKES: &[(&[u8], &str)] = &[
    (b"MZ", "a DOS or EFI program without Linux's boot header"),
    (b"!<arch>\n", "an archive, perhaps a Debian package: unpack it and give the vmlinuz inside"),
    (b"\xed\xab\xee\xdb", "an RPM package: unpack it and give the vmlinuz inside"),
    (b"070701", "a cpio archive, which looks like an initramfs"),
    (b"#!", "a script"),
];

/// What data looks like that is no kernel: `len` bytes that begin with `head`.
pub(super) fn describe(head: &[u8], len: u64) -> String {
    match LOOKALIKES.iter().find(|(magic, _)| head.starts_with(magic)) {
        Some((_, name)) => (*name).to_owned(),
        None => format!("{len} bytes that begin with {:02x?}", &head[..head.len().min(8)]),
    }
}

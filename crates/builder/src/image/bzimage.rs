//! bzImage: the file that Linux's build installs as `vmlinuz`.
//!
//! A bzImage is a few sectors of real-mode setup code, then a protected-mode program that carries the real
//! kernel as a compressed ELF file: the *payload*. The setup header, from offset 0x1f1 on, says where the
//! payload lies. A PV kernel is started at the entry point of the ELF inside; nothing else of the bzImage
//! is ever run.
//!
//! Source: Linux `Documentation/arch/x86/boot.rst`, "The Real-Mode Kernel Header" and "Details of Header
//! Fields".

use core::fmt;

use serde::{Serialize, Serializer};
use thiserror::Error;

use super::payload::{Compression, Stream};

/// Where the header's magic number lies.
const MAGIC_OFFSET: usize = 0x202;
/// The header's magic number.
const MAGIC: &[u8] = b"HdrS";
/// `setup_sects`: sectors of setup code beyond the first.
const SETUP_SECTS_OFFSET: usize = 0x1f1;
/// What `setup_sects` of 0 means.
const SETUP_SECTS_DEFAULT: u8 = 4;
/// `version`: the boot protocol.
const VERSION_OFFSET: usize = 0x206;
/// `kernel_version`: where the version string lies, less [`SECTOR`].
const KERNEL_VERSION_OFFSET: usize = 0x20e;
/// `payload_offset`, from the start of the protected-mode code.
const PAYLOAD_OFFSET_OFFSET: usize = 0x248;
/// `payload_length`.
const PAYLOAD_LENGTH_OFFSET: usize = 0x24c;
/// The unit of `setup_sects`, and the offset by which `kernel_version` is too low.
const SECTOR: usize = 512;
/// The longest version string that is read. Linux's own limit is below this.
const KERNEL_VERSION_MAX: usize = 256;

/// A version of Linux's x86 boot protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootProtocol(pub u16);

impl BootProtocol {
    /// The first version whose header says where the payload lies (Linux 2.6.26).
    pub const WITH_PAYLOAD: Self = Self(0x208);
}

impl fmt::Display for BootProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}", self.0 >> 8, self.0 & 0xff)
    }
}

impl Serialize for BootProtocol {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What the setup header of a bzImage says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BzImage {
    /// The version of the boot protocol.
    pub protocol: BootProtocol,
    /// The version string of the kernel, such as `6.1.0 (user@host) #1 SMP`, if the header has one.
    pub kernel_version: Option<String>,
    /// Where the payload begins in the file, in bytes.
    pub payload_offset: u64,
    /// The payload's length in bytes, with an appended size.
    pub payload_len: u64,
    /// How the payload is compressed; `None` if it is the ELF file itself.
    pub compression: Option<Compression>,
    /// The length of the decompressed payload, from its last four bytes; `None` if it is not compressed.
    pub claimed_len: Option<u32>,
}

/// Why a bzImage yields no payload.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BzImageError {
    /// The header says less than is needed.
    #[error(
        "the bzImage has boot protocol {found}; the payload can be found from {} on (Linux 2.6.26): \
         use the uncompressed vmlinux of this kernel",
        BootProtocol::WITH_PAYLOAD
    )]
    TooOld {
        /// The version in the header.
        found: BootProtocol,
    },
    /// The file ends within the header.
    #[error("the bzImage's setup header needs {needed} bytes, the file has {found}: it is cut short")]
    HeaderCut {
        /// Where the header's last needed field ends.
        needed: usize,
        /// The length of the file.
        found: usize,
    },
    /// The payload does not lie in the file.
    #[error(
        "the bzImage's payload should be {len} bytes at offset {offset:#x}, the file has {file_len} bytes: \
         it is cut short; fetch or build it again"
    )]
    PayloadOutside {
        /// Where the payload should begin.
        offset: u64,
        /// Its length by the header.
        len: u64,
        /// The length of the file.
        file_len: u64,
    },
    /// The payload is in no known format.
    #[error(
        "the bzImage's payload begins with {first:02x?}; looked for an ELF file or one compressed by gzip, \
         bzip2, lzma, xz, lzo, lz4 or zstd"
    )]
    UnknownPayload {
        /// The first bytes of the payload.
        first: Vec<u8>,
    },
}

/// Whether the file carries a setup header.
pub(super) fn is_bzimage(file: &[u8]) -> bool {
    file.get(MAGIC_OFFSET..).is_some_and(|rest| rest.starts_with(MAGIC))
}

/// Reads the setup header and finds the payload.
pub(super) fn read(file: &[u8]) -> Result<(BzImage, Payload<'_>), BzImageError> {
    let protocol = BootProtocol(u16::from_le_bytes(field(file, VERSION_OFFSET)?));
    if protocol < BootProtocol::WITH_PAYLOAD {
        return Err(BzImageError::TooOld { found: protocol });
    }
    let [setup_sects] = field(file, SETUP_SECTS_OFFSET)?;
    let setup_sects = if setup_sects == 0 { SETUP_SECTS_DEFAULT } else { setup_sects };
    let setup_len = (usize::from(setup_sects) + 1) * SECTOR;
    let kernel_version = u16::from_le_bytes(field(file, KERNEL_VERSION_OFFSET)?);
    // Neither sum can overflow: all summands are below 2^32.
    let offset = setup_len as u64 + u64::from(u32::from_le_bytes(field(file, PAYLOAD_OFFSET_OFFSET)?));
    let len = u64::from(u32::from_le_bytes(field(file, PAYLOAD_LENGTH_OFFSET)?));

    let payload = usize::try_from(offset)
        .ok()
        .zip(usize::try_from(offset + len).ok())
        .and_then(|(start, end)| file.get(start..end))
        .ok_or(BzImageError::PayloadOutside { offset, len, file_len: file.len() as u64 })?;
    let payload = Payload::recognise(payload)
        .ok_or_else(|| BzImageError::UnknownPayload { first: payload.iter().copied().take(8).collect() })?;
    let stream = payload.stream();
    let image = BzImage {
        protocol,
        kernel_version: version_string(file, kernel_version, setup_len),
        payload_offset: offset,
        payload_len: len,
        compression: stream.map(|stream| stream.format),
        claimed_len: stream.and_then(|stream| stream.claimed_len),
    };
    Ok((image, payload))
}

/// The ELF file within a container: packed or as it is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Payload<'a> {
    /// The ELF file itself.
    Plain(&'a [u8]),
    /// A stream that decompresses to the ELF file.
    Packed(Stream<'a>),
}

impl<'a> Payload<'a> {
    /// The payload of a bzImage.
    fn recognise(payload: &'a [u8]) -> Option<Self> {
        if payload.starts_with(super::elf::MAGIC) {
            return Some(Self::Plain(payload));
        }
        let format = Compression::recognise(payload)?;
        let size = payload.last_chunk().map(|bytes| u32::from_le_bytes(*bytes));
        let bytes = &payload[..payload.len().saturating_sub(format.appended_len())];
        Some(Self::Packed(Stream { format, bytes, claimed_len: size }))
    }

    fn stream(&self) -> Option<&Stream<'a>> {
        match self {
            Self::Plain(_) => None,
            Self::Packed(stream) => Some(stream),
        }
    }
}

/// The bytes of a header field.
fn field<const N: usize>(file: &[u8], offset: usize) -> Result<[u8; N], BzImageError> {
    file.get(offset..)
        .and_then(<[u8]>::first_chunk)
        .copied()
        .ok_or(BzImageError::HeaderCut { needed: offset + N, found: file.len() })
}

/// The kernel's version string, if the header points to one within the setup code.
fn version_string(file: &[u8], pointer: u16, setup_len: usize) -> Option<String> {
    if pointer == 0 {
        return None;
    }
    let start = usize::from(pointer) + SECTOR;
    let text = file.get(start..setup_len)?;
    let text = &text[..text.len().min(KERNEL_VERSION_MAX)];
    let len = text.iter().position(|&byte| byte == 0)?;
    Some(String::from_utf8_lossy(&text[..len]).into_owned())
}

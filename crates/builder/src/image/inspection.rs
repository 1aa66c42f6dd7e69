//! Everything there is to say about a kernel file, as one value that serializes.

use std::borrow::Cow;

use paravane_abi::elfnote::{ElfNote, NoteCarrier};
use paravane_abi::units::GuestVirt;
use paravane_x86::mode::Guest;
use serde::Serialize;

use super::addresses::{AddressFault, Addresses};
use super::bzimage::Payload;
use super::container::{self, Container};
use super::contents::Contents;
use super::elf::{Elf, Segment};
use super::legacy::LegacyEntry;
use super::linux::Linux;
use super::metadata::{ForeignNote, Metadata, Note};
use super::parameters::Parameters;
use super::problem::Problem;
use super::verdict::{Case, Verdict};
use super::{ImageError, payload};

/// What an inspection found.
///
/// Numbers are numbers in JSON, addresses among them; bytes are hexadecimal text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// Does it boot, as what, and if not, why not.
    pub verdict: Verdict,
    /// What the ELF file was wrapped in.
    pub container: Container,
    /// The ELF file.
    pub elf: ElfSummary,
    /// The Linux it is by other evidence than its notes; `None` if it is none, or that was not looked for
    /// because its notes tell enough.
    pub linux: Option<Linux>,
    /// The notes of owner "Xen", as they were found.
    pub notes: Vec<Note>,
    /// The notes that a kernel image may have and this one has not. What the loader assumes instead is in
    /// the table of notes. Empty if the kernel describes itself otherwise.
    pub absent_notes: Vec<ElfNote>,
    /// Notes of other owners, which do not count.
    pub foreign_notes: Vec<ForeignNote>,
    /// The entries of the `__xen_guest` section, if that is what counts.
    pub legacy: Vec<LegacyEntry>,
    /// What all of these ask of the loader.
    pub parameters: Parameters,
    /// Where the kernel wants to be. Computed also for an image that is refused, as far as that goes.
    pub addresses: Addresses,
    /// What is wrong with the notes.
    pub problems: Vec<Problem>,
}

/// The outline of an ELF file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ElfSummary {
    /// The width of the kernel.
    pub guest: Guest,
    /// `e_entry`.
    pub entry: GuestVirt,
    /// The length of the ELF file in bytes.
    pub len: u64,
    /// How many bytes follow it, such as Linux's relocations. They are no part of it and are not loaded.
    pub trailing_len: u64,
    /// The loadable segments, by their load addresses.
    pub segments: Vec<Segment>,
}

/// What was understood of an image, before it is put into the form of an [`Inspection`].
#[derive(Clone, Debug)]
pub(super) struct Understanding {
    pub(super) container: Container,
    pub(super) elf: Elf,
    pub(super) contents_len: u64,
    pub(super) linux: Option<Linux>,
    pub(super) metadata: Metadata,
    pub(super) parameters: Parameters,
    pub(super) addresses: Addresses,
    pub(super) address_faults: Vec<AddressFault>,
}

impl Understanding {
    /// Understands `file` and keeps all of its ELF file.
    pub(super) fn whole(file: &[u8], limit: u64) -> Result<(Self, Cow<'_, [u8]>), ImageError> {
        let (container, payload) = container::open(file)?;
        let contents = match &payload {
            Payload::Plain(bytes) => Contents::all(*bytes),
            Payload::Packed(stream) => Contents::unpack(stream, limit)?,
        };
        let understanding =
            Self::of(container, &contents)?.expect("all of the file was kept, so nothing can be missing");
        let bytes = contents.into_all().expect("all of the file was kept");
        Ok((understanding, bytes))
    }

    /// Understands `file` and keeps none of its bytes.
    pub(super) fn of_parts(file: &[u8], limit: u64) -> Result<Self, ImageError> {
        let (container, payload) = container::open(file)?;
        if let Payload::Packed(stream) = &payload {
            let contents = Contents::unpack_parts(stream, limit)?;
            if let Some(understanding) = Self::of(container, &contents)? {
                return Ok(understanding);
            }
        }
        Self::whole(file, limit).map(|(understanding, _)| understanding)
    }

    /// Understands an ELF file; `None` if that takes parts of it that were not kept.
    fn of(container: Container, contents: &Contents<'_>) -> Result<Option<Self>, ImageError> {
        let elf = Elf::read(contents)?;
        let Some(mut metadata) = Metadata::read(&elf, contents) else { return Ok(None) };
        let parameters = Parameters::new(&metadata);
        let (addresses, address_faults, address_problems) = Addresses::derive(&elf, &parameters);
        metadata.problems.extend(address_problems);
        let linux = match &container {
            Container::BzImage(image) => image.kernel_version.as_deref().and_then(Linux::from_version),
            // The search reads the whole file, so it is made only where its result matters.
            Container::Elf | Container::Compressed { .. } if parameters.entry.is_none() => {
                let Some(bytes) = contents.as_all() else { return Ok(None) };
                Linux::from_elf(bytes)
            }
            Container::Elf | Container::Compressed { .. } => None,
        };
        Ok(Some(Self {
            container,
            contents_len: contents.len(),
            elf,
            linux,
            metadata,
            parameters,
            addresses,
            address_faults,
        }))
    }

    pub(super) fn verdict(&self) -> Verdict {
        Case {
            guest: self.elf.guest,
            metadata: &self.metadata,
            parameters: &self.parameters,
            address_faults: &self.address_faults,
            linux: self.linux.as_ref(),
        }
        .judge()
    }

    pub(super) fn into_inspection(self) -> Inspection {
        let verdict = self.verdict();
        let present = |wanted: ElfNote| self.metadata.notes.iter().any(|note| note.note == Some(wanted));
        let absent_notes = ElfNote::ALL
            .iter()
            .copied()
            .filter(|note| note.facts().carrier == NoteCarrier::Image)
            .filter(|&note| !self.metadata.notes.is_empty() && !present(note))
            .collect();
        Inspection {
            verdict,
            container: self.container,
            elf: ElfSummary {
                guest: self.elf.guest,
                entry: self.elf.entry,
                len: self.elf.len,
                trailing_len: self.contents_len - self.elf.len,
                segments: self.elf.segments,
            },
            linux: self.linux,
            absent_notes,
            notes: self.metadata.notes,
            foreign_notes: self.metadata.foreign_notes,
            legacy: self.metadata.legacy,
            parameters: self.parameters,
            addresses: self.addresses,
            problems: self.metadata.problems,
        }
    }
}

/// Inspects a kernel file.
///
/// All of the file is read and checked, but only what matters of its ELF file is held at a time, so that a
/// distribution's kernel takes little more memory than its decompressor. For the bytes of the ELF file, see
/// [`Image`](super::Image).
///
/// # Errors
///
/// [`ImageError`] if the file is no kernel or is damaged. A sound kernel that is not for Xen is no error: the
/// verdict says so.
pub fn inspect(file: &[u8]) -> Result<Inspection, ImageError> {
    Understanding::of_parts(file, payload::DEFAULT_LIMIT).map(Understanding::into_inspection)
}

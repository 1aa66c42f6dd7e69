//! What a kernel file says of itself, and the file.

use paravane_abi::{elfnote::ElfNote, units::PAGE_SIZE};
use paravane_builder::testing::elf::{ElfFile, SHT_NOTE, SHT_PROGBITS, note, number_note, text_note};
use paravane_x86::mode::Guest;

use crate::layout::{IMAGE_BYTES, Layout};

/// Where a kernel file says what it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Metadata {
    /// Notes in a `PT_NOTE` segment, as Linux has them.
    #[default]
    NoteSegment,
    /// Notes in an `SHT_NOTE` section only.
    NoteSection,
    /// Text in the section `__xen_guest`, from before there were notes.
    LegacyText,
    /// The same, beside notes of Xen's numbers whose owner is another: GNU Mach's linker script mistook the name.
    LegacyTextBesideForeignNotes,
}

/// How a program makes its hypercalls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Way {
    /// By calling into the hypercall page.
    Page,
    /// By SYSCALL where it stands.
    #[default]
    Raw,
}

/// What a kernel is made with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Pages of memory.
    pub pages: u64,
    /// Where pseudo-physical page 0 appears: in the lowest or the highest 2 GiB of addresses, for the code model.
    pub base: u64,
    /// Where the file says so.
    pub metadata: Metadata,
    /// Whether it says where it is entered; if not, the ELF header's entry point counts.
    pub says_entry: bool,
    /// Whether it says what `base` is. It must, unless that is 0.
    pub says_base: bool,
    /// Whether the ELF file's load addresses (`p_paddr`) are virtual ones, as linkers wrote them before there were notes.
    /// Notes must say so, by PADDR_OFFSET; legacy text says nothing, as that is its default.
    pub virtual_load: bool,
    /// Functions with their addresses. If there are any, the file has a symbol table and asks for it behind the image.
    pub symbols: Vec<(String, u64)>,
    /// How hypercalls are made. The file asks for a hypercall page in either case.
    pub way: Way,
    /// Whether the kernel starts with the runtime of this crate: `shared_info` mapped, all traps and callbacks caught.
    pub runtime: bool,
    /// More notes, whole, as `paravane_builder::testing::elf` makes them.
    pub notes: Vec<Vec<u8>>,
    /// More text for the legacy section: keys with their values, separated by commas.
    pub text: String,
    /// Whether each instruction becomes a block of its own in the translator.
    pub one_instruction_blocks: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            pages: (8 << 20) / PAGE_SIZE,
            base: 0xffff_ffff_8000_0000,
            metadata: Metadata::default(),
            says_entry: true,
            says_base: true,
            virtual_load: false,
            symbols: Vec::new(),
            way: Way::default(),
            runtime: true,
            notes: Vec::new(),
            text: String::new(),
            one_instruction_blocks: false,
        }
    }
}

impl Setup {
    /// The ELF file of an image of this setup.
    pub(crate) fn elf(&self, image: &[u8], entry: u64) -> Vec<u8> {
        let load_addr = if self.virtual_load { self.base } else { 0 };
        let mut file = ElfFile::new(Guest::Bits64).entry(entry).load(load_addr, image, IMAGE_BYTES);
        if !self.symbols.is_empty() {
            let symbols: Vec<_> = self.symbols.iter().map(|(name, at)| (name.as_str(), *at)).collect();
            file = file.symbols(&symbols);
        }
        match self.metadata {
            Metadata::NoteSegment => file.notes(&self.all_notes(entry)).build(),
            Metadata::NoteSection => {
                file.section(".notes", SHT_NOTE, &self.all_notes(entry).concat()).build()
            }
            Metadata::LegacyText => file.section("__xen_guest", SHT_PROGBITS, &self.all_text(entry)).build(),
            Metadata::LegacyTextBesideForeignNotes => {
                let foreign = note("name", ElfNote::GuestOs.number(), b"somebody else\0");
                file.notes(std::slice::from_ref(&foreign))
                    .section(".notes", SHT_NOTE, &foreign)
                    .section("__xen_guest", SHT_PROGBITS, &self.all_text(entry))
                    .build()
            }
        }
    }

    fn all_notes(&self, entry: u64) -> Vec<Vec<u8>> {
        let layout = Layout::new(self);
        let mut notes = vec![
            text_note(ElfNote::GuestOs, "minikernel"),
            text_note(ElfNote::XenVersion, "xen-3.0"),
            text_note(ElfNote::Loader, "generic"),
            number_note(ElfNote::HypercallPage, layout.hypercall_page()),
        ];
        if self.says_base {
            notes.push(number_note(ElfNote::VirtBase, self.base));
            let offset = if self.virtual_load { self.base } else { 0 };
            notes.push(number_note(ElfNote::PaddrOffset, offset));
        }
        if self.says_entry {
            notes.push(number_note(ElfNote::Entry, entry));
        }
        if !self.symbols.is_empty() {
            notes.push(text_note(ElfNote::BsdSymtab, "yes"));
        }
        notes.extend(self.notes.iter().cloned());
        notes
    }

    fn all_text(&self, entry: u64) -> Vec<u8> {
        let mut text = "GUEST_OS=minikernel,XEN_VER=xen-3.0,LOADER=generic,HYPERCALL_PAGE=1".to_owned();
        if self.says_base {
            text += &format!(",VIRT_BASE={:#x}", self.base);
            if !self.virtual_load {
                text += ",ELF_PADDR_OFFSET=0";
            }
        }
        if self.says_entry {
            text += &format!(",VIRT_ENTRY={entry:#x}");
        }
        if !self.symbols.is_empty() {
            text += ",BSD_SYMTAB";
        }
        if !self.text.is_empty() {
            text += ",";
            text += &self.text;
        }
        text.push('\0');
        text.into_bytes()
    }
}

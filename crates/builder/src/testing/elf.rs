//! ELF files to order.

use paravane_abi::elfnote::ElfNote;
use paravane_x86::mode::Guest;

/// `p_type` of a loadable segment.
pub const PT_LOAD: u32 = 1;
/// `p_type` of a segment with notes.
pub const PT_NOTE: u32 = 4;
/// `sh_type` of a section with notes.
pub const SHT_NOTE: u32 = 7;
/// `sh_type` of any other section here.
pub const SHT_PROGBITS: u32 = 1;
/// `sh_type` of a symbol table.
pub const SHT_SYMTAB: u32 = 2;
/// `sh_type` of a table of names.
pub const SHT_STRTAB: u32 = 3;
/// `p_flags` for all accesses.
pub const RWX: u32 = 7;

/// A note as it lies in a file.
///
/// # Panics
///
/// If name or value have 4 GiB or more.
pub fn note(owner: &str, number: u32, value: &[u8]) -> Vec<u8> {
    let len = |bytes: usize| u32::try_from(bytes).expect("test notes are small").to_le_bytes();
    let mut bytes = [len(owner.len() + 1), len(value.len()), number.to_le_bytes()].concat();
    bytes.extend_from_slice(owner.as_bytes());
    bytes.push(0);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// A note of owner "Xen" with text and the NUL behind it.
pub fn text_note(kind: ElfNote, text: &str) -> Vec<u8> {
    note("Xen", kind.number(), &[text.as_bytes(), b"\0"].concat())
}

/// A note of owner "Xen" with a number of 8 bytes.
pub fn number_note(kind: ElfNote, number: u64) -> Vec<u8> {
    note("Xen", kind.number(), &number.to_le_bytes())
}

/// The fields of a program header.
#[derive(Clone, Copy, Debug, Default)]
pub struct Program {
    /// `p_type`.
    pub kind: u32,
    /// `p_flags`.
    pub flags: u32,
    /// `p_offset`.
    pub offset: u64,
    /// `p_vaddr`.
    pub virt_addr: u64,
    /// `p_paddr`.
    pub load_addr: u64,
    /// `p_filesz`.
    pub file_len: u64,
    /// `p_memsz`.
    pub memory_len: u64,
}

/// An ELF file in the making.
///
/// Parts are laid into the file in the order in which they are added, behind the headers; section headers
/// come last.
#[derive(Clone, Debug)]
pub struct ElfFile {
    guest: Guest,
    machine: u16,
    entry: u64,
    programs: Vec<(Program, Option<Vec<u8>>)>,
    sections: Vec<Section>,
}

#[derive(Clone, Debug)]
struct Section {
    name: String,
    kind: u32,
    link: usize,
    bytes: Vec<u8>,
}

impl ElfFile {
    /// An ELF file for a kernel of that width, without anything in it.
    pub fn new(guest: Guest) -> Self {
        let machine = match guest {
            Guest::Bits64 => 62,
            Guest::Bits32 => 3,
        };
        Self { guest, machine, entry: 0, programs: Vec::new(), sections: Vec::new() }
    }

    /// Sets `e_machine`.
    #[must_use]
    pub fn machine(mut self, machine: u16) -> Self {
        self.machine = machine;
        self
    }

    /// Sets `e_entry`.
    #[must_use]
    pub fn entry(mut self, entry: u64) -> Self {
        self.entry = entry;
        self
    }

    /// Adds a loadable segment of `bytes` followed by zeros up to `memory_len`.
    #[must_use]
    pub fn load(self, load_addr: u64, bytes: &[u8], memory_len: u64) -> Self {
        let program = Program { kind: PT_LOAD, flags: RWX, load_addr, memory_len, ..Program::default() };
        self.segment(program, bytes)
    }

    /// Adds a segment with notes.
    #[must_use]
    pub fn notes(self, notes: &[Vec<u8>]) -> Self {
        self.segment(Program { kind: PT_NOTE, flags: 4, ..Program::default() }, &notes.concat())
    }

    /// Adds a segment with `bytes`, to whose place and length `offset` and `file_len` are set.
    #[must_use]
    pub fn segment(mut self, program: Program, bytes: &[u8]) -> Self {
        self.programs.push((program, Some(bytes.to_vec())));
        self
    }

    /// Adds a program header as it is, however wrong.
    #[must_use]
    pub fn program(mut self, program: Program) -> Self {
        self.programs.push((program, None));
        self
    }

    /// Adds a section.
    #[must_use]
    pub fn section(self, name: &str, kind: u32, bytes: &[u8]) -> Self {
        self.linked_section(name, kind, bytes, 0)
    }

    /// Adds a section that links to another, whose number is given: the first that is added has number 1.
    #[must_use]
    pub fn linked_section(mut self, name: &str, kind: u32, bytes: &[u8], link: usize) -> Self {
        self.sections.push(Section { name: name.to_owned(), kind, link, bytes: bytes.to_vec() });
        self
    }

    /// Adds a symbol table with its names: functions at these addresses, behind the empty first symbol.
    ///
    /// # Panics
    ///
    /// If an address does not fit a 32-bit file.
    #[must_use]
    pub fn symbols(self, functions: &[(&str, u64)]) -> Self {
        /// `st_info` of a global function, and a section that is no special one.
        const GLOBAL_FUNCTION: u8 = 0x12;
        const SECTION: usize = 1;
        let mut names = vec![0];
        let mut table = Fields { guest: self.guest, bytes: Vec::new() };
        table.symbol(0, 0, 0, 0);
        for (name, address) in functions {
            table.symbol(names.len(), *address, GLOBAL_FUNCTION, SECTION);
            names.extend_from_slice(name.as_bytes());
            names.push(0);
        }
        let names_section = self.sections.len() + 2;
        let table = table.bytes;
        self.linked_section(".symtab", SHT_SYMTAB, &table, names_section)
            .section(".strtab", SHT_STRTAB, &names)
    }

    /// The file.
    ///
    /// # Panics
    ///
    /// If something does not fit its field, such as a 64-bit address in a 32-bit file.
    pub fn build(&self) -> Vec<u8> {
        let mut body = Vec::new();
        let (header_len, program_len, section_len) = match self.guest {
            Guest::Bits64 => (64, 56, 64),
            Guest::Bits32 => (52, 32, 40),
        };
        let body_offset = header_len + self.programs.len() * program_len;
        let mut place = |bytes: &[u8]| {
            body.resize(body.len().next_multiple_of(16), 0);
            let offset = (body_offset + body.len()) as u64;
            body.extend_from_slice(bytes);
            offset
        };
        let mut programs = Fields { guest: self.guest, bytes: Vec::new() };
        for (program, bytes) in &self.programs {
            let mut program = *program;
            if let Some(bytes) = bytes {
                program.offset = place(bytes);
                program.file_len = bytes.len() as u64;
                program.memory_len = program.memory_len.max(program.file_len);
            }
            programs.program(&program);
        }
        let mut names = vec![0];
        let mut sections = Fields { guest: self.guest, bytes: vec![0; section_len] };
        for Section { name, kind, link, bytes } in &self.sections {
            sections.section(names.len(), *kind, (place(bytes), bytes.len()), *link);
            names.extend_from_slice(name.as_bytes());
            names.push(0);
        }
        let names_section = names.len();
        names.extend_from_slice(b".shstrtab\0");
        sections.section(names_section, SHT_STRTAB, (place(&names), names.len()), 0);
        let section_offset = place(&[]);

        let mut file = Fields { guest: self.guest, bytes: b"\x7fELF".to_vec() };
        let class = if self.guest == Guest::Bits64 { 2 } else { 1 };
        file.bytes.extend_from_slice(&[class, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        file.u16(2).u16(self.machine.into()).u32(1).word(self.entry);
        file.word(header_len as u64).word(section_offset).u32(0).u16(header_len);
        file.u16(program_len).u16(self.programs.len());
        file.u16(section_len).u16(self.sections.len() + 2).u16(self.sections.len() + 1);
        [file.bytes, programs.bytes, body, sections.bytes].concat()
    }
}

/// Appends little-endian fields.
struct Fields {
    guest: Guest,
    bytes: Vec<u8>,
}

impl Fields {
    fn u16(&mut self, value: usize) -> &mut Self {
        let value = u16::try_from(value).expect("fits 16 bits");
        self.bytes.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn word(&mut self, value: u64) -> &mut Self {
        match self.guest {
            Guest::Bits64 => self.bytes.extend_from_slice(&value.to_le_bytes()),
            Guest::Bits32 => return self.u32(u32::try_from(value).expect("fits a 32-bit file")),
        }
        self
    }

    fn program(&mut self, program: &Program) {
        self.u32(program.kind);
        if self.guest == Guest::Bits64 {
            self.u32(program.flags);
        }
        self.word(program.offset).word(program.virt_addr).word(program.load_addr);
        self.word(program.file_len).word(program.memory_len);
        if self.guest == Guest::Bits32 {
            self.u32(program.flags);
        }
        self.word(1);
    }

    fn section(&mut self, name: usize, kind: u32, (offset, len): (u64, usize), link: usize) {
        self.u32(u32::try_from(name).expect("names are short")).u32(kind).word(0).word(0);
        self.word(offset).word(len as u64).u32(u32::try_from(link).expect("few sections")).u32(0);
        self.word(1).word(0);
    }

    fn symbol(&mut self, name: usize, address: u64, info: u8, section: usize) {
        self.u32(u32::try_from(name).expect("names are short"));
        match self.guest {
            Guest::Bits64 => {
                self.bytes.extend_from_slice(&[info, 0]);
                self.u16(section).word(address).word(0);
            }
            Guest::Bits32 => {
                self.word(address).word(0).bytes.extend_from_slice(&[info, 0]);
                self.u16(section);
            }
        }
    }
}

/// The notes that a 64-bit Linux of today carries, for an entry point at `entry`.
pub fn linux_notes(entry: u64) -> Vec<Vec<u8>> {
    vec![
        text_note(ElfNote::GuestOs, "linux"),
        text_note(ElfNote::GuestVersion, "2.6"),
        text_note(ElfNote::XenVersion, "xen-3.0"),
        number_note(ElfNote::VirtBase, LINUX_VIRT_BASE),
        number_note(ElfNote::InitP2m, 0x80_0000_0000),
        number_note(ElfNote::Entry, entry),
        // Linux leaves out the NUL here and relies on the padding.
        note("Xen", ElfNote::Features.number(), b"!writable_page_tables|pae_pgdir_above_4gb"),
        note("Xen", ElfNote::SupportedFeatures.number(), &0x8801_u32.to_le_bytes()),
        text_note(ElfNote::PaeMode, "yes"),
        text_note(ElfNote::Loader, "generic"),
        note("Xen", ElfNote::L1MfnValid.number(), &[1_u64.to_le_bytes(), 1_u64.to_le_bytes()].concat()),
        note("Xen", ElfNote::SuspendCancel.number(), &1_u32.to_le_bytes()),
        note("Xen", ElfNote::ModStartPfn.number(), &1_u32.to_le_bytes()),
        number_note(ElfNote::HvStartLow, 0xffff_8000_0000_0000),
        number_note(ElfNote::PaddrOffset, 0),
    ]
}

/// `VIRT_BASE` of a 64-bit Linux.
pub const LINUX_VIRT_BASE: u64 = 0xffff_ffff_8000_0000;
/// Where a Linux is loaded.
pub const LINUX_LOAD_ADDR: u64 = 0x100_0000;
/// The entry point of [`linux`].
pub const LINUX_ENTRY: u64 = LINUX_VIRT_BASE + LINUX_LOAD_ADDR + 0x40;

/// A small image in the form of a 64-bit Linux of today: two segments and the notes.
pub fn linux() -> ElfFile {
    ElfFile::new(Guest::Bits64)
        .entry(LINUX_LOAD_ADDR)
        .load(LINUX_LOAD_ADDR, &[0x90; 0x100], 0x1000)
        .load(LINUX_LOAD_ADDR + 0x1000, b"data", 0x2000)
        .notes(&linux_notes(LINUX_ENTRY))
}

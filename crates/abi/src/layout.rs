//! Layouts of the interface's structures, in both ABIs.
//!
//! Xen's headers are C, so the same structure has two layouts. In the 64-bit ABI a `long` and a pointer are
//! 8 bytes and a `uint64_t` is aligned to 8. In the 32-bit ABI, plain i386, a `long` and a pointer are 4 bytes
//! and a `uint64_t` is aligned to *4*, so many structures are smaller than the 64-bit ones for no visible
//! reason. That is the most common mistake, and the reason that layouts here are checked by machine.
//!
//! The `abi_struct!` macro takes each field once, with its offset in both ABIs and one sentence. It yields
//! the 64-bit structure as a `#[repr(C)]` type and a [`Layout`] table for both. When the crate is compiled,
//! the offsets of the table are compared with those that the rules of each ABI give ([`Layout::verify`]) and
//! with those of the Rust type.
//!
//! A structure made from zeros is the usual start: `zerocopy::FromZeros::new_zeroed()`; padding is private
//! and stays zero, so a structure that reaches a guest leaks nothing.

use core::fmt;

use serde::Serialize;

/// Which of the two layouts: the ABI of 64-bit or of 32-bit guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Abi {
    /// x86-64.
    #[serde(rename = "64")]
    Bits64,
    /// i386.
    #[serde(rename = "32")]
    Bits32,
}

impl Abi {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Bits64, Self::Bits32];

    /// The size of a `long` or a pointer, in bytes.
    pub const fn word(self) -> u32 {
        match self {
            Self::Bits64 => 8,
            Self::Bits32 => 4,
        }
    }
}

impl fmt::Display for Abi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Bits64 => "64-bit",
            Self::Bits32 => "32-bit",
        })
    }
}

/// A fact that differs between the two ABIs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct PerAbi<T> {
    /// In the 64-bit ABI.
    pub bits64: T,
    /// In the 32-bit ABI.
    pub bits32: T,
}

impl<T: Copy> PerAbi<T> {
    /// The fact of that ABI.
    pub const fn get(&self, abi: Abi) -> T {
        match abi {
            Abi::Bits64 => self.bits64,
            Abi::Bits32 => self.bits32,
        }
    }
}

/// The C type of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ty {
    /// `char`.
    Char,
    /// `uint8_t`.
    U8,
    /// `int8_t`.
    I8,
    /// `uint16_t`.
    U16,
    /// `int16_t`.
    I16,
    /// `uint32_t` or `unsigned int`.
    U32,
    /// `int32_t` or `int`.
    I32,
    /// `uint64_t`.
    U64,
    /// `unsigned long` or `xen_ulong_t`.
    Word,
    /// `xen_pfn_t`: a frame number of word size.
    Pfn,
    /// A guest handle: a virtual address of word size.
    Pointer,
    /// `domid_t`.
    DomId,
    /// `evtchn_port_t`.
    Port,
    /// `grant_ref_t`.
    GrantRef,
    /// An array with its length in the 64-bit and in the 32-bit ABI.
    Array(&'static Self, u32, u32),
    /// A structure.
    Struct(&'static Layout),
}

impl Ty {
    /// The size in bytes.
    pub const fn size(&self, abi: Abi) -> u32 {
        match self {
            Self::Char | Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 | Self::DomId => 2,
            Self::U32 | Self::I32 | Self::Port | Self::GrantRef => 4,
            Self::U64 => 8,
            Self::Word | Self::Pfn | Self::Pointer => abi.word(),
            Self::Array(element, bits64, bits32) => {
                element.size(abi)
                    * match abi {
                        Abi::Bits64 => *bits64,
                        Abi::Bits32 => *bits32,
                    }
            }
            Self::Struct(layout) => layout.size.get(abi),
        }
    }

    /// The alignment in bytes.
    pub const fn align(&self, abi: Abi) -> u32 {
        match self {
            // The one rule that differs: i386 aligns a 64-bit integer to its word.
            Self::U64 => abi.word(),
            Self::Array(element, ..) => element.align(abi),
            Self::Struct(layout) => layout.align(abi),
            Self::Char
            | Self::U8
            | Self::I8
            | Self::U16
            | Self::I16
            | Self::DomId
            | Self::U32
            | Self::I32
            | Self::Port
            | Self::GrantRef
            | Self::Word
            | Self::Pfn
            | Self::Pointer => self.size(abi),
        }
    }
}

impl fmt::Display for Ty {
    /// The type as C writes it; an array whose length differs shows both lengths.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Char => "char",
            Self::U8 => "uint8_t",
            Self::I8 => "int8_t",
            Self::U16 => "uint16_t",
            Self::I16 => "int16_t",
            Self::U32 => "uint32_t",
            Self::I32 => "int32_t",
            Self::U64 => "uint64_t",
            Self::Word => "unsigned long",
            Self::Pfn => "xen_pfn_t",
            Self::Pointer => "pointer",
            Self::DomId => "domid_t",
            Self::Port => "evtchn_port_t",
            Self::GrantRef => "grant_ref_t",
            Self::Struct(layout) => return write!(f, "struct {}", layout.name),
            Self::Array(element, bits64, bits32) if bits64 == bits32 => {
                return write!(f, "{element}[{bits64}]");
            }
            Self::Array(element, bits64, bits32) => return write!(f, "{element}[{bits64} or {bits32}]"),
        };
        f.write_str(name)
    }
}

impl Serialize for Ty {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One field of a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Field {
    /// The field's name; members of an inner union or structure that is not its own type are joined by `_`.
    pub name: &'static str,
    /// Its C type.
    #[serde(rename = "type")]
    pub ty: Ty,
    /// Where it begins, in bytes; `None` in an ABI that lacks it.
    pub offset: PerAbi<Option<u32>>,
    /// One sentence on what it holds.
    pub meaning: &'static str,
}

/// The layout of a structure in both ABIs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Layout {
    /// The C name, without `struct`.
    pub name: &'static str,
    /// The header that defines it, by its path in Xen's source tree.
    pub source: &'static str,
    /// One sentence on what the structure is for.
    pub meaning: &'static str,
    /// The size in bytes.
    pub size: PerAbi<u32>,
    /// The fields in the order of their offsets; those of one ABI only stand where that ABI has them.
    pub fields: &'static [Field],
}

impl Layout {
    /// The field of that name that the ABI has.
    pub fn field(&self, name: &str, abi: Abi) -> Option<&'static Field> {
        self.fields_of(abi).find(|field| field.name == name)
    }

    /// The fields that the ABI has, in the order of their offsets.
    pub fn fields_of(&self, abi: Abi) -> impl Iterator<Item = &'static Field> {
        self.fields.iter().filter(move |field| field.offset.get(abi).is_some())
    }

    /// The offset of the field of that name in bytes, if the ABI has it.
    pub fn offset(&self, name: &str, abi: Abi) -> Option<u32> {
        self.field(name, abi)?.offset.get(abi)
    }

    /// The alignment in bytes.
    pub const fn align(&self, abi: Abi) -> u32 {
        let mut align = 1;
        let mut index = 0;
        while index < self.fields.len() {
            let field = &self.fields[index];
            if field.offset.get(abi).is_some() && field.ty.align(abi) > align {
                align = field.ty.align(abi);
            }
            index += 1;
        }
        align
    }

    /// Checks every offset and the size against the rules of each ABI. `abi_struct!` calls it when the
    /// crate is compiled.
    ///
    /// # Panics
    ///
    /// When the table is wrong, which fails the compilation.
    pub const fn verify(&self) {
        self.verify_abi(Abi::Bits64);
        self.verify_abi(Abi::Bits32);
    }

    /// Checks the offsets and the size of one ABI.
    const fn verify_abi(&self, abi: Abi) {
        let mut end = 0;
        let mut index = 0;
        while index < self.fields.len() {
            let field = &self.fields[index];
            if let Some(offset) = field.offset.get(abi) {
                assert!(offset == align_up(end, field.ty.align(abi)), "a field is not where the ABI puts it");
                end = offset + field.ty.size(abi);
            }
            index += 1;
        }
        assert!(self.size.get(abi) == align_up(end, self.align(abi)), "the size is not what the ABI gives");
    }
}

/// `value` rounded up to a multiple of `align`, a power of two.
const fn align_up(value: u32, align: u32) -> u32 {
    (value + align - 1) & !(align - 1)
}

/// Declares a structure of the interface; see the module's head.
///
/// A row is one of
///
/// * `[offset64 / offset32] name: RustType = CType, "Sentence.";`
/// * `[offset64 / -] name: RustType = CType, "Sentence.";`, a field that the 32-bit ABI lacks
/// * `[- / offset32] name = CType, "Sentence.";`, a field that the 64-bit ABI lacks
/// * `pad name: RustType;`, padding that the 64-bit compiler inserts
macro_rules! abi_struct {
    (
        #[doc = $meaning:literal]
        $(#[$meta:meta])*
        pub struct $Name:ident = $c:literal, $source:literal, $size64:literal / $size32:literal;
        $($rows:tt)*
    ) => {
        $crate::layout::abi_struct! {
            @rows
            [#[doc = $meaning] $(#[$meta])*] $Name [$c, $source, $meaning, $size64, $size32] [] [] []
            $($rows)*
        }
    };
    (
        @rows $head:tt $Name:ident $facts:tt [$($fields:tt)*] [$($table:tt)*] $checks:tt
        [- / $at32:literal] $field:ident = $ty:expr, $meaning:literal; $($rows:tt)*
    ) => {
        $crate::layout::abi_struct! {
            @rows $head $Name $facts
            [$($fields)*]
            [$($table)* $crate::layout::Field {
                name: stringify!($field),
                ty: $ty,
                offset: $crate::layout::PerAbi { bits64: None, bits32: Some($at32) },
                meaning: $meaning.trim_ascii(),
            },]
            $checks
            $($rows)*
        }
    };
    (
        @rows $head:tt $Name:ident $facts:tt [$($fields:tt)*] [$($table:tt)*] [$($checks:tt)*]
        [$at64:literal / -] $field:ident: $rust:ty = $ty:expr, $meaning:literal; $($rows:tt)*
    ) => {
        $crate::layout::abi_struct! {
            @rows $head $Name $facts
            [$($fields)* #[doc = $meaning] pub $field: $rust,]
            [$($table)* $crate::layout::Field {
                name: stringify!($field),
                ty: $ty,
                offset: $crate::layout::PerAbi { bits64: Some($at64), bits32: None },
                meaning: $meaning.trim_ascii(),
            },]
            [$($checks)* ($field, $at64)]
            $($rows)*
        }
    };
    (
        @rows $head:tt $Name:ident $facts:tt [$($fields:tt)*] [$($table:tt)*] [$($checks:tt)*]
        [$at64:literal / $at32:literal] $field:ident: $rust:ty = $ty:expr, $meaning:literal; $($rows:tt)*
    ) => {
        $crate::layout::abi_struct! {
            @rows $head $Name $facts
            [$($fields)* #[doc = $meaning] pub $field: $rust,]
            [$($table)* $crate::layout::Field {
                name: stringify!($field),
                ty: $ty,
                offset: $crate::layout::PerAbi { bits64: Some($at64), bits32: Some($at32) },
                meaning: $meaning.trim_ascii(),
            },]
            [$($checks)* ($field, $at64)]
            $($rows)*
        }
    };
    (
        @rows $head:tt $Name:ident $facts:tt [$($fields:tt)*] $table:tt $checks:tt
        pad $field:ident: $rust:ty; $($rows:tt)*
    ) => {
        $crate::layout::abi_struct! {
            @rows $head $Name $facts
            [$($fields)* $field: $rust,]
            $table
            $checks
            $($rows)*
        }
    };
    (
        @rows [$($head:tt)*] $Name:ident
        [$c:literal, $source:literal, $meaning:literal, $size64:literal, $size32:literal]
        [$($fields:tt)*] [$($table:tt)*] [$(($check:ident, $at:literal))*]
    ) => {
        $($head)*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout,
        )]
        #[repr(C)]
        pub struct $Name {
            $($fields)*
        }

        impl $Name {
            /// The layout in both ABIs.
            pub const LAYOUT: &'static $crate::layout::Layout = &$crate::layout::Layout {
                name: $c,
                source: $source,
                meaning: $meaning.trim_ascii(),
                size: $crate::layout::PerAbi { bits64: $size64, bits32: $size32 },
                fields: &[$($table)*],
            };
        }

        const _: () = {
            $Name::LAYOUT.verify();
            assert!(size_of::<$Name>() == $size64);
            $(assert!(core::mem::offset_of!($Name, $check) == $at);)*
        };
    };
}

pub(crate) use abi_struct;

//! The shape that every numbered table of the interface has.
//!
//! Xen's headers define most of their closed sets the same way: a number, a C name, a sentence. The
//! `numbered!` macro takes such a list once and yields an enum that converts from a guest's number by
//! [`Option`], a name in both directions, the sentence as documentation *and* as data, and, where a table
//! carries more columns, a `facts` method. The trait [`Numbered`] lets a printer walk any of them.

use serde::Serialize;

/// One row of a numbered table, in the form that every table can give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The number of the member in Xen's header.
    pub number: i64,
    /// The member's name, as the header spells it less the table's common prefix.
    pub name: &'static str,
    /// One sentence on what it means.
    pub meaning: &'static str,
}

/// A closed set of numbers from one of Xen's headers.
pub trait Numbered: Copy + Eq + Sized + 'static {
    /// Every member, in the order of the numbers.
    const ALL: &'static [Self];
    /// The header that defines the set, by its path in Xen's source tree.
    const SOURCE: &'static str;

    /// The member's number, name and meaning.
    fn row(self) -> Row;

    /// The member of that number.
    fn from_i64(number: i64) -> Option<Self>;
}

/// Declares a numbered enum; see the head of [`table`](crate::table).
///
/// With further columns, `: Facts` follows the path and each row ends in `{ field: value, … }` instead of a
/// semicolon. The crate that uses the macro needs `serde`.
///
/// ```
/// paravane_abi::numbered! {
///     /// What the set is.
///     pub enum Timer(u32), "xen/include/public/header.h";
///     0 OneShot "one_shot" "Fires once.";
///     2 Periodic "periodic" "Fires again and again.";
/// }
/// assert_eq!(Timer::from_number(2), Some(Timer::Periodic));
/// assert_eq!(Timer::from_number(1), None);
/// assert_eq!(Timer::Periodic.name(), "periodic");
/// ```
#[macro_export]
macro_rules! numbered {
    (
        $(#[$meta:meta])*
        pub enum $Enum:ident($repr:ty), $source:literal;
        $($number:literal $Variant:ident $name:literal $meaning:literal;)*
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr($repr)]
        pub enum $Enum {
            $(#[doc = $meaning] $Variant = $number,)*
        }

        impl $Enum {
            /// Every member, in the order of the numbers.
            pub const ALL: &'static [Self] = &[$(Self::$Variant),*];

            /// The member of that number; `None` if Xen defines none.
            pub const fn from_number(number: $repr) -> Option<Self> {
                match number {
                    $($number => Some(Self::$Variant),)*
                    _ => None,
                }
            }

            /// The member of that name, spelt as [`Self::name`] gives it.
            pub fn from_name(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$Variant),)*
                    _ => None,
                }
            }

            /// The number in Xen's header.
            pub const fn number(self) -> $repr {
                self as $repr
            }

            /// The name in Xen's header, less the set's common prefix.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$Variant => $name,)*
                }
            }

            /// One sentence on what the member means.
            pub const fn meaning(self) -> &'static str {
                match self {
                    $(Self::$Variant => $meaning,)*
                }
            }
        }

        impl $crate::table::Numbered for $Enum {
            const ALL: &'static [Self] = Self::ALL;
            const SOURCE: &'static str = $source;

            fn row(self) -> $crate::table::Row {
                $crate::table::Row {
                    number: i64::from(self.number()),
                    name: self.name(),
                    meaning: self.meaning(),
                }
            }

            fn from_i64(number: i64) -> Option<Self> {
                <$repr>::try_from(number).ok().and_then(Self::from_number)
            }
        }

        impl ::core::fmt::Display for $Enum {
            fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                f.pad(self.name())
            }
        }

        impl ::serde::Serialize for $Enum {
            fn serialize<S: ::serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.name())
            }
        }
    };
    (
        $(#[$meta:meta])*
        pub enum $Enum:ident($repr:ty), $source:literal : $Facts:ident;
        $($number:literal $Variant:ident $name:literal $meaning:literal {
            $($field:ident: $value:expr),* $(,)?
        })*
    ) => {
        $crate::numbered! {
            $(#[$meta])*
            pub enum $Enum($repr), $source;
            $($number $Variant $name $meaning;)*
        }

        impl $Enum {
            /// The further columns of the member's row.
            pub const fn facts(self) -> &'static $Facts {
                match self {
                    $(Self::$Variant => const { &$Facts { $($field: $value),* } },)*
                }
            }
        }
    };
}

/// Checks that apply to every table. Tables call it from their own tests.
#[cfg(test)]
pub(crate) fn assert_well_formed<T: Numbered + core::fmt::Debug>() {
    let rows: Vec<Row> = T::ALL.iter().map(|member| member.row()).collect();
    assert!(!rows.is_empty());
    for pair in rows.windows(2) {
        assert!(pair[0].number < pair[1].number, "{pair:?} out of order");
    }
    for (row, &member) in rows.iter().zip(T::ALL) {
        assert_eq!(T::from_i64(row.number), Some(member), "{row:?} does not read back");
        assert!(!rows.iter().any(|other| other.number != row.number && other.name == row.name));
        assert!(row.meaning.ends_with('.'), "{row:?}: the meaning is a sentence");
    }
    assert!(T::SOURCE.contains('/'), "{}", T::SOURCE);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elfnote::ElfNote;

    #[test]
    fn a_number_that_no_member_has_is_none() {
        assert_eq!(ElfNote::from_i64(1), Some(ElfNote::Entry));
        assert_eq!(ElfNote::from_i64(20), None);
        assert_eq!(ElfNote::from_i64(-1), None);
        assert_eq!(ElfNote::from_i64((1 << 32) + 1), None);
    }

    #[test]
    fn a_name_is_padded_like_a_string() {
        assert_eq!(format!("[{:>6}]", ElfNote::Info), "[  INFO]");
    }
}

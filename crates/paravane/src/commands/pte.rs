//! `paravane decode pte`: a page-table entry, and what Xen permits and changes in it.

use paravane_x86::{
    mode::Guest,
    pte::{
        CacheRights, FieldView, FlagsRefused, Level, PTE_FIELDS, Pte, PteField, Treatment, adjust, check,
        explain,
    },
};
use serde_json::{Value, json};

use crate::{
    cli::{GuestArg, decode::PteArgs},
    failure::Failure,
    input,
    output::{
        Answer,
        page::{BitDiagram, BitField, Block, Page, Tone},
    },
};

/// Where an entry is: in a table of this level, of a guest of this width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    level: Level,
    guest: Guest,
}

impl Place {
    /// The place that the options name.
    ///
    /// # Errors
    ///
    /// [`Failure::Usage`] for level 4 of a 32-bit guest, which has three.
    pub(super) fn new(level: u8, guest: GuestArg) -> Result<Self, Failure> {
        let guest = match guest {
            GuestArg::Bits64 => Guest::Bits64,
            GuestArg::Bits32 => Guest::Bits32,
        };
        let found = Level::ALL.into_iter().find(|known| known.number() == level);
        match found {
            Some(Level::L4) if guest == Guest::Bits32 => Err(Failure::Usage(
                "a 32-bit guest has three levels of page tables: use --level 1 to 3, or --guest 64"
                    .to_owned(),
            )),
            Some(level) => Ok(Self { level, guest }),
            None => Err(Failure::Usage(format!("looked for a level of 1 to 4, found {level}"))),
        }
    }
}

/// Decodes each entry of `args`.
///
/// # Errors
///
/// If a value is no 64-bit number, or the guest has no such level.
pub(super) fn decode(args: &PteArgs) -> Result<Answer, Failure> {
    let place = Place::new(args.level, args.guest)?;
    let values = input::numbers(&args.bits.values, args.bits.file.as_deref(), 64, "page-table entry")?;
    let pages = values.iter().map(|&value| describe(place, Pte(value))).collect();
    let json: Vec<Value> = values.iter().map(|&value| to_json(place, Pte(value))).collect();
    Ok(Answer { page: super::join("Page-table entries", pages), json: json!(json) })
}

/// Everything there is to say about an entry at `place`.
pub(super) fn describe(place: Place, pte: Pte) -> Page {
    let mut page = Page::new(format!("{} entry {pte}: {}", place.level, summary(place, pte)));
    page.fields([
        ("frame", format!("machine frame {:#x}, {}", pte.frame(), frame_use(place.level))),
        ("read for", format!("a {}; --guest chooses", place.guest)),
        ("Xen", fate(place, pte)),
    ]);
    page.push(Block::Bits(diagram(pte)));
    let rows = explain(place.level, place.guest, pte).into_iter().rev().map(row);
    page.table(&["Bits", "Name", "Value", "By Xen", "Meaning"], rows);
    page.sources([
        "AMD APM vol. 2, \"Page-Translation-Table Entry Fields\"",
        "xen/arch/x86/mm.c",
        "xen/arch/x86/pv/mm.h",
    ]);
    page
}

fn frame_use(level: Level) -> &'static str {
    match level {
        Level::L1 => "which it maps",
        Level::L2 | Level::L3 | Level::L4 => "which holds the table below",
    }
}

/// What an entry of a table of `level` does for a 64-bit guest, in one line.
pub(crate) fn pte_summary(level: u8, pte: Pte) -> String {
    let level = Level::ALL.into_iter().find(|known| known.number() == level).unwrap_or(Level::L1);
    summary(Place { level, guest: Guest::Bits64 }, pte)
}

/// What the entry does, in one line.
fn summary(place: Place, pte: Pte) -> String {
    if pte.0 == 0 {
        return "empty".to_owned();
    }
    if !pte.is_present() {
        return "not present, free for software".to_owned();
    }
    let is_frame = |view: &FieldView| view.field.name == "frame";
    let flags: Vec<&str> = explain(place.level, place.guest, pte)
        .iter()
        .filter(|view| view.value != 0 && !is_frame(view))
        .map(|view| view.field.name)
        .collect();
    format!("frame {:#x}, {}", pte.frame(), flags.join(" "))
}

/// What Xen does with the entry.
fn fate(place: Place, pte: Pte) -> String {
    match stored(place, pte) {
        Err(refused) => format!(
            "refuses it with -{}: {} may not be set by a guest without devices",
            FlagsRefused::ERRNO,
            names(refused.flags.bits()).join(", ")
        ),
        Ok(_) if !pte.is_present() => "stores it as it is: not present".to_owned(),
        Ok(stored) if stored == pte => "stores it as it is, if the frame may be used so".to_owned(),
        Ok(stored) => format!(
            "stores {stored}, if the frame may be used so: sets {}",
            names(stored.0 & !pte.0).join(", ")
        ),
    }
}

fn stored(place: Place, pte: Pte) -> Result<Pte, FlagsRefused> {
    check(place.level, place.guest, CacheRights::None, pte)?;
    Ok(adjust(place.level, place.guest, pte))
}

/// The fields that `bits` belong to.
fn names(bits: u64) -> Vec<&'static str> {
    PTE_FIELDS.iter().filter(|field| field.mask() & bits != 0).map(|field| field.name).collect()
}

fn row(view: FieldView) -> Vec<String> {
    let PteField { high, low, name, .. } = *view.field;
    let place = if high == low { low.to_string() } else { format!("{high}..{low}") };
    let (treatment, when) = match view.treatment {
        Treatment::Allowed => ("free", ""),
        Treatment::Set(when) => ("set", when),
        Treatment::Refused | Treatment::NeedsCacheRights => ("refused", ""),
    };
    let when = if when.is_empty() { String::new() } else { format!(" Xen sets it {when}.") };
    vec![
        place,
        name.to_owned(),
        format!("{:#x}", view.value),
        treatment.to_owned(),
        format!("{}{when}", view.meaning),
    ]
}

fn diagram(pte: Pte) -> BitDiagram {
    let mut fields = Vec::new();
    for field in PTE_FIELDS.iter().rev() {
        let tone = match field.name {
            "frame" => Tone::Address,
            "AVL" | "AVL high" => Tone::Reserved,
            "US" | "kernel mark" => Tone::Privilege,
            _ => Tone::Flag,
        };
        let name = match field.name {
            "kernel mark" => "GK",
            "PAT or PS" => "PAT",
            name => name,
        };
        if field.high >= 32 && field.low < 32 {
            // The drawing begins a new row in the middle of the frame.
            let split = 32 - field.low;
            let top = field.high - field.low;
            fields.push(BitField::new(field.high, 32, format!("{name} {top}:{split}"), tone));
            fields.push(BitField::new(31, field.low, format!("{name} {}:0", split - 1), tone));
        } else {
            fields.push(BitField::new(field.high, field.low, name, tone));
        }
    }
    BitDiagram { value: pte.0, width: 64, fields }
}

/// The entry for programs.
pub(super) fn to_json(place: Place, pte: Pte) -> Value {
    json!({
        "entry": pte.to_string(),
        "level": place.level.number(),
        "guest": place.guest,
        "present": pte.is_present(),
        "frame": format!("{:#x}", pte.frame()),
        "fields": explain(place.level, place.guest, pte),
        "xen": match stored(place, pte) {
            Ok(stored) => json!({
                "outcome": if stored == pte { "accepted" } else { "changed" },
                "stored": stored.to_string(),
                "changes": names(stored.0 & !pte.0),
            }),
            Err(refused) => json!({
                "outcome": "refused",
                "errno": FlagsRefused::ERRNO,
                "fields": names(refused.flags.bits()),
            }),
        },
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(level: u8, guest: GuestArg) -> Place {
        Place::new(level, guest).unwrap()
    }

    fn text(place: Place, pte: u64) -> String {
        let rendered = crate::output::text::render(&describe(place, Pte(pte)), 100);
        anstream::adapter::strip_str(&rendered).to_string()
    }

    #[test]
    fn a_kernel_page_of_a_64_bit_guest() {
        insta::assert_snapshot!(text(at(1, GuestArg::Bits64), 0x8000_0000_1234_5063));
    }

    #[test]
    fn what_xen_does_is_in_the_answer() {
        for (level, guest, pte, part) in [
            (
                1,
                GuestArg::Bits64,
                0x1003,
                "stores 0x0010000000001007, if the frame may be used so: sets US, kernel mark",
            ),
            (1, GuestArg::Bits64, 0x1007, "sets G"),
            (1, GuestArg::Bits64, 0x101b, "refuses it with -EINVAL: PWT, PCD"),
            (2, GuestArg::Bits64, 0x1083, "refuses it with -EINVAL: PAT or PS"),
            (1, GuestArg::Bits64, 0x1002, "stores it as it is: not present"),
            (2, GuestArg::Bits32, 0x1003, "stores it as it is, if"),
            (3, GuestArg::Bits32, 0x1001, "sets RW, US"),
        ] {
            let fate = fate(at(level, guest), Pte(pte));
            assert!(fate.contains(part), "L{level} {pte:#x}: {fate}");
        }
        assert!(Place::new(4, GuestArg::Bits32).is_err());
    }

    proptest! {
        #[test]
        fn the_drawing_shows_every_bit_once(raw: u64) {
            let diagram = diagram(Pte(raw));
            let sum = diagram.fields.iter().fold(0, |sum, field| sum | diagram.field_value(field) << field.low);
            prop_assert_eq!(sum, raw);
            let widths: u32 = diagram.fields.iter().map(|field| u32::from(field.high - field.low) + 1).sum();
            prop_assert_eq!(widths, 64);
        }
    }
}

//! What the value of a note means for the kernel that carries it, in plain sentences.
//!
//! The first sentence is the note's meaning from the table in `paravane-abi`; what this value leads to
//! follows where there is more to say.

use paravane_abi::elfnote::ElfNote;
use paravane_abi::features::{self, FeatureSet};
use paravane_x86::mode::Guest;

use super::parameters::{PaeMode, is_yes};
use super::value::Value;
use super::verdict::{LINUX, LOADER, XEN_VERSION};

/// Explains `value` of `note` in a kernel of that width.
pub(super) fn explain(note: ElfNote, value: &Value, guest: Guest) -> String {
    let consequence = if let Value::Unreadable(reason) = value {
        format!("This value cannot be used: {reason}.")
    } else {
        consequence(note, value, guest)
    };
    if consequence.is_empty() {
        note.meaning().to_owned()
    } else {
        format!("{} {consequence}", note.meaning())
    }
}

/// What a readable value leads to; empty if the meaning says it all.
fn consequence(note: ElfNote, value: &Value, guest: Guest) -> String {
    match note {
        ElfNote::Info | ElfNote::GuestVersion => "Nothing depends on it.".to_owned(),
        ElfNote::Entry => format!("The kernel starts at {value}."),
        ElfNote::HypercallPage => {
            format!("Stubs are written to the page at {value}, where the kernel calls them.")
        }
        ElfNote::VirtBase => format!("Pseudo-physical address 0 appears at {value}."),
        ElfNote::PaddrOffset if value.as_number() == Some(0) => {
            "It is zero: the p_paddr fields are pseudo-physical addresses.".to_owned()
        }
        ElfNote::PaddrOffset => format!("{value} is subtracted."),
        ElfNote::XenVersion | ElfNote::GuestOs | ElfNote::Loader | ElfNote::PaeMode | ElfNote::BsdSymtab => {
            text_consequence(note, value.as_text().unwrap_or_default(), guest)
        }
        ElfNote::Features => features_consequence(value.as_text().unwrap_or_default()),
        ElfNote::SupportedFeatures => words_consequence(value.as_words()),
        ElfNote::HvStartLow => match guest {
            Guest::Bits64 => "It has no effect in a 64-bit kernel, whose hole is fixed.".to_owned(),
            Guest::Bits32 => format!("The hole may begin at {value} or above."),
        },
        ElfNote::InitP2m => match guest {
            Guest::Bits64 => format!("The list is mapped from {value} on."),
            Guest::Bits32 => "It has no effect in a 32-bit kernel.".to_owned(),
        },
        ElfNote::L1MfnValid => format!("Here: {value}. Only tools that save a domain ask for it."),
        ElfNote::SuspendCancel => {
            if_set(value, "the kernel does", "a cancelled suspend looks like a resume to it")
        }
        ElfNote::ModStartPfn => if_set(
            value,
            "the ramdisk lies unmapped behind the initial region",
            "it is mapped behind the kernel",
        ),
        ElfNote::Phys32Entry => format!("So the kernel can boot as a PVH guest too, at {value}."),
        ElfNote::Phys32Reloc if value.as_relocation().is_some_and(|words| words.align.is_some()) => {
            format!("Here: {value}.")
        }
        ElfNote::Phys32Reloc => "Alignment and range are left to the loader.".to_owned(),
        ElfNote::CrashInfo
        | ElfNote::CrashRegs
        | ElfNote::DumpcoreNone
        | ElfNote::DumpcoreHeader
        | ElfNote::DumpcoreXenVersion
        | ElfNote::DumpcoreFormatVersion => "It has no meaning in a kernel image.".to_owned(),
    }
}

fn if_set(value: &Value, set: &str, clear: &str) -> String {
    match value.as_number() {
        Some(0) => format!("It is zero: {clear}."),
        Some(_) | None => format!("It is not zero: {set}."),
    }
}

/// As [`consequence`], of the notes whose text decides something.
fn text_consequence(note: ElfNote, text: &str, guest: Guest) -> String {
    let either = |condition: bool, yes: &'static str, no: &'static str| if condition { yes } else { no };
    if note == ElfNote::PaeMode && guest == Guest::Bits32 {
        return format!("Here: {}.", PaeMode::from_note(text));
    }
    let sentence = if note == ElfNote::PaeMode {
        "It has no effect in a 64-bit kernel."
    } else if note == ElfNote::XenVersion {
        either(
            text.starts_with(XEN_VERSION),
            "It does: this is the interface of every Xen since 3.0.",
            "It does not, so no current Xen loads the kernel.",
        )
    } else if note == ElfNote::Loader {
        either(
            text.starts_with(LOADER),
            "It does.",
            "It does not; that is forgiven only if GUEST_OS starts with \"linux\".",
        )
    } else if note == ElfNote::GuestOs {
        either(text.starts_with(LINUX), "With this one the loader asks for no LOADER.", "")
    } else {
        either(is_yes(text), "It is loaded.", "This is another value: nothing is loaded.")
    };
    sentence.to_owned()
}

fn features_consequence(text: &str) -> String {
    let list = features::parse(text);
    let mut sentences = Vec::new();
    if !list.required.is_empty() {
        sentences.push(format!("Required: {}.", list.required));
    }
    let optional = list.supported.difference(list.required);
    if !optional.is_empty() {
        sentences.push(format!("Supported: {optional}."));
    }
    if !list.unknown_required.is_empty() {
        sentences.push(format!("Required and unknown to Xen: {}.", list.unknown_required.join(", ")));
    }
    if !list.unknown_optional.is_empty() {
        sentences.push(format!("Unknown to Xen and ignored: {}.", list.unknown_optional.join(", ")));
    }
    sentences.join(" ")
}

fn words_consequence(words: &[u32]) -> String {
    let first = FeatureSet::from_bits(words.first().copied().unwrap_or(0));
    if first.is_empty() { "It names none.".to_owned() } else { format!("Supported: {first}.") }
}

#[cfg(test)]
mod tests {
    use paravane_abi::units::GuestVirt;

    use super::*;

    #[test]
    fn an_explanation_is_the_meaning_and_what_follows_from_the_value() {
        let text = |text: &str| Value::Text(text.to_owned());
        for (note, value, guest, expected) in [
            (
                ElfNote::Entry,
                Value::Address(GuestVirt(0x1234)),
                Guest::Bits64,
                "The kernel starts at 0x1234.",
            ),
            (ElfNote::XenVersion, text("xen-3.0"), Guest::Bits64, "It does: this is the interface"),
            (ElfNote::XenVersion, text("xen-2.0"), Guest::Bits64, "no current Xen loads"),
            (ElfNote::Loader, text("special"), Guest::Bits64, "forgiven only if GUEST_OS"),
            (ElfNote::GuestOs, text("linux"), Guest::Bits64, "asks for no LOADER"),
            (ElfNote::PaeMode, text("yes"), Guest::Bits64, "no effect in a 64-bit kernel"),
            (ElfNote::PaeMode, text("no"), Guest::Bits32, "Here: no PAE."),
            (ElfNote::BsdSymtab, text("yes"), Guest::Bits32, "It is loaded."),
            (ElfNote::BsdSymtab, text("no"), Guest::Bits32, "nothing is loaded"),
            (ElfNote::Features, text("!warp|dom0|?"), Guest::Bits64, "Required and unknown to Xen: warp."),
            (ElfNote::Features, text("dom0|?"), Guest::Bits64, "Unknown to Xen and ignored: ?."),
            (
                ElfNote::SupportedFeatures,
                Value::FeatureWords(vec![1]),
                Guest::Bits64,
                "Supported: writable_page",
            ),
            (ElfNote::SupportedFeatures, Value::FeatureWords(vec![0]), Guest::Bits64, "It names none."),
            (ElfNote::SuspendCancel, Value::Flag(0), Guest::Bits64, "It is zero"),
            (ElfNote::ModStartPfn, Value::Flag(2), Guest::Bits64, "lies unmapped"),
            (ElfNote::InitP2m, Value::Address(GuestVirt(0)), Guest::Bits32, "no effect in a 32-bit kernel"),
            (ElfNote::PaddrOffset, Value::Offset(0x10), Guest::Bits32, "0x10 is subtracted."),
            (
                ElfNote::VirtBase,
                Value::Unreadable("why".into()),
                Guest::Bits32,
                "This value cannot be used: why.",
            ),
            (ElfNote::CrashInfo, Value::Opaque, Guest::Bits32, "no meaning in a kernel image"),
        ] {
            let explanation = explain(note, &value, guest);
            assert!(explanation.starts_with(note.meaning()), "{explanation}");
            assert!(explanation.contains(expected), "{explanation}");
        }
    }
}

//! `paravane hypercall-page`: the page as a listing or as bytes, and the check of a page found elsewhere.

use std::{fmt::Write as _, path::Path};

use paravane_abi::{hypercall::Hypercall, units::PAGE_SIZE};
use paravane_x86::{
    hypercall_page::{self, Check, FILLER, Form, SLOT_BYTES, SLOTS, Slot},
    mode::Mode,
    segments::HYPERVISOR_CS,
};
use serde_json::json;

use crate::{
    cli::{FormArg, GuestArg, HypercallPage},
    failure::Failure,
    input,
    output::{
        self, Answer,
        page::{Block, Page},
    },
};

/// How many slots from the first on a short listing shows.
const FIRST_SLOTS: usize = 3;

/// Lists, writes or checks a page.
///
/// # Errors
///
/// If the options contradict each other, a file cannot be read or written, or the checked page differs.
pub(super) fn run(arguments: &HypercallPage) -> Result<(), Failure> {
    let form = form(arguments)?;
    if let Some(path) = &arguments.check {
        return check(path, form, arguments);
    }
    let form = form.unwrap_or(Form::Syscall);
    if let Some(path) = &arguments.output {
        return output::write_file(path, &hypercall_page::page(form));
    }
    let slots: Vec<Slot> = hypercall_page::slots(form).collect();
    let page = listing_page(form, &slots, arguments);
    output::emit(&Answer { page, json: json!({ "form": form, "slots": slots }) }, arguments.print.into())
}

/// The form that the options name, if they name one.
fn form(arguments: &HypercallPage) -> Result<Option<Form>, Failure> {
    let entry = match &arguments.entry {
        None => 0,
        Some(text) => u32::try_from(input::number(text, 32, "entry point")?)
            .map_err(|_| Failure::Usage(format!("{text} is too wide")))?,
    };
    match (arguments.form, arguments.guest) {
        (None, None) => Ok(None),
        (None, Some(GuestArg::Bits64)) => Ok(Some(Form::of(Mode::Guest64))),
        (None, Some(GuestArg::Bits32)) => Ok(Some(Form::of(Mode::Guest32On64))),
        (Some(FormArg::Supervisor), None | Some(GuestArg::Bits32)) => {
            Ok(Some(Form::FarCall { selector: HYPERVISOR_CS, offset: entry }))
        }
        (Some(FormArg::Supervisor), Some(GuestArg::Bits64)) => Err(Failure::Usage(
            "the supervisor form was for 32-bit kernels: use --guest 32, or leave --form out".to_owned(),
        )),
    }
}

fn listing_page(form: Form, slots: &[Slot], arguments: &HypercallPage) -> Page {
    let mut page = Page::new(format!("Hypercall page: {form}"));
    page.text(format!(
        "{PAGE_SIZE} bytes: {SLOTS} slots of {SLOT_BYTES} bytes, each filled up with {FILLER:#04x} (int3). Slot n, at byte \
         n * {SLOT_BYTES}, makes hypercall n. The guest calls it with the arguments in registers; slot {} alone, {}, is \
         jumped to and does not return.",
        Hypercall::Iret.number(),
        Hypercall::Iret,
    ));
    if arguments.form.is_some() && arguments.entry.is_none() {
        page.text(
            "The address behind lcall is that of Xen's entry point, which differed from build to build; 0 stands for it \
             here. Set it with --entry.",
        );
    }
    let shown = |slot: &&Slot| {
        arguments.all || slot.offset < FIRST_SLOTS * SLOT_BYTES || slot.number == Hypercall::Iret.number()
    };
    let listed: Vec<&Slot> = slots.iter().filter(shown).collect();
    page.push(Block::Verbatim(listing(&listed)));
    if listed.len() < slots.len() {
        page.text(format!(
            "The other {} slots are as the first, each with its own number; so are those of numbers without a meaning. \
             --all lists them, -o FILE writes the page.",
            slots.len() - listed.len()
        ));
    }
    page.sources(SOURCES);
    page
}

/// Where the facts about the page come from.
pub(super) const SOURCES: [&str; 2] = [
    "xen/arch/x86/pv/hypercall.c (pv_ring3_init_hypercall_page, pv_ring1_init_hypercall_page)",
    "xen/arch/x86/x86_32/traps.c of Xen 4.2 (hypercall_page_initialise_ring0_kernel)",
];

/// Slots as `objdump -d` would list them, with a comment on each instruction.
pub(super) fn listing(slots: &[&Slot]) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
    let instructions = || slots.iter().flat_map(|slot| &slot.instructions);
    let filler_width = format!("{FILLER:02x} ({SLOT_BYTES} times)").len();
    let bytes_width = instructions().map(|one| hex(one.bytes()).len()).max().unwrap_or(0).max(filler_width);
    let text_width = instructions().map(|one| one.operation.to_string().len()).max().unwrap_or(0);
    let mut text = String::new();
    for slot in slots {
        if !text.is_empty() {
            text.push('\n');
        }
        let _ = writeln!(text, "{:03x} <{}>: slot {}", slot.offset, slot.meaning, slot.number);
        let mut at = slot.offset;
        for instruction in &slot.instructions {
            let bytes = hex(instruction.bytes());
            let operation = instruction.operation;
            let comment = operation.comment();
            let _ = writeln!(text, "  {at:03x}:  {bytes:bytes_width$}  {operation:text_width$}  # {comment}");
            at += instruction.bytes().len();
        }
        let filler = format!("{FILLER:02x} ({} times)", slot.offset + SLOT_BYTES - at);
        let _ = writeln!(text, "  {at:03x}:  {filler:bytes_width$}  int3");
    }
    text
}

fn check(path: &Path, form: Option<Form>, arguments: &HypercallPage) -> Result<(), Failure> {
    let bytes = input::read(path)?;
    let wrong = |error: hypercall_page::WrongSize| Failure::Data(format!("{}: {error}", path.display()));
    let guess = hypercall_page::check(&bytes).map_err(wrong)?;
    let check = match (form, &bytes.as_slice().try_into()) {
        // Without --entry, any entry point will do.
        (Some(Form::FarCall { .. }), _)
            if arguments.entry.is_none() && matches!(guess.form, Form::FarCall { .. }) =>
        {
            guess.clone()
        }
        (Some(form), Ok(page)) => hypercall_page::check_against(page, form),
        (None, _) | (Some(_), Err(_)) => guess.clone(),
    };
    let resembles = (guess.matching_slots > 0).then_some(guess.form);
    let answer = Answer {
        page: check_page(path, &check, &guess, &bytes),
        json: json!({
            "compared_with": check.form,
            "resembles": resembles,
            "matching_slots": check.matching_slots,
            "differences": check.differences,
        }),
    };
    output::emit(&answer, arguments.print.into())?;
    if check.differences.is_empty() {
        return Ok(());
    }
    Err(Failure::Negative(format!(
        "{}: {} of {SLOTS} slots differ from {}",
        path.display(),
        check.differences.len(),
        check.form
    )))
}

/// The page about `check`, where `guess` is the check against the most similar form.
fn check_page(path: &Path, check: &Check, guess: &Check, bytes: &[u8]) -> Page {
    let path = path.display();
    if check.differences.is_empty() {
        let mut page = Page::new(format!("{path}: the hypercall page of {}", check.form));
        page.text(format!("All {SLOTS} slots are as Xen writes them."));
        return page;
    }
    if guess.matching_slots == 0 {
        let mut page = Page::new(format!("{path}: no hypercall page"));
        page.text("Not one slot is as Xen writes it, in any form.");
        return page;
    }
    if guess.matching_slots > check.matching_slots {
        let mut page =
            Page::new(format!("{path}: the hypercall page of {}, not of {}", guess.form, check.form));
        page.text(format!(
            "{} of {SLOTS} slots are as Xen writes them in the former, {} in the latter.",
            guess.matching_slots, check.matching_slots
        ));
        return page;
    }
    let mut page =
        Page::new(format!("{path}: a hypercall page that differs in {} slots", check.differences.len()));
    page.text(format!(
        "It resembles {}: {} of {SLOTS} slots are as Xen writes them.",
        check.form, check.matching_slots
    ));
    page.table(
        &["Slot", "Name", "Byte", "Expected", "Found", "The stub found"],
        check.differences.iter().map(|difference| {
            let start = difference.slot as usize * SLOT_BYTES;
            let stub = bytes.get(start..start + SLOT_BYTES).unwrap_or_default();
            vec![
                difference.slot.to_string(),
                difference.meaning.to_string(),
                format!("{:#05x}", difference.offset),
                format!("{:02x}", difference.expected),
                format!("{:02x}", difference.found),
                hex_without_filler(stub),
            ]
        }),
    );
    page
}

/// The bytes of a slot up to the filler at its end.
fn hex_without_filler(slot: &[u8]) -> String {
    let length = slot.iter().rposition(|&byte| byte != FILLER).map_or(0, |last| last + 1);
    if length == 0 {
        return "only filler".to_owned();
    }
    slot[..length].iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_covers_every_byte_of_its_slots_once() {
        for form in [Form::Syscall, Form::Int82, Form::FarCall { selector: HYPERVISOR_CS, offset: 0 }] {
            let slots: Vec<Slot> = hypercall_page::slots(form).collect();
            let mut listed = 0;
            for line in
                listing(&slots.iter().collect::<Vec<_>>()).lines().filter(|line| line.starts_with("  "))
            {
                let (_, columns) = line.split_once(":  ").unwrap();
                let bytes = columns.split("  ").next().unwrap();
                listed += match bytes.split_once('(') {
                    Some((_, count)) => count.split(' ').next().unwrap().parse::<u64>().unwrap(),
                    None => bytes.split_whitespace().count() as u64,
                };
            }
            assert_eq!(listed, PAGE_SIZE, "{form}");
        }
    }

    #[test]
    fn the_filler_at_the_end_of_a_slot_is_left_out() {
        assert_eq!(hex_without_filler(&[0xcc, 0x0f, 0x05, 0xcc, 0xcc]), "cc 0f 05");
        assert_eq!(hex_without_filler(&[0xcc; SLOT_BYTES]), "only filler");
    }
}

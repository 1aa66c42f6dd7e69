//! `paravane explain`: a topic as a page, generated from the tables of the libraries.
//!
//! Each topic is one file with a function from the modes asked for to a [`Page`]. Selectors, descriptors, offsets
//! and registers are taken from the tables that the hypervisor itself loads, in running text too; only how they
//! hang together is told here.

mod elf_notes;
mod gdt;
mod hypercall_page;
mod hypercalls;
mod install;
mod iret;
mod segments;
mod start_of_day;
mod transition;

use clap::CommandFactory;
use paravane_abi::layout::{Abi, Layout};
use paravane_x86::{
    descriptor::{Descriptor, Kind, kind::CodeWidth},
    mode::{Guest, Mode},
    segments::CORRECTIONS,
};

use crate::{
    cli::{Cli, Explain, ModeArgs, Topic},
    failure::Failure,
    output::{Answer, Format, page::Page},
};

/// The page on a topic, or the list of topics, and how to print it.
///
/// # Errors
///
/// If the modes contradict each other, or a name is unknown.
pub(super) fn answer(arguments: &Explain) -> Result<(Answer, Format), Failure> {
    let (page, format): (Page, Format) = match &arguments.topic {
        None => (topics(), arguments.output.into()),
        Some(Topic::Segments(topic)) => (segments::page(&modes(topic.mode)?), topic.output.into()),
        Some(Topic::Gdt(topic)) => (gdt::page(&modes(topic.mode)?), topic.output.into()),
        Some(Topic::Hypercalls(topic)) => (hypercalls::page(topic)?, topic.output.into()),
        Some(Topic::HypercallPage(topic)) => (hypercall_page::page(&modes(topic.mode)?), topic.output.into()),
        Some(Topic::Iret(topic)) => (iret::page(&modes(topic.mode)?), topic.output.into()),
        Some(Topic::Transition(topic)) => (transition::page(topic)?, topic.output.into()),
        Some(Topic::StartOfDay(topic)) => (start_of_day::page(&modes(topic.mode)?), topic.output.into()),
        Some(Topic::ElfNotes(topic)) => (elf_notes::page(), topic.output.into()),
    };
    Ok((Answer::from_page(page), format))
}

/// The modes asked for; all four if none was.
fn modes(arguments: ModeArgs) -> Result<Vec<Mode>, Failure> {
    Ok(arguments.chosen()?.map_or_else(|| Mode::ALL.to_vec(), |mode| vec![mode]))
}

/// The topics with one line each, as the definition of the command line has them.
fn topics() -> Page {
    let mut page = Page::new("What `paravane explain` explains");
    let command = Cli::command();
    let topics = command.find_subcommand("explain").into_iter().flat_map(|explain| explain.get_subcommands());
    page.fields(topics.map(|topic| {
        (topic.get_name().to_owned(), topic.get_about().map_or_else(String::new, ToString::to_string))
    }));
    page.text(
        "Take one, as in `paravane explain segments`. Most take --guest 64 or 32 and --hypervisor 64, 32 or \
         32-nonpae, and show every mode without them; all take --json.",
    );
    page
}

/// The ABI that guests of `mode` speak.
fn abi(mode: Mode) -> Abi {
    match mode.guest() {
        Guest::Bits64 => Abi::Bits64,
        Guest::Bits32 => Abi::Bits32,
    }
}

/// The ABIs that guests of `modes` speak, each once.
fn abis(modes: &[Mode]) -> Vec<Abi> {
    let spoken: Vec<Abi> = modes.iter().map(|&mode| abi(mode)).collect();
    Abi::ALL.into_iter().filter(|abi| spoken.contains(abi)).collect()
}

/// The layout of a structure in the ABIs asked for.
fn structure(page: &mut Page, layout: &Layout, abis: &[Abi]) {
    let sizes: Vec<String> =
        abis.iter().map(|&abi| format!("{} bytes ({abi})", layout.size.get(abi))).collect();
    page.heading(format!("struct {}, {}", layout.name, sizes.join(", ")));
    page.text(layout.meaning);
    let mut columns: Vec<&str> = abis
        .iter()
        .map(|abi| match abi {
            Abi::Bits64 => "At (64)",
            Abi::Bits32 => "At (32)",
        })
        .collect();
    columns.extend(["Field", "Type", "Meaning"]);
    let fields = layout.fields.iter().filter(|field| abis.iter().any(|&abi| field.offset.get(abi).is_some()));
    page.table(
        &columns,
        fields.map(|field| {
            let mut row: Vec<String> = abis
                .iter()
                .map(|&abi| field.offset.get(abi).map_or_else(|| "-".to_owned(), |offset| offset.to_string()))
                .collect();
            row.extend([field.name.to_owned(), field.ty.to_string(), field.meaning.to_owned()]);
            row
        }),
    );
}

/// What a descriptor is and covers, in a few words.
fn summary(descriptor: Descriptor) -> String {
    if descriptor == Descriptor::NULL {
        return "nothing".to_owned();
    }
    let kind = descriptor.kind();
    match &kind {
        // Base and limit are ignored.
        Kind::Code(code) if code.width == CodeWidth::Bits64 => kind.to_string(),
        Kind::Code(_) | Kind::Data(_) | Kind::System(_) => match (descriptor.base(), descriptor.limit()) {
            (0, u32::MAX) => format!("{kind}; all 4 GiB"),
            (base, limit) => format!("{kind}; {base:#x} to {:#x}", base.wrapping_add(limit)),
        },
    }
}

/// Pointers to pages and commands that tell more.
fn see_also(page: &mut Page, commands: &[&str]) {
    page.heading("See also");
    page.text(commands.iter().map(|command| format!("paravane {command}")).collect::<Vec<_>>().join(", "));
}

/// `a, b and c`.
fn enumerate(items: &[String]) -> String {
    match items {
        [] => String::new(),
        [one] => one.clone(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}

/// What old texts say, each statement with what is so.
fn corrections(page: &mut Page) {
    page.heading("What old texts say, and what is so");
    for correction in &CORRECTIONS {
        page.fields([
            ("Old text", format!("\"{}\"", correction.claim)),
            ("Really", correction.truth.to_owned()),
            ("Because", correction.reason.to_owned()),
            ("Origin", correction.origin.to_owned()),
        ]);
    }
}

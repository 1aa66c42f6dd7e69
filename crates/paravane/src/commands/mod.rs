//! One module per command: from parsed arguments to an answer.

mod bit_table;
mod descriptor;
mod encode;
mod errno;
mod error_code;
mod explain;
pub mod gdt_file;
mod gdt_table;
mod hypercall;
mod hypercall_page;
mod inspect;
mod pte;
mod register;
mod run;
mod selector;
mod shell;

use std::collections::BTreeSet;

use crate::{
    cli::{Command, Decode, Explain, encode::Encode},
    failure::Failure,
    output::{
        self, Answer, Format,
        page::{Block, Page},
    },
};
use paravane_x86::descriptor::Descriptor;
use register::Register;

pub(crate) use pte::pte_summary;

/// A descriptor in the words of one table cell, such as "data, writable; DPL 3; flat".
pub(crate) fn descriptor_summary(descriptor: Descriptor) -> String {
    descriptor::summary(descriptor::Entry { low: descriptor, high: None })
}

/// Runs `command`, prints what it answers, and returns the exit code.
///
/// # Errors
///
/// Whatever keeps the command from answering; see [`Failure`].
pub fn run(command: Command) -> Result<u8, Failure> {
    let (answer, format) = match command {
        Command::Decode(decode) => answer_decode(&decode)?,
        Command::Encode(encode) => answer_encode(&encode)?,
        Command::Explain(explain) => answer_explain(&explain)?,
        // The others can also write files or print something else than an answer.
        Command::Inspect(arguments) => return inspect::run(&arguments).map(|()| 0),
        Command::HypercallPage(arguments) => return hypercall_page::run(&arguments).map(|()| 0),
        Command::Completions(completions) => return shell::completions(completions).map(|()| 0),
        Command::Man(man) => return shell::man(&man).map(|()| 0),
        Command::Run(args) => return run::run(args),
    };
    output::emit(&answer, format)?;
    Ok(0)
}

/// What `paravane decode` answers, and how to print it.
///
/// # Errors
///
/// As [`run`], except that nothing is printed.
pub fn answer_decode(decode: &Decode) -> Result<(Answer, Format), Failure> {
    Ok(match decode {
        Decode::Descriptor(args) => (descriptor::decode(args)?, args.values.output.into()),
        Decode::Errno(args) => (errno::decode(args)?, args.output.into()),
        Decode::ErrorCode(args) => (error_code::decode(args)?, args.bits.output.into()),
        Decode::Gdt(args) => (gdt_table::decode(args)?, args.output.into()),
        Decode::Hypercall(args) => (hypercall::decode(args)?, args.output.into()),
        Decode::Pte(args) => (pte::decode(args)?, args.bits.output.into()),
        Decode::Rflags(args) => (register::decode(args, Register::Rflags)?, args.output.into()),
        Decode::Cr0(args) => (register::decode(args, Register::Cr0)?, args.output.into()),
        Decode::Cr4(args) => (register::decode(args, Register::Cr4)?, args.output.into()),
        Decode::Selector(values) => (selector::decode(values)?, values.output.into()),
    })
}

/// What `paravane encode` answers, and how to print it.
///
/// # Errors
///
/// As [`run`], except that nothing is printed.
pub fn answer_encode(encode: &Encode) -> Result<(Answer, Format), Failure> {
    Ok(match encode {
        Encode::Descriptor(args) => (encode::descriptor::encode(args)?, args.output.into()),
        Encode::Pte(args) => (encode::pte::encode(args)?, args.output.into()),
        Encode::Selector(args) => (encode::selector::encode(args)?, args.output.into()),
    })
}

/// What `paravane explain` answers, and how to print it.
///
/// # Errors
///
/// As [`run`], except that nothing is printed.
pub fn answer_explain(explain: &Explain) -> Result<(Answer, Format), Failure> {
    explain::answer(explain)
}

/// Several answers as one page: a single one stays as it is, others become sections, with the sources of all at
/// the end.
fn join(title: &str, mut pages: Vec<Page>) -> Page {
    if pages.len() == 1 {
        return pages.remove(0);
    }
    let mut joined = Page::new(title);
    let mut all_sources: Vec<String> = Vec::new();
    for page in pages {
        joined.heading(page.title);
        for block in page.blocks {
            if let Block::Sources(sources) = block {
                all_sources.extend(sources);
            } else {
                joined.push(block);
            }
        }
    }
    let mut seen = BTreeSet::new();
    all_sources.retain(|source| seen.insert(source.clone()));
    joined.sources(all_sources);
    joined
}

/// `text` as the beginning of a sentence.
fn capitalized(text: &str) -> String {
    let mut characters = text.chars();
    match characters.next() {
        Some(first) => first.to_uppercase().chain(characters).collect(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use proptest::prelude::*;

    use super::*;
    use crate::cli::Cli;

    /// Runs a command line up to the bytes it would print.
    fn render(words: &[String]) {
        let Ok(cli) = Cli::try_parse_from(words) else { return };
        let answered = if let Command::Decode(decode) = &cli.command {
            answer_decode(decode)
        } else if let Command::Encode(encode) = &cli.command {
            answer_encode(encode)
        } else if let Command::Explain(explain) = &cli.command {
            answer_explain(explain)
        } else {
            return;
        };
        if let Ok((answer, _)) = answered {
            for format in [Format::Text, Format::Json, Format::Svg] {
                drop(output::render(&answer, format));
            }
        }
    }

    proptest! {
        #[test]
        fn any_values_are_answered_or_refused(
            what in prop::sample::select(
                &["descriptor", "selector", "pte", "error-code", "rflags", "cr0", "cr4", "hypercall", "errno"][..],
            ),
            // No "-", which reads standard input, and no path.
            values in prop::collection::vec("(0x)?[0-9a-fA-F_]{1,17}|-?E[A-Z]{2,6}|[a-z_]{2,12}", 1..5),
            options in prop::sample::subsequence(&["--guest=32", "--wide", "--level=3", "--selector"][..], 0..=2),
        ) {
            let fixed = ["paravane", "decode", what].into_iter().chain(options).map(str::to_owned);
            render(&fixed.chain(values).collect::<Vec<_>>());
        }

        #[test]
        fn any_name_is_explained_or_refused(
            topic in prop::sample::select(&["hypercalls", "transition", "gdt", "no-such-topic"][..]),
            name in "[0-9]{1,12}|0x[0-9a-fA-F_]{1,17}|[a-zA-Z_0-9-]{0,14}|\\PC{0,8}",
            options in prop::sample::subsequence(&["--guest=32", "--hypervisor=32-nonpae", "--json"][..], 0..=2),
        ) {
            let fixed = ["paravane", "explain", topic].into_iter().chain(options).map(str::to_owned);
            render(&fixed.chain([name]).collect::<Vec<_>>());
        }

        #[test]
        fn any_descriptor_that_can_be_described_is_encoded_or_refused(
            kind in prop::sample::select(&["code", "data", "ldt", "tss", "call-gate", "trap-gate", "task-gate"][..]),
            base: u64,
            limit in "[0-9]{1,10}[KMG]?",
            offset: u64,
            options in prop::sample::subsequence(
                &["--guest=32", "--long", "--16", "--expand-down", "--no-accessed", "--not-present", "--dpl=2"][..],
                0..=3,
            ),
        ) {
            let mut words: Vec<String> =
                ["paravane", "encode", "descriptor", "--type", kind].into_iter().chain(options).map(str::to_owned).collect();
            if kind.ends_with("gate") {
                words.extend(["--selector=0x10".to_owned(), format!("--offset={offset}")]);
            } else {
                words.extend([format!("--base={base}"), format!("--limit={limit}")]);
            }
            render(&words);
        }
    }
}

//! One module per command: from parsed arguments to an answer.

mod bit_table;
mod descriptor;
mod encode;
mod errno;
mod error_code;
pub mod gdt_file;
mod gdt_table;
mod hypercall;
mod pte;
mod register;
mod selector;

use std::collections::BTreeSet;

use crate::{
    cli::{Command, Decode, encode::Encode},
    failure::Failure,
    output::{
        self,
        page::{Block, Page},
    },
};
use register::Register;

/// Runs `command` and prints what it answers.
///
/// # Errors
///
/// Whatever keeps the command from answering; see [`Failure`].
pub fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Decode(decode) => run_decode(decode),
        Command::Encode(encode) => run_encode(&encode),
    }
}

fn run_decode(decode: Decode) -> Result<(), Failure> {
    match decode {
        Decode::Descriptor(args) => output::emit(&descriptor::decode(&args)?, args.values.output.into()),
        Decode::Errno(args) => output::emit(&errno::decode(&args)?, args.output.into()),
        Decode::ErrorCode(args) => output::emit(&error_code::decode(&args)?, args.bits.output.into()),
        Decode::Gdt(args) => output::emit(&gdt_table::decode(&args)?, args.output.into()),
        Decode::Hypercall(args) => output::emit(&hypercall::decode(&args)?, args.output.into()),
        Decode::Pte(args) => output::emit(&pte::decode(&args)?, args.bits.output.into()),
        Decode::Rflags(args) => output::emit(&register::decode(&args, Register::Rflags)?, args.output.into()),
        Decode::Cr0(args) => output::emit(&register::decode(&args, Register::Cr0)?, args.output.into()),
        Decode::Cr4(args) => output::emit(&register::decode(&args, Register::Cr4)?, args.output.into()),
        Decode::Selector(values) => output::emit(&selector::decode(&values)?, values.output.into()),
    }
}

fn run_encode(encode: &Encode) -> Result<(), Failure> {
    match encode {
        Encode::Descriptor(args) => output::emit(&encode::descriptor::encode(args)?, args.output.into()),
        Encode::Pte(args) => output::emit(&encode::pte::encode(args)?, args.output.into()),
        Encode::Selector(args) => output::emit(&encode::selector::encode(args)?, args.output.into()),
    }
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

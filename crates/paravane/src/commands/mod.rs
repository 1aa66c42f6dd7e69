//! One module per command: from parsed arguments to an answer.

mod descriptor;
pub mod gdt_file;
mod gdt_table;
mod selector;

use crate::{
    cli::{Command, Decode},
    failure::Failure,
    output::{self, page::Page},
};

/// Runs `command` and prints what it answers.
///
/// # Errors
///
/// Whatever keeps the command from answering; see [`Failure`].
pub fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Decode(decode) => match decode {
            Decode::Descriptor(args) => output::emit(&descriptor::decode(&args)?, args.values.output.into()),
            Decode::Gdt(args) => output::emit(&gdt_table::decode(&args)?, args.output.into()),
            Decode::Selector(values) => output::emit(&selector::decode(&values)?, values.output.into()),
        },
    }
}

/// Several answers as one page: a single one stays as it is, others become sections.
fn join(title: &str, mut pages: Vec<Page>) -> Page {
    if pages.len() == 1 {
        return pages.remove(0);
    }
    let mut joined = Page::new(title);
    for page in pages {
        joined.heading(page.title);
        joined.blocks.extend(page.blocks);
    }
    joined
}

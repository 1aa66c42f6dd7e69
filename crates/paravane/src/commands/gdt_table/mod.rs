//! `paravane decode gdt`: a whole descriptor table, entry by entry, and what Xen says to it.
//!
//! The table can be the guest's own part of the GDT, the reserved page at its end, or both. Where the reserved
//! page is recognised by its contents, it also tells which kind of guest the table belongs to.

mod page;
mod table;

use std::path::Path;

use super::gdt_file::{self, Dump};
use crate::{
    cli::decode::GdtArgs,
    failure::Failure,
    input,
    output::{Answer, page::Block},
};
use table::DescriptorTable;

/// Decodes the table that `args` names.
///
/// # Errors
///
/// If the file cannot be read or is no table, or the options contradict each other or the table's size.
pub(super) fn decode(args: &GdtArgs) -> Result<Answer, Failure> {
    let chosen = args.mode.chosen()?;
    let first = match &args.first {
        Some(first) => Some(index(first)?),
        None => None,
    };
    let table = DescriptorTable::new(&read(&args.file)?, first, chosen)?;
    let mut page = page::describe(&table, &file_name(&args.file));
    if args.output.svg {
        page.push(Block::Map(page::map(&table)));
    }
    Ok(Answer { json: page::to_json(&table), page })
}

fn index(text: &str) -> Result<u16, Failure> {
    let index = input::number(text, 13, "the index of the first entry")?;
    u16::try_from(index).map_err(|_| Failure::Usage(format!("{text} is no index of a descriptor table")))
}

fn read(path: &Path) -> Result<Dump, Failure> {
    let contents = input::read(path)?;
    gdt_file::parse(&contents).map_err(|problem| Failure::Data(format!("{}: {problem}", file_name(path))))
}

fn file_name(path: &Path) -> String {
    if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() }
}

//! `paravane completions` and `paravane man`: what shells and `man` need, from the definition of the command
//! line itself.

use std::fs;

use clap::{Command, CommandFactory};
use clap_mangen::Man as Page;

use crate::{
    cli::{Cli, Completions, Man},
    failure::Failure,
    output,
};

/// Prints the completions of one shell.
///
/// # Errors
///
/// If the output cannot be written.
pub(super) fn completions(arguments: Completions) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "paravane", &mut script);
    output::write_raw(&script)
}

/// Prints the main manual page, or writes the page of every command into a directory.
///
/// # Errors
///
/// If the output or a file cannot be written.
pub(super) fn man(arguments: &Man) -> Result<(), Failure> {
    let mut command = Cli::command();
    command.build();
    let Some(directory) = &arguments.out else {
        return output::write_raw(&rendered(&Page::new(command))?);
    };
    fs::create_dir_all(directory)
        .map_err(|error| Failure::OutputFile { path: directory.to_owned(), error })?;
    let mut pages = Vec::new();
    collect(&command, &mut pages);
    for page in pages {
        // In one piece: the page's own generate_to writes it word by word.
        output::write_file(&directory.join(page.get_filename()), &rendered(&page)?)?;
    }
    Ok(())
}

fn rendered(page: &Page) -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    page.render(&mut text).map_err(Failure::Output)?;
    Ok(text)
}

/// The page of `command` and of every command below it.
fn collect(command: &Command, pages: &mut Vec<Page>) {
    pages.push(Page::new(command.clone()));
    for below in command.get_subcommands() {
        collect(below, pages);
    }
}

//! From an answer to bytes on standard output.

pub mod page;
pub mod svg;
pub mod text;

use std::{
    fs,
    io::{self, Write},
    path::Path,
};

use serde_json::Value;

use crate::failure::Failure;
use page::{Block, Page};

/// What a command answers.
#[derive(Clone, Debug)]
pub struct Answer {
    /// For people.
    pub page: Page,
    /// For programs.
    pub json: Value,
}

/// How to print an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// For programs: one JSON value.
    Json,
    /// The answer's diagrams as one SVG drawing.
    Svg,
}

impl Answer {
    /// An answer whose data is its page.
    pub fn from_page(page: Page) -> Self {
        Self { json: page.to_json(), page }
    }
}

/// The columns that text may use: the terminal's, but never so many that lines are hard to read.
fn text_width() -> usize {
    const COMFORTABLE: usize = 100;
    rustix::termios::tcgetwinsize(io::stdout())
        .ok()
        .map(|size| usize::from(size.ws_col))
        .filter(|&columns| columns > 0)
        .map_or(COMFORTABLE, |columns| columns.min(COMFORTABLE))
}

/// Prints `answer` on standard output.
///
/// # Errors
///
/// If the output cannot be written, or if SVG was asked for and there is nothing to draw.
pub fn emit(answer: &Answer, format: Format) -> Result<(), Failure> {
    write_out(render(answer, format)?.as_bytes())
}

/// What [`emit`] prints, with escape sequences for colour.
///
/// # Errors
///
/// If SVG is asked for and there is nothing to draw.
pub fn render(answer: &Answer, format: Format) -> Result<String, Failure> {
    match format {
        Format::Text => Ok(text::render(&answer.page, text_width())),
        Format::Json => Ok(format!("{:#}\n", answer.json)),
        Format::Svg => draw(&answer.page),
    }
}

/// Writes `bytes` to standard output, without escape sequences unless it is a terminal.
///
/// # Errors
///
/// If the output cannot be written. A reader that went away (`| head`) is not an error.
pub fn write_out(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = anstream::stdout().lock();
    finish(out.write_all(bytes).and_then(|()| out.flush()))
}

fn draw(page: &Page) -> Result<String, Failure> {
    let mut caption = "";
    let mut diagrams = Vec::new();
    for block in &page.blocks {
        match block {
            Block::Heading(text) => caption = text,
            // One caption serves all diagrams of a section.
            Block::Bits(bits) => diagrams.push(svg::Diagram::Bits(std::mem::take(&mut caption), bits)),
            Block::Map(map) => diagrams.push(svg::Diagram::Map(std::mem::take(&mut caption), map)),
            Block::Text(_)
            | Block::List(_)
            | Block::Fields(_)
            | Block::Table(_)
            | Block::Verbatim(_)
            | Block::Sources(_) => {}
        }
    }
    if diagrams.is_empty() {
        return Err(Failure::Usage(format!(
            "no diagram belongs to \"{}\": use --svg with descriptors, selectors, page-table entries and the GDT map",
            page.title
        )));
    }
    Ok(svg::render(&page.title, &diagrams))
}

/// Writes `bytes` to standard output exactly as they are.
///
/// # Errors
///
/// If the output cannot be written. A reader that went away is not an error.
pub fn write_raw(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    finish(out.write_all(bytes).and_then(|()| out.flush()))
}

/// Writes `bytes` into a new file, or to standard output for `-`.
///
/// # Errors
///
/// If the file or the output cannot be written.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    if path == Path::new("-") {
        return write_raw(bytes);
    }
    fs::write(path, bytes).map_err(|error| Failure::OutputFile { path: path.to_owned(), error })
}

fn finish(result: io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::Output(error)),
        Ok(()) => Ok(()),
    }
}

//! Pages as text for people: wrapped, aligned, coloured where the output allows it.
//!
//! Colour is written as escape sequences; the stream it goes to (see [`super::emit`]) removes them unless it
//! is a terminal.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};

use super::page::{BitDiagram, BitField, Block, MapDiagram, MapRegion, Page, Table, Tone};

const TITLE: Style = Style::new().bold();
const HEADING: Style = AnsiColor::Cyan.on_default().bold();
const NAME: Style = AnsiColor::Green.on_default();
const DIM: Style = Style::new().dimmed();

/// Renders `page` for an output `width` columns wide.
pub fn render(page: &Page, width: usize) -> String {
    let width = width.max(40);
    let mut out = String::new();
    styled(&mut out, &page.title, width, TITLE);
    let mut previous: Option<&Block> = None;
    for block in &page.blocks {
        if !matches!(previous, Some(Block::Heading(_))) {
            out.push('\n');
        }
        render_block(&mut out, block, width);
        previous = Some(block);
    }
    out
}

fn render_block(out: &mut String, block: &Block, width: usize) {
    match block {
        Block::Heading(text) => styled(out, text, width, HEADING),
        Block::Text(text) => wrapped(out, text, width, "", ""),
        Block::List(items) => items.iter().for_each(|item| wrapped(out, item, width, "  - ", "    ")),
        Block::Fields(fields) => render_fields(out, fields, width),
        Block::Table(table) => render_table(out, table, width),
        Block::Bits(bits) => render_bits(out, bits, width),
        Block::Map(map) => render_map(out, map),
        Block::Verbatim(text) => text.lines().for_each(|text| line(out, &format!("  {text}"))),
        Block::Sources(sources) => {
            styled(out, &format!("Sources: {}", sources.join("; ")), width, DIM);
        }
    }
}

fn line(out: &mut String, text: &str) {
    out.push_str(text.trim_end());
    out.push('\n');
}

fn styled(out: &mut String, text: &str, width: usize, style: Style) {
    for text in textwrap::wrap(text, wrapping(width)) {
        line(out, &format!("{style}{text}{style:#}"));
    }
}

fn wrapped(out: &mut String, text: &str, width: usize, first: &str, rest: &str) {
    let options = wrapping(width).initial_indent(first).subsequent_indent(rest);
    for text in textwrap::wrap(text, options) {
        line(out, &text);
    }
}

/// Lines are broken at spaces only: words here are numbers, paths and names, which people copy.
fn wrapping(width: usize) -> textwrap::Options<'static> {
    textwrap::Options::new(width).break_words(false).word_splitter(textwrap::WordSplitter::NoHyphenation)
}

fn display_width(text: &str) -> usize {
    textwrap::core::display_width(text)
}

fn render_fields(out: &mut String, fields: &[(String, String)], width: usize) {
    let name_width = fields.iter().map(|(name, _)| display_width(name)).max().unwrap_or(0);
    let indent = " ".repeat(name_width + 4);
    for (name, value) in fields {
        let mut text = String::new();
        wrapped(&mut text, value, width, &indent, &indent);
        if text.is_empty() {
            text = format!("{indent}\n");
        }
        let padding = " ".repeat(name_width - display_width(name));
        // The first line's indentation makes room for the name.
        let first_value = &text[indent.len()..];
        let _ = write!(out, "  {NAME}{name}{NAME:#}{padding}  {first_value}");
    }
}

/// Columns as wide as their contents, the last one wrapped into what is left of the line.
fn render_table(out: &mut String, table: &Table, width: usize) {
    let widths: Vec<usize> = (0..table.columns.len())
        .map(|column| {
            let cells = table.rows.iter().map(|row| display_width(&row[column]));
            cells.chain([display_width(table.columns[column])]).max().unwrap_or(0)
        })
        .collect();
    let Some((_, leading)) = widths.split_last() else {
        return;
    };
    let last_start = 2 + leading.iter().map(|width| width + 2).sum::<usize>();
    // Where little room is left, a long last column overflows rather than becoming a ribbon.
    let last_width = width.saturating_sub(last_start).max(30);
    let titles: Vec<String> = table.columns.iter().map(|&title| title.to_owned()).collect();
    render_row(out, &titles, leading, last_start, last_width, HEADING);
    for row in &table.rows {
        render_row(out, row, leading, last_start, last_width, Style::new());
    }
}

fn render_row(
    out: &mut String,
    row: &[String],
    leading: &[usize],
    last_start: usize,
    last_width: usize,
    style: Style,
) {
    let mut text = String::from("  ");
    for (cell, width) in row.iter().zip(leading) {
        let padding = " ".repeat(width - display_width(cell));
        let _ = write!(text, "{style}{cell}{style:#}{padding}  ");
    }
    let last = row.last().map_or("", String::as_str);
    let mut pieces = textwrap::wrap(last, wrapping(last_width)).into_iter();
    let first = pieces.next().unwrap_or_default();
    let _ = write!(text, "{style}{first}{style:#}");
    line(out, &text);
    for piece in pieces {
        line(out, &format!("{}{piece}", " ".repeat(last_start)));
    }
}

fn tone_style(tone: Tone) -> Style {
    match tone {
        Tone::Address => AnsiColor::Blue.on_default(),
        Tone::Size => AnsiColor::Magenta.on_default(),
        Tone::Privilege => AnsiColor::Red.on_default(),
        Tone::Kind => AnsiColor::Yellow.on_default(),
        Tone::Flag => AnsiColor::Green.on_default(),
        Tone::Reserved => Style::new().dimmed(),
    }
}

fn render_bits(out: &mut String, bits: &BitDiagram, width: usize) {
    let top = bits.width - 1;
    let mut row_high = top;
    loop {
        let row_low = row_high - row_high % 32;
        let row = bits.fields.iter().filter(|field| (row_low..=row_high).contains(&field.low));
        let columns: Vec<BitColumn<'_>> = row.map(|field| bit_column(bits, field)).collect();
        let mut rest = columns.as_slice();
        while !rest.is_empty() {
            let (line, more) = rest.split_at(columns_that_fit(rest, width));
            render_bit_columns(out, line);
            rest = more;
        }
        if row_low == 0 {
            break;
        }
        row_high = row_low - 1;
    }
}

/// A field as it is drawn: three lines of the same width.
struct BitColumn<'a> {
    field: &'a BitField,
    numbers: String,
    value: String,
    width: usize,
}

fn bit_column<'a>(bits: &BitDiagram, field: &'a BitField) -> BitColumn<'a> {
    let digits = usize::from(field.high - field.low) + 1;
    let binary = digits <= 8 && field.tone != Tone::Address;
    let value = bits.field_value(field);
    let value = if binary { format!("{value:0digits$b}") } else { format!("{value:#x}") };
    let numbers = if digits == 1 { field.high.to_string() } else { format!("{} {}", field.high, field.low) };
    let width = numbers.len().max(display_width(&field.name)).max(value.len());
    let numbers = if digits == 1 {
        format!("{numbers:^width$}")
    } else {
        format!("{}{:>rest$}", field.high, field.low, rest = width - field.high.to_string().len())
    };
    BitColumn { field, numbers, value, width }
}

/// How many of `columns` fit on a line; at least one.
fn columns_that_fit(columns: &[BitColumn<'_>], width: usize) -> usize {
    let mut end = 3;
    let fit = columns.iter().take_while(|column| {
        end += column.width + 1;
        end <= width
    });
    fit.count().max(1)
}

fn render_bit_columns(out: &mut String, columns: &[BitColumn<'_>]) {
    let (mut numbers, mut rule) = (String::from("   "), String::from("  +"));
    let (mut names, mut values) = (String::from("  |"), String::from("  |"));
    for BitColumn { field, numbers: number, value, width } in columns {
        let _ = write!(numbers, "{number} ");
        rule.push_str(&"-".repeat(*width));
        rule.push('+');
        let style = tone_style(field.tone);
        let padding = width - display_width(&field.name);
        let (left, right) = (" ".repeat(padding / 2), " ".repeat(padding - padding / 2));
        let _ = write!(names, "{style}{left}{}{right}{style:#}|", field.name);
        let _ = write!(values, "{style}{value:^width$}{style:#}|");
    }
    for text in [&numbers, &rule, &names, &values, &rule] {
        line(out, text);
    }
}

fn render_map(out: &mut String, map: &MapDiagram) {
    render_regions(out, &map.overview);
    out.push('\n');
    line(out, &format!("  {}", map.detail_title));
    render_regions(out, &map.detail);
}

fn render_regions(out: &mut String, regions: &[MapRegion]) {
    let start_width = regions.iter().map(|region| display_width(&region.start)).max().unwrap_or(0);
    let contents_width = regions.iter().map(|region| display_width(&region.contents)).max().unwrap_or(0);
    let rule = format!("  {} +{}+", " ".repeat(start_width), "-".repeat(contents_width + 2));
    for region in regions {
        let style = tone_style(region.tone);
        line(out, &rule);
        line(
            out,
            &format!(
                "  {:>start_width$} | {style}{:<contents_width$}{style:#} | {}",
                region.start, region.contents, region.label
            ),
        );
    }
    line(out, &rule);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(page: &Page, width: usize) -> String {
        anstream::adapter::strip_str(&render(page, width)).to_string()
    }

    #[test]
    fn bits_are_drawn_high_to_low_in_rows_of_32() {
        let mut page = Page::new("word");
        page.push(Block::Bits(BitDiagram {
            value: 0x1_8000_0003,
            width: 64,
            fields: vec![
                BitField::new(63, 33, "reserved", Tone::Reserved),
                BitField::flag(32, "A"),
                BitField::flag(31, "B"),
                BitField::new(30, 2, "frame", Tone::Address),
                BitField::new(1, 0, "RPL", Tone::Privilege),
            ],
        }));
        insta::assert_snapshot!(plain(&page, 80));
    }

    #[test]
    fn a_row_of_bits_that_is_too_wide_is_cut() {
        let mut page = Page::new("word");
        let fields = (0..32).rev().map(|bit| BitField::flag(bit, "NAME")).collect();
        page.push(Block::Bits(BitDiagram { value: 1, width: 32, fields }));
        let text = plain(&page, 80);
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
        assert_eq!(text.matches("NAME").count(), 32);
    }

    #[test]
    fn the_last_column_wraps_under_itself() {
        let mut page = Page::new("table");
        page.table(
            &["Name", "Meaning"],
            [vec!["x".to_owned(), "a long explanation that does not fit on the line at all".to_owned()]],
        );
        insta::assert_snapshot!(plain(&page, 44));
    }

    #[test]
    fn field_values_wrap_under_themselves() {
        let mut page = Page::new("fields");
        page.fields([("base", "0"), ("explanation", "one two three four five six seven eight nine ten")]);
        insta::assert_snapshot!(plain(&page, 44));
    }
}

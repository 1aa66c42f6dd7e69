//! Pages as text for people: wrapped, aligned, coloured where the output allows it.
//!
//! Colour is written as escape sequences; the stream it goes to (see [`super::emit`]) removes them unless it
//! is a terminal.

use std::{borrow::Cow, fmt::Write as _};

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
    // Text below a heading is indented as everything else is, so that headings stand out without colour too.
    let mut indent = "";
    for block in &page.blocks {
        if matches!(block, Block::Heading(_)) {
            indent = GAP;
            out.push('\n');
        } else if !matches!(previous, Some(Block::Heading(_))) {
            out.push('\n');
        }
        render_block(&mut out, block, width, indent);
        previous = Some(block);
    }
    out
}

fn render_block(out: &mut String, block: &Block, width: usize, indent: &str) {
    match block {
        Block::Heading(text) => styled(out, text, width, HEADING),
        Block::Text(text) => wrapped(out, text, width, indent, indent),
        Block::List(items) => items.iter().for_each(|item| wrapped(out, item, width, "  - ", "    ")),
        Block::Fields(fields) => render_fields(out, fields, width),
        Block::Table(table) => render_table(out, table, width),
        Block::Bits(bits) => render_bits(out, bits, width),
        Block::Map(map) => render_map(out, map, width),
        Block::Verbatim(text) => text.lines().for_each(|text| line(out, &format!("  {}", printable(text)))),
        Block::Sources(sources) => {
            styled(out, &format!("Sources: {}", sources.join("; ")), width, DIM);
        }
    }
}

/// Whole lines in one style.
fn styled(out: &mut String, text: &str, width: usize, style: Style) {
    for text in textwrap::wrap(&printable(text), wrapping(width)) {
        line(out, &format!("{style}{text}{style:#}"));
    }
}

fn line(out: &mut String, text: &str) {
    out.push_str(text.trim_end());
    out.push('\n');
}

fn wrapped(out: &mut String, text: &str, width: usize, first: &str, rest: &str) {
    for text in
        textwrap::wrap(&printable(text), wrapping(width).initial_indent(first).subsequent_indent(rest))
    {
        line(out, &text);
    }
}

/// Lines are broken at spaces only: words here are numbers, paths and names, which people copy.
fn wrapping(width: usize) -> textwrap::Options<'static> {
    textwrap::Options::new(width).break_words(false).word_splitter(textwrap::WordSplitter::NoHyphenation)
}

/// The text without control characters: it can come from a file, and must not steer the terminal.
fn printable(text: &str) -> Cow<'_, str> {
    let steers = |character: char| character.is_control() && character != '\n';
    if text.contains(steers) { Cow::Owned(text.replace(steers, "\u{fffd}")) } else { Cow::Borrowed(text) }
}

fn display_width(text: &str) -> usize {
    textwrap::core::display_width(text)
}

fn render_fields(out: &mut String, fields: &[(String, String)], width: usize) {
    let names: Vec<Cow<'_, str>> = fields.iter().map(|(name, _)| printable(name)).collect();
    let name_width = names.iter().map(|name| display_width(name)).max().unwrap_or(0);
    let value_start = name_width + 2 * GAP.len();
    let wrapping = wrapping(width.saturating_sub(value_start).max(20));
    for (name, (_, value)) in names.iter().zip(fields) {
        let value = printable(value);
        let mut pieces = textwrap::wrap(&value, &wrapping).into_iter();
        let padding = name_width - display_width(name);
        let first = pieces.next().unwrap_or_default();
        line(out, &format!("{GAP}{NAME}{name}{NAME:#}{:padding$}{GAP}{first}", ""));
        for piece in pieces {
            line(out, &format!("{:value_start$}{piece}", ""));
        }
    }
}

/// The space before each column.
const GAP: &str = "  ";

/// Columns side by side; cells that do not fit into theirs are wrapped.
fn render_table(out: &mut String, table: &Table, width: usize) {
    let rows = table.rows.iter().map(|row| row.iter().map(|cell| printable(cell).into_owned()).collect());
    let table = &Table { columns: table.columns.clone(), rows: rows.collect() };
    let widths = column_widths(table, width);
    let titles: Vec<String> = table.columns.iter().map(|&title| title.to_owned()).collect();
    render_row(out, &titles, &widths, HEADING);
    for row in &table.rows {
        render_row(out, row, &widths, Style::new());
    }
}

/// A column whose contents are no wider than this is not wrapped if it can be helped.
const SHORT: usize = 20;

/// Each column as wide as its contents if the line has room for all. Otherwise the room goes where it saves most
/// lines. No column becomes narrower than its longest word; rather than that the line overflows.
fn column_widths(table: &Table, width: usize) -> Vec<usize> {
    let titles = [table.columns.iter().map(|title| display_width(title)).collect()];
    let cells = table.rows.iter().map(|row| row.iter().map(|cell| display_width(cell)).collect());
    let rows: Vec<Vec<usize>> = titles.into_iter().chain(cells).collect();
    let columns = 0..table.columns.len();
    let natural: Vec<usize> =
        columns.clone().map(|column| rows.iter().map(|row| row[column]).max().unwrap_or(0)).collect();
    let room = width.saturating_sub(natural.len() * GAP.len());
    if natural.iter().sum::<usize>() <= room {
        return natural;
    }
    let word = |text: &str| text.split_whitespace().map(display_width).max().unwrap_or(0);
    let longest_words: Vec<usize> = columns
        .map(|column| {
            let cells = table.rows.iter().map(|row| word(&row[column]));
            cells.chain([word(table.columns[column])]).max().unwrap_or(0)
        })
        .collect();
    let short_whole: Vec<usize> = natural
        .iter()
        .zip(&longest_words)
        .map(|(&natural, &word)| if natural <= SHORT { natural } else { word })
        .collect();
    let mut widths = if short_whole.iter().sum::<usize>() <= room { short_whole } else { longest_words };
    for _ in widths.iter().sum()..room {
        let wider = |column: usize| {
            let mut wider = widths.clone();
            wider[column] += 1;
            wider
        };
        let growing = (0..widths.len()).filter(|&column| widths[column] < natural[column]);
        let Some(best) =
            growing.min_by_key(|&column| (estimated_height(&rows, &wider(column)), widths[column]))
        else {
            break;
        };
        widths[best] += 1;
    }
    widths
}

/// How many lines rows of such cells take in columns of such widths, in 256ths: words are not looked at.
fn estimated_height(rows: &[Vec<usize>], widths: &[usize]) -> usize {
    let height = |row: &Vec<usize>| {
        row.iter().zip(widths).map(|(cell, &width)| cell * 256 / width.max(1)).max().unwrap_or(0).max(256)
    };
    rows.iter().map(height).sum()
}

fn render_row(out: &mut String, row: &[String], widths: &[usize], style: Style) {
    let cells: Vec<Vec<Cow<'_, str>>> =
        row.iter().zip(widths).map(|(cell, &width)| textwrap::wrap(cell, wrapping(width))).collect();
    let height = cells.iter().map(Vec::len).max().unwrap_or(0);
    for index in 0..height {
        let mut text = String::new();
        // Padding waits for a cell to follow it, so that no line ends in blanks.
        let mut padding = 0;
        for (cell, width) in cells.iter().zip(widths) {
            padding += GAP.len();
            let piece = cell.get(index).map_or("", |piece| piece.as_ref());
            if piece.is_empty() {
                padding += width;
                continue;
            }
            let _ = write!(text, "{:padding$}{style}{piece}{style:#}", "");
            padding = width.saturating_sub(display_width(piece));
        }
        line(out, &text);
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

fn render_map(out: &mut String, map: &MapDiagram, width: usize) {
    render_regions(out, &map.overview, width);
    out.push('\n');
    wrapped(out, &map.detail_title, width, GAP, GAP);
    render_regions(out, &map.detail, width);
}

fn render_regions(out: &mut String, regions: &[MapRegion], width: usize) {
    let start_width = regions.iter().map(|region| display_width(&region.start)).max().unwrap_or(0);
    let contents_width = regions.iter().map(|region| display_width(&region.contents)).max().unwrap_or(0);
    let rule = format!("  {:start_width$} +{:-<2$}+", "", "", contents_width + 2);
    // The label is wrapped beside its box; where no room is left for that, it overflows.
    let label_width = width.saturating_sub(start_width + contents_width + 8).max(20);
    line(out, &rule);
    for region in regions {
        let style = tone_style(region.tone);
        let mut pieces = textwrap::wrap(&region.label, wrapping(label_width)).into_iter();
        let (first, start, contents) = (pieces.next().unwrap_or_default(), &region.start, &region.contents);
        line(
            out,
            &format!("  {start:>start_width$} | {style}{contents:<contents_width$}{style:#} | {first}"),
        );
        for piece in pieces {
            line(out, &format!("  {:start_width$} | {:contents_width$} | {piece}", "", ""));
        }
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
    fn wide_columns_share_the_line_so_that_few_lines_are_needed() {
        let mut page = Page::new("table");
        let words = "one two three four five six seven eight".to_owned();
        page.table(
            &["#", "Left", "Right"],
            [vec!["1".to_owned(), words.clone(), words.clone()], vec!["2".to_owned(), String::new(), words]],
        );
        insta::assert_snapshot!(plain(&page, 44));
    }

    #[test]
    fn a_map_is_two_boxes_with_labels_beside_them() {
        let region = |start: &str, contents: &str, label: &str| MapRegion {
            start: start.to_owned(),
            contents: contents.to_owned(),
            label: label.to_owned(),
            tone: Tone::Address,
        };
        let mut page = Page::new("map");
        page.push(Block::Map(MapDiagram {
            overview: vec![region("0", "guest", "up to the border"), region("0xe000", "Xen", "beyond it")],
            detail: vec![region("7168", "0", "nothing that anybody would want to load, in so many words")],
            detail_title: "Xen's page".to_owned(),
        }));
        insta::assert_snapshot!(plain(&page, 44));
    }

    #[test]
    fn text_from_a_file_cannot_steer_the_terminal() {
        let hostile = "a\u{1b}]0;title\u{7}b\r\tc".to_owned();
        let mut page = Page::new(&hostile);
        page.heading(&hostile);
        page.text(&hostile);
        page.list([&hostile]);
        page.fields([(&*hostile, &*hostile)]);
        page.table(&["Column"], [vec![hostile.clone()]]);
        page.push(Block::Verbatim(hostile.clone()));
        page.sources([&hostile]);
        let text = plain(&page, 80);
        assert!(!text.contains(|character: char| character.is_control() && character != '\n'), "{text:?}");
        assert_eq!(text.matches("]0;title").count(), 9, "{text}");
    }

    #[test]
    fn text_below_a_heading_is_indented() {
        let mut page = Page::new("page");
        page.text("before");
        page.heading("Heading");
        page.text("after");
        assert_eq!(plain(&page, 44), "page\n\nbefore\n\nHeading\n  after\n");
    }

    #[test]
    fn field_values_wrap_under_themselves() {
        let mut page = Page::new("fields");
        page.fields([
            ("base", "0"),
            ("nothing", ""),
            ("explanation", "one two three four five six seven eight nine ten"),
        ]);
        insta::assert_snapshot!(plain(&page, 44));
    }
}

//! Bit and map diagrams as SVG, for people who would rather look.
//!
//! The drawings carry their own colours and fonts and no script, so they can be pasted into a page or a
//! document. All text is escaped: it can contain what a user typed.

use std::fmt::Write as _;

use super::page::{BitDiagram, MapDiagram, MapRegion, Tone};

/// Width of one bit's cell, in pixels.
const CELL: usize = 30;
/// Space around the drawing.
const MARGIN: usize = 20;
/// Height of one row of bits: numbers, cells, names and a gap.
const ROW_HEIGHT: usize = 120;
/// Height of a line of text with the space around it.
const LINE: usize = 24;

/// Draws diagrams below one another under `title`.
pub fn render(title: &str, diagrams: &[Diagram<'_>]) -> String {
    let mut body = String::new();
    let mut y = MARGIN + LINE;
    let mut width = 2 * MARGIN + text_width(title, 16);
    for diagram in diagrams {
        let (caption, extent) = match diagram {
            Diagram::Bits(caption, bits) => (*caption, bit_extent(bits)),
            Diagram::Map(caption, map) => (*caption, MapLayout::of(map).extent),
        };
        if !caption.is_empty() {
            text(&mut body, MARGIN, y + 12, "start", 14, caption);
            width = width.max(2 * MARGIN + text_width(caption, 14));
            y += LINE;
        }
        match diagram {
            Diagram::Bits(_, bits) => draw_bits(&mut body, bits, y),
            Diagram::Map(_, map) => draw_map(&mut body, map, y),
        }
        y += extent.1;
        width = width.max(extent.0);
    }
    let height = y + MARGIN;
    let mut out = String::new();
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"DejaVu Sans Mono, Consolas, monospace\">\n\
         <title>{0}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n",
        escape(title)
    );
    text(&mut out, MARGIN, MARGIN + 8, "start", 16, title);
    out.push_str(&body);
    out.push_str("</svg>\n");
    out
}

/// About how wide a text is; characters of these fonts are six tenths of their size wide.
fn text_width(text: &str, size: usize) -> usize {
    (text.chars().count() * size * 61).div_ceil(100)
}

/// A diagram with its caption.
#[derive(Clone, Copy, Debug)]
pub enum Diagram<'a> {
    /// A value bit by bit.
    Bits(&'a str, &'a BitDiagram),
    /// A map of regions.
    Map(&'a str, &'a MapDiagram),
}

fn bit_extent(bits: &BitDiagram) -> (usize, usize) {
    let rows = usize::from(bits.width).div_ceil(32);
    (2 * MARGIN + usize::from(bits.width.min(32)) * CELL, rows * ROW_HEIGHT)
}

fn draw_bits(out: &mut String, bits: &BitDiagram, top: usize) {
    let row_width = usize::from(bits.width.min(32));
    for field in &bits.fields {
        let row = usize::from((bits.width - 1) / 32 - field.low / 32);
        let y = top + row * ROW_HEIGHT;
        let column = |bit: u8| row_width - 1 - usize::from(bit) % 32;
        let (left, right) = (MARGIN + column(field.high) * CELL, MARGIN + (column(field.low) + 1) * CELL);
        let (fill, stroke) = colours(field.tone);
        rectangle(out, left, y + 16, right - left, 34, fill, stroke);
        for bit in field.low..=field.high {
            let x = MARGIN + column(bit) * CELL + CELL / 2;
            let set = if bits.value >> bit & 1 == 1 { "1" } else { "0" };
            text(out, x, y + 38, "middle", 14, set);
            if bit == field.low || bit == field.high {
                text(out, x, y + 11, "middle", 10, &bit.to_string());
            }
        }
        label(out, left, right, y + 50, &field.name, stroke, bits.field_value(field));
    }
}

/// The field's name and value below its cells: level where it fits, slanting where it does not.
fn label(out: &mut String, left: usize, right: usize, y: usize, name: &str, stroke: &str, value: u64) {
    let middle = usize::midpoint(left, right);
    let room = right - left;
    if let Some(size) = [12, 10].into_iter().find(|&size| text_width(name, size) + 2 <= room) {
        text(out, middle, y + 16, "middle", size, name);
        let hex = format!("{value:#x}");
        // The bits of a narrow field speak for themselves, and reserved ones say nothing.
        if room > CELL && name != "0" && text_width(&hex, 12) <= room {
            text(out, middle, y + 32, "middle", 12, &hex);
        }
    } else {
        let _ = writeln!(
            out,
            "<text transform=\"translate({} {}) rotate(45)\" font-size=\"11\" fill=\"{stroke}\">{}</text>",
            middle - 4,
            y + 12,
            escape(name)
        );
    }
}

/// Height of one region of a map.
const REGION_HEIGHT: usize = 30;

/// Where the columns of a map are: for overview and detail each the starts, the boxes and the labels.
struct MapLayout {
    overview: Columns,
    detail: Columns,
    extent: (usize, usize),
}

/// The columns of one strip of regions.
#[derive(Clone, Copy)]
struct Columns {
    /// Where the boxes begin; the starts end just before.
    left: usize,
    /// Width of the boxes.
    width: usize,
    /// Where the labels end.
    right: usize,
}

impl MapLayout {
    fn of(map: &MapDiagram) -> Self {
        let overview = Columns::of(&map.overview, MARGIN);
        let detail_start = if map.overview.is_empty() { MARGIN } else { overview.right + 2 * MARGIN };
        let detail = Columns::of(&map.detail, detail_start);
        let title_end = detail.left + text_width(&map.detail_title, 12);
        let rows = map.overview.len().max(map.detail.len()) + 1;
        let extent = (detail.right.max(title_end) + MARGIN, rows * REGION_HEIGHT + MARGIN);
        Self { overview, detail, extent }
    }
}

impl Columns {
    fn of(regions: &[MapRegion], start: usize) -> Self {
        let widest = |part: fn(&MapRegion) -> &str| {
            regions.iter().map(|region| text_width(part(region), 12)).max().unwrap_or(0)
        };
        let left = start + widest(|region| &region.start) + 8;
        let width = widest(|region| &region.contents) + 20;
        Self { left, width, right: left + width + 8 + widest(|region| &region.label) }
    }
}

fn draw_map(out: &mut String, map: &MapDiagram, top: usize) {
    let layout = MapLayout::of(map);
    draw_regions(out, &map.overview, layout.overview, top + REGION_HEIGHT);
    text(out, layout.detail.left, top + 20, "start", 12, &map.detail_title);
    draw_regions(out, &map.detail, layout.detail, top + REGION_HEIGHT);
}

fn draw_regions(out: &mut String, regions: &[MapRegion], columns: Columns, top: usize) {
    let Columns { left, width, .. } = columns;
    for (row, region) in regions.iter().enumerate() {
        let y = top + row * REGION_HEIGHT;
        let (fill, stroke) = colours(region.tone);
        rectangle(out, left, y, width, REGION_HEIGHT, fill, stroke);
        text(out, left + width / 2, y + 20, "middle", 12, &region.contents);
        text(out, left - 6, y + 20, "end", 12, &region.start);
        text(out, left + width + 8, y + 20, "start", 12, &region.label);
    }
}

fn rectangle(
    out: &mut String,
    left: usize,
    top: usize,
    width: usize,
    height: usize,
    fill: &str,
    stroke: &str,
) {
    let _ = writeln!(
        out,
        "<rect x=\"{left}\" y=\"{top}\" width=\"{width}\" height=\"{height}\" fill=\"{fill}\" stroke=\"{stroke}\"/>"
    );
}

fn text(out: &mut String, x: usize, y: usize, anchor: &str, size: usize, content: &str) {
    if content.is_empty() {
        return;
    }
    let _ = writeln!(
        out,
        "<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\" font-size=\"{size}\">{}</text>",
        escape(content)
    );
}

/// Fill and outline; the pairs differ in lightness too, for readers who do not tell the hues apart.
fn colours(tone: Tone) -> (&'static str, &'static str) {
    match tone {
        Tone::Address => ("#dbeafe", "#1d4ed8"),
        Tone::Size => ("#f3e8ff", "#7e22ce"),
        Tone::Privilege => ("#fee2e2", "#b91c1c"),
        Tone::Kind => ("#fef3c7", "#a16207"),
        Tone::Flag => ("#dcfce7", "#15803d"),
        Tone::Reserved => ("#f3f4f6", "#6b7280"),
    }
}

/// Replaces the characters that mean something in XML, and those XML cannot carry.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            control if control.is_control() => out.push('\u{fffd}'),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::page::BitField;

    #[test]
    fn every_field_has_a_box_and_every_bit_a_digit() {
        let bits = BitDiagram {
            value: 0xe033,
            width: 16,
            fields: vec![
                BitField::new(15, 3, "index", Tone::Address),
                BitField::flag(2, "TI"),
                BitField::new(1, 0, "RPL", Tone::Privilege),
            ],
        };
        let svg = render("0xe033", &[Diagram::Bits("selector", &bits)]);
        assert_eq!(svg.matches("<rect x=").count(), 3);
        let digits = svg.matches(">1</text>").count() + svg.matches(">0</text>").count();
        // Sixteen bits, and the numbers of bits 1 and 0 above them.
        assert_eq!(digits, 18);
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    }

    /// Every number that follows `attribute="` in `svg`.
    fn numbers(svg: &str, attribute: &str) -> Vec<usize> {
        let before = format!(" {attribute}=\"");
        let parts = svg.split(&before).skip(1);
        parts.filter_map(|part| part.split('"').next()?.parse().ok()).collect()
    }

    #[test]
    fn nothing_is_drawn_beyond_the_edge() {
        let region = |start: &str, label: &str| MapRegion {
            start: start.to_owned(),
            label: label.to_owned(),
            contents: "0x00affb000000ffff".to_owned(),
            tone: Tone::Kind,
        };
        let map = MapDiagram {
            overview: vec![region("0xe000", "entries 7168 to 7679")],
            detail: vec![region("7174 0xe033", &"a long label ".repeat(8)), region("7175", "")],
            detail_title: "Entries".to_owned(),
        };
        let svg = render("map", &[Diagram::Map("caption", &map), Diagram::Map("", &map)]);
        let (width, height) = (numbers(&svg, "width")[0], numbers(&svg, "height")[0]);
        let longest = text_width(&"a long label ".repeat(8), 12);
        let labels = svg.matches("a long label").count();
        assert_eq!(labels, 16);
        assert!(numbers(&svg, "x").into_iter().max().is_some_and(|x| x <= width), "{svg}");
        assert!(numbers(&svg, "y").into_iter().max().is_some_and(|y| y <= height), "{svg}");
        assert!(MapLayout::of(&map).detail.right >= longest && width >= MapLayout::of(&map).detail.right);
    }

    #[test]
    fn a_name_that_does_not_fit_its_cell_slants() {
        let bits = BitDiagram {
            value: 0,
            width: 8,
            fields: vec![
                BitField::new(7, 3, "0", Tone::Reserved),
                BitField::flag(2, "OSXSAVE"),
                BitField::flag(1, "SMEP"),
                BitField::flag(0, "DE"),
            ],
        };
        let svg = render("bits", &[Diagram::Bits("", &bits)]);
        assert_eq!(svg.matches("rotate(45)").count(), 1);
        assert!(svg.contains("font-size=\"10\">SMEP<"), "{svg}");
        // Of the reserved bits only the name is written.
        assert!(!svg.contains(">0x0<"), "{svg}");
    }

    #[test]
    fn what_the_user_typed_cannot_break_out_of_the_drawing() {
        assert_eq!(escape("<a & \"b\">\u{1b}"), "&lt;a &amp; &quot;b&quot;&gt;\u{fffd}");
    }
}

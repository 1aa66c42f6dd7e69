//! The document model: what a command has to say, before anybody decides how it looks.
//!
//! A command builds a [`Page`] of blocks; [`super::text`] prints it for people, [`Page::to_json`] turns it
//! into data for programs where a command has no richer data of its own, and [`super::svg`] draws the
//! diagrams in it.

use serde_json::{Map, Value, json};

/// An answer as a sequence of blocks under a title.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// One line that says what the page is about.
    pub title: String,
    /// The contents, in reading order.
    pub blocks: Vec<Block>,
}

/// One piece of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Block {
    /// Starts a section.
    Heading(String),
    /// A paragraph, wrapped to the width of the output.
    Text(String),
    /// Short paragraphs, each with a bullet.
    List(Vec<String>),
    /// Name and value in two columns; the values are wrapped.
    Fields(Vec<(String, String)>),
    /// Rows and columns.
    Table(Table),
    /// A word in memory, taken apart bit by bit.
    Bits(BitDiagram),
    /// A table of descriptors drawn as a strip.
    Map(MapDiagram),
    /// Lines that must not be wrapped: listings, drawings.
    Verbatim(String),
    /// Where the facts come from.
    Sources(Vec<String>),
}

/// Rows of text cells under column titles.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Table {
    /// Column titles; as keys in JSON they are lower-cased, with underscores for spaces.
    pub columns: Vec<&'static str>,
    /// Rows with as many cells as there are columns.
    pub rows: Vec<Vec<String>>,
}

/// A value of up to 64 bits, drawn as boxes from the highest bit to the lowest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitDiagram {
    /// The value.
    pub value: u64,
    /// How many bits it has: 8, 16, 32 or 64.
    pub width: u8,
    /// The fields from high to low, together covering every bit once; none crosses a multiple of 32.
    pub fields: Vec<BitField>,
}

/// A run of bits with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitField {
    /// The highest bit.
    pub high: u8,
    /// The lowest bit.
    pub low: u8,
    /// The name printed in the box.
    pub name: String,
    /// What kind of field it is, which decides its colour.
    pub tone: Tone,
}

/// The kinds of fields that a reader tells apart by colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// An address or a part of one.
    Address,
    /// A size or a limit.
    Size,
    /// A privilege level.
    Privilege,
    /// A type or a code.
    Kind,
    /// A flag.
    Flag,
    /// Reserved or unused bits.
    Reserved,
}

/// A strip of regions, each with a label, and below it the enlarged interesting one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapDiagram {
    /// The whole, coarsely, from the lowest address up.
    pub overview: Vec<MapRegion>,
    /// The enlarged part, row by row.
    pub detail: Vec<MapRegion>,
    /// What the enlarged part is.
    pub detail_title: String,
}

/// One region of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapRegion {
    /// Where it starts, in words or numbers.
    pub start: String,
    /// What is there.
    pub label: String,
    /// The contents, if they can be given in a few characters.
    pub contents: String,
    /// Whose it is, which decides its colour.
    pub tone: Tone,
}

impl Page {
    /// A page without blocks.
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), blocks: Vec::new() }
    }

    /// Starts a section.
    pub fn heading(&mut self, text: impl Into<String>) {
        self.blocks.push(Block::Heading(text.into()));
    }

    /// Adds a paragraph.
    pub fn text(&mut self, text: impl Into<String>) {
        self.blocks.push(Block::Text(text.into()));
    }

    /// Adds a bulleted list; an empty one adds nothing.
    pub fn list<T: ToString>(&mut self, items: impl IntoIterator<Item = T>) {
        let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
        if !items.is_empty() {
            self.blocks.push(Block::List(items));
        }
    }

    /// Adds name and value pairs.
    pub fn fields<N: Into<String>, V: Into<String>>(&mut self, fields: impl IntoIterator<Item = (N, V)>) {
        let fields = fields.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        self.blocks.push(Block::Fields(fields));
    }

    /// Adds a table.
    pub fn table(&mut self, columns: &[&'static str], rows: impl IntoIterator<Item = Vec<String>>) {
        let table = Table { columns: columns.to_vec(), rows: rows.into_iter().collect() };
        debug_assert!(table.rows.iter().all(|row| row.len() == columns.len()), "a row misses a cell");
        self.blocks.push(Block::Table(table));
    }

    /// Adds any other block.
    pub fn push(&mut self, block: Block) {
        self.blocks.push(block);
    }

    /// Says where the facts come from.
    pub fn sources<T: ToString>(&mut self, sources: impl IntoIterator<Item = T>) {
        self.blocks.push(Block::Sources(sources.into_iter().map(|source| source.to_string()).collect()));
    }

    /// The page as data: a list of sections, each with its heading and its blocks; the rows of a table are
    /// objects keyed by column.
    pub fn to_json(&self) -> Value {
        let mut sections = Vec::new();
        let (mut heading, mut contents) = (None, Vec::new());
        for block in &self.blocks {
            if let Block::Heading(next) = block {
                close_section(&mut sections, heading.replace(next.clone()), &mut contents);
            } else {
                contents.push(block_to_json(block));
            }
        }
        close_section(&mut sections, heading, &mut contents);
        json!({ "title": self.title, "sections": sections })
    }
}

fn close_section(sections: &mut Vec<Value>, heading: Option<String>, contents: &mut Vec<Value>) {
    if heading.is_some() || !contents.is_empty() {
        sections.push(json!({ "heading": heading, "blocks": std::mem::take(contents) }));
    }
}

fn block_to_json(block: &Block) -> Value {
    match block {
        Block::Heading(text) => json!({ "heading": text }),
        Block::Text(text) => json!({ "text": text }),
        Block::List(items) => json!({ "list": items }),
        Block::Fields(fields) => {
            let fields: Map<String, Value> =
                fields.iter().map(|(name, value)| (key(name), json!(value))).collect();
            json!({ "fields": fields })
        }
        Block::Table(table) => {
            let keys: Vec<String> = table.columns.iter().map(|column| key(column)).collect();
            let rows: Vec<Value> = table
                .rows
                .iter()
                .map(|row| {
                    Value::Object(keys.iter().cloned().zip(row.iter().map(|cell| json!(cell))).collect())
                })
                .collect();
            json!({ "table": rows })
        }
        Block::Bits(bits) => json!({
            "bits": {
                "value": format!("{:#x}", bits.value),
                "width": bits.width,
                "fields": bits
                    .fields
                    .iter()
                    .map(|field| json!({
                        "high": field.high,
                        "low": field.low,
                        "name": field.name,
                        "value": format!("{:#x}", bits.field_value(field)),
                    }))
                    .collect::<Vec<_>>(),
            }
        }),
        Block::Map(map) => {
            let regions = |regions: &[MapRegion]| {
                regions
                    .iter()
                    .map(|region| {
                        json!({ "start": region.start, "label": region.label, "contents": region.contents })
                    })
                    .collect::<Vec<_>>()
            };
            json!({ "map": { "overview": regions(&map.overview), "detail": regions(&map.detail) } })
        }
        Block::Verbatim(text) => json!({ "verbatim": text.lines().collect::<Vec<_>>() }),
        Block::Sources(sources) => json!({ "sources": sources }),
    }
}

/// A column title or field name as a JSON key.
fn key(title: &str) -> String {
    title.to_lowercase().replace([' ', '-', '/'], "_")
}

impl BitDiagram {
    /// The bits of `field`, shifted down.
    pub fn field_value(&self, field: &BitField) -> u64 {
        let count = u32::from(field.high - field.low) + 1;
        let mask = u64::MAX >> (64 - count);
        self.value >> field.low & mask
    }
}

impl BitField {
    /// A field from bit `high` down to bit `low`.
    pub fn new(high: u8, low: u8, name: impl Into<String>, tone: Tone) -> Self {
        Self { high, low, name: name.into(), tone }
    }

    /// A single bit.
    pub fn flag(bit: u8, name: impl Into<String>) -> Self {
        Self::new(bit, bit, name, Tone::Flag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_becomes_sections_with_keyed_rows() {
        let mut page = Page::new("Segments");
        page.text("before any heading");
        page.heading("First");
        page.table(&["GDT index", "Ring"], [vec!["7174".to_owned(), "3".to_owned()]]);
        assert_eq!(
            page.to_json(),
            json!({
                "title": "Segments",
                "sections": [
                    { "heading": null, "blocks": [{ "text": "before any heading" }] },
                    { "heading": "First", "blocks": [{ "table": [{ "gdt_index": "7174", "ring": "3" }] }] },
                ],
            })
        );
    }

    #[test]
    fn a_field_of_all_64_bits_is_the_value() {
        let field = BitField::new(63, 0, "all", Tone::Kind);
        let bits = BitDiagram { value: u64::MAX, width: 64, fields: vec![field.clone()] };
        assert_eq!(bits.field_value(&field), u64::MAX);
    }
}

//! docs/translator-coverage.md: what the translator does with every instruction form.

use std::fmt::Write as _;

use paravane_translate::coverage::{INEXACT, Row, Treatment, coverage, host_features};

const HEAD: &str = "\
<!-- Written by `cargo xtask generate` from the tables in crates/translate. Do not edit. -->

# What the translator does with each instruction

Every instruction form that the decoder (iced-x86) knows in 64-bit or 32-bit code is below, once, grouped by what
happens to it; the number is how many forms (opcodes, operand sizes, encodings) a mnemonic has. The tests run all forms
that are performed, on random registers and memory, natively and in the engine, and compare registers, flags, vector and
x87 state, memory and faults; where the host's CPU lacks a feature both sides must say #UD. How many of them a host
could run is what `cargo test -p paravane-translate --test cpu -- --nocapture` prints.

";

/// The whole page.
pub(super) fn page() -> String {
    let mut page = String::from(HEAD);
    for (treatment, rows) in coverage() {
        let (title, text) = heading(treatment);
        let forms: usize = rows.iter().map(|row| row.forms).sum();
        write!(page, "## {title}\n\n{text} {} mnemonics, {forms} forms.\n\n", rows.len())
            .expect("a string takes all text");
        page.push_str(&list(&rows));
        page.push('\n');
    }
    features(&mut page);
    inexact(&mut page);
    page
}

/// What a guest may find to differ from a CPU.
fn inexact(page: &mut String) {
    page.push_str("\n## Not exact\n\nWhere a guest can see something else than on a CPU:\n\n");
    for item in INEXACT {
        writeln!(page, "- {item}").expect("a string takes all text");
    }
}

fn heading(treatment: Treatment) -> (String, &'static str) {
    match treatment {
        Treatment::Copied => (
            "Performed by the host's CPU".to_owned(),
            "The instruction runs as it is, with its memory operand and two registers replaced.",
        ),
        Treatment::Branch => ("Branches".to_owned(), "Made of the translator's own jumps."),
        Treatment::Nothing => ("Nothing to do".to_owned(), "They change nothing that a guest can see."),
        Treatment::Software => ("Performed in software".to_owned(), "Rust does what the instruction does."),
        Treatment::Hypervisor => (
            "Given to the hypervisor".to_owned(),
            "It emulates what Xen emulates for PV guests, and delivers a fault for the rest.",
        ),
        Treatment::Undefined(why) => (format!("#UD: {why}"), "Undefined by design."),
    }
}

/// Mnemonics with their numbers of forms, in lines of readable length.
fn list(rows: &[Row]) -> String {
    let mut text = String::new();
    let mut line = String::new();
    for (index, row) in rows.iter().enumerate() {
        let comma = if index + 1 == rows.len() { "" } else { "," };
        let item = if row.forms == 1 {
            format!("{}{comma}", row.mnemonic)
        } else {
            format!("{} {}{comma}", row.mnemonic, row.forms)
        };
        if line.len() + item.len() > 110 {
            text.push_str(line.trim_end());
            text.push('\n');
            line.clear();
        }
        line.push_str(&item);
        line.push(' ');
    }
    text.push_str(line.trim_end());
    text.push('\n');
    text
}

fn features(page: &mut String) {
    page.push_str(
        "## Features that depend on the host\n\nAn instruction whose feature the host lacks is #UD.\n\n\
         | feature | CPUID |\n| --- | --- |\n",
    );
    for row in host_features() {
        writeln!(page, "| {} | {} |", row.name, row.bit).expect("a string takes all text");
    }
}

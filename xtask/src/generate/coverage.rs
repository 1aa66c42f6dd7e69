//! docs/abi-coverage.md: every hypercall and sub-operation of the interface, and what is done of it.

use std::fmt::Write as _;

use paravane_abi::hypercall::{Arg, Family, Guests, Hypercall};
use paravane_abi::table::Numbered as _;
use paravane_hypervisor::Support;

const HEAD: &str = "\
<!-- Written by `cargo xtask generate` from the tables in crates/abi and crates/hypervisor. Do not edit. -->

# The interface

This page lists every hypercall that x86 Xen ever gave a number and its sub-operations, with what an unprivileged PV
domain gets on stock Xen, and what a 64-bit guest gets here. There are no 32-bit guests yet.

| here | is |
| --- | --- |
| supported | as on stock Xen, errors included |
| partly | not in all; the sentence says what is missing |
| absent | not at all: the guest gets the error, which is stock Xen's own unless that has the operation |

The column is the table `crates/hypervisor/src/support.rs`, from which hypercalls are answered. A test makes one request
of every row: what is absent returns its error, everything else succeeds.

";

/// The whole page.
pub(super) fn page() -> String {
    let mut page = String::from(HEAD);
    sums(&mut page);
    hypercalls(&mut page);
    for family in Family::ALL {
        sub_operations(&mut page, *family);
    }
    page
}

/// How many rows of the tables say what.
fn sums(page: &mut String) {
    let hypercalls = Hypercall::ALL.iter().map(|&hypercall| Support::of_hypercall(hypercall));
    let operations = Family::ALL
        .iter()
        .flat_map(|&family| family.rows().filter_map(move |op| Support::of_operation(family, op.row.number)));
    page.push_str("| | supported | partly | absent |\n| --- | ---: | ---: | ---: |\n");
    for (what, states) in
        [("hypercalls", hypercalls.collect::<Vec<_>>()), ("sub-operations", operations.collect::<Vec<_>>())]
    {
        let count = |wanted: fn(&Support) -> bool| states.iter().filter(|state| wanted(state)).count();
        let whole = count(|state| matches!(state, Support::Whole));
        let partly = count(|state| matches!(state, Support::Partly(_)));
        let absent = count(|state| matches!(state, Support::Absent(_)));
        writeln!(page, "| {what} | {whole} | {partly} | {absent} |")
            .expect("writing to a string cannot fail");
    }
    page.push('\n');
}

fn hypercalls(page: &mut String) {
    page.push_str("## Hypercalls\n\n| number | call | stock Xen | here | meaning |\n");
    page.push_str("| ---: | --- | --- | --- | --- |\n");
    for hypercall in Hypercall::ALL {
        let facts = hypercall.facts();
        let mut call = signature(hypercall.name(), hypercall.args64());
        if facts.guests == Guests::Bits64 {
            call.push_str(", 64-bit guests only");
        } else if hypercall.args32() != hypercall.args64() {
            call = format!("{call}, 32-bit: {}", signature(hypercall.name(), hypercall.args32()));
        }
        let (stock, here) = (facts.domu.to_string(), Support::of_hypercall(*hypercall).to_string());
        row(page, hypercall.row().number, &[&call, &stock, &here, hypercall.row().meaning]);
    }
}

fn sub_operations(page: &mut String, family: Family) {
    write!(
        page,
        "\n## {}\n\nNames begin with `{}`; from `{}`.\n\n",
        family.name(),
        family.prefix(),
        family.source()
    )
    .expect("writing to a string cannot fail");
    page.push_str("| number | name | argument | stock Xen | here | meaning |\n");
    page.push_str("| ---: | --- | --- | --- | --- | --- |\n");
    for op in family.rows() {
        let arg = if op.facts.arg.is_empty() { String::new() } else { code(op.facts.arg) };
        let here = Support::of_operation(family, op.row.number)
            .expect("the hypervisor's table has every operation")
            .to_string();
        let stock = op.facts.domu.to_string();
        row(page, op.row.number, &[&code(op.row.name), &arg, &stock, &here, op.row.meaning]);
    }
}

fn signature(name: &str, args: &[Arg]) -> String {
    let names: Vec<&str> = args.iter().map(|arg| arg.name).collect();
    code(&format!("{name}({})", names.join(", ")))
}

fn code(text: &str) -> String {
    format!("`{text}`")
}

fn row(page: &mut String, number: i64, cells: &[&str]) {
    write!(page, "| {number} |").expect("writing to a string cannot fail");
    for cell in cells {
        // A bar would end the cell.
        write!(page, " {} |", cell.replace('|', "\\|")).expect("writing to a string cannot fail");
    }
    page.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_every_table_is_on_the_page() {
        let page = page();

        for hypercall in Hypercall::ALL {
            let begins = format!("| {} | `{}(", hypercall.row().number, hypercall.name());
            assert!(page.contains(&begins), "{begins}");
        }
        for op in Family::ALL.iter().flat_map(|family| family.rows()) {
            assert!(page.contains(&format!("| {} | `{}` |", op.row.number, op.row.name)), "{op:?}");
        }
    }

    #[test]
    fn a_bar_does_not_end_a_cell() {
        let mut text = String::new();
        row(&mut text, 1, &["a|b"]);

        assert_eq!(text, "| 1 | a\\|b |\n");
    }
}

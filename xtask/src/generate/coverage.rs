//! docs/abi-coverage.md: every hypercall and sub-operation of the interface.

use std::fmt::Write as _;

use paravane_abi::hypercall::{Arg, Family, Guests, Hypercall};
use paravane_abi::table::Numbered as _;

const HEAD: &str = "\
<!-- Written by `cargo xtask generate` from the tables in crates/abi. Do not edit. -->

# The interface

This page lists every hypercall that x86 Xen ever gave a number, its sub-operations, and what an unprivileged PV
domain gets from it on stock Xen. It is what the tables in `crates/abi` know; a row here does not say that
Paravane serves the call.

";

/// The whole page.
pub(super) fn page() -> String {
    let mut page = String::from(HEAD);
    hypercalls(&mut page);
    for family in Family::ALL {
        sub_operations(&mut page, *family);
    }
    page
}

fn hypercalls(page: &mut String) {
    page.push_str("## Hypercalls\n\n| number | call | a domU gets | meaning |\n| ---: | --- | --- | --- |\n");
    for hypercall in Hypercall::ALL {
        let facts = hypercall.facts();
        let mut call = signature(hypercall.name(), hypercall.args64());
        if facts.guests == Guests::Bits64 {
            call.push_str(", 64-bit guests only");
        } else if hypercall.args32() != hypercall.args64() {
            call = format!("{call}, 32-bit: {}", signature(hypercall.name(), hypercall.args32()));
        }
        row(page, hypercall.row().number, &[&call, &facts.domu.to_string(), hypercall.row().meaning]);
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
    page.push_str("| number | name | argument | a domU gets | meaning |\n| ---: | --- | --- | --- | --- |\n");
    for op in family.rows() {
        let arg = if op.facts.arg.is_empty() { String::new() } else { code(op.facts.arg) };
        row(page, op.row.number, &[&code(op.row.name), &arg, &op.facts.domu.to_string(), op.row.meaning]);
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

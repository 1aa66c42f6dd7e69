//! `paravane encode selector`: index, table and ring as the sixteen bits of a segment register.

use paravane_x86::{
    gdt,
    mode::Mode,
    selector::{Ring, Selector, Table},
    submit::raise_rpl,
};

use crate::{
    cli::encode::{SelectorArgs, TableArg},
    commands::selector,
    failure::Failure,
    input,
    output::Answer,
};

/// Encodes what `args` describe.
///
/// # Errors
///
/// [`Failure::Usage`] if the index does not fit in 13 bits.
pub(in crate::commands) fn encode(args: &SelectorArgs) -> Result<Answer, Failure> {
    let chosen = args.mode.chosen()?;
    let mode = chosen.unwrap_or(Mode::Guest64);
    let index = input::number(&args.index, 13, "the index of a descriptor")?;
    let table = match args.table {
        TableArg::Gdt => Table::Gdt,
        TableArg::Ldt => Table::Ldt,
    };
    let rpl = args.rpl.map_or(gdt::kernel_ring(mode), Ring::from_bits);
    let selector = u16::try_from(index)
        .ok()
        .and_then(|index| Selector::new(index, table, rpl))
        .ok_or_else(|| Failure::Usage(format!("looked for an index of 0 to 8191, found {index}")))?;
    let mut answer = selector::answer(selector, chosen);
    answer.page.title = format!("{selector}: {table} entry {index}, RPL {rpl}");
    let raised = raise_rpl(mode, selector);
    if raised != selector && !selector.is_null() {
        // The sources stay at the end.
        let sources = answer.page.blocks.pop();
        answer.page.text(format!(
            "Where Xen keeps selectors for a {} (its registers, its trap table), it makes this one {raised}: the RPL is \
             at least the guest kernel's ring.",
            mode.guest()
        ));
        answer.page.blocks.extend(sources);
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{DrawableOutput, ModeArgs};

    fn title(index: &str, table: TableArg, rpl: Option<u8>) -> Result<String, Failure> {
        let args = SelectorArgs {
            index: index.to_owned(),
            table,
            rpl,
            mode: ModeArgs { guest: None, hypervisor: None },
            output: DrawableOutput { json: false, svg: false },
        };
        encode(&args).map(|answer| answer.page.title)
    }

    #[test]
    fn index_table_and_ring_make_a_selector() {
        for (index, table, rpl, expected) in [
            ("7174", TableArg::Gdt, None, "0xe033: GDT entry 7174, RPL 3"),
            ("0x1c05", TableArg::Gdt, Some(3), "0xe02b: GDT entry 7173, RPL 3"),
            ("1", TableArg::Ldt, Some(0), "0x000c: LDT entry 1, RPL 0"),
            ("8191", TableArg::Ldt, Some(3), "0xffff: LDT entry 8191, RPL 3"),
        ] {
            assert_eq!(title(index, table, rpl).unwrap(), expected);
        }
        assert!(title("8192", TableArg::Gdt, None).unwrap_err().to_string().contains("13 bits"));
    }
}

//! `paravane decode rflags|cr0|cr4`: the bits of a register, and what a PV guest has of them.

use paravane_x86::{
    bits::{self, BitField, FieldValue},
    flags::{CR0, CR4, CR4_GUEST, CR4_SHOWN, RFLAGS, rflags},
};
use serde_json::{Value, json};

use super::bit_table;
use crate::{
    cli::decode::BitsArgs,
    failure::Failure,
    input,
    output::{
        Answer,
        page::{Block, Page},
    },
};

/// The registers that can be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    /// Flags.
    Rflags,
    /// Control register 0.
    Cr0,
    /// Control register 4.
    Cr4,
}

impl Register {
    fn name(self) -> &'static str {
        match self {
            Self::Rflags => "RFLAGS",
            Self::Cr0 => "CR0",
            Self::Cr4 => "CR4",
        }
    }

    fn table(self) -> &'static [BitField] {
        match self {
            Self::Rflags => RFLAGS,
            Self::Cr0 => CR0,
            Self::Cr4 => CR4,
        }
    }
}

/// Decodes each value of `args` as `register`.
///
/// # Errors
///
/// If a value is no 64-bit number.
pub(super) fn decode(args: &BitsArgs, register: Register) -> Result<Answer, Failure> {
    let values = input::numbers(&args.values, args.file.as_deref(), 64, register.name())?;
    let pages = values.iter().map(|&value| describe(register, value)).collect();
    let json: Vec<Value> = values.iter().map(|&value| to_json(register, value)).collect();
    Ok(Answer { page: super::join(register.name(), pages), json: json!(json) })
}

fn fields(register: Register, value: u64) -> Vec<FieldValue> {
    bits::decode(register.table(), value).collect()
}

fn describe(register: Register, value: u64) -> Page {
    let mut page = Page::new(format!("{} {value:#x}: {}", register.name(), headline(register, value)));
    page.push(Block::Bits(bit_table::diagram(register.table(), value, bit_table::width(value))));
    let remarks = remarks(register, value);
    if !remarks.is_empty() {
        page.fields(remarks.into_iter().map(|remark| ("note", remark)));
    }
    bit_table::describe(&mut page, &fields(register, value));
    page.sources([
        match register {
            Register::Rflags => "AMD APM vol. 2, \"RFLAGS Register\"",
            Register::Cr0 => "AMD APM vol. 2, \"CR0 Register\"",
            Register::Cr4 => "AMD APM vol. 2, \"CR4 Register\"",
        },
        "xen/arch/x86/pv/emul-priv-op.c",
    ]);
    page
}

/// The names of what is set; of a group also its value.
fn headline(register: Register, value: u64) -> String {
    let set: Vec<String> = fields(register, value)
        .into_iter()
        .filter(|field| field.value != 0 && field.field.name != "1")
        .map(|field| {
            let name = field.field.name;
            if field.field.high == field.field.low {
                name.to_owned()
            } else {
                format!("{name}={}", field.value)
            }
        })
        .collect();
    if set.is_empty() { "nothing set".to_owned() } else { set.join(" ") }
}

fn remarks(register: Register, value: u64) -> Vec<String> {
    let mut remarks = Vec::new();
    let reserved = bits::unnamed(register.table(), value);
    if reserved != 0 {
        remarks.push(format!("reserved bits are set: {reserved:#x}"));
    }
    match register {
        Register::Rflags => {
            if value & rflags::FIXED == 0 {
                remarks.push("bit 1 is clear, which no CPU shows".to_owned());
            }
            if value & rflags::IF == 0 {
                remarks.push(
                    "IF is clear: in a frame that a PV guest finds on its stack that means events were masked; the \
                     register itself always has it set while a PV guest runs"
                        .to_owned(),
                );
            }
        }
        Register::Cr0 => {}
        Register::Cr4 => {
            for (bits, what) in [
                (value & CR4_GUEST, "a PV guest that writes this keeps, where its CPUID has the feature"),
                (
                    value & !(CR4_GUEST | CR4_SHOWN) & !reserved,
                    "a PV guest that writes this loses without an error",
                ),
            ] {
                if bits != 0 {
                    remarks.push(format!("{what}: {}", headline(register, bits)));
                }
            }
        }
    }
    remarks
}

fn to_json(register: Register, value: u64) -> Value {
    json!({
        "register": register.name(),
        "value": format!("{value:#x}"),
        "reserved_bits_set": format!("{:#x}", bits::unnamed(register.table(), value)),
        "notes": remarks(register, value),
        "fields": fields(register, value),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(register: Register, value: u64) -> String {
        let rendered = crate::output::text::render(&describe(register, value), 100);
        anstream::adapter::strip_str(&rendered).to_string()
    }

    #[test]
    fn the_flags_of_a_running_guest() {
        insta::assert_snapshot!(text(Register::Rflags, 0x246));
    }

    #[test]
    fn a_cr4_of_linux() {
        insta::assert_snapshot!(text(Register::Cr4, 0x7426f0));
    }

    #[test]
    fn the_first_line_names_what_is_set() {
        for (register, value, line) in [
            (Register::Rflags, 0x2, "RFLAGS 0x2: nothing set"),
            (Register::Rflags, 0x3202, "RFLAGS 0x3202: IF IOPL=3"),
            (Register::Cr0, 0x8005_003b, "CR0 0x8005003b: PE MP TS ET NE WP AM PG"),
        ] {
            assert_eq!(text(register, value).lines().next(), Some(line));
        }
    }

    #[test]
    fn what_cannot_be_is_remarked() {
        assert!(text(Register::Rflags, 0x200).contains("bit 1 is clear"));
        assert!(text(Register::Rflags, 0x8202).contains("reserved bits are set: 0x8000"));
        assert!(text(Register::Cr4, 1 << 7).contains("loses without an error: PGE"));
    }
}

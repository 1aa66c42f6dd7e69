//! `paravane decode hypercall`: a hypercall by number or name, or one of its sub-operations by name.

use paravane_abi::{
    errno::Errno,
    hypercall::{
        Arg, ArgKind, CONVENTION, Direction, DomU, Family, Guests, Hypercall, Length, NumberUse, SubOp,
        TABLE_SIZE, Wide, describe as use_of,
    },
    layout::Abi,
    table::Numbered,
};
use paravane_x86::{gdt, hypercall_page::SLOT_BYTES};
use serde_json::{Value, json};

use crate::{
    cli::decode::HypercallArgs,
    failure::Failure,
    input,
    output::{Answer, page::Page},
};

/// What a word of the command line names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// A hypercall's number, defined or not.
    Number(u32),
    /// A sub-operation of one.
    Operation(Family, SubOp),
}

/// Decodes each number or name in `args`.
///
/// # Errors
///
/// If one is neither a number of 32 bits nor a known name.
pub(super) fn decode(args: &HypercallArgs) -> Result<Answer, Failure> {
    let named = args.values.iter().map(|text| read(text)).collect::<Result<Vec<_>, _>>()?;
    let pages = named.iter().map(|&named| {
        let mut page = describe(named, &Abi::ALL);
        page.sources(sources(named));
        page
    });
    let json: Vec<Value> = named.iter().map(|&named| to_json(named)).collect();
    Ok(Answer { page: super::join("Hypercalls", pages.collect()), json: json!(json) })
}

/// Reads `26`, `0x1a`, `mmuext_op`, `HYPERVISOR_mmuext_op`, `__HYPERVISOR_mmuext_op` or `MMUEXT_SET_LDT`.
pub(super) fn read(text: &str) -> Result<Named, Failure> {
    let lower = text.to_ascii_lowercase();
    let name = lower.trim_start_matches("__").trim_start_matches("hypervisor_");
    if let Some(hypercall) = Hypercall::from_name(name) {
        return Ok(Named::Number(hypercall.number()));
    }
    let operation = Family::ALL.iter().find_map(|&family| {
        let found = family.rows().find(|op| full_name(family, op).eq_ignore_ascii_case(text))?;
        Some(Named::Operation(family, found))
    });
    if let Some(operation) = operation {
        return Ok(operation);
    }
    let looks_like_a_number = text.starts_with(|c: char| c.is_ascii_digit());
    if !looks_like_a_number {
        let near = near(name);
        let hint = if near.is_empty() {
            "`paravane explain hypercalls` lists them".to_owned()
        } else {
            format!("is it {}?", near.join(" or "))
        };
        return Err(Failure::Usage(format!("no hypercall is called \"{}\": {hint}", text.escape_debug())));
    }
    let number = input::number(text, 32, "hypercall number")?;
    u32::try_from(number)
        .map(Named::Number)
        .map_err(|_| Failure::Usage(format!("a hypercall number has 32 bits, and {text} needs more")))
}

/// Hypercalls whose names contain `part`, or are contained in it.
fn near(part: &str) -> Vec<&'static str> {
    let names = Hypercall::ALL.iter().map(|hypercall| hypercall.name());
    names.filter(|name| part.len() > 2 && (name.contains(part) || part.contains(name))).take(4).collect()
}

fn full_name(family: Family, op: &SubOp) -> String {
    format!("{}{}", family.prefix(), op.row.name)
}

/// The families of sub-operations of `hypercall`: those its arguments name, and those inside the structures
/// that it takes.
pub(super) fn families(hypercall: Hypercall) -> Vec<Family> {
    let named = |family: &Family| {
        let argument = hypercall.args64().iter().any(|arg| arg.kind == ArgKind::Command(*family));
        let callback = hypercall == Hypercall::CallbackOp && *family == Family::CallbackType;
        argument || callback || family.name() == hypercall.name()
    };
    Family::ALL.iter().copied().filter(named).collect()
}

/// The hypercalls that take operations of `family`.
fn callers(family: Family) -> impl Iterator<Item = Hypercall> {
    Hypercall::ALL.iter().copied().filter(move |&hypercall| families(hypercall).contains(&family))
}

/// Everything about what `named` names, for guests of `abis`; the sources are [`sources`].
pub(super) fn describe(named: Named, abis: &[Abi]) -> Page {
    match named {
        Named::Number(number) => match use_of(number) {
            NumberUse::Defined(hypercall) => describe_hypercall(hypercall, abis),
            unused @ (NumberUse::UnusedArch(_) | NumberUse::Unused | NumberUse::OutOfTable) => {
                describe_unused(number, unused)
            }
        },
        Named::Operation(family, op) => describe_operation(family, op),
    }
}

/// Where the facts about `named` come from.
pub(super) fn sources(named: Named) -> Vec<&'static str> {
    match named {
        Named::Number(number) => match use_of(number) {
            NumberUse::Defined(_) => vec![<Hypercall as Numbered>::SOURCE, "xen/include/hypercall-defs.c"],
            NumberUse::UnusedArch(_) | NumberUse::Unused | NumberUse::OutOfTable => {
                vec![<Hypercall as Numbered>::SOURCE]
            }
        },
        Named::Operation(family, _) => vec![family.source()],
    }
}

fn describe_hypercall(hypercall: Hypercall, abis: &[Abi]) -> Page {
    let facts = hypercall.facts();
    let number = hypercall.number();
    let mut page = Page::new(format!("Hypercall {number}, {}: {}", hypercall.name(), hypercall.meaning()));
    page.fields([
        ("number", format!("{number} ({number:#x}), __HYPERVISOR_{}", hypercall.name())),
        ("slot", format!("offset {:#x} of the hypercall page", number as usize * SLOT_BYTES)),
        (
            "guests",
            if exists(hypercall, Abi::Bits32) { "64-bit and 32-bit" } else { "64-bit only" }.to_owned(),
        ),
        ("for a domU", facts.domu.to_string()),
    ]);
    // One table where the ABIs differ in nothing but their registers.
    let agree = hypercall.args64() == hypercall.args32();
    let tables: Vec<&[Abi]> = if agree { vec![abis] } else { abis.chunks(1).collect() };
    for shown in tables {
        arguments(&mut page, hypercall, shown);
    }
    for family in families(hypercall) {
        operations(&mut page, family);
    }
    page
}

/// Whether guests of that ABI have the hypercall.
pub(super) fn exists(hypercall: Hypercall, abi: Abi) -> bool {
    match (hypercall.facts().guests, abi) {
        (Guests::Both, _) | (Guests::Bits64, Abi::Bits64) => true,
        (Guests::Bits64, Abi::Bits32) => false,
    }
}

/// The arguments of guests of that ABI.
pub(super) fn arguments_of(hypercall: Hypercall, abi: Abi) -> &'static [Arg] {
    match abi {
        Abi::Bits64 => hypercall.args64(),
        Abi::Bits32 => hypercall.args32(),
    }
}

/// The call of guests of `abis`, which take the same arguments, register by register.
fn arguments(page: &mut Page, hypercall: Hypercall, abis: &[Abi]) {
    let (callers, others): (Vec<Abi>, Vec<Abi>) = abis.iter().partition(|abi| exists(hypercall, **abi));
    for abi in others {
        page.text(format!("A {abi} guest does not have it, and gets {}.", Errno::Enosys));
    }
    let Some(&first) = callers.first() else { return };
    let list = arguments_of(hypercall, first);
    let ways: Vec<String> = callers
        .iter()
        .map(|&abi| format!("a {abi} guest makes it by {}", CONVENTION.get(abi).instruction))
        .collect();
    page.text(format!("{}.", super::capitalized(&ways.join(", "))));
    let mut columns: Vec<&str> = callers
        .iter()
        .map(|abi| match abi {
            Abi::Bits64 => "64-bit",
            Abi::Bits32 => "32-bit",
        })
        .collect();
    columns.extend(["Argument", "What it is"]);
    let row = |registers: Vec<&str>, name: &str, what: String| {
        let registers = registers.into_iter().map(str::to_owned);
        registers.chain([name.to_owned(), what]).collect::<Vec<String>>()
    };
    let numbers = callers.iter().map(|&abi| CONVENTION.get(abi).number).collect();
    let mut rows = vec![row(numbers, "number", hypercall.number().to_string())];
    rows.extend(list.iter().enumerate().map(|(index, arg)| {
        let registers = callers.iter().map(|&abi| CONVENTION.get(abi).arguments[index]).collect();
        row(registers, arg.name, kind(arg.kind, list))
    }));
    page.table(&columns, rows);
}

fn kind(kind: ArgKind, args: &[Arg]) -> String {
    match kind {
        ArgKind::Command(family) => format!("number of a sub-operation ({}…), below", family.prefix()),
        ArgKind::Pointer(pointer) => {
            let element =
                if pointer.element == "*" { "a structure of the operation's" } else { pointer.element };
            let direction = match pointer.direction {
                Direction::In => "read by Xen",
                Direction::Out => "written by Xen",
                Direction::InOut => "read and written by Xen",
            };
            format!("pointer to {element}{}; {direction}", length(pointer.length, args))
        }
        ArgKind::Count => "number of elements".to_owned(),
        ArgKind::Number => "a number".to_owned(),
        ArgKind::Word => "a machine word".to_owned(),
        ArgKind::Bool => "zero or not".to_owned(),
        ArgKind::Virtual => "a virtual address".to_owned(),
        ArgKind::Code => "virtual address of a handler".to_owned(),
        ArgKind::Selector => "a segment selector".to_owned(),
        ArgKind::DebugRegister => "number of a debug register, 0 to 7".to_owned(),
        ArgKind::Domain => "a domain".to_owned(),
        ArgKind::ForeignDomain => {
            "domain that owns the frames; in bits 31..16, plus one, the one that owns the tables".to_owned()
        }
        ArgKind::Vcpu => "a vCPU".to_owned(),
        ArgKind::FlushFlags => "what to flush from the TLB, with a pointer to the vCPUs".to_owned(),
        ArgKind::Wide(wide) => wide_text(wide).to_owned(),
        ArgKind::Low(wide) => format!("low 32 bits of {}", wide_text(wide)),
        ArgKind::High(wide) => format!("high 32 bits of {}", wide_text(wide)),
    }
}

/// How many elements a pointer leads to, in words that follow their name.
fn length(length: Length, args: &[Arg]) -> String {
    let name = |index: u8| args.get(usize::from(index)).map_or("another argument", |arg| arg.name);
    match length {
        Length::One => String::new(),
        Length::Arg(index) => format!(", as many as {} says", name(index)),
        Length::DescriptorFrames(index) => {
            format!(", one for every {} of {}", gdt::ENTRIES_PER_PAGE, name(index))
        }
        Length::UntilNullAddress => ", up to one with address 0".to_owned(),
    }
}

fn wide_text(wide: Wide) -> &'static str {
    match wide {
        Wide::MachineAddress => "a machine address",
        Wide::Descriptor => "a segment descriptor",
        Wide::PageTableEntry => "a page-table entry",
        Wide::TimeNs => "a system time in nanoseconds, or 0 for none",
    }
}

fn operations(page: &mut Page, family: Family) {
    page.heading(format!("Sub-operations of {}", family.name()));
    // A column that would say the same in every row is left out.
    let with_domu = family.rows().any(|op| op.facts.domu != DomU::Available);
    let mut columns = vec!["#", "Name"];
    columns.extend(with_domu.then_some("In a domU"));
    columns.push("Meaning");
    page.table(
        &columns,
        family.rows().map(|op| {
            let mut row = vec![op.row.number.to_string(), full_name(family, &op)];
            if with_domu {
                row.push(domu_in_short(op.facts.domu));
            }
            row.push(match op.facts.arg {
                "" => op.row.meaning.to_owned(),
                arg => format!("{} Takes {arg}.", op.row.meaning),
            });
            row
        }),
    );
}

/// What an unprivileged domain gets, short enough for a column.
pub(super) fn domu_in_short(domu: DomU) -> String {
    match domu {
        DomU::Available => "yes".to_owned(),
        DomU::Refused(errno) => errno.to_string(),
        DomU::Optional(errno) => format!("{errno} unless enabled"),
        DomU::Removed(errno) => format!("{errno}, removed"),
        DomU::Internal(errno) => format!("{errno}, internal"),
    }
}

fn describe_unused(number: u32, unused: NumberUse) -> Page {
    let mut page = Page::new(format!("Hypercall {number}: {unused}, so -ENOSYS"));
    page.text(match unused {
        NumberUse::OutOfTable => format!(
            "Xen's table ends at {}. The hypercall page has stubs up to 127 all the same.",
            TABLE_SIZE - 1
        ),
        NumberUse::UnusedArch(index) => {
            format!("__HYPERVISOR_arch_{index} is left to the architecture, and x86 gives it no meaning.")
        }
        NumberUse::Unused | NumberUse::Defined(_) => "Xen's table has nothing there.".to_owned(),
    });
    page
}

fn describe_operation(family: Family, op: SubOp) -> Page {
    let mut page = Page::new(format!("{}: {}", full_name(family, &op), op.row.meaning));
    let by: Vec<String> = callers(family)
        .map(|hypercall| format!("hypercall {}, {}", hypercall.number(), hypercall.name()))
        .collect();
    let by = if by.is_empty() { family.name().to_owned() } else { by.join(" and ") };
    let argument = if op.facts.arg.is_empty() { "none" } else { op.facts.arg };
    page.fields([
        ("number", format!("{} ({:#x})", op.row.number, op.row.number)),
        ("of", by),
        ("argument", argument.to_owned()),
        ("for a domU", op.facts.domu.to_string()),
    ]);
    page
}

fn to_json(named: Named) -> Value {
    match named {
        Named::Number(number) => {
            let used = use_of(number);
            let hypercall = Hypercall::from_number(number);
            json!({
                "number": number,
                "name": hypercall.map(Hypercall::name),
                "use": used,
                "meaning": hypercall.map(Hypercall::meaning),
                "errno": used.errno(),
                "guests": hypercall.map(|hypercall| hypercall.facts().guests),
                "domu": hypercall.map(|hypercall| hypercall.facts().domu),
                "args64": hypercall.map(Hypercall::args64),
                "args32": hypercall.map(Hypercall::args32),
                "operations": hypercall
                    .into_iter()
                    .flat_map(families)
                    .flat_map(Family::rows)
                    .collect::<Vec<SubOp>>(),
            })
        }
        Named::Operation(family, op) => json!({
            "family": family,
            "hypercalls": callers(family).map(Hypercall::name).collect::<Vec<_>>(),
            "name": full_name(family, &op),
            "operation": op,
            "errno": DomU::errno(op.facts.domu),
        }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(word: &str) -> String {
        let rendered = crate::output::text::render(&describe(read(word).unwrap(), &Abi::ALL), 100);
        anstream::adapter::strip_str(&rendered).to_string()
    }

    #[test]
    fn a_hypercall_with_sub_operations() {
        insta::assert_snapshot!(text("25"));
    }

    #[test]
    fn a_hypercall_whose_arguments_differ() {
        insta::assert_snapshot!(text("update_descriptor"));
    }

    #[test]
    fn every_spelling_names_the_same_hypercall() {
        for word in ["26", "0x1a", "mmuext_op", "MMUEXT_OP", "HYPERVISOR_mmuext_op", "__HYPERVISOR_mmuext_op"]
        {
            assert_eq!(read(word).unwrap(), Named::Number(26), "{word}");
        }
        for (word, part) in [
            ("set_ldt", "no hypercall is called \"set_ldt\""),
            ("gdt", "is it set_gdt?"),
            ("0x100000000", "has 32 bits"),
            ("12x", "looked for a number"),
            ("", "no hypercall"),
        ] {
            let message = read(word).unwrap_err().to_string();
            assert!(message.contains(part), "{word}: {message}");
        }
    }

    #[test]
    fn sub_operations_are_found_by_their_full_names() {
        for &family in Family::ALL {
            for op in family.rows() {
                let name = full_name(family, &op);
                let Named::Operation(_, found) = read(&name).unwrap() else {
                    panic!("{name} is a hypercall");
                };
                assert_eq!(found.row.name, op.row.name, "{name}");
            }
        }
        assert!(text("MMUEXT_SET_LDT").contains("hypercall 26, mmuext_op"));
    }

    #[test]
    fn numbers_without_meaning_say_so() {
        assert!(text("11").starts_with("Hypercall 11: unused, so -ENOSYS"));
        assert!(text("52").contains("arch_4"));
        assert!(text("64").contains("ends at 63"));
    }

    proptest! {
        #[test]
        fn any_word_is_read_or_refused(word: String) {
            drop(read(&word));
        }
    }
}

//! `paravane explain hypercalls`: the whole table, or one call with all that belongs to it.
//!
//! One call is described as `paravane decode hypercall` does, and then the structures follow that it takes.

use paravane_abi::{
    hypercall::{ArgKind, CONVENTION, Guests, Hypercall, NumberUse, TABLE_SIZE, describe},
    layout::{Abi, Layout},
    structures,
};

use crate::{
    cli::Hypercalls,
    commands::hypercall::{self, Named},
    failure::Failure,
    output::page::Page,
};

/// The page that `arguments` ask for.
pub(super) fn page(arguments: &Hypercalls) -> Result<Page, Failure> {
    let abis: Vec<Abi> =
        arguments.mode.chosen()?.map_or_else(|| Abi::ALL.to_vec(), |mode| vec![super::abi(mode)]);
    match &arguments.hypercall {
        None => Ok(table(&abis)),
        Some(text) => one(text, &abis),
    }
}

fn table(abis: &[Abi]) -> Page {
    let defined = Hypercall::ALL.len();
    let mut page = Page::new(format!("The {TABLE_SIZE} hypercall numbers of Xen x86"));
    page.text(format!(
        "A PV guest calls the hypervisor by number. {defined} of the {TABLE_SIZE} numbers have a meaning; the others, and \
         all from {TABLE_SIZE} on, return ENOSYS. The column \"In a domU\" says whether an unprivileged domain can use it, \
         or else which error it gets. For one of them with its arguments, sub-operations and structures, name it: \
         `paravane explain hypercalls memory_op`."
    ));
    registers(&mut page, abis);
    page.heading("Numbers");
    page.table(
        &["#", "Name", "In a domU", "Meaning"],
        (0..TABLE_SIZE).map(|number| {
            let usage = describe(number);
            let (domu, meaning) = match usage {
                NumberUse::Defined(call) => (hypercall::domu_in_short(call.facts().domu), meaning(call)),
                NumberUse::UnusedArch(_) | NumberUse::Unused | NumberUse::OutOfTable => {
                    (usage.errno().map_or_else(String::new, |errno| errno.to_string()), String::new())
                }
            };
            vec![number.to_string(), usage.to_string(), domu, meaning]
        }),
    );
    page.heading("Arguments");
    page.table(
        &["#", "Name", "Arguments in order"],
        Hypercall::ALL.iter().flat_map(|&call| argument_rows(call, abis)),
    );
    super::see_also(&mut page, &["explain hypercall-page", "decode hypercall", "decode errno"]);
    page.sources(["xen/include/public/xen.h", "xen/include/hypercall-defs.c", "xen/arch/x86/pv/hypercall.c"]);
    page
}

fn meaning(call: Hypercall) -> String {
    match call.facts().guests {
        Guests::Both => call.meaning().to_owned(),
        Guests::Bits64 => format!("{} 64-bit guests only.", call.meaning()),
    }
}

/// One row if the ABIs asked for agree on the arguments, else one for each.
fn argument_rows(call: Hypercall, abis: &[Abi]) -> Vec<Vec<String>> {
    let names = |abi: Abi| {
        let names: Vec<&str> = hypercall::arguments_of(call, abi).iter().map(|arg| arg.name).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    };
    let abis: Vec<Abi> = abis.iter().copied().filter(|&abi| hypercall::exists(call, abi)).collect();
    let agree = abis.windows(2).all(|pair| names(pair[0]) == names(pair[1]));
    let shown = if agree { &abis[..abis.len().min(1)] } else { &abis[..] };
    shown
        .iter()
        .map(|&abi| {
            let list = if agree { names(abi) } else { format!("{abi}: {}", names(abi)) };
            vec![call.number().to_string(), call.to_string(), list]
        })
        .collect()
}

/// Everything about the hypercall or sub-operation that `text` names.
fn one(text: &str, abis: &[Abi]) -> Result<Page, Failure> {
    let named = hypercall::read(&text.replace('-', "_"))?;
    let mut page = hypercall::describe(named, abis);
    for layout in structures_of(named) {
        super::structure(&mut page, layout, abis);
    }
    if named == Named::Number(Hypercall::Iret.number()) {
        page.text("What it takes lies on the stack: see paravane explain iret.");
    }
    page.sources(hypercall::sources(named));
    Ok(page)
}

/// The layouts of the structures that it takes, each once.
fn structures_of(named: Named) -> Vec<&'static Layout> {
    let names: Vec<&str> = match named {
        Named::Operation(_, op) => vec![op.facts.arg],
        Named::Number(number) => {
            let Some(call) = Hypercall::from_number(number) else { return Vec::new() };
            let pointers = call.args64().iter().filter_map(|arg| {
                if let ArgKind::Pointer(pointer) = arg.kind { Some(pointer.element) } else { None }
            });
            let operations = hypercall::families(call).into_iter().flat_map(|family| family.rows());
            pointers.chain(operations.map(|op| op.facts.arg)).collect()
        }
    };
    let mut layouts: Vec<&Layout> = Vec::new();
    for layout in names.into_iter().filter_map(structures::find) {
        if !layouts.contains(&layout) {
            layouts.push(layout);
        }
    }
    layouts
}

/// The registers of a hypercall in each of `abis`.
pub(super) fn registers(page: &mut Page, abis: &[Abi]) {
    page.heading("Registers");
    page.table(
        &["Guest", "Instruction", "Number", "Arguments 1 to 5", "Result", "Lost"],
        abis.iter().map(|&abi| {
            let convention = CONVENTION.get(abi);
            vec![
                abi.to_string(),
                convention.instruction.to_owned(),
                convention.number.to_owned(),
                convention.arguments.join(", "),
                convention.result.to_owned(),
                convention.lost.to_owned(),
            ]
        }),
    );
}

//! `paravane explain transition`: how control passes, as a list of ways or as the steps of one.

use paravane_x86::{
    bounce_frame::{
        self, FAILSAFE_32, FAILSAFE_64, FRAME_32, FRAME_64, FrameWord, SAVED_MASK_SHIFT_64, When,
    },
    mode::{Guest, Mode},
    transitions::{self, PlayedChange, Register, star},
};

use crate::{cli::Transition, failure::Failure, output::page::Page};

/// The page that `arguments` ask for.
pub(super) fn page(arguments: &Transition) -> Result<Page, Failure> {
    let chosen = arguments.mode.chosen()?.map(Mode::guest);
    match &arguments.name {
        None => Ok(list(chosen)),
        Some(name) => one(name, chosen),
    }
}

fn list(chosen: Option<Guest>) -> Page {
    let guests: Vec<Guest> = chosen.map_or_else(|| vec![Guest::Bits64, Guest::Bits32], |guest| vec![guest]);
    let mut page = Page::new("How control passes between guest and hypervisor");
    page.text(opening(&guests));
    for &guest in &guests {
        page.heading(format!("Transitions of a {guest}"));
        let rows = transitions::all().filter(|transition| transition.guest == guest);
        page.table(
            &["Name", "From", "To", "What it is"],
            rows.map(|transition| {
                vec![
                    transition.name.to_owned(),
                    transition.from.to_string(),
                    transition.to.to_string(),
                    transition.title.to_owned(),
                ]
            }),
        );
    }
    let example = transitions::all().find(|transition| guests.contains(&transition.guest));
    page.text(format!(
        "For the steps of one, each with the registers before and after, name it, as in `paravane explain transition {}`.",
        example.map_or("", |transition| transition.name)
    ));
    msrs(&mut page);
    frames(&mut page, &guests);
    super::see_also(
        &mut page,
        &["explain segments", "explain hypercall-page", "explain iret", "decode rflags"],
    );
    page.sources([
        "AMD APM vol. 2, \"SYSCALL and SYSRET\"",
        "Intel SDM vol. 3A, \"Fast System Calls in 64-Bit Mode\"",
        "xen/arch/x86/x86_64/entry.S",
        "xen/arch/x86/x86_64/compat/entry.S",
        "xen/arch/x86/pv/domain.c (toggle_guest_mode)",
    ]);
    page
}

fn opening(guests: &[Guest]) -> String {
    let mut sentences = Vec::new();
    if guests.contains(&Guest::Bits64) {
        sentences.push(format!(
            "Kernel and programs of a 64-bit guest are both in ring 3; which of them runs is a bit that the hypervisor \
             keeps. It decides whether SYSCALL is a hypercall (kernel) or a system call for the guest's kernel (program), \
             and with it the hypervisor changes the page-table root and the GS base. CS and RIP decide nothing. The \
             hypervisor enters the guest by SYSRET where it can, so handlers start with CS = {} and SS = {}, and RCX and \
             R11 travel in the frame.",
            star::SYSRETQ_CS,
            star::SYSRET_SS
        ));
    }
    if guests.contains(&Guest::Bits32) {
        sentences.push(
            "The kernel of a 32-bit guest is in ring 1, its programs are in ring 3. INT 0x82 from ring 1 is a hypercall; the \
             gate's privilege keeps programs from it. There is one page-table root for both."
                .to_owned(),
        );
    }
    sentences.push(
        "RFLAGS.IF is always set while a guest runs: the guest's interrupt flag is the event mask in vcpu_info.".to_owned(),
    );
    sentences.join(" ")
}

fn msrs(page: &mut Page) {
    page.heading("What the hypervisor keeps in the CPU's entry MSRs");
    page.table(
        &["MSR", "Name", "Value", "What it is for"],
        star::ENTRY_MSRS.iter().map(|msr| {
            vec![
                format!("{:#x}", msr.number),
                msr.name.to_owned(),
                msr.value.map_or_else(|| "differs per CPU".to_owned(), |value| format!("{value:#x}")),
                msr.meaning.to_owned(),
            ]
        }),
    );
    page.text(format!(
        "So SYSCALL enters the hypervisor with CS = {} and SS = {}; SYSRET enters 64-bit guest code with CS = {} and 32-bit \
         code with CS = {}, both with SS = {}. The guest cannot write these MSRs; its entry points are set by \
         callback_op.",
        star::SYSCALL_CS,
        star::SYSCALL_SS,
        star::SYSRETQ_CS,
        star::SYSRETL_CS,
        star::SYSRET_SS
    ));
}

fn frames(page: &mut Page, guests: &[Guest]) {
    for &guest in guests {
        let (ordinary, failsafe, word): (&[FrameWord], &[FrameWord], usize) = match guest {
            Guest::Bits64 => (&FRAME_64, &FAILSAFE_64, 8),
            Guest::Bits32 => (&FRAME_32, &FAILSAFE_32, 4),
        };
        page.heading(format!("The frame on the stack of a {guest}'s handler, from low to high"));
        frame(page, ordinary);
        page.text(format!(
            "Each word has {word} bytes. {} The handler returns by the iret hypercall.",
            match guest {
                Guest::Bits64 => format!(
                    "The stack is aligned down to {} bytes first. A handler that compares the saved CS must look at its \
                     low bits only: from bit {SAVED_MASK_SHIFT_64} up stands the event mask.",
                    bounce_frame::STACK_ALIGN_64
                ),
                Guest::Bits32 => "The stack is not aligned.".to_owned(),
            }
        ));
        page.text(
            "The failsafe callback, which comes when a segment register of the guest's cannot be loaded any more, has a \
             frame of its own:",
        );
        frame(page, failsafe);
    }
}

fn frame(page: &mut Page, words: &[FrameWord]) {
    page.table(
        &["Word", "There", "Content"],
        words.iter().map(|word| {
            let there = match word.when {
                When::Always => "always",
                When::ErrorCode => "with an error code",
                When::FromUser => "from user mode",
            };
            vec![word.name.to_owned(), there.to_owned(), word.content.to_owned()]
        }),
    );
}

/// The transition of that name; the width at its end may be left to `--guest`.
fn find(name: &str, chosen: Option<Guest>) -> Option<&'static transitions::Transition> {
    let width = match chosen {
        None | Some(Guest::Bits64) => 64,
        Some(Guest::Bits32) => 32,
    };
    transitions::find(name).or_else(|| transitions::find(&format!("{name}-{width}")))
}

fn one(name: &str, chosen: Option<Guest>) -> Result<Page, Failure> {
    let name = name.to_ascii_lowercase();
    let Some(transition) = find(&name, chosen) else {
        let similar: Vec<&str> =
            transitions::all().map(|known| known.name).filter(|known| known.contains(&name)).collect();
        let hint = if similar.is_empty() {
            "`paravane explain transition` lists them".to_owned()
        } else {
            format!("is it {}?", similar.join(" or "))
        };
        return Err(Failure::Usage(format!(
            "looked for a transition, found \"{}\": {hint}",
            name.escape_debug()
        )));
    };
    let mut page = Page::new(format!("{}: {}", transition.name, transition.title));
    page.fields([
        ("Guest", transition.guest.to_string()),
        ("From", transition.from.to_string()),
        ("To", transition.to.to_string()),
    ]);
    page.heading("Before and after");
    page.table(
        &["Register", "Before", "After"],
        Register::ALL.into_iter().map(|register| {
            let (before, after) = (transition.start.value(register), transition.ends_with(register));
            let after = if before == after { "the same".to_owned() } else { after.to_string() };
            vec![register.to_string(), before.to_string(), after]
        }),
    );
    page.list(transition.notes);
    let steps = transition.walk();
    let mut citations: Vec<&str> = Vec::new();
    for step in &steps {
        page.heading(format!("Step {}: {}", step.number, step.actor));
        page.text(step.text);
        if !step.changes.is_empty() {
            page.table(&["Register", "Before", "After", "From"], step.changes.iter().map(change));
        }
        for citation in step.citations {
            if !citations.contains(citation) {
                citations.push(citation);
            }
        }
    }
    page.sources(citations);
    Ok(page)
}

fn change(change: &PlayedChange) -> Vec<String> {
    let source = match change.source.msr() {
        Some((number, _)) => format!("{} (MSR {number:#x})", change.source),
        None => change.source.to_string(),
    };
    vec![change.register.to_string(), change.before.to_string(), change.after.to_string(), source]
}

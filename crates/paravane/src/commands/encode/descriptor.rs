//! `paravane encode descriptor`: the quadword, its fate, and the way into a table.

use paravane_x86::{
    descriptor::{Descriptor, Kind},
    install::{Installation, Route},
    mode::{Guest, Mode},
    submit::{Submission, submit},
};
use serde_json::json;

use super::fields::{Encoded, encode as encode_fields};
use crate::{
    cli::encode::DescriptorArgs,
    commands::descriptor::{KnownForm as Form, decoded, describe, known, summary},
    failure::Failure,
    output::{Answer, page::Page},
};

/// Encodes what `args` describe.
///
/// # Errors
///
/// If the options contradict the type or one another.
pub(in crate::commands) fn encode(args: &DescriptorArgs) -> Result<Answer, Failure> {
    let mode = args.mode.mode()?;
    let encoded = encode_fields(args, mode)?;
    let routes = routes(encoded.entry.low, mode);
    let installations: Vec<_> = routes.iter().map(|route| route.installation()).collect();
    Ok(Answer {
        json: json!({
            "descriptor": decoded(encoded.entry, &[mode]),
            "decisions": encoded
                .decisions
                .iter()
                .map(|(name, text)| json!({ "what": name, "chosen": text }))
                .collect::<Vec<_>>(),
            "install": installations,
        }),
        page: page(&encoded, mode, &routes),
    })
}

fn page(encoded: &Encoded, mode: Mode, routes: &[Route]) -> Page {
    let mut page = describe(encoded.entry, &[mode]);
    let low = encoded.entry.low;
    let value = encoded.entry.high.map_or(low.to_string(), |high| format!("{low} {high:#018x}"));
    page.title = format!("{value}: {}", summary(encoded.entry));
    // The sources stay at the end.
    let sources = page.blocks.pop();
    if !encoded.decisions.is_empty() {
        page.heading("Chosen for you");
        page.fields(encoded.decisions.iter().map(|(name, text)| (*name, text.as_str())));
    }
    page.heading("How a guest installs it");
    for known in known(low).iter().filter(|known| known.mode == mode && known.form == Form::Current) {
        page.text(format!("It need not: Xen has it as {} in the GDT of every such guest.", known.selector));
    }
    describe_routes(&mut page, routes);
    page.blocks.extend(sources);
    page
}

/// The ways by which a guest in `mode` can put `descriptor` into use.
fn routes(descriptor: Descriptor, mode: Mode) -> Vec<Route> {
    if matches!(submit(mode, descriptor), Submission::Refused(_)) {
        return Vec::new();
    }
    let based = matches!(descriptor.kind(), Kind::Data(_)) && mode.guest() == Guest::Bits64;
    Route::ALL.into_iter().filter(|&route| route != Route::SegmentBase || based).collect()
}

fn describe_routes(page: &mut Page, routes: &[Route]) {
    if routes.is_empty() {
        page.text("Not at all: Xen refuses it, by whatever way it comes.");
        return;
    }
    page.fields(routes.iter().map(|route| {
        let installation = route.installation();
        (name(installation), installation.purpose)
    }));
    for route in routes {
        let installation = route.installation();
        page.heading(installation.call);
        let steps = installation.steps.iter().enumerate();
        page.fields(steps.map(|(number, step)| (format!("{}.", number + 1), *step)));
        page.list(installation.rules);
        page.table(
            &["Error", "When"],
            installation.errors.iter().map(|error| vec![format!("-{}", error.errno), error.when.to_owned()]),
        );
    }
}

fn name(installation: &Installation) -> &'static str {
    if installation.operation.is_empty() { installation.hypercall.name() } else { installation.operation }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command, encode::Encode};

    fn answer(options: &str) -> Answer {
        let line = format!("paravane encode descriptor {options}");
        let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
        let Command::Encode(Encode::Descriptor(args)) = cli.command else {
            panic!("{options} is another command");
        };
        encode(&args).unwrap()
    }

    fn text(options: &str) -> String {
        let rendered = crate::output::text::render(&answer(options).page, 100);
        anstream::adapter::strip_str(&rendered).to_string()
    }

    #[test]
    fn user_code_of_a_64_bit_guest() {
        insta::assert_snapshot!(text("--type code --dpl 3 --long"));
    }

    #[test]
    fn thread_local_storage_of_a_32_bit_guest() {
        insta::assert_snapshot!(text("--type data --dpl 3 --base 0xb7e4d6c0 --limit 0x123456 --guest 32"));
    }

    #[test]
    fn a_tss_cannot_be_installed() {
        let text = text("--type tss --base 0xffff82d080531040");
        assert!(text.contains("Not at all: Xen refuses it"), "{text}");
        assert!(text.starts_with("0x8000895310400067 0x00000000ffff82d0: TSS"), "{text}");
        assert_eq!(answer("--type tss").json["install"], json!([]));
    }

    #[test]
    fn bases_are_set_by_hypercall_only_where_they_exist() {
        let has_bases = |options| text(options).contains("set_segment_base(");
        assert!(has_bases("--type data"));
        assert!(!has_bases("--type data --guest 32"));
        assert!(!has_bases("--type code"));
    }
}

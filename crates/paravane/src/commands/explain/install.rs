//! How a guest gets descriptors of its own into use: parts of the pages on segments and on the GDT.

use paravane_x86::{install::Route, mode::Mode};

use crate::output::page::Page;

/// The ways that a guest of some of `modes` has, one line each.
pub(super) fn routes(page: &mut Page, modes: &[Mode]) {
    page.table(
        &["Hypercall", "What it does"],
        Route::ALL.into_iter().filter(|route| exists(*route, modes)).map(|route| {
            let installation = route.installation();
            vec![installation.call.to_owned(), installation.purpose.to_owned()]
        }),
    );
}

/// One way with its steps, rules and errors.
pub(super) fn section(page: &mut Page, route: Route, modes: &[Mode]) {
    if !exists(route, modes) {
        return;
    }
    let installation = route.installation();
    page.heading(installation.call);
    page.text(format!("It {}.", installation.purpose));
    page.fields((1..).zip(installation.steps).map(|(number, step)| (number.to_string(), *step)));
    page.list(installation.rules);
    page.table(
        &["Error", "When"],
        installation.errors.iter().map(|error| vec![error.errno.to_string(), error.when.to_owned()]),
    );
}

fn exists(route: Route, modes: &[Mode]) -> bool {
    modes.iter().any(|mode| route.exists_for(mode.guest()))
}

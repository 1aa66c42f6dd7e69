//! `paravane decode errno`: an error number of Xen's, or the result of a hypercall.

use paravane_abi::{
    errno::{Errno, Exposure, HypercallResult, MAX_ERRNO},
    table::Numbered,
};
use serde_json::{Value, json};

use crate::{
    cli::decode::ErrnoArgs,
    failure::Failure,
    input,
    output::{Answer, page::Page},
};

/// What a user's value was found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reading {
    result: HypercallResult,
    /// The value that the result has in a register, where the value was given as one.
    width: Option<u8>,
}

/// Decodes the number or name in `args`.
///
/// # Errors
///
/// If it is neither an error's name nor a number of 64 bits.
pub(super) fn decode(args: &ErrnoArgs) -> Result<Answer, Failure> {
    let reading = read(&args.value)?;
    Ok(Answer { page: describe(&args.value, reading), json: to_json(&args.value, reading) })
}

/// Reads `EINVAL`, `-EINVAL`, `22`, `-22`, or the same in a register: `0xffffffea` or `0xffffffffffffffea`.
fn read(text: &str) -> Result<Reading, Failure> {
    let symbol = text.strip_prefix('-').unwrap_or(text).to_ascii_uppercase();
    if let Some(errno) = Errno::from_symbol(&symbol) {
        return Ok(Reading { result: HypercallResult::Error(errno), width: None });
    }
    if symbol.starts_with('E') && symbol.len() > 1 && input::bare_hex(&symbol).is_none() {
        return Err(Failure::Usage(format!(
            "looked for an error of Xen's, found \"{}\": `paravane decode errno 22` reads numbers, and names are those of \
             xen/include/public/errno.h",
            text.escape_debug()
        )));
    }
    let value = input::signed_number(text, "an error number or a hypercall's result")?;
    // A small positive number is the error itself; as a result it would be a success.
    if (1..=i64::from(MAX_ERRNO)).contains(&value) {
        return Ok(Reading { result: HypercallResult::from_i64(-value), width: None });
    }
    // EAX of a 32-bit guest: the top bit of 32 is the sign.
    match u32::try_from(value) {
        Ok(eax) if eax.cast_signed() < 0 => {
            Ok(Reading { result: HypercallResult::from_i32(eax.cast_signed()), width: Some(32) })
        }
        _ => {
            let width = (value < 0 && !text.starts_with('-')).then_some(64);
            Ok(Reading { result: HypercallResult::from_i64(value), width })
        }
    }
}

fn describe(text: &str, reading: Reading) -> Page {
    let mut page;
    match reading.result {
        HypercallResult::Error(errno) => {
            page = Page::new(format!("{errno} ({}): {}", errno.number(), errno.meaning()));
            let mut rows = vec![
                ("as a result", format!("-{}", errno.number())),
                ("in RAX", format!("{:#018x}", errno.to_rax())),
                ("in EAX", format!("{:#010x}", errno.to_eax())),
            ];
            let facts = errno.facts();
            if !facts.alias.is_empty() {
                rows.push(("also called", facts.alias.to_owned()));
            }
            rows.push((
                "seen by",
                match facts.exposure {
                    Exposure::Guest => "guests: hypercalls return it".to_owned(),
                    Exposure::Internal => "Xen's own functions only: no hypercall returns it".to_owned(),
                },
            ));
            page.fields(rows);
        }
        HypercallResult::UnknownError(number) => {
            page = Page::new(format!("{text}: error {number}, which is no error number of Xen's"));
            page.text(
                "Results from -1 to -4095 are read as errors, but Xen's list has no such number. It may come from a \
                 kernel's own list.",
            );
        }
        HypercallResult::Value(value) => {
            page = Page::new(format!("{text}: not an error, but the value {value} ({value:#x})"));
            page.text(
                "A hypercall fails with a result from -1 to -4095; everything else is success or a value.",
            );
        }
    }
    if let Some(width) = reading.width {
        page.text(format!(
            "{text} was read as the result of a {width}-bit guest: negative, in two's complement of {width} bits."
        ));
    }
    page.sources([<Errno as Numbered>::SOURCE]);
    page
}

fn to_json(text: &str, reading: Reading) -> Value {
    let errno = match reading.result {
        HypercallResult::Error(errno) => Some(errno),
        HypercallResult::UnknownError(_) | HypercallResult::Value(_) => None,
    };
    json!({
        "given": text,
        "register_width": reading.width,
        "result": reading.result,
        "number": errno.map(Errno::number),
        "name": errno.map(Errno::name),
        "meaning": errno.map(Errno::meaning),
        "rax": errno.map(|errno| format!("{:#018x}", errno.to_rax())),
        "eax": errno.map(|errno| format!("{:#010x}", errno.to_eax())),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_spelling_of_an_error_is_read() {
        for text in [
            "EINVAL",
            "-EINVAL",
            "einval",
            "22",
            "-22",
            "0x16",
            "-0x16",
            "0xffffffea",
            "0xffffffffffffffea",
            "18446744073709551594",
            "4294967274",
        ] {
            assert_eq!(read(text).unwrap().result, HypercallResult::Error(Errno::Einval), "{text}");
        }
        assert_eq!(read("0xffffffea").unwrap().width, Some(32));
        assert_eq!(read("0xffffffffffffffea").unwrap().width, Some(64));
        assert_eq!(read("-22").unwrap().width, None);
        assert_eq!(read("EWOULDBLOCK").unwrap().result, HypercallResult::Error(Errno::Eagain));
    }

    #[test]
    fn values_and_unknown_errors_are_told_apart() {
        for (text, result) in [
            ("0", HypercallResult::Value(0)),
            ("4096", HypercallResult::Value(4096)),
            ("-4096", HypercallResult::Value(-4096)),
            ("4000", HypercallResult::UnknownError(4000)),
            ("0x80000000", HypercallResult::Value(i64::from(i32::MIN))),
        ] {
            assert_eq!(read(text).unwrap().result, result, "{text}");
        }
        for text in ["EFOO", "-EFOO", "", "x", "0x10000000000000000"] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_answer_shows_both_registers() {
        let rendered = crate::output::text::render(&describe("-22", read("-22").unwrap()), 100);
        insta::assert_snapshot!(anstream::adapter::strip_str(&rendered).to_string());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text: String) {
            drop(read(&text));
        }
    }
}

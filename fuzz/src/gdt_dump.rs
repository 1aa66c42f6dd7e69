//! A descriptor table in a file, in any of the forms in which programs print memory: any bytes are read or
//! refused, and what was read is read again from its plainest form.

use std::fmt::Write as _;

use paravane::commands::gdt_file::parse;

/// Entries of the largest table.
const ENTRIES: usize = 8192;

/// Reads `data` as a table.
pub fn check(data: &[u8]) {
    let dump = match parse(data) {
        Ok(dump) => dump,
        Err(problem) => {
            assert!(!problem.to_string().is_empty());
            return;
        }
    };
    assert!(!dump.quadwords.is_empty() && dump.quadwords.len() <= ENTRIES);
    let mut text = String::new();
    for quadword in &dump.quadwords {
        writeln!(text, "{quadword:#018x}").expect("writing to a string cannot fail");
    }
    assert_eq!(parse(text.as_bytes()).map(|again| again.quadwords), Ok(dump.quadwords));
}

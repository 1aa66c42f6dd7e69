//! The page of past vulnerabilities, held to the tests that it names.

/// The page.
const PAGE: &str = include_str!("../../../docs/past-vulnerabilities.md");

/// The files with tests that it names, and their text.
const FILES: &[(&str, &str)] = &[
    ("emulate/tests.rs", include_str!("emulate/tests.rs")),
    ("events/tests/advisories.rs", include_str!("events/tests/advisories.rs")),
    ("events/tests/ops.rs", include_str!("events/tests/ops.rs")),
    ("exits/tests.rs", include_str!("exits/tests.rs")),
    ("frames/tests/advisories.rs", include_str!("frames/tests/advisories.rs")),
    ("frames/tests/memory.rs", include_str!("frames/tests/memory.rs")),
    ("frames/tests/mmu_update.rs", include_str!("frames/tests/mmu_update.rs")),
    ("frames/tests/tables.rs", include_str!("frames/tests/tables.rs")),
    ("grants/tests/advisories.rs", include_str!("grants/tests/advisories.rs")),
    ("grants/tests/copy.rs", include_str!("grants/tests/copy.rs")),
    ("grants/tests/mapping.rs", include_str!("grants/tests/mapping.rs")),
    ("grants/tests/version.rs", include_str!("grants/tests/version.rs")),
    ("hypercalls/tests/advisories.rs", include_str!("hypercalls/tests/advisories.rs")),
    ("hypercalls/tests/iret.rs", include_str!("hypercalls/tests/iret.rs")),
];

#[test]
fn every_advisory_of_the_page_has_its_test() {
    let rows: Vec<&str> = PAGE.lines().filter(|line| line.starts_with("| XSA-")).collect();
    assert!(rows.len() > 40, "{}", rows.len());
    for row in rows {
        let cell = row.trim_end_matches([' ', '|']).rsplit('|').next().unwrap_or_default();
        let mut names = cell.split('`').skip(1).step_by(2);
        let (file, test) = (names.next().unwrap_or_default(), names.next().unwrap_or_default());
        let text = FILES.iter().find(|(path, _)| *path == file).map(|(_, text)| *text);
        let text = text.unwrap_or_else(|| panic!("{row}: {file:?} is not among the files of this test"));
        assert!(text.contains(&format!("#[test]\nfn {test}()")), "{row}: {file} has no such test");
    }
}

#[test]
fn an_advisory_is_on_the_page_once() {
    let cells = PAGE.lines().filter_map(|line| line.strip_prefix("| XSA-")?.split(" |").next());
    let mut numbers: Vec<&str> = cells.flat_map(|cell| cell.split(", XSA-")).collect();
    let count = numbers.len();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), count);
}

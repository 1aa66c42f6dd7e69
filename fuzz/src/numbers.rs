//! What a person types where the program wants numbers: any text is a number that fits or an error that says
//! something, and a number reads back as itself.

use paravane::input::{bare_hex, number, quadwords, signed_number, split};

/// Reads `data` as the words of a command line.
pub fn check(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let words: Vec<String> = split(&text).map(str::to_owned).collect();
    for word in &words {
        for bits in [16, 32, 64] {
            match number(word, bits, "number") {
                Ok(value) => {
                    assert!(bits == 64 || value >> bits == 0, "{word} has more than {bits} bits");
                    for spelling in [format!("{value}"), format!("{value:#x}"), format!("{value:#b}")] {
                        assert_eq!(number(&spelling, bits, "number").ok(), Some(value), "{spelling}");
                    }
                }
                Err(failure) => assert!(!failure.to_string().is_empty()),
            }
        }
        if let Ok(value) = signed_number(word, "number") {
            assert_eq!(signed_number(&value.to_string(), "number").ok(), Some(value));
        }
        if let Some((value, digits)) = bare_hex(word) {
            assert_eq!(format!("{value:0digits$x}"), word.to_ascii_lowercase());
        }
    }
    if let Ok(values) = quadwords(&words, "descriptor") {
        let again: Vec<String> = values.iter().map(|value| format!("{value:#x}")).collect();
        assert_eq!(quadwords(&again, "descriptor").ok(), Some(values));
    }
}

//! What a person types: numbers in their usual spellings, byte dumps, and files of either.
//!
//! Everything here is total: any text yields a value or a [`Failure`] that says what was looked for and what
//! was found. Files are read up to a limit, so that naming a device or a huge file cannot exhaust memory.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use crate::failure::Failure;

/// The most that is read of a file of numbers or of a descriptor table, in bytes.
const MAX_INPUT: u64 = 16 << 20;

/// The most values that one answer explains; more would only be scrolled past.
const MAX_VALUES: usize = 8192;

/// Reads `text` as a number of at most `bits` bits: decimal, `0x` hexadecimal, `0o` octal or `0b` binary, with
/// `_` between digits. `what` names the thing for the error message.
///
/// # Errors
///
/// [`Failure::Usage`] if it is no number or does not fit.
pub fn number(text: &str, bits: u32, what: &str) -> Result<u64, Failure> {
    let value = unsigned(text).ok_or_else(|| not_a_number(text, what))?;
    fits(value, bits).ok_or_else(|| {
        Failure::Usage(format!("{what} has {bits} bits, and {text} needs more: check the digits"))
    })
}

/// Reads every word of `arguments` and `file` as [`number`] does; at least one must be there.
///
/// # Errors
///
/// If a file cannot be read, nothing is given, or a word is no number or does not fit.
pub fn numbers(
    arguments: &[String],
    file: Option<&Path>,
    bits: u32,
    what: &str,
) -> Result<Vec<u64>, Failure> {
    let words = words(arguments, file)?;
    if words.is_empty() {
        return Err(Failure::Usage(format!(
            "no {what} given: name one, a file with --file, or - for standard input"
        )));
    }
    if words.len() > MAX_VALUES {
        return Err(Failure::Usage(format!("looked for at most {MAX_VALUES} values, found {}", words.len())));
    }
    words.iter().map(|word| number(word, bits, what)).collect()
}

/// Reads `text` as a number with an optional minus sign, in two's complement of 64 bits.
///
/// # Errors
///
/// [`Failure::Usage`] if it is no number or does not fit in 64 bits.
pub fn signed_number(text: &str, what: &str) -> Result<i64, Failure> {
    let too_wide = || Failure::Usage(format!("{what} has 64 bits, and {text} needs more: check the digits"));
    let magnitude = |digits| unsigned(digits).ok_or_else(|| not_a_number(text, what));
    match text.strip_prefix('-') {
        Some(digits) => 0i64.checked_sub_unsigned(u64::try_from(magnitude(digits)?).map_err(|_| too_wide())?),
        None => Some(u64::try_from(magnitude(text)?).map_err(|_| too_wide())?.cast_signed()),
    }
    .ok_or_else(too_wide)
}

/// Reads descriptors, or other quadwords that are usually written in hexadecimal, from command-line words:
/// numbers, sixteen bare hexadecimal digits, or byte dumps in memory order (eight or sixteen bytes of two
/// digits, and so on).
///
/// # Errors
///
/// [`Failure::Usage`] if a word is neither, or if the bytes do not fill whole quadwords.
pub fn quadwords(words: &[String], what: &str) -> Result<Vec<u64>, Failure> {
    let words: Vec<&str> = words.iter().flat_map(|text| split(text)).collect();
    if words.is_empty() {
        return Err(Failure::Usage(format!(
            "no {what} given: name one, a file with --file, or - for standard input"
        )));
    }
    if words.len() > 1 && words.iter().all(|word| bare_hex(word).is_some_and(|(_, digits)| digits == 2)) {
        return quadwords_from_bytes(&words, what);
    }
    words
        .into_iter()
        .map(|word| match bare_hex(word) {
            Some((value, 16)) => Ok(value),
            _ => number(word, 64, what),
        })
        .collect()
}

fn quadwords_from_bytes(words: &[&str], what: &str) -> Result<Vec<u64>, Failure> {
    // Two hexadecimal digits always fit a byte.
    let bytes: Vec<u8> = words
        .iter()
        .filter_map(|word| bare_hex(word))
        .filter_map(|(value, _)| u8::try_from(value).ok())
        .collect();
    let (quadwords, rest) = bytes.as_chunks::<8>();
    if !rest.is_empty() {
        return Err(Failure::Usage(format!(
            "a byte dump of a {what} has a multiple of 8 bytes, and this has {}: add the missing ones",
            bytes.len()
        )));
    }
    Ok(quadwords.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect())
}

/// Splits text into words at white space, commas and semicolons.
pub fn split(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c.is_whitespace() || c == ',' || c == ';').filter(|word| !word.is_empty())
}

/// A word of hexadecimal digits without prefix: its value and how many digits it has, 1 to 16.
pub fn bare_hex(word: &str) -> Option<(u64, usize)> {
    let digits = word.len();
    if !(1..=16).contains(&digits) || !word.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    Some((u64::from_str_radix(word, 16).ok()?, digits))
}

/// The words that a command works on: those of the command line, where `-` stands for those of standard
/// input, and after them those of `file`, in which `#` starts a comment.
///
/// # Errors
///
/// If a file cannot be read or is not text.
pub fn words(arguments: &[String], file: Option<&Path>) -> Result<Vec<String>, Failure> {
    let mut words = Vec::new();
    for argument in arguments {
        if argument == "-" {
            words.extend(text_words(&read(Path::new("-"))?)?);
        } else {
            words.push(argument.clone());
        }
    }
    if let Some(file) = file {
        words.extend(text_words(&read(file)?)?);
    }
    Ok(words)
}

fn text_words(bytes: &[u8]) -> Result<Vec<String>, Failure> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        Failure::Data(format!(
            "looked for numbers in text, found bytes that are not UTF-8 at offset {}: for a binary table use \
             `paravane decode gdt`",
            error.valid_up_to()
        ))
    })?;
    let words = text.lines().flat_map(|line| split(line.split('#').next().unwrap_or_default()));
    Ok(words.map(str::to_owned).collect())
}

/// Reads a file, or standard input for `-`.
///
/// # Errors
///
/// [`Failure::Input`] if it cannot be read, [`Failure::Data`] if it is larger than any input this is for.
pub fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let failed = |error| Failure::Input { path: path.to_owned(), error };
    let mut bytes = Vec::new();
    let limited = |source: &mut dyn Read, bytes: &mut Vec<u8>| source.take(MAX_INPUT + 1).read_to_end(bytes);
    if path == Path::new("-") {
        limited(&mut io::stdin().lock(), &mut bytes).map_err(failed)?;
    } else {
        limited(&mut File::open(path).map_err(failed)?, &mut bytes).map_err(failed)?;
    }
    if bytes.len() as u64 > MAX_INPUT {
        return Err(Failure::Data(format!(
            "{} has more than {} MiB, which no descriptor table or list of numbers has: check the path",
            path.display(),
            MAX_INPUT >> 20
        )));
    }
    Ok(bytes)
}

/// Digits in one of the usual bases; wide, so that "too wide" can be told from "not a number".
fn unsigned(text: &str) -> Option<u128> {
    let lower = text.to_ascii_lowercase();
    let (digits, radix) = if let Some(digits) = lower.strip_prefix("0x") {
        (digits, 16)
    } else if let Some(digits) = lower.strip_prefix("0b") {
        (digits, 2)
    } else if let Some(digits) = lower.strip_prefix("0o") {
        (digits, 8)
    } else {
        (lower.as_str(), 10)
    };
    let digits: String = digits.chars().filter(|&c| c != '_').collect();
    // from_str_radix would accept a sign here, as in "0x-1".
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    // More digits than 128 bits hold are a number all the same, only a wide one.
    Some(u128::from_str_radix(&digits, radix).unwrap_or(u128::MAX))
}

fn fits(value: u128, bits: u32) -> Option<u64> {
    u64::try_from(value).ok().filter(|&value| bits >= 64 || value >> bits == 0)
}

fn not_a_number(text: &str, what: &str) -> Failure {
    let hint = match bare_hex(text) {
        Some(_) => format!(": write 0x{text} for hexadecimal"),
        None => ": write it as 0xe033, 57395 or 0b1110".to_owned(),
    };
    Failure::Usage(format!("looked for a number ({what}), found \"{}\"{hint}", text.escape_debug()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn owned(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn the_usual_spellings_are_numbers() {
        for (text, value) in [
            ("0", 0),
            ("57395", 0xe033),
            ("0xe033", 0xe033),
            ("0XE033", 0xe033),
            ("0b1010", 10),
            ("0o17", 15),
            ("0x00af_fb00_0000_ffff", 0x00af_fb00_0000_ffff),
            ("0xffffffffffffffff", u64::MAX),
        ] {
            assert_eq!(number(text, 64, "number").ok(), Some(value), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_number_or_too_wide_is_said_so() {
        for (text, bits, part) in [
            ("e033", 16, "write 0xe033"),
            ("", 16, "found \"\""),
            ("0x", 16, "looked for a number"),
            ("0x-1", 16, "looked for a number"),
            ("+5", 16, "looked for a number"),
            ("cs", 16, "looked for a number"),
            ("0x10000", 16, "has 16 bits"),
            ("99999999999999999999999999999999999999999999", 64, "has 64 bits"),
        ] {
            let message = number(text, bits, "selector").unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn signed_numbers_reach_both_ends() {
        for (text, value) in [
            ("-22", Some(-22)),
            ("-0x16", Some(-22)),
            ("0xffffffffffffffea", Some(-22)),
            ("-0x8000000000000000", Some(i64::MIN)),
            ("-0x8000000000000001", None),
            ("0x10000000000000000", None),
            ("--1", None),
        ] {
            assert_eq!(signed_number(text, "result").ok(), value, "{text}");
        }
    }

    #[test]
    fn quadwords_are_numbers_sixteen_digits_or_bytes() {
        let flat = vec![0x00cf_b200_0000_ffff];
        for words in [
            vec!["0x00cfb2000000ffff"],
            vec!["00cfb2000000ffff"],
            vec!["ff", "ff", "00", "00", "00", "b2", "cf", "00"],
            vec!["ff ff 00 00 00 b2 cf 00"],
            vec!["ff,ff,00,00,00,b2,cf,00"],
        ] {
            assert_eq!(quadwords(&owned(&words), "descriptor").ok(), Some(flat.clone()), "{words:?}");
        }
        assert!(quadwords(&owned(&["ff", "ff", "00"]), "descriptor").is_err());
        assert!(quadwords(&[], "descriptor").is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_a_number_or_a_failure(text: String, bits in 1u32..=64) {
            if let Ok(value) = number(&text, bits, "number") {
                prop_assert!(bits == 64 || value >> bits == 0);
            }
            drop(signed_number(&text, "number"));
            drop(quadwords(&[text], "number"));
        }
    }
}

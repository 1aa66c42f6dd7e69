//! Command lines of `decode`, `encode` and `explain`: any words are answered or refused, in every form of output.

use clap::Parser as _;
use paravane::cli::{Cli, Command, Decode};
use paravane::commands::{answer_decode, answer_encode, answer_explain};
use paravane::output::{Format, render};

/// Takes `data` as words after `paravane`, separated by white space.
pub fn check(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let words: Vec<&str> = text.split_whitespace().collect();
    // What names a file, or standard input, would make the answer depend on this machine.
    if words.iter().any(|word| *word == "-" || word.starts_with("--file")) {
        return;
    }
    let Ok(cli) = Cli::try_parse_from(std::iter::once("paravane").chain(words)) else { return };
    let answered = if let Command::Decode(decode) = &cli.command {
        if matches!(decode, Decode::Gdt(_)) {
            return;
        }
        answer_decode(decode)
    } else if let Command::Encode(encode) = &cli.command {
        answer_encode(encode)
    } else if let Command::Explain(explain) = &cli.command {
        answer_explain(explain)
    } else {
        return;
    };
    match answered {
        Ok((answer, _)) => {
            for format in [Format::Text, Format::Json] {
                assert!(render(&answer, format).is_ok_and(|text| !text.is_empty()));
            }
            // Not every answer has a drawing.
            if let Ok(drawing) = render(&answer, Format::Svg) {
                assert!(drawing.trim_end().ends_with("</svg>"));
            }
        }
        Err(failure) => assert!(!failure.to_string().is_empty()),
    }
}

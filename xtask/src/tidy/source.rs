//! Rust source with its comments and literals blanked, so that a search sees code only.
//!
//! A full parser would be a large dependency for a handful of words. What matters is where comments, strings
//! and characters begin and end; the rest of the grammar is not needed. A word in a macro's tokens is code.

/// Replaces every character of a comment, string or character literal by a space. Lines stay where they are.
pub(super) fn blanked(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    // Whether the last character belongs to a word: then `r"` or `'` does not open a literal of its own.
    let mut in_word = false;
    while let Some(first) = rest.chars().next() {
        let literal = literal_length(rest, in_word);
        let (taken, is_code) = match literal {
            Some(length) => (length, false),
            None => (first.len_utf8(), true),
        };
        for character in rest[..taken].chars() {
            code.push(if is_code || character == '\n' { character } else { ' ' });
        }
        in_word = is_code && (first.is_alphanumeric() || first == '_');
        rest = &rest[taken..];
    }
    code
}

/// The places where `word` stands alone, as line numbers from 1.
pub(super) fn lines_with(code: &str, word: &str) -> Vec<usize> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let stands_alone = |line: &str, at: usize| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        let joins = |neighbour: Option<char>, own: Option<char>| {
            neighbour.is_some_and(is_part) && own.is_some_and(is_part)
        };
        !joins(before, word.chars().next()) && !joins(after, word.chars().next_back())
    };
    let found = |line: &str| line.match_indices(word).any(|(at, _)| stands_alone(line, at));
    code.lines().enumerate().filter(|(_, line)| found(line)).map(|(index, _)| index + 1).collect()
}

/// The length in bytes of the comment or literal that `rest` begins with, if it does.
fn literal_length(rest: &str, in_word: bool) -> Option<usize> {
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return Some(block_comment_length(rest));
    }
    if let Some(length) = raw_string_length(rest).filter(|_| !in_word) {
        return Some(length);
    }
    if rest.starts_with('"') {
        return Some(quoted_length(rest, '"').unwrap_or(rest.len()));
    }
    if rest.starts_with('\'') && !in_word {
        return character_length(rest);
    }
    None
}

/// Block comments nest.
fn block_comment_length(rest: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

/// A raw string `r"…"`, `br#"…"#`, `cr"…"`: no escapes, closed by as many hashes as opened it.
fn raw_string_length(rest: &str) -> Option<usize> {
    let after_prefix = ["r", "br", "cr"].iter().find_map(|prefix| rest.strip_prefix(prefix))?;
    let hashes = after_prefix.len() - after_prefix.trim_start_matches('#').len();
    let body = after_prefix[hashes..].strip_prefix('"')?;
    let close = format!("\"{}", "#".repeat(hashes));
    let body_length = body.find(&close).map_or(body.len(), |end| end + close.len());
    Some(rest.len() - body.len() + body_length)
}

/// A literal between two `quote`s with backslash escapes.
fn quoted_length(rest: &str, quote: char) -> Option<usize> {
    let mut characters = rest.char_indices().skip(1);
    while let Some((at, character)) = characters.next() {
        if character == '\\' {
            characters.next();
        } else if character == quote {
            return Some(at + 1);
        }
    }
    None
}

/// A character literal; `None` for a lifetime or a loop label, which begins alike.
fn character_length(rest: &str) -> Option<usize> {
    let mut characters = rest.chars().skip(1);
    let (first, second) = (characters.next()?, characters.next());
    if first == '\\' || second == Some('\'') {
        return quoted_length(rest, '\'');
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked_and_code_is_not() {
        for (text, code) in [
            ("a // unsafe\nb", "a          \nb"),
            ("a /* x /* y */ \n z */ b", "a              \n      b"),
            ("let s = \"un\\\"safe\";", "let s =           ;"),
            ("let s = r#\"a\"b\"#;", "let s =         ;"),
            ("f(b\"\\\\\", x)", "f(b    , x)"),
            ("let c = '\"'; d", "let c =    ; d"),
            ("let c = '\\''; d", "let c =     ; d"),
            ("fn f<'a>(x: &'a str)", "fn f<'a>(x: &'a str)"),
            ("'outer: loop {}", "'outer: loop {}"),
            ("for_r\"x\"", "for_r   "),
            ("\"never closed", "             "),
            ("é // ü\né", "é     \né"),
        ] {
            assert_eq!(blanked(text), code, "{text}");
        }
    }

    #[test]
    fn a_word_counts_only_where_it_stands_alone() {
        let code = "unsafe {}\nunsafe_code\nnot_unsafe\n x.unsafe()\n#[ignore]\n#[ignored]";

        assert_eq!(lines_with(code, "unsafe"), [1, 4]);
        assert_eq!(lines_with(code, "#[ignore"), [5]);
    }
}

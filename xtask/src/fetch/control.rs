//! Debian's control format: stanzas of `Field: value` lines, separated by empty lines (deb822(5)).
//!
//! apt's `.sources` files and the output of `apt-cache show` are both written in it.

/// One stanza: its fields in order, names in lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Stanza {
    fields: Vec<(String, String)>,
}

impl Stanza {
    /// A field's value; lines of a folded value are joined by newlines as they stand.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    /// The words of a field's value; none if the field is missing.
    pub(crate) fn words(&self, name: &str) -> Vec<String> {
        self.get(name).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
    }
}

/// Reads all stanzas of a text. Comment lines and lines that are neither field nor continuation are skipped,
/// as apt does.
pub(crate) fn parse(text: &str) -> Vec<Stanza> {
    let mut stanzas = Vec::new();
    let mut stanza = Stanza::default();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if line.trim().is_empty() {
            stanzas.push(std::mem::take(&mut stanza));
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = stanza.fields.last_mut() {
                value.push('\n');
                value.push_str(line);
            }
        } else if let Some((name, value)) = line.split_once(':') {
            stanza.fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    stanzas.push(stanza);
    stanzas.retain(|stanza| !stanza.fields.is_empty());
    stanzas
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stanzas_are_separated_by_empty_lines_and_may_hold_comments() {
        let stanzas = parse("Types: deb\n# note: ignored\nSuites: a b\n\n\n\nTypes: deb-src\n");

        assert_eq!(stanzas.len(), 2);
        assert_eq!(stanzas[0].words("suites"), ["a", "b"]);
        assert_eq!(stanzas[1].get("types"), Some("deb-src"));
        assert_eq!(stanzas[1].get("suites"), None);
    }

    #[test]
    fn a_folded_value_keeps_its_lines() {
        let stanzas = parse("Signed-By:\n -----BEGIN\n .\n -----END\nURIs: x:y\n");

        assert_eq!(stanzas[0].get("signed-by"), Some("\n -----BEGIN\n .\n -----END"));
        assert_eq!(stanzas[0].get("uris"), Some("x:y"));
    }
}

//! Xenstore paths.

use core::fmt;

use paravane_abi::{
    units::DomId,
    xenstore::{ABSOLUTE_PATH_MAX, RELATIVE_PATH_MAX},
};

/// An absolute path: `/` or `/name/name…`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path(String);

/// Text that is not a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathError;

impl Path {
    /// The root.
    pub fn root() -> Self {
        Self("/".to_owned())
    }

    /// The directory of a domain's own keys, from which its relative paths start.
    pub fn home(domain: DomId) -> Self {
        Self(format!("/local/domain/{}", domain.0))
    }

    /// Reads `text` as a path of `domain`'s: absolute, or relative to its home.
    ///
    /// # Errors
    ///
    /// [`PathError`] for forbidden characters, doubled or trailing slashes, and too long paths.
    pub fn parse(text: &str, domain: DomId) -> Result<Self, PathError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-/_@".contains(&byte);
        let limit = if text.starts_with('/') { ABSOLUTE_PATH_MAX } else { RELATIVE_PATH_MAX };
        let slashes = text.contains("//") || (text.len() > 1 && text.ends_with('/'));
        if text.is_empty() || text.len() > limit || slashes || !text.bytes().all(allowed) {
            return Err(PathError);
        }
        if text.starts_with('/') {
            return Ok(Self(text.to_owned()));
        }
        Ok(Self(format!("{}/{text}", Self::home(domain))))
    }

    /// Its names, from the root down; none for the root itself.
    pub fn names(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('/').filter(|name| !name.is_empty())
    }

    /// The path one level up; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        let end = self.0.rfind('/').filter(|_| self.0.len() > 1)?;
        Some(if end == 0 { Self::root() } else { Self(self.0[..end].to_owned()) })
    }

    /// Whether this is `ancestor` or lies below it.
    pub fn is_within(&self, ancestor: &Self) -> bool {
        ancestor.0 == "/"
            || self
                .0
                .strip_prefix(ancestor.0.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_paths_start_at_the_domains_home() {
        let parse = |text| Path::parse(text, DomId(3)).map(|path| path.0);
        assert_eq!(parse("device/vbd"), Ok("/local/domain/3/device/vbd".to_owned()));
        assert_eq!(parse("/vm"), Ok("/vm".to_owned()));
        assert_eq!(parse("/"), Ok("/".to_owned()));
    }

    #[test]
    fn malformed_paths_are_refused() {
        let long = format!("/{}", "a".repeat(ABSOLUTE_PATH_MAX));
        for text in ["", "/a/", "a//b", "//", "a b", "a\0", "ä", long.as_str()] {
            assert_eq!(Path::parse(text, DomId(1)), Err(PathError), "{text}");
        }
    }

    #[test]
    fn within_means_whole_names() {
        let path = |text| Path::parse(text, DomId(1)).unwrap();
        assert!(path("/a/b").is_within(&path("/a")) && path("/a").is_within(&path("/a")));
        assert!(!path("/ab").is_within(&path("/a")) && !path("/a").is_within(&path("/a/b")));
        assert!(path("/a").is_within(&Path::root()));
        assert_eq!(path("/a/b").parent(), Some(path("/a")));
        assert_eq!(path("/a").parent(), Some(Path::root()));
        assert_eq!(Path::root().parent(), None);
    }
}

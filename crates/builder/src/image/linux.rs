//! Recognising Linux where no note says so, to name the configuration that a kernel lacks.

use serde::Serialize;

/// What begins the banner that every Linux prints first and carries as text.
const BANNER: &[u8] = b"Linux version ";

/// The longest release that is taken from a banner.
const RELEASE_MAX_BYTES: usize = 64;

/// A Linux kernel, as far as its file tells without notes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Linux {
    /// The release, such as `6.1.0-13-amd64`.
    pub release: String,
}

impl Linux {
    /// Takes the release from the version string of a bzImage.
    pub(super) fn from_version(version: &str) -> Option<Self> {
        let release = version.split_ascii_whitespace().next()?;
        release
            .starts_with(|first: char| first.is_ascii_digit())
            .then(|| Self { release: release.to_owned() })
    }

    /// Looks for the banner in an ELF file.
    pub(super) fn from_elf(bytes: &[u8]) -> Option<Self> {
        // The text also occurs without a number behind it.
        let mut rest = bytes;
        loop {
            let at = rest.windows(BANNER.len()).position(|window| window == BANNER)?;
            rest = &rest[at + BANNER.len()..];
            let text = &rest[..rest.len().min(RELEASE_MAX_BYTES)];
            let len = text.iter().position(|byte| !byte.is_ascii_graphic()).unwrap_or(text.len());
            if let Some(linux) = Self::from_version(&String::from_utf8_lossy(&text[..len])) {
                return Some(linux);
            }
        }
    }

    /// Major and minor version.
    pub fn version(&self) -> Option<(u32, u32)> {
        let mut parts = self.release.split(|digit: char| !digit.is_ascii_digit());
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_the_first_word_of_the_version() {
        let linux = Linux::from_version("6.1.0-13-amd64 (me@here) #1 SMP").unwrap();
        assert_eq!(linux.release, "6.1.0-13-amd64");
        assert_eq!(linux.version(), Some((6, 1)));
        assert_eq!(Linux::from_version(""), None);
        assert_eq!(Linux::from_version("GRUB 2.06"), None);
    }

    #[test]
    fn the_banner_is_found_behind_text_that_resembles_it() {
        let file = b"..Linux version %s (%s)\0..Linux version 5.10.0 (gcc)\0";
        assert_eq!(Linux::from_elf(file).unwrap().release, "5.10.0");
        assert_eq!(Linux::from_elf(b"Linux version "), None);
        assert_eq!(Linux::from_elf(b""), None);
    }
}

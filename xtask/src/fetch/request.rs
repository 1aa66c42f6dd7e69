//! What to fetch: a package, and where it differs from the usual, its architecture and suite.

use std::fmt;
use std::str::FromStr;

use anyhow::{bail, ensure};

/// The suite of a request that names none.
///
/// A fixed one rather than the system's own, so that tests see the same kernels on any Debian machine.
pub(crate) const USUAL_SUITE: &str = "bookworm";

/// The architecture of a request that names none.
pub(crate) const USUAL_ARCHITECTURE: &str = "amd64";

/// A request `PACKAGE[:ARCHITECTURE][@SUITE]`. Its text is also the name of its folder in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) package: String,
    pub(crate) architecture: String,
    pub(crate) suite: String,
}

impl FromStr for Request {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (rest, suite) = text.split_once('@').unwrap_or((text, USUAL_SUITE));
        let (package, architecture) = rest.split_once(':').unwrap_or((rest, USUAL_ARCHITECTURE));
        for part in [package, architecture, suite] {
            // Debian Policy, "Source package names" and "Distribution": and no part can leave the cache.
            let allowed = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
            if !part.starts_with(|c: char| c.is_ascii_alphanumeric()) {
                bail!("{text:?} is not of the form PACKAGE[:ARCHITECTURE][@SUITE]: {part:?} is no name");
            }
            ensure!(part.chars().all(allowed), "{part:?} in {text:?} has a character that no name has");
        }
        Ok(Self { package: package.into(), architecture: architecture.into(), suite: suite.into() })
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.package)?;
        if self.architecture != USUAL_ARCHITECTURE {
            write!(f, ":{}", self.architecture)?;
        }
        if self.suite != USUAL_SUITE {
            write!(f, "@{}", self.suite)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_what_differs_from_the_usual() {
        for (text, package, architecture, suite) in [
            ("linux-image-amd64", "linux-image-amd64", "amd64", "bookworm"),
            ("g++-12:i386", "g++-12", "i386", "bookworm"),
            ("linux-image-amd64@bookworm-backports", "linux-image-amd64", "amd64", "bookworm-backports"),
            ("gnumach-image-1.8-xen-486:i386@bullseye", "gnumach-image-1.8-xen-486", "i386", "bullseye"),
        ] {
            let request: Request = text.parse().unwrap();
            assert_eq!(
                [request.package.as_str(), &request.architecture, &request.suite],
                [package, architecture, suite]
            );
            assert_eq!(request.to_string(), text, "a request prints as it is typed");
        }
    }

    #[test]
    fn the_usual_is_never_spelled_out() {
        let request: Request = "linux-image-amd64:amd64@bookworm".parse().unwrap();

        assert_eq!(request.to_string(), "linux-image-amd64");
    }

    #[test]
    fn a_request_cannot_name_a_path_or_an_option() {
        for text in ["", "..", "-o", "a/b", "a:", "a@", "a@../x", ":i386", "a b", "a@b@c"] {
            assert!(text.parse::<Request>().is_err(), "{text:?}");
        }
    }
}

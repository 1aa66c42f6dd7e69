//! Reads what `check.sh` printed from the text of a console.

/// The lines that the check printed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Names of the facts that hold.
    pub passed: Vec<String>,
    /// Those that do not, with what was found.
    pub failed: Vec<String>,
    /// Remarks, such as the kernel's version.
    pub remarks: Vec<String>,
}

/// Why a console does not show a check that was made to its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// The guest stopped, or the check did not start.
    #[error(
        "looked for the check's last line, found none after {lines} lines of it: the guest stopped before; its console shows where"
    )]
    Unfinished {
        /// Lines that the check printed.
        lines: usize,
    },
    /// Lines are missing, or there are too many.
    #[error("the check counted {counted}, and the console shows {shown}: lines were lost or broken")]
    Counts {
        /// The end of the last line.
        counted: String,
        /// The same, from the lines before.
        shown: String,
    },
}

/// How each line of the check begins.
pub const PREFIX: &str = "check: ";

impl Report {
    /// Reads the report from all that a guest printed.
    ///
    /// # Errors
    ///
    /// If the last line is missing, or does not fit the others.
    pub fn parse(console: &str) -> Result<Self, ReportError> {
        let mut report = Self::default();
        for line in console.lines().filter_map(|line| line.trim_end().strip_prefix(PREFIX)) {
            if let Some(name) = line.strip_prefix("pass ") {
                report.passed.push(name.to_owned());
            } else if let Some(fact) = line.strip_prefix("FAIL ") {
                report.failed.push(fact.to_owned());
            } else if let Some(counted) = line.strip_prefix("done, ") {
                let shown = format!("{} passed, {} failed", report.passed.len(), report.failed.len());
                if counted != shown {
                    return Err(ReportError::Counts { counted: counted.to_owned(), shown });
                }
                return Ok(report);
            } else {
                report.remarks.push(line.to_owned());
            }
        }
        let lines = report.passed.len() + report.failed.len() + report.remarks.len();
        Err(ReportError::Unfinished { lines })
    }

    /// The rest of the remark that begins with `word`.
    pub fn remark(&self, word: &str) -> Option<&str> {
        self.remarks.iter().find_map(|remark| remark.strip_prefix(word)?.strip_prefix(' '))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_found_among_lines_of_the_kernel() {
        let console = "[    0.1] Linux\r\ncheck: this is Linux\r\ncheck: pass one\r\n[    0.2] x\r\n\
                       check: FAIL two: expected 1, found 2\r\ncheck: done, 1 passed, 1 failed\r\nmore\r\n";
        let report = Report::parse(console).unwrap();
        assert_eq!(report.passed, ["one"]);
        assert_eq!(report.failed, ["two: expected 1, found 2"]);
        assert_eq!(report.remark("this is"), Some("Linux"));
        assert_eq!(report.remark("that is"), None);
    }

    #[test]
    fn a_check_that_did_not_end_or_lost_lines_is_no_report() {
        for (console, error) in [
            ("", ReportError::Unfinished { lines: 0 }),
            ("check: pass one\n", ReportError::Unfinished { lines: 1 }),
            (
                "check: pass one\ncheck: done, 2 passed, 0 failed\n",
                ReportError::Counts {
                    counted: "2 passed, 0 failed".to_owned(),
                    shown: "1 passed, 0 failed".to_owned(),
                },
            ),
        ] {
            assert_eq!(Report::parse(console), Err(error));
        }
    }
}

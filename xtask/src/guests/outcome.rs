//! What came of the trials, as a table for a person, as JSON, and as a page of the documentation.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use crate::guests::catalogue::Trial;

/// What came of a trial.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Outcome {
    /// What a person calls the guest.
    pub(super) guest: &'static str,
    /// The request that fetches it.
    pub(super) request: &'static str,
    /// Package and version that were used; empty if it could not be fetched.
    pub(super) version: String,
    /// What was checked.
    pub(super) proves: &'static str,
    /// How many facts were checked and hold.
    pub(super) facts: usize,
    /// Why the trial failed.
    pub(super) error: Option<String>,
    /// User and system time of the program.
    #[serde(rename = "cpu_seconds", serialize_with = "seconds")]
    pub(super) cpu: Duration,
}

fn seconds<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

impl Outcome {
    /// Of a trial that was not made yet.
    pub(super) fn of(trial: &Trial) -> Self {
        Self {
            guest: trial.name,
            request: trial.request,
            version: String::new(),
            proves: trial.kind.proves(),
            facts: 0,
            error: None,
            cpu: Duration::ZERO,
        }
    }

    /// Two words about the end.
    fn result(&self) -> String {
        match self.error {
            None => format!("{} facts", self.facts),
            Some(_) => "FAILED".to_owned(),
        }
    }

    /// The row of both tables: guest, version, result, CPU time.
    fn row(&self) -> [String; 4] {
        let cpu = format!("{:.1} s", self.cpu.as_secs_f64());
        [self.guest.to_owned(), self.version.clone(), self.result(), cpu]
    }
}

/// The table that a person reads.
pub(super) fn table(outcomes: &[Outcome]) -> String {
    let head = ["guest", "version", "result", "CPU time"].map(str::to_owned);
    let rows: Vec<[String; 4]> = std::iter::once(head).chain(outcomes.iter().map(Outcome::row)).collect();
    let mut widths = [0; 4];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for [guest, version, result, cpu] in rows {
        let [a, b, c, d] = widths;
        writeln!(text, "{guest:a$}  {version:b$}  {result:c$}  {cpu:>d$}").expect(INFALLIBLE);
    }
    text
}

const INFALLIBLE: &str = "writing to a string cannot fail";

const HEAD: &str = "\
<!-- Written by `cargo xtask guests --record`. Do not edit. -->

# Real guests

Every 64-bit PV kernel that Debian's mirrors have, untouched as packaged, in `paravane run` with one vCPU.
`cargo xtask guests` fetches and runs them all; a guest that cannot be fetched is a failure. Versions roll: the table says
which ones ran when this page was written. `cargo xtask test` runs those with a star at each change.

";

const FOOT: &str = "
A fact of a Linux is one that it found out about itself from inside, by the script `crates/initramfs/src/check.sh`:
processes, pipes, signals, faults of every kind and in both widths, floating point, time, memory, and no complaint in the
kernel's log. A fact of PV-GRUB is a command that was typed at its prompt and answered; one of an
installer is a line that a command in its own userland printed.

What is not here: 32-bit guests (PV-GRUB for i386, GNU Mach), and guests that no package has, such as Mini-OS. Debian 13's
realtime kernel starts its first process and then interrupts itself without end, see `xtask/src/guests/catalogue.rs`.
";

/// docs/guests.md, from the outcomes of all trials.
pub(super) fn page(outcomes: &[Outcome], starred: impl Fn(&str) -> bool) -> String {
    let mut page = String::from(HEAD);
    page.push_str("| guest | package | version | what it did | facts | CPU time |\n");
    page.push_str("| --- | --- | --- | --- | ---: | ---: |\n");
    for outcome in outcomes {
        let [guest, version, _, cpu] = outcome.row();
        let star = if starred(outcome.guest) { " \\*" } else { "" };
        let (request, proves, facts) = (outcome.request, outcome.proves, outcome.facts);
        writeln!(page, "| {guest}{star} | `{request}` | {version} | {proves} | {facts} | {cpu} |")
            .expect(INFALLIBLE);
    }
    page.push_str(FOOT);
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guests::catalogue::TRIALS;
    use crate::repo::Repo;

    /// Whether a page has a row for each trial and for nothing else, in their order.
    fn covers_all_trials(page: &str) -> bool {
        let rows = page.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
        let guests = rows.skip(2).map(|guest| guest.trim_end_matches(" \\*"));
        guests.eq(TRIALS.iter().map(|trial| trial.name))
    }

    fn all() -> Vec<Outcome> {
        TRIALS.iter().map(Outcome::of).collect()
    }

    #[test]
    fn a_table_has_straight_columns_and_says_what_failed() {
        let mut outcomes = all()[..2].to_vec();
        outcomes[0].facts = 34;
        outcomes[0].cpu = Duration::from_millis(12_340);
        outcomes[1].error = Some("it stopped".to_owned());

        let text = table(&outcomes);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].contains("34 facts") && lines[1].ends_with("12.3 s"), "{text}");
        assert!(lines[2].contains("FAILED"), "{text}");
        assert!(lines.iter().all(|line| line.chars().count() == lines[0].chars().count()), "{text}");
    }

    #[test]
    fn json_tells_seconds_and_errors() {
        let mut outcome = Outcome::of(&TRIALS[0]);
        outcome.cpu = Duration::from_millis(1500);

        let json = serde_json::to_value(&outcome).unwrap();
        assert_eq!(json["cpu_seconds"], 1.5);
        assert_eq!(json["error"], serde_json::Value::Null);
        assert_eq!(json["request"], TRIALS[0].request);
    }

    #[test]
    fn a_page_covers_all_trials_or_is_told_apart() {
        assert!(covers_all_trials(&page(&all(), |guest| guest.len().is_multiple_of(2))));
        assert!(!covers_all_trials(&page(&all()[1..], |_| true)));
        assert!(!covers_all_trials(HEAD));
    }

    #[test]
    fn the_committed_page_covers_all_trials() {
        let path = Repo::find().unwrap().path(super::super::PAGE);
        let page = std::fs::read_to_string(&path).unwrap();
        assert!(covers_all_trials(&page), "`cargo xtask guests --record` writes {}", path.display());
    }
}

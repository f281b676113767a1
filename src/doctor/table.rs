//! A report as a table, for people.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use super::Report;
use super::compare::{Severity, groups};
use super::fact::{Aspect, Value};
use super::finding::{Condition, Finding};
use super::text::{milliseconds, printable};

/// What stands where nothing is known.
const NOTHING: &str = "-";

/// Who says what everybody says that says anything.
const ALL: &str = "all";

/// A report in colors.
pub(super) struct Colored<'a>(pub(super) &'a Report);

impl fmt::Display for Colored<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(self.0, f, true)
    }
}

/// How a line is to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Plain,
    Heading,
    Well,
    Note,
    Problem,
}

impl Look {
    fn of(severity: Option<Severity>) -> Self {
        match severity {
            None => Self::Plain,
            Some(Severity::Note) => Self::Note,
            Some(Severity::Problem) => Self::Problem,
        }
    }

    /// What stands before it, also where there are no colors.
    fn mark(self) -> char {
        match self {
            Self::Problem => '!',
            Self::Note => '~',
            Self::Plain | Self::Heading | Self::Well => ' ',
        }
    }

    /// The code that switches it on.
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Heading => "\x1b[1m",
            Self::Well => "\x1b[32m",
            Self::Note => "\x1b[33m",
            Self::Problem => "\x1b[31m",
        }
    }
}

type Row<const COLUMNS: usize> = (Look, [String; COLUMNS]);

/// On which side a column stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Align {
    Left,
    /// Numbers.
    Right,
}

use Align::{Left, Right};

/// Writes all of it.
pub(super) fn write(report: &Report, f: &mut fmt::Formatter<'_>, colored: bool) -> fmt::Result {
    write_rows(f, colored, &peers(report), [Left, Left, Right, Right])?;
    let facts = facts(report);
    if !facts.is_empty() {
        writeln!(f)?;
        write_rows(f, colored, &facts, [Left; 3])?;
    }
    writeln!(f)?;
    let mut line = |look: Look, text: &str| {
        let (on, off) = ends(look, colored);
        writeln!(f, "{on}{}{off}", printable(text))
    };
    let (problems, notes) = (report.problems(), report.notes());
    for problem in &problems {
        line(Look::Problem, &format!("! {problem}"))?;
    }
    for note in &notes {
        line(Look::Note, &format!("~ {note}"))?;
    }
    if report.is_ok() {
        line(Look::Well, "All is well.")
    } else {
        line(Look::Problem, &format!("Trouble: {}.", problems.len()))
    }
}

/// What is switched on and off around a text.
fn ends(look: Look, colored: bool) -> (&'static str, &'static str) {
    if colored && look != Look::Plain { (look.code(), "\x1b[0m") } else { ("", "") }
}

/// A line for each peer.
fn peers(report: &Report) -> Vec<Row<4>> {
    let heading = ["peer", "state", "login", "round trip"].map(str::to_owned);
    let peer = |peer: &Finding| {
        let Finding { name, condition, login, round_trip, .. } = peer;
        let look = if *condition == Condition::Ready { Look::Plain } else { Look::Problem };
        let time = |time: Option<Duration>| match time {
            Some(time) => format!("{:.2} ms", milliseconds(time)),
            None => NOTHING.to_owned(),
        };
        (look, [name.clone(), condition.to_string(), time(*login), time(*round_trip)])
    };
    [(Look::Heading, heading)].into_iter().chain(report.peers.iter().map(peer)).collect()
}

/// A line for each thing that some peers say, and one for each that they do not.
fn facts(report: &Report) -> Vec<Row<3>> {
    let aspects: BTreeSet<Aspect> =
        report.peers.iter().flat_map(|peer| peer.facts.keys().copied()).collect();
    aspects.into_iter().flat_map(|aspect| facts_of(report, aspect)).collect()
}

fn facts_of(report: &Report, aspect: Aspect) -> Vec<Row<3>> {
    let difference = report.differences.iter().find(|it| it.aspect == aspect);
    let look = Look::of(difference.map(|it| it.severity));
    let told = report.peers.iter().filter(|peer| !peer.facts.is_empty()).count();
    let known = groups(&report.peers, aspect).into_iter().map(|group| {
        let is_all = group.peers.len() == told && told > 1;
        let who = if is_all { ALL.to_owned() } else { group.peers.join(", ") };
        (who, group.value.shown(aspect))
    });
    let unknown = report.peers.iter().filter_map(|peer| {
        let value = peer.facts.get(&aspect).filter(|value| matches!(value, Value::Unknown(_)))?;
        Some((peer.name.clone(), value.shown(aspect)))
    });
    let rows = known.chain(unknown).enumerate();
    let name = |index: usize| if index == 0 { aspect.to_string() } else { String::new() };
    rows.map(|(index, (who, what))| (look, [name(index), who, what])).collect()
}

/// Columns as wide as they have to be.
fn write_rows<const COLUMNS: usize>(
    f: &mut fmt::Formatter<'_>,
    colored: bool,
    rows: &[Row<COLUMNS>],
    align: [Align; COLUMNS],
) -> fmt::Result {
    let width = |column: usize| {
        rows.iter().map(|(_, row)| row[column].chars().count()).max().unwrap_or_default()
    };
    for (look, row) in rows {
        let (on, off) = ends(*look, colored);
        let cells = row.iter().zip(align).enumerate().map(|(column, (cell, align))| {
            let width = width(column);
            match align {
                Left => format!("{cell:<width$}"),
                Right => format!("{cell:>width$}"),
            }
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        writeln!(f, "{on}{} {}{off}", look.mark(), printable(line.trim_end()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::fault::Fault;

    fn report() -> Report {
        let ready = |name: &str, isolation: &str| Finding {
            name: name.to_owned(),
            condition: Condition::Ready,
            fault: None,
            reason: None,
            login: Some(Duration::from_micros(3210)),
            round_trip: Some(Duration::from_micros(80)),
            facts: BTreeMap::from([
                (Aspect::Version, Value::text("10.11.6-MariaDB")),
                (Aspect::Isolation, Value::text(isolation)),
                (Aspect::Migrations, Value::list(["1".to_owned(), "2".to_owned()])),
            ]),
        };
        let mut unknown = ready("db2", "REPEATABLE-READ");
        unknown.facts.insert(Aspect::Version, Value::text("10.11.7-MariaDB"));
        unknown.facts.insert(Aspect::Migrations, Value::Unknown("SELECT denied".to_owned()));
        let down = Finding {
            name: "db3".to_owned(),
            condition: Condition::Unreachable,
            fault: Some(Fault::PeerDown),
            reason: Some("Can't connect".to_owned()),
            login: None,
            round_trip: None,
            facts: BTreeMap::new(),
        };
        Report::of(vec![
            ready("db0", "REPEATABLE-READ"),
            ready("db1", "SERIALIZABLE"),
            unknown,
            down,
        ])
    }

    #[test]
    fn says_once_what_peers_have_in_common() {
        let expected = "  \
  peer  state          login  round trip
  db0   ready        3.21 ms     0.08 ms
  db1   ready        3.21 ms     0.08 ms
  db2   ready        3.21 ms     0.08 ms
! db3   unreachable        -           -

~ version     db0, db1  10.11.6-MariaDB
~             db2       10.11.7-MariaDB
  migrations  db0, db1  2, the newest 2
              db2       not known: SELECT denied
! isolation   db0, db2  REPEATABLE-READ
!             db1       SERIALIZABLE

! db3 is unreachable: Can't connect
! isolation: db1 has SERIALIZABLE; db0 and db2 have REPEATABLE-READ
~ version: db2 has 10.11.7-MariaDB; db0 and db1 have 10.11.6-MariaDB
Trouble: 2.
";
        assert_eq!(report().to_string(), expected);
    }

    #[test]
    fn a_server_does_not_move_the_cursor() {
        let mut report = report();
        let version = Value::text("8.4\x1b[2J\nAll is well.");
        report.peers[0].facts.insert(Aspect::Version, version);
        report.peers[3].reason = Some("no\r\x07way".to_owned());
        let shown = report.to_string();
        assert!(!shown.contains(['\x1b', '\r', '\x07']), "{shown:?}");
        assert!(!shown.lines().any(|line| line.starts_with("All")), "{shown:?}");
    }

    #[test]
    fn colors_change_nothing_else() {
        let colored = report().colored().to_string();
        let codes = [Look::Heading, Look::Note, Look::Problem].map(Look::code);
        assert!(codes.iter().all(|code| colored.contains(code)), "{colored:?}");
        let codes = codes.iter().chain(&["\x1b[0m"]);
        let plain = codes.fold(colored.clone(), |text, code| text.replace(code, ""));
        assert_eq!(plain, report().to_string());
    }
}

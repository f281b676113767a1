//! Writes a report as a table.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use super::Report;
use super::compare::{Severity, groups};
use super::fact::{Aspect, FactValue};
use super::finding::{Condition, Finding};
use super::text::milliseconds;
use crate::redact::printable;

/// Shown in place of a time that is not known, and of a limit that there is not.
const NONE: &str = "-";

/// Shown in place of names where all peers that reported facts have the same value.
const ALL: &str = "all";

/// A report whose `Display` uses colors.
pub(super) struct Colored<'a>(pub(super) &'a Report);

impl fmt::Display for Colored<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(self.0, f, true)
    }
}

/// The style of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Plain,
    Heading,
    Success,
    Note,
    Problem,
}

impl Style {
    fn from_severity(severity: Option<Severity>) -> Self {
        match severity {
            None => Self::Plain,
            Some(Severity::Note) => Self::Note,
            Some(Severity::Problem) => Self::Problem,
        }
    }

    /// The first character of the line, which makes the severity visible without colors.
    fn mark(self) -> char {
        match self {
            Self::Problem => '!',
            Self::Note => '~',
            Self::Plain | Self::Heading | Self::Success => ' ',
        }
    }

    /// The escape sequence that turns the style on.
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Heading => "\x1b[1m",
            Self::Success => "\x1b[32m",
            Self::Note => "\x1b[33m",
            Self::Problem => "\x1b[31m",
        }
    }
}

type Row<const COLUMNS: usize> = (Style, [String; COLUMNS]);

/// The alignment of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Align {
    Left,
    /// For numbers.
    Right,
}

use Align::{Left, Right};

/// Writes the peers, then the facts, then the settings, then the problems and notes.
pub(super) fn write(report: &Report, f: &mut fmt::Formatter<'_>, colored: bool) -> fmt::Result {
    let peers = peers(report);
    if report.peers.iter().any(|peer| peer.max_connections.is_some()) {
        let limits = report
            .peers
            .iter()
            .map(|peer| peer.max_connections.map_or(NONE.to_owned(), |max| max.to_string()));
        let limits = ["max_connections".to_owned()].into_iter().chain(limits);
        let with_limit = |((style, [name, state, login, round_trip]), limit): (Row<4>, String)| {
            (style, [name, state, login, round_trip, limit])
        };
        let peers: Vec<Row<5>> = peers.into_iter().zip(limits).map(with_limit).collect();
        write_rows(f, colored, &peers, [Left, Left, Right, Right, Right])?;
    } else {
        write_rows(f, colored, &peers, [Left, Left, Right, Right])?;
    }
    let facts = facts(report);
    if !facts.is_empty() {
        writeln!(f)?;
        write_rows(f, colored, &facts, [Left; 3])?;
    }
    writeln!(f)?;
    let setting =
        |setting: &(String, String)| (Style::Plain, [setting.0.clone(), setting.1.clone()]);
    let settings: Vec<_> = report.settings.iter().map(setting).collect();
    write_rows(f, colored, &settings, [Left; 2])?;
    writeln!(f)?;
    let mut line = |style: Style, text: &str| {
        let (on, off) = escape_codes(style, colored);
        writeln!(f, "{on}{}{off}", printable(text))
    };
    let (problems, notes) = (report.problems(), report.notes());
    for problem in &problems {
        line(Style::Problem, &format!("! {problem}"))?;
    }
    for note in &notes {
        line(Style::Note, &format!("~ {note}"))?;
    }
    if report.is_ok() {
        return line(Style::Success, "No problems found.");
    }
    match problems.len() {
        1 => line(Style::Problem, "1 problem found."),
        count => line(Style::Problem, &format!("{count} problems found.")),
    }
}

/// Returns the escape sequences before and after a text.
fn escape_codes(style: Style, colored: bool) -> (&'static str, &'static str) {
    if colored && style != Style::Plain { (style.code(), "\x1b[0m") } else { ("", "") }
}

/// Returns a row for each peer, after a heading.
fn peers(report: &Report) -> Vec<Row<4>> {
    let heading = ["peer", "state", "login", "round trip"].map(str::to_owned);
    let peer = |peer: &Finding| {
        let Finding { name, condition, login, round_trip, ledger_flaw, .. } = peer;
        let is_ok = *condition == Condition::Ready && ledger_flaw.is_none();
        let style = if is_ok { Style::Plain } else { Style::Problem };
        let time = |time: Option<Duration>| match time {
            Some(time) => format!("{:.2} ms", milliseconds(time)),
            None => NONE.to_owned(),
        };
        (style, [name.clone(), condition.to_string(), time(*login), time(*round_trip)])
    };
    [(Style::Heading, heading)].into_iter().chain(report.peers.iter().map(peer)).collect()
}

/// Returns a row for each aspect and value, and for each peer whose value is unknown.
fn facts(report: &Report) -> Vec<Row<3>> {
    let aspects: BTreeSet<Aspect> =
        report.peers.iter().flat_map(|peer| peer.facts.keys().copied()).collect();
    aspects.into_iter().flat_map(|aspect| rows_for_aspect(report, aspect)).collect()
}

fn rows_for_aspect(report: &Report, aspect: Aspect) -> Vec<Row<3>> {
    let difference = report.differences.iter().find(|difference| difference.aspect == aspect);
    let style = Style::from_severity(difference.map(|difference| difference.severity));
    let reporting = report.peers.iter().filter(|peer| !peer.facts.is_empty()).count();
    let known = groups(&report.peers, aspect).into_iter().map(|group| {
        let is_all = group.peers.len() == reporting && reporting > 1;
        let names = if is_all { ALL.to_owned() } else { group.peers.join(", ") };
        (names, group.value.summary(aspect))
    });
    let unknown = report.peers.iter().filter_map(|peer| {
        let value =
            peer.facts.get(&aspect).filter(|value| matches!(value, FactValue::Unknown(_)))?;
        Some((peer.name.clone(), value.summary(aspect)))
    });
    let rows = known.chain(unknown).enumerate();
    let name = |index: usize| if index == 0 { aspect.to_string() } else { String::new() };
    rows.map(|(index, (names, value))| (style, [name(index), names, value])).collect()
}

/// Writes the rows in columns, each as wide as its widest cell.
fn write_rows<const COLUMNS: usize>(
    f: &mut fmt::Formatter<'_>,
    colored: bool,
    rows: &[Row<COLUMNS>],
    align: [Align; COLUMNS],
) -> fmt::Result {
    let width = |column: usize| {
        rows.iter().map(|(_, row)| row[column].chars().count()).max().unwrap_or_default()
    };
    for (style, row) in rows {
        let (on, off) = escape_codes(*style, colored);
        let cells = row.iter().zip(align).enumerate().map(|(column, (cell, align))| {
            let width = width(column);
            match align {
                Left => format!("{cell:<width$}"),
                Right => format!("{cell:>width$}"),
            }
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        writeln!(f, "{on}{} {}{off}", style.mark(), printable(line.trim_end()))?;
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
            max_connections: None,
            ledger_flaw: None,
            facts: BTreeMap::from([
                (Aspect::Version, FactValue::text("10.11.6-MariaDB")),
                (Aspect::Isolation, FactValue::text(isolation)),
                (Aspect::Migrations, FactValue::sorted_list(["1".to_owned(), "2".to_owned()])),
            ]),
        };
        let mut unknown = ready("db2", "REPEATABLE-READ");
        unknown.facts.insert(Aspect::Version, FactValue::text("10.11.7-MariaDB"));
        unknown.facts.insert(Aspect::Migrations, FactValue::Unknown("SELECT denied".to_owned()));
        let down = Finding {
            name: "db3".to_owned(),
            condition: Condition::Unreachable,
            fault: Some(Fault::PeerDown),
            reason: Some("Can't connect".to_owned()),
            login: None,
            round_trip: None,
            max_connections: None,
            ledger_flaw: None,
            facts: BTreeMap::new(),
        };
        let settings = [("slow_peers", "shift"), ("slow_start", "30s")];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let peers =
            vec![ready("db0", "REPEATABLE-READ"), ready("db1", "SERIALIZABLE"), unknown, down];
        Report::new(peers, settings)
    }

    #[test]
    fn limits_have_a_column_if_there_is_one() {
        let mut report = report();
        report.peers[1].max_connections = Some(4);
        let table = report.to_string();
        let lines = table.lines().take(3);
        let column: Vec<_> = lines.filter_map(|line| line.split_whitespace().last()).collect();
        assert_eq!(column, ["max_connections", "-", "4"]);
    }

    #[test]
    fn values_are_grouped_by_peers() {
        let expected = "  \
  peer  state          login  round trip
  db0   ready        3.21 ms     0.08 ms
  db1   ready        3.21 ms     0.08 ms
  db2   ready        3.21 ms     0.08 ms
! db3   unreachable        -           -

~ version     db0, db1  10.11.6-MariaDB
~             db2       10.11.7-MariaDB
  migrations  db0, db1  2, the newest 2
              db2       unknown: SELECT denied
! isolation   db0, db2  REPEATABLE-READ
!             db1       SERIALIZABLE

  slow_peers  shift
  slow_start  30s

! db3 is unreachable: Can't connect
! isolation: db1 has SERIALIZABLE; db0 and db2 have REPEATABLE-READ
~ version: db2 has 10.11.7-MariaDB; db0 and db1 have 10.11.6-MariaDB
2 problems found.
";
        assert_eq!(report().to_string(), expected);
    }

    #[test]
    fn control_characters_of_a_server_are_replaced() {
        let mut report = report();
        let version = FactValue::text("8.4\x1b[2J\nNo problems found.");
        report.peers[0].facts.insert(Aspect::Version, version);
        report.peers[3].reason = Some("no\r\x07way".to_owned());
        let shown = report.to_string();
        assert!(
            !shown.contains(['\x1b', '\r', '\x07']),
            "no control characters are shown: {shown:?}"
        );
        assert!(
            !shown.lines().any(|line| line.starts_with("No problems")),
            "a server's text does not begin a line: {shown:?}"
        );
    }

    #[test]
    fn colored_text_equals_plain_text_without_codes() {
        let colored = report().colored().to_string();
        let codes = [Style::Heading, Style::Note, Style::Problem].map(Style::code);
        assert!(
            codes.iter().all(|code| colored.contains(code)),
            "all styles are used: {colored:?}"
        );
        let codes = codes.iter().chain(&["\x1b[0m"]);
        let plain = codes.fold(colored.clone(), |text, code| text.replace(code, ""));
        assert_eq!(plain, report().to_string());
    }
}

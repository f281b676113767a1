//! Formats a snapshot as a table for a terminal.

use std::fmt;
use std::time::{Duration, Instant};

use super::{PeerStatus, Snapshot, TransactionCounts};

/// The last column has no title: it contains remarks.
const HEADERS: [&str; 8] =
    ["peer", "state", "for", "weight", "connections", "in use", "next check", ""];

/// The shortest duration that is not shown as zero.
const SHORTEST_SHOWN: Duration = Duration::from_millis(50);

/// Writes the table; durations are relative to `now`.
pub(super) fn write(snapshot: &Snapshot, now: Instant, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut rows = vec![HEADERS.map(str::to_owned).to_vec()];
    rows.extend(snapshot.peers.iter().map(|peer| row(peer, now).to_vec()));
    write_rows(&rows, &[0, 1, 7], f)?;
    let mut rows = vec![transactions("peer", |(_, title, _)| title.to_lowercase(), <_>::default())];
    rows.extend(snapshot.peers_with_transactions().map(|peer| {
        transactions(&peer.name, |(_, _, value)| value.to_string(), peer.transactions)
    }));
    if rows.len() > 1 {
        writeln!(f)?;
        write_rows(&rows, &[0], f)?;
    }
    if snapshot.retry_budget < snapshot.retry_budget_max {
        let Snapshot { retry_budget, retry_budget_max, .. } = snapshot;
        writeln!(f, "Retry budget: {retry_budget} of {retry_budget_max}")?;
    }
    if let Some(reason) = &snapshot.host_failure {
        writeln!(f, "No connection can be opened: {reason}")?;
    }
    if snapshot.closed {
        writeln!(f, "The pool is closed; this is its last known state.")?;
    }
    Ok(())
}

/// Writes rows with equally wide columns. These columns are aligned to the left, as names are; the others, which are
/// numbers, to the right.
fn write_rows(
    rows: &[Vec<String>],
    left_aligned: &[usize],
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    let mut widths = vec![0; rows.iter().map(Vec::len).max().unwrap_or_default()];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
            if left_aligned.contains(&column) {
                format!("{cell:<width$}")
            } else {
                format!("{cell:>width$}")
            }
        });
        writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

/// Returns a row of the table of transactions.
fn transactions(
    name: &str,
    cell: impl Fn((&str, &str, u64)) -> String,
    counts: TransactionCounts,
) -> Vec<String> {
    [name.to_owned()].into_iter().chain(counts.columns().map(cell)).collect()
}

fn row(peer: &PeerStatus, now: Instant) -> [String; 8] {
    let next_check = peer.next_check.saturating_duration_since(now);
    [
        peer.name.clone(),
        peer.state.to_string(),
        format_duration(now.saturating_duration_since(peer.since)),
        peer.weight.to_string(),
        peer.connections.to_string(),
        peer.in_use.to_string(),
        format_remaining(next_check).unwrap_or_else(|| "now".to_owned()),
        remark(peer),
    ]
}

/// Returns the last, untitled column: why the peer is down, or what is unusual about it.
fn remark(peer: &PeerStatus) -> String {
    match (&peer.reason, peer.state) {
        (Some(reason), state) if state.is_marked_down() => reason.clone(),
        (Some(reason), _) => format!("the last check failed: {reason}"),
        (None, _) if peer.is_being_removed => "to be removed".to_owned(),
        (None, _) if peer.is_full => "full".to_owned(),
        (None, _) if peer.is_at_limit => {
            format!("at max_connections ({})", peer.max_connections.unwrap_or_default())
        }
        (None, _) if peer.is_unresponsive => "unresponsive".to_owned(),
        (None, _) if peer.slow_since.is_some() => "slow".to_owned(),
        (None, _) => String::new(),
    }
}

/// Formats the time until an event; `None` if it is too short to be shown.
pub(crate) fn format_remaining(left: Duration) -> Option<String> {
    (left >= SHORTEST_SHOWN).then(|| format_duration(left))
}

/// Formats a duration in its one or two largest units.
pub(crate) fn format_duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, 0..10) => format!("{:.1} s", time.as_secs_f64()),
        (0, 0, 0, seconds) => format!("{seconds} s"),
        (0, 0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (0, hours, minutes, _) => format!("{hours} h {minutes} min"),
        (days, hours, ..) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::snapshot::PeerState;

    fn peer(name: &str, state: PeerState, (since, next_check): (Instant, Instant)) -> PeerStatus {
        PeerStatus {
            id: 0,
            name: name.to_owned(),
            weight: 1,
            tier: 0,
            max_connections: None,
            state,
            since,
            reason: None,
            fault: None,
            is_full: false,
            is_at_limit: false,
            is_unresponsive: false,
            slow_since: None,
            is_being_removed: false,
            next_check,
            connections: 4,
            in_use: 2,
            connecting: 0,
            stuck_logins: 0,
            connects: 0,
            connect_failures: 0,
            checkouts: 0,
            queries: 0,
            query_time: Duration::ZERO,
            queries_lost: 0,
            transactions: TransactionCounts::default(),
        }
    }

    struct At<'a>(&'a Snapshot, Instant);

    impl fmt::Display for At<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write(self.0, self.1, f)
        }
    }

    #[track_caller]
    fn assert_is_in_the_guide(table: &str) {
        assert!(
            include_str!("../../../docs/observing.md").contains(&format!("```text\n{table}```")),
            "docs/observing.md must show this table:\n{table}"
        );
    }

    /// `docs/observing.md` shows these tables.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the start")]
    fn column_widths_fit_their_contents() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs_f64(seconds);
        let now = at(20_000.0);
        let times = |ago, next| (at(20_000.0 - ago), at(20_000.0 + next));
        let reason = "Can't connect to server on 'db1' (111)".to_owned();
        let peers = vec![
            peer("db0", PeerState::Up, times(11_520.0, 12.0)),
            PeerStatus {
                reason: Some(reason),
                connections: 0,
                in_use: 0,
                ..peer("db1", PeerState::Down, times(41.0, 5.3))
            },
            PeerStatus {
                connections: 1,
                in_use: 1,
                ..peer("db2", PeerState::Draining, times(2.1, 27.0))
            },
        ];
        let mut snapshot = Snapshot {
            closed: false,
            pool_name: "shop".to_owned(),
            host_failure: None,
            peers,
            events: Vec::new(),
            events_dropped: 0,
            retry_budget: 100,
            retry_budget_max: 100,
        };
        assert_is_in_the_guide(&At(&snapshot, now).to_string());
        snapshot.peers[1].transactions = TransactionCounts {
            retries: 1204,
            retries_refused: 31,
            commits_in_doubt: 5,
            found_committed: 3,
            found_aborted: 2,
            outcomes_unknown: 0,
            sessions_ended: 1,
        };
        snapshot.retry_budget = 8;
        let shown = At(&snapshot, now).to_string();
        let (_, transactions) = shown.split_once("\n\n").expect("a second table");
        assert_is_in_the_guide(transactions);
        assert_eq!(transactions.lines().count(), 3, "db0 and db2 have interrupted nothing");
    }

    #[test]
    fn durations_are_formatted_in_at_most_two_units() {
        for (seconds, expected) in [
            (0.25, "0.2 s"),
            (59.9, "59 s"),
            (61.0, "1 min 1 s"),
            (3_599.0, "59 min 59 s"),
            (7_260.0, "2 h 1 min"),
            (90_000.0, "1 d 1 h"),
        ] {
            assert_eq!(format_duration(Duration::from_secs_f64(seconds)), expected);
        }
        let remaining = |ms| format_remaining(Duration::from_millis(ms));
        assert_eq!((remaining(49), remaining(50).as_deref()), (None, Some("0.1 s")));
    }
}

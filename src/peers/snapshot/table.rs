//! A snapshot as a table that a person reads in a terminal.

use std::fmt;
use std::time::{Duration, Instant};

use super::{PeerState, PeerStatus, Snapshot};

const HEADS: [&str; 7] = ["peer", "state", "for", "weight", "links", "in use", "next check"];

/// Which of them are names, to the left; numbers stand to the right.
const LEFT: [bool; 7] = [true, true, false, false, false, false, false];

/// What is not shown as nothing.
const LEAST: Duration = Duration::from_millis(50);

/// The table at `now`.
pub(super) fn write(snapshot: &Snapshot, now: Instant, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let rows: Vec<[String; 7]> = snapshot.peers.iter().map(|peer| row(peer, now)).collect();
    let widths: Vec<usize> = (0..HEADS.len())
        .map(|column| {
            let cells = rows.iter().map(|row| row[column].chars().count());
            cells.chain([HEADS[column].len()]).max().unwrap_or_default()
        })
        .collect();
    let line = |f: &mut fmt::Formatter<'_>, cells: &[&str], after: &str| {
        let cell = |(column, cell): (usize, &&str)| {
            let width = widths[column];
            if LEFT[column] { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        };
        let cells: Vec<String> =
            cells.iter().enumerate().map(cell).chain([after.to_owned()]).collect();
        writeln!(f, "{}", cells.join("  ").trim_end())
    };
    line(f, &HEADS, "")?;
    for (row, peer) in rows.iter().zip(&snapshot.peers) {
        let cells: Vec<&str> = row.iter().map(String::as_str).collect();
        line(f, &cells, &remark(peer))?;
    }
    if snapshot.closed {
        writeln!(f, "The pool is closed; this was last known.")?;
    }
    Ok(())
}

fn row(peer: &PeerStatus, now: Instant) -> [String; 7] {
    let next_check = peer.next_check.saturating_duration_since(now);
    [
        peer.name.clone(),
        peer.state.to_string(),
        short(now.saturating_duration_since(peer.since)),
        peer.weight.to_string(),
        peer.connections.to_string(),
        peer.in_use.to_string(),
        until(next_check).unwrap_or_else(|| "now".to_owned()),
    ]
}

/// What there is to say besides.
fn remark(peer: &PeerStatus) -> String {
    match (&peer.reason, peer.state) {
        (Some(reason), PeerState::Down) => reason.clone(),
        (Some(reason), _) => format!("the last check failed: {reason}"),
        (None, _) if peer.is_being_removed => "to be removed".to_owned(),
        (None, _) if peer.is_full => "full".to_owned(),
        (None, _) if peer.is_unresponsive => "hesitant".to_owned(),
        (None, _) => String::new(),
    }
}

/// How long it is until then; none if it is now, as far as is shown.
pub(crate) fn until(left: Duration) -> Option<String> {
    (left >= LEAST).then(|| short(left))
}

/// In the two largest units that matter.
pub(crate) fn short(time: Duration) -> String {
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

    fn peer(name: &str, state: PeerState, (since, next_check): (Instant, Instant)) -> PeerStatus {
        PeerStatus {
            id: 0,
            name: name.to_owned(),
            weight: 1,
            tier: 0,
            state,
            since,
            reason: None,
            fault: None,
            is_full: false,
            is_unresponsive: false,
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
        }
    }

    struct At<'a>(&'a Snapshot, Instant);

    impl fmt::Display for At<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write(self.0, self.1, f)
        }
    }

    /// `docs/observing.md` shows this table.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the start")]
    fn columns_are_as_wide_as_they_must_be() {
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
        let events = Vec::new();
        let pool_name = "shop".to_owned();
        let snapshot = Snapshot { closed: false, pool_name, peers, events, events_dropped: 0 };
        let shown = At(&snapshot, now).to_string();
        assert!(
            include_str!("../../../docs/observing.md").contains(&shown),
            "in observing.md:\n{shown}"
        );
    }

    #[test]
    fn times_are_short() {
        for (seconds, expected) in [
            (0.25, "0.2 s"),
            (59.9, "59 s"),
            (61.0, "1 min 1 s"),
            (3_599.0, "59 min 59 s"),
            (7_260.0, "2 h 1 min"),
            (90_000.0, "1 d 1 h"),
        ] {
            assert_eq!(short(Duration::from_secs_f64(seconds)), expected);
        }
        let until = |ms| until(Duration::from_millis(ms));
        assert_eq!((until(49), until(50).as_deref()), (None, Some("0.1 s")));
    }
}

//! The report that the page shows, and its JSON.

use std::env;
use std::fs;
use std::process;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::events::Event;
use crate::fault::Fault;
use crate::peers::snapshot::{PeerState, PeerStatus, Snapshot, TransactionCounts};

/// The file in which Linux provides the name of the machine or container.
const HOST_FILE: &str = "/proc/sys/kernel/hostname";

/// The process that the page belongs to. The buttons act on this process only.
#[derive(Debug)]
pub(super) struct Process {
    id: String,
    pub(super) pid: u32,
    pub(super) host: Option<String>,
    pub(super) since: Instant,
}

impl Process {
    pub(super) fn current(id: String, now: Instant) -> Self {
        let host = fs::read_to_string(HOST_FILE).or_else(|_| env::var("HOSTNAME")).ok();
        let host = host.map(|host| host.trim().to_owned()).filter(|host| !host.is_empty());
        Self { id, pid: process::id(), host, since: now }
    }
}

/// The state of the pools at one moment.
#[derive(Debug)]
pub(super) struct StatusReport<'a> {
    pub(super) at: SystemTime,
    pub(super) now: Instant,
    pub(super) process: &'a Process,
    pub(super) has_actions: bool,
    /// Their names are unique.
    pub(super) pools: Vec<Snapshot>,
}

impl StatusReport<'_> {
    pub(super) fn to_json(&self) -> Value {
        let Process { id, pid, host, since } = self.process;
        json!({
            "at": rfc3339(self.at),
            "process": {
                "id": id,
                "pid": pid,
                "host": host,
                "uptime_seconds": self.since(*since).as_secs_f64(),
            },
            "actions": self.has_actions,
            "pools": self.pools.iter().map(|pool| self.pool(pool)).collect::<Vec<_>>(),
        })
    }

    fn pool(&self, pool: &Snapshot) -> Value {
        let available = available(pool);
        json!({
            "name": pool.pool_name,
            "closed": pool.closed,
            "events_dropped": pool.events_dropped,
            "host_failure": pool.host_failure,
            "retry_budget": pool.retry_budget,
            "retry_budget_max": pool.retry_budget_max,
            "peers": pool.peers.iter().map(|peer| self.peer(peer, available)).collect::<Vec<_>>(),
            "events": pool.events.iter().map(event).collect::<Vec<_>>(),
        })
    }

    fn peer(&self, peer: &PeerStatus, available: usize) -> Value {
        let duration = self.since(peer.since);
        json!({
            "id": peer.id,
            "name": peer.name,
            "state": peer.state.to_string(),
            "is_available": peer.is_available(),
            "since": rfc3339(self.at.checked_sub(duration).unwrap_or(self.at)),
            "for_seconds": duration.as_secs_f64(),
            "reason": peer.reason,
            "fault": peer.fault.map(Fault::as_str),
            "is_full": peer.is_full,
            "is_at_limit": peer.is_at_limit,
            "is_unresponsive": peer.is_unresponsive,
            "slow_for_seconds": peer.slow_since.map(|since| self.since(since).as_secs_f64()),
            "is_being_removed": peer.is_being_removed,
            "remarks": remarks(peer, available),
            "next_check_seconds": self.until(peer.next_check).as_secs_f64(),
            "weight": peer.weight,
            "tier": peer.tier,
            "max_connections": peer.max_connections,
            "connections": peer.connections,
            "in_use": peer.in_use,
            "connecting": peer.connecting,
            "stuck_logins": peer.stuck_logins,
            "connects": peer.connects,
            "connect_failures": peer.connect_failures,
            "checkouts": peer.checkouts,
            "queries": peer.queries,
            "query_seconds": peer.query_time.as_secs_f64(),
            "queries_lost": peer.queries_lost,
            "transactions": transactions(peer.transactions),
        })
    }

    pub(super) fn since(&self, instant: Instant) -> Duration {
        self.now.saturating_duration_since(instant)
    }

    pub(super) fn until(&self, instant: Instant) -> Duration {
        instant.saturating_duration_since(self.now)
    }
}

fn transactions(counts: TransactionCounts) -> Value {
    counts
        .columns()
        .into_iter()
        .map(|(key, _, value)| (key.to_owned(), Value::from(value)))
        .collect()
}

fn event(event: &Event) -> Value {
    json!({
        "at": rfc3339(event.at),
        "peer": event.peer,
        "event": event.kind.as_str(),
        "in_service": event.in_service,
        "text": event.to_string(),
    })
}

/// A time of day in UTC with milliseconds. The formatter rejects times before 1970, which machines with
/// an unset clock produce.
pub(super) fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time.max(UNIX_EPOCH)).to_string()
}

/// The number of peers of a pool that get new work.
pub(super) fn available(pool: &Snapshot) -> usize {
    pool.peers.iter().filter(|peer| peer.is_available()).count()
}

/// Sentences about a peer beyond its state. `available` is the number of available peers in its pool.
pub(super) fn remarks(peer: &PeerStatus, available: usize) -> Vec<String> {
    let is_down = peer.state.is_marked_down();
    let is_up = peer.state == PeerState::Up;
    let reason = peer.reason.as_ref().map(|reason| match peer.fault {
        Some(Fault::Misconfigured) if is_down => {
            sentence(&format!("The peer rejects the application's login: {reason}"))
        }
        _ if is_down => sentence(reason),
        _ => sentence(&format!("The last check failed: {reason}")),
    });
    let stuck_logins = format!(
        "Stuck logins: {}, given up at their deadline and impossible to abort.",
        peer.stuck_logins,
    );
    let at_limit = format!(
        "At its max_connections ({}), and no other peer has room: the pool lacks connections.",
        peer.max_connections.unwrap_or_default(),
    );
    let others = [
        (peer.is_being_removed, "The peer is being removed."),
        (
            peer.state == PeerState::Degraded && available > 0,
            "Its open connections work; they are used as the last choice until others replace them.",
        ),
        (
            is_down && available == 0 && peer.connections > 0,
            "No peer is available, so the open connections of this one stay in use.",
        ),
        (
            peer.is_full,
            "Full: the peer has no free connection; other peers get the new connections.",
        ),
        (peer.is_at_limit, &at_limit),
        (
            peer.is_unresponsive && is_up,
            "Unresponsive: a query is waiting and the peer sends no data; other peers are preferred.",
        ),
        (
            peer.slow_since.is_some(),
            "Slow: its queries take much longer than those of the other peers (an outlier).",
        ),
        (peer.stuck_logins > 0, &stuck_logins),
        (peer.weight == 0, "Weight 0: the peer gets no work."),
    ];
    let others = others.into_iter().filter(|(applies, _)| *applies);
    reason.into_iter().chain(others.map(|(_, remark)| remark.to_owned())).collect()
}

/// Ends a client library's message with a period, unless it has an end already.
fn sentence(message: &str) -> String {
    let message = message.trim_end();
    if message.ends_with(['.', '!', '?']) { message.to_owned() } else { format!("{message}.") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_day_are_rfc_3339_in_utc() {
        let time = UNIX_EPOCH + Duration::from_millis(1_709_164_800_007);
        assert_eq!(rfc3339(time), "2024-02-29T00:00:00.007Z");
        let unset = UNIX_EPOCH.checked_sub(Duration::from_secs(5)).expect("times can be negative");
        assert_eq!(rfc3339(unset), "1970-01-01T00:00:00.000Z", "an unset clock is no panic");
    }
}

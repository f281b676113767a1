//! What the page and its JSON tell.

use std::env;
use std::fs;
use std::process;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use super::time::Utc;
use crate::event::Event;
use crate::fault::Fault;
use crate::peers::snapshot::{PeerState, PeerStatus, Snapshot};

/// Where Linux tells how the machine, or the container, is called.
const HOST: &str = "/proc/sys/kernel/hostname";

/// Which process this is: what a button does, it does there alone.
#[derive(Debug)]
pub(super) struct Process {
    id: String,
    pub(super) pid: u32,
    pub(super) host: Option<String>,
    pub(super) since: Instant,
}

impl Process {
    pub(super) fn this(id: String, now: Instant) -> Self {
        let host = fs::read_to_string(HOST).or_else(|_| env::var("HOSTNAME")).ok();
        let host = host.map(|host| host.trim().to_owned()).filter(|host| !host.is_empty());
        Self { id, pid: process::id(), host, since: now }
    }
}

/// The pools at one moment.
#[derive(Debug)]
pub(super) struct Report<'a> {
    pub(super) at: SystemTime,
    pub(super) now: Instant,
    pub(super) process: &'a Process,
    pub(super) has_actions: bool,
    pub(super) pools: Vec<(String, Snapshot)>,
}

impl Report<'_> {
    pub(super) fn json(&self) -> Value {
        let Process { id, pid, host, .. } = self.process;
        let pools: Vec<Value> =
            self.pools.iter().map(|(name, pool)| self.pool(name, pool)).collect();
        json!({
            "at": Utc(self.at).to_string(),
            "process": {
                "id": id,
                "pid": pid,
                "host": host,
                "uptime_seconds": self.since(self.process.since).as_secs_f64(),
            },
            "actions": self.has_actions,
            "pools": pools,
        })
    }

    fn pool(&self, name: &str, pool: &Snapshot) -> Value {
        json!({
            "name": name,
            "closed": pool.closed,
            "events_dropped": pool.events_dropped,
            "peers": pool.peers.iter().map(|it| self.peer(it, is_served(pool))).collect::<Vec<_>>(),
            "events": pool.events.iter().map(event).collect::<Vec<_>>(),
        })
    }

    fn peer(&self, peer: &PeerStatus, is_served: bool) -> Value {
        let lasts = self.since(peer.since);
        json!({
            "id": peer.id,
            "name": peer.name,
            "state": peer.state.to_string(),
            "is_available": peer.is_available(),
            "since": Utc(self.at.checked_sub(lasts).unwrap_or(self.at)).to_string(),
            "for_seconds": lasts.as_secs_f64(),
            "reason": peer.reason,
            "fault": peer.fault.map(Fault::as_str),
            "is_full": peer.is_full,
            "is_unresponsive": peer.is_unresponsive,
            "is_being_removed": peer.is_being_removed,
            "remarks": remarks(peer, is_served),
            "next_check_seconds": self.until(peer.next_check).as_secs_f64(),
            "weight": peer.weight,
            "tier": peer.tier,
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
        })
    }

    pub(super) fn since(&self, instant: Instant) -> Duration {
        self.now.saturating_duration_since(instant)
    }

    pub(super) fn until(&self, instant: Instant) -> Duration {
        instant.saturating_duration_since(self.now)
    }
}

fn event(event: &Event) -> Value {
    json!({
        "at": Utc(event.at).to_string(),
        "peer": event.peer,
        "event": event.kind.as_str(),
        "in_service": event.in_service,
        "text": event.to_string(),
    })
}

/// What there is to say of a peer besides its state. It matters whether its pool has one that takes work.
pub(super) fn remarks(peer: &PeerStatus, is_served: bool) -> Vec<String> {
    let reason = peer.reason.as_ref().map(|reason| match (peer.state, peer.fault) {
        (PeerState::Down, Some(Fault::Misconfigured)) => {
            sentence(&format!("It does not let the application in: {reason}"))
        }
        (PeerState::Down, _) => sentence(reason),
        _ => sentence(&format!("The last check failed: {reason}")),
    });
    let full = "Full: it had no connection to give, and others get the new ones.";
    let unresponsive =
        "Hesitant: a query waits, and nothing was heard since; others are preferred.";
    let stuck_logins =
        format!("Stuck: {} logins hang there, and cannot be ended.", peer.stuck_logins);
    let is_last_resort = !is_served && peer.state == PeerState::Down && peer.connections > 0;
    let last_resort = "No peer takes work, so its connections from before go on being used.";
    let weight = "Its weight is 0: it gets no work.";
    let rest = [
        (peer.is_being_removed, "It is being removed."),
        (is_last_resort, last_resort),
        (peer.is_full, full),
        (peer.is_unresponsive && peer.state == PeerState::Up, unresponsive),
        (peer.stuck_logins > 0, stuck_logins.as_str()),
        (peer.weight == 0, weight),
    ];
    let rest = rest.into_iter().filter(|(is_so, _)| *is_so);
    reason.into_iter().chain(rest.map(|(_, remark)| remark.to_owned())).collect()
}

pub(super) fn is_served(pool: &Snapshot) -> bool {
    serving(pool) > 0
}

/// With a full stop at its end: others' words come without or with one.
fn sentence(words: &str) -> String {
    let words = words.trim_end();
    if words.ends_with(['.', '!', '?']) { words.to_owned() } else { format!("{words}.") }
}

/// How many peers of a pool take work.
pub(super) fn serving(pool: &Snapshot) -> usize {
    pool.peers.iter().filter(|peer| peer.is_available()).count()
}

//! Snapshots and events for serde: the keys are the names of the fields, and similar to the status page's
//! JSON. The differences are listed at each type.
//!
//! An [`Instant`] means nothing outside its process, so a moment is written as its distance from now in
//! seconds, under a key that ends in `_seconds`.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::ser::{Serialize, SerializeMap, SerializeStruct, Serializer};

use crate::events::{CloseReason, Event, EventKind};
use crate::fault::Fault;
use crate::peers::snapshot::{PeerState, PeerStatus, Snapshot, TransactionCounts};

/// Types that are written as the name that `as_str` returns.
macro_rules! serialize_as_str {
    ($($name:ty),+) => {
        $(
            impl Serialize for $name {
                fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                    serializer.serialize_str(self.as_str())
                }
            }
        )+
    };
}

serialize_as_str!(PeerState, Fault, CloseReason);

/// Keys: `closed`, `pool_name`, `host_failure`, `peers`, `events`, `events_dropped`, `retry_budget`,
/// `retry_budget_max`. (The status page's JSON has `name` in place of `pool_name`.) Keys may be added; within one major
/// version none is renamed or removed.
impl Serialize for Snapshot {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self {
            closed,
            pool_name,
            host_failure,
            peers,
            events,
            events_dropped,
            retry_budget,
            retry_budget_max,
        } = self;
        let mut snapshot = serializer.serialize_struct("Snapshot", 8)?;
        snapshot.serialize_field("closed", closed)?;
        snapshot.serialize_field("pool_name", pool_name)?;
        snapshot.serialize_field("host_failure", host_failure)?;
        snapshot.serialize_field("peers", peers)?;
        snapshot.serialize_field("events", events)?;
        snapshot.serialize_field("events_dropped", events_dropped)?;
        snapshot.serialize_field("retry_budget", retry_budget)?;
        snapshot.serialize_field("retry_budget_max", retry_budget_max)?;
        snapshot.end()
    }
}

/// Keys: the names of the fields; but `for_seconds` (the time in this state) in place of `since`, `slow_for_seconds` in
/// place of `slow_since`, `next_check_seconds` in place of `next_check`, and `query_seconds` in place of `query_time`.
/// The key `is_available` is added. (The status page's JSON also has `since` and `remarks`.) Keys may be added; within
/// one major version none is renamed or removed.
impl Serialize for PeerStatus {
    #[expect(clippy::disallowed_methods, reason = "moments are written as their distance from now")]
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let now = Instant::now();
        let Self {
            id,
            name,
            weight,
            tier,
            max_connections,
            state,
            since,
            reason,
            fault,
            is_full,
            is_at_limit,
            is_unresponsive,
            slow_since,
            is_being_removed,
            next_check,
            connections,
            in_use,
            connecting,
            stuck_logins,
            connects,
            connect_failures,
            checkouts,
            queries,
            query_time,
            queries_lost,
            transactions,
        } = self;
        let mut status = serializer.serialize_struct("PeerStatus", 27)?;
        status.serialize_field("id", id)?;
        status.serialize_field("name", name)?;
        status.serialize_field("weight", weight)?;
        status.serialize_field("tier", tier)?;
        status.serialize_field("max_connections", max_connections)?;
        status.serialize_field("state", state)?;
        status.serialize_field("is_available", &self.is_available())?;
        status.serialize_field("for_seconds", &seconds(now.saturating_duration_since(*since)))?;
        status.serialize_field("reason", reason)?;
        status.serialize_field("fault", fault)?;
        status.serialize_field("is_full", is_full)?;
        status.serialize_field("is_at_limit", is_at_limit)?;
        status.serialize_field("is_unresponsive", is_unresponsive)?;
        let slow_for = slow_since.map(|since| seconds(now.saturating_duration_since(since)));
        status.serialize_field("slow_for_seconds", &slow_for)?;
        status.serialize_field("is_being_removed", is_being_removed)?;
        let next_check = seconds(next_check.saturating_duration_since(now));
        status.serialize_field("next_check_seconds", &next_check)?;
        status.serialize_field("connections", connections)?;
        status.serialize_field("in_use", in_use)?;
        status.serialize_field("connecting", connecting)?;
        status.serialize_field("stuck_logins", stuck_logins)?;
        status.serialize_field("connects", connects)?;
        status.serialize_field("connect_failures", connect_failures)?;
        status.serialize_field("checkouts", checkouts)?;
        status.serialize_field("queries", queries)?;
        status.serialize_field("query_seconds", &seconds(*query_time))?;
        status.serialize_field("queries_lost", queries_lost)?;
        status.serialize_field("transactions", transactions)?;
        status.end()
    }
}

/// Keys: the names of the fields. Keys may be added; within one major version none is renamed or removed.
impl Serialize for TransactionCounts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let columns = self.columns();
        let mut counts = serializer.serialize_struct("TransactionCounts", columns.len())?;
        for (key, _, value) in columns {
            counts.serialize_field(key, &value)?;
        }
        counts.end()
    }
}

/// Keys: `at_unix_seconds`, `peer`, `in_service`, `event` (the name of the kind), `text` (the sentence of
/// the log), and the fields of the kind; of these, durations end in `_seconds`. (The status page's JSON has
/// `at` in place of `at_unix_seconds`, and not the fields of the kind.) Keys may be added; within one major
/// version none is renamed or removed.
impl Serialize for Event {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { at, peer, in_service, kind } = self;
        let mut event = serializer.serialize_map(None)?;
        event.serialize_entry("at_unix_seconds", &unix_seconds(*at))?;
        event.serialize_entry("peer", peer)?;
        event.serialize_entry("in_service", in_service)?;
        event.serialize_entry("event", kind.as_str())?;
        event.serialize_entry("text", &self.to_string())?;
        match kind {
            EventKind::Down { reason, fault, next_check } => {
                event.serialize_entry("reason", reason)?;
                event.serialize_entry("fault", fault)?;
                event.serialize_entry("next_check_seconds", &seconds(*next_check))?;
            }
            EventKind::Up { was_down } => {
                event.serialize_entry("was_down_seconds", &seconds(*was_down))?;
            }
            EventKind::Full { reason }
            | EventKind::Misconfigured { reason }
            | EventKind::TransactionInDoubt { reason }
            | EventKind::TransactionUnresolved { reason } => {
                event.serialize_entry("reason", reason)?;
            }
            EventKind::Drained { took } => {
                event.serialize_entry("took_seconds", &seconds(*took))?;
            }
            EventKind::WeightChanged { from, to } => {
                event.serialize_entry("from", from)?;
                event.serialize_entry("to", to)?;
            }
            EventKind::AtLimit { max_connections } => {
                event.serialize_entry("max_connections", max_connections)?;
            }
            EventKind::LimitChanged { from, to } => {
                event.serialize_entry("from", from)?;
                event.serialize_entry("to", to)?;
            }
            EventKind::ConnectFailed { reason, fault, took } => {
                event.serialize_entry("reason", reason)?;
                event.serialize_entry("fault", fault)?;
                event.serialize_entry("took_seconds", &seconds(*took))?;
            }
            EventKind::ConnectionClosed { reason, age } => {
                event.serialize_entry("reason", reason)?;
                event.serialize_entry("age_seconds", &seconds(*age))?;
            }
            EventKind::TransactionResolved { is_committed } => {
                event.serialize_entry("is_committed", is_committed)?;
            }
            EventKind::QueriesAborted { hung, aborted } => {
                event.serialize_entry("hung", hung)?;
                event.serialize_entry("aborted", aborted)?;
            }
            EventKind::Slow { query_time, others_query_time, is_relieved } => {
                event.serialize_entry("query_time_seconds", &seconds(*query_time))?;
                event.serialize_entry("others_query_time_seconds", &seconds(*others_query_time))?;
                event.serialize_entry("is_relieved", is_relieved)?;
            }
            EventKind::NoLongerSlow { was_slow } => {
                event.serialize_entry("was_slow_seconds", &seconds(*was_slow))?;
            }
            EventKind::HasRoom
            | EventKind::BelowLimit
            | EventKind::Draining
            | EventKind::Resumed
            | EventKind::Added
            | EventKind::Removed => {}
        }
        event.end()
    }
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

/// Returns the seconds since 1970. The result is negative for an earlier time, which a wrong clock may give.
fn unix_seconds(at: SystemTime) -> f64 {
    match at.duration_since(UNIX_EPOCH) {
        Ok(after) => seconds(after),
        Err(before) => -seconds(before.duration()),
    }
}

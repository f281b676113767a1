//! The catalog of all metrics: name, type, unit and description. The table in docs/observing.md has the same
//! descriptions.

use metrics::{Recorder, Unit};

/// A metric and its description for a recorder.
#[derive(Debug)]
pub(super) struct Metric {
    pub(super) name: &'static str,
    kind: MetricKind,
    description: &'static str,
}

#[derive(Debug)]
enum MetricKind {
    Gauge,
    Counter,
    /// A histogram of seconds.
    Histogram,
}

const fn gauge(name: &'static str, description: &'static str) -> Metric {
    Metric { name, kind: MetricKind::Gauge, description }
}

const fn counter(name: &'static str, description: &'static str) -> Metric {
    Metric { name, kind: MetricKind::Counter, description }
}

const fn histogram(name: &'static str, description: &'static str) -> Metric {
    Metric { name, kind: MetricKind::Histogram, description }
}

pub(super) static PEERS: Metric =
    gauge("diesel_peers_peers", "Number of peers of the pool; 0 after the pool was dropped.");
pub(super) static PEERS_AVAILABLE: Metric = gauge(
    "diesel_peers_peers_available",
    "Number of peers that can get new work: up, in service, and with a weight above 0 (of any tier).",
);
pub(super) static EVENTS_DROPPED: Metric = counter(
    "diesel_peers_events_dropped_total",
    "Events that were dropped because the event handler did not keep up.",
);
pub(super) static HOST_FAILED: Metric = gauge(
    "diesel_peers_host_failed",
    "1 if this host cannot open connections, whichever the peer; else 0.",
);
pub(super) static UP: Metric =
    gauge("diesel_peers_up", "1 if the peer is up or not checked yet; 0 if it is down.");
pub(super) static DEGRADED: Metric = gauge(
    "diesel_peers_degraded",
    "1 if the peer is down because of its logins and its sessions work: a query has ended since then on one of \
     its connections; else 0.",
);
pub(super) static IN_SERVICE: Metric = gauge(
    "diesel_peers_in_service",
    "1 if the peer is in service; 0 if it is draining or drained.",
);
pub(super) static FULL: Metric =
    gauge("diesel_peers_full", "1 if the peer had no free connection at the last login; else 0.");
pub(super) static AT_LIMIT: Metric = gauge(
    "diesel_peers_at_limit",
    "1 if the pool lacks connections because the peer has reached max_connections, and no other has room; else 0.",
);
pub(super) static UNRESPONSIVE: Metric = gauge(
    "diesel_peers_unresponsive",
    "1 if a query has been running for more than 100 ms without any answer from the peer since it \
     began; else 0.",
);
pub(super) static SLOW: Metric = gauge(
    "diesel_peers_slow",
    "1 if the peer is an outlier: alive, and much slower than the other peers; else 0.",
);
pub(super) static WEIGHT: Metric =
    gauge("diesel_peers_weight", "Weight of the peer: its proportion of the work.");
pub(super) static MAX_CONNECTIONS: Metric = gauge(
    "diesel_peers_max_connections",
    "The most connections that the pool may have with the peer; 0 without a limit.",
);
pub(super) static CONNECTIONS: Metric =
    gauge("diesel_peers_connections", "Open connections of the pool, in use or idle.");
pub(super) static IN_USE: Metric =
    gauge("diesel_peers_in_use", "Connections of the pool that are in use.");
pub(super) static CONNECTING: Metric =
    gauge("diesel_peers_connecting", "Logins for the pool that are in progress.");
pub(super) static STUCK_LOGINS: Metric =
    gauge("diesel_peers_stuck_logins", "Logins that passed their deadline and have not ended yet.");
pub(super) static DOWNS: Metric =
    counter("diesel_peers_downs_total", "Number of times the peer went from up to down.");
pub(super) static CHECKOUTS: Metric =
    counter("diesel_peers_checkouts_total", "Checkouts that the peer has served.");
pub(super) static QUERIES: Metric = counter(
    "diesel_peers_queries_total",
    "Queries that have ended, successfully or not; BEGIN and COMMIT count as queries.",
);
pub(super) static QUERIES_LOST: Metric =
    counter("diesel_peers_queries_lost_total", "Queries that ended with a lost connection.");
pub(super) static QUERIES_ABORTED: Metric = counter(
    "diesel_peers_queries_aborted_total",
    "Hung queries that were aborted because the peer was stalled.",
);
pub(super) static QUERY_DURATION: Metric = histogram(
    "diesel_peers_query_duration_seconds",
    "Duration of queries that have ended, successfully or not.",
);
pub(super) static RETRIES: Metric = counter(
    "diesel_peers_retries_total",
    "Transactions and reads that were interrupted on the peer and were run again.",
);
pub(super) static RETRIES_REFUSED: Metric = counter(
    "diesel_peers_retries_refused_total",
    "Transactions and reads that were interrupted on the peer and were not run again, because the retry budget \
     was used up.",
);
pub(super) static COMMITS_IN_DOUBT: Metric = counter(
    "diesel_peers_commits_in_doubt_total",
    "COMMITs whose error does not say whether they were executed.",
);
pub(super) static COMMITS_RESOLVED: Metric = counter(
    "diesel_peers_commits_resolved_total",
    "COMMITs in doubt whose outcome a ledger has found out, by outcome: committed, aborted.",
);
pub(super) static OUTCOMES_UNKNOWN: Metric = counter(
    "diesel_peers_outcomes_unknown_total",
    "Runs of transaction_with_retry whose outcome stayed unknown: no peer could decide, or the closure ended the \
     transaction.",
);
pub(super) static SESSIONS_ENDED: Metric = counter(
    "diesel_peers_sessions_ended_total",
    "Sessions of transactions whose connection was lost that were ended through the peer, with their locks.",
);
pub(super) static RETRY_BUDGET: Metric = gauge(
    "diesel_peers_retry_budget",
    "Retries that the pool may make at the moment; 100 at most.",
);
pub(super) static CONNECTS: Metric =
    counter("diesel_peers_connects_total", "Connections that were opened for the pool.");
pub(super) static CONNECT_FAILURES: Metric = counter(
    "diesel_peers_connect_failures_total",
    "Failed logins, for the pool and of health checks.",
);
pub(super) static CONNECT_DURATION: Metric = histogram(
    "diesel_peers_connect_duration_seconds",
    "Duration of successful logins for the pool.",
);
pub(super) static CONNECTIONS_CLOSED: Metric = counter(
    "diesel_peers_connections_closed_total",
    "Connections of the pool that were closed, by reason.",
);

static ALL: [&Metric; 34] = [
    &PEERS,
    &PEERS_AVAILABLE,
    &EVENTS_DROPPED,
    &HOST_FAILED,
    &RETRY_BUDGET,
    &UP,
    &DEGRADED,
    &IN_SERVICE,
    &FULL,
    &AT_LIMIT,
    &UNRESPONSIVE,
    &SLOW,
    &WEIGHT,
    &MAX_CONNECTIONS,
    &CONNECTIONS,
    &IN_USE,
    &CONNECTING,
    &STUCK_LOGINS,
    &DOWNS,
    &CHECKOUTS,
    &QUERIES,
    &QUERIES_LOST,
    &QUERIES_ABORTED,
    &QUERY_DURATION,
    &RETRIES,
    &RETRIES_REFUSED,
    &COMMITS_IN_DOUBT,
    &COMMITS_RESOLVED,
    &OUTCOMES_UNKNOWN,
    &SESSIONS_ENDED,
    &CONNECTS,
    &CONNECT_FAILURES,
    &CONNECT_DURATION,
    &CONNECTIONS_CLOSED,
];

/// Describes every metric to a recorder.
pub(super) fn describe(recorder: &dyn Recorder) {
    for Metric { name, kind, description } in ALL {
        let (name, description) = ((*name).into(), (*description).into());
        match kind {
            MetricKind::Gauge => recorder.describe_gauge(name, Some(Unit::Count), description),
            MetricKind::Counter => recorder.describe_counter(name, Some(Unit::Count), description),
            MetricKind::Histogram => {
                recorder.describe_histogram(name, Some(Unit::Seconds), description);
            }
        }
    }
}

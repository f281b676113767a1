//! Every metric: its name, its unit, and what it says. `docs/observing.md` has the same table.

use metrics::{Recorder, Unit};

/// A metric, as it is described to a recorder.
#[derive(Debug)]
pub(super) struct Metric {
    pub(super) name: &'static str,
    kind: Kind,
    meaning: &'static str,
}

#[derive(Debug)]
enum Kind {
    Gauge,
    Counter,
    /// Of seconds.
    Histogram,
}

const fn gauge(name: &'static str, meaning: &'static str) -> Metric {
    Metric { name, kind: Kind::Gauge, meaning }
}

const fn counter(name: &'static str, meaning: &'static str) -> Metric {
    Metric { name, kind: Kind::Counter, meaning }
}

const fn histogram(name: &'static str, meaning: &'static str) -> Metric {
    Metric { name, kind: Kind::Histogram, meaning }
}

pub(super) static PEERS: Metric =
    gauge("diesel_peers_peers", "Peers that the pool has; 0 when the pool is gone.");
pub(super) static SERVING: Metric = gauge(
    "diesel_peers_peers_available",
    "Peers that take new work: up, in service, and of a weight above 0.",
);
pub(super) static EVENTS_DROPPED: Metric = counter(
    "diesel_peers_events_dropped_total",
    "Events that the event handler was not told, as it had not kept up.",
);
pub(super) static UP: Metric =
    gauge("diesel_peers_up", "1 if it works, as far as is known; 0 while it is down.");
pub(super) static IN_SERVICE: Metric =
    gauge("diesel_peers_in_service", "1; 0 if it is drained or being drained.");
pub(super) static FULL: Metric =
    gauge("diesel_peers_full", "1 if it had no connection to give when it was last asked; else 0.");
pub(super) static UNRESPONSIVE: Metric = gauge(
    "diesel_peers_unresponsive",
    "1 if queries run there and nothing has been heard from it for 100 ms; else 0.",
);
pub(super) static WEIGHT: Metric = gauge("diesel_peers_weight", "Its proportion of the work.");
pub(super) static LINKS: Metric =
    gauge("diesel_peers_connections", "Connections of the pool that are open, in use or idle.");
pub(super) static IN_USE: Metric =
    gauge("diesel_peers_in_use", "Connections of the pool that are in use.");
pub(super) static CONNECTING: Metric =
    gauge("diesel_peers_connecting", "Logins for the pool that are under way.");
pub(super) static STUCK_LOGINS: Metric = gauge(
    "diesel_peers_stuck_logins",
    "Logins that were given up at their deadline, and could not be ended.",
);
pub(super) static DOWNS: Metric =
    counter("diesel_peers_downs_total", "How often it went from up to down.");
pub(super) static CHECKOUTS: Metric =
    counter("diesel_peers_checkouts_total", "Checkouts that it has served.");
pub(super) static QUERIES: Metric = counter(
    "diesel_peers_queries_total",
    "Queries that have ended there, well or not; BEGIN and COMMIT are some.",
);
pub(super) static QUERIES_LOST: Metric =
    counter("diesel_peers_queries_lost_total", "Queries that ended with a lost connection.");
pub(super) static QUERIES_ABORTED: Metric = counter(
    "diesel_peers_queries_aborted_total",
    "Queries that hung and were cut off, as the peer had stopped.",
);
pub(super) static QUERY_DURATION: Metric = histogram(
    "diesel_peers_query_duration_seconds",
    "How long the queries took that have ended there, well or not.",
);
pub(super) static CONNECTS: Metric =
    counter("diesel_peers_connects_total", "Connections that were made for the pool.");
pub(super) static CONNECT_FAILURES: Metric =
    counter("diesel_peers_connect_failures_total", "Failed logins, for the pool and of checks.");
pub(super) static CONNECT_DURATION: Metric = histogram(
    "diesel_peers_connect_duration_seconds",
    "How long the logins for the pool took that have succeeded.",
);
pub(super) static CONNECTIONS_CLOSED: Metric = counter(
    "diesel_peers_connections_closed_total",
    "Connections of the pool that were closed, by the reason.",
);

static ALL: [&Metric; 22] = [
    &PEERS,
    &SERVING,
    &EVENTS_DROPPED,
    &UP,
    &IN_SERVICE,
    &FULL,
    &UNRESPONSIVE,
    &WEIGHT,
    &LINKS,
    &IN_USE,
    &CONNECTING,
    &STUCK_LOGINS,
    &DOWNS,
    &CHECKOUTS,
    &QUERIES,
    &QUERIES_LOST,
    &QUERIES_ABORTED,
    &QUERY_DURATION,
    &CONNECTS,
    &CONNECT_FAILURES,
    &CONNECT_DURATION,
    &CONNECTIONS_CLOSED,
];

/// Tells a recorder what there is.
pub(super) fn describe(recorder: &dyn Recorder) {
    for Metric { name, kind, meaning } in ALL {
        let (name, meaning) = ((*name).into(), (*meaning).into());
        match kind {
            Kind::Gauge => recorder.describe_gauge(name, Some(Unit::Count), meaning),
            Kind::Counter => recorder.describe_counter(name, Some(Unit::Count), meaning),
            Kind::Histogram => recorder.describe_histogram(name, Some(Unit::Seconds), meaning),
        }
    }
}

//! Exports the counters and histograms of a peer.

use super::catalog;
use super::labeled::{LabeledRecorder, ReportedBuckets};
use crate::peers::counters::{CLOSE_REASONS, PeerCounters};
use crate::peers::set::peer_ref::PeerRef;

/// The counters of one peer, and their values as last reported.
#[derive(Debug)]
pub(super) struct Counters {
    peer: PeerRef,
    reported: Reported,
}

#[derive(Debug, Default)]
struct Reported {
    downs: u64,
    checkouts: u64,
    queries: u64,
    queries_lost: u64,
    queries_aborted: u64,
    query_times: ReportedBuckets,
    retries: u64,
    retries_refused: u64,
    commits_in_doubt: u64,
    found_committed: u64,
    found_aborted: u64,
    outcomes_unknown: u64,
    sessions_ended: u64,
    connects: u64,
    connect_failures: u64,
    logins: ReportedBuckets,
    closed: [u64; CLOSE_REASONS.len()],
}

impl Counters {
    pub(super) fn new(peer: PeerRef) -> Self {
        Self { peer, reported: Reported::default() }
    }

    /// Reports all changes since the last report.
    pub(super) fn report(&mut self, pool: &LabeledRecorder<'_>) {
        let Self { peer, reported } = self;
        let counters = &peer.activity.counters;
        let PeerCounters {
            checkouts,
            queries,
            queries_lost,
            queries_aborted,
            retries,
            retries_refused,
            commits_in_doubt,
            found_committed,
            found_aborted,
            outcomes_unknown,
            sessions_ended,
            logins,
            connects,
            connect_failures,
            downs,
            ..
        } = counters;
        let labeled = pool.with("peer", peer.name.clone());
        labeled.counter(&catalog::DOWNS, downs.get(), &mut reported.downs);
        labeled.counter(&catalog::CHECKOUTS, checkouts.get(), &mut reported.checkouts);
        labeled.counter(&catalog::QUERIES, queries.count(), &mut reported.queries);
        labeled.counter(&catalog::QUERIES_LOST, queries_lost.get(), &mut reported.queries_lost);
        labeled.counter(
            &catalog::QUERIES_ABORTED,
            queries_aborted.get(),
            &mut reported.queries_aborted,
        );
        labeled.histogram(&catalog::QUERY_DURATION, queries, &mut reported.query_times);
        labeled.counter(&catalog::RETRIES, retries.get(), &mut reported.retries);
        labeled.counter(
            &catalog::RETRIES_REFUSED,
            retries_refused.get(),
            &mut reported.retries_refused,
        );
        labeled.counter(
            &catalog::COMMITS_IN_DOUBT,
            commits_in_doubt.get(),
            &mut reported.commits_in_doubt,
        );
        for (outcome, found, reported) in [
            ("committed", found_committed, &mut reported.found_committed),
            ("aborted", found_aborted, &mut reported.found_aborted),
        ] {
            let labeled = labeled.with("outcome", outcome);
            labeled.counter(&catalog::COMMITS_RESOLVED, found.get(), reported);
        }
        labeled.counter(
            &catalog::OUTCOMES_UNKNOWN,
            outcomes_unknown.get(),
            &mut reported.outcomes_unknown,
        );
        labeled.counter(
            &catalog::SESSIONS_ENDED,
            sessions_ended.get(),
            &mut reported.sessions_ended,
        );
        labeled.counter(&catalog::CONNECTS, connects.get(), &mut reported.connects);
        labeled.counter(
            &catalog::CONNECT_FAILURES,
            connect_failures.get(),
            &mut reported.connect_failures,
        );
        labeled.histogram(&catalog::CONNECT_DURATION, logins, &mut reported.logins);
        for (reason, reported) in CLOSE_REASONS.into_iter().zip(&mut reported.closed) {
            let labeled = labeled.with("reason", reason.as_str());
            labeled.counter(&catalog::CONNECTIONS_CLOSED, counters.closed(reason).get(), reported);
        }
    }
}

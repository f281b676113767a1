//! What is counted on a peer, and how much of it was told.

use std::sync::Arc;

use super::catalog;
use super::labeled::{Labeled, ToldTimes};
use crate::peers::activity::Activity;
use crate::peers::counters::{CLOSE_REASONS, PeerCounters};
use crate::peers::peer::Peer;

/// What is counted on one peer, and how much of it was told.
#[derive(Debug)]
pub(super) struct Counters {
    name: Arc<str>,
    activity: Arc<Activity>,
    told: Told,
}

#[derive(Debug, Default)]
struct Told {
    downs: u64,
    checkouts: u64,
    queries: u64,
    queries_lost: u64,
    queries_aborted: u64,
    query_times: ToldTimes,
    connects: u64,
    connect_failures: u64,
    logins: ToldTimes,
    retired: [u64; CLOSE_REASONS.len()],
}

impl Counters {
    pub(super) fn of(peer: &Peer) -> Self {
        Self { name: peer.name.clone(), activity: peer.activity.clone(), told: Told::default() }
    }

    pub(super) fn tell(&mut self, pool: &Labeled<'_>) {
        let Self { name, activity, told } = self;
        let PeerCounters {
            checkouts,
            queries,
            queries_lost,
            queries_aborted,
            logins,
            connects,
            connect_failures,
            downs,
            ..
        } = &activity.counters;
        let to = pool.with("peer", name.clone());
        to.counter(&catalog::DOWNS, downs.get(), &mut told.downs);
        to.counter(&catalog::CHECKOUTS, checkouts.get(), &mut told.checkouts);
        to.counter(&catalog::QUERIES, queries.count(), &mut told.queries);
        to.counter(&catalog::QUERIES_LOST, queries_lost.get(), &mut told.queries_lost);
        to.counter(&catalog::QUERIES_ABORTED, queries_aborted.get(), &mut told.queries_aborted);
        to.histogram(&catalog::QUERY_DURATION, queries, &mut told.query_times);
        to.counter(&catalog::CONNECTS, connects.get(), &mut told.connects);
        to.counter(&catalog::CONNECT_FAILURES, connect_failures.get(), &mut told.connect_failures);
        to.histogram(&catalog::CONNECT_DURATION, logins, &mut told.logins);
        for (reason, told) in CLOSE_REASONS.into_iter().zip(&mut told.retired) {
            let to = to.with("reason", reason.as_str());
            to.counter(&catalog::CONNECTIONS_CLOSED, activity.counters.closed(reason).get(), told);
        }
    }
}

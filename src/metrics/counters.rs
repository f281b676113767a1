//! What is counted on a peer, and how much of it was told.

use std::sync::Arc;

use super::catalog;
use super::labelled::{Labelled, ToldTimes};
use crate::peers::peer::Peer;
use crate::peers::pulse::Pulse;
use crate::peers::tally::{RETIRED, Tally};

/// What is counted on one peer, and how much of it was told.
#[derive(Debug)]
pub(super) struct Counters {
    name: Arc<str>,
    pulse: Arc<Pulse>,
    told: Told,
}

#[derive(Debug, Default)]
struct Told {
    downs: u64,
    check_outs: u64,
    queries: u64,
    lost: u64,
    cut_off: u64,
    query_times: ToldTimes,
    connects: u64,
    failures: u64,
    logins: ToldTimes,
    retired: [u64; RETIRED.len()],
}

impl Counters {
    pub(super) fn of(peer: &Peer) -> Self {
        Self { name: peer.name.clone(), pulse: peer.pulse.clone(), told: Told::default() }
    }

    pub(super) fn tell(&mut self, pool: &Labelled<'_>) {
        let Self { name, pulse, told } = self;
        let Tally { check_outs, queries, lost, cut_off, logins, connects, failures, downs, .. } =
            &pulse.tally;
        let to = pool.with("peer", name.clone());
        to.counter(&catalog::DOWNS, downs.get(), &mut told.downs);
        to.counter(&catalog::CHECK_OUTS, check_outs.get(), &mut told.check_outs);
        to.counter(&catalog::QUERIES, queries.count(), &mut told.queries);
        to.counter(&catalog::QUERIES_LOST, lost.get(), &mut told.lost);
        to.counter(&catalog::QUERIES_CUT_OFF, cut_off.get(), &mut told.cut_off);
        to.histogram(&catalog::QUERY_DURATION, queries, &mut told.query_times);
        to.counter(&catalog::CONNECTS, connects.get(), &mut told.connects);
        to.counter(&catalog::CONNECT_FAILURES, failures.get(), &mut told.failures);
        to.histogram(&catalog::CONNECT_DURATION, logins, &mut told.logins);
        for (why, told) in RETIRED.into_iter().zip(&mut told.retired) {
            let to = to.with("reason", why.as_str());
            to.counter(&catalog::LINKS_RETIRED, pulse.tally.retired(why).get(), told);
        }
    }
}

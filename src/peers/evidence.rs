//! Whether a failed login is its peer's failure or this host's: a function of the newest logins of all peers.
//!
//! A name that cannot be resolved, a network without a route and a lack of ports may concern one peer or
//! all. If only one peer fails in such a way, that peer is down. If all fail alike, their sessions very likely
//! work, and nothing is known of the peers. Until the others have been tried, the failure is undecided.

use std::time::Instant;

use crate::fault::host::{HostFailure, Lack};
use crate::peers::peer::Attempt;

/// What the newest login or check of a peer says about this host.
#[derive(Debug, Default, Clone)]
pub(crate) struct Evidence {
    newest: Option<Newest>,
    /// The failure of the newest login, until it is decided whose it is.
    pub(crate) undecided: Option<Undecided>,
}

/// When the newest login or check of a peer began, and what it lacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Newest {
    began: Instant,
    lack: Option<Lack>,
}

/// A failure of which it is not known whether it is the peer's or this host's.
#[derive(Debug, Clone)]
pub(crate) struct Undecided {
    pub(crate) attempt: Attempt,
    pub(crate) failure: HostFailure,
}

/// Whose failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    Peer,
    Host,
    /// The other peers have to be tried.
    Undecided,
}

impl Evidence {
    /// Records that a login or check has ended that did not fail for a lack on this host.
    pub(crate) fn reached(&mut self, began: Instant) {
        self.record(Newest { began, lack: None }, None);
    }

    /// Records a failure that may be this host's.
    pub(crate) fn failed(&mut self, attempt: Attempt, failure: HostFailure) {
        let newest = Newest { began: attempt.began, lack: Some(failure.lack) };
        self.record(newest, Some(Undecided { attempt, failure }));
    }

    fn record(&mut self, newest: Newest, undecided: Option<Undecided>) {
        if self.newest.is_none_or(|last| last.began <= newest.began) {
            self.newest = Some(newest);
            self.undecided = undecided;
        }
    }

    /// Whether the newest login failed for a lack that may be this host's. A host without a network cannot
    /// resolve the name of one peer, and has no route to the address of another.
    pub(crate) fn may_be_of_host(&self) -> bool {
        self.newest.and_then(|newest| newest.lack).is_some_and(|lack| lack != Lack::Way)
    }
}

/// Decides whose failure it is that a login which began at `began` failed for this lack, from the newest logins
/// of all other peers. `has_links` is whether the pool has a connection to any peer: otherwise no session is
/// worth protecting, and the peers are down for whatever reason.
pub(crate) fn judge<'a>(
    lack: Lack,
    began: Instant,
    others: impl Iterator<Item = &'a Evidence>,
    has_links: bool,
) -> Origin {
    if lack == Lack::Way || !has_links {
        return Origin::Peer;
    }
    let mut origin = Origin::Host;
    for other in others.filter(|other| !other.may_be_of_host()) {
        if other.newest.is_some_and(|newest| newest.began >= began) {
            return Origin::Peer;
        }
        origin = Origin::Undecided;
    }
    origin
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the start")]
    fn failure_is_this_hosts_when_all_peers_fail_alike() {
        use Lack::{Name, Network, Way};
        use Origin::{Host, Peer, Undecided};
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        // The newest login of another peer: when it began, and what it lacked.
        let never = None;
        let reached = |began| Some((began, None));
        let failed = |began, lack| Some((began, Some(lack)));
        // A login that began at 10 failed because the name of its peer was not resolved.
        let cases = [
            ("no other peer", vec![], true, Host),
            ("no other peer and no connection", vec![], false, Peer),
            ("another fails alike", vec![failed(11, Name)], true, Host),
            ("another failed alike long ago", vec![failed(1, Name)], true, Host),
            ("both fail alike, and there is no connection", vec![failed(11, Name)], false, Peer),
            ("another was never tried", vec![never], true, Undecided),
            ("another was reached before", vec![reached(9)], true, Undecided),
            ("another was reached since", vec![reached(10)], true, Peer),
            ("another fails for another lack", vec![failed(11, Network)], true, Host),
            ("no way leads to another since", vec![failed(11, Way)], true, Peer),
            ("no way led to another before", vec![failed(9, Way)], true, Undecided),
            ("one of two fails alike", vec![failed(11, Name), never], true, Undecided),
            ("one of two was reached", vec![failed(11, Name), reached(12)], true, Peer),
            ("one of two was reached, first", vec![reached(12), failed(11, Name)], true, Peer),
        ];
        for (case, others, has_links, expected) in cases {
            let evidence = |newest: Option<(u64, Option<Lack>)>| Evidence {
                newest: newest.map(|(began, lack)| Newest { began: at(began), lack }),
                undecided: None,
            };
            let others: Vec<Evidence> = others.into_iter().map(evidence).collect();
            assert_eq!(judge(Name, at(10), others.iter(), has_links), expected, "{case}");
        }
    }
}

//! Changes by an operator at run time: which peers there are, which of them are in service, and
//! their weights and limits.

use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::{PeerSet, Transaction};
use crate::error::PeersError;
use crate::peers::admin_state::AdminState;
use crate::peers::peer::Peer;
use crate::peers::peer_config::PeerConfig;
use crate::peers::set::peer_ref::PeerRef;
use crate::redact::shown_name;
use crate::url::PeerUrl;

impl PeerSet {
    /// Adds a peer.
    pub(crate) fn add(
        self: &Arc<Self>,
        config: PeerConfig,
        now: Instant,
    ) -> Result<(), PeersError> {
        let urls = self.validator.validate(std::slice::from_ref(&config))?;
        self.change(now, |transaction| {
            if member_by_name(transaction.peers(), &config.name).is_some() {
                return Err(PeersError::NameTaken { name: config.name });
            }
            for url in urls {
                transaction.insert_and_check(&config, url);
            }
            Ok(())
        })
    }

    /// Replaces the set of peers by `configs`. Peers that stay keep their state and their
    /// connections.
    pub(crate) fn replace(
        self: &Arc<Self>,
        configs: &[PeerConfig],
        now: Instant,
    ) -> Result<(), PeersError> {
        if configs.is_empty() {
            return Err(PeersError::NoPeers { prefixes: Vec::new() });
        }
        let urls = self.validator.validate(configs)?;
        self.validator.validate_hosts(configs, &urls)?;
        self.change(now, |transaction| {
            let expanded = transaction.expand_hosts(configs, &urls);
            let stays = |peer: &Peer| {
                peer.is_member()
                    && expanded.iter().any(|(config, url)| {
                        config.name == *peer.name && url.has_same_target(&peer.url)
                    })
            };
            let peers = transaction.peers();
            let weight = |config: &PeerConfig| {
                let known = peers.iter().find(|peer| stays(peer) && *peer.name == config.name);
                config.weight.or(known.map(|peer| peer.weight)).unwrap_or(1)
            };
            if expanded.iter().all(|(config, _)| weight(config) == 0) {
                return Err(PeersError::NoWeight);
            }
            let staying: Vec<bool> = peers.iter().map(stays).collect();
            for (index, stays) in staying.into_iter().enumerate() {
                if !stays {
                    transaction.update(index, |peer, _| peer.admin_state.remove(now));
                }
            }
            for (config, url) in expanded {
                match member_by_name(transaction.peers(), &config.name) {
                    Some(index) => transaction.update(index, |peer, _| {
                        peer.url = Arc::new(url);
                        peer.tier = config.tier.unwrap_or(peer.tier);
                        peer.weight = config.weight.unwrap_or(peer.weight);
                        peer.max_connections = config.max_connections.or(peer.max_connections);
                    }),
                    None => transaction.insert_and_check(&config, url),
                }
            }
            transaction.replace_hosts(configs, urls);
            Ok(())
        })
    }

    /// Drains a peer, and removes it when it is drained.
    pub(crate) fn remove(self: &Arc<Self>, name: &str, now: Instant) -> Result<Drain, PeersError> {
        self.change(now, |transaction| {
            let index = find_member(transaction.peers(), name)?;
            if !others_have_weight(transaction.peers(), index) {
                return Err(PeersError::LastPeer { name: name.to_owned() });
            }
            transaction.update(index, |peer, _| peer.admin_state.remove(now));
            Ok(Drain { peer: transaction.peer_ref(index) })
        })
    }

    /// Drains a peer: it gets no new work.
    pub(crate) fn drain(self: &Arc<Self>, name: &str, now: Instant) -> Result<Drain, PeersError> {
        self.change(now, |transaction| {
            let index = find_member(transaction.peers(), name)?;
            transaction.update(index, |peer, _| peer.admin_state.drain(now));
            Ok(Drain { peer: transaction.peer_ref(index) })
        })
    }

    /// Puts a peer back into service.
    pub(crate) fn resume(self: &Arc<Self>, name: &str, now: Instant) -> Result<(), PeersError> {
        self.change(now, |transaction| {
            let index = find_member(transaction.peers(), name)?;
            transaction.update(index, |peer, _| peer.resume(now));
            Ok(())
        })
    }

    /// Sets a peer's proportion of the work.
    pub(crate) fn set_weight(
        self: &Arc<Self>,
        name: &str,
        weight: u32,
        now: Instant,
    ) -> Result<(), PeersError> {
        self.change(now, |transaction| {
            let index = find_member(transaction.peers(), name)?;
            if weight == 0 && !others_have_weight(transaction.peers(), index) {
                return Err(PeersError::NoWeight);
            }
            transaction.update(index, |peer, _| peer.weight = weight);
            Ok(())
        })
    }

    /// Sets the limit of a peer's connections.
    pub(crate) fn set_max_connections(
        self: &Arc<Self>,
        name: &str,
        max_connections: Option<u32>,
        now: Instant,
    ) -> Result<(), PeersError> {
        self.change(now, |transaction| {
            let index = find_member(transaction.peers(), name)?;
            if max_connections == Some(0) {
                return Err(PeersError::NoConnections { name: name.to_owned() });
            }
            transaction.update(index, |peer, _| peer.max_connections = max_connections);
            Ok(())
        })
    }

    /// Requests a check of a peer now.
    pub(crate) fn check_now(self: &Arc<Self>, name: &str, now: Instant) -> Result<(), PeersError> {
        self.change(now, |transaction| {
            let index = find_member(transaction.peers(), name)?;
            transaction.update(index, |peer, _| peer.check_now(now));
            Ok(())
        })
    }
}

impl Transaction<'_> {
    /// Adds a peer that is checked at once.
    fn insert_and_check(&mut self, config: &PeerConfig, url: PeerUrl) {
        let (index, now) = (self.insert(config, url), self.now);
        self.update(index, |peer, _| peer.check_now(now));
    }
}

/// Whether any peer other than the one at this index may get work.
pub(super) fn others_have_weight(peers: &[Peer], index: usize) -> bool {
    let mut others = peers.iter().enumerate().filter(|(other, _)| *other != index);
    others.any(|(_, peer)| peer.is_member() && peer.weight > 0)
}

/// Returns the index of the member of this name, if there is one.
pub(super) fn member_by_name(peers: &[Peer], name: &str) -> Option<usize> {
    peers.iter().position(|peer| peer.is_member() && *peer.name == *name)
}

/// Returns the index of the member of this name, or the error that an operator gets if there is
/// none.
fn find_member(peers: &[Peer], name: &str) -> Result<usize, PeersError> {
    member_by_name(peers, name).ok_or_else(|| {
        let members = peers.iter().filter(|peer| peer.is_member());
        let names = members.map(|peer| peer.name.to_string()).collect();
        PeersError::UnknownPeer { setting: None, name: shown_name(name), names }
    })
}

/// A handle that waits until a peer is drained, from [`Peers::drain`] and [`Peers::remove`].
///
/// Dropping the handle has no effect on the peer. The guide has the steps of a maintenance
/// ([drain](crate::guide::operating#drain-it-in-the-application)).
///
/// [`Peers::drain`]: crate::Peers::drain
/// [`Peers::remove`]: crate::Peers::remove
pub struct Drain {
    peer: PeerRef,
}

impl Drain {
    /// Waits until the pool has no session with the peer any more, for at most `timeout`.
    ///
    /// Returns `true` if the pool has no session with the peer. Returns `false` after the timeout,
    /// or at once if the peer is in service again.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the wait is bounded")]
    pub fn wait(&self, timeout: Duration) -> bool {
        let end = Instant::now().checked_add(timeout);
        let set = &self.peer.set;
        let mut inner = set.lock();
        loop {
            if let Some(outcome) = self.outcome(&inner.peers) {
                return outcome;
            }
            let left =
                end.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return false;
            }
            // The checker of a closed pool does not notify any more, so the wait is split into
            // short ones.
            let (guard, _) = set
                .changes
                .wait_timeout(inner, left.min(super::DRAIN_POLL_INTERVAL))
                .unwrap_or_else(PoisonError::into_inner);
            inner = guard;
        }
    }

    /// Returns the result of the wait, or `None` while the peer is draining.
    fn outcome(&self, peers: &[Peer]) -> Option<bool> {
        let Some(peer) = peers.iter().find(|peer| peer.id == self.peer.id) else {
            return Some(true);
        };
        match peer.admin_state {
            AdminState::Drained { .. } | AdminState::Removed => Some(true),
            AdminState::InService => Some(false),
            AdminState::Draining { .. }
                if self.peer.set.is_closed() && peer.activity.open_sessions() == 0 =>
            {
                Some(true)
            }
            AdminState::Draining { .. } => None,
        }
    }
}

impl fmt::Debug for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Drain").field("peer", &self.peer.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::EventKind;
    use crate::fault::{Fault, LoginFailure};
    use crate::health::checker::tests::tick;
    use crate::peers::peer::{Attempt, CheckKind};
    use crate::peers::set::DRAIN_POLL_INTERVAL;
    use crate::peers::set::tests::{is_up, set_of, take_down};
    use crate::settings::policy::Recovery;
    use crate::settings::tests::INTERVAL;

    #[test]
    fn index_of_a_removed_peer_is_reused_once_nothing_refers_to_it() {
        let (set, _woken, now) = set_of(2, Recovery::AfterCheck);
        let index_count = || set.read(<[Peer]>::len);
        let add = |name: &str| set.add(PeerConfig::new(name, "url"), now).expect("the name is new");
        add("db2");
        assert_eq!(index_count(), 3);
        set.remove("db2", now).expect("the peer exists");
        let (checks, _) = tick(&set, now);
        assert_eq!(checks.len(), 1, "a new peer is checked at once");
        add("db3");
        assert_eq!(index_count(), 4, "a running check keeps the index of its peer");
        let ended = |peer: usize| {
            set.update(peer, now, |peer, check_times| {
                let skipped = Err(LoginFailure::NotAttempted("no thread".into()));
                peer.check_ended(CheckKind::Regular, Attempt::at(now), skipped, check_times);
            });
        };
        ended(2);
        add("db4");
        assert_eq!(index_count(), 4, "an index is reused after the check has ended");
        let names =
            set.read(|peers| peers.iter().map(|peer| peer.name.clone()).collect::<Vec<_>>());
        assert_eq!(*names[2], *"db4");
        for round in 0..1000 {
            let name = format!("round{round}");
            add(&name);
            set.remove(&name, now).expect("the peer exists");
            let (checks, _) = tick(&set, now);
            for check in checks {
                ended(check.peer.index);
            }
        }
        assert_eq!(index_count(), 5, "a set that changes often does not grow");
    }

    #[test]
    fn what_comes_late_for_a_removed_peer_does_not_concern_the_peer_with_its_index() {
        let (set, _woken, now) = set_of(2, Recovery::AfterCheck);
        let removed = set.transaction(now, |transaction| transaction.peer_ref(1));
        set.remove("peer1", now).expect("the peer exists");
        tick(&set, now);
        set.add(PeerConfig::new("db2", "url"), now).expect("the name is new");
        assert_eq!(set.read(|peers| peers[1].name.to_string()), "db2", "the index is reused");
        removed.update(now, |peer, check_times| {
            let refused = LoginFailure::refused(Fault::PeerDown, "refused");
            peer.late_check_ended(now, Err(refused), check_times);
        });
        assert!(is_up(&set, 1), "the outcome of a check");
        removed.record(EventKind::TransactionResolved { is_committed: true });
        let last = set.event_log.history().pop().expect("an event");
        assert_eq!(*last.peer, *"peer1", "the outcome of a transaction");
    }

    #[test]
    fn removed_peer_causes_no_events_and_no_checks() {
        for recovery in [Recovery::AfterCheck, Recovery::AfterInterval] {
            let (set, _woken, now) = set_of(2, recovery);
            set.remove("peer1", now).expect("the peer exists");
            tick(&set, now);
            let events = || set.event_log.history().len();
            let before = events();
            take_down(&set, 1, now);
            let later = now + 10 * INTERVAL;
            let (checks, _) = tick(&set, later);
            assert!(
                checks.iter().all(|check| check.peer.index == 0),
                "{recovery:?}: a removed peer is not checked"
            );
            assert!(
                !set.read(|peers| peers[1].is_up()),
                "{recovery:?}: the mark of a removed peer is not cleared"
            );
            assert_eq!(events(), before, "{recovery:?}: a removed peer causes no events");
        }
    }

    #[test]
    fn added_peers_are_checked_at_once() {
        let (set, _woken, now) = set_of(1, Recovery::AfterCheck);
        tick(&set, now);
        let checked = || {
            let (checks, _) = tick(&set, now);
            checks.iter().map(|check| check.peer.index).collect::<Vec<_>>()
        };
        assert_eq!(checked(), [0; 0]);
        set.add(PeerConfig::new("peer1", "url1"), now).expect("the name is new");
        assert_eq!(checked(), [1]);
        let all = ["peer0", "peer1", "peer2"]
            .map(|name| PeerConfig::new(name, name.replace("peer", "url")));
        set.replace(&all, now).expect("the peers are valid");
        assert_eq!(checked(), [2]);
    }

    #[test]
    fn peer_is_drained_from_the_moment_it_has_no_session() {
        let (set, _woken, now) = set_of(2, Recovery::AfterCheck);
        let later = now + INTERVAL / 10;
        tick(&set, now);
        set.update_counts(0, |counts| counts.connecting = 1);
        let drain = set.drain("peer0", now).expect("the peer exists");
        let (_, next) = tick(&set, now);
        assert!(next <= Some(now + DRAIN_POLL_INTERVAL), "a draining peer is polled");
        set.update_counts(0, |counts| counts.connecting = 0);
        assert!(!drain.wait(Duration::ZERO), "the checker has not polled the peer yet");
        tick(&set, later);
        assert!(drain.wait(Duration::ZERO));
        assert_eq!(set.read(|peers| peers[0].admin_state), AdminState::Drained { since: later });
    }

    /// The checker of a closed pool does not poll any more.
    #[test]
    fn peer_of_a_closed_pool_is_drained_when_its_last_session_has_ended() {
        let (set, _woken, now) = set_of(2, Recovery::AfterCheck);
        let session = Arc::default();
        set.read(|peers| peers[0].activity.add_link(Arc::clone(&session)));
        let drain = set.drain("peer0", now).expect("the peer exists");
        set.close();
        assert!(!drain.wait(Duration::ZERO), "a session is still open");
        set.read(|peers| peers[0].activity.remove_link(&session));
        assert!(drain.wait(Duration::ZERO));
    }

    #[test]
    fn replaced_peer_with_another_url_is_a_new_peer() {
        let (set, _woken, now) = set_of(2, Recovery::AfterCheck);
        let ids = || {
            set.read(|peers| {
                let members = peers.iter().filter(|peer| peer.is_member());
                members.map(|peer| peer.id).collect::<Vec<_>>()
            })
        };
        let peers = |urls: [&str; 2]| {
            let config = |(index, url): (usize, &str)| PeerConfig::new(format!("peer{index}"), url);
            urls.into_iter().enumerate().map(config).collect::<Vec<_>>()
        };
        set.replace(&peers(["url0", "url1"]), now).expect("the peers are valid");
        assert_eq!(ids(), [1, 2], "both stay");
        set.replace(&peers(["url0", "url7"]), now).expect("the peers are valid");
        assert_eq!(ids(), [1, 3], "a peer with another URL is a new one");
        let epoch = set.epoch();
        let tiered = peers(["url0", "url7"]).into_iter().map(|config| config.tier(2));
        set.replace(&tiered.collect::<Vec<_>>(), now).expect("the peers are valid");
        assert_eq!(ids(), [1, 3], "both stay");
        assert!(set.epoch() > epoch, "a change of tiers is a change of state");
        set.replace(&peers(["url0", "url7"]), now).expect("the peers are valid");
        assert_eq!(set.read(|peers| peers[0].tier), 2, "a tier that is not given stays");
    }

    #[test]
    fn requested_check_is_made_also_when_marks_expire_without_a_check() {
        let (set, _woken, now) = set_of(2, Recovery::AfterInterval);
        set.update(0, now, |peer, check_times| peer.query_refused(now, check_times));
        tick(&set, now);
        set.update(0, now, |peer, check_times| {
            let skipped = Err(LoginFailure::NotAttempted("no thread".into()));
            peer.check_ended(CheckKind::Regular, Attempt::at(now), skipped, check_times);
        });
        set.check_now("peer0", now).expect("the peer exists");
        let (checks, _) = tick(&set, now);
        assert_eq!(checks.len(), 1, "the requested check begins");
        assert!(!set.read(|peers| peers[0].is_up()), "the mark is not cleared before that check");
    }
}

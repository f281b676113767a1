//! What an operator changes while the pool works: who is a peer, which of them serve, and how much.

use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::{Inner, PeerSet};
use crate::error::{Kind, shown_name};
use crate::event::EventKind;
use crate::peers::activity::Activity;
use crate::peers::admin_state::AdminState;
use crate::peers::admission::PeerConfig;
use crate::peers::journal::News;
use crate::peers::peer::Peer;
use crate::url::PeerUrl;

impl PeerSet {
    /// A peer more.
    pub(crate) fn add(&self, config: PeerConfig, now: Instant) -> Result<(), Kind> {
        let urls = self.admission.check(std::slice::from_ref(&config))?;
        self.change(|inner, news| {
            if place_of(&inner.peers, &config.name).is_some() {
                return Err(Kind::NameTaken { name: config.name });
            }
            for url in urls {
                let at = self.admit(inner, &config, url, now, news);
                inner.peers[at].check_now(now);
            }
            Ok(())
        })
    }

    /// These peers, and no others. Those that stay keep their state and their connections.
    pub(crate) fn replace(&self, configs: &[PeerConfig], now: Instant) -> Result<(), Kind> {
        if configs.is_empty() {
            return Err(Kind::NoPeers { prefixes: Vec::new() });
        }
        let urls = self.admission.check(configs)?;
        self.admission.check_hosts(configs, &urls)?;
        self.change(|inner, news| {
            let given = self.by_address(inner, configs, &urls);
            let stays = |peer: &Peer| {
                peer.is_member()
                    && given.iter().any(|(config, url)| {
                        config.name == *peer.name && url.has_same_target(&peer.url)
                    })
            };
            let weight = |config: &PeerConfig| {
                let known =
                    inner.peers.iter().find(|peer| stays(peer) && *peer.name == config.name);
                config.weight.or(known.map(|peer| peer.weight)).unwrap_or(1)
            };
            if given.iter().all(|(config, _)| weight(config) == 0) {
                return Err(Kind::NoWeight);
            }
            let staying: Vec<bool> = inner.peers.iter().map(stays).collect();
            for (peer, stays) in inner.peers.iter_mut().zip(staying) {
                if !stays {
                    leave(peer, now, news);
                }
            }
            for (config, url) in given {
                if let Some(at) = place_of(&inner.peers, &config.name) {
                    keep(&mut inner.peers[at], &config, url, news);
                } else {
                    let at = self.admit(inner, &config, url, now, news);
                    inner.peers[at].check_now(now);
                }
            }
            // A tier that is another is no news.
            self.changed(&inner.peers);
            self.name_anew(inner, configs, urls);
            Ok(())
        })
    }

    /// A peer less, once it is drained.
    pub(crate) fn remove(self: &Arc<Self>, name: &str, now: Instant) -> Result<Drain, Kind> {
        self.change(|Inner { peers, .. }, news| {
            let at = find(peers, name)?;
            if !others_have_weight(peers, at) {
                return Err(Kind::LastPeer { name: name.to_owned() });
            }
            leave(&mut peers[at], now, news);
            Ok(Drain::of(self, &peers[at]))
        })
    }

    /// No new work for a peer.
    pub(crate) fn drain(self: &Arc<Self>, name: &str, now: Instant) -> Result<Drain, Kind> {
        self.change(|Inner { peers, .. }, news| {
            let at = find(peers, name)?;
            let peer = &mut peers[at];
            let event = peer.drain(false, now);
            news.extend(event.map(|event| peer.news(event)));
            Ok(Drain::of(self, peer))
        })
    }

    /// It serves again.
    pub(crate) fn resume(&self, name: &str, now: Instant) -> Result<(), Kind> {
        self.change(|Inner { peers, .. }, news| {
            let at = find(peers, name)?;
            let peer = &mut peers[at];
            let event = peer.resume(now);
            news.extend(event.map(|event| peer.news(event)));
            Ok(())
        })
    }

    /// Its proportion of the work.
    pub(crate) fn set_weight(&self, name: &str, weight: u32) -> Result<(), Kind> {
        self.change(|Inner { peers, .. }, news| {
            let at = find(peers, name)?;
            if weight == 0 && !others_have_weight(peers, at) {
                return Err(Kind::NoWeight);
            }
            let event = peers[at].set_weight(weight);
            news.extend(event.map(|event| peers[at].news(event)));
            Ok(())
        })
    }

    /// It is checked now.
    pub(crate) fn check_now(&self, name: &str, now: Instant) -> Result<(), Kind> {
        self.change(|Inner { peers, .. }, _| {
            let at = find(peers, name)?;
            peers[at].check_now(now);
            Ok(())
        })
    }

    /// Gives a peer a place: of one that is gone, if there is one to which nothing leads any more. Says
    /// which.
    pub(super) fn admit(
        &self,
        inner: &mut Inner,
        config: &PeerConfig,
        url: PeerUrl,
        now: Instant,
        news: &mut Vec<News>,
    ) -> usize {
        let Inner { peers, rng, admitted, .. } = inner;
        *admitted += 1;
        let PeerConfig { name, url: _, weight, tier } = config;
        let (weight, tier) = (weight.unwrap_or(1), tier.unwrap_or(0));
        let mut peer = Peer::new(name.as_str().into(), url, weight, tier, now);
        peer.number = *admitted;
        peer.next_check = self.settings.due(now, rng).next;
        news.push(peer.news(EventKind::Added));
        let place = peers.iter().position(Peer::is_vacant).unwrap_or(peers.len());
        match peers.get_mut(place) {
            Some(vacant) => *vacant = peer,
            None => peers.push(peer),
        }
        place
    }
}

/// Whether the work has somewhere to go without this peer.
pub(super) fn others_have_weight(peers: &[Peer], at: usize) -> bool {
    let mut others = peers.iter().enumerate().filter(|(other, _)| *other != at);
    others.any(|(_, peer)| peer.is_member() && peer.weight > 0)
}

/// Where the peer of this name is, if it is there.
pub(super) fn place_of(peers: &[Peer], name: &str) -> Option<usize> {
    peers.iter().position(|peer| peer.is_member() && *peer.name == *name)
}

/// As [`place_of`], of one that an operator has named.
fn find(peers: &[Peer], name: &str) -> Result<usize, Kind> {
    place_of(peers, name).ok_or_else(|| {
        let members = peers.iter().filter(|peer| peer.is_member());
        let names = members.map(|peer| peer.name.to_string()).collect();
        Kind::NoSuchPeer { setting: None, name: shown_name(name), names }
    })
}

/// It is drained, and then removed.
pub(super) fn leave(peer: &mut Peer, now: Instant, news: &mut Vec<News>) {
    let event = peer.drain(true, now);
    news.extend(event.map(|event| peer.news(event)));
}

/// It stays, with what is given anew.
fn keep(peer: &mut Peer, config: &PeerConfig, url: PeerUrl, news: &mut Vec<News>) {
    peer.url = Arc::new(url);
    peer.tier = config.tier.unwrap_or(peer.tier);
    let event = config.weight.and_then(|weight| peer.set_weight(weight));
    news.extend(event.map(|event| peer.news(event)));
}

/// A peer that is being drained, to be waited for: from [`Peers::drain`] and [`Peers::remove`].
///
/// Dropping it changes nothing.
///
/// [`Peers::drain`]: crate::Peers::drain
/// [`Peers::remove`]: crate::Peers::remove
pub struct Drain {
    set: Arc<PeerSet>,
    name: Arc<str>,
    /// Which tells the peer from another one of its name.
    activity: Arc<Activity>,
}

impl Drain {
    fn of(set: &Arc<PeerSet>, peer: &Peer) -> Self {
        Self { set: set.clone(), name: peer.name.clone(), activity: peer.activity.clone() }
    }

    /// Waits until the pool has no session with the peer any more, but no longer than `timeout`. Says
    /// whether it has none; `false` at once if the peer serves again.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the wait is bounded")]
    pub fn wait(&self, timeout: Duration) -> bool {
        let end = Instant::now().checked_add(timeout);
        let mut inner = self.set.lock();
        loop {
            if let Some(outcome) = self.outcome(&inner.peers) {
                return outcome;
            }
            let left =
                end.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return false;
            }
            // A pool that is gone looks at its peers no more.
            let (guard, _) = self
                .set
                .changes
                .wait_timeout(inner, left.min(super::DRAIN_LOOK))
                .unwrap_or_else(PoisonError::into_inner);
            inner = guard;
        }
    }

    fn outcome(&self, peers: &[Peer]) -> Option<bool> {
        let Some(peer) = peers.iter().find(|peer| Arc::ptr_eq(&peer.activity, &self.activity))
        else {
            return Some(true);
        };
        match peer.admin_state {
            AdminState::Drained { .. } | AdminState::Removed => Some(true),
            AdminState::Ready => Some(false),
            AdminState::Draining { .. } if self.set.is_closed() && self.activity.open() == 0 => {
                Some(true)
            }
            AdminState::Draining { .. } => None,
        }
    }
}

impl fmt::Debug for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Drain").field("peer", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::{Fault, Refusal};
    use crate::peers::peer::{Answer, CheckKind};
    use crate::peers::set::DRAIN_LOOK;
    use crate::peers::set::tests::set_of;
    use crate::policy::Recovery;
    use crate::settings::tests::INTERVAL;

    #[test]
    fn places_are_used_again_once_nothing_leads_there() {
        let (set, _woken, now) = set_of(2, Recovery::AfterCheck);
        let set = Arc::new(set);
        let places = || set.read(<[Peer]>::len);
        let add = |name: &str| set.add(PeerConfig::new(name, "url"), now).expect("a new name");
        add("db2");
        assert_eq!(places(), 3);
        set.remove("db2", now).expect("it is there");
        let (checks, _) = set.take_due(now);
        assert_eq!(checks.len(), 1, "it was added, so it is checked");
        add("db3");
        assert_eq!(places(), 4, "the check leads to the old one");
        let ended = |peer: usize| {
            set.update(peer, now, |peer, due| {
                peer.check_ended(CheckKind::Regular, (now, now), Answer::NotAsked, due)
            });
        };
        ended(2);
        add("db4");
        assert_eq!(places(), 4, "nothing leads there any more");
        let names =
            set.read(|peers| peers.iter().map(|peer| peer.name.clone()).collect::<Vec<_>>());
        assert_eq!(*names[2], *"db4");
        for round in 0..1000 {
            let name = format!("round{round}");
            add(&name);
            set.remove(&name, now).expect("it is there");
            let (checks, _) = set.take_due(now);
            for check in checks {
                ended(check.peer);
            }
        }
        assert_eq!(places(), 5, "a set that changes for long does not grow");
    }

    #[test]
    fn nobody_hears_of_one_that_is_gone_nor_asks_it() {
        for recovery in [Recovery::AfterCheck, Recovery::AfterInterval] {
            let (set, _woken, now) = set_of(2, recovery);
            let set = Arc::new(set);
            set.remove("peer1", now).expect("it is there");
            set.take_due(now);
            let told = || set.journal().history().len();
            let before = told();
            set.update(1, now, |peer, due| {
                let refusal = Refusal::new(Fault::PeerDown, "refused");
                peer.connect_failed((now, now), Answer::Refused(refusal), due)
            });
            let later = now + 10 * INTERVAL;
            let (checks, _) = set.take_due(later);
            assert!(checks.iter().all(|check| check.peer == 0), "{recovery:?}: it is not checked");
            assert!(!set.read(|peers| peers[1].is_up()), "{recovery:?}: nor cleared unasked");
            assert_eq!(told(), before, "{recovery:?}: nothing is told");
        }
    }

    #[test]
    fn newcomers_are_checked_at_once() {
        let (set, _woken, now) = set_of(1, Recovery::AfterCheck);
        set.take_due(now);
        let checked = || {
            let (checks, _) = set.take_due(now);
            checks.iter().map(|check| check.peer).collect::<Vec<_>>()
        };
        assert_eq!(checked(), [0; 0]);
        set.add(PeerConfig::new("peer1", "url1"), now).expect("a new name");
        assert_eq!(checked(), [1]);
        let all = ["peer0", "peer1", "peer2"]
            .map(|name| PeerConfig::new(name, name.replace("peer", "url")));
        set.replace(&all, now).expect("these are right");
        assert_eq!(checked(), [2]);
    }

    #[test]
    fn a_drained_peer_has_been_so_since_it_was_empty() {
        let (set, _woken, now) = set_of(2, Recovery::AfterCheck);
        let set = Arc::new(set);
        let later = now + INTERVAL / 10;
        set.take_due(now);
        set.count(0, |counts| counts.connecting = 1);
        let drain = set.drain("peer0", now).expect("it is there");
        let (_, next) = set.take_due(now);
        assert!(next <= Some(now + DRAIN_LOOK), "it is looked at again soon");
        set.count(0, |counts| counts.connecting = 0);
        assert!(!drain.wait(Duration::ZERO), "nobody has looked");
        set.take_due(later);
        assert!(drain.wait(Duration::ZERO));
        assert_eq!(set.read(|peers| peers[0].admin_state), AdminState::Drained { since: later });
    }

    /// Nobody looks any more.
    #[test]
    fn a_pool_that_is_gone_is_drained_when_its_last_session_has_ended() {
        let (set, _woken, now) = set_of(2, Recovery::AfterCheck);
        let set = Arc::new(set);
        let session = Arc::default();
        set.read(|peers| peers[0].activity.add(Arc::clone(&session)));
        let drain = set.drain("peer0", now).expect("it is there");
        set.close();
        assert!(!drain.wait(Duration::ZERO), "a session is open");
        set.read(|peers| peers[0].activity.remove(&session));
        assert!(drain.wait(Duration::ZERO));
    }

    #[test]
    fn one_that_leads_elsewhere_is_another() {
        let (set, _woken, now) = set_of(2, Recovery::AfterCheck);
        let places = || {
            set.read(|peers| {
                let members = peers.iter().filter(|peer| peer.is_member());
                members.map(|peer| peer.number).collect::<Vec<_>>()
            })
        };
        let peers = |urls: [&str; 2]| {
            let config = |(at, url): (usize, &str)| PeerConfig::new(format!("peer{at}"), url);
            urls.into_iter().enumerate().map(config).collect::<Vec<_>>()
        };
        set.replace(&peers(["url0", "url1"]), now).expect("these are right");
        assert_eq!(places(), [1, 2], "both stay");
        set.replace(&peers(["url0", "url7"]), now).expect("these are right");
        assert_eq!(places(), [1, 3], "one is another");
        let epoch = set.epoch();
        let tiered = peers(["url0", "url7"]).into_iter().map(|config| config.tier(2));
        set.replace(&tiered.collect::<Vec<_>>(), now).expect("these are right");
        assert_eq!(places(), [1, 3], "both stay");
        assert!(set.epoch() > epoch, "and their tiers are known");
        set.replace(&peers(["url0", "url7"]), now).expect("these are right");
        assert_eq!(set.read(|peers| peers[0].tier), 2, "what is not said stays");
    }

    #[test]
    fn a_check_that_is_asked_for_is_made_where_marks_are_cleared_unasked_too() {
        let (set, _woken, now) = set_of(2, Recovery::AfterInterval);
        set.update(0, now, |peer, due| peer.takes_no_work(now, due));
        set.take_due(now);
        set.update(0, now, |peer, due| {
            peer.check_ended(CheckKind::Regular, (now, now), Answer::NotAsked, due)
        });
        set.check_now("peer0", now).expect("it is there");
        let (checks, _) = set.take_due(now);
        assert_eq!(checks.len(), 1, "it is asked");
        assert!(!set.read(|peers| peers[0].is_up()), "before it is believed");
    }
}

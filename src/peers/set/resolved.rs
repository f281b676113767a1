//! The peers that stand for the names of hosts, as these are resolved. What an operator has set is not
//! undone: a peer is known by its number, and one that he has removed is known as well.

use std::mem;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Receiver;

use super::changes::{leave, others_have_weight, place_of};
use super::{Inner, PeerSet};
use crate::peers::admission::PeerConfig;
use crate::peers::journal::News;
use crate::peers::peer::Peer;
use crate::peers::resolved_host::{Address, Changes, Heard, ResolvedHost, learn};
use crate::url::PeerUrl;

impl PeerSet {
    /// Who waits there is told when there may be names that were never resolved.
    pub(crate) fn names_given(&self) -> Receiver<()> {
        self.names_given.1.clone()
    }

    fn give_names(&self) {
        let _ = self.names_given.0.try_send(());
    }

    /// The hosts to resolve, each with the number of its name.
    pub(crate) fn hosts(&self) -> Vec<(u64, Arc<str>)> {
        self.lock().names.iter().map(|name| (name.number, name.host.clone())).collect()
    }

    /// The name of this number leads there, or it is not known why not. Only what is missing in an answer
    /// that was due is missed. What is returned is to be logged.
    pub(crate) fn follow(
        &self,
        number: u64,
        answer: &Result<Vec<IpAddr>, String>,
        is_due: bool,
        now: Instant,
    ) -> Option<Heard> {
        self.change(|inner, news| {
            let at = inner.names.iter().position(|name| name.number == number)?;
            let mut name = inner.names.swap_remove(at);
            let to_log = name.heard(answer);
            let addresses = answer.as_deref().unwrap_or_default();
            if addresses.is_empty() || self.lead(inner, &mut name, (addresses, is_due), now, news) {
                inner.names.push(name);
            }
            to_log
        })
    }

    /// What is given, with the peers at its addresses in the place of one that stays by its name.
    pub(super) fn by_address(
        &self,
        inner: &Inner,
        configs: &[PeerConfig],
        urls: &[PeerUrl],
    ) -> Vec<(PeerConfig, PeerUrl)> {
        let mut given = Vec::new();
        for (config, url) in configs.iter().zip(urls) {
            let name = inner.names.iter().find(|name| {
                *name.peer == config.name && name.is_resolved && url.has_same_target(&name.url)
            });
            let known = name.iter().flat_map(|name| &name.known);
            let at_address = |(address, Address { peer, .. }): (&IpAddr, &Address)| {
                let peer = &inner.peers[member(&inner.peers, (*peer)?)?];
                let is_given = configs.iter().any(|config| config.name == *peer.name);
                let config = PeerConfig { name: peer.name.to_string(), ..config.clone() };
                (!is_given).then(|| (config, url.at_address(self.admission.dialect, *address)))
            };
            let before = given.len();
            given.extend(known.filter_map(at_address));
            if given.len() == before {
                given.push((config.clone(), url.clone()));
            }
        }
        given
    }

    /// The names are those of the peers that were given. One that stays knows its addresses, but for
    /// those whose peers an operator has removed, or has given as his own.
    pub(super) fn name_anew(&self, inner: &mut Inner, configs: &[PeerConfig], urls: Vec<PeerUrl>) {
        let Inner { peers, names, .. } = inner;
        let mut earlier = mem::take(names);
        for (config, url) in configs.iter().zip(urls) {
            if let Some(at) = place_of(peers, &config.name) {
                names.extend(ResolvedHost::of(&peers[at], &self.admission));
            } else if let Some(at) = earlier.iter().position(|name| *name.peer == config.name) {
                let mut name = earlier.swap_remove(at);
                name.url = Arc::new(url);
                name.weight = config.weight.unwrap_or(name.weight);
                name.tier = config.tier.unwrap_or(name.tier);
                let is_given =
                    |at: usize| configs.iter().any(|config| config.name == *peers[at].name);
                let stays = |peer| member(peers, peer).is_some_and(|at| !is_given(at));
                name.known.retain(|_, address| address.peer.is_some_and(stays));
                names.push(name);
            }
        }
        self.give_names();
    }

    /// The peers are those to which the name leads. Says whether it is to be resolved again.
    fn lead(
        &self,
        inner: &mut Inner,
        name: &mut ResolvedHost,
        (addresses, is_due): (&[IpAddr], bool),
        now: Instant,
        news: &mut Vec<News>,
    ) -> bool {
        let mut serves = true;
        if !name.is_resolved {
            // What was said of it meanwhile is said of all of them.
            let Some(at) = member(&inner.peers, name.number) else { return false };
            let Peer { weight, tier, .. } = inner.peers[at];
            (name.weight, name.tier) = (weight, tier);
            serves = inner.peers[at].is_in_service();
        }
        let Changes { add, remove } = learn(&mut name.known, addresses, is_due);
        for address in add {
            let config = name.peer_at(address);
            let is_taken = place_of(&inner.peers, &config.name).is_some();
            let peer = (!is_taken).then(|| {
                let url = name.url.at_address(self.admission.dialect, address);
                let at = self.admit(inner, &config, url, now, news);
                let peer = &mut inner.peers[at];
                // The first ones are as those of the start are.
                if name.is_resolved {
                    peer.check_now(now);
                }
                if !serves {
                    let event = peer.drain(false, now);
                    news.extend(event.map(|event| peer.news(event)));
                }
                peer.number
            });
            name.known.insert(address, Address::of(peer));
        }
        for address in remove {
            let peer = name.known.get(&address).and_then(|address| address.peer);
            if peer.is_none_or(|peer| let_go(&mut inner.peers, peer, now, news)) {
                name.known.remove(&address);
            }
        }
        if !name.is_resolved {
            name.is_resolved = let_go(&mut inner.peers, name.number, now, news);
        }
        true
    }
}

/// Where the peer of this number is, unless an operator has removed it.
pub(super) fn member(peers: &[Peer], number: u64) -> Option<usize> {
    peers.iter().position(|peer| peer.number == number && peer.is_member())
}

/// Has the peer of this number removed. Not if no other has a weight: it may be wanted again.
fn let_go(peers: &mut [Peer], number: u64, now: Instant, news: &mut Vec<News>) -> bool {
    let Some(at) = member(peers, number) else { return true };
    if !others_have_weight(peers, at) {
        return false;
    }
    let peer = &mut peers[at];
    leave(peer, now, news);
    // One that nobody has used is gone at once.
    let happened = peer.end_draining(now).into_iter().flatten().flatten();
    news.extend(happened.map(|kind| peer.news(kind)));
    true
}

//! The peers that stand for the names of hosts, as these are resolved. What an operator has set is not
//! undone: a peer is known by its number, and one that he has removed is known as well.

use std::mem;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Receiver;

use super::changes::{member_by_name, others_have_weight, start_removal};
use super::{Inner, PeerSet};
use crate::peers::admission::PeerConfig;
use crate::peers::journal::News;
use crate::peers::peer::Peer;
use crate::peers::resolved_host::{
    Changes, KnownAddress, ResolutionChange, ResolvedHost, update_known,
};
use crate::url::PeerUrl;

impl PeerSet {
    /// Who waits there is told when there may be names that were never resolved.
    pub(crate) fn hosts_changed(&self) -> Receiver<()> {
        self.hosts_changed.1.clone()
    }

    fn notify_hosts_changed(&self) {
        let _ = self.hosts_changed.0.try_send(());
    }

    /// The hosts to resolve, each with the number of its name.
    pub(crate) fn hosts_to_resolve(&self) -> Vec<(u64, Arc<str>)> {
        self.lock().hosts.iter().map(|host| (host.peer_id, host.host.clone())).collect()
    }

    /// The name of this number leads there, or it is not known why not. Only what is missing in an answer
    /// that was due is missed. What is returned is to be logged.
    pub(crate) fn apply_answer(
        &self,
        number: u64,
        answer: &Result<Vec<IpAddr>, String>,
        is_scheduled: bool,
        now: Instant,
    ) -> Option<ResolutionChange> {
        self.change(|inner, news| {
            let at = inner.hosts.iter().position(|host| host.peer_id == number)?;
            let mut host = inner.hosts.swap_remove(at);
            let to_log = host.record_answer(answer);
            let addresses = answer.as_deref().unwrap_or_default();
            if addresses.is_empty()
                || self.update_addresses(inner, &mut host, (addresses, is_scheduled), now, news)
            {
                inner.hosts.push(host);
            }
            to_log
        })
    }

    /// What is given, with the peers at its addresses in the place of one that stays by its name.
    pub(super) fn expand_hosts(
        &self,
        inner: &Inner,
        configs: &[PeerConfig],
        urls: &[PeerUrl],
    ) -> Vec<(PeerConfig, PeerUrl)> {
        let mut given = Vec::new();
        for (config, url) in configs.iter().zip(urls) {
            let host = inner.hosts.iter().find(|host| {
                *host.peer == config.name && host.is_resolved && url.leads_to_the_same(&host.url)
            });
            let known = host.iter().flat_map(|host| &host.known);
            let at_address = |(address, KnownAddress { peer, .. }): (&IpAddr, &KnownAddress)| {
                let peer = &inner.peers[member_by_id(&inner.peers, (*peer)?)?];
                let is_given = configs.iter().any(|config| config.name == *peer.name);
                let config = PeerConfig { name: peer.name.to_string(), ..config.clone() };
                (!is_given).then(|| (config, url.at(self.admission.dialect, *address)))
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
    pub(super) fn replace_hosts(
        &self,
        inner: &mut Inner,
        configs: &[PeerConfig],
        urls: Vec<PeerUrl>,
    ) {
        let Inner { peers, hosts, .. } = inner;
        let mut earlier = mem::take(hosts);
        for (config, url) in configs.iter().zip(urls) {
            if let Some(at) = member_by_name(peers, &config.name) {
                hosts.extend(ResolvedHost::from_peer(&peers[at], &self.admission));
            } else if let Some(at) = earlier.iter().position(|host| *host.peer == config.name) {
                let mut host = earlier.swap_remove(at);
                host.url = Arc::new(url);
                host.weight = config.weight.unwrap_or(host.weight);
                host.tier = config.tier.unwrap_or(host.tier);
                let is_given =
                    |at: usize| configs.iter().any(|config| config.name == *peers[at].name);
                let stays = |peer| member_by_id(peers, peer).is_some_and(|at| !is_given(at));
                host.known.retain(|_, address| address.peer.is_some_and(stays));
                hosts.push(host);
            }
        }
        self.notify_hosts_changed();
    }

    /// The peers are those to which the name leads. Says whether it is to be resolved again.
    fn update_addresses(
        &self,
        inner: &mut Inner,
        host: &mut ResolvedHost,
        (addresses, is_scheduled): (&[IpAddr], bool),
        now: Instant,
        news: &mut Vec<News>,
    ) -> bool {
        let mut serves = true;
        if !host.is_resolved {
            // What was said of it meanwhile is said of all of them.
            let Some(at) = member_by_id(&inner.peers, host.peer_id) else { return false };
            let Peer { weight, tier, .. } = inner.peers[at];
            (host.weight, host.tier) = (weight, tier);
            serves = inner.peers[at].is_in_service();
        }
        let Changes { add, remove } = update_known(&mut host.known, addresses, is_scheduled);
        for address in add {
            let config = host.peer_at(address);
            let is_taken = member_by_name(&inner.peers, &config.name).is_some();
            let peer = (!is_taken).then(|| {
                let url = host.url.at(self.admission.dialect, address);
                let at = self.admit(inner, &config, url, now, news);
                let peer = &mut inner.peers[at];
                // The first ones are as those of the start are.
                if host.is_resolved {
                    peer.check_now(now);
                }
                if !serves {
                    let event = peer.drain(false, now);
                    news.extend(event.map(|event| peer.news(event)));
                }
                peer.id
            });
            host.known.insert(address, KnownAddress::new(peer));
        }
        for address in remove {
            let peer = host.known.get(&address).and_then(|address| address.peer);
            if peer.is_none_or(|peer| remove_member(&mut inner.peers, peer, now, news)) {
                host.known.remove(&address);
            }
        }
        if !host.is_resolved {
            host.is_resolved = remove_member(&mut inner.peers, host.peer_id, now, news);
        }
        true
    }
}

/// Where the peer of this number is, unless an operator has removed it.
pub(super) fn member_by_id(peers: &[Peer], number: u64) -> Option<usize> {
    peers.iter().position(|peer| peer.id == number && peer.is_member())
}

/// Has the peer of this number removed. Not if no other has a weight: it may be wanted again.
fn remove_member(peers: &mut [Peer], number: u64, now: Instant, news: &mut Vec<News>) -> bool {
    let Some(at) = member_by_id(peers, number) else { return true };
    if !others_have_weight(peers, at) {
        return false;
    }
    let peer = &mut peers[at];
    start_removal(peer, now, news);
    // One that nobody has used is gone at once.
    let happened = peer.end_draining(now).into_iter().flatten().flatten();
    news.extend(happened.map(|kind| peer.news(kind)));
    true
}

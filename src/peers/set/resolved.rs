//! Changes by name resolution: each host name is replaced by one peer per address. Changes by an
//! operator are not undone: peers are identified by their ids, and an address whose peer was
//! removed by an operator stays known.

use std::collections::BTreeSet;
use std::mem;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Receiver;

use super::changes::{member_by_name, others_have_weight};
use super::{Inner, PeerSet, Transaction};
use crate::peers::peer::Peer;
use crate::peers::peer_config::PeerConfig;
use crate::peers::resolved_host::{
    Changes, KnownAddress, ResolutionChange, ResolvedHost, update_known,
};
use crate::url::PeerUrl;

impl PeerSet {
    /// Returns a channel that is notified when there may be hosts that were never resolved.
    pub(crate) fn hosts_changed(&self) -> Receiver<()> {
        self.hosts_changed.1.clone()
    }

    /// Returns the hosts to resolve, each with the id of the peer that was configured for it.
    pub(crate) fn hosts_to_resolve(&self) -> Vec<(u64, Arc<str>)> {
        self.lock().hosts.iter().map(|host| (host.peer_id, host.host.clone())).collect()
    }

    /// Applies the answer of a name resolution to the host of the peer with this id: adds and
    /// removes peers.
    ///
    /// Only an answer of a scheduled resolution (`is_scheduled`) counts against an address that is
    /// missing from it. Returns the changes that the caller has to log.
    pub(crate) fn apply_answer(
        self: &Arc<Self>,
        peer_id: u64,
        answer: &Result<BTreeSet<IpAddr>, String>,
        is_scheduled: bool,
        now: Instant,
    ) -> Vec<ResolutionChange> {
        self.change(now, |transaction| {
            let hosts = &mut transaction.inner.hosts;
            let Some(index) = hosts.iter().position(|host| host.peer_id == peer_id) else {
                return Vec::new();
            };
            let mut host = hosts.swap_remove(index);
            let mut to_log = Vec::from_iter(host.record_answer(answer));
            let is_kept = match answer {
                Ok(addresses) if !addresses.is_empty() => {
                    transaction.update_addresses(&mut host, addresses, is_scheduled, &mut to_log)
                }
                _ => true,
            };
            if is_kept {
                transaction.inner.hosts.push(host);
            }
            to_log
        })
    }
}

impl Transaction<'_> {
    /// Expands each configured host that is already resolved into one entry per address.
    pub(super) fn expand_hosts(
        &self,
        configs: &[PeerConfig],
        urls: &[PeerUrl],
    ) -> Vec<(PeerConfig, PeerUrl)> {
        let Inner { peers, hosts, .. } = &*self.inner;
        let mut expanded = Vec::new();
        for (config, url) in configs.iter().zip(urls) {
            let host = hosts.iter().find(|host| {
                *host.peer_name == config.name && host.is_resolved && url.has_same_target(&host.url)
            });
            let known = host.iter().flat_map(|host| &host.known);
            let at_address = |(address, KnownAddress { peer_id, .. }): (&IpAddr, &KnownAddress)| {
                let peer = &peers[member_by_id(peers, (*peer_id)?)?];
                let is_given = configs.iter().any(|config| config.name == *peer.name);
                let config = PeerConfig { name: peer.name.to_string(), ..config.clone() };
                let dialect = self.set.validator.dialect;
                (!is_given).then(|| (config, url.at_address(dialect, *address)))
            };
            let before = expanded.len();
            expanded.extend(known.filter_map(at_address));
            if expanded.len() == before {
                expanded.push((config.clone(), url.clone()));
            }
        }
        expanded
    }

    /// Replaces the resolved hosts by those of `configs`. A host that stays keeps its known
    /// addresses, except those whose peers an operator has removed or has configured directly.
    pub(super) fn replace_hosts(&mut self, configs: &[PeerConfig], urls: Vec<PeerUrl>) {
        let Inner { peers, hosts, .. } = &mut *self.inner;
        let mut earlier = mem::take(hosts);
        for (config, url) in configs.iter().zip(urls) {
            if let Some(index) = member_by_name(peers, &config.name) {
                hosts.extend(ResolvedHost::from_peer(&peers[index], &self.set.validator));
            } else if let Some(index) =
                earlier.iter().position(|host| *host.peer_name == config.name)
            {
                let mut host = earlier.swap_remove(index);
                host.url = Arc::new(url);
                host.weight = config.weight.unwrap_or(host.weight);
                host.tier = config.tier.unwrap_or(host.tier);
                host.max_connections = config.max_connections.or(host.max_connections);
                let is_given =
                    |index: usize| configs.iter().any(|config| config.name == *peers[index].name);
                let stays = |id| member_by_id(peers, id).is_some_and(|index| !is_given(index));
                host.known.retain(|_, address| address.peer_id.is_some_and(stays));
                hosts.push(host);
            }
        }
        // A full channel means that the resolver looks anyway.
        let _ = self.set.hosts_changed.0.try_send(());
    }

    /// Updates the peers of a host to its `addresses`. Returns whether the host is to be resolved
    /// again.
    fn update_addresses(
        &mut self,
        host: &mut ResolvedHost,
        addresses: &BTreeSet<IpAddr>,
        is_scheduled: bool,
        to_log: &mut Vec<ResolutionChange>,
    ) -> bool {
        let now = self.now;
        let mut is_in_service = true;
        let mut slow_start = None;
        if !host.is_resolved {
            // Changes by an operator to the peer of the whole host apply to the peers of all its
            // addresses, and so does its slow start: it has none if it was given at the start.
            let Some(index) = member_by_id(self.peers(), host.peer_id) else { return false };
            let peer = &self.peers()[index];
            (host.weight, host.tier) = (peer.weight, peer.tier);
            host.max_connections = peer.max_connections;
            is_in_service = peer.is_in_service();
            slow_start = peer.is_available().then_some(peer.slow_start);
        }
        let Changes { add, remove, ignored } =
            update_known(&mut host.known, addresses, is_scheduled);
        to_log.extend(host.record_ignored(ignored));
        for address in add {
            let config = host.peer_at(address);
            let is_taken = member_by_name(self.peers(), &config.name).is_some();
            let peer_id = (!is_taken).then(|| {
                let url = host.url.at_address(self.set.validator.dialect, address);
                let index = self.insert(&config, url);
                self.update(index, |peer, _| {
                    // The first addresses are treated like peers given at the start, which are not
                    // checked at once.
                    if host.is_resolved {
                        peer.check_now(now);
                    }
                    peer.slow_start = slow_start.unwrap_or(peer.slow_start);
                    if !is_in_service {
                        peer.admin_state.drain(now);
                    }
                    peer.id
                })
            });
            host.known.insert(address, KnownAddress::new(peer_id));
        }
        for address in remove {
            let peer_id = host.known.get(&address).and_then(|address| address.peer_id);
            if peer_id.is_none_or(|id| self.remove_member(id)) {
                host.known.remove(&address);
            }
        }
        if !host.is_resolved {
            host.is_resolved = self.remove_member(host.peer_id);
        }
        true
    }

    /// Starts the removal of the member with this id. Returns `false` without an effect if no other
    /// member has a weight, because the peer may still be needed. Returns `true` if there is no such
    /// member.
    fn remove_member(&mut self, id: u64) -> bool {
        let Some(index) = member_by_id(self.peers(), id) else { return true };
        if !others_have_weight(self.peers(), index) {
            return false;
        }
        let now = self.now;
        self.update(index, |peer, _| {
            peer.admin_state.remove(now);
            // A peer without any session is removed at once.
            peer.end_draining(now);
        });
        true
    }
}

/// Returns the index of the member with this id. `None` after the peer was removed.
pub(super) fn member_by_id(peers: &[Peer], id: u64) -> Option<usize> {
    peers.iter().position(|peer| peer.id == id && peer.is_member())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use crossbeam_channel::bounded;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;
    use crate::events::log::EventLog;
    use crate::peers::peer_config::PeerValidator;
    use crate::settings::Settings;
    use crate::settings::tests::settings;
    use crate::url::dialect::Dialect;

    const URL: &str = "mysql://app@db/shop";

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the start")]
    fn first_addresses_of_a_host_have_the_slow_start_of_its_peer() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let settings = Settings { slow_start: Duration::from_secs(60), ..settings() };
        let validator = PeerValidator {
            dialect: Dialect::MySql,
            resolve_hosts: true,
            ..PeerValidator::default()
        };
        let peer = Peer::new("db".into(), PeerUrl::new(URL.to_owned()), 1, 0, start);
        let (wake, _woken) = bounded(1);
        let rng = SmallRng::seed_from_u64(7);
        let set =
            PeerSet::new(vec![peer], settings, validator, EventLog::default(), rng, wake, start);
        let set = Arc::new(set);
        let answer = |host: &str, addresses: &[u8], now| {
            let id = {
                let hosts = &set.lock().hosts;
                let of_host = hosts.iter().find(|one| *one.peer_name == *host);
                of_host.expect("the name is to be resolved").peer_id
            };
            let addresses = addresses.iter().map(|last| IpAddr::from([10, 0, 0, *last])).collect();
            set.apply_answer(id, &Ok(addresses), true, now);
        };
        let starting = |host: &str| -> BTreeMap<String, bool> {
            let prefix = format!("{host}/10.0.0.");
            let entry = |peer: &Peer| {
                let last = peer.name.strip_prefix(&prefix)?;
                Some((last.to_owned(), peer.slow_start.is_running()))
            };
            set.read(|peers| peers.iter().filter_map(entry).collect())
        };
        let expected = |peers: &[(&str, bool)]| -> BTreeMap<String, bool> {
            peers.iter().map(|(last, is_starting)| ((*last).to_owned(), *is_starting)).collect()
        };
        answer("db", &[1, 2], at(1));
        assert_eq!(
            starting("db"),
            expected(&[("1", false), ("2", false)]),
            "like peers given at the start"
        );
        answer("db", &[1, 2, 3], at(2));
        let grown = expected(&[("1", false), ("2", false), ("3", true)]);
        assert_eq!(starting("db"), grown, "an address that is new");
        let other = PeerConfig::new("other", URL.replace("db", "other"));
        set.replace(&[PeerConfig::new("db", URL), other], at(3)).expect("the peers are valid");
        answer("other", &[4, 5], at(4));
        assert_eq!(
            starting("other"),
            expected(&[("4", true), ("5", true)]),
            "like a peer that is added"
        );
    }
}

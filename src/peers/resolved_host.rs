//! A host whose name is resolved, and its known addresses. Pure: answers of the name resolution are
//! arguments.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::net::IpAddr;
use std::sync::Arc;

use crate::peers::peer::Peer;
use crate::peers::peer_config::{PeerConfig, PeerValidator};
use crate::url::PeerUrl;

/// An address is removed after it was missing from this many answers in a row; a single miss may be
/// a glitch of the name server.
const REMOVE_AFTER_MISSES: u32 = 2;

/// The number of addresses of a host that are used. Each address is a peer: it is checked, and it is a row on the
/// page and in the metrics. Equivalent servers of one name are a few dozen, but the answer of a faulty or hostile
/// name server can hold thousands of addresses.
pub(crate) const MAX_ADDRESSES: usize = 256;

/// A peer that was configured by its host name, and is replaced by one peer per address as soon as
/// the addresses are known.
#[derive(Debug)]
pub(crate) struct ResolvedHost {
    /// The id of the configured peer, which serves until the host is resolved.
    pub(crate) peer_id: u64,
    /// The name of the configured peer.
    pub(crate) peer_name: Arc<str>,
    pub(crate) host: Arc<str>,
    pub(crate) url: Arc<PeerUrl>,
    /// The weight of the peer of each address.
    pub(crate) weight: u32,
    /// The tier of the peer of each address.
    pub(crate) tier: u32,
    /// The limit of connections of the peer of each address.
    pub(crate) max_connections: Option<u32>,
    /// Whether the peers of the addresses have replaced the configured peer.
    pub(crate) is_resolved: bool,
    /// Whether the last answer was an error or had no address.
    last_answer_failed: bool,
    /// Whether the last answer had addresses that are not used, because there are too many.
    ignores_addresses: bool,
    pub(crate) known: KnownAddresses,
}

/// The known addresses of a host.
pub(crate) type KnownAddresses = BTreeMap<IpAddr, KnownAddress>;

/// A known address of a host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KnownAddress {
    /// The id of its peer. `None` if a peer of that name existed already when the address was
    /// added.
    pub(crate) peer_id: Option<u64>,
    /// The number of successive answers without this address.
    missed: u32,
}

impl KnownAddress {
    pub(crate) fn new(peer_id: Option<u64>) -> Self {
        Self { peer_id, missed: 0 }
    }
}

/// A change of how a host is resolved, to be logged.
#[derive(Debug)]
pub(crate) enum ResolutionChange {
    Unresolved {
        peer: Arc<str>,
        reason: String,
    },
    Resolved {
        peer: Arc<str>,
    },
    /// There are more than [`MAX_ADDRESSES`].
    AddressesIgnored {
        peer: Arc<str>,
        ignored: usize,
    },
    /// All addresses are used again.
    AddressesUsed {
        peer: Arc<str>,
    },
}

/// The addresses to add and to remove after an answer, and the number of those that are ignored.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) add: Vec<IpAddr>,
    pub(crate) remove: Vec<IpAddr>,
    pub(crate) ignored: usize,
}

impl ResolvedHost {
    /// Creates the host of this peer, if its name is to be resolved.
    pub(crate) fn from_peer(peer: &Peer, validator: &PeerValidator) -> Option<Self> {
        let host = validator.host_name(&peer.url)?;
        Some(Self {
            peer_id: peer.id,
            peer_name: peer.name.clone(),
            host: host.into(),
            url: peer.url.clone(),
            weight: peer.weight,
            tier: peer.tier,
            max_connections: peer.max_connections,
            is_resolved: false,
            last_answer_failed: false,
            ignores_addresses: false,
            known: KnownAddresses::new(),
        })
    }

    /// Returns the configuration of the peer at this address, without its URL, which the caller
    /// sets.
    pub(crate) fn peer_at(&self, address: IpAddr) -> PeerConfig {
        let name = format!("{}/{address}", self.peer_name);
        let config = PeerConfig::new(name, "").weight(self.weight).tier(self.tier);
        PeerConfig { max_connections: self.max_connections, ..config }
    }

    /// Records whether an answer has an address. Returns a value if that has changed since the last
    /// answer.
    pub(crate) fn record_answer(
        &mut self,
        answer: &Result<BTreeSet<IpAddr>, String>,
    ) -> Option<ResolutionChange> {
        let failure = match answer {
            Ok(addresses) if addresses.is_empty() => Some("the name has no address".to_owned()),
            Ok(_) => None,
            Err(reason) => Some(self.url.redact(reason)),
        };
        let had_failed = mem::replace(&mut self.last_answer_failed, failure.is_some());
        match failure {
            Some(reason) if !had_failed => {
                Some(ResolutionChange::Unresolved { peer: self.peer_name.clone(), reason })
            }
            None if had_failed => Some(ResolutionChange::Resolved { peer: self.peer_name.clone() }),
            _ => None,
        }
    }

    /// Records how many addresses are ignored. Returns a value if there are some and were none before, or the
    /// other way round.
    pub(crate) fn record_ignored(&mut self, ignored: usize) -> Option<ResolutionChange> {
        let had_ignored = mem::replace(&mut self.ignores_addresses, ignored > 0);
        let peer = self.peer_name.clone();
        match ignored {
            0 if had_ignored => Some(ResolutionChange::AddressesUsed { peer }),
            1.. if !had_ignored => Some(ResolutionChange::AddressesIgnored { peer, ignored }),
            _ => None,
        }
    }
}

/// Updates how often each known address was missing, and returns the addresses to add and to
/// remove. An answer of an unscheduled resolution only adds addresses. Known addresses stay in
/// preference to new ones, so that a long answer does not make peers come and go.
pub(crate) fn update_known(
    known: &mut KnownAddresses,
    answer: &BTreeSet<IpAddr>,
    is_scheduled: bool,
) -> Changes {
    let mut add: Vec<IpAddr> =
        answer.iter().filter(|address| !known.contains_key(*address)).copied().collect();
    let room = MAX_ADDRESSES.saturating_sub(known.len());
    let ignored = add.len().saturating_sub(room);
    add.truncate(room);
    let mut remove = Vec::new();
    for (address, KnownAddress { missed, .. }) in known {
        let missed_again = missed.saturating_add(is_scheduled.into());
        *missed = if answer.contains(address) { 0 } else { missed_again };
        if *missed >= REMOVE_AFTER_MISSES {
            remove.push(*address);
        }
    }
    Changes { add, remove, ignored }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn unscheduled_answer_does_not_count_against_a_missing_address() {
        let mut known = KnownAddresses::from([
            (address(1), KnownAddress::new(None)),
            (address(2), KnownAddress::new(None)),
        ]);
        for _ in 0..5 {
            assert_eq!(update_known(&mut known, &[address(2)].into(), false), Changes::default());
        }
        assert_eq!(
            update_known(&mut known, &[address(2)].into(), true),
            Changes::default(),
            "a single miss removes nothing"
        );
        let gone = Changes { add: vec![], remove: vec![address(1)], ignored: 0 };
        assert_eq!(
            update_known(&mut known, &[address(2)].into(), true),
            gone,
            "a second miss in a row removes the address"
        );
    }

    #[test]
    fn known_addresses_leave_room_for_a_bounded_number_of_others() {
        let all: BTreeSet<IpAddr> = (0..=255)
            .flat_map(|last| [IpAddr::from([10, 0, 0, last]), IpAddr::from([10, 0, 1, last])])
            .collect();
        let mut known: KnownAddresses =
            (0..5).map(|last| ([10, 0, 1, last].into(), KnownAddress::new(None))).collect();
        let Changes { add, ignored, .. } = update_known(&mut known, &all, true);
        assert_eq!((add.len(), ignored), (MAX_ADDRESSES - 5, all.len() - MAX_ADDRESSES));
        known.extend(add.into_iter().map(|address| (address, KnownAddress::new(None))));
        let rest = Changes { ignored, ..Changes::default() };
        assert_eq!(update_known(&mut known, &all, true), rest, "the next answer changes nothing");
    }

    #[test]
    fn answer_determines_added_removed_and_missed_addresses() {
        // The known addresses, each with its number of misses; the answer; the added and the
        // removed addresses; and the number of misses of each known address afterwards.
        type Case<'a> = (&'a [(u8, u32)], &'a [u8], &'a [u8], &'a [u8], &'a [u32]);
        let cases: [Case<'_>; 11] = [
            (&[], &[1], &[1], &[], &[]),
            (&[], &[2, 1, 2], &[1, 2], &[], &[]),
            (&[(1, 0)], &[1], &[], &[], &[0]),
            (&[(1, 0)], &[1, 2], &[2], &[], &[0]),
            (&[(1, 0), (2, 0)], &[2], &[], &[], &[1, 0]),
            (&[(1, 1), (2, 0)], &[2], &[], &[1], &[2, 0]),
            (&[(1, 1), (2, 0)], &[1, 2], &[], &[], &[0, 0]),
            (&[(1, 1), (2, 0)], &[1], &[], &[], &[0, 1]),
            (&[(1, 1), (2, 1)], &[3], &[3], &[1, 2], &[2, 2]),
            // The address could not be removed after the answer before.
            (&[(1, 2), (2, 0)], &[2], &[], &[1], &[3, 0]),
            (&[(1, u32::MAX)], &[1], &[], &[], &[0]),
        ];
        for (before, answer, add, remove, missed) in cases {
            let entry = |(last, missed): &(u8, u32)| {
                (address(*last), KnownAddress { peer_id: None, missed: *missed })
            };
            let all =
                |lasts: &[u8]| -> Vec<IpAddr> { lasts.iter().copied().map(address).collect() };
            let answer_of = |lasts: &[u8]| -> BTreeSet<IpAddr> { all(lasts).into_iter().collect() };
            let mut known: KnownAddresses = before.iter().map(entry).collect();
            let unscheduled = update_known(&mut known.clone(), &answer_of(answer), false);
            let changes = update_known(&mut known, &answer_of(answer), true);
            let expected = Changes { add: all(add), remove: all(remove), ignored: 0 };
            assert_eq!(unscheduled.add, expected.add, "{before:?} {answer:?}, unscheduled");
            assert_eq!(changes, expected, "{before:?} {answer:?}");
            let left: Vec<u32> = known.values().map(|address| address.missed).collect();
            assert_eq!(left, missed, "{before:?} {answer:?}");
        }
    }
}

//! The name of a host, and what is known of the addresses that it leads to. Pure: every answer is an
//! argument.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::net::IpAddr;
use std::sync::Arc;

use crate::peers::admission::{Admission, PeerConfig};
use crate::peers::peer::Peer;
use crate::url::PeerUrl;

/// In how many answers in a row an address is missing that is gone: one may be a server's slip.
const REMOVE_AFTER_MISSES: u32 = 2;

/// A peer that was given by the name of its host, for which its addresses stand as soon as they are
/// known.
#[derive(Debug)]
pub(crate) struct ResolvedHost {
    /// That of the peer, which stands for itself until then.
    pub(crate) peer_id: u64,
    pub(crate) peer: Arc<str>,
    pub(crate) host: Arc<str>,
    pub(crate) url: Arc<PeerUrl>,
    /// Those of each of its addresses.
    pub(crate) weight: u32,
    pub(crate) tier: u32,
    /// Whether its addresses stand for it.
    pub(crate) is_resolved: bool,
    /// Whether the last answer was of no use.
    is_unknown: bool,
    pub(crate) known: KnownAddresses,
}

/// The addresses that a name leads to.
pub(crate) type KnownAddresses = BTreeMap<IpAddr, KnownAddress>;

/// What is known of an address.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KnownAddress {
    /// The number of its peer. None where an operator's own peer has its name.
    pub(crate) peer: Option<u64>,
    /// How many answers in a row it was missing from.
    missed: u32,
}

impl KnownAddress {
    pub(crate) fn new(peer: Option<u64>) -> Self {
        Self { peer, missed: 0 }
    }
}

/// What is to be logged of an answer.
#[derive(Debug)]
pub(crate) enum ResolutionChange {
    Unresolved { peer: Arc<str>, reason: String },
    Resolved { peer: Arc<str> },
}

/// What follows from an answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) add: Vec<IpAddr>,
    pub(crate) remove: Vec<IpAddr>,
}

impl ResolvedHost {
    /// The name of this peer's host, if it is one that is resolved.
    pub(crate) fn from_peer(peer: &Peer, admission: &Admission) -> Option<Self> {
        let host = admission.host_name(&peer.url)?;
        Some(Self {
            peer_id: peer.id,
            peer: peer.name.clone(),
            host: host.into(),
            url: peer.url.clone(),
            weight: peer.weight,
            tier: peer.tier,
            is_resolved: false,
            is_unknown: false,
            known: KnownAddresses::new(),
        })
    }

    /// The peer that stands for it at this address. Its URL is told otherwise.
    pub(crate) fn peer_at(&self, address: IpAddr) -> PeerConfig {
        let name = format!("{}/{address}", self.peer);
        PeerConfig::new(name, "").weight(self.weight).tier(self.tier)
    }

    /// Whether an answer is of use, where that has changed.
    pub(crate) fn record_answer(
        &mut self,
        answer: &Result<Vec<IpAddr>, String>,
    ) -> Option<ResolutionChange> {
        let flaw = match answer {
            Ok(addresses) if addresses.is_empty() => Some("it has no address".to_owned()),
            Ok(_) => None,
            Err(reason) => Some(self.url.redact(reason)),
        };
        let was_unknown = mem::replace(&mut self.is_unknown, flaw.is_some());
        match flaw {
            Some(reason) if !was_unknown => {
                Some(ResolutionChange::Unresolved { peer: self.peer.clone(), reason })
            }
            None if was_unknown => Some(ResolutionChange::Resolved { peer: self.peer.clone() }),
            _ => None,
        }
    }
}

/// What follows from an answer that is of use. One that was asked for out of turn only adds.
pub(crate) fn update_known(
    known: &mut KnownAddresses,
    answer: &[IpAddr],
    is_scheduled: bool,
) -> Changes {
    // In an order of its own, as servers deal them out in any; each once, however it is written.
    let answer: BTreeSet<IpAddr> = answer.iter().map(IpAddr::to_canonical).collect();
    let add = answer.iter().filter(|address| !known.contains_key(*address)).copied().collect();
    let mut remove = Vec::new();
    for (address, KnownAddress { missed, .. }) in known {
        let now_missing = missed.saturating_add(is_scheduled.into());
        *missed = if answer.contains(address) { 0 } else { now_missing };
        if *missed >= REMOVE_AFTER_MISSES {
            remove.push(*address);
        }
    }
    Changes { add, remove }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn an_answer_out_of_turn_is_no_reason_against_an_address() {
        let mut known = KnownAddresses::from([
            (address(1), KnownAddress::new(None)),
            (address(2), KnownAddress::new(None)),
        ]);
        for _ in 0..5 {
            assert_eq!(update_known(&mut known, &[address(2)], false), Changes::default());
        }
        assert_eq!(update_known(&mut known, &[address(2)], true), Changes::default(), "once");
        let gone = Changes { add: vec![], remove: vec![address(1)] };
        assert_eq!(update_known(&mut known, &[address(2)], true), gone, "twice");
    }

    #[test]
    fn an_address_is_the_same_however_it_is_written() {
        let mapped = IpAddr::from([0, 0, 0, 0, 0, 0xffff, 0x0a00, 1]);
        let changes = update_known(&mut KnownAddresses::new(), &[mapped, address(1)], true);
        assert_eq!(changes.add, [address(1)]);
    }

    #[test]
    fn what_follows_from_an_answer() {
        // What is known, each with how many answers it was missing from; the answer; what is added and
        // removed; and from how many each is missing then that was known.
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
            // It could not be removed then.
            (&[(1, 2), (2, 0)], &[2], &[], &[1], &[3, 0]),
            (&[(1, u32::MAX)], &[1], &[], &[], &[0]),
        ];
        for (before, answer, add, remove, missed) in cases {
            let entry = |(last, missed): &(u8, u32)| {
                (address(*last), KnownAddress { peer: None, missed: *missed })
            };
            let all = |lasts: &[u8]| lasts.iter().copied().map(address).collect::<Vec<_>>();
            let mut known: KnownAddresses = before.iter().map(entry).collect();
            let unasked = update_known(&mut known.clone(), &all(answer), false);
            let changes = update_known(&mut known, &all(answer), true);
            let expected = Changes { add: all(add), remove: all(remove) };
            assert_eq!(unasked.add, expected.add, "{before:?} {answer:?}, out of turn");
            assert_eq!(changes, expected, "{before:?} {answer:?}");
            let left: Vec<u32> = known.values().map(|address| address.missed).collect();
            assert_eq!(left, missed, "{before:?} {answer:?}");
        }
    }
}

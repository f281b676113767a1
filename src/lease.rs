//! What is counted about a link is counted by this guard, from the first byte of its login until
//! its connection is closed.

use std::sync::Arc;

use crate::peer::Counts;
use crate::set::PeerSet;

/// A place on one peer: a login in flight, or a link. Dropping it gives the place back.
#[derive(Debug)]
pub(crate) struct Lease {
    set: Arc<PeerSet>,
    peer: usize,
    name: Arc<str>,
    phase: Phase,
}

/// What a lease is for at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// A login is in flight.
    Dialing,
    /// A link that is in the pool.
    Idle,
    /// A link that is checked out.
    InUse,
}

impl Phase {
    fn add_to(self, counts: &mut Counts) {
        match self {
            Self::Dialing => counts.dialing += 1,
            Self::Idle => counts.links += 1,
            Self::InUse => {
                counts.links += 1;
                counts.in_use += 1;
            }
        }
    }

    fn take_from(self, counts: &mut Counts) {
        match self {
            Self::Dialing => counts.dialing -= 1,
            Self::Idle => counts.links -= 1,
            Self::InUse => {
                counts.links -= 1;
                counts.in_use -= 1;
            }
        }
    }
}

impl Lease {
    /// The lease of a dial that [`PeerSet::pick`] has already counted.
    pub(crate) fn of_dial(set: Arc<PeerSet>, peer: usize, name: Arc<str>) -> Self {
        Self { set, peer, name, phase: Phase::Dialing }
    }

    pub(crate) fn set(&self) -> &Arc<PeerSet> {
        &self.set
    }

    pub(crate) fn peer(&self) -> usize {
        self.peer
    }

    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub(crate) fn enter(&mut self, phase: Phase) {
        self.set.count(self.peer, |peer| {
            self.phase.take_from(&mut peer.counts);
            phase.add_to(&mut peer.counts);
        });
        self.phase = phase;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.set.count(self.peer, |peer| self.phase.take_from(&mut peer.counts));
    }
}

//! What is counted about a link is counted by this guard, from the first byte of its login until
//! its connection is closed.

use std::sync::Arc;
use std::time::Instant;

use crate::event::{EventKind, Retired};
use crate::peers::pulse::{Pulse, Vitals};
use crate::peers::set::{PeerSet, Picked};

/// A place on one peer: a login in flight, then a link. Dropping it gives the place back.
#[derive(Debug)]
pub(crate) struct Lease {
    set: Arc<PeerSet>,
    peer: usize,
    name: Arc<str>,
    is_link: bool,
    pulse: Arc<Pulse>,
    /// Of the link, and when it was made.
    vitals: Option<(Arc<Vitals>, Instant)>,
    in_use: bool,
    /// Why it ends, where that is known.
    retired: Option<Retired>,
}

impl Lease {
    /// The lease of a dial that [`PeerSet::pick`] has already counted.
    pub(crate) fn of_dial(set: Arc<PeerSet>, picked: &Picked) -> Self {
        Self {
            set,
            peer: picked.peer,
            name: picked.name.clone(),
            is_link: false,
            pulse: picked.pulse.clone(),
            vitals: None,
            in_use: false,
            retired: None,
        }
    }

    pub(crate) fn set(&self) -> &Arc<PeerSet> {
        &self.set
    }

    pub(crate) fn peer(&self) -> usize {
        self.peer
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The login has succeeded, and its connection is used.
    pub(crate) fn becomes_link(&mut self, vitals: Arc<Vitals>, born: Instant) {
        self.is_link = true;
        self.pulse.tally.connects.add_one();
        // First, so that there is no moment at which its peer has neither.
        self.pulse.add(vitals.clone());
        self.set.count(self.peer, |counts| {
            counts.dialing -= 1;
            counts.links += 1;
        });
        self.vitals = Some((vitals, born));
    }

    /// It is checked out, and was found fine if it was looked at.
    pub(crate) fn serves(&self) {
        self.pulse.tally.check_outs.add_one();
    }

    pub(crate) fn is_in_use(&self) -> bool {
        self.in_use
    }

    /// The link is about to be closed. The first reason counts.
    pub(crate) fn retire(&mut self, why: Retired) {
        self.retired.get_or_insert(why);
    }

    /// Why the link ends: because of its peer, if that is so.
    fn why_retired(&self) -> Retired {
        let of_peer = self.set.read(|peers| {
            let peer = &peers[self.peer];
            match (peer.is_in_service(), peer.is_up()) {
                (false, _) => Some(Retired::Drained),
                (true, false) => Some(Retired::PeerDown),
                (true, true) => None,
            }
        });
        of_peer.or(self.retired).unwrap_or(Retired::ByPool)
    }

    /// The link is checked out, or is no more.
    pub(crate) fn set_in_use(&mut self, in_use: bool) {
        if self.in_use != in_use {
            self.pulse.count_in_use(in_use);
            self.in_use = in_use;
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.set_in_use(false);
        if let Some((_, born)) = &self.vitals {
            let why = self.why_retired();
            self.pulse.tally.retired(why).add_one();
            self.set.tell(self.peer, EventKind::LinkRetired { why, age: born.elapsed() });
        }
        // From now on it does not keep the peer's place.
        self.set.count(self.peer, |counts| {
            if self.is_link {
                counts.links -= 1;
            } else {
                counts.dialing -= 1;
            }
        });
        // Last, so that a peer without one has none that is counted.
        if let Some((vitals, _)) = &self.vitals {
            self.pulse.remove(vitals);
        }
    }
}

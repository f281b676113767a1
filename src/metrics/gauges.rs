//! What the gauges of a peer show.

use super::catalog;
use super::labelled::Labelled;
use crate::peers::peer::{Counts, Peer};

/// What the gauges of one name show: of a peer that is gone, 0.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gauges {
    up: usize,
    in_service: usize,
    full: usize,
    hesitant: usize,
    weight: usize,
    links: usize,
    in_use: usize,
    dialing: usize,
    stuck: usize,
}

impl Gauges {
    /// Those of `peer`, with the connections of an older one of its name that is being removed.
    pub(super) fn and(self, peer: &Peer) -> Self {
        let Counts { dialing, stuck, links, .. } = peer.counts;
        Self {
            up: peer.is_up().into(),
            in_service: peer.is_in_service().into(),
            full: peer.is_full.into(),
            hesitant: peer.pulse.is_hesitant().into(),
            weight: peer.weight as usize,
            links: self.links + links,
            in_use: self.in_use + peer.pulse.in_use(),
            dialing: self.dialing + dialing,
            stuck: self.stuck + stuck,
        }
    }

    /// Whether all of them are 0.
    pub(super) fn is_nothing(self) -> bool {
        self == Self::default()
    }

    pub(super) fn tell(self, to: &Labelled<'_>) {
        let Self { up, in_service, full, hesitant, weight, links, in_use, dialing, stuck } = self;
        to.gauge(&catalog::UP, up);
        to.gauge(&catalog::IN_SERVICE, in_service);
        to.gauge(&catalog::FULL, full);
        to.gauge(&catalog::HESITANT, hesitant);
        to.gauge(&catalog::WEIGHT, weight);
        to.gauge(&catalog::LINKS, links);
        to.gauge(&catalog::IN_USE, in_use);
        to.gauge(&catalog::DIALING, dialing);
        to.gauge(&catalog::STUCK, stuck);
    }
}

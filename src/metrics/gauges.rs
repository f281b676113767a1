//! What the gauges of a peer show.

use super::catalog;
use super::labeled::Labeled;
use crate::peers::peer::{Counts, Peer};

/// What the gauges of one name show: of a peer that is gone, 0.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gauges {
    up: usize,
    in_service: usize,
    full: usize,
    unresponsive: usize,
    weight: usize,
    links: usize,
    in_use: usize,
    connecting: usize,
    stuck_logins: usize,
}

impl Gauges {
    /// Those of `peer`, with the connections of an older one of its name that is being removed.
    pub(super) fn and(self, peer: &Peer) -> Self {
        let Counts { connecting, stuck_logins, links, .. } = peer.counts;
        Self {
            up: peer.is_up().into(),
            in_service: peer.is_in_service().into(),
            full: peer.is_full.into(),
            unresponsive: peer.activity.is_unresponsive().into(),
            weight: peer.weight as usize,
            links: self.links + links,
            in_use: self.in_use + peer.activity.in_use(),
            connecting: self.connecting + connecting,
            stuck_logins: self.stuck_logins + stuck_logins,
        }
    }

    /// Whether all of them are 0.
    pub(super) fn is_nothing(self) -> bool {
        self == Self::default()
    }

    pub(super) fn tell(self, to: &Labeled<'_>) {
        let Self {
            up,
            in_service,
            full,
            unresponsive,
            weight,
            links,
            in_use,
            connecting,
            stuck_logins,
        } = self;
        to.gauge(&catalog::UP, up);
        to.gauge(&catalog::IN_SERVICE, in_service);
        to.gauge(&catalog::FULL, full);
        to.gauge(&catalog::UNRESPONSIVE, unresponsive);
        to.gauge(&catalog::WEIGHT, weight);
        to.gauge(&catalog::CONNECTIONS, links);
        to.gauge(&catalog::IN_USE, in_use);
        to.gauge(&catalog::CONNECTING, connecting);
        to.gauge(&catalog::STUCK_LOGINS, stuck_logins);
    }
}

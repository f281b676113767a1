//! Exports the gauges of a peer.

use super::catalog;
use super::labeled::LabeledRecorder;
use crate::peers::peer::{Counts, Peer};

/// The values of the gauges of one peer name. All are 0 if there is no peer of this name.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gauges {
    up: usize,
    degraded: usize,
    in_service: usize,
    full: usize,
    at_limit: usize,
    unresponsive: usize,
    slow: usize,
    weight: usize,
    max_connections: usize,
    links: usize,
    in_use: usize,
    connecting: usize,
    stuck_logins: usize,
}

impl Gauges {
    /// Returns the gauges of `peer`, plus the connections in `self` of an older peer of the same name that
    /// is being removed.
    pub(super) fn merged_with(self, peer: &Peer) -> Self {
        let Counts { connecting, stuck_logins, links, .. } = peer.counts;
        Self {
            up: peer.is_up().into(),
            degraded: peer.is_degraded().into(),
            in_service: peer.is_in_service().into(),
            full: peer.is_full().into(),
            at_limit: peer.is_at_limit().into(),
            unresponsive: peer.activity.is_unresponsive().into(),
            slow: peer.slow.is_some().into(),
            weight: peer.weight as usize,
            max_connections: peer.max_connections.unwrap_or_default() as usize,
            links: self.links + links,
            in_use: self.in_use + peer.activity.in_use(),
            connecting: self.connecting + connecting,
            stuck_logins: self.stuck_logins + stuck_logins,
        }
    }

    /// Whether all gauges are 0.
    pub(super) fn are_zero(self) -> bool {
        self == Self::default()
    }

    /// Sets the gauges of the recorder.
    pub(super) fn report(self, labeled: &LabeledRecorder<'_>) {
        let Self {
            up,
            degraded,
            in_service,
            full,
            at_limit,
            unresponsive,
            slow,
            weight,
            max_connections,
            links,
            in_use,
            connecting,
            stuck_logins,
        } = self;
        labeled.gauge(&catalog::UP, up);
        labeled.gauge(&catalog::DEGRADED, degraded);
        labeled.gauge(&catalog::IN_SERVICE, in_service);
        labeled.gauge(&catalog::FULL, full);
        labeled.gauge(&catalog::AT_LIMIT, at_limit);
        labeled.gauge(&catalog::UNRESPONSIVE, unresponsive);
        labeled.gauge(&catalog::SLOW, slow);
        labeled.gauge(&catalog::WEIGHT, weight);
        labeled.gauge(&catalog::MAX_CONNECTIONS, max_connections);
        labeled.gauge(&catalog::CONNECTIONS, links);
        labeled.gauge(&catalog::IN_USE, in_use);
        labeled.gauge(&catalog::CONNECTING, connecting);
        labeled.gauge(&catalog::STUCK_LOGINS, stuck_logins);
    }
}

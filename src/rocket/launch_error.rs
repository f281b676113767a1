//! The error that prevents the launch of an application.

use std::fmt;

use crate::error::BuildError;
use crate::peers::handle::Peers;
use crate::peers::snapshot::PeerStatus;

/// The error of a database whose pool could not be built. Rocket prints errors with `Debug`, which shows the
/// same text as `Display`.
pub struct LaunchError {
    text: String,
}

impl LaunchError {
    /// Creates the error for an invalid setting.
    pub(super) fn from_build_error(error: &BuildError) -> Self {
        Self { text: error.to_string() }
    }

    /// Creates the error for a pool that could not open all its connections in time.
    pub(super) fn from_pool_error(error: &r2d2::Error, peers: &Peers) -> Self {
        let peers = peers.snapshot().peers;
        let are_all_down = peers.iter().all(|peer| peer.state.is_marked_down());
        let states: Vec<String> = peers.iter().map(describe).collect();
        let states = states.join("; ");
        let text = if are_all_down {
            format!("no peer accepted a connection within Rocket's `timeout`: {states}")
        } else {
            format!(
                "could not open all `pool_size` connections within Rocket's `timeout`: {states} \
                 ({error})",
            )
        };
        Self { text }
    }
}

fn describe(peer: &PeerStatus) -> String {
    match &peer.reason {
        Some(reason) => format!("{} is down: {reason}", peer.name),
        None => format!("{} is up (connections: {})", peer.name, peer.connections),
    }
}

impl fmt::Display for LaunchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for LaunchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for LaunchError {}

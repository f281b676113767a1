//! Why an application was not launched.

use std::fmt;

use crate::error::BuildError;
use crate::peers::{PeerState, Peers};

/// Why a database's pool was not built. Rocket shows it by `Debug`, which tells the story.
pub struct LaunchError {
    story: String,
}

impl LaunchError {
    /// A wrong setting.
    pub(super) fn of(error: &BuildError) -> Self {
        // In Rocket's settings the pool's is called so.
        Self { story: error.to_string().replace("`pool_timeout`", "Rocket's `timeout`") }
    }

    /// A pool that was not full in time.
    pub(super) fn of_pool(error: &r2d2::Error, peers: &Peers) -> Self {
        let peer = |peer: &crate::PeerStatus| match (peer.state, &peer.why) {
            (PeerState::Down, Some(why)) => format!("{} is down: {why}", peer.name),
            _ => format!("{} is up, with {} connections", peer.name, peer.links),
        };
        let peers: Vec<String> = peers.snapshot().peers.iter().map(peer).collect();
        let story = format!(
            "{error} (Rocket's `timeout` is how long it may take to make all `pool_size` connections; \
             {})",
            peers.join("; "),
        );
        Self { story }
    }
}

impl fmt::Display for LaunchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.story)
    }
}

impl fmt::Debug for LaunchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for LaunchError {}

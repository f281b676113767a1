//! Why an application was not launched.

use std::fmt;

use crate::error::BuildError;
use crate::peers::handle::Peers;
use crate::peers::snapshot::{PeerState, PeerStatus};

/// Why a database's pool was not built. Rocket shows it by `Debug`, which tells the story.
pub struct LaunchError {
    story: String,
}

impl LaunchError {
    /// A wrong setting.
    pub(super) fn of_settings(error: &BuildError) -> Self {
        Self { story: error.to_string() }
    }

    /// A pool that was not full in time.
    pub(super) fn of_pool(error: &r2d2::Error, peers: &Peers) -> Self {
        let peers = peers.snapshot().peers;
        let nobody_is_up = peers.iter().all(|peer| peer.state == PeerState::Down);
        let told: Vec<String> = peers.iter().map(tell).collect();
        let told = told.join("; ");
        let story = if nobody_is_up {
            format!("no peer took a connection within Rocket's `timeout`: {told}")
        } else {
            format!(
                "not all `pool_size` connections could be made within Rocket's `timeout`: {told} \
                 ({error})",
            )
        };
        Self { story }
    }
}

fn tell(peer: &PeerStatus) -> String {
    match &peer.reason {
        Some(reason) => format!("{} is down: {reason}", peer.name),
        None => format!("{} is up, with {} connections", peer.name, peer.connections),
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

//! What the buttons of the page do.

use super::csrf::Form;
use super::error::PageError;
use crate::peers::handle::Peers;
use crate::peers::snapshot::{PeerStatus, Snapshot};

/// The outcome of a button that was not refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ActionOutcome {
    Done,
    /// Nothing was done: the operator has to confirm first.
    NeedsConfirmation(LastDrain),
}

/// A drain after which no peer of the pool would be available.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LastDrain {
    pub(super) pool: String,
    pub(super) peer: String,
}

impl LastDrain {
    /// The question to the operator.
    pub(super) fn text(&self) -> String {
        let Self { pool, peer } = self;
        format!(
            "No other peer of {pool} is available. If {peer} is drained, every request that needs this \
             database fails until a peer is available again.",
        )
    }
}

/// Performs the action of a form.
pub(super) fn perform(pools: &[(String, Peers)], form: &Form) -> Result<ActionOutcome, PageError> {
    let [pool, peer, action] = ["pool", "peer", "action"].map(|name| form.get(name));
    let (Some(pool), Some(peer), Some(action)) = (pool, peer, action) else {
        return Err(PageError::InvalidForm);
    };
    let Some((_, peers)) = pools.iter().find(|(name, _)| name == pool) else {
        let names = pools.iter().map(|(name, _)| name.clone()).collect();
        return Err(PageError::UnknownPool(pool.clone(), names));
    };
    let snapshot = peers.snapshot();
    if snapshot.closed {
        return Err(PageError::PoolClosed(pool.clone()));
    }
    let is_confirmed = form.get("confirm").is_some_and(|answer| answer == "yes");
    let done = match action.as_str() {
        "drain" if leaves_none_available(&snapshot, peer) && !is_confirmed => {
            let drain = LastDrain { pool: pool.clone(), peer: peer.clone() };
            return Ok(ActionOutcome::NeedsConfirmation(drain));
        }
        "drain" => peers.drain(peer).map(drop),
        "resume" => peers.resume(peer),
        _ => return Err(PageError::InvalidForm),
    };
    done.map_err(|error| PageError::ChangeFailed(error.to_string()))?;
    Ok(ActionOutcome::Done)
}

/// Whether no other peer is available once this one is drained.
fn leaves_none_available(snapshot: &Snapshot, drained: &str) -> bool {
    let mut others = snapshot.peers.iter().filter(|peer| peer.name != drained);
    snapshot.peer(drained).is_some() && !others.any(PeerStatus::is_available)
}

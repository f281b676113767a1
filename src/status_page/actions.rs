//! What a button does, and why it may not.

use super::csrf::Form;
use super::error::PageError;
use crate::peers::handle::Peers;
use crate::peers::snapshot::Snapshot;

/// What came of a button.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    /// It is asked first.
    Asks(Question),
}

/// Whether a peer is to be drained although nobody serves then.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) pool: String,
    pub(super) peer: String,
}

impl Question {
    pub(super) fn text(&self) -> String {
        let Self { pool, peer } = self;
        format!(
            "No other peer of {pool} takes work. When {peer} is drained, every request that needs this \
             database fails until a peer serves again.",
        )
    }
}

/// Does what the form says.
pub(super) fn act(pools: &[(String, Peers)], form: &Form) -> Result<Outcome, PageError> {
    let [pool, peer, action] = ["pool", "peer", "action"].map(|name| form.get(name));
    let (Some(pool), Some(peer), Some(action)) = (pool, peer, action) else {
        return Err(PageError::NoForm);
    };
    let Some((_, peers)) = pools.iter().find(|(name, _)| name == pool) else {
        let names = pools.iter().map(|(name, _)| name.clone()).collect();
        return Err(PageError::NoPool(pool.clone(), names));
    };
    let snapshot = peers.snapshot();
    if snapshot.closed {
        return Err(PageError::Closed(pool.clone()));
    }
    let is_confirmed = form.get("confirm").is_some_and(|answer| answer == "yes");
    let done = match action.as_str() {
        "drain" if leaves_nobody(&snapshot, peer) && !is_confirmed => {
            let question = Question { pool: pool.clone(), peer: peer.clone() };
            return Ok(Outcome::Asks(question));
        }
        "drain" => peers.drain(peer).map(drop),
        "resume" => peers.resume(peer),
        _ => return Err(PageError::NoForm),
    };
    done.map_err(|error| PageError::Peers(error.to_string()))?;
    Ok(Outcome::Done)
}

/// Whether nobody serves when this peer does not.
fn leaves_nobody(snapshot: &Snapshot, drained: &str) -> bool {
    let serves_else = snapshot.peers.iter().any(|peer| peer.name != drained && peer.is_available());
    snapshot.peer(drained).is_some() && !serves_else
}

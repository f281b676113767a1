//! The peers: what each is known to be, what is due, and the public handle.

pub(crate) mod admission;
pub(crate) mod deadline;
pub(crate) mod duties;
pub(crate) mod handle;
pub(crate) mod journal;
pub(crate) mod lease;
pub(crate) mod name;
pub(crate) mod outage;
pub(crate) mod peer;
pub(crate) mod pulse;
pub(crate) mod service;
pub(crate) mod set;
pub(crate) mod share;
pub(crate) mod snapshot;
mod stall;
pub(crate) mod tally;

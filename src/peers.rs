//! The peers: the state of each one, the placement of connections, snapshots, and the public handle.

pub(crate) mod activity;
pub(crate) mod admin_state;
pub(crate) mod checkout_times;
pub(crate) mod counters;
mod evidence;
pub(crate) mod handle;
pub(crate) mod link_guard;
pub(crate) mod link_state;
pub(crate) mod outage;
pub(crate) mod peer;
pub(crate) mod peer_config;
pub(crate) mod placement;
pub(crate) mod resolved_host;
pub(crate) mod retry_budget;
pub(crate) mod session_sign;
pub(crate) mod set;
pub(crate) mod snapshot;
pub(crate) mod transaction_record;
mod transition;

//! One r2d2 pool over several equivalent database peers, for diesel.

mod builder;
mod caught;
mod checker;
mod connection;
mod dial;
mod fault;
mod lease;
mod manager;
mod observer;
mod passthrough;
mod peer;
mod peers;
mod pick;
mod set;
mod url;

pub use crate::builder::{AllDown, BuildError, PeerManagerBuilder, Recheck};
pub use crate::connection::PeerConnection;
pub use crate::manager::PeerManager;
#[doc(hidden)]
pub use crate::passthrough::PeerTransactionManager;
pub use crate::peers::{PeerState, PeerStatus, Peers, Snapshot};

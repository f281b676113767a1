// Its code is compiled as doctests with the features that it uses.
#![cfg_attr(any(not(doctest), feature = "mysql"), doc = include_str!("../README.md"))]

mod builder;
mod caught;
mod checker;
mod connection;
mod dial;
mod error;
mod exchange;
mod fault;
mod lease;
mod link;
mod manager;
mod observer;
mod passthrough;
mod peer;
mod peers;
mod policy;
mod prime;
mod set;
mod share;
mod strategy;
mod url;

pub use crate::builder::PeerManagerBuilder;
pub use crate::connection::PeerConnection;
pub use crate::error::BuildError;
pub use crate::manager::PeerManager;
#[doc(hidden)]
pub use crate::passthrough::PeerTransactionManager;
pub use crate::peers::{PeerState, PeerStatus, Peers, Snapshot};
pub use crate::policy::{AllDown, Balance, Recheck, Strategy};
pub use crate::prime::prime;

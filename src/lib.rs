// Its code is compiled as doctests with the features that it uses.
#![cfg_attr(
    any(not(doctest), all(feature = "mysql", feature = "postgres", feature = "rocket")),
    doc = include_str!("../README.md")
)]

mod builder;
mod caught;
mod checker;
mod config;
mod connection;
mod deadline;
mod dial;
mod dialect;
mod duties;
mod error;
mod exchange;
mod fault;
mod helper;
mod lease;
mod link;
mod login;
mod manager;
mod observer;
mod outage;
mod passthrough;
mod peer;
mod peers;
mod policy;
mod prime;
mod pulse;
mod readiness;
#[cfg(feature = "rocket")]
pub mod rocket;
mod rules;
mod set;
mod share;
#[cfg_attr(not(all(feature = "socket", target_os = "linux")), path = "no_socket.rs")]
mod socket;
mod sound;
mod stall;
mod strategy;
mod url;

pub use crate::builder::PeerManagerBuilder;
#[cfg(feature = "serde")]
pub use crate::config::Config;
pub use crate::connection::PeerConnection;
pub use crate::error::BuildError;
pub use crate::fault::{Failed, Fault};
pub use crate::manager::PeerManager;
#[doc(hidden)]
pub use crate::passthrough::PeerTransactionManager;
pub use crate::peers::{PeerState, PeerStatus, Peers, Snapshot};
pub use crate::policy::{AllDown, Balance, Donors, Recheck, Role, Strategy};
pub use crate::prime::prime;
pub use crate::url::Credentials;

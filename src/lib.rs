// Its code is compiled as doctests with the features that it uses.
#![cfg_attr(
    any(
        not(doctest),
        all(
            feature = "mysql",
            feature = "postgres",
            feature = "rocket",
            feature = "metrics",
            feature = "status-page"
        )
    ),
    doc = include_str!("../README.md")
)]

mod builder;
mod caught;
mod checker;
mod config;
mod dialect;
#[cfg(feature = "cli")]
pub mod doctor;
mod error;
mod event;
mod fault;
mod herald;
mod login;
mod manager;
#[cfg(feature = "metrics")]
pub mod metrics;
/// The guide for whoever runs an application that uses this crate.
#[cfg(doc)]
#[cfg_attr(
    any(not(doctest), feature = "mysql"),
    doc = include_str!("../OPERATIONS.md")
)]
pub mod operations {}
mod peers;
mod policy;
mod pool;
mod resolver;
#[cfg(feature = "rocket")]
pub mod rocket;
mod rules;
#[cfg(feature = "status-page")]
pub mod status_page;
mod url;

pub use crate::builder::PeerManagerBuilder;
#[cfg(feature = "serde")]
pub use crate::config::Config;
pub use crate::error::{BuildError, ChangeError};
pub use crate::event::{Event, EventHandler, EventKind, Retired};
pub use crate::fault::{Failed, Fault};
pub use crate::manager::PeerManager;
pub use crate::peers::admission::PeerConfig;
pub use crate::peers::handle::Peers;
pub use crate::peers::set::Drain;
pub use crate::peers::snapshot::{PeerState, PeerStatus, Snapshot};
pub use crate::policy::{AllDown, Balance, Donors, Recheck, Role, Strategy};
pub use crate::pool::connection::PeerConnection;
#[doc(hidden)]
pub use crate::pool::passthrough::PeerTransactionManager;
pub use crate::pool::prime::prime;
pub use crate::url::Credentials;

// What links in the README, and in the guide below, lead to here: a definition that comes first counts.
//! [alerts]: operations#what-to-be-told-of
//! [apache]: https://docs.rs/crate/diesel-peers/latest/source/LICENSE-APACHE
//! [by drain]: operations#by-drain
//! [changelog]: https://docs.rs/crate/diesel-peers/latest/source/CHANGELOG.md
//! [contributing]: https://docs.rs/crate/diesel-peers/latest/source/CONTRIBUTING.md
//! [design]: https://docs.rs/crate/diesel-peers/latest/source/DESIGN.md
//! [mit]: https://docs.rs/crate/diesel-peers/latest/source/LICENSE-MIT
//! [operations]: operations
//!
// The package `diesel-peers-tests` compiles its code, which needs more than this crate depends on.
#![cfg_attr(not(doctest), doc = include_str!("../README.md"))]

mod builder;
#[cfg(test)]
mod cases;
mod checker;
mod config;
mod dialect;
mod dispatcher;
#[cfg(feature = "doctor")]
pub mod doctor;
mod error;
mod event;
mod fault;
mod login;
mod manager;
#[cfg(feature = "metrics")]
pub mod metrics;
mod panics;
/// The guide for whoever runs an application that uses this crate.
///
/// [check]: crate#check-it-the-peers-command
/// [errors]: crate#what-an-error-means
/// [metrics]: crate#metrics
/// [names]: crate#one-name-many-addresses
/// [page]: crate#a-page-to-look-at
/// [settings]: crate#configure-it
///
#[cfg(doc)]
#[cfg_attr(not(doctest), doc = include_str!("../OPERATIONS.md"))]
pub mod operations {}
mod peers;
mod policy;
mod pool;
mod resolver;
#[cfg(feature = "rocket")]
pub mod rocket;
#[cfg(feature = "serde")]
mod serialize;
mod settings;
#[cfg(feature = "status-page")]
pub mod status_page;
mod url;

pub use crate::builder::PeerManagerBuilder;
#[cfg(feature = "serde")]
pub use crate::config::Config;
pub use crate::error::{BuildError, ChangeError, ChangeErrorKind};
pub use crate::event::{CloseReason, Event, EventKind};
pub use crate::fault::{Failure, Fault};
pub use crate::manager::PeerManager;
pub use crate::peers::admission::PeerConfig;
pub use crate::peers::handle::Peers;
pub use crate::peers::set::Drain;
pub use crate::peers::snapshot::{PeerState, PeerStatus, Snapshot};
pub use crate::policy::{AllDown, Balance, Donors, ParseChoiceError, Recovery, Role, Strategy};
pub use crate::pool::connection::PeerConnection;
#[doc(hidden)]
pub use crate::pool::passthrough::PeerTransactionManager;
pub use crate::pool::prime::prime;
pub use crate::url::Credentials;

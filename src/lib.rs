//! One [`r2d2`] pool over several equivalent database servers, for [`diesel`].
//!
//! - [`PeerManager`] takes the place of diesel's `ConnectionManager` in a pool; [`PeerManagerBuilder`] has every setting.
//! - [`PeerConnection`] is the pool's connection to one peer.
//! - [`Peers`] shows the state of the peers and changes them at run time; [`Event`] is what happens to them.
//! - [`PeerConnection::transaction_with_retry`] runs a transaction again that was interrupted, within the limits of a
//!   [`RetryPolicy`], and returns its [`Outcome`]. A [`Ledger`] finds out the outcome of a `COMMIT` without an answer.
//!   [`outcome_of`] returns the outcome of a plain diesel transaction.
//! - [`Fault`] classifies errors.
//! - [`guide`] has the chapters of the guide: configuration, errors, maintenance and others.
//!
//! The rest of this page is the README.
//!
#![doc = include_str!("guide/links.md")]
#![doc = include_str!("guide/figure.md")]
#![cfg_attr(not(doctest), doc = include_str!("../README.md"))]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod builder;
#[cfg(test)]
mod cases;
mod config;
mod deadlines;
#[cfg(feature = "doctor")]
pub mod doctor;
mod error;
mod events;
mod fault;
#[cfg(doc)]
pub mod guide;
mod health;
mod login;
mod manager;
#[cfg(feature = "metrics")]
pub mod metrics;
mod panics;
mod peers;
mod pool;
mod prime;
mod redact;
mod resolver;
#[cfg(feature = "rocket")]
pub mod rocket;
#[cfg(feature = "serde")]
mod serialize;
mod settings;
mod socket;
#[cfg(feature = "status-page")]
pub mod status_page;
mod transaction;
mod url;

pub use crate::builder::PeerManagerBuilder;
#[cfg(feature = "serde")]
pub use crate::config::Config;
pub use crate::error::{BuildError, ChangeError, ChangeErrorKind};
pub use crate::events::{CloseReason, Event, EventKind};
pub use crate::fault::{Failure, Fault};
pub use crate::manager::PeerManager;
pub use crate::peers::handle::Peers;
pub use crate::peers::peer_config::PeerConfig;
pub use crate::peers::set::Drain;
pub use crate::peers::snapshot::{PeerState, PeerStatus, Snapshot, TransactionCounts};
pub use crate::pool::connection::PeerConnection;
#[doc(hidden)]
pub use crate::pool::passthrough::PeerTransactionManager;
pub use crate::prime::prime;
pub use crate::settings::ledger::{Ledger, LedgerTable};
pub use crate::settings::policy::{
    AllDown, Balance, Donors, GaleraCheck, ParseChoiceError, Recovery, Role, SlowPeers,
    StatementCache, Strategy,
};
pub use crate::settings::retry::{Isolation, RetryPolicy};
pub use crate::transaction::{Doubt, DoubtReason, Outcome, TransactionError, Verdict, outcome_of};
pub use crate::url::Credentials;

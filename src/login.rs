//! Logs in to a peer, under a deadline, and prepares and tests the new connection.

mod address;
pub(crate) mod bounded;
pub(crate) mod dial;
pub(crate) mod observer;
pub(crate) mod readiness;
pub(crate) mod session;
mod statements;

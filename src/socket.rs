//! The TCP socket of a connection, on systems where it can be found. On others no socket is ever found.

#[cfg(all(feature = "socket", target_os = "linux"))]
mod linux;
#[cfg(not(all(feature = "socket", target_os = "linux")))]
mod none;

use std::time::Duration;

#[cfg(all(feature = "socket", target_os = "linux"))]
pub(crate) use linux::{Proof, Socket, Sockets, Thread, awaited_by};
#[cfg(not(all(feature = "socket", target_os = "linux")))]
pub(crate) use none::{Proof, Socket, Sockets, Thread, awaited_by};

/// TCP settings by which the kernel notices that the remote machine has vanished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    not(all(feature = "socket", target_os = "linux")),
    allow(dead_code, reason = "only a socket that is found is tuned")
)]
pub(crate) struct Tuning {
    /// The time without received data after which the kernel sends keepalive probes.
    pub(crate) keepalive: Option<Duration>,
    /// The time for which sent data may remain unacknowledged.
    pub(crate) user_timeout: Option<Duration>,
}

//! The choices of an application: enums whose values are settings, in code and as text.

use std::error::Error;
use std::fmt;
use std::str::FromStr;

/// The strategy by which a checkout chooses its peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Strategy {
    /// Chooses the peer with the fewest connections in use for its weight. Among equals, the peer that got
    /// less work before is chosen. With unequal weights, a peer that got less than its share before is
    /// preferred, by at most one connection.
    #[default]
    LeastConnections,
    /// Chooses a peer at random, in proportion to the weights. Skips a peer that has far more than its share
    /// in use.
    Random,
    /// Chooses one peer after the other, each as often as its weight says. The turns of the peers are
    /// interleaved: weights of 5, 1 and 1 give `a a b a c a a`. Skips a peer that is down, or that has far
    /// more than its share in use. A peer that was skipped does not catch up.
    RoundRobin,
    /// Chooses among the peers of the first [tier](crate::PeerManagerBuilder::tier) with a peer that is up,
    /// as `LeastConnections` does.
    Ordered,
}

/// The unit of balancing: checkouts or connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Balance {
    /// Every checkout is balanced: it gets a connection to the peer that the [`Strategy`] chooses.
    #[default]
    PerCheckout,
    /// Only connections are balanced. Each stays with the slot of the pool that it was opened for, and a
    /// checkout gets the connection that came back last, as with diesel's own manager.
    PerConnection,
}

/// The role that a peer must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Role {
    /// No role is required.
    #[default]
    Any,
    /// The peer must accept writes. A read-only peer is marked down.
    ReadWrite,
    /// The peer must be read-only. A peer that accepts writes is marked down.
    ReadOnly,
}

/// The treatment of Galera donors: nodes that hand their state over to another node, or that were
/// desynchronized by hand (`wsrep_desync`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Donors {
    /// A donor keeps serving if the transfer does not block it: when it was desynchronized by hand, or when
    /// `wsrep_sst_method` is `mariabackup`, `xtrabackup`, `xtrabackup-v2` or `clone`.
    #[default]
    ServeUnlessBlocked,
    /// A donor keeps serving.
    Serve,
    /// A donor is marked down until it is synced.
    Wait,
}

/// Whether the readiness test asks a MySQL server for its Galera state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum GaleraCheck {
    /// A Galera node that takes no work is marked down.
    #[default]
    Enabled,
    /// The Galera state is not read. (A role that `require` demands is.) For a proxy over several nodes, such
    /// as ProxySQL or MaxScale, whose own monitor decides which node gets the work: the state of one node says
    /// little about the proxy.
    Disabled,
}

/// Whether diesel keeps the prepared statements of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum StatementCache {
    /// diesel's default: all statements are kept on the server until the connection ends.
    #[default]
    Unbounded,
    /// No statement is kept. For PostgreSQL behind a pooler with transaction pooling that does not
    /// track prepared statements: the next query may run in another session of the server.
    Disabled,
}

/// The conditions that a peer must meet at each login and health check.
#[derive(Debug, Clone, Copy, Default)]
#[cfg_attr(not(feature = "mysql"), allow(dead_code, reason = "each database reads its own"))]
pub(crate) struct Requirements {
    pub(crate) role: Role,
    pub(crate) donors: Donors,
    pub(crate) galera_check: GaleraCheck,
    /// Whether the connection must be encrypted. MariaDB's client library does not enforce this.
    pub(crate) encrypted: bool,
}

/// The way in which a peer that is marked down comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Recovery {
    /// A health check must succeed: a login and `BEGIN; ROLLBACK`. Success clears the mark, failure renews
    /// it, so that no user's request is spent on the test.
    #[default]
    AfterCheck,
    /// The mark expires after `check_interval` without a check, as in django-proxysql, and the next new
    /// connection tries the peer. Peers that are up are checked all the same.
    AfterInterval,
}

/// What happens when a peer is an outlier: alive, and much slower than the other peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum SlowPeers {
    /// The work shifts to the other peers. A slow peer gets single checkouts, which show when it is fast
    /// again, and what the other peers have no idle connection for.
    #[default]
    Shift,
    /// A slow peer is reported as with `Shift`, and gets its share of the work as before.
    Tell,
    /// Peers are not compared.
    Off,
}

/// The behavior of a new connection while every peer is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum AllDown {
    /// Tries the peers that are down, the one with the earliest next check first.
    #[default]
    Try,
    /// Fails at once while no peer is up.
    Fail,
}

/// The error of parsing a choice, such as a [`Strategy`], from text. `Display` lists the valid names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseChoiceError {
    names: &'static [&'static str],
}

impl fmt::Display for ParseChoiceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("give one of ")?;
        for (index, name) in self.names.iter().enumerate() {
            write!(f, "{}\"{name}\"", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

impl Error for ParseChoiceError {}

/// Gives the variants of an enum their names in text: one list for `as_str`, `Display` and `FromStr`.
macro_rules! choices {
    ($choice:ident { $($variant:ident = $name:literal),+ $(,)? }) => {
        impl $choice {
            /// Returns the name of this choice in URLs, environment variables and files.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }

        impl fmt::Display for $choice {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $choice {
            type Err = ParseChoiceError;

            fn from_str(name: &str) -> Result<Self, ParseChoiceError> {
                match name {
                    $($name => Ok(Self::$variant),)+
                    _ => Err(ParseChoiceError { names: &[$($name),+] }),
                }
            }
        }
    };
}

choices!(Strategy {
    LeastConnections = "least_connections",
    Random = "random",
    RoundRobin = "round_robin",
    Ordered = "ordered",
});
choices!(Balance { PerCheckout = "per_checkout", PerConnection = "per_connection" });
choices!(Role { Any = "any", ReadWrite = "read_write", ReadOnly = "read_only" });
choices!(Donors {
    ServeUnlessBlocked = "serve_unless_blocked",
    Serve = "serve",
    Wait = "wait",
});
choices!(GaleraCheck { Enabled = "enabled", Disabled = "disabled" });
choices!(StatementCache { Unbounded = "unbounded", Disabled = "disabled" });
choices!(Recovery { AfterCheck = "after_check", AfterInterval = "after_interval" });
choices!(SlowPeers { Shift = "shift", Tell = "tell", Off = "off" });
choices!(AllDown { Try = "try", Fail = "fail" });

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choice_parses_from_its_own_name_and_the_error_lists_all_names() {
        for strategy in [Strategy::LeastConnections, Strategy::RoundRobin] {
            assert_eq!(strategy.to_string().parse(), Ok(strategy));
        }
        let error = "fastest".parse::<Recovery>().expect_err("there is no such choice");
        assert_eq!(error.to_string(), "give one of \"after_check\", \"after_interval\"");
    }
}

//! The chapters of the guide, which are also in the folder `docs/` of the repository. (Their code is compiled by
//! the package in `tests/`, which has the dependencies.)

/// Declares a module for each chapter.
///
/// In the folder, links between chapters lead to files. The link definitions of `guide/links.md` lead to modules; they come
/// first, and the first definition of a label counts.
macro_rules! chapters {
    ($(#[doc = $summary:literal] $module:ident = $file:literal;)*) => {
        $(
            #[doc = $summary]
            #[doc = ""]
            #[doc = include_str!("guide/links.md")]
            #[doc = ""]
            #[doc = include_str!("guide/slow_figure.md")]
            #[cfg_attr(not(doctest), doc = include_str!($file))]
            pub mod $module {}
        )*
    };
}

chapters! {
    /// What the application and the pool do in each situation, and which waits are bounded.
    behavior = "../docs/behavior.md";
    /// Every setting, and where it can be given.
    configuration = "../docs/configuration.md";
    /// Recipes: migrations at start, a single connection, a wrong password, the setup of every session.
    cookbook = "../docs/cookbook.md";
    /// One host name with several addresses.
    dns = "../docs/dns.md";
    /// How errors are classified.
    errors = "../docs/errors.md";
    /// When not to use this crate, and what else to know.
    limitations = "../docs/limitations.md";
    /// Moving from diesel's `ConnectionManager` or from django-proxysql.
    migrating = "../docs/migrating.md";
    /// Status, events, metrics and the status page.
    observing = "../docs/observing.md";
    /// Maintenance, changes at run time, alerts, the log, sizing and security.
    operating = "../docs/operating.md";
    /// The command `peers check`.
    peers_command = "../docs/peers-command.md";
    /// What a checkout and a fault cost.
    performance = "../docs/performance.md";
    /// ProxySQL, MaxScale, PgBouncer, pgpool-II and HAProxy as peers.
    proxies = "../docs/proxies.md";
    /// The crate as a database of a Rocket application.
    rocket = "../docs/rocket.md";
    /// Transactions that are run again, and the outcome of a COMMIT.
    transactions = "../docs/transactions.md";
    /// Peers that are alive and much slower than the others.
    slow_peers = "../docs/slow-peers.md";
}

//! The kinds of peer that a suite runs on, and the pools it runs with.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use diesel::r2d2::{Pool, R2D2Connection};
use diesel_peers::{PeerManager, PeerManagerBuilder, PeerState, Peers};
use tempfile::TempDir;

use super::wait_until;

/// Longer than anything takes that works. Waits end as soon as what they wait for is there.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A check interval for tests that wait for checks.
pub const SOON: Duration = Duration::from_millis(200);

/// A peer that can be broken and brought back.
pub trait Backend: Sized {
    /// diesel's connection to it.
    type Connection: R2D2Connection + Send + 'static;

    /// So many peers that serve the same.
    fn start(peers: usize) -> Vec<Self>;
    fn url(&self) -> String;
    /// Takes it away without a warning.
    fn kill(&mut self);
    /// Brings it back at the same place.
    fn restart(&mut self);
}

#[cfg(feature = "mysql")]
impl Backend for super::mariadb::MariaDb {
    type Connection = diesel::MysqlConnection;

    fn start(peers: usize) -> Vec<Self> {
        (0..peers).map(|_| Self::start()).collect()
    }

    fn url(&self) -> String {
        self.url()
    }

    fn kill(&mut self) {
        (**self).kill();
    }

    fn restart(&mut self) {
        (**self).restart();
    }
}

#[cfg(feature = "postgres")]
impl Backend for super::postgres::Postgres {
    type Connection = diesel::PgConnection;

    fn start(peers: usize) -> Vec<Self> {
        (0..peers).map(|_| Self::start()).collect()
    }

    fn url(&self) -> String {
        self.url()
    }

    fn kill(&mut self) {
        (**self).kill();
    }

    fn restart(&mut self) {
        (**self).restart();
    }
}

/// One of several paths to one SQLite file: three files would be three databases. It is taken away
/// by removing its path, and diesel must not create a file there: `mode=rw`.
#[derive(Debug)]
pub struct SqlitePath {
    path: PathBuf,
    folder: Arc<TempDir>,
}

impl Backend for SqlitePath {
    type Connection = diesel::SqliteConnection;

    fn start(peers: usize) -> Vec<Self> {
        let folder = Arc::new(tempfile::tempdir().expect("a temporary folder"));
        fs::create_dir(folder.path().join("data")).expect("our own folder");
        fs::write(folder.path().join("data/app.db"), "").expect("our own folder");
        let path = |peer: usize| {
            let path =
                Self { path: folder.path().join(format!("path{peer}")), folder: folder.clone() };
            path.link();
            path
        };
        (0..peers).map(path).collect()
    }

    fn url(&self) -> String {
        format!("file:{}/app.db?mode=rw", self.path.display())
    }

    fn kill(&mut self) {
        fs::remove_file(&self.path).expect("our own link");
    }

    fn restart(&mut self) {
        self.link();
    }
}

impl SqlitePath {
    fn link(&self) {
        symlink(self.folder.path().join("data"), &self.path).expect("our own folder");
    }
}

/// Starts building a manager over peers that are named `peer0`, `peer1` and so on.
pub fn manager_of<C>(urls: impl IntoIterator<Item: AsRef<str>>) -> PeerManagerBuilder<C> {
    urls.into_iter().enumerate().fold(PeerManager::builder(), |builder, (index, url)| {
        builder.peer(format!("peer{index}"), url.as_ref())
    })
}

/// As [`manager_of`], over running peers.
pub fn manager_over<B: Backend>(peers: &[B]) -> PeerManagerBuilder<B::Connection> {
    manager_of(peers.iter().map(Backend::url))
}

/// Builds the manager and a pool of so many connections that does not wait long between its tries.
#[track_caller]
pub fn pool_of<C>(builder: PeerManagerBuilder<C>, max_size: u32) -> (Pool<PeerManager<C>>, Peers)
where
    C: R2D2Connection + Send + 'static,
{
    let manager = builder.build().expect("the settings are right");
    let peers = manager.peers();
    let pool = Pool::builder()
        .max_size(max_size)
        .connection_timeout(Duration::from_secs(5))
        .build_unchecked(manager);
    (pool, peers)
}

/// Waits until so many connections of the pool lead to each peer. On a busy machine a login may take so
/// long that another peer gets its connection; that is evened out as the pool is used.
#[track_caller]
pub fn fill<C>(pool: &Pool<PeerManager<C>>, peers: &Peers, expected: &[usize])
where
    C: R2D2Connection + Send + 'static,
{
    wait_until("the pool is full", PATIENCE, || {
        drop(pool.try_get());
        links(peers) == expected
    });
}

/// The state of one peer.
#[track_caller]
pub fn state(peers: &Peers, name: &str) -> PeerState {
    peers.snapshot().peer(name).expect("there is such a peer").state
}

/// How many connections of the pool lead to each peer.
pub fn links(peers: &Peers) -> Vec<usize> {
    peers.snapshot().peers.iter().map(|peer| peer.links).collect()
}

/// Makes one test of each suite function for each backend.
#[macro_export]
macro_rules! on_every_backend {
    ($($suite:ident),+ $(,)?) => {
        mod sqlite {
            $(#[test] fn $suite() { super::$suite::<super::support::backend::SqlitePath>(); })+
        }
        #[cfg(feature = "mysql")]
        mod mariadb {
            $(#[test] fn $suite() { super::$suite::<super::support::mariadb::MariaDb>(); })+
        }
        #[cfg(feature = "postgres")]
        mod postgres {
            $(#[test] fn $suite() { super::$suite::<super::support::postgres::Postgres>(); })+
        }
    };
}

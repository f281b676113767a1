//! The kinds of peer that a suite runs on, and the pools it runs with.

use std::fs;
#[cfg(target_os = "linux")]
use std::ops::DerefMut;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use diesel::r2d2::{Pool, R2D2Connection};
use diesel_peers::{PeerManager, PeerManagerBuilder, PeerState, PeerStatus, Peers};
use tempfile::TempDir;

#[cfg(target_os = "linux")]
use super::port::Port;
#[cfg(target_os = "linux")]
use super::process::Server;
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

/// A peer that is a real server.
#[cfg(target_os = "linux")]
pub trait RealServer: Backend + DerefMut<Target = Server> {
    /// Starts one on this port.
    fn start_on(port: Port) -> Self;
    /// The URL of one on this host and port.
    fn url_at(host: &str, port: u16) -> String;
    /// A query that does nothing for so many seconds.
    fn rest(seconds: f64) -> String;
    /// A query that keeps a processor busy, for so many times some ten milliseconds.
    fn toil(times: u32) -> String;
}

#[cfg(all(target_os = "linux", feature = "mysql"))]
impl RealServer for super::mariadb::MariaDb {
    fn start_on(port: Port) -> Self {
        Self::start_on(port)
    }

    fn url_at(host: &str, port: u16) -> String {
        super::mariadb::url_at(host, port)
    }

    fn rest(seconds: f64) -> String {
        format!("DO SLEEP({seconds})")
    }

    fn toil(times: u32) -> String {
        format!("DO BENCHMARK({times} * 50000, MD5('work'))")
    }
}

#[cfg(all(target_os = "linux", feature = "postgres"))]
impl RealServer for super::postgres::Postgres {
    fn start_on(port: Port) -> Self {
        Self::start_on(port)
    }

    fn url_at(host: &str, port: u16) -> String {
        super::postgres::url_at(host, port)
    }

    fn rest(seconds: f64) -> String {
        format!("SELECT pg_sleep({seconds})")
    }

    fn toil(times: u32) -> String {
        format!("SELECT count(md5(i::text)) FROM generate_series(1, {times} * 50000) AS i")
    }
}

/// One of several paths to one SQLite file: three files would be three databases. It is taken away
/// by renaming its path, and diesel must not create a file there: `mode=rw`.
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
        fs::rename(&self.path, self.elsewhere()).expect("our own link");
    }

    fn restart(&mut self) {
        fs::rename(self.elsewhere(), &self.path).expect("our own link");
    }
}

impl SqlitePath {
    fn link(&self) {
        #[cfg(unix)]
        use std::os::unix::fs::symlink;
        #[cfg(windows)]
        use std::os::windows::fs::symlink_dir as symlink;

        symlink(self.folder.path().join("data"), &self.path).expect("our own folder");
    }

    /// Where the path is while it is taken away.
    fn elsewhere(&self) -> PathBuf {
        self.path.with_extension("elsewhere")
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

/// Builds a manager whose settings are valid.
#[track_caller]
pub fn build<C>(builder: PeerManagerBuilder<C>) -> PeerManager<C>
where
    C: R2D2Connection + Send + 'static,
{
    builder.build().unwrap_or_else(|error| panic!("the settings are valid: {error}"))
}

/// Builds the manager and a pool of so many connections that does not wait long between its tries.
#[track_caller]
pub fn pool_of<C>(builder: PeerManagerBuilder<C>, max_size: u32) -> (Pool<PeerManager<C>>, Peers)
where
    C: R2D2Connection + Send + 'static,
{
    let manager = build(builder);
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

/// The status of one peer.
#[track_caller]
pub fn status(peers: &Peers, name: &str) -> PeerStatus {
    let snapshot = peers.snapshot();
    snapshot.peer(name).unwrap_or_else(|| panic!("no peer is named {name}: {snapshot}")).clone()
}

/// The state of one peer.
#[track_caller]
pub fn state(peers: &Peers, name: &str) -> PeerState {
    status(peers, name).state
}

/// How many connections of the pool lead to each peer.
pub fn links(peers: &Peers) -> Vec<usize> {
    peers.snapshot().peers.iter().map(|peer| peer.connections).collect()
}

/// Makes one test of each suite function for each backend.
#[macro_export]
macro_rules! on_every_backend {
    ($($suite:ident),+ $(,)?) => {
        mod sqlite {
            $(#[test] fn $suite() { super::$suite::<$crate::backend::SqlitePath>(); })+
        }
        #[cfg(feature = "mysql")]
        mod mariadb {
            $(#[test] fn $suite() { super::$suite::<$crate::mariadb::MariaDb>(); })+
        }
        #[cfg(feature = "postgres")]
        mod postgres {
            $(#[test] fn $suite() { super::$suite::<$crate::postgres::Postgres>(); })+
        }
    };
}

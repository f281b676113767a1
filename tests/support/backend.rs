//! The kinds of peer that tests run on, and the pools that they run with.

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
use super::port::{Port, free_port};
#[cfg(target_os = "linux")]
use super::process::Server;
use super::wait_until;

/// Longer than anything takes that works. A wait ends as soon as its condition holds.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A check interval for tests that wait for checks.
pub const SOON: Duration = Duration::from_millis(200);

/// A kind of peer that a test can take away and bring back.
pub trait Backend: Sized {
    /// diesel's connection to the peer.
    type Connection: R2D2Connection + Send + 'static;

    /// Starts `peers` equivalent peers.
    fn start(peers: usize) -> Vec<Self>;
    fn url(&self) -> String;
    /// Takes the peer away without a warning.
    fn kill(&mut self);
    /// Brings the peer back at the same URL.
    fn restart(&mut self);
}

/// A peer that is a real server. Each one is a [`Backend`].
#[cfg(target_os = "linux")]
pub trait RealServer: Backend + DerefMut<Target = Server> {
    /// diesel's connection to the server.
    type Client: R2D2Connection + Send + 'static;

    /// Starts a server on this port.
    fn start_on(port: Port) -> Self;
    /// Returns the URL of a server on this host and port.
    fn url_at(host: &str, port: u16) -> String;
    /// Returns a query that sleeps for this many seconds.
    fn rest(seconds: f64) -> String;
    /// Returns a query that keeps a processor busy for about `times` times ten milliseconds.
    fn toil(times: u32) -> String;
}

#[cfg(target_os = "linux")]
impl<S: RealServer> Backend for S {
    type Connection = S::Client;

    fn start(peers: usize) -> Vec<Self> {
        (0..peers).map(|_| S::start_on(free_port())).collect()
    }

    fn url(&self) -> String {
        S::url_at(&self.address().to_string(), self.port())
    }

    fn kill(&mut self) {
        Server::kill(self);
    }

    fn restart(&mut self) {
        Server::restart(self);
    }
}

#[cfg(all(target_os = "linux", feature = "mysql"))]
impl RealServer for super::mariadb::MariaDb {
    type Client = diesel::MysqlConnection;

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
    type Client = diesel::PgConnection;

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

/// One of several paths to the same SQLite file, as several files would be several databases. The peer is
/// taken away by renaming its path; `mode=rw` keeps diesel from creating a file there.
#[derive(Debug)]
pub struct SqlitePath {
    path: PathBuf,
    folder: Arc<TempDir>,
}

impl Backend for SqlitePath {
    type Connection = diesel::SqliteConnection;

    fn start(peers: usize) -> Vec<Self> {
        let folder = Arc::new(tempfile::tempdir().expect("a temporary folder can be created"));
        fs::create_dir(folder.path().join("data")).expect("the test owns the folder");
        fs::write(folder.path().join("data/app.db"), "").expect("the test owns the folder");
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
        fs::rename(&self.path, self.elsewhere()).expect("the test made the link");
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

        symlink(self.folder.path().join("data"), &self.path).expect("the test owns the folder");
    }

    /// Where the path is while it is taken away.
    fn elsewhere(&self) -> PathBuf {
        self.path.with_extension("elsewhere")
    }
}

/// Starts building a manager over the peers with these URLs, named `peer0`, `peer1` and so on.
pub fn manager_of<C>(urls: impl IntoIterator<Item: AsRef<str>>) -> PeerManagerBuilder<C> {
    urls.into_iter().enumerate().fold(PeerManager::builder(), |builder, (index, url)| {
        builder.peer(format!("peer{index}"), url.as_ref())
    })
}

/// Starts building a manager over running peers, as [`manager_of`] does.
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

/// Builds the manager and a pool of `max_size` connections that does not wait long between its tries.
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

/// Waits until each peer has the expected number of connections of the pool. On a busy machine a login may
/// take so long that another peer gets its connection; using the pool evens that out.
#[track_caller]
pub fn fill<C>(pool: &Pool<PeerManager<C>>, peers: &Peers, expected: &[usize])
where
    C: R2D2Connection + Send + 'static,
{
    wait_until("each peer has its connections", PATIENCE, || {
        drop(pool.try_get());
        links(peers) == expected
    });
}

/// Returns the status of the peer with this name.
#[track_caller]
pub fn status(peers: &Peers, name: &str) -> PeerStatus {
    let snapshot = peers.snapshot();
    snapshot.peer(name).unwrap_or_else(|| panic!("no peer is named {name}: {snapshot}")).clone()
}

/// Returns the state of the peer with this name.
#[track_caller]
pub fn state(peers: &Peers, name: &str) -> PeerState {
    status(peers, name).state
}

/// Returns the number of the pool's connections to each peer.
pub fn links(peers: &Peers) -> Vec<usize> {
    peers.snapshot().peers.iter().map(|peer| peer.connections).collect()
}

/// Makes one test for each of these functions and each backend.
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

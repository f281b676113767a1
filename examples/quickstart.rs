//! A pool over three peers, of which one fails and comes back. Nothing needs to be installed, because SQLite
//! is compiled in:
//!
//! ```sh
//! cargo run --example quickstart
//! ```
//!
//! The peers are three paths to one SQLite file, so all of them have the same data. A peer fails when its path
//! is renamed.

#![allow(clippy::disallowed_methods, reason = "applications may read the clock and sleep")]

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::r2d2::Pool;
use diesel_peers::{PeerManager, PeerState, Peers};

diesel::table! {
    /// The visits of a site.
    visits (id) {
        /// The number of the visit.
        id -> Integer,
        /// The peer that stored the visit.
        peer -> Text,
    }
}

const CREATE_VISITS: &str =
    "CREATE TABLE visits (id INTEGER NOT NULL PRIMARY KEY, peer VARCHAR(100) NOT NULL)";
const NAMES: [&str; 3] = ["db0", "db1", "db2"];
const CONNECTIONS: u32 = 6;
const VISITS: usize = 300;

fn main() -> Result<(), Box<dyn Error>> {
    print_log();
    let folder = tempfile::tempdir()?;
    let paths = NAMES.map(|name| folder.path().join(name));
    fs::create_dir(folder.path().join("data"))?;
    fs::write(folder.path().join("data/visits.db"), "")?;
    for path in &paths {
        link(&folder.path().join("data"), path)?;
    }

    print_step("Three peers, a pool of six connections.");
    let mut builder = PeerManager::<SqliteConnection>::builder();
    for (name, path) in NAMES.into_iter().zip(&paths) {
        // Without `mode=rw`, SQLite would create a missing file, and the peer would stay up.
        builder = builder.peer(name, format!("file:{}/visits.db?mode=rw", path.display()));
    }
    let manager = builder
        .check_interval(Duration::from_millis(500))
        // SQLite has one writer at a time: let each connection wait for its turn.
        .on_connect(|conn| {
            conn.batch_execute("PRAGMA busy_timeout = 30000; PRAGMA synchronous = OFF")
        })
        .build()?;
    let peers = manager.peers();
    let pool = Pool::builder().max_size(CONNECTIONS).build(manager)?;
    pool.get()?.batch_execute(CREATE_VISITS)?;

    let visits = store_visits(&pool)?;
    require(visits.values().all(|count| *count > 0), "every peer serves")?;

    print_step("db1 fails: its path is renamed. A health check notices that within half a second.");
    let renamed = folder.path().join("renamed");
    fs::rename(&paths[1], &renamed)?;
    wait_until("db1 is marked down", &peers, |peers| state(peers, "db1") == PeerState::Down)?;
    // A connection that still works is kept until another peer's replaces it, so that the pool never has fewer.
    wait_until("other peers replace db1's connections", &peers, |peers| {
        peers.snapshot().peer("db1").is_some_and(|peer| peer.connections == 0)
    })?;
    let visits = store_visits(&pool)?;
    require(visits["db1"] == 0, "a peer that is down gets no work")?;
    require(visits["db0"] > 0 && visits["db2"] > 0, "the other peers serve")?;

    print_step("db1 comes back.");
    fs::rename(&renamed, &paths[1])?;
    wait_until("db1 is up again", &peers, |peers| state(peers, "db1") == PeerState::Up)?;
    wait_until("db1 has its share of the connections", &peers, |peers| {
        // Connections move between peers at checkins, so each connection is checked out and in.
        drop((0..CONNECTIONS).map_while(|_| pool.try_get()).collect::<Vec<_>>());
        peers.snapshot().peers.iter().all(|peer| peer.connections == 2)
    })?;
    let visits = store_visits(&pool)?;
    require(visits.values().all(|count| *count > 0), "every peer serves again")?;

    print_step("Not one visit failed.");
    Ok(())
}

/// Prints the log of diesel-peers, one line for each event.
fn print_log() {
    env_logger::Builder::new()
        .filter_module("diesel_peers", log::LevelFilter::Info)
        .format(|line, record| writeln!(line, "  > {}", record.args()))
        .target(env_logger::Target::Stdout)
        .init();
}

fn print_step(text: &str) {
    println!("\n{text}");
}

/// Adds a path to a folder.
#[cfg(unix)]
fn link(folder: &Path, path: &Path) -> Result<(), Box<dyn Error>> {
    Ok(std::os::unix::fs::symlink(folder, path)?)
}

/// Adds a path to a folder: a junction, because a symbolic link needs a privilege on Windows.
#[cfg(windows)]
fn link(folder: &Path, path: &Path) -> Result<(), Box<dyn Error>> {
    let mut command = std::process::Command::new("cmd");
    let output = command.args(["/C", "mklink", "/J"]).arg(path).arg(folder).output()?;
    require(output.status.success(), "the folder has another path")
}

fn state(peers: &Peers, name: &str) -> PeerState {
    peers.snapshot().peer(name).map_or(PeerState::Down, |peer| peer.state)
}

/// Stores visits from six threads, each with the name of the peer that stores it. Returns the number of visits
/// by peer, as the database counts them.
fn store_visits(
    pool: &Pool<PeerManager<SqliteConnection>>,
) -> Result<BTreeMap<String, i64>, Box<dyn Error>> {
    diesel::delete(visits::table).execute(&mut pool.get()?)?;
    let next = AtomicUsize::new(0);
    let visit = || -> Result<(), Box<dyn Error + Send + Sync>> {
        while next.fetch_add(1, Ordering::Relaxed) < VISITS {
            let mut conn = pool.get()?;
            let peer = conn.peer().to_owned();
            diesel::insert_into(visits::table).values(visits::peer.eq(peer)).execute(&mut conn)?;
            // The other work of a request.
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    };
    thread::scope(|scope| {
        let visitors: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(visit)).collect();
        visitors.into_iter().try_for_each(|visitor| visitor.join().expect("a visitor panicked"))
    })
    .map_err(|error| error.to_string())?;

    let mut visits_by_peer = BTreeMap::from(NAMES.map(|name| (name.to_owned(), 0)));
    let counted = visits::table
        .group_by(visits::peer)
        .select((visits::peer, diesel::dsl::count_star()))
        .load::<(String, i64)>(&mut pool.get()?)?;
    visits_by_peer.extend(counted);
    for (name, visits) in &visits_by_peer {
        let percent = usize::try_from(visits * 100)? / VISITS;
        println!("  {name} {:<50} {percent:>3} %", "#".repeat(percent / 2));
    }
    let all: i64 = visits_by_peer.values().sum();
    require(all == i64::try_from(VISITS)?, "every visit is stored")?;
    Ok(visits_by_peer)
}

/// Returns an error if `holds` is false, so that the example fails if it does not work as printed.
fn require(holds: bool, what: &str) -> Result<(), Box<dyn Error>> {
    if holds { Ok(()) } else { Err(format!("failed: {what}").into()) }
}

/// Waits until `holds` returns true. Fails after 30 seconds.
fn wait_until(
    what: &str,
    peers: &Peers,
    holds: impl Fn(&Peers) -> bool,
) -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    while !holds(peers) {
        require(start.elapsed() < Duration::from_secs(30), what)?;
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

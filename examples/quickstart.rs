//! Three peers, one of which breaks and comes back, with no server installed: SQLite is compiled in.
//!
//! Equal SQLite peers are one file under three paths; three files would be three databases. A peer
//! breaks when its path goes away. Run it with `cargo run --example quickstart`.

#![allow(clippy::disallowed_methods, reason = "an application has its own clock and its own pace")]

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
    /// What was registered.
    visits (id) {
        /// Its number.
        id -> Integer,
        /// The peer that registered it.
        peer -> Text,
    }
}

const CREATE_VISITS: &str =
    "CREATE TABLE visits (id INTEGER NOT NULL PRIMARY KEY, peer VARCHAR(100) NOT NULL)";
const NAMES: [&str; 3] = ["db0", "db1", "db2"];
const CONNECTIONS: u32 = 6;
const VISITS: usize = 300;

fn main() -> Result<(), Box<dyn Error>> {
    show_events();
    let folder = tempfile::tempdir()?;
    let paths = NAMES.map(|name| folder.path().join(name));
    fs::create_dir(folder.path().join("data"))?;
    fs::write(folder.path().join("data/visits.db"), "")?;
    for path in &paths {
        link(&folder.path().join("data"), path)?;
    }

    say("Three peers, a pool of six connections.");
    let mut builder = PeerManager::<SqliteConnection>::builder();
    for (name, path) in NAMES.into_iter().zip(&paths) {
        // diesel would create a missing file: empty, and healthy to look at.
        builder = builder.peer(name, format!("file:{}/visits.db?mode=rw", path.display()));
    }
    let manager = builder
        .check_interval(Duration::from_millis(500))
        // SQLite has one writer at a time: each waits for its turn.
        .on_connect(|conn| {
            conn.batch_execute("PRAGMA busy_timeout = 30000; PRAGMA synchronous = OFF")
        })
        .build()?;
    let peers = manager.peers();
    let pool = Pool::builder().max_size(CONNECTIONS).build(manager)?;
    pool.get()?.batch_execute(CREATE_VISITS)?;

    let share = serve(&pool)?;
    require(share.values().all(|visits| *visits > 0), "every peer serves")?;

    say("db1 breaks: its path goes away. The checker will notice within half a second.");
    let elsewhere = folder.path().join("elsewhere");
    fs::rename(&paths[1], &elsewhere)?;
    wait_until("db1 is marked down", &peers, |peers| state(peers, "db1") == PeerState::Down)?;
    let share = serve(&pool)?;
    require(share["db1"] == 0, "nothing goes to a peer that is down")?;
    require(share["db0"] > 0 && share["db2"] > 0, "the others serve")?;

    say("db1 comes back.");
    fs::rename(&elsewhere, &paths[1])?;
    wait_until("db1 is up again", &peers, |peers| state(peers, "db1") == PeerState::Up)?;
    wait_until("db1 has its share of the connections", &peers, |peers| {
        // A connection moves when it comes back to the pool.
        drop((0..CONNECTIONS).map_while(|_| pool.try_get()).collect::<Vec<_>>());
        peers.snapshot().peers.iter().all(|peer| peer.connections == 2)
    })?;
    let share = serve(&pool)?;
    require(share.values().all(|visits| *visits > 0), "every peer serves again")?;

    say("Not one visit failed.");
    Ok(())
}

/// Prints what diesel-peers logs, a line per event.
fn show_events() {
    env_logger::Builder::new()
        .filter_module("diesel_peers", log::LevelFilter::Info)
        .format(|line, record| writeln!(line, "  > {}", record.args()))
        .target(env_logger::Target::Stdout)
        .init();
}

fn say(text: &str) {
    println!("\n{text}");
}

/// Makes a folder known by one path more.
#[cfg(unix)]
fn link(folder: &Path, path: &Path) -> Result<(), Box<dyn Error>> {
    Ok(std::os::unix::fs::symlink(folder, path)?)
}

/// Makes a folder known by one path more: a junction, which needs no privilege.
#[cfg(windows)]
fn link(folder: &Path, path: &Path) -> Result<(), Box<dyn Error>> {
    let mut command = std::process::Command::new("cmd");
    let made = command.args(["/C", "mklink", "/J"]).arg(path).arg(folder).output()?;
    require(made.status.success(), "the folder has another path")
}

fn state(peers: &Peers, name: &str) -> PeerState {
    peers.snapshot().peer(name).map_or(PeerState::Down, |peer| peer.state)
}

/// Six threads register visits, each on the peer that serves it; the database counts them.
fn serve(
    pool: &Pool<PeerManager<SqliteConnection>>,
) -> Result<BTreeMap<String, i64>, Box<dyn Error>> {
    diesel::delete(visits::table).execute(&mut pool.get()?)?;
    let next = AtomicUsize::new(0);
    let visit = || -> Result<(), Box<dyn Error + Send + Sync>> {
        while next.fetch_add(1, Ordering::Relaxed) < VISITS {
            let mut conn = pool.get()?;
            let peer = conn.peer().to_owned();
            diesel::insert_into(visits::table).values(visits::peer.eq(peer)).execute(&mut conn)?;
            // A request has more to do than that.
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    };
    thread::scope(|scope| {
        let visitors: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(visit)).collect();
        visitors.into_iter().try_for_each(|visitor| visitor.join().expect("a visitor panicked"))
    })
    .map_err(|error| error.to_string())?;

    let mut share = BTreeMap::from(NAMES.map(|name| (name.to_owned(), 0)));
    let counted = visits::table
        .group_by(visits::peer)
        .select((visits::peer, diesel::dsl::count_star()))
        .load::<(String, i64)>(&mut pool.get()?)?;
    share.extend(counted);
    for (name, visits) in &share {
        let percent = usize::try_from(visits * 100)? / VISITS;
        println!("  {name} {:<50} {percent:>3} %", "#".repeat(percent / 2));
    }
    require(share.values().sum::<i64>() == i64::try_from(VISITS)?, "every visit is registered")?;
    Ok(share)
}

/// What this example says must have happened, or it fails.
fn require(happened: bool, what: &str) -> Result<(), Box<dyn Error>> {
    if happened { Ok(()) } else { Err(format!("this did not happen: {what}").into()) }
}

fn wait_until(
    what: &str,
    peers: &Peers,
    happened: impl Fn(&Peers) -> bool,
) -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    while !happened(peers) {
        require(start.elapsed() < Duration::from_secs(30), what)?;
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

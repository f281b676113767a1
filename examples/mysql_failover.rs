//! Keeps a pool over your own MySQL or MariaDB servers busy, and prints once a second how many queries each peer
//! has served. Stop a server or pause a proxy meanwhile, start it again, and watch the peers:
//!
//! ```sh
//! cargo run --example mysql_failover --features mysql -- \
//!     mysql://app:secret@db0/shop mysql://app:secret@db1/shop mysql://app:secret@db2/shop
//! ```
//!
//! The example runs for a minute, or for the number of seconds given by `--seconds`. The only query that it
//! sends is `SELECT 1`.

#![allow(clippy::disallowed_methods, reason = "applications may sleep")]

use std::error::Error;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use diesel::MysqlConnection;
use diesel::connection::SimpleConnection;
use diesel::r2d2::Pool;
use diesel_peers::{PeerManager, PeerState};

const CONNECTIONS_PER_PEER: usize = 2;

fn main() -> Result<(), Box<dyn Error>> {
    let (urls, seconds) = arguments()?;
    env_logger::Builder::new()
        .filter_module("diesel_peers", log::LevelFilter::Info)
        .format(|line, record| writeln!(line, "  > {}", record.args()))
        .target(env_logger::Target::Stdout)
        .init();

    let names: Vec<String> = (0..urls.len()).map(|index| format!("peer{index}")).collect();
    let builder = names
        .iter()
        .zip(urls)
        .fold(PeerManager::<MysqlConnection>::builder(), |builder, (name, url)| {
            builder.peer(name, url)
        });
    let manager = builder.check_interval(Duration::from_secs(2)).build()?;
    let peers = manager.peers();
    let threads = names.len() * CONNECTIONS_PER_PEER;
    let pool = Pool::builder().max_size(u32::try_from(threads)?).build(manager)?;

    let served: Vec<AtomicUsize> = names.iter().map(|_| AtomicUsize::new(0)).collect();
    let errors = Mutex::new(Vec::new());
    let done = AtomicBool::new(false);
    let work = || {
        while !done.load(Ordering::Relaxed) {
            let outcome = pool.get().map_err(|error| error.to_string()).and_then(|mut conn| {
                let peer = names.iter().position(|name| name == conn.peer());
                let outcome = conn.batch_execute("SELECT 1");
                outcome.map(|()| peer).map_err(|error| format!("{}: {error}", conn.peer()))
            });
            match outcome {
                Ok(peer) => {
                    peer.map(|peer| served[peer].fetch_add(1, Ordering::Relaxed));
                }
                Err(error) => errors.lock().expect("no thread panics").push(error),
            }
            thread::sleep(Duration::from_millis(5));
        }
    };
    let mut failed = 0;
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
        for second in 1..=seconds {
            thread::sleep(Duration::from_secs(1));
            println!("after {second} s");
            let counts: Vec<usize> =
                served.iter().map(|served| served.swap(0, Ordering::Relaxed)).collect();
            let all = counts.iter().sum::<usize>().max(1);
            for (status, count) in peers.snapshot().peers.iter().zip(counts) {
                let mark = if status.state == PeerState::Up { ' ' } else { '!' };
                let bar = "#".repeat(count * 50 / all);
                println!("  {mark} {} {bar:<50} {count:>6} queries", status.name);
            }
            for error in errors.lock().expect("no thread panics").drain(..) {
                failed += 1;
                println!("  ! {error}");
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    println!("{failed} errors");
    Ok(())
}

/// Returns the URLs of the peers and the number of seconds to run.
fn arguments() -> Result<(Vec<String>, u64), Box<dyn Error>> {
    let mut urls = Vec::new();
    let mut seconds = 60;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--seconds" {
            let value = arguments.next().ok_or("--seconds needs a number")?;
            seconds = value.parse().map_err(|_| format!("--seconds {value}: not a number"))?;
        } else {
            urls.push(argument);
        }
    }
    if urls.is_empty() {
        return Err("give the URLs of your peers: mysql://user:password@host:port/database".into());
    }
    Ok((urls, seconds))
}

//! Threads that keep a pool busy, and what they observe.

use std::collections::BTreeMap;
use std::iter;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::r2d2::{Pool, R2D2Connection};
use diesel_peers::PeerManager;

use super::EndsThreads;
use super::backend::PATIENCE;

/// A load on a pool that is under way.
#[derive(Debug, Default)]
pub struct Load {
    stopped: AtomicBool,
    /// How many times each thread has finished a `pool.get()` and a query.
    rounds: Vec<AtomicUsize>,
    seen: Mutex<Seen>,
}

/// What the threads of a load have observed.
#[derive(Debug, Default)]
pub struct Seen {
    /// The number of queries that succeeded on each peer.
    pub served: BTreeMap<String, usize>,
    /// The peer and the error of each query that failed.
    pub failed: Vec<(String, String)>,
    /// The errors of `pool.get()`.
    pub refused: Vec<String>,
    /// When the last query of each peer began.
    pub last_begun: BTreeMap<String, Instant>,
    /// When the first query failed.
    pub first_failed: Option<Instant>,
    /// The longest time that a `pool.get()` took.
    pub longest_get: Duration,
    /// The longest time that a query took.
    pub longest_query: Duration,
}

impl Load {
    /// Keeps `pool` busy with `query` from `threads` threads while `scenario` runs, and returns what the
    /// threads observed until its end.
    pub fn run<C>(
        pool: &Pool<PeerManager<C>>,
        threads: usize,
        query: &str,
        scenario: impl FnOnce(&Self),
    ) -> Seen
    where
        C: R2D2Connection + Send + 'static,
    {
        let queries: Vec<_> = iter::repeat_n(query, threads).collect();
        Self::run_each(pool, &queries, scenario)
    }

    /// Does the same as [`run`](Self::run), with one thread for each of these queries.
    pub fn run_each<C>(
        pool: &Pool<PeerManager<C>>,
        queries: &[impl AsRef<str> + Sync],
        scenario: impl FnOnce(&Self),
    ) -> Seen
    where
        C: R2D2Connection + Send + 'static,
    {
        let rounds = queries.iter().map(|_| AtomicUsize::new(0)).collect();
        let load = Self { rounds, ..Self::default() };
        thread::scope(|scope| {
            for (query, rounds) in queries.iter().zip(&load.rounds) {
                let load = &load;
                scope.spawn(move || {
                    while !load.stopped.load(Ordering::Relaxed) {
                        load.one_query(pool, query.as_ref());
                        rounds.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let _stop = EndsThreads(&load.stopped);
            scenario(&load);
        });
        load.seen.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of queries that have succeeded on this peer.
    pub fn served_by(&self, peer: &str) -> usize {
        self.seen().served.get(peer).copied().unwrap_or_default()
    }

    /// Returns the number of queries that have succeeded on all peers.
    pub fn served(&self) -> usize {
        self.seen().served.values().sum()
    }

    /// Returns the number of queries that have failed on all peers.
    pub fn failed(&self) -> usize {
        self.seen().failed.len()
    }

    /// Returns when the last query of this peer began.
    pub fn last_begun(&self, peer: &str) -> Option<Instant> {
        self.seen().last_begun.get(peer).copied()
    }

    /// Returns when the first query failed.
    pub fn first_failed(&self) -> Option<Instant> {
        self.seen().first_failed
    }

    /// Returns how many times each thread has finished a `pool.get()` and a query.
    pub fn rounds(&self) -> Vec<usize> {
        self.rounds.iter().map(|rounds| rounds.load(Ordering::Relaxed)).collect()
    }

    /// Returns whether each thread has finished at least `times` rounds more than `before`.
    pub fn all_came_back(&self, before: &[usize], times: usize) -> bool {
        self.rounds().iter().zip(before).all(|(now, before)| *now >= before + times)
    }

    fn one_query<C>(&self, pool: &Pool<PeerManager<C>>, query: &str)
    where
        C: R2D2Connection + Send + 'static,
    {
        let start = Instant::now();
        let conn = pool.get_timeout(PATIENCE);
        let got = start.elapsed();
        let mut conn = match conn {
            Ok(conn) => conn,
            Err(error) => {
                self.seen().refused.push(error.to_string());
                return;
            }
        };
        let peer = conn.peer().to_owned();
        let start = Instant::now();
        self.seen().last_begun.insert(peer.clone(), start);
        let outcome = conn.batch_execute(query);
        let took = start.elapsed();
        let mut seen = self.seen();
        seen.longest_get = seen.longest_get.max(got);
        seen.longest_query = seen.longest_query.max(took);
        match outcome {
            Ok(()) => *seen.served.entry(peer).or_default() += 1,
            Err(error) => {
                seen.first_failed.get_or_insert_with(Instant::now);
                seen.failed.push((peer, error.to_string()));
            }
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

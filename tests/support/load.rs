//! Threads that keep a pool busy, and what they have seen.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use diesel::connection::SimpleConnection;
use diesel::r2d2::{Pool, R2D2Connection};
use diesel_peers::PeerManager;

use super::backend::PATIENCE;

/// What the threads have seen so far.
#[derive(Debug, Default)]
pub struct Load {
    stopped: AtomicBool,
    seen: Mutex<Seen>,
}

/// What the threads have seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// Queries that succeeded, by peer.
    pub served: BTreeMap<String, usize>,
    /// Errors of queries, each with its peer.
    pub failed: Vec<(String, String)>,
    /// Errors of `pool.get()`.
    pub refused: Vec<String>,
}

impl Load {
    /// Keeps `pool` busy with `query` from so many threads while `story` goes on, and tells what
    /// they saw until its end.
    pub fn run<C>(
        pool: &Pool<PeerManager<C>>,
        threads: usize,
        query: &str,
        story: impl FnOnce(&Self),
    ) -> Seen
    where
        C: R2D2Connection + Send + 'static,
    {
        /// The threads also end when the story panics, or the scope would wait for ever.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }

        let load = Self::default();
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while !load.stopped.load(Ordering::Relaxed) {
                        load.one_query(pool, query);
                    }
                });
            }
            let _stop = Stop(&load.stopped);
            story(&load);
        });
        load.seen.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many queries have succeeded on this peer.
    pub fn served_by(&self, peer: &str) -> usize {
        self.seen().served.get(peer).copied().unwrap_or_default()
    }

    /// How many queries have succeeded on all peers.
    pub fn served(&self) -> usize {
        self.seen().served.values().sum()
    }

    fn one_query<C>(&self, pool: &Pool<PeerManager<C>>, query: &str)
    where
        C: R2D2Connection + Send + 'static,
    {
        match pool.get_timeout(PATIENCE) {
            Ok(mut conn) => {
                let outcome = conn.batch_execute(query);
                let peer = conn.peer().to_owned();
                match outcome {
                    Ok(()) => *self.seen().served.entry(peer).or_default() += 1,
                    Err(error) => self.seen().failed.push((peer, error.to_string())),
                }
            }
            Err(error) => self.seen().refused.push(error.to_string()),
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

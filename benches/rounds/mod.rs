//! Helpers of the benchmarks that compare contenders. The contenders take turns in many short rounds of one
//! process, and ratios are taken round by round, because single times mean little on a machine that is busy
//! with other things. (So these benchmarks do not use criterion, which measures one contender after the
//! other.)
#![allow(dead_code, unreachable_pub, reason = "each benchmark uses a part of this module")]
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
#![allow(clippy::cast_precision_loss, reason = "times of a few seconds")]

use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use diesel::r2d2::{ManageConnection, Pool, R2D2Connection};

/// Returns a full pool of so many connections, with or without the test at checkout.
pub fn pool<M>(manager: M, connections: u32, test_on_check_out: bool) -> Pool<M>
where
    M: ManageConnection,
    M::Connection: R2D2Connection,
{
    let pool = Pool::builder().max_size(connections).test_on_check_out(test_on_check_out);
    pool.build(manager).expect("the servers are running")
}

/// Runs `times` operations on each thread, and returns the mean nanoseconds per operation. The operations of a
/// thread are numbered from the number of the thread on.
pub fn round(threads: usize, times: usize, operation: impl Fn(usize) + Sync) -> f64 {
    let start = Barrier::new(threads);
    let run = |thread: usize| {
        start.wait();
        let begin = Instant::now();
        (thread..thread + times).for_each(&operation);
        begin.elapsed().as_nanos() as f64 / times as f64
    };
    let run = &run;
    let times: Vec<f64> = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|thread| scope.spawn(move || run(thread))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no operation panics")).collect()
    });
    times.iter().sum::<f64>() / times.len() as f64
}

/// Runs a [`round`] of checkouts and checkins.
pub fn checkouts<M: ManageConnection>(pool: &Pool<M>, threads: usize, times: usize) -> f64 {
    round(threads, times, |_| drop(pool.get().expect("there are more connections than threads")))
}

/// The median, and the values at one quarter and at three quarters.
pub fn quartiles(values: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    [2, 1, 3].map(|quarter| values[values.len() * quarter / 4])
}

/// The median.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    quartiles(values)[0]
}

//! The checker: one std thread per manager that does the scheduled work on time. It cancels overdue
//! calls, checks the peers and aborts hung queries.

use std::convert::Infallible;
use std::io;
use std::mem;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, after, at, never, select};
use diesel::r2d2::R2D2Connection;

use super::outlier::{Judge, Observation, Outlier, Rule, Verdict};
use super::schedule::{run_schedule, run_slow_starts};
use super::stall::{self, Stalls};
use crate::login::dial::{self, HealthCheck};
use crate::login::session::Hooks;
use crate::peers::activity::Activity;
use crate::peers::peer::Slow;
use crate::peers::placement::shares;
use crate::peers::set::{PeerSet, Transaction};
use crate::pool::connection::PoolState;
use crate::pool::question::{self, Question};
use crate::pool::replacement;
use crate::settings::policy::{Balance, SlowPeers};

/// The name of the checker's thread. Linux shows the first 15 characters of a thread's name.
const THREAD_NAME: &str = "peers-checker";

/// The interval at which the checker scans the running queries, while there are any.
const QUERY_SCAN_INTERVAL: Duration = Duration::from_millis(50);

/// The interval at which the checker cancels pending calls after the pool has been dropped.
const CANCEL_INTERVAL: Duration = Duration::from_millis(100);

/// How many times the checker does so. A call that cannot be canceled goes on by itself afterwards.
const CANCEL_ATTEMPTS: usize = 50;

/// The delay of a wake-up above which the whole process is assumed to have been suspended. A thread
/// that only waits for a processor is usually woken earlier.
const SUSPENDED_AFTER: Duration = Duration::from_millis(100);

/// Starts the checker's thread. The thread ends when the other end of `stopped` is dropped.
#[expect(clippy::disallowed_methods, reason = "the checker's clock")]
pub(crate) fn start<C: R2D2Connection + Send + 'static>(
    set: Arc<PeerSet>,
    pool: Weak<PoolState<C>>,
    hooks: Arc<Hooks<C>>,
    wake: Receiver<()>,
    stopped: Receiver<Infallible>,
) -> io::Result<()> {
    thread::Builder::new().name(THREAD_NAME.to_owned()).spawn(move || {
        let mut checker = Checker::new(set.clone());
        let tick = |now| {
            let Due { checks, questions, next } = checker.tick(now);
            for check in checks {
                dial::check(&hooks, check);
            }
            let Some(pool) = pool.upgrade() else { return next };
            for question in questions {
                question::ask(&pool, question);
            }
            // Links are evicted and replaced now, and not only at the next use of the pool.
            let next_login = replacement::run(&pool, &hooks, now);
            [next, next_login].into_iter().flatten().min()
        };
        // The calls had no chance to end while the process was suspended.
        let on_suspended = |late| set.deadlines.postpone(late);
        run(tick, on_suspended, &wake, &stopped, at, Instant::now);
        // A call that is not blocked at that moment is missed and canceled at the next attempt.
        let pauses = (0..CANCEL_ATTEMPTS)
            .map_while(|_| set.deadlines.cancel_all().then(|| after(CANCEL_INTERVAL)));
        for wait in pauses {
            let _ = wait.recv();
        }
        set.deadlines.close();
    })?;
    Ok(())
}

/// What the checker has to do now, and when to look again.
#[derive(Debug)]
pub(crate) struct Due {
    pub(crate) checks: Vec<HealthCheck>,
    pub(crate) questions: Vec<Question>,
    pub(crate) next: Option<Instant>,
}

/// The state of the checker between two runs of its work.
pub(crate) struct Checker {
    set: Arc<PeerSet>,
    next_query_scan: Option<Instant>,
    judge: Judge,
}

impl Checker {
    pub(crate) fn new(set: Arc<PeerSet>) -> Self {
        Self { set, next_query_scan: None, judge: Judge::default() }
    }

    /// Does the work that is due at `now`, except that which needs a server, and returns that.
    pub(crate) fn tick(&mut self, now: Instant) -> Due {
        let set = self.set.clone();
        let next_deadline = set.deadlines.cancel_overdue(now);
        if self.next_query_scan.is_some_and(|at| at <= now) {
            self.inspect_sockets(now);
            self.compare_peers(now);
        }
        let (checks, questions, stalls, next) = set.transaction(now, |transaction| {
            let mut checks = run_schedule(transaction);
            let mut stalls = self.scan_queries(transaction);
            checks.append(&mut stalls.checks);
            let questions = mem::take(&mut stalls.questions);
            let next_share = run_slow_starts(transaction);
            let next = [transaction.next_due(), self.next_query_scan, next_deadline, next_share];
            (checks, questions, stalls, next.into_iter().flatten().min())
        });
        stalls.abort_queries();
        set.event_log.write_log();
        Due { checks, questions, next }
    }

    /// Asks the kernel what it knows of the queries that are not short, outside of the set's lock, and spares
    /// those whose server does not read at the moment.
    fn inspect_sockets(&self, now: Instant) {
        // Long before the kernel's timeout expires.
        let user_timeout = self.set.settings().tcp_user_timeout;
        let window_closed_at = user_timeout.and_then(|timeout| now.checked_sub(timeout / 4));
        let activities: Vec<_> =
            self.set.read(|peers| peers.iter().map(|peer| peer.activity.clone()).collect());
        for activity in activities {
            activity.inspect(now);
            if let Some(at) = window_closed_at {
                activity.spare_closed_windows(at);
            }
        }
    }

    /// Finds out which peers are slow, outside of the set's lock.
    fn compare_peers(&mut self, now: Instant) {
        let settings = self.set.settings();
        if settings.slow_peers == SlowPeers::Off || settings.balance == Balance::PerConnection {
            return;
        }
        let compared: Vec<_> = self.set.read(|peers| {
            let share = shares(peers, settings.strategy);
            let serving = peers.iter().enumerate().filter(|(_, peer)| {
                // A cache that is cold explains a slow peer.
                share(peer) > 0 && !peer.slow_start.is_running()
            });
            let compared = serving.map(|(index, peer)| {
                (index, peer.id, peer.slow.map(|slow| slow.since), peer.activity.clone())
            });
            compared.collect()
        });
        let observe = |(_, id, slow_since, activity): &(_, _, _, Arc<Activity>)| Observation {
            id: *id,
            slow_since: *slow_since,
            ended: activity.checkout_times.take(),
            running: activity.running_checkouts(now),
        };
        let peers: Vec<Observation> = compared.iter().map(observe).collect();
        let query_time =
            |(.., activity): &(_, _, _, Arc<Activity>)| activity.counters.queries.total();
        let pool_time = if peers.iter().any(|peer| peer.slow_since.is_some()) {
            compared.iter().map(query_time).sum()
        } else {
            Duration::ZERO
        };
        let rule = Rule { factor: settings.slow_factor, difference: settings.slow_difference };
        for verdict in self.judge.observe(rule, now, pool_time, &peers) {
            let (index, id, _, activity) = &compared[verdict.position()];
            if matches!(verdict, Verdict::TrialDue(_)) {
                if activity.is_slow() {
                    activity.set_trial_due();
                }
            } else {
                apply_verdict(&self.set, *index, *id, &verdict, now);
            }
        }
    }

    /// Scans the running queries for stalled peers, if the time of the next scan has come.
    fn scan_queries(&mut self, transaction: &mut Transaction<'_>) -> Stalls {
        let next_scan = transaction.now + QUERY_SCAN_INTERVAL;
        let is_requested = &self.set.query_scan_requested;
        if self.next_query_scan.is_none_or(|at| at > transaction.now) {
            if is_requested.load(Ordering::Relaxed) {
                self.next_query_scan.get_or_insert(next_scan);
            }
            return Stalls::default();
        }
        // A query that begins now requests another scan, or is found by this scan or the next one.
        let was_requested = is_requested.swap(false, Ordering::Relaxed);
        let stalls = stall::scan(transaction);
        is_requested.fetch_or(stalls.is_any_running, Ordering::Relaxed);
        self.next_query_scan = (was_requested || stalls.is_any_running).then_some(next_scan);
        stalls
    }
}

/// The loop of the checker: runs `tick`, which returns when to run it next, and waits until
/// then or until the checker is woken.
fn run(
    mut tick: impl FnMut(Instant) -> Option<Instant>,
    on_suspended: impl Fn(Duration),
    wake: &Receiver<()>,
    stopped: &Receiver<Infallible>,
    timer: impl Fn(Instant) -> Receiver<Instant>,
    clock: impl Fn() -> Instant,
) {
    loop {
        let next = tick(clock());
        let timer_fired = next.map_or_else(never, &timer);
        select! {
            recv(stopped) -> _ => return,
            recv(wake) -> _ => {}
            recv(timer_fired) -> _ => {}
        }
        let late = next.map(|next| clock().saturating_duration_since(next));
        if let Some(late) = late.filter(|late| *late > SUSPENDED_AFTER) {
            on_suspended(late);
        }
    }
}

/// Records what was found about the peer with this index and id. It may have changed since it was compared: a peer that
/// gets no work is not slow.
pub(super) fn apply_verdict(
    set: &Arc<PeerSet>,
    index: usize,
    id: u64,
    verdict: &Verdict,
    now: Instant,
) {
    let settings = set.settings();
    set.transaction(now, |transaction| {
        let peers = transaction.peers();
        if peers[index].id != id {
            return;
        }
        let gets_work = shares(peers, settings.strategy)(&peers[index]) > 0;
        transaction.update(index, |peer, _| match verdict {
            Verdict::Slow(Outlier { time, others, .. }) if gets_work => {
                let is_relieved = settings.slow_peers == SlowPeers::Shift;
                let (time, others) = (*time, *others);
                peer.slow = Some(Slow { since: now, time, others, is_relieved, links: 1 });
            }
            Verdict::NoLongerSlow(_) => peer.slow = None,
            Verdict::KeepsLinks(_, links) => {
                if let Some(slow) = &mut peer.slow {
                    slow.links = *links;
                }
            }
            Verdict::Slow(_) | Verdict::TrialDue(_) => {}
        });
    });
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::{Mutex, PoisonError};

    use crossbeam_channel::{bounded, unbounded};

    use super::*;
    use crate::peers::peer::{Attempt, CheckKind};
    use crate::peers::set::tests::{is_up, set_of, take_down};
    use crate::settings::policy::Recovery;
    use crate::settings::tests::INTERVAL;

    /// Does the scheduled work that is due at `now`.
    pub(crate) fn tick(set: &Arc<PeerSet>, now: Instant) -> (Vec<HealthCheck>, Option<Instant>) {
        let Due { checks, next, .. } = Checker::new(set.clone()).tick(now);
        (checks, next)
    }

    /// A clock that only the test moves.
    struct Clock(Mutex<Instant>);

    impl Clock {
        fn set(&self, now: Instant) {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = now;
        }

        fn now(&self) -> Instant {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }

    #[test]
    fn checker_runs_scheduled_checks_on_time_and_ends_when_it_is_stopped() {
        let (set, woken, start) = set_of(2, Recovery::AfterCheck);
        let (set_timer, timers) = unbounded();
        let (ticker, ticks) = bounded::<Instant>(0);
        let (made, checks) = unbounded();
        let (stop, stopped) = bounded(0);
        let clock = Clock(Mutex::new(start));
        thread::scope(|scope| {
            scope.spawn(|| {
                let timer = |at| {
                    set_timer.send(at).expect("the test receives");
                    ticks.clone()
                };
                let tick = |now| {
                    let (checks, next) = tick(&set, now);
                    for check in checks {
                        made.send(check).expect("the test receives");
                    }
                    next
                };
                let on_suspended = |late| panic!("{late:?} late");
                run(tick, on_suspended, &woken, &stopped, timer, || clock.now());
            });
            let first = timers.recv().expect("a timer is set for the first check");
            assert!(first >= start + INTERVAL, "the first check is not before the interval");
            clock.set(first);
            ticker.send(first).expect("the checker waits");
            let check: HealthCheck = checks.recv().expect("one peer is checked first");
            let second = timers.recv().expect("a timer is set for the other peer");
            assert!(second > first, "two peers are checked at different times");

            let later = first + (second - first) / 2;
            clock.set(later);
            check.peer.suspect(later);
            assert_eq!(timers.recv(), Ok(second), "a wake-up sets the timer again");
            assert!(
                checks.is_empty(),
                "no second check of the suspected peer begins while one is running"
            );

            let attempt = Attempt { began: check.began, ended: later };
            check.peer.update(later, |peer, check_times| {
                peer.check_ended(CheckKind::Regular, attempt, Ok(()), check_times);
            });
            let again =
                checks.recv().expect("a suspicion newer than the check causes another check");
            assert_eq!(again.peer.id, check.peer.id, "the suspected peer is checked again");
            drop(stop);
        });
    }

    #[test]
    fn checker_reports_how_long_the_process_was_suspended() {
        let (_, _, start) = set_of(1, Recovery::AfterCheck);
        let clock = Clock(Mutex::new(start));
        let (_wake, woken) = bounded(1);
        let (stop, stopped) = bounded(0);
        let (ticker, ticks) = bounded::<Instant>(0);
        let (set_timer, timers) = unbounded();
        let (reports, reported) = unbounded();
        let interval = Duration::from_secs(1);
        thread::scope(|scope| {
            scope.spawn(|| {
                let on_suspended = |late| reports.send(late).expect("the test receives");
                run(
                    |now| Some(now + interval),
                    on_suspended,
                    &woken,
                    &stopped,
                    |at| {
                        set_timer.send(at).expect("the test receives");
                        ticks.clone()
                    },
                    || clock.now(),
                );
            });
            let tick_after = |passed| {
                // When the timer is set, the checker has read the clock for the last time before
                // its wait.
                timers.recv().expect("a timer is set");
                let now = clock.now() + passed;
                clock.set(now);
                ticker.send(now).expect("the checker waits");
            };
            tick_after(interval + SUSPENDED_AFTER);
            tick_after(interval + SUSPENDED_AFTER + interval);
            assert_eq!(
                reported.recv(),
                Ok(SUSPENDED_AFTER + interval),
                "a small delay must not be reported"
            );
            drop(stop);
        });
    }

    #[test]
    fn expired_mark_causes_a_check_or_is_cleared_without_one() {
        for (recovery, checked, up) in
            [(Recovery::AfterCheck, 1, false), (Recovery::AfterInterval, 0, true)]
        {
            let (set, woken, now) = set_of(2, recovery);
            take_down(&set, 0, now);
            assert_eq!(woken.try_recv(), Ok(()), "a mark wakes the checker");
            // Keeps the check of the other peer out of this test.
            set.update(1, now, |peer, _| peer.checks.next = now + 10 * INTERVAL);
            let (checks, next) = tick(&set, now + INTERVAL / 2);
            assert!(checks.is_empty(), "{recovery:?}: no check begins before the interval");
            let next = next.expect("a check of each peer is scheduled");
            assert!(
                next >= now + INTERVAL,
                "{recovery:?}: the next pass is not before the interval"
            );
            let (checks, _) = tick(&set, next);
            assert_eq!(
                checks.len(),
                checked,
                "{recovery:?}: the number of checks when the mark expires"
            );
            assert_eq!(
                is_up(&set, 0),
                up,
                "{recovery:?}: whether the mark is cleared without a check"
            );
            let (checks, _) = tick(&set, next);
            assert!(checks.is_empty(), "{recovery:?}: no second check begins while one is running");
        }
    }

    #[test]
    fn peer_that_refused_a_query_is_checked_at_once_and_not_cleared_without_a_check() {
        for recovery in [Recovery::AfterCheck, Recovery::AfterInterval] {
            let (set, _woken, now) = set_of(2, recovery);
            set.update(0, now, |peer, check_times| peer.query_refused(now, check_times));
            let (checks, _) = tick(&set, now);
            assert_eq!(checks.len(), 1, "{recovery:?}: the check begins at once");
            assert!(!is_up(&set, 0), "{recovery:?}: the peer is down until the check ends");
        }
    }

    #[test]
    fn expired_mark_is_cleared_even_while_a_check_hangs() {
        let (set, _woken, now) = set_of(1, Recovery::AfterInterval);
        let (checks, _) = tick(&set, now + 2 * INTERVAL);
        assert_eq!(checks.len(), 1, "a peer that is up is checked on schedule");
        let later = now + 3 * INTERVAL;
        take_down(&set, 0, later);
        let (_, next) = tick(&set, later);
        let next = next.expect("the expiry of the mark is scheduled");
        tick(&set, next);
        assert!(is_up(&set, 0), "the mark is cleared although the check has not ended");
    }
}

//! The checker: one std thread per manager that runs the scheduled work on time. The peers decide
//! what is scheduled and what follows from it; the checker decides nothing.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, after, at, never, select};
use diesel::r2d2::R2D2Connection;

use crate::login::dial;
use crate::login::session::Hooks;
use crate::peers::set::PeerSet;
use crate::pool::connection::PoolState;

/// The name of the checker's thread. Linux shows the first 15 characters of a thread's name.
const THREAD_NAME: &str = "peers-checker";

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
        let schedule = |now| {
            let (checks, next) = set.tick(now);
            for check in checks {
                dial::check(set.peer(check.peer), &hooks, check);
            }
            // Closes the links of a peer that has gone down now, and not only at the next use of
            // the pool.
            if let Some(pool) = pool.upgrade() {
                pool.updated_exchange();
            }
            next
        };
        run(schedule, |late| set.postpone_deadlines(late), &wake, &stopped, at, Instant::now);
        // A call that is not blocked at that moment is missed and canceled at the next attempt.
        let pauses =
            (0..CANCEL_ATTEMPTS).map_while(|_| set.cancel_all().then(|| after(CANCEL_INTERVAL)));
        for wait in pauses {
            let _ = wait.recv();
        }
        set.deadlines().close();
    })?;
    Ok(())
}

/// The loop of the checker: runs `schedule`, which returns when to run it next, and waits until
/// then or until the checker is woken.
fn run(
    schedule: impl Fn(Instant) -> Option<Instant>,
    on_suspended: impl Fn(Duration),
    wake: &Receiver<()>,
    stopped: &Receiver<Infallible>,
    timer: impl Fn(Instant) -> Receiver<Instant>,
    clock: impl Fn() -> Instant,
) {
    loop {
        let next = schedule(clock());
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

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use crossbeam_channel::{bounded, unbounded};

    use super::*;
    use crate::peers::peer::CheckKind;
    use crate::peers::schedule::HealthCheck;
    use crate::peers::set::tests::set_of;
    use crate::settings::policy::Recovery;
    use crate::settings::tests::INTERVAL;

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
                let schedule = |now| {
                    let (checks, next) = set.tick(now);
                    for check in checks {
                        made.send(check).expect("the test receives");
                    }
                    next
                };
                let on_suspended = |late| panic!("{late:?} late");
                run(schedule, on_suspended, &woken, &stopped, timer, || clock.now());
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
            set.update(check.peer, later, |peer, _| {
                peer.suspect(later);
                None
            });
            assert_eq!(timers.recv(), Ok(second), "a wake-up sets the timer again");
            assert!(
                checks.is_empty(),
                "no second check of the suspected peer begins while one is running"
            );

            set.update(check.peer, later, |peer, check_times| {
                peer.check_ended(CheckKind::Regular, (check.began, later), Ok(()), check_times)
            });
            let again =
                checks.recv().expect("a suspicion newer than the check causes another check");
            assert_eq!(again.peer, check.peer, "the suspected peer is checked again");
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
}

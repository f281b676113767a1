//! The checker: one std thread per manager that keeps time. It decides nothing: what is due, and what
//! follows from it, is said by the peers.

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
use crate::pool::connection::Links;

/// The name of the checker's thread. Linux shows the first 15 characters of a thread's name.
const THREAD_NAME: &str = "peers-checker";

/// How often, and how many times, what is under way is cut off when the pool is gone. What cannot be
/// cut off goes on by itself.
const CANCEL_INTERVAL: Duration = Duration::from_millis(100);
const CANCEL_ATTEMPTS: usize = 50;

/// Later than this a thread is not woken that only has to wait for a processor, as a rule: the process
/// stood still.
const SUSPENDED_AFTER: Duration = Duration::from_millis(100);

/// Starts the checker. It ends when the other end of `stopped` is dropped.
#[expect(clippy::disallowed_methods, reason = "the checker's clock")]
pub(crate) fn start<C: R2D2Connection + Send + 'static>(
    set: Arc<PeerSet>,
    links: Weak<Links<C>>,
    hooks: Arc<Hooks<C>>,
    wake: Receiver<()>,
    stopped: Receiver<Infallible>,
) -> io::Result<()> {
    thread::Builder::new().name(THREAD_NAME.to_owned()).spawn(move || {
        let schedule = |now| {
            let (checks, next) = set.tick(now);
            for check in checks {
                dial::check(&set, &hooks, check);
            }
            // The links of a peer that has gone down end now, and not when the pool is used next.
            if let Some(links) = links.upgrade() {
                links.exchange();
            }
            next
        };
        run(schedule, |late| set.postpone_deadlines(late), &wake, &stopped, at, Instant::now);
        // One that is not waiting just then is missed, and cut off next time.
        let pauses =
            (0..CANCEL_ATTEMPTS).map_while(|_| set.cancel_all().then(|| after(CANCEL_INTERVAL)));
        for wait in pauses {
            let _ = wait.recv();
        }
        set.deadlines().close();
    })?;
    Ok(())
}

/// The loop: does what is due, learns when something is due again, and waits for that.
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
        let due = next.map_or_else(never, &timer);
        select! {
            recv(stopped) -> _ => return,
            recv(wake) -> _ => {}
            recv(due) -> _ => {}
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
    use crate::peers::peer::{CheckKind, LoginOutcome};
    use crate::peers::schedule::HealthCheck;
    use crate::peers::set::tests::set_of;
    use crate::policy::Recovery;
    use crate::settings::tests::INTERVAL;

    /// A clock that only moves when it is told to.
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
    fn makes_the_checks_that_are_due_when_time_comes_in_and_ends_when_its_owner_is_gone() {
        let (set, woken, start) = set_of(2, Recovery::AfterCheck);
        let (set_timer, timers) = unbounded();
        let (ticker, ticks) = bounded::<Instant>(0);
        let (made, checks) = unbounded();
        let (stop, stopped) = bounded(0);
        let clock = Clock(Mutex::new(start));
        thread::scope(|scope| {
            scope.spawn(|| {
                let timer = |due| {
                    set_timer.send(due).expect("the test listens");
                    ticks.clone()
                };
                let schedule = |now| {
                    let (checks, next) = set.tick(now);
                    for check in checks {
                        made.send(check).expect("the test listens");
                    }
                    next
                };
                let late = |late| panic!("{late:?} late");
                run(schedule, late, &woken, &stopped, timer, || clock.now());
            });
            let first = timers.recv().expect("a timer is set for the first check");
            assert!(first >= start + INTERVAL, "which is not before the interval");
            clock.set(first);
            ticker.send(first).expect("the checker waits");
            let check: HealthCheck = checks.recv().expect("one peer is due");
            let second = timers.recv().expect("a timer is set for the other peer");
            assert!(second > first, "peers are not checked in step");

            let later = first + (second - first) / 2;
            clock.set(later);
            set.update(check.peer, later, |peer, _| {
                peer.suspect(later);
                None
            });
            assert_eq!(timers.recv(), Ok(second), "woken, it sets its timer anew");
            assert!(checks.is_empty(), "a check of the suspected peer is running already");

            set.update(check.peer, later, |peer, due| {
                peer.check_ended(
                    CheckKind::Regular,
                    (check.began, later),
                    LoginOutcome::Succeeded,
                    due,
                )
            });
            let again = checks.recv().expect("the suspicion is newer than the check");
            assert_eq!(again.peer, check.peer, "so the same peer is checked once more");
            drop(stop);
        });
    }

    #[test]
    fn says_by_how_much_the_process_stood_still() {
        let (_, _, start) = set_of(1, Recovery::AfterCheck);
        let clock = Clock(Mutex::new(start));
        let (_wake, woken) = bounded(1);
        let (stop, stopped) = bounded(0);
        let (ticker, ticks) = bounded::<Instant>(0);
        let (set_timer, timers) = unbounded();
        let (tell, told) = unbounded();
        let due = Duration::from_secs(1);
        thread::scope(|scope| {
            scope.spawn(|| {
                let late = |late| tell.send(late).expect("the test listens");
                run(
                    |now| Some(now + due),
                    late,
                    &woken,
                    &stopped,
                    |due| {
                        set_timer.send(due).expect("the test listens");
                        ticks.clone()
                    },
                    || clock.now(),
                );
            });
            let tick_after = |passed| {
                // By then it has looked at the clock for the last time.
                timers.recv().expect("a timer is set");
                let now = clock.now() + passed;
                clock.set(now);
                ticker.send(now).expect("the checker waits");
            };
            tick_after(due + SUSPENDED_AFTER);
            tick_after(due + SUSPENDED_AFTER + due);
            assert_eq!(told.recv(), Ok(SUSPENDED_AFTER + due), "a little late is not late");
            drop(stop);
        });
    }
}

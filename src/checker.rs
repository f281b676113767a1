//! The checker: one std thread per manager that clears marks and probes peers. It decides nothing:
//! what is due, and what follows from a probe, is said by the peers.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, at, bounded, never, select};
use diesel::r2d2::R2D2Connection;
use log::warn;

use crate::caught::caught;
use crate::dial::{self, Failure, OnConnect};
use crate::peer::Peer;
use crate::set::{PeerSet, Probe};

/// The name of the checker's thread. Linux shows the first 15 characters of a thread's name.
const CHECKER: &str = "peers-checker";
/// The name of a thread that makes one probe: a peer that does not answer must not keep the
/// checker from the others.
const PROBE: &str = "peers-probe";

/// Starts the checker. It ends when the sender that this returns is dropped.
pub(crate) fn start<C: R2D2Connection + Send + 'static>(
    set: Arc<PeerSet>,
    on_connect: Arc<OnConnect<C>>,
    wake: Receiver<Instant>,
) -> io::Result<Sender<Infallible>> {
    let (stop, stopped) = bounded(0);
    #[expect(clippy::disallowed_methods, reason = "the checker's clock starts here")]
    let now = Instant::now();
    thread::Builder::new().name(CHECKER.to_owned()).spawn(move || {
        run(&set, now, &wake, &stopped, at, |probe| start_probe(&set, &on_connect, probe));
    })?;
    Ok(stop)
}

/// The loop. Time comes in by channels only: with `wake`, or with the timer that `timer` sets.
fn run(
    set: &PeerSet,
    mut now: Instant,
    wake: &Receiver<Instant>,
    stopped: &Receiver<Infallible>,
    timer: impl Fn(Instant) -> Receiver<Instant>,
    probe: impl Fn(Probe),
) {
    loop {
        let (probes, next) = set.take_due(now);
        probes.into_iter().for_each(&probe);
        let due = next.map_or_else(never, &timer);
        select! {
            recv(stopped) -> _ => return,
            recv(wake) -> woken => now = woken.unwrap_or(now),
            recv(due) -> tick => now = tick.unwrap_or(now),
        }
    }
}

/// Makes one probe on a thread of its own.
fn start_probe<C: R2D2Connection + Send + 'static>(
    set: &Arc<PeerSet>,
    on_connect: &Arc<OnConnect<C>>,
    probe: Probe,
) {
    let Probe { peer, url, began } = probe;
    let prober = {
        let (set, on_connect) = (set.clone(), on_connect.clone());
        move || {
            let outcome = dial::probe(&set, peer, url, on_connect);
            end_probe(&set, peer, began, outcome);
        }
    };
    if let Err(error) = thread::Builder::new().name(PROBE.to_owned()).spawn(prober) {
        end_probe(set, peer, began, Err(Failure::Here(error)));
    }
}

#[expect(clippy::disallowed_methods, reason = "a probe is stamped when it ends")]
fn end_probe(set: &PeerSet, peer: usize, began: Instant, outcome: Result<(), Failure>) {
    let now = Instant::now();
    let outcome = match outcome {
        Ok(()) => Ok(()),
        Err(Failure::Peer(why)) => Err(why),
        Err(Failure::Here(error)) => {
            // That says something about this process, not about the peer: its state stays.
            let _ = caught(|| warn!("no thread to probe a peer from: {error}"));
            set.update(peer, now, Peer::probe_abandoned);
            return;
        }
    };
    set.update(peer, now, |peer, due| peer.probe_ended(began, now, outcome, due));
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::unbounded;

    use super::*;
    use crate::policy::Recheck;
    use crate::set::tests::{INTERVAL, set_of};

    #[test]
    fn makes_the_probes_that_are_due_when_time_comes_in_and_ends_when_its_owner_is_gone() {
        let (set, woken, start) = set_of(2, Recheck::Probe);
        let (set_timer, timers) = unbounded();
        let (ticker, ticks) = bounded::<Instant>(0);
        let (made, probes) = unbounded();
        let (stop, stopped) = bounded(0);
        thread::scope(|scope| {
            scope.spawn(|| {
                let timer = |due| {
                    set_timer.send(due).expect("the test listens");
                    ticks.clone()
                };
                let probe = |probe| made.send(probe).expect("the test listens");
                run(&set, start, &woken, &stopped, timer, probe);
            });
            let first = timers.recv().expect("a timer is set for the first check");
            assert!(first >= start + INTERVAL, "which is not before the interval");
            ticker.send(first).expect("the checker waits");
            let probe: Probe = probes.recv().expect("one peer is due");
            let second = timers.recv().expect("a timer is set for the other peer");
            assert!(second > first, "peers are not probed in step");

            let later = first + (second - first) / 2;
            set.update(probe.peer, later, |peer, _| {
                peer.suspect(later);
                None
            });
            assert_eq!(timers.recv(), Ok(second), "woken, it sets its timer anew");
            assert!(probes.is_empty(), "a probe of the suspected peer is running already");

            set.update(probe.peer, later, |peer, due| {
                peer.probe_ended(probe.began, later, Ok(()), due)
            });
            let again = probes.recv().expect("the suspicion is newer than the probe");
            assert_eq!(again.peer, probe.peer, "so the same peer is probed once more");
            drop(stop);
        });
    }
}

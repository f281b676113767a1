//! The thread that resolves the names of hosts, again and again: never the checker's, as a lookup may
//! take its time.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, at, bounded, never, select};
use log::{info, warn};

use crate::panics::catch_panic;
use crate::peers::journal::TARGET;
use crate::peers::resolved_host::ResolutionChange;
use crate::peers::set::PeerSet;

/// The name of the thread. Linux shows the first 15 characters of a thread's name.
const THREAD_NAME: &str = "peers-resolver";

/// For how long the first answers are waited for, so that the first connections go where they belong.
const FIRST_PASS_TIMEOUT: Duration = Duration::from_secs(1);

/// Resolves the name of a host.
pub(crate) type Resolve = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send;

/// The system's own.
pub(crate) fn system(host: &str) -> io::Result<Vec<IpAddr>> {
    const ANY_PORT: u16 = 0;
    Ok((host, ANY_PORT).to_socket_addrs()?.map(|address| address.ip()).collect())
}

/// Starts the thread, and waits a moment for the first answers. It ends when the other end of `stopped`
/// is dropped, once a lookup that is under way has ended.
#[expect(clippy::disallowed_methods, reason = "an answer counts from when it comes")]
pub(crate) fn start(
    resolve: Box<Resolve>,
    set: Arc<PeerSet>,
    stopped: Receiver<Infallible>,
) -> io::Result<()> {
    let (first_pass, first_pass_done) = bounded::<Infallible>(0);
    let mut first_pass = Some(first_pass);
    let mut rng = set.rng();
    let hosts_changed = set.hosts_changed();
    thread::Builder::new().name(THREAD_NAME.to_owned()).spawn(move || {
        let look_up = |is_scheduled| {
            let hosts = set.hosts_to_resolve();
            for (number, host) in &hosts {
                let answer = resolve_host(&*resolve, host);
                if set.is_closed() {
                    break;
                }
                if let Some(change) =
                    set.apply_answer(*number, &answer, is_scheduled, Instant::now())
                {
                    let _ = catch_panic(|| log_change(&change));
                }
            }
            first_pass = None;
            let next = set.settings().next_resolve(Instant::now(), &mut rng);
            next.filter(|_| !hosts.is_empty())
        };
        run(look_up, &hosts_changed, &stopped, at);
        // Its destructor is the application's as well.
        let _ = catch_panic(|| drop(resolve));
    })?;
    let _ = first_pass_done.recv_timeout(FIRST_PASS_TIMEOUT);
    Ok(())
}

fn resolve_host(resolve: &Resolve, host: &str) -> Result<Vec<IpAddr>, String> {
    match catch_panic(|| resolve(host)) {
        Ok(Ok(mut addresses)) => {
            // Some name servers say "nobody" so.
            addresses.retain(|address| !address.is_unspecified() && !address.is_multicast());
            Ok(addresses)
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the resolver panicked".to_owned()),
    }
}

fn log_change(change: &ResolutionChange) {
    match change {
        ResolutionChange::Unresolved { peer, reason } => warn!(
            target: TARGET, peer = &**peer, event = "unresolved", reason = reason.as_str();
            "the host of peer {peer} is not resolved: {reason}; what is known stays"
        ),
        ResolutionChange::Resolved { peer } => info!(
            target: TARGET, peer = &**peer, event = "resolved";
            "the host of peer {peer} is resolved again"
        ),
    }
}

/// The loop: looks everything up, learns when that is due again, and waits for that, or for names that
/// are new. `look_up` is told whether it is its time.
fn run(
    mut look_up: impl FnMut(bool) -> Option<Instant>,
    hosts_changed: &Receiver<()>,
    stopped: &Receiver<Infallible>,
    timer: impl Fn(Instant) -> Receiver<Instant>,
) {
    let mut is_scheduled = true;
    loop {
        let due = look_up(is_scheduled).map_or_else(never, &timer);
        is_scheduled = select! {
            recv(stopped) -> _ => return,
            recv(hosts_changed) -> _ => false,
            recv(due) -> _ => true,
        };
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::unbounded;

    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the start")]
    fn looks_up_at_once_and_when_it_is_time_or_there_are_names_and_ends_with_its_owner() {
        let start = Instant::now();
        let (looked, looks) = unbounded();
        let (set_timer, timers) = unbounded();
        let (ticker, ticks) = bounded::<Instant>(0);
        let (give, given) = bounded(1);
        let (stop, stopped) = bounded(0);
        thread::scope(|scope| {
            scope.spawn(|| {
                let look_up = |is_scheduled| {
                    looked.send(is_scheduled).expect("the test listens");
                    Some(start)
                };
                let timer = |due| {
                    set_timer.send(due).expect("the test listens");
                    ticks.clone()
                };
                run(look_up, &given, &stopped, timer);
            });
            assert_eq!(looks.recv(), Ok(true), "at once");
            assert_eq!(timers.recv(), Ok(start), "then it waits for so long");
            ticker.send(start).expect("it waits");
            assert_eq!(looks.recv(), Ok(true), "again");
            give.send(()).expect("it listens");
            assert_eq!(looks.recv(), Ok(false), "and before it is time");
            drop(stop);
        });
    }

    #[test]
    fn the_system_knows_this_machine() {
        let addresses = system("localhost").expect("every system knows it");
        assert!(addresses.iter().any(IpAddr::is_loopback), "{addresses:?}");
        system("host.invalid").expect_err("nobody has this name");
    }

    #[test]
    fn nobody_is_no_peer() {
        let nobody = |_: &str| Ok(vec![[0, 0, 0, 0].into(), [224, 0, 0, 1].into()]);
        assert_eq!(resolve_host(&nobody, "db"), Ok(vec![]));
    }

    #[test]
    fn a_resolver_that_panics_gives_no_answer() {
        let told = resolve_host(&|_| panic!("on purpose"), "db").expect_err("it panicked");
        assert_eq!(told, "the resolver panicked");
    }
}

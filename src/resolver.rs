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
use crate::peers::resolved_host::Heard;
use crate::peers::set::PeerSet;

/// The name of the thread. Linux shows the first 15 characters of a thread's name.
const RESOLVER: &str = "peers-resolver";

/// For how long the first answers are waited for, so that the first connections go where they belong.
const FIRST_ANSWERS: Duration = Duration::from_secs(1);

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
    let (asking, all_were_asked) = bounded::<Infallible>(0);
    let mut asking = Some(asking);
    let mut rng = set.rng();
    let names_given = set.names_given();
    thread::Builder::new().name(RESOLVER.to_owned()).spawn(move || {
        let look_up = |is_due| {
            let hosts = set.hosts();
            for (number, host) in &hosts {
                let answer = ask(&*resolve, host);
                if set.is_closed() {
                    break;
                }
                if let Some(heard) = set.follow(*number, &answer, is_due, Instant::now()) {
                    let _ = catch_panic(|| write(&heard));
                }
            }
            asking = None;
            let next = set.settings().next_resolve(Instant::now(), &mut rng);
            next.filter(|_| !hosts.is_empty())
        };
        run(look_up, &names_given, &stopped, at);
        // Its destructor is the application's as well.
        let _ = catch_panic(|| drop(resolve));
    })?;
    let _ = all_were_asked.recv_timeout(FIRST_ANSWERS);
    Ok(())
}

fn ask(resolve: &Resolve, host: &str) -> Result<Vec<IpAddr>, String> {
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

fn write(heard: &Heard) {
    match heard {
        Heard::Unresolved { peer, reason } => warn!(
            target: TARGET, peer = &**peer, event = "unresolved", reason = reason.as_str();
            "the host of peer {peer} is not resolved: {reason}; what is known stays"
        ),
        Heard::Resolved { peer } => info!(
            target: TARGET, peer = &**peer, event = "resolved";
            "the host of peer {peer} is resolved again"
        ),
    }
}

/// The loop: looks everything up, learns when that is due again, and waits for that, or for names that
/// are new. `look_up` is told whether it is its time.
fn run(
    mut look_up: impl FnMut(bool) -> Option<Instant>,
    names_given: &Receiver<()>,
    stopped: &Receiver<Infallible>,
    timer: impl Fn(Instant) -> Receiver<Instant>,
) {
    let mut is_due = true;
    loop {
        let due = look_up(is_due).map_or_else(never, &timer);
        is_due = select! {
            recv(stopped) -> _ => return,
            recv(names_given) -> _ => false,
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
                let look_up = |is_due| {
                    looked.send(is_due).expect("the test listens");
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
        assert_eq!(ask(&nobody, "db"), Ok(vec![]));
    }

    #[test]
    fn a_resolver_that_panics_gives_no_answer() {
        let told = ask(&|_| panic!("on purpose"), "db").expect_err("it panicked");
        assert_eq!(told, "the resolver panicked");
    }
}

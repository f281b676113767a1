//! The thread that resolves host names at intervals. Lookups never run on the checker's thread,
//! because a lookup may block for a long time.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, at, bounded, never, select};
use log::{info, warn};

use crate::events::log::LOG_TARGET;
use crate::panics::catch_panic;
use crate::peers::resolved_host::{MAX_ADDRESSES, ResolutionChange};
use crate::peers::set::PeerSet;

/// The name of the thread. Linux shows the first 15 characters of a thread's name.
const THREAD_NAME: &str = "peers-resolver";

/// How long `build()` waits for the first answers, so that the first connections go to the resolved
/// addresses.
const FIRST_PASS_TIMEOUT: Duration = Duration::from_secs(1);

/// A function that resolves a host name.
pub(crate) type Resolve = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send;

/// Resolves a host name with the system's resolver.
pub(crate) fn system(host: &str) -> io::Result<Vec<IpAddr>> {
    const ANY_PORT: u16 = 0;
    Ok((host, ANY_PORT).to_socket_addrs()?.map(|address| address.ip()).collect())
}

/// Starts the thread, and waits up to [`FIRST_PASS_TIMEOUT`] for the first answers. The thread ends
/// when the other end of `stopped` is dropped, after a running lookup has ended.
#[expect(clippy::disallowed_methods, reason = "an answer is stamped when it arrives")]
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
            for (peer_id, host) in &hosts {
                let answer = resolve_host(&*resolve, host);
                if set.is_closed() {
                    break;
                }
                for change in set.apply_answer(*peer_id, &answer, is_scheduled, Instant::now()) {
                    let _ = catch_panic(|| log_change(&set.settings().pool_name, &change));
                }
            }
            first_pass = None;
            let next = set.settings().next_resolve(Instant::now(), &mut rng);
            next.filter(|_| !hosts.is_empty())
        };
        run(look_up, &hosts_changed, &stopped, at);
        // The resolver's destructor is user code as well.
        let _ = catch_panic(|| drop(resolve));
    })?;
    let _ = first_pass_done.recv_timeout(FIRST_PASS_TIMEOUT);
    Ok(())
}

/// Resolves a host name with `resolve`, which is user code and may panic. Returns each address once, in its
/// canonical form (`::ffff:10.0.0.1` is 10.0.0.1).
fn resolve_host(resolve: &Resolve, host: &str) -> Result<BTreeSet<IpAddr>, String> {
    match catch_panic(|| resolve(host)) {
        Ok(Ok(addresses)) => {
            Ok(addresses.iter().map(IpAddr::to_canonical).filter(can_be_a_server).collect())
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the resolver panicked".to_owned()),
    }
}

/// Whether a server can have this address, in its canonical form. Some name servers answer with an unspecified
/// address when there is none, and connecting to it leads to this machine.
fn can_be_a_server(address: &IpAddr) -> bool {
    let is_broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    !(address.is_unspecified() || address.is_multicast() || is_broadcast)
}

/// Logs a change of how a host is resolved.
fn log_change(pool: &str, change: &ResolutionChange) {
    match change {
        ResolutionChange::Unresolved { peer, reason } => warn!(
            target: LOG_TARGET, pool = pool, peer = &**peer, event = "unresolved", reason = reason.as_str();
            "cannot resolve the host of peer {peer}: {reason}; keeping the known addresses"
        ),
        ResolutionChange::Resolved { peer } => info!(
            target: LOG_TARGET, pool = pool, peer = &**peer, event = "resolved";
            "the host of peer {peer} is resolved again"
        ),
        ResolutionChange::AddressesIgnored { peer, ignored } => warn!(
            target: LOG_TARGET, pool = pool, peer = &**peer, event = "addresses_ignored";
            "the host of peer {peer} has too many addresses: {ignored} are ignored, as at most \
             {MAX_ADDRESSES} are used"
        ),
        ResolutionChange::AddressesUsed { peer } => info!(
            target: LOG_TARGET, pool = pool, peer = &**peer, event = "addresses_used";
            "no address of the host of peer {peer} is ignored any more"
        ),
    }
}

/// The loop of the thread: runs `look_up`, which returns when to run it next, and waits until then
/// or until there are new hosts. The argument of `look_up` is whether the resolution is a scheduled
/// one.
fn run(
    mut look_up: impl FnMut(bool) -> Option<Instant>,
    hosts_changed: &Receiver<()>,
    stopped: &Receiver<Infallible>,
    timer: impl Fn(Instant) -> Receiver<Instant>,
) {
    let mut is_scheduled = true;
    loop {
        let timer_fired = look_up(is_scheduled).map_or_else(never, &timer);
        is_scheduled = select! {
            recv(stopped) -> _ => return,
            recv(hosts_changed) -> _ => false,
            recv(timer_fired) -> _ => true,
        };
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::unbounded;

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("the text is an address")
    }

    /// Returns a resolver with this answer.
    fn answering(answer: &[&str]) -> impl Fn(&str) -> io::Result<Vec<IpAddr>> + use<> {
        let answer: Vec<IpAddr> = answer.iter().copied().map(address).collect();
        move |_| Ok(answer.clone())
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the start")]
    fn resolver_looks_up_at_once_on_schedule_and_for_new_hosts_until_it_is_stopped() {
        let start = Instant::now();
        let (looked_up, lookups) = unbounded();
        let (set_timer, timers) = unbounded();
        let (ticker, ticks) = bounded::<Instant>(0);
        let (notify, hosts_changed) = bounded(1);
        let (stop, stopped) = bounded(0);
        thread::scope(|scope| {
            scope.spawn(|| {
                let look_up = |is_scheduled| {
                    looked_up.send(is_scheduled).expect("the test receives");
                    Some(start)
                };
                let timer = |at| {
                    set_timer.send(at).expect("the test receives");
                    ticks.clone()
                };
                run(look_up, &hosts_changed, &stopped, timer);
            });
            assert_eq!(lookups.recv(), Ok(true), "the first lookup is made at once");
            assert_eq!(timers.recv(), Ok(start), "a timer is set for the next lookup");
            ticker.send(start).expect("the thread waits for the timer");
            assert_eq!(lookups.recv(), Ok(true), "the timer causes a scheduled lookup");
            notify.send(()).expect("the thread receives");
            assert_eq!(lookups.recv(), Ok(false), "new hosts cause an unscheduled lookup");
            drop(stop);
        });
    }

    #[test]
    fn system_resolver_resolves_localhost() {
        let addresses = system("localhost").expect("localhost can be resolved");
        assert!(addresses.iter().any(IpAddr::is_loopback), "{addresses:?}");
        system("host.invalid").expect_err("a name below `.invalid` cannot be resolved");
    }

    #[test]
    fn addresses_that_no_server_has_are_ignored_in_each_form() {
        let answer = [
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "ff02::1",
            "::ffff:0.0.0.0",
            "::ffff:224.0.0.1",
            "::ffff:255.255.255.255",
        ];
        assert_eq!(resolve_host(&answering(&answer), "db"), Ok(BTreeSet::new()));
    }

    #[test]
    fn each_address_is_used_once_in_its_canonical_form() {
        let answer = ["10.0.0.2", "::ffff:10.0.0.1", "10.0.0.1", "2001:db8::1", "10.0.0.1"];
        let expected = ["10.0.0.1", "10.0.0.2", "2001:db8::1"].map(address);
        assert_eq!(resolve_host(&answering(&answer), "db"), Ok(expected.into()));
    }

    #[test]
    fn panic_of_the_resolver_is_an_error() {
        let error = resolve_host(&|_| panic!("on purpose"), "db").expect_err("a panic is an error");
        assert_eq!(error, "the resolver panicked");
    }
}

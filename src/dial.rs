//! Logging in to peers, for the pool and for a probe.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use crossbeam_channel::{RecvTimeoutError, bounded};
use diesel::connection::{Instrumentation, TransactionManager};
use diesel::r2d2::R2D2Connection;
use diesel::result::QueryResult;

use crate::caught::{Panicked, caught};
use crate::lease::Lease;
use crate::peer::{Health, Peer};
use crate::set::PeerSet;
use crate::url::PeerUrl;

/// The name of a thread that makes one login.
const DIALER: &str = "peers-dial";

/// What the application does with each new connection before it is used.
pub(crate) type OnConnect<C> = dyn Fn(&mut C) -> QueryResult<()> + Send + Sync;

/// Why a login came to nothing.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Because of the peer.
    Peer(Arc<str>),
    /// Because of this process: the operating system gave it no thread.
    Here(io::Error),
}

/// Logs in to one peer after the other, each at most once, until one takes the connection.
///
/// # Errors
///
/// The whole story, peer by peer, without any URL or password.
#[expect(clippy::disallowed_methods, reason = "an attempt is stamped when it is made")]
pub(crate) fn connect<C: R2D2Connection + Send + 'static>(
    set: &Arc<PeerSet>,
    on_connect: &Arc<OnConnect<C>>,
) -> Result<(C, Lease), String> {
    let mut failures: Vec<Option<Arc<str>>> = vec![None; set.read(<[_]>::len)];
    while let Some(picked) = set.pick(|index| failures[index].is_some()) {
        let mut lease = Lease::of_dial(set.clone(), &picked);
        let began = Instant::now();
        let (url, was_up, on_connect) = (picked.url, picked.was_up, on_connect.clone());
        let outcome = in_time(set, picked.peer, move || {
            let mut conn = login::<C>(&url)?;
            // A peer that is down comes back only by the test that the checker would make.
            if !was_up {
                trial(&mut conn, &url)?;
            }
            reasoned(&url, || on_connect(&mut conn))?;
            Ok(conn)
        });
        let now = Instant::now();
        match outcome {
            Ok(conn) => {
                lease.becomes_link();
                set.update(picked.peer, now, |peer, _| peer.connected(began, now, !was_up));
                return Ok((conn, lease));
            }
            Err(Failure::Peer(why)) => {
                drop(lease);
                failures[picked.peer] = Some(why.clone());
                set.update(picked.peer, now, |peer, due| peer.connect_failed(began, now, why, due));
            }
            Err(Failure::Here(error)) => return Err(format!("no thread to log in from: {error}")),
        }
    }
    let now = Instant::now();
    Err(set.read(|peers| story(peers, &failures, now)))
}

/// Logs in and proves that the peer takes work.
///
/// # Errors
///
/// Why the peer is not to be used, without its URL or password.
pub(crate) fn probe<C: R2D2Connection + Send + 'static>(
    set: &Arc<PeerSet>,
    peer: usize,
    url: Arc<PeerUrl>,
    on_connect: Arc<OnConnect<C>>,
) -> Result<(), Failure> {
    in_time(set, peer, move || {
        let mut conn = login::<C>(&url)?;
        // A peer on which the application's own preparation fails takes no connection either.
        let outcome =
            trial(&mut conn, &url).and_then(|()| reasoned(&url, || on_connect(&mut conn)));
        reasoned(&url, || {
            drop(conn);
            Ok::<_, Infallible>(())
        })
        .and(outcome)
    })
}

/// Runs `work`, which talks to a server, on a thread of its own, and waits for it for no longer than
/// `connect_timeout`: client libraries set no time-outs, and a server that accepts and says nothing
/// would keep its caller for ever. What has not ended by then is left behind, and ends when its
/// server or the kernel makes it; while it lasts no connection is dialled there but by a probe.
fn in_time<T: Send + 'static>(
    set: &Arc<PeerSet>,
    peer: usize,
    work: impl FnOnce() -> Result<T, Arc<str>> + Send + 'static,
) -> Result<T, Failure> {
    let timeout = set.connect_timeout();
    // Nothing is kept in the channel: what comes too late is not handed over, and closed over there.
    let (done, outcome) = bounded(0);
    let dialer = {
        let set = set.clone();
        move || {
            // What nobody waits for is dropped here, and may panic.
            if !matches!(caught(|| done.send(work())), Ok(Ok(()))) {
                set.count(peer, |counts| counts.stuck -= 1);
            }
        }
    };
    thread::Builder::new().name(DIALER.to_owned()).spawn(dialer).map_err(Failure::Here)?;
    match outcome.recv_timeout(timeout) {
        Ok(outcome) => outcome.map_err(Failure::Peer),
        Err(RecvTimeoutError::Timeout) => {
            // Counted before the other end can see that nobody waits.
            set.count(peer, |counts| counts.stuck += 1);
            Err(Failure::Peer(format!("no answer to a login within {timeout:?}").into()))
        }
        Err(RecvTimeoutError::Disconnected) => {
            Err(Failure::Peer(format!("a login ended without a word: {Panicked}").into()))
        }
    }
}

/// What happened at each peer in this call, or made it be left out, and when it is checked next.
fn story(peers: &[Peer], failures: &[Option<Arc<str>>], now: Instant) -> String {
    let chapter = |(peer, failure): (&Peer, &Option<Arc<str>>)| {
        let next = peer.next_check.saturating_duration_since(now);
        match (failure, &peer.health) {
            (Some(why), Health::Up { .. }) => format!("{}: {why} (up again since)", peer.name),
            (Some(why), Health::Down { .. }) => {
                format!("{}: {why} (next check in {next:.1?})", peer.name)
            }
            (None, Health::Down { why, .. }) => {
                format!("{}: not tried, down since: {why} (next check in {next:.1?})", peer.name)
            }
            (None, Health::Up { .. }) => format!("{}: up again since", peer.name),
        }
    };
    let chapters: Vec<String> = peers.iter().zip(failures).map(chapter).collect();
    format!("no peer took the connection: {}", chapters.join("; "))
}

fn login<C: R2D2Connection>(url: &PeerUrl) -> Result<C, Arc<str>> {
    reasoned(url, || C::establish(url.expose()))
}

/// `BEGIN; ROLLBACK`: what diesel's ping (`SELECT 1`) does not show, this does. A Galera node that
/// refuses all work still answers a `SELECT` without a table.
fn trial<C: R2D2Connection>(conn: &mut C, url: &PeerUrl) -> Result<(), Arc<str>> {
    reasoned(url, || -> QueryResult<()> {
        // These are not the application's queries: its default instrumentation is spared them.
        conn.set_instrumentation(None::<Box<dyn Instrumentation>>);
        C::TransactionManager::begin_transaction(conn)?;
        C::TransactionManager::rollback_transaction(conn)
    })
}

/// Runs `work`, and turns its error, or its panic, into a reason that can be shown.
fn reasoned<T, E: fmt::Display>(
    url: &PeerUrl,
    work: impl FnOnce() -> Result<T, E>,
) -> Result<T, Arc<str>> {
    match caught(work) {
        Ok(outcome) => outcome.map_err(|error| reason(url, &error.to_string())),
        Err(panicked) => Err(reason(url, &panicked.to_string())),
    }
}

/// A reason that can be shown: on one line (libpq's messages are several), without secrets.
fn reason(url: &PeerUrl, text: &str) -> Arc<str> {
    let text = url.redact(text);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join(", ").into()
}

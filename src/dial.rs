//! Logging in to peers, for the pool and for a probe.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use diesel::connection::{Instrumentation, TransactionManager};
use diesel::r2d2::R2D2Connection;
use diesel::result::QueryResult;

use crate::caught::caught;
use crate::lease::Lease;
use crate::peer::{Health, Peer};
use crate::set::PeerSet;
use crate::url::PeerUrl;

/// What the application does with each new connection before it is used.
pub(crate) type OnConnect<C> = dyn Fn(&mut C) -> QueryResult<()> + Send + Sync;

/// Logs in to one peer after the other, each at most once, until one takes the connection.
///
/// # Errors
///
/// The whole story, peer by peer, without any URL or password.
#[expect(clippy::disallowed_methods, reason = "an attempt is stamped when it is made")]
pub(crate) fn connect<C: R2D2Connection>(
    set: &Arc<PeerSet>,
    on_connect: &OnConnect<C>,
) -> Result<(C, Lease), String> {
    let mut failures: Vec<Option<Arc<str>>> = vec![None; set.read(<[_]>::len)];
    while let Some(picked) = set.pick(|index| failures[index].is_some()) {
        let mut lease = Lease::of_dial(set.clone(), &picked);
        let began = Instant::now();
        let outcome = login::<C>(&picked.url).and_then(|mut conn| {
            // A peer that is down comes back only by the test that the checker would make.
            if !picked.was_up {
                trial(&mut conn, &picked.url)?;
            }
            prepare(&mut conn, on_connect, &picked.url)?;
            Ok(conn)
        });
        let now = Instant::now();
        match outcome {
            Ok(conn) => {
                lease.becomes_link();
                set.update(picked.peer, now, |peer, _| peer.connected(began, now));
                return Ok((conn, lease));
            }
            Err(why) => {
                drop(lease);
                failures[picked.peer] = Some(why.clone());
                set.update(picked.peer, now, |peer, due| peer.connect_failed(began, now, why, due));
            }
        }
    }
    let now = Instant::now();
    Err(set.read(|peers| story(peers, &failures, now)))
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

/// Logs in and proves that the peer takes work.
///
/// # Errors
///
/// Why the peer is not to be used, without its URL or password.
pub(crate) fn probe<C: R2D2Connection>(url: &PeerUrl) -> Result<(), Arc<str>> {
    let mut conn = login::<C>(url)?;
    let outcome = trial(&mut conn, url);
    caught(|| drop(conn)).map_err(|panicked| reason(url, &panicked.to_string())).and(outcome)
}

fn login<C: R2D2Connection>(url: &PeerUrl) -> Result<C, Arc<str>> {
    reasoned(url, || C::establish(url.expose()))
}

fn prepare<C>(conn: &mut C, on_connect: &OnConnect<C>, url: &PeerUrl) -> Result<(), Arc<str>> {
    reasoned(url, || on_connect(conn))
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

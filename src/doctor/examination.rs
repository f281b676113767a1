//! Examines all peers at once: logs in to each of them as the pool does, and then collects its facts.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::unbounded;
use diesel::r2d2::R2D2Connection;

use super::collect::{FactRecorder, collect};
use super::finding::Finding;
use super::progress::PeerProgress;
use super::{Report, ledger, sqlite_file};
use crate::builder::PeerManagerBuilder;
use crate::error::BuildError;
use crate::fault::{Fault, LoginFailure};
use crate::login::bounded::{self, LoginProgress, LoginTimeout};
use crate::login::session::{Hooks, Inspection, Login};
use crate::panics::catch_panic;
use crate::peers::set::peer_ref::PeerRef;
use crate::settings::ledger::Ledger;
use crate::url::PeerUrl;
use crate::url::dialect::Dialect;

/// The number of round trips that are measured. The shortest is reported, because the others may include
/// waiting for something else.
const ROUND_TRIPS: usize = 3;

/// Examines all peers of this configuration at the same time and returns a [`Report`].
///
/// The examination takes as long as the slowest peer. Each peer has its
/// [`connect_timeout`](PeerManagerBuilder::connect_timeout) for the login and the queries together.
///
/// # Errors
///
/// The same as [`build`](PeerManagerBuilder::build). Failures of a peer are not errors; the report contains
/// them.
pub fn examine<C>(builder: PeerManagerBuilder<C>) -> Result<Report, BuildError>
where
    C: R2D2Connection + Send + 'static,
{
    examine_with_progress(builder, |_| {})
}

/// Does the same as [`examine`] and reports progress.
///
/// `on_progress` is called with the names of the peers whose examination is not complete: at the beginning,
/// and each time one is complete.
///
/// # Errors
///
/// The same as [`build`](PeerManagerBuilder::build). Failures of a peer are not errors; the report contains
/// them.
pub fn examine_with_progress<C>(
    builder: PeerManagerBuilder<C>,
    mut on_progress: impl FnMut(&[String]),
) -> Result<Report, BuildError>
where
    C: R2D2Connection + Send + 'static,
{
    // The manager's checker enforces the deadlines. Dropping the manager ends logins in progress.
    let manager = builder.without_checks().build()?;
    let (set, hooks) = manager.parts();
    // A peer whose host name was resolved keeps its index in the set, but is not a member any more.
    let peers: Vec<PeerRef> = set.read(|peers| {
        let members = peers.iter().enumerate().filter(|(_, peer)| peer.is_member());
        members.map(|(index, peer)| PeerRef::new(set.clone(), index, peer)).collect()
    });
    let names: Vec<String> = peers.iter().map(|peer| peer.name.to_string()).collect();
    let limit = |peer: &PeerRef| peer.read(|peer| peer.max_connections);
    let limits: Vec<Option<u32>> = peers.iter().map(limit).collect();
    let (completed, findings) = unbounded();
    for (position, peer) in peers.into_iter().enumerate() {
        let completed = completed.clone();
        // The receiver may be gone.
        start(peer, hooks, move |finding| drop(completed.send((position, finding))));
    }
    // Once all threads have ended, also without a result, `recv` now fails instead of waiting.
    drop(completed);
    let mut found: Vec<Option<Finding>> = names.iter().map(|_| None).collect();
    loop {
        let waiting: Vec<String> = names
            .iter()
            .zip(&found)
            .filter(|(_, found)| found.is_none())
            .map(|(name, _)| name.clone())
            .collect();
        on_progress(&waiting);
        if waiting.is_empty() {
            break;
        }
        let Ok((position, finding)) = findings.recv() else { break };
        found[position] = Some(finding);
    }
    let without_result = |name: String| {
        PeerProgress::default().take_finding(
            name,
            Err(LoginFailure::NotAttempted("the login thread ended without a result".into())),
        )
    };
    let findings = found
        .into_iter()
        .zip(names)
        .map(|(found, name)| found.unwrap_or_else(|| without_result(name)))
        .zip(limits)
        .map(|(finding, max_connections)| Finding { max_connections, ..finding });
    Ok(Report::new(findings.collect(), set.settings().shares_in_text()))
}

/// Starts the examination of one peer on a thread of its own.
fn start<C: R2D2Connection + Send + 'static>(
    peer: PeerRef,
    hooks: &Arc<Hooks<C>>,
    on_finding: impl FnOnce(Finding) + Send + 'static,
) {
    let name = peer.name.to_string();
    let url = peer.read(|peer| peer.url.clone());
    if let Some(finding) = missing_file::<C>(&name, &url) {
        on_finding(finding);
        return;
    }
    let login = Login::new(peer.clone(), hooks.clone());
    let settings = peer.settings();
    let timeout = settings.connect_timeout.min(settings.connect_deadline);
    let ledger = settings.ledger.clone();
    let peer_progress = Arc::new(PeerProgress::default());
    let thread_progress = peer_progress.clone();
    let began = now();
    bounded::start(
        peer,
        began,
        LoginTimeout::uniform(timeout),
        move |progress| examine_peer(login, progress, began, ledger, &thread_progress),
        move |outcome| on_finding(peer_progress.take_finding(name, outcome)),
        None,
    );
}

/// Logs in to a peer, measures the round trip, collects the peer's facts and verifies the ledger.
fn examine_peer<C: R2D2Connection + 'static>(
    login: Login<C>,
    progress: &LoginProgress,
    began: Instant,
    ledger: Option<Ledger>,
    peer_progress: &PeerProgress,
) -> Result<(), LoginFailure> {
    let Inspection { url, mut conn, failure } = login.inspect(progress)?;
    // A peer that is not ready may refuse everything.
    let ledger = ledger.filter(|_| failure.is_none());
    peer_progress.record_login(now().saturating_duration_since(began), failure);
    peer_progress.begin_step("answer `SELECT 1`");
    if let Some(round_trip) = round_trip(&mut conn) {
        peer_progress.record_round_trip(round_trip);
    }
    let recorder = FactRecorder { peer_progress, url: &url };
    let any: &mut dyn Any = &mut conn;
    let outcome = collect(any, &recorder).and_then(|()| match &ledger {
        Some(ledger) => ledger::examine(ledger, &mut conn, &recorder),
        None => Ok(()),
    });
    if outcome.is_ok() {
        // After a failure the step stays: at the deadline the connection is shut down, and the report names
        // the step that the peer did not complete.
        peer_progress.finish_steps();
    }
    // The destructor of the application's own connection type may panic.
    let _ = catch_panic(|| drop(conn));
    outcome
}

/// Returns the shortest of [`ROUND_TRIPS`] round trips, or `None` if none succeeded.
fn round_trip(conn: &mut impl R2D2Connection) -> Option<Duration> {
    let measure = |()| {
        let began = now();
        conn.ping().ok().map(|()| now().saturating_duration_since(began))
    };
    [(); ROUND_TRIPS].map(measure).into_iter().flatten().min()
}

#[expect(clippy::disallowed_methods, reason = "the times of logins and round trips are taken here")]
fn now() -> Instant {
    Instant::now()
}

/// Returns a finding if the login would create a missing SQLite file: an examination must not change
/// anything.
fn missing_file<C: 'static>(name: &str, url: &PeerUrl) -> Option<Finding> {
    let is_sqlite = Dialect::for_connection::<C>() == Dialect::Sqlite;
    let path = sqlite_file::file_created_by(url.expose()).filter(|_| is_sqlite)?;
    if path.exists() {
        return None;
    }
    let reason = "the file does not exist, and the pool would create an empty database; to prevent \
                  that, use `file:PATH?mode=rw`";
    let failure = LoginFailure::refused(Fault::Misconfigured, reason);
    Some(PeerProgress::default().take_finding(name.to_owned(), Err(failure)))
}

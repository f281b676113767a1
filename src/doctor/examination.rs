//! Examining all peers at once: a login to each, as the pool makes it, and then questions.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, unbounded};
use diesel::r2d2::R2D2Connection;

use super::ask::{self, Asker};
use super::finding::Finding;
use super::progress::PeerProgress;
use super::{Report, sqlite_file};
use crate::builder::PeerManagerBuilder;
use crate::dialect::Dialect;
use crate::error::BuildError;
use crate::fault::{Fault, Refusal};
use crate::login::bounded::{self, LoginFailure, Patience, Progress};
use crate::login::session::{Hooks, Login, Look};
use crate::panics::catch_panic;
use crate::peers::set::PeerSet;
use crate::url::PeerUrl;

/// How many round trips are timed. The shortest has waited for nothing else.
const ROUND_TRIPS: usize = 3;

/// Examines the peers of this configuration, all at once, each within its
/// [`connect_timeout`](PeerManagerBuilder::connect_timeout). It takes as long as the slowest of them.
///
/// # Errors
///
/// As [`build`](PeerManagerBuilder::build). What is wrong with a peer stands in the report.
pub fn examine<C>(builder: PeerManagerBuilder<C>) -> Result<Report, BuildError>
where
    C: R2D2Connection + Send + 'static,
{
    examine_with_progress(builder, |_| {})
}

/// As [`examine`], and tells the names of the peers that are waited for: at the beginning, and each time
/// that one is done.
///
/// # Errors
///
/// As [`build`](PeerManagerBuilder::build). What is wrong with a peer stands in the report.
pub fn examine_with_progress<C>(
    builder: PeerManagerBuilder<C>,
    mut tell: impl FnMut(&[String]),
) -> Result<Report, BuildError>
where
    C: R2D2Connection + Send + 'static,
{
    // It keeps the deadlines, and ends what is under way when it is dropped.
    let manager = builder.unchecked().build()?;
    let (set, hooks) = manager.parts();
    // A name that was resolved has left a place where there is no peer.
    let peers: Vec<(usize, String)> = set.read(|peers| {
        let members = peers.iter().enumerate().filter(|(_, peer)| peer.is_member());
        members.map(|(place, peer)| (place, peer.name.to_string())).collect()
    });
    let (done, findings) = unbounded();
    for (number, (place, name)) in peers.iter().enumerate() {
        start(set, hooks, (number, *place, name.clone()), done.clone());
    }
    let names: Vec<String> = peers.into_iter().map(|(_, name)| name).collect();
    // So that the wait ends also when one ends without a word.
    drop(done);
    let mut found: Vec<Option<Finding>> = names.iter().map(|_| None).collect();
    loop {
        let waiting: Vec<String> = names
            .iter()
            .zip(&found)
            .filter(|(_, found)| found.is_none())
            .map(|(name, _)| name.clone())
            .collect();
        tell(&waiting);
        if waiting.is_empty() {
            break;
        }
        let Ok((peer, finding)) = findings.recv() else { break };
        found[peer] = Some(finding);
    }
    let silent = |name: String| {
        PeerProgress::default().finding(
            name,
            Err(LoginFailure::NotAttempted("its login has ended without a word".into())),
        )
    };
    let findings = found.into_iter().zip(names);
    Ok(Report::of(findings.map(|(found, name)| found.unwrap_or_else(|| silent(name))).collect()))
}

/// Examines one peer on a thread of its own.
#[expect(clippy::disallowed_methods, reason = "an examination is stamped when it begins")]
fn start<C: R2D2Connection + Send + 'static>(
    set: &Arc<PeerSet>,
    hooks: &Arc<Hooks<C>>,
    (number, peer, name): (usize, usize, String),
    done: Sender<(usize, Finding)>,
) {
    let (url, activity) = set.read(|peers| (peers[peer].url.clone(), peers[peer].activity.clone()));
    if let Some(finding) = without_a_file::<C>(&name, &url) {
        drop(done.send((number, finding)));
        return;
    }
    let login =
        Login { set: set.clone(), peer, activity, url, hooks: hooks.clone(), rng: set.rng() };
    let patience = set.settings().connect_timeout.min(set.settings().connect_deadline);
    let peer_progress = Arc::new(PeerProgress::default());
    let known = peer_progress.clone();
    let began = Instant::now();
    bounded::start(
        set,
        peer,
        (began, Patience::of(patience)),
        move |progress| look(login, progress, began, &peer_progress),
        // Nobody may be there to hear it.
        move |outcome| drop(done.send((number, known.finding(name, outcome)))),
    );
}

/// Logs in, and asks what there is to ask.
fn look<C: R2D2Connection + 'static>(
    login: Login<C>,
    progress: &Progress,
    began: Instant,
    peer_progress: &PeerProgress,
) -> Result<(), LoginFailure> {
    let Look { url, mut conn, unfit } = login.look(progress)?;
    peer_progress.logged_in(began.elapsed(), unfit);
    peer_progress.asks(Some("answer `SELECT 1`"));
    if let Some(round_trip) = round_trip(&mut conn) {
        peer_progress.answers_within(round_trip);
    }
    let asker = Asker { peer_progress, url: &url };
    let any: &mut dyn Any = &mut conn;
    let asked = ask::ask(any, &asker);
    if asked.is_ok() {
        // Else it was cut off, as it had fallen silent: that is to be told of what it was asked last.
        peer_progress.asks(None);
    }
    // A destructor is user code, where the connection's type is.
    let _ = catch_panic(|| drop(conn));
    asked
}

#[expect(clippy::disallowed_methods, reason = "a round trip is timed")]
fn round_trip(conn: &mut impl R2D2Connection) -> Option<Duration> {
    let time = |()| {
        let began = Instant::now();
        conn.ping().ok().map(|()| began.elapsed())
    };
    [(); ROUND_TRIPS].map(time).into_iter().flatten().min()
}

/// SQLite would create a file that is missing, as the pool would. To look must not change anything.
fn without_a_file<C: 'static>(name: &str, url: &PeerUrl) -> Option<Finding> {
    let is_sqlite = Dialect::for_connection::<C>() == Dialect::Sqlite;
    let path = sqlite_file::created_by(url.expose()).filter(|_| is_sqlite)?;
    if path.exists() {
        return None;
    }
    let reason = "there is no such file, and the pool would create an empty database: write \
               `file:PATH?mode=rw`, which creates none";
    let refusal = Refusal::new(Fault::Misconfigured, reason);
    Some(PeerProgress::default().finding(name.to_owned(), Err(LoginFailure::Refused(refusal))))
}

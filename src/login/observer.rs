//! Observes every query and every error of a link, also of queries through a plain
//! `&mut MysqlConnection`. The observer is the link's instrumentation, and forwards each event to the
//! application's own instrumentation.

use std::fmt::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use diesel::Connection;
use diesel::connection::{DebugQuery, DynInstrumentation, Instrumentation, InstrumentationEvent};
use diesel::result::Error;

use crate::fault::{Fault, Loss, commit, rollback};
use crate::login::statements;
use crate::peers::link_state::LinkState;
use crate::peers::set::peer_ref::PeerRef;
use crate::peers::transaction_record::{Failure, Interruption};
use crate::redact::on_one_line;
use crate::settings::policy::Role;
use crate::url::dialect::Dialect;

/// Records what the observer sees of one link: in the link's state, and in the state of its peer.
#[derive(Debug, Clone)]
pub(crate) struct LinkMonitor {
    peer: PeerRef,
    link_state: Arc<LinkState>,
    /// Whether this crate's own queries are running, which are neither recorded nor forwarded to the
    /// application's instrumentation.
    muted: Arc<AtomicBool>,
    /// The database of the connection, if the connection is diesel's own. Then the thread that begins a
    /// query waits for the server itself.
    dialect: Dialect,
}

impl LinkMonitor {
    pub(crate) fn new(peer: PeerRef) -> Self {
        let dialect = peer.settings().classifier.dialect;
        Self { peer, link_state: Arc::default(), muted: Arc::default(), dialect }
    }

    pub(crate) fn link_state(&self) -> &Arc<LinkState> {
        &self.link_state
    }

    /// Installs an observer in front of the instrumentation that diesel sets by default. The instance
    /// that `establish` has created cannot be taken out of the connection again, so this is a second
    /// instance.
    pub(crate) fn install(&self, conn: &mut impl Connection) {
        self.install_before(DynInstrumentation::default_instrumentation(), conn);
    }

    /// Installs an observer in front of the application's own instrumentation.
    pub(crate) fn install_before(&self, user: DynInstrumentation, conn: &mut impl Connection) {
        conn.set_instrumentation(Observer { monitor: self.clone(), user });
    }

    /// Sets whether the next queries are neither recorded nor forwarded to the application's
    /// instrumentation.
    pub(crate) fn set_muted(&self, muted: bool) {
        // Only the thread that runs the queries reads this flag.
        self.muted.store(muted, Ordering::Relaxed);
    }

    #[expect(clippy::disallowed_methods, reason = "the time at which a query begins is taken here")]
    fn query_begins(&self, query: &dyn DebugQuery) {
        let now = Instant::now();
        self.link_state.query_begins(now, self.dialect != Dialect::Other);
        self.link_state.record.query_begins();
        if matches!(self.dialect, Dialect::Postgres | Dialect::Other) {
            self.link_state.set_copy(has_copy(query));
        }
        self.peer.set.request_query_scan();
    }

    #[expect(clippy::disallowed_methods, reason = "the time at which a query ends is taken here")]
    fn query_ended(&self, error: Option<&Error>) {
        let now = Instant::now();
        let took = self.link_state.query_ends(now);
        if self.link_state.is_copy() {
            // A COPY ends with a later call or never, and diesel's ping does not survive an open one.
            self.link_state.doubt_session();
            if error.is_none() {
                self.link_state.data_follows(now);
                self.peer.set.request_query_scan();
            }
        }
        // Pings are not the application's queries, although its instrumentation sees them.
        let counters = (!self.link_state.is_pinging()).then_some(&self.peer.activity.counters);
        if let Some(counters) = counters {
            counters.queries.add(took);
        }
        let record = &self.link_state.record;
        let Some(error) = error else {
            record.query_succeeded(self.dialect == Dialect::Postgres);
            self.peer.activity.query_ended(now);
            if self.peer.activity.query_succeeded() {
                self.peer.set.views_changed();
            }
            return;
        };
        if counters.is_some() {
            self.link_state.fail_checkout();
        }
        if self.dialect == Dialect::Postgres {
            statements::report_loss(&self.peer, error);
        }
        let settings = self.peer.settings();
        let (fault, loss) = settings.classifier.classify_query(error);
        let is_in_doubt = record.is_committing() && !commit::shows_abort(self.dialect, error);
        if is_in_doubt {
            self.peer.activity.counters.commits_in_doubt.add_one();
        }
        let failure = Failure {
            interruption: Interruption::of(fault, settings.requirements.role == Role::ReadWrite),
            rolls_back: rollback::shows_rollback(error),
        };
        record.query_failed(failure, is_in_doubt.then(|| on_one_line(&error.to_string()).into()));
        if self.is_lost(loss) {
            if let Some(counters) = counters {
                counters.queries_lost.add_one();
            }
            self.peer.activity.link_lost(now);
            if !self.link_state.is_lost() {
                self.link_state.mark_lost();
                self.peer.suspect(now);
            }
        } else if loss == Loss::Claimed {
            // It is not known who speaks: the peer, or a proxy that has lost its server.
            self.link_state.doubt_session();
        } else {
            self.peer.activity.query_ended(now);
        }
        match fault {
            Fault::PeerNotReady => {
                self.link_state.doubt_server();
                self.peer.update(now, |peer, check_times| peer.query_refused(now, check_times));
            }
            Fault::PeerDown | Fault::Misconfigured => self.peer.suspect(now),
            // One check, however many queries fail.
            Fault::OutOfResources if self.peer.activity.shortage_begins() => {
                self.peer.set.views_changed();
                self.peer.suspect(now);
            }
            // The application may have begun a transaction that is read-only, so only the server can tell.
            Fault::WrongRole if settings.requirements.role == Role::ReadWrite => {
                self.link_state.doubt_server();
            }
            _ => {}
        }
    }

    /// Whether the connection is lost. The socket decides if it is known: a text can also be a user's.
    fn is_lost(&self, loss: Loss) -> bool {
        match (loss, self.link_state.socket()) {
            (Loss::Decided, _) | (Loss::Claimed, None) => true,
            (Loss::No, None) => false,
            (Loss::No, Some(socket)) => socket.has_ended(),
            // After an error of its own, the client library closes its descriptor before the server does.
            (Loss::Claimed, Some(socket)) => socket.has_ended() || socket.is_abandoned(),
        }
    }
}

/// Whether a statement in the text of a query is PostgreSQL's `COPY`. A text within quotes may look like one.
fn has_copy(query: &dyn DebugQuery) -> bool {
    struct Search(bool);
    impl Write for Search {
        /// diesel writes the statement in one piece, and its values afterwards.
        fn write_str(&mut self, sql: &str) -> fmt::Result {
            self.0 = sql.split(';').any(is_copy);
            Err(fmt::Error)
        }
    }
    let mut search = Search(false);
    let _ = write!(search, "{query}");
    search.0
}

/// Whether this is a `COPY` statement, after spaces and comments.
fn is_copy(mut statement: &str) -> bool {
    loop {
        statement = statement.trim_start();
        let after_comment = if statement.starts_with("--") {
            statement.split_once('\n')
        } else if statement.starts_with("/*") {
            statement.split_once("*/")
        } else {
            let word = statement.split(|c: char| !c.is_ascii_alphabetic()).next();
            return word.is_some_and(|word| word.eq_ignore_ascii_case("copy"));
        };
        let Some((_, rest)) = after_comment else { return false };
        statement = rest;
    }
}

/// The instrumentation that is installed on every link.
pub(crate) struct Observer {
    monitor: LinkMonitor,
    user: DynInstrumentation,
}

impl Observer {
    /// Whether the observer is installed. The application may have replaced it on the wrapped
    /// connection.
    pub(crate) fn is_installed(conn: &mut impl Connection) -> bool {
        conn.instrumentation().is::<Self>()
    }

    /// Returns the application's instrumentation: the one behind the observer if `installed` is an
    /// observer, and otherwise `installed` itself.
    pub(crate) fn user_instrumentation(
        installed: &mut dyn Instrumentation,
    ) -> &mut dyn Instrumentation {
        if !installed.is::<Self>() {
            return installed;
        }
        let observer = installed.downcast_mut::<Self>().expect("the type was checked above");
        &mut *observer.user
    }
}

impl Instrumentation for Observer {
    fn on_connection_event(&mut self, event: InstrumentationEvent<'_>) {
        if self.monitor.muted.load(Ordering::Relaxed) {
            return;
        }
        // Recorded first, because the application's instrumentation may panic.
        match &event {
            InstrumentationEvent::StartQuery { query, .. } => self.monitor.query_begins(*query),
            InstrumentationEvent::FinishQuery { error, .. } => self.monitor.query_ended(*error),
            InstrumentationEvent::CommitTransaction { depth, .. } if depth.get() == 1 => {
                self.monitor.link_state.record.commit_begins();
            }
            // At a greater depth these are savepoints.
            InstrumentationEvent::BeginTransaction { .. }
            | InstrumentationEvent::CommitTransaction { .. }
            | InstrumentationEvent::RollbackTransaction { .. } => {
                self.monitor.link_state.record.control_begins();
            }
            _ => {}
        }
        self.user.on_connection_event(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_is_recognized_at_the_beginning_of_a_statement() {
        for (text, expected) in [
            ("COPY items FROM STDIN", true),
            ("copy(SELECT 1) TO STDOUT", true),
            (" /* a */ -- b\n Copy items TO STDOUT", true),
            ("BEGIN; COPY items FROM STDIN", true),
            ("SELECT copy FROM items", false),
            ("COPYRIGHT", false),
            ("/* COPY", false),
            ("", false),
        ] {
            assert_eq!(text.split(';').any(is_copy), expected, "{text}");
        }
    }
}

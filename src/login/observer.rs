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

use crate::fault::Fault;
use crate::peers::activity::LinkState;
use crate::peers::set::peer_ref::PeerRef;
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
    pub(crate) fn new(peer: PeerRef, dialect: Dialect) -> Self {
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
    fn query_begins(&self) {
        let now = Instant::now();
        self.link_state.query_begins(now, self.dialect != Dialect::Other);
        self.peer.set.request_query_scan();
    }

    #[expect(clippy::disallowed_methods, reason = "the time at which a query ends is taken here")]
    fn query_ended(&self, query: &dyn DebugQuery, error: Option<&Error>) {
        let now = Instant::now();
        let took = self.link_state.query_ends(now);
        if self.dialect == Dialect::Postgres && error.is_none() && is_copy(query) {
            self.link_state.data_follows(now);
            self.peer.set.request_query_scan();
        }
        // Pings are not the application's queries, although its instrumentation sees them.
        let counters = (!self.link_state.is_pinging()).then_some(&self.peer.activity.counters);
        if let Some(counters) = counters {
            counters.queries.add(took);
        }
        let settings = self.peer.settings();
        let (fault, is_lost) =
            error.map_or((Fault::Query, false), |error| settings.classifier.classify_query(error));
        if is_lost {
            if let Some(counters) = counters {
                counters.queries_lost.add_one();
            }
            if !self.link_state.is_lost() {
                self.link_state.mark_lost();
                self.peer.suspect(now);
            }
            return;
        }
        self.peer.activity.query_ended(now);
        match fault {
            Fault::PeerNotReady => {
                self.peer.update(now, |peer, check_times| peer.query_refused(now, check_times));
            }
            Fault::PeerDown | Fault::Misconfigured => self.peer.suspect(now),
            Fault::WrongRole if settings.requirements.role == Role::ReadWrite => {
                self.peer.suspect(now);
            }
            _ => {}
        }
    }
}

/// Whether the text of a query begins as that of PostgreSQL's `COPY`.
fn is_copy(query: &dyn DebugQuery) -> bool {
    /// Takes the beginning of a text, and refuses the rest.
    struct Beginning(&'static str);
    impl Write for Beginning {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            let common = self.0.len().min(text.len());
            let (Some(expected), Some(actual)) = (self.0.get(..common), text.get(..common)) else {
                return Err(fmt::Error);
            };
            if !expected.eq_ignore_ascii_case(actual) {
                return Err(fmt::Error);
            }
            self.0 = &self.0[common..];
            if self.0.is_empty() { Err(fmt::Error) } else { Ok(()) }
        }
    }
    let mut beginning = Beginning("COPY ");
    let _ = write!(beginning, "{query}");
    beginning.0.is_empty()
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
            InstrumentationEvent::StartQuery { .. } => self.monitor.query_begins(),
            InstrumentationEvent::FinishQuery { query, error, .. } => {
                self.monitor.query_ended(*query, *error);
            }
            _ => {}
        }
        self.user.on_connection_event(event);
    }
}

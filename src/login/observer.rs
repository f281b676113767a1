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

use crate::fault::{Fault, Loss};
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
    /// Whether a query can leave the connection in a COPY, which diesel's ping does not survive.
    has_copy_mode: bool,
}

impl LinkMonitor {
    pub(crate) fn new(peer: PeerRef) -> Self {
        let dialect = peer.settings().classifier.dialect;
        let has_copy_mode = matches!(dialect, Dialect::Postgres | Dialect::Other);
        Self { peer, link_state: Arc::default(), muted: Arc::default(), has_copy_mode }
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
        self.link_state.query_begins(now);
        if self.has_copy_mode && begins_copy(query) {
            self.link_state.doubt_session();
        }
        self.peer.set.request_query_scan();
    }

    #[expect(clippy::disallowed_methods, reason = "the time at which a query ends is taken here")]
    fn query_ended(&self, error: Option<&Error>) {
        let now = Instant::now();
        let took = self.link_state.query_ends(now);
        // Pings are not the application's queries, although its instrumentation sees them.
        let counters = (!self.link_state.is_pinging()).then_some(&self.peer.activity.counters);
        if let Some(counters) = counters {
            counters.queries.add(took);
        }
        let Some(error) = error else {
            self.peer.activity.query_ended(now);
            self.peer.activity.query_succeeded();
            return;
        };
        let settings = self.peer.settings();
        let (fault, loss) = settings.classifier.classify_query(error);
        if self.is_lost(loss) {
            if let Some(counters) = counters {
                counters.queries_lost.add_one();
            }
            if !self.link_state.is_lost() {
                self.link_state.mark_lost();
                self.peer.suspect(now);
            }
        } else {
            self.peer.activity.query_ended(now);
            if loss == Loss::Claimed {
                self.link_state.doubt_session();
            }
        }
        match fault {
            Fault::PeerNotReady => {
                self.link_state.doubt_server();
                self.peer.update(now, |peer, check_times| peer.query_refused(now, check_times));
            }
            Fault::PeerDown | Fault::Misconfigured => self.peer.suspect(now),
            // One check, however many queries fail.
            Fault::OutOfResources if self.peer.activity.shortage_begins() => self.peer.suspect(now),
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

/// Whether a query may begin PostgreSQL's COPY, which ends with a later call or never.
fn begins_copy(query: &dyn DebugQuery) -> bool {
    struct Search {
        found: bool,
    }
    impl Write for Search {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            let mut words = text.as_bytes().windows(COPY.len());
            self.found = words.any(|word| word.eq_ignore_ascii_case(COPY));
            // diesel writes the whole SQL first, and then the values, which are not needed.
            Err(fmt::Error)
        }
    }
    const COPY: &[u8] = b"copy";
    let mut search = Search { found: false };
    let _ = write!(search, "{query}");
    search.found
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
            _ => {}
        }
        self.user.on_connection_event(event);
    }
}

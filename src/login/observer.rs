//! Sees every error of a link, also of queries made through a plain `&mut MysqlConnection`: it is
//! the link's instrumentation, with the user's own behind it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use diesel::Connection;
use diesel::connection::{DynInstrumentation, Instrumentation, InstrumentationEvent};
use diesel::result::Error;

use crate::fault::Fault;
use crate::peers::activity::{Activity, LinkState};
use crate::peers::set::PeerSet;
use crate::policy::Role;

/// Where what is seen of one link goes.
#[derive(Debug, Clone)]
pub(crate) struct Watch {
    link_state: Arc<LinkState>,
    activity: Arc<Activity>,
    set: Arc<PeerSet>,
    peer: usize,
    /// Whether what is run is ours, and none of the application's business.
    hushed: Arc<AtomicBool>,
}

impl Watch {
    pub(crate) fn new(set: Arc<PeerSet>, peer: usize, activity: Arc<Activity>) -> Self {
        Self { link_state: Arc::default(), activity, set, peer, hushed: Arc::default() }
    }

    pub(crate) fn link_state(&self) -> &Arc<LinkState> {
        &self.link_state
    }

    /// Puts the observer in front of the instrumentation that diesel sets by default. The one that
    /// `establish` made cannot be taken out of the connection again, so this is a second one.
    pub(crate) fn install(&self, conn: &mut impl Connection) {
        self.install_before(DynInstrumentation::default_instrumentation(), conn);
    }

    /// Puts it in front of the user's own.
    pub(crate) fn install_before(&self, user: DynInstrumentation, conn: &mut impl Connection) {
        conn.set_instrumentation(Observer { watch: self.clone(), user });
    }

    /// Whether the application's instrumentation is spared what is run next.
    pub(crate) fn hush(&self, hushed: bool) {
        // Only read by who runs it, in this thread.
        self.hushed.store(hushed, Ordering::Relaxed);
    }

    #[expect(clippy::disallowed_methods, reason = "a query is stamped when it begins")]
    fn query_begins(&self) {
        let now = Instant::now();
        self.link_state.query_begins(now);
        self.set.query_begins();
    }

    #[expect(clippy::disallowed_methods, reason = "a query is stamped when it ends")]
    fn query_ended(&self, error: Option<&Error>) {
        let now = Instant::now();
        let took = self.link_state.query_ends(now);
        // Pings are no queries of the application's, although its instrumentation sees them.
        let counters = (!self.link_state.is_pinging()).then_some(&self.activity.counters);
        if let Some(counters) = counters {
            counters.queries.add(took);
        }
        let settings = self.set.settings();
        let (fault, is_lost) =
            error.map_or((Fault::Query, false), |error| settings.judge.of_query(error));
        if is_lost {
            if let Some(counters) = counters {
                counters.queries_lost.add_one();
            }
            if !self.link_state.is_lost() {
                self.link_state.mark_lost();
                self.set.suspect(self.peer, now);
            }
            return;
        }
        self.activity.query_ended(now);
        match fault {
            Fault::PeerNotReady => {
                self.set.update(self.peer, now, |peer, due| peer.query_refused(now, due));
            }
            Fault::PeerDown | Fault::Misconfigured => self.set.suspect(self.peer, now),
            Fault::WrongRole if settings.requirements.role == Role::ReadWrite => {
                self.set.suspect(self.peer, now);
            }
            _ => {}
        }
    }
}

/// The instrumentation that is set on every link.
pub(crate) struct Observer {
    watch: Watch,
    user: DynInstrumentation,
}

impl Observer {
    /// Whether it is there: a user may have replaced it, on the bare connection.
    pub(crate) fn is_on(conn: &mut impl Connection) -> bool {
        conn.instrumentation().is::<Self>()
    }

    /// The user's instrumentation: behind ours where `installed` is ours, else `installed` itself.
    pub(crate) fn user_of(installed: &mut dyn Instrumentation) -> &mut dyn Instrumentation {
        if !installed.is::<Self>() {
            return installed;
        }
        let observer = installed.downcast_mut::<Self>().expect("its type was just looked at");
        &mut *observer.user
    }
}

impl Instrumentation for Observer {
    fn on_connection_event(&mut self, event: InstrumentationEvent<'_>) {
        if self.watch.hushed.load(Ordering::Relaxed) {
            return;
        }
        // First, because the user's may panic.
        match &event {
            InstrumentationEvent::StartQuery { .. } => self.watch.query_begins(),
            InstrumentationEvent::FinishQuery { error, .. } => self.watch.query_ended(*error),
            _ => {}
        }
        self.user.on_connection_event(event);
    }
}

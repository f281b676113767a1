//! Sees every error of a link, also of queries made through a plain `&mut MysqlConnection`: it is
//! the link's instrumentation, with the user's own behind it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use diesel::Connection;
use diesel::connection::{DynInstrumentation, Instrumentation, InstrumentationEvent};
use diesel::result::Error;

use crate::fault::Fault;
use crate::peers::pulse::{Pulse, Vitals};
use crate::peers::set::PeerSet;
use crate::policy::Role;

/// Where what is seen of one link goes.
#[derive(Debug, Clone)]
pub(crate) struct Watch {
    vitals: Arc<Vitals>,
    pulse: Arc<Pulse>,
    set: Arc<PeerSet>,
    peer: usize,
    /// Whether what is run is ours, and none of the application's business.
    hushed: Arc<AtomicBool>,
}

impl Watch {
    pub(crate) fn new(set: Arc<PeerSet>, peer: usize, pulse: Arc<Pulse>) -> Self {
        Self { vitals: Arc::default(), pulse, set, peer, hushed: Arc::default() }
    }

    pub(crate) fn vitals(&self) -> &Arc<Vitals> {
        &self.vitals
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
        self.vitals.query_begins(now);
        self.set.query_begins();
    }

    #[expect(clippy::disallowed_methods, reason = "a query is stamped when it ends")]
    fn query_ended(&self, error: Option<&Error>) {
        let now = Instant::now();
        let took = self.vitals.query_ends(now);
        // Pings are no queries of the application's, although its instrumentation sees them.
        let tally = (!self.vitals.is_pinging()).then_some(&self.pulse.tally);
        if let Some(tally) = tally {
            tally.queries.add(took);
        }
        let rules = self.set.rules();
        let (fault, is_lost) =
            error.map_or((Fault::Query, false), |error| rules.judge.of_query(error));
        if is_lost {
            if let Some(tally) = tally {
                tally.lost.add_one();
            }
            if !self.vitals.is_lost() {
                self.vitals.lose();
                self.set.suspect(self.peer, now);
            }
            return;
        }
        self.pulse.query_ended(now);
        match fault {
            Fault::PeerNotReady => {
                self.set.update(self.peer, now, |peer, due| peer.takes_no_work(now, due));
            }
            Fault::PeerDown | Fault::Misconfigured => self.set.suspect(self.peer, now),
            Fault::WrongRole if rules.wanted.role == Role::ReadWrite => {
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

//! Sees every error of a link, also of queries made through a plain `&mut MysqlConnection`: it is
//! the link's instrumentation, with the user's own behind it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use diesel::connection::{DynInstrumentation, Instrumentation, InstrumentationEvent};

use crate::fault::{is_lost_connection, is_suspicious};
use crate::set::PeerSet;

/// What is known about one link without asking its server.
#[derive(Debug, Clone)]
pub(crate) struct Watch {
    lost: Arc<AtomicBool>,
    set: Arc<PeerSet>,
    peer: usize,
}

impl Watch {
    pub(crate) fn new(set: Arc<PeerSet>, peer: usize) -> Self {
        Self { lost: Arc::new(AtomicBool::new(false)), set, peer }
    }

    /// Whether an error on this link said that it is gone.
    pub(crate) fn is_lost(&self) -> bool {
        // Whoever asks holds the connection, so the query that set it was in this thread or
        // was handed over with the connection: no ordering beyond that is needed.
        self.lost.load(Ordering::Relaxed)
    }

    #[expect(clippy::disallowed_methods, reason = "a loss is stamped when it is seen")]
    fn note(&self, error: &diesel::result::Error) {
        if !is_suspicious(error) || self.lost.load(Ordering::Relaxed) {
            return;
        }
        self.lost.store(is_lost_connection(error), Ordering::Relaxed);
        let now = Instant::now();
        self.set.update(self.peer, now, |peer, _| {
            peer.suspect(now);
            None
        });
    }
}

/// The instrumentation that is set on every link.
pub(crate) struct Observer {
    watch: Watch,
    user: DynInstrumentation,
}

impl Observer {
    /// In front of `user`, which goes on seeing every event.
    pub(crate) fn new(watch: Watch, user: DynInstrumentation) -> Self {
        Self { watch, user }
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
        // First, because the user's may panic.
        if let InstrumentationEvent::FinishQuery { error: Some(error), .. } = &event {
            self.watch.note(error);
        }
        self.user.on_connection_event(event);
    }
}

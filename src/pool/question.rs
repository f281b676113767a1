//! Asks a resting session whether its peer answers, before a query of that peer is aborted. New logins that
//! go unanswered say nothing about sessions: a proxy queues them, or a firewall drops them.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use diesel::r2d2::R2D2Connection;

use crate::events::CloseReason;
use crate::peers::set::peer_ref::PeerRef;
use crate::pool::connection::PoolState;
use crate::pool::link::Link;

/// The name of the thread that waits for the answer. Linux shows the first 15 characters.
const THREAD_NAME: &str = "peers-ask";

/// A question to one peer.
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) peer: PeerRef,
    pub(crate) asked_at: Instant,
    /// How long the answer may take.
    pub(crate) timeout: Duration,
}

/// A borrowed link. It is given back in any case, also if no thread can be started.
struct Borrowed<C> {
    pool: Arc<PoolState<C>>,
    link: Option<Box<Link<C>>>,
    question: Question,
    has_answered: bool,
}

impl<C> Drop for Borrowed<C> {
    fn drop(&mut self) {
        if let Some(mut link) = self.link.take() {
            if !self.has_answered {
                link.guard.set_close_reason(CloseReason::Broken);
            }
            self.pool.updated_exchange().give_back(link, !self.has_answered);
        }
        let Question { peer, asked_at, .. } = &self.question;
        peer.update(now(), |peer, _| peer.question_ended(*asked_at));
    }
}

/// Pings the peer over a parked link, on a thread of its own. The answer, if there is one, counts like that of
/// any query. A link that does not answer is evicted.
pub(crate) fn ask<C: R2D2Connection + Send + 'static>(
    pool: &Arc<PoolState<C>>,
    question: Question,
) {
    let peer_id = question.peer.id;
    // A link with unread data may be lost, and a ping over a link without a known socket has no deadline.
    let link = pool
        .updated_exchange()
        .borrow(question.peer.index, |link| link.guard.peer.id == peer_id && link.is_quiet());
    // The deadline is set before the thread starts, so that the end of the pool cannot miss it.
    let end = now() + question.timeout;
    let deadline = link.as_ref().and_then(|link| link.set_deadline(end));
    let is_none = link.is_none();
    let mut borrowed = Borrowed { pool: pool.clone(), link, question, has_answered: false };
    if is_none {
        return;
    }
    let wait = move || {
        let Borrowed { link, has_answered, .. } = &mut borrowed;
        if let Some(link) = link {
            *has_answered = link.ping_unseen(now(), deadline);
            if *has_answered {
                link.guard.peer.activity.query_ended(now());
                link.set_idle(now());
            }
        }
    };
    let _ = thread::Builder::new().name(THREAD_NAME.to_owned()).spawn(wait);
}

#[expect(clippy::disallowed_methods, reason = "the time of an answer is taken here")]
fn now() -> Instant {
    Instant::now()
}

//! The *resolution* of a COMMIT without an answer: peers are asked one after the other, until one can decide.

use std::time::Instant;

use diesel::r2d2::R2D2Connection;
use log::debug;

use crate::events::log::LOG_TARGET;
use crate::pool::connection::PeerConnection;
use crate::redact::on_one_line;
use crate::transaction::deadline::Deadline;
use crate::transaction::ledger::{Decision, Entry};
use crate::transaction::outcome::{Doubt, DoubtReason, Verdict};
use crate::transaction::session::TransactionSession;

/// Decides about a COMMIT without an answer, if the transaction has recorded an entry. With `elsewhere` the first
/// connection is not asked. If a try fails, the orphaned session of the transaction is terminated. The outcome stays
/// unknown if the deadline is over before.
#[expect(clippy::disallowed_methods, reason = "the time of a checkout is taken here")]
pub(super) fn resolve<C: R2D2Connection + Send + 'static>(
    conn: &mut PeerConnection<C>,
    mut doubt: Doubt,
    orphan: Option<&TransactionSession>,
    mut elsewhere: bool,
    deadline: Deadline,
) -> Verdict {
    let Some(entry) = doubt.entry.clone() else { return Verdict::Unknown(doubt) };
    let mut tries = 0_u32;
    let mut terminates_first = false;
    // The peers that could not decide. They are asked again when all others were.
    let mut asked = Vec::new();
    loop {
        let mut changed = if elsewhere { conn.change_link(&asked, Instant::now) } else { Ok(()) };
        if changed.is_err() && !asked.is_empty() {
            asked.clear();
            changed = conn.change_link(&asked, Instant::now);
        }
        let peer = changed.is_ok().then(|| conn.link().guard.peer.id);
        let decided = changed.and_then(|()| {
            deadline.bound_try(conn, tries, |conn| {
                try_to_decide(conn, &entry, orphan, &mut terminates_first)
            })
        });
        elsewhere = decided != Ok(Decision::Again);
        asked.extend(peer.filter(|_| elsewhere));
        match decided {
            Ok(Decision::Committed) => return Verdict::Committed,
            Ok(Decision::Aborted) => return Verdict::Aborted,
            Ok(Decision::Unknown(reason)) => {
                doubt.reason = reason;
                return Verdict::Unknown(doubt);
            }
            Ok(Decision::OtherHistory) => doubt.reason = DoubtReason::OtherHistory,
            Ok(Decision::Again | Decision::Standby) => {}
            Err(error) => {
                debug!(target: LOG_TARGET, "a COMMIT is not resolved yet: {error}");
                doubt.reason = DoubtReason::CommitUnanswered;
                doubt.unresolved = Some(error.into());
            }
        }
        tries = tries.saturating_add(1);
        if deadline.pause(tries, &conn.pool.set).is_none() {
            return Verdict::Unknown(doubt);
        }
    }
}

/// Asks the peer of this connection. After an error the session of the transaction is terminated, as it may hold the
/// lock for which this has waited. If the try was aborted, that is left to the next one.
fn try_to_decide<C: R2D2Connection + Send + 'static>(
    conn: &mut PeerConnection<C>,
    entry: &Entry,
    orphan: Option<&TransactionSession>,
    terminates_first: &mut bool,
) -> Result<Decision, String> {
    if let Some(orphan) = orphan.filter(|_| *terminates_first) {
        orphan.terminate(conn);
    }
    let decided = entry.decide(conn);
    if let (Some(orphan), Err(_)) = (orphan, &decided) {
        *terminates_first = conn.link_mut().is_broken();
        orphan.terminate(conn);
    }
    decided.map_err(|error| on_one_line(&error.to_string()))
}

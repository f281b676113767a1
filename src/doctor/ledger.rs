//! Verifies that the ledger of the pool can be used on a peer.

use diesel::r2d2::R2D2Connection;
use diesel::result::Error;

use super::collect::FactRecorder;
use super::fact::{Aspect, FactValue};
use crate::fault::LoginFailure;
use crate::settings::ledger::Ledger;

/// The step of the examination, as in "the peer did not ... within `connect_timeout`".
const STEP: &str = "verify the ledger";

/// Records the history of the ledger on this peer, or why it cannot be used.
///
/// # Errors
///
/// If the connection is lost.
pub(super) fn examine<C: R2D2Connection + 'static>(
    ledger: &Ledger,
    conn: &mut C,
    recorder: &FactRecorder<'_>,
) -> Result<(), LoginFailure> {
    recorder.peer_progress.begin_step(STEP);
    match ledger.inspect(conn) {
        Err(Error::QueryBuilderError(flaw)) => {
            let flaw = recorder.url.redact(&flaw.to_string());
            recorder.peer_progress.record_ledger_flaw(flaw);
            Ok(())
        }
        found => {
            let value = |history: Option<String>| history.map_or(FactValue::None, FactValue::Text);
            recorder.record(Aspect::LedgerHistory, found.map(|history| Some(value(history))))
        }
    }
}

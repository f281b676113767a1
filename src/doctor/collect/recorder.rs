//! Records the results of queries as facts of a peer.

use diesel::result::{Error, QueryResult};

use crate::doctor::fact::{Aspect, FactValue};
use crate::doctor::progress::PeerProgress;
use crate::fault::LoginFailure;
use crate::fault::{FailureCause, Fault};
use crate::url::PeerUrl;

/// Records the results of queries as facts of one peer.
pub(in crate::doctor) struct FactRecorder<'a> {
    pub(in crate::doctor) peer_progress: &'a PeerProgress,
    pub(in crate::doctor) url: &'a PeerUrl,
}

impl FactRecorder<'_> {
    /// Records the result of a query for one aspect, and [`FactValue::Unknown`] if the query failed.
    ///
    /// # Errors
    ///
    /// If the connection is lost, which ends the examination.
    pub(in crate::doctor) fn record(
        &self,
        aspect: Aspect,
        result: QueryResult<Option<FactValue>>,
    ) -> Result<(), LoginFailure> {
        match result {
            Ok(Some(value)) => self.peer_progress.record_fact(aspect, value),
            Ok(None) => {}
            Err(error) => {
                let reason = self.query_failure(&error)?;
                self.peer_progress.record_fact(aspect, FactValue::Unknown(reason));
            }
        }
        Ok(())
    }

    /// Records the result of one query for several aspects, and [`FactValue::Unknown`] for each of them
    /// if the query failed.
    ///
    /// # Errors
    ///
    /// If the connection is lost, which ends the examination.
    pub(in crate::doctor) fn record_all<T>(
        &self,
        aspects: &[Aspect],
        result: QueryResult<T>,
        facts: impl FnOnce(T) -> Vec<(Aspect, FactValue)>,
    ) -> Result<(), LoginFailure> {
        match result {
            Ok(result) => {
                for (aspect, value) in facts(result) {
                    self.peer_progress.record_fact(aspect, value);
                }
            }
            Err(error) => {
                let reason = self.query_failure(&error)?;
                for aspect in aspects {
                    let unknown = FactValue::Unknown(reason.clone());
                    self.peer_progress.record_fact(*aspect, unknown);
                }
            }
        }
        Ok(())
    }

    /// Returns the text of a query's error, without secrets.
    ///
    /// # Errors
    ///
    /// If the error means that the connection is lost.
    fn query_failure(&self, error: &Error) -> Result<String, LoginFailure> {
        let text = self.url.redact(&error.to_string());
        match Fault::of(error) {
            Fault::ConnectionLost => {
                Err(LoginFailure::from_cause(FailureCause::new(Fault::ConnectionLost, text), None))
            }
            _ => Ok(text),
        }
    }
}

//! Asking one peer, and writing down what it says.

use diesel::result::{Error, QueryResult};

use crate::doctor::fact::{Aspect, Value};
use crate::doctor::progress::PeerProgress;
use crate::fault::{Fault, Refusal};
use crate::login::bounded::LoginFailure;
use crate::url::PeerUrl;

/// Asks one peer, and writes down what it says.
pub(in crate::doctor) struct Asker<'a> {
    pub(in crate::doctor) peer_progress: &'a PeerProgress,
    pub(in crate::doctor) url: &'a PeerUrl,
}

impl Asker<'_> {
    /// What cannot be asked is not known. That the connection is lost ends the examination.
    pub(in crate::doctor) fn put(
        &self,
        aspect: Aspect,
        answer: QueryResult<Option<Value>>,
    ) -> Result<(), LoginFailure> {
        match answer {
            Ok(Some(value)) => self.peer_progress.put(aspect, value),
            Ok(None) => {}
            Err(error) => self.peer_progress.put(aspect, Value::Unknown(self.said(&error)?)),
        }
        Ok(())
    }

    /// As [`put`](Self::put), of what is asked for together.
    pub(in crate::doctor) fn put_all<T>(
        &self,
        aspects: &[Aspect],
        answer: QueryResult<T>,
        told: impl FnOnce(T) -> Vec<(Aspect, Value)>,
    ) -> Result<(), LoginFailure> {
        match answer {
            Ok(answer) => {
                for (aspect, value) in told(answer) {
                    self.peer_progress.put(aspect, value);
                }
            }
            Err(error) => {
                let reason = self.said(&error)?;
                for aspect in aspects {
                    self.peer_progress.put(*aspect, Value::Unknown(reason.clone()));
                }
            }
        }
        Ok(())
    }

    /// An error as it can be shown, if it is only the query's.
    fn said(&self, error: &Error) -> Result<String, LoginFailure> {
        let text = self.url.redact(&error.to_string());
        match Fault::of(error) {
            Fault::ConnectionLost => {
                Err(LoginFailure::from_refusal(Refusal::new(Fault::ConnectionLost, text)))
            }
            _ => Ok(text),
        }
    }
}

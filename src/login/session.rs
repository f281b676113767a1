//! Logs in to one peer, and prepares and tests the new connection. Runs on the login's own thread.

use std::cell::Cell;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use diesel::ConnectionError;
use diesel::connection::CacheSize;
use diesel::r2d2::R2D2Connection;
use diesel::result::{Error, QueryResult};
use rand::rngs::SmallRng;
use rand::{Rng, RngExt};

use crate::fault::host::Lack;
use crate::fault::{Classifier, FailureCause, Fault, LoginFailure, Loss};
use crate::login::address;
use crate::login::bounded::LoginProgress;
use crate::login::observer::{LinkMonitor, Observer};
use crate::login::readiness::{self, NotReady};
use crate::panics::catch_panic;
use crate::peers::set::peer_ref::PeerRef;
use crate::redact::on_one_line;
use crate::settings::policy::{Requirements, StatementCache};
use crate::socket::{Proof, Socket};
use crate::url::dialect::Dialect;
use crate::url::{CredentialsProvider, PeerUrl};

/// A closure of the application that runs on each new connection before the connection is used.
pub(crate) type ConnectionHook<C> = dyn Fn(&mut C) -> QueryResult<()> + Send + Sync;

/// The closures of the application that take part in a login.
pub(crate) struct Hooks<C> {
    /// The health check that a peer has to pass.
    pub(crate) health_check: Option<Box<ConnectionHook<C>>>,
    pub(crate) on_connect: Option<Box<ConnectionHook<C>>>,
    /// Provides the credentials that replace those in the URL.
    pub(crate) credentials_provider: Option<Box<CredentialsProvider>>,
}

/// The parameters of one login.
pub(crate) struct Login<C> {
    peer: PeerRef,
    url: Arc<PeerUrl>,
    hooks: Arc<Hooks<C>>,
    rng: SmallRng,
}

/// A failed login, with its connection if one was established.
struct FailedLogin<C> {
    conn: Option<C>,
    failure: LoginFailure,
    /// Whether the server has let us in, and another login may succeed: the session was lost, or it gave up
    /// because of other transactions.
    is_transient: bool,
}

impl<C> FailedLogin<C> {
    /// Closes the connection, and returns the failure.
    fn close(self) -> LoginFailure {
        // The destructor of a user-defined connection type is user code.
        let _ = catch_panic(|| drop(self.conn));
        self.failure
    }
}

/// A connection to a peer that accepts our login, for an examination of the peer.
#[cfg(feature = "doctor")]
pub(crate) struct Inspection<C> {
    pub(crate) url: Arc<PeerUrl>,
    /// The connection. The application's instrumentation sees none of its queries.
    pub(crate) conn: C,
    /// The reason why the pool would not use the peer, if there is one.
    pub(crate) failure: Option<LoginFailure>,
}

/// A new connection whose queries are observed.
#[derive(Debug)]
pub(crate) struct Session<C> {
    pub(crate) conn: C,
    pub(crate) monitor: LinkMonitor,
}

impl<C: R2D2Connection + 'static> Login<C> {
    pub(crate) fn new(peer: PeerRef, hooks: Arc<Hooks<C>>) -> Self {
        let (url, rng) = (peer.read(|peer| peer.url.clone()), peer.set.rng());
        Self { peer, url, hooks, rng }
    }

    /// Logs in, finds the connection's socket, and prepares the connection.
    ///
    /// # Errors
    ///
    /// Returns the reason why the peer cannot be used, without its URL or password.
    pub(crate) fn open(mut self, progress: &LoginProgress) -> Result<Session<C>, LoginFailure> {
        let url = self.url()?;
        self.prepare(&url, progress, false).map_err(FailedLogin::close)
    }

    /// Does the same as [`check`](Self::check), but keeps the connection, even if the pool would not use
    /// the peer.
    #[cfg(feature = "doctor")]
    pub(crate) fn inspect(
        mut self,
        progress: &LoginProgress,
    ) -> Result<Inspection<C>, LoginFailure> {
        let url = self.url()?;
        match self.prepare(&url, progress, true) {
            Ok(Session { conn, .. }) => Ok(Inspection { url, conn, failure: None }),
            Err(FailedLogin { conn: Some(conn), failure, .. }) => {
                Ok(Inspection { url, conn, failure: Some(failure) })
            }
            Err(FailedLogin { conn: None, failure, .. }) => Err(failure),
        }
    }

    /// Does the same as [`open`](Self::open), for a health check, and closes the connection.
    pub(crate) fn check(mut self, progress: &LoginProgress) -> Result<(), LoginFailure> {
        let url = self.url()?;
        let session = self.prepare(&url, progress, true).map_err(FailedLogin::close)?;
        run_redacted(
            &url,
            |_: &Error| Fault::PeerDown,
            || {
                drop(session);
                Ok(())
            },
        )
    }

    /// Returns the peer's URL, with the credentials that the application provides for this login.
    fn url(&self) -> Result<Arc<PeerUrl>, LoginFailure> {
        let Some(provide) = &self.hooks.credentials_provider else {
            return Ok(self.url.clone());
        };
        let get = || provide(&self.peer.name).map_err(|error| format!("no credentials: {error}"));
        // An application that cannot provide credentials says nothing about the peer.
        let not_attempted =
            |failure: LoginFailure| LoginFailure::NotAttempted(failure.to_string().into());
        let given =
            run_redacted(&self.url, |_| Fault::Misconfigured, get).map_err(not_attempted)?;
        let url = self.url.with_credentials(&given);
        url.map(Arc::new)
            .map_err(|flaw| LoginFailure::NotAttempted(format!("the URL {flaw}").into()))
    }

    /// Prepares a connection. If the server lets us in and the session is lost then, that is repeated at once,
    /// once: behind a proxy, the session may have got a connection to the server that was dead already,
    /// which says nothing about the next one. The same applies to a session that gives up because of other
    /// transactions: several connections that set up the same SQLite file lock it for each other.
    fn prepare(
        &mut self,
        url: &Arc<PeerUrl>,
        progress: &LoginProgress,
        is_check: bool,
    ) -> Result<Session<C>, FailedLogin<C>> {
        match self.prepare_once(url, progress, is_check) {
            Err(failed) if failed.is_transient && !progress.is_aborted() => {
                progress.run_other_code(|| failed.close());
                self.prepare_once(url, progress, is_check)
            }
            outcome => outcome,
        }
    }

    /// Establishes a connection, finds its socket, and runs the tests and closures of a login. With
    /// `is_check`, the application's instrumentation sees none of its queries.
    fn prepare_once(
        &mut self,
        url: &Arc<PeerUrl>,
        progress: &LoginProgress,
        is_check: bool,
    ) -> Result<Session<C>, FailedLogin<C>> {
        let dialect = Dialect::for_connection::<C>();
        let turn = self.peer.activity.address_turn();
        let url = &*address::url_for_turn(url, dialect, turn);
        let before = progress.begin_login(url.port(dialect));
        let settings = self.peer.settings();
        let classifier = &settings.classifier;
        let (is_let_in, is_transient) = (Cell::new(false), Cell::new(false));
        let note = |fault: Fault, error: &Error| {
            is_let_in.set(true);
            let loss = classifier.classify_query(error).1;
            let is_loss = fault == Fault::PeerDown && loss != Loss::No;
            is_transient.set(is_loss || fault == Fault::Retryable);
            fault
        };
        let fault_of_login = |error: &ConnectionError| {
            let fault = classifier.classify_login(error);
            match error {
                // The first queries on a new connection are diesel's own.
                ConnectionError::CouldntSetupConfiguration(error) => note(fault, error),
                _ => fault,
            }
        };
        let fault_of_preparation = |not_ready: &NotReady| match not_ready {
            NotReady::State(fault, _) => *fault,
            NotReady::Query(error) => note(classifier.classify_preparation(error), error),
        };
        let established =
            run_redacted(url, fault_of_login, || C::establish(&url.for_login(dialect)));
        let mut conn = match established {
            Ok(conn) => conn,
            Err(failure) => {
                let failure = if is_let_in.get() { failure.of_session() } else { failure };
                return Err(FailedLogin { conn: None, failure, is_transient: is_transient.get() });
            }
        };
        if settings.statement_cache == StatementCache::Disabled {
            conn.set_prepared_statement_cache_size(CacheSize::Disabled);
        }
        let monitor = LinkMonitor::new(self.peer.clone());
        let prepared = run_redacted(url, fault_of_preparation, || {
            progress.run_other_code(|| monitor.install(&mut conn));
            // The following queries are not the application's, so its instrumentation must not see them.
            monitor.set_muted(true);
            // Over a Unix socket, a TCP socket with the same traffic belongs to a relay inside this process. A
            // check without closures ends inside the client library, where its socket is known without a
            // proof.
            let Hooks { health_check, on_connect, .. } = &*self.hooks;
            let is_short = is_check && health_check.is_none() && on_connect.is_none();
            let needs_no_proof = is_short || url.is_unix_socket(dialect);
            let proof = if needs_no_proof { None } else { Proof::begin(&before) };
            // SQLite reads its schema for any SELECT, and another connection may have locked that.
            let may_be_proxied = matches!(dialect, Dialect::MySql | Dialect::Postgres);
            let socket = if proof.is_some() || may_be_proxied {
                select(&mut conn, proof, &mut self.rng, classifier)?
            } else {
                None
            };
            let encrypted = url.requires_encryption();
            readiness::test(&mut conn, Requirements { encrypted, ..settings.requirements })?;
            progress.end_login(socket.clone());
            if let Some(socket) = socket {
                socket.tune(settings.tuning(url.libpq_tuning(dialect)));
                monitor.link_state().set_socket(socket);
            }
            health_check.as_ref().map_or(Ok(()), |test| test(&mut conn))?;
            monitor.set_muted(is_check);
            on_connect.as_ref().map_or(Ok(()), |prepare| prepare(&mut conn))?;
            if !Observer::is_installed(&mut conn) {
                monitor.install(&mut conn);
            }
            Ok(())
        });
        match prepared {
            Ok(()) => Ok(Session { conn, monitor }),
            Err(failure) => Err(FailedLogin {
                conn: Some(conn),
                failure: failure.of_session(),
                is_transient: is_transient.get(),
            }),
        }
    }
}

/// The number of queries that prove which socket belongs to the connection. A connection over a Unix
/// socket must not be mistaken for a TCP connection that another thread opens and proves at the same
/// time, so one query is not enough.
const PROOF_QUERIES: usize = 3;

/// Each proof query is longer than the one before by a random number of steps. A step is the block
/// length of a cipher.
const PROOF_STEP: u64 = 16;
const PROOF_STEPS: RangeInclusive<u64> = 1..=128;

/// Runs `SELECT 1`, which a proxy may send to another server than a transaction. With a proof, this is repeated,
/// and the connection's TCP socket is returned, if the connection has one and there is no doubt which it is.
///
/// # Errors
///
/// Returns the error of a query that concerns the connection or the peer. A database that does not know the
/// query is no reason against a peer.
fn select<C: R2D2Connection>(
    conn: &mut C,
    proof: Option<Proof>,
    rng: &mut impl Rng,
    classifier: &Classifier,
) -> QueryResult<Option<Arc<Socket>>> {
    let mut run = |query: &str| match catch_panic(|| conn.batch_execute(query)) {
        Ok(Err(error)) if classifier.classify_query(&error).0 != Fault::Query => Err(error),
        answer => Ok(matches!(answer, Ok(Ok(())))),
    };
    let Some(mut proof) = proof else { return run("SELECT 1").map(|_| None) };
    let mut length = 0;
    let lengths = [(); PROOF_QUERIES].map(|()| {
        length += PROOF_STEP * rng.random_range(PROOF_STEPS);
        length
    });
    for length in lengths {
        let padding = "x".repeat(usize::try_from(length).expect("the query is short"));
        if !run(&format!("SELECT 1 /*{padding}*/"))? {
            return Ok(None);
        }
        proof.query_answered();
    }
    Ok(proof.end(&lengths).map(Arc::new))
}

/// Runs `work`, and converts its error or its panic into a failure whose text contains no secrets.
fn run_redacted<T, E: fmt::Display>(
    url: &PeerUrl,
    fault: impl FnOnce(&E) -> Fault,
    work: impl FnOnce() -> Result<T, E>,
) -> Result<T, LoginFailure> {
    let (fault, text) = match catch_panic(work) {
        Ok(Ok(done)) => return Ok(done),
        Ok(Err(error)) => (fault(&error), error.to_string()),
        Err(panicked) => (Fault::PeerDown, panicked.to_string()),
    };
    let cause = FailureCause::new(fault, on_one_line(&url.redact(&text)));
    Err(LoginFailure::from_cause(cause, Lack::from_text(&on_one_line(&text))))
}

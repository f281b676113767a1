//! Logging in to one peer: what runs on a helper's thread.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use diesel::r2d2::R2D2Connection;
use diesel::result::{Error, QueryResult};
use rand::rngs::SmallRng;
use rand::{Rng, RngExt};

use crate::fault::{Fault, Refusal};
use crate::login::bounded::{LoginFailure, Progress};
use crate::login::observer::{Observer, Watch};
use crate::login::readiness::{self, Unready};
use crate::login::socket::{Proof, Socket, Sockets};
use crate::panics::catch_panic;
use crate::peers::activity::Activity;
use crate::peers::set::PeerSet;
use crate::policy::Requirements;
use crate::url::{CredentialsProvider, PeerUrl};

/// What the application does with each new connection before it is used.
pub(crate) type OnConnect<C> = dyn Fn(&mut C) -> QueryResult<()> + Send + Sync;

/// Where a login is the application's to decide.
pub(crate) struct Hooks<C> {
    /// What a peer has to pass.
    pub(crate) health_check: Box<OnConnect<C>>,
    pub(crate) on_connect: Box<OnConnect<C>>,
    /// Who logs in, where the URL does not tell.
    pub(crate) credentials: Option<Box<CredentialsProvider>>,
}

/// One login to be made.
pub(crate) struct Login<C> {
    pub(crate) set: Arc<PeerSet>,
    pub(crate) peer: usize,
    pub(crate) activity: Arc<Activity>,
    pub(crate) url: Arc<PeerUrl>,
    pub(crate) hooks: Arc<Hooks<C>>,
    pub(crate) rng: SmallRng,
}

/// A login that came to nothing, with its connection where it got that far.
struct Unfit<C> {
    conn: Option<C>,
    reason: LoginFailure,
}

impl<C> Unfit<C> {
    fn close(self) -> LoginFailure {
        // A destructor is user code, where the connection's type is.
        let _ = catch_panic(|| drop(self.conn));
        self.reason
    }
}

/// A peer that lets us in, whether or not it is to be used.
#[cfg(feature = "cli")]
pub(crate) struct Look<C> {
    pub(crate) url: Arc<PeerUrl>,
    /// None of its queries are the application's.
    pub(crate) conn: C,
    /// Why it is not to be used.
    pub(crate) unfit: Option<LoginFailure>,
}

/// A connection that was just made, and is observed.
#[derive(Debug)]
pub(crate) struct Session<C> {
    pub(crate) conn: C,
    pub(crate) watch: Watch,
}

impl<C: R2D2Connection + 'static> Login<C> {
    /// Logs in, finds the connection's socket, and prepares the connection.
    ///
    /// # Errors
    ///
    /// Why the peer is not to be used, without its URL or password.
    pub(crate) fn make(self, progress: &Progress) -> Result<Session<C>, LoginFailure> {
        let url = self.url()?;
        self.prepare(&url, progress, false).map_err(Unfit::close)
    }

    /// As [`check`](Self::check), and keeps the connection, also of a peer that is not to be used.
    #[cfg(feature = "cli")]
    pub(crate) fn look(self, progress: &Progress) -> Result<Look<C>, LoginFailure> {
        let url = self.url()?;
        match self.prepare(&url, progress, true) {
            Ok(Session { conn, .. }) => Ok(Look { url, conn, unfit: None }),
            Err(Unfit { conn: Some(conn), reason }) => Ok(Look { url, conn, unfit: Some(reason) }),
            Err(Unfit { conn: None, reason }) => Err(reason),
        }
    }

    /// As [`make`](Self::make), and closes the connection.
    pub(crate) fn check(self, progress: &Progress) -> Result<(), LoginFailure> {
        let url = self.url()?;
        let session = self.prepare(&url, progress, true).map_err(Unfit::close)?;
        reasoned(
            &url,
            |_: &Error| Fault::PeerDown,
            || {
                drop(session);
                Ok(())
            },
        )
    }

    /// The peer's URL, with the credentials that the application gives for this login.
    fn url(&self) -> Result<Arc<PeerUrl>, LoginFailure> {
        let Some(credentials) = &self.hooks.credentials else {
            return Ok(self.url.clone());
        };
        let name = self.set.read(|peers| peers[self.peer].name.clone());
        let ask = || credentials(&name).map_err(|error| format!("no credentials: {error}"));
        // That the application does not know them says nothing about the peer.
        let here = |failure: LoginFailure| LoginFailure::NotAttempted(failure.to_string().into());
        let given = reasoned(&self.url, |_| Fault::Misconfigured, ask).map_err(here)?;
        let url = self.url.with_credentials(&given);
        url.map(Arc::new)
            .map_err(|flaw| LoginFailure::NotAttempted(format!("the URL {flaw}").into()))
    }

    /// `is_check`: none of its queries are the application's.
    fn prepare(
        mut self,
        url: &PeerUrl,
        progress: &Progress,
        is_check: bool,
    ) -> Result<Session<C>, Unfit<C>> {
        let before = progress.logs_in();
        let settings = self.set.settings();
        let judge = &settings.judge;
        let mut conn = reasoned(url, |error| judge.of_login(error), || C::establish(url.expose()))
            .map_err(|reason| Unfit { conn: None, reason })?;
        let watch = Watch::new(self.set.clone(), self.peer, self.activity);
        let of_first_queries = |unready: &Unready| match unready {
            Unready::Says(fault, _) => *fault,
            Unready::Query(error) => match judge.of_query(error).0 {
                Fault::Query | Fault::ConnectionLost => Fault::PeerDown,
                fault => fault,
            },
        };
        let prepared = reasoned(url, of_first_queries, || {
            progress.aside(|| watch.install(&mut conn));
            // These are not the application's queries: its instrumentation is spared them.
            watch.hush(true);
            let socket = find_socket(&before, &mut conn, &mut self.rng);
            let encrypted = url.requires_encryption();
            readiness::check(&mut conn, Requirements { encrypted, ..settings.requirements })?;
            progress.logged_in(socket.clone());
            if let Some(socket) = socket {
                socket.tune(settings.tuning);
                watch.link_state().set_socket(socket);
            }
            (self.hooks.health_check)(&mut conn)?;
            watch.hush(is_check);
            (self.hooks.on_connect)(&mut conn)?;
            if !Observer::is_on(&mut conn) {
                watch.install(&mut conn);
            }
            Ok(())
        });
        match prepared {
            Ok(()) => Ok(Session { conn, watch }),
            Err(reason) => Err(Unfit { conn: Some(conn), reason }),
        }
    }
}

/// How many queries prove which socket is the connection's, and how long they are: of lengths by
/// chance, each longer than the one before, in steps of a cipher's block. A connection over a Unix
/// socket must not be taken for one over TCP that is made at the same time and proved in the same way,
/// hence how many there are.
const PROOFS: usize = 3;
const STEP: u64 = 16;
const STEPS: RangeInclusive<u64> = 1..=128;

/// The connection's TCP socket, if it has one and it is certain which one it is.
fn find_socket<C: R2D2Connection>(
    before: &Sockets,
    conn: &mut C,
    rng: &mut impl Rng,
) -> Option<Arc<Socket>> {
    let mut proof = Proof::begin(before)?;
    let mut length = 0;
    let lengths = [(); PROOFS].map(|()| {
        length += STEP * rng.random_range(STEPS);
        length
    });
    for length in lengths {
        let padding = "x".repeat(usize::try_from(length).expect("it is short"));
        catch_panic(|| conn.batch_execute(&format!("SELECT 1 /*{padding}*/"))).ok()?.ok()?;
        proof.query_answered();
    }
    proof.end(&lengths).map(Arc::new)
}

/// Runs `work`, and turns its error, or its panic, into a failure that can be shown.
fn reasoned<T, E: fmt::Display>(
    url: &PeerUrl,
    fault: impl FnOnce(&E) -> Fault,
    work: impl FnOnce() -> Result<T, E>,
) -> Result<T, LoginFailure> {
    let (fault, text) = match catch_panic(work) {
        Ok(Ok(done)) => return Ok(done),
        Ok(Err(error)) => (fault(&error), error.to_string()),
        Err(panicked) => (Fault::PeerDown, panicked.to_string()),
    };
    let text = url.redact(&text);
    // On one line: libpq's messages are several.
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    Err(LoginFailure::said(Refusal::new(fault, lines.join(", "))))
}

//! A backend that a test controls: servers that are only a few switches and counters, and a diesel
//! connection to them. Assertions about it are exact, and take no time.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use diesel::connection::{
    AnsiTransactionManager, CacheSize, Connection, ConnectionSealed, DynInstrumentation,
    Instrumentation, InstrumentationEvent, SimpleConnection, StrQueryHelper, TransactionManager,
};
use diesel::query_builder::{QueryFragment, QueryId};
use diesel::r2d2::R2D2Connection;
use diesel::result::{ConnectionError, ConnectionResult, DatabaseErrorKind, Error, QueryResult};
use diesel::sqlite::Sqlite;
use diesel_peers::PeerManagerBuilder;

use super::backend::manager_of;

static SERVERS: Mutex<Option<HashMap<String, Arc<Server>>>> = Mutex::new(None);
static NEXT: AtomicUsize = AtomicUsize::new(0);

fn servers() -> MutexGuard<'static, Option<HashMap<String, Arc<Server>>>> {
    SERVERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A gate that blocks those who pass it while it is closed.
#[derive(Debug, Default)]
pub(super) struct Gate {
    closed: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    pub(super) fn close(&self, close: bool) {
        *self.closed.lock().unwrap_or_else(PoisonError::into_inner) = close;
        self.changed.notify_all();
    }

    pub(super) fn pass(&self) {
        let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_while(closed, |closed| *closed));
    }
}

/// Several scripted servers: the peers `peer0`, `peer1` and so on of a manager.
#[derive(Debug)]
pub struct Servers(Vec<Arc<Server>>);

impl Servers {
    /// Starts this number of servers.
    pub fn start(servers: usize) -> Self {
        Self((0..servers).map(|_| Server::start()).collect())
    }

    /// Starts building a manager over these servers.
    pub fn builder(&self) -> PeerManagerBuilder<ScriptedConnection> {
        manager_of(self.0.iter().map(|server| server.url()))
    }
}

impl Deref for Servers {
    type Target = [Arc<Server>];

    fn deref(&self) -> &[Arc<Server>] {
        &self.0
    }
}

/// A scripted server. It accepts connections and works until a test changes that.
#[derive(Debug)]
pub struct Server {
    url: String,
    accepts: AtomicBool,
    /// The error of a refused login, instead of the usual one.
    refusal: Mutex<Option<&'static str>>,
    works: AtomicBool,
    panics: AtomicBool,
    /// The number of next sessions that are cut off as soon as they have begun.
    stale: AtomicUsize,
    logins_gate: Gate,
    /// The number of times that all sessions were cut off. Sessions of an earlier generation are dead.
    generation: AtomicUsize,
    open: AtomicUsize,
    most_open: AtomicUsize,
    logins: AtomicUsize,
    queries: AtomicUsize,
    begins: AtomicUsize,
    rollbacks: AtomicUsize,
}

impl Server {
    /// Starts a server whose URL, with the password in it, is unique.
    pub fn start() -> Arc<Self> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self::start_at(format!("scripted://app:s3cret-{number}@server{number}"))
    }

    /// Starts a server with this URL.
    pub fn start_at(url: String) -> Arc<Self> {
        let server = Arc::new(Self {
            url,
            accepts: AtomicBool::new(true),
            refusal: Mutex::default(),
            works: AtomicBool::new(true),
            panics: AtomicBool::new(false),
            stale: AtomicUsize::new(0),
            logins_gate: Gate::default(),
            generation: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            most_open: AtomicUsize::new(0),
            logins: AtomicUsize::new(0),
            queries: AtomicUsize::new(0),
            begins: AtomicUsize::new(0),
            rollbacks: AtomicUsize::new(0),
        });
        servers().get_or_insert_default().insert(server.url.clone(), server.clone());
        server
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Sets whether new connections are accepted. Open sessions go on either way, as with a paused proxy.
    pub fn accept(&self, accepts: bool) {
        *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.accepts.store(accepts, Ordering::SeqCst);
    }

    /// Has logins fail with this error.
    pub fn fail_logins_with(&self, error: &'static str) {
        self.accept(false);
        *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    /// Sets whether transactions can begin. A Galera node that is not ready refuses them, but accepts
    /// logins and answers pings.
    pub fn work(&self, works: bool) {
        self.works.store(works, Ordering::SeqCst);
    }

    /// Sets whether a login panics instead of returning.
    pub fn panic_at_login(&self, panics: bool) {
        self.panics.store(panics, Ordering::SeqCst);
    }

    /// Cuts off this number of next sessions as soon as they have begun, as a proxy does that has dead
    /// connections to its server in its own pool.
    pub fn cut_off_next(&self, sessions: usize) {
        self.stale.store(sessions, Ordering::SeqCst);
    }

    /// Sets whether logins are held back.
    pub fn hold_logins(&self, hold: bool) {
        self.logins_gate.close(hold);
    }

    /// Cuts every session off.
    pub fn cut_off(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    /// Simulates a crash: no connection is accepted, and every session is cut off.
    pub fn crash(&self) {
        self.accept(false);
        self.cut_off();
    }

    /// Returns the number of open sessions.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// Returns the highest number of sessions that were open at the same time.
    pub fn most_open(&self) -> usize {
        self.most_open.load(Ordering::SeqCst)
    }

    /// Returns the number of attempted logins, successful or not.
    pub fn logins(&self) -> usize {
        self.logins.load(Ordering::SeqCst)
    }

    /// Returns the number of executed statements, without pings and transactions.
    pub fn queries(&self) -> usize {
        self.queries.load(Ordering::SeqCst)
    }

    /// Returns the number of `ROLLBACK` statements.
    pub fn rollbacks(&self) -> usize {
        self.rollbacks.load(Ordering::SeqCst)
    }

    /// Returns the number of `BEGIN` statements, successful or not.
    pub fn begins(&self) -> usize {
        self.begins.load(Ordering::SeqCst)
    }
}

/// A diesel connection to a [`Server`].
pub struct ScriptedConnection {
    server: Arc<Server>,
    generation: usize,
    instrumentation: DynInstrumentation,
    transactions: AnsiTransactionManager,
}

impl ScriptedConnection {
    /// Returns the URL of the connection's server.
    pub fn url(&self) -> &str {
        &self.server.url
    }

    /// Runs `statement` on the server, between the two calls of diesel's instrumentation.
    fn run(
        &mut self,
        statement: &str,
        counter: Option<fn(&Server) -> &AtomicUsize>,
    ) -> QueryResult<()> {
        let query = StrQueryHelper::new(statement);
        self.instrumentation.on_connection_event(InstrumentationEvent::start_query(&query));
        let outcome = self.answer(statement, counter);
        let error = outcome.as_ref().err();
        self.instrumentation.on_connection_event(InstrumentationEvent::finish_query(&query, error));
        outcome
    }

    fn answer(
        &self,
        statement: &str,
        counter: Option<fn(&Server) -> &AtomicUsize>,
    ) -> QueryResult<()> {
        let refusal = |text: &str| {
            Error::DatabaseError(DatabaseErrorKind::Unknown, Box::new(text.to_owned()))
        };
        if self.generation != self.server.generation.load(Ordering::SeqCst) {
            return Err(refusal("Lost connection to server during query"));
        }
        if let Some(counter) = counter {
            counter(&self.server).fetch_add(1, Ordering::SeqCst);
        }
        if statement == "BEGIN" && !self.server.works.load(Ordering::SeqCst) {
            return Err(refusal("WSREP has not yet prepared node for application use"));
        }
        Ok(())
    }
}

impl Drop for ScriptedConnection {
    fn drop(&mut self) {
        self.server.open.fetch_sub(1, Ordering::SeqCst);
    }
}

impl ConnectionSealed for ScriptedConnection {}

impl SimpleConnection for ScriptedConnection {
    fn batch_execute(&mut self, query: &str) -> QueryResult<()> {
        match query {
            "BEGIN" => self.run(query, Some(|server| &server.begins)),
            "ROLLBACK" => self.run(query, Some(|server| &server.rollbacks)),
            "COMMIT" => self.run(query, None),
            _ => self.run(query, Some(|server| &server.queries)),
        }
    }
}

impl Connection for ScriptedConnection {
    // Any backend works, as no query is ever built into SQL.
    type Backend = Sqlite;
    type TransactionManager = AnsiTransactionManager;

    fn establish(url: &str) -> ConnectionResult<Self> {
        let server = servers().as_ref().and_then(|servers| servers.get(url).cloned());
        let server = server
            .ok_or_else(|| ConnectionError::InvalidConnectionUrl(format!("no server at {url}")))?;
        server.logins.fetch_add(1, Ordering::SeqCst);
        server.logins_gate.pass();
        assert!(!server.panics.load(Ordering::SeqCst), "this server's logins panic");
        if !server.accepts.load(Ordering::SeqCst) {
            let refusal = *server.refusal.lock().unwrap_or_else(PoisonError::into_inner);
            let error = refusal.map_or_else(|| format!("refused by {url}"), str::to_owned);
            return Err(ConnectionError::BadConnection(error));
        }
        let open = server.open.fetch_add(1, Ordering::SeqCst) + 1;
        server.most_open.fetch_max(open, Ordering::SeqCst);
        let take_one = |stale: usize| stale.checked_sub(1);
        let is_stale = server.stale.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take_one);
        let generation = server.generation.load(Ordering::SeqCst);
        Ok(Self {
            generation: if is_stale.is_ok() { usize::MAX } else { generation },
            server,
            instrumentation: DynInstrumentation::default_instrumentation(),
            transactions: AnsiTransactionManager::default(),
        })
    }

    fn execute_returning_count<T>(&mut self, _: &T) -> QueryResult<usize>
    where
        T: QueryFragment<Self::Backend> + QueryId,
    {
        self.run("a query", Some(|server| &server.queries)).map(|()| 1)
    }

    fn transaction_state(&mut self) -> &mut AnsiTransactionManager {
        &mut self.transactions
    }

    fn instrumentation(&mut self) -> &mut dyn Instrumentation {
        &mut *self.instrumentation
    }

    fn set_instrumentation(&mut self, instrumentation: impl Instrumentation) {
        self.instrumentation = instrumentation.into();
    }

    fn set_prepared_statement_cache_size(&mut self, _: CacheSize) {}
}

impl R2D2Connection for ScriptedConnection {
    fn ping(&mut self) -> QueryResult<()> {
        self.run("a ping", None)
    }

    fn is_broken(&mut self) -> bool {
        AnsiTransactionManager::is_broken_transaction_manager(self)
    }
}

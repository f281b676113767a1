//! Transactions that were interrupted are run again, on another peer if need be, and the outcome of each COMMIT is
//! told apart.

#![cfg(all(target_os = "linux", any(feature = "mysql", feature = "postgres")))]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use diesel::connection::{Connection, SimpleConnection, TransactionManager};
use diesel::r2d2::Pool;
use diesel::result::{DatabaseErrorKind, Error, QueryResult};
use diesel_peers::{
    Balance, DoubtReason, Event, EventKind, Isolation, Ledger, Outcome, PeerConnection,
    PeerManager, Peers, RetryPolicy, Strategy, outcome_of,
};
use support::backend::{PATIENCE, RealServer, manager_of, pool_of};
use support::cutting_proxy::{Cut, CuttingProxy};
use support::{EndsThreads, wait_until, within};

/// A kind of server, with what the tests need besides.
pub(crate) trait Kind: RealServer + Sync {
    /// Ends the sessions of the application.
    fn end_sessions(&self);
    /// Returns the number of rows in the table `marks`.
    fn marks(&self) -> usize;
    /// Whether a session of the application waits for a lock.
    fn waits_for_a_lock(&self) -> bool;
    /// Returns a statement that fails as after a wait for a lock, which the transaction survives.
    fn lock_timeout() -> &'static str;
}

#[cfg(feature = "mysql")]
impl Kind for support::mariadb::MariaDb {
    fn end_sessions(&self) {
        self.sql("KILL USER app");
    }

    fn marks(&self) -> usize {
        self.sql("SELECT COUNT(*) FROM app.marks").trim().parse().expect("a number")
    }

    fn waits_for_a_lock(&self) -> bool {
        // (`innodb_trx` is a copy that is not renewed while it is read all the time.)
        let waiting = "SELECT COUNT(*) FROM information_schema.processlist WHERE user = 'app' AND \
                       info LIKE '%INSERT INTO%ledger%'";
        self.sql(waiting).trim() != "0"
    }

    fn lock_timeout() -> &'static str {
        "SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1205, \
         MESSAGE_TEXT = 'Lock wait timeout exceeded; try restarting transaction'"
    }
}

#[cfg(feature = "postgres")]
impl Kind for support::postgres::Postgres {
    fn end_sessions(&self) {
        self.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'");
    }

    fn marks(&self) -> usize {
        self.sql_in("app", "SELECT count(*) FROM marks").trim().parse().expect("a number")
    }

    fn waits_for_a_lock(&self) -> bool {
        self.sql("SELECT count(*) FROM pg_locks WHERE NOT granted").trim() != "0"
    }

    fn lock_timeout() -> &'static str {
        "DO $$ BEGIN RAISE EXCEPTION 'canceling statement due to lock timeout' \
         USING ERRCODE = '55P03'; END $$"
    }
}

/// One server as three peers, with an empty table `marks`, and a pool of `size` connections to it.
struct Scene<K: Kind> {
    server: K,
    pool: Pool<PeerManager<K::Client>>,
}

type Conn<K> = PeerConnection<<K as RealServer>::Client>;

impl<K: Kind> Scene<K> {
    fn new(size: u32, balance: Balance) -> Self {
        let server = K::start(1).pop().expect("one server was started");
        let manager = manager_of::<K::Client>([(); 3].map(|()| server.url())).balance(balance);
        let (pool, _) = pool_of(manager, size);
        let mut conn = pool.get().expect("the peer is up");
        conn.batch_execute("CREATE TABLE marks (id INT PRIMARY KEY)")
            .expect("the database is empty");
        drop(conn);
        Self { server, pool }
    }
}

pub(crate) fn mark(conn: &mut impl SimpleConnection, id: u32) -> QueryResult<()> {
    conn.batch_execute(&format!("INSERT INTO marks VALUES ({id})"))
}

/// Makes one test of each function for each kind of server.
macro_rules! on_servers {
    ($($test:ident),+ $(,)?) => {
        #[cfg(feature = "mysql")]
        mod mariadb {
            $(#[test] fn $test() { super::$test::<support::mariadb::MariaDb>(); })+
        }
        #[cfg(feature = "postgres")]
        mod postgres {
            $(#[test] fn $test() { super::$test::<support::postgres::Postgres>(); })+
        }
    };
}

pub(crate) use on_servers;

on_servers!(
    lost_transaction_is_run_again_in_the_same_checkout,
    panic_rolls_back_and_goes_on,
    errors_of_the_closure_are_returned_and_nothing_is_saved,
    interruption_after_which_the_closure_has_gone_on_is_not_the_cause,
    transaction_within_a_transaction_is_refused_and_a_test_transaction_runs_once,
    commit_whose_answer_is_lost_is_in_doubt,
    transaction_that_a_statement_has_ended_is_not_called_committed,
    nested_transaction_that_is_left_open_is_rolled_back,
    commit_that_saves_nothing_is_not_called_committed,
    isolation_level_is_that_of_the_policy,
    ledger_resolves_a_commit_whose_answer_is_lost,
    run_that_may_be_saved_is_not_forgotten_when_the_next_one_fails,
    ledger_waits_for_a_commit_that_is_still_on_its_way,
    server_with_another_history_decides_nothing,
);

fn lost_transaction_is_run_again_in_the_same_checkout<K: Kind>() {
    // With one slot no other connection is idle; a second `get` would wait forever.
    for (size, balance, id) in
        [(1, Balance::PerCheckout, 1), (3, Balance::PerCheckout, 2), (1, Balance::PerConnection, 3)]
    {
        let scene = Scene::<K>::new(size, balance);
        let mut conn = scene.pool.get().expect("the peer is up");
        let mut runs = 0;
        let outcome = conn.transaction_with_retry(|conn| {
            runs += 1;
            mark(conn, id)?;
            if runs == 1 {
                scene.server.end_sessions();
            }
            // The application's own error hides the cause.
            conn.batch_execute("SELECT 1").map_err(|_| Error::NotFound)?;
            Ok::<_, Error>(runs)
        });
        assert_eq!(outcome, Outcome::Committed(2), "{size} connections, {balance}");
        assert_eq!(scene.server.marks(), 1, "the first run was rolled back");
        let read = conn.read_with_retry(|conn| {
            runs += 1;
            if runs == 3 {
                scene.server.end_sessions();
            }
            conn.batch_execute("SELECT 1").map(|()| runs)
        });
        assert_eq!(read, Ok(4), "a read is run again as well");
        drop(conn);
        let mut conn = scene.pool.get().expect("the slot has a live connection");
        mark(&mut *conn, id + 100).expect("the connection works");
    }
}

fn panic_rolls_back_and_goes_on<K: Kind>() {
    let scene = Scene::<K>::new(1, Balance::PerCheckout);
    let mut conn = scene.pool.get().expect("the peer is up");
    let panic = catch_unwind(AssertUnwindSafe(|| {
        let _ = conn.transaction_with_retry(|conn| -> Result<(), Error> {
            mark(conn, 1)?;
            panic!("a bug of the application");
        });
    }));
    let message = panic.expect_err("the panic goes on");
    assert_eq!(message.downcast_ref(), Some(&"a bug of the application"));
    assert_eq!(scene.server.marks(), 0, "the transaction was rolled back");
    let outcome = conn.transaction_with_retry(|conn| mark(conn, 1));
    assert_eq!(outcome, Outcome::Committed(()), "the connection is still usable");
}

fn errors_of_the_closure_are_returned_and_nothing_is_saved<K: Kind>() {
    let scene = Scene::<K>::new(1, Balance::PerCheckout);
    let mut conn = scene.pool.get().expect("the peer is up");
    let mut runs = 0;
    let outcome = conn.transaction_with_retry(|conn| {
        runs += 1;
        mark(conn, 1)?;
        Err::<(), _>(Error::RollbackTransaction)
    });
    assert_eq!((outcome, runs), (Outcome::Aborted(Error::RollbackTransaction), 1));
    let outcome = conn.transaction_with_retry(|conn| {
        mark(conn, 1)?;
        mark(conn, 1)
    });
    assert!(matches!(outcome, Outcome::Aborted(Error::DatabaseError(..))), "{outcome:?}");
    assert_eq!(scene.server.marks(), 0);
    let error = outcome.into_result().expect_err("the transaction was aborted").to_string();
    assert!(error.to_lowercase().contains("duplicate"), "{error}");
}

/// A nested transaction has waited for a lock in vain.
fn interruption_after_which_the_closure_has_gone_on_is_not_the_cause<K: Kind>() {
    let scene = Scene::<K>::new(1, Balance::PerCheckout);
    let mut conn = scene.pool.get().expect("the peer is up");
    for (goes_on, expected, runs_expected) in
        [(false, Outcome::Committed(()), 2), (true, Outcome::Aborted(Error::NotFound), 1)]
    {
        let mut runs = 0;
        let outcome = conn.transaction_with_retry(|conn| {
            runs += 1;
            if runs > 1 {
                return Ok(());
            }
            let waited = conn.transaction(|conn| conn.batch_execute(K::lock_timeout()));
            if goes_on {
                mark(conn, 1)?;
                return Err(Error::NotFound);
            }
            waited
        });
        assert_eq!((outcome, runs), (expected, runs_expected), "goes on: {goes_on}");
    }
    assert_eq!(scene.server.marks(), 0);
}

fn transaction_within_a_transaction_is_refused_and_a_test_transaction_runs_once<K: Kind>() {
    let scene = Scene::<K>::new(1, Balance::PerCheckout);
    let mut conn = scene.pool.get().expect("the peer is up");
    let inner = conn.transaction(|conn| {
        let outcome = conn.transaction_with_retry(|conn| mark(conn, 1));
        Ok::<_, Error>(outcome)
    });
    assert_eq!(inner, Ok(Outcome::Aborted(Error::AlreadyInTransaction)));
    let outcome = conn.transaction_with_retry(|conn| conn.transaction(|conn| mark(conn, 2)));
    assert_eq!(outcome, Outcome::Committed(()), "a nested transaction is a savepoint");
    conn.begin_test_transaction().expect("no transaction is open");
    let outcome = conn.transaction_with_retry(|conn| mark(conn, 3));
    assert_eq!(outcome, Outcome::Committed(()));
    assert_eq!(scene.server.marks(), 1, "a test transaction saves nothing");
}

/// The first peer is the server behind a proxy that cuts connections, and has all the work.
fn commit_whose_answer_is_lost_is_in_doubt<K: Kind>() {
    let server = K::start(1).pop().expect("one server was started");
    let proxy = CuttingProxy::start(server.port());
    let manager = manager_of::<K::Client>([K::url_at("127.0.0.1", proxy.port()), server.url()]);
    let (pool, _) = pool_of(manager.strategy(Strategy::Ordered).tier("peer1", 1), 1);
    let mut conn = pool.get().expect("both peers are up");
    conn.batch_execute("CREATE TABLE marks (id INT PRIMARY KEY)").expect("the database is empty");
    drop(conn);
    // The cut, and how many marks are saved then.
    for (id, cut, saved) in
        [(1, Cut::BeforeServer, 0), (2, Cut::BeforeAnswer, 1), (3, Cut::InsideAnswer, 2)]
    {
        let through_proxy = || {
            let conn = pool.get().expect("both peers are up");
            assert_eq!(conn.peer(), "peer0", "the first tier serves");
            conn
        };
        let mut conn = through_proxy();
        proxy.cut_at("COMMIT", cut);
        let mut runs = 0;
        let outcome = conn.transaction_with_retry(|conn| {
            runs += 1;
            mark(conn, id)
        });
        let Outcome::Unknown(doubt) = outcome else { panic!("{cut:?}: {outcome:?}") };
        assert_eq!((doubt.reason(), doubt.peer()), (DoubtReason::CommitUnanswered, "peer0"));
        assert_eq!((runs, proxy.is_pending()), (1, false), "nothing is run twice unasked");
        assert_eq!(server.marks(), saved, "{cut:?}");
        drop(conn);

        let mut conn = through_proxy();
        proxy.cut_at("COMMIT", cut);
        let outcome = outcome_of(&mut conn, |conn| conn.transaction(|conn| mark(conn, id + 10)));
        assert!(matches!(outcome, Outcome::Unknown(_)), "{cut:?}: {outcome:?}");
        let outcome = conn.batch_execute("DELETE FROM marks WHERE id > 10");
        assert!(outcome.is_err(), "the connection is lost");
        drop(conn);

        let mut conn = through_proxy();
        conn.batch_execute("DELETE FROM marks WHERE id > 10").expect("another connection works");
        proxy.cut_at("COMMIT", cut);
        let mut runs = 0;
        let idempotent = RetryPolicy::new().idempotent(true);
        let outcome = idempotent.transaction(&mut conn, |conn| {
            runs += 1;
            conn.batch_execute("DELETE FROM marks WHERE id > 10")
        });
        assert_eq!((outcome, runs), (Outcome::Committed(()), 2), "{cut:?}");
    }
    // A connection that is cut before its COMMIT.
    let mut conn = pool.get().expect("both peers are up");
    proxy.cut_at("SELECT 11", Cut::BeforeAnswer);
    let outcome = outcome_of(&mut conn, |conn| {
        conn.transaction(|conn| {
            mark(conn, 20)?;
            conn.batch_execute("SELECT 11")
        })
    });
    assert!(matches!(outcome, Outcome::Aborted(_)), "no COMMIT was sent: {outcome:?}");
}

/// A pool whose first peer is the server behind a proxy, and whose other peers, all in the next tier, are these. The
/// table `marks` and the ledger are on each of them.
fn behind_proxy<K: Kind>(
    proxy: &CuttingProxy,
    others: &[&K],
) -> (Pool<PeerManager<K::Client>>, Peers) {
    let ledger = Ledger::table("ledger");
    for server in others {
        let (pool, _) = pool_of(manager_of::<K::Client>([server.url()]), 1);
        let mut conn = pool.get().expect("the peer is up");
        conn.batch_execute("CREATE TABLE marks (id INT PRIMARY KEY)").expect("a new database");
        conn.batch_execute(&ledger.create_table()).expect("a new database");
    }
    let urls = others.iter().map(|server| server.url());
    let urls = [K::url_at("127.0.0.1", proxy.port())].into_iter().chain(urls);
    let mut manager = manager_of::<K::Client>(urls)
        .strategy(Strategy::Ordered)
        .ledger(ledger)
        .retry_deadline(Duration::from_secs(10));
    for at in 1..=others.len() {
        manager = manager.tier(format!("peer{at}"), 1);
    }
    pool_of(manager, 2)
}

fn run_that_may_be_saved_is_not_forgotten_when_the_next_one_fails<K: Kind>() {
    let server = K::start(1).pop().expect("one server was started");
    let proxy = CuttingProxy::start(server.port());
    let (pool, _) = behind_proxy(&proxy, &[&server]);
    let mut conn = pool.get().expect("both peers are up");
    proxy.cut_at("COMMIT", Cut::BeforeAnswer);
    let mut runs = 0;
    let outcome = RetryPolicy::new().idempotent(true).transaction(&mut conn, |conn| {
        runs += 1;
        mark(conn, runs)?;
        if runs == 1 { Ok(()) } else { Err(Error::NotFound) }
    });
    assert!(matches!(outcome, Outcome::Unknown(_)), "{outcome:?}");
    assert_eq!((runs, server.marks()), (2, 1));
}

/// How the answer to a COMMIT is lost, and how often the closure is run then.
pub(crate) const LOST_ANSWERS: [(Cut, u32); 3] =
    [(Cut::BeforeServer, 2), (Cut::BeforeAnswer, 1), (Cut::InsideAnswer, 1)];

/// Asserts that a transaction is committed once although the answer to its COMMIT is lost in this way. It makes the
/// mark `id`, and there is one for each number before.
pub(crate) fn resolves_lost_answer<K: Kind>(
    conn: &mut PeerConnection<K::Client>,
    server: &K,
    proxy: &CuttingProxy,
    id: u32,
    (cut, expected): (Cut, u32),
) {
    proxy.cut_at("COMMIT", cut);
    let mut runs = 0;
    let outcome = conn.transaction_with_retry(|conn| {
        runs += 1;
        mark(conn, id)?;
        Ok::<_, Error>("value")
    });
    assert_eq!((outcome, runs), (Outcome::Committed("value"), expected), "{cut:?}");
    assert!(!proxy.is_pending(), "{cut:?}");
    assert_eq!(server.marks(), id as usize, "{cut:?}");
}

fn ledger_resolves_a_commit_whose_answer_is_lost<K: Kind>() {
    let server = K::start(1).pop().expect("one server was started");
    let proxy = CuttingProxy::start(server.port());
    let (pool, peers) = behind_proxy(&proxy, &[&server]);
    for (id, lost) in (1..).zip(LOST_ANSWERS) {
        let mut conn = pool.get().expect("both peers are up");
        assert_eq!(conn.peer(), "peer0", "the first tier serves");
        resolves_lost_answer(&mut conn, &server, &proxy, id, lost);
    }
    let of_transactions = |event: Event| match event.kind {
        EventKind::TransactionInDoubt { .. } => Some((event.peer, None)),
        EventKind::TransactionResolved { is_committed, .. } => {
            Some((event.peer, Some(is_committed)))
        }
        _ => None,
    };
    let events: Vec<_> = peers.snapshot().events.into_iter().filter_map(of_transactions).collect();
    let expected = [None, Some(false), None, Some(true), None, Some(true)];
    assert_eq!(events, expected.map(|found| ("peer0".to_owned(), found)));
    let snapshot = peers.snapshot();
    let counts = snapshot.peers[0].transactions;
    assert_eq!((counts.commits_in_doubt, counts.retries), (3, 1), "{counts:?}");
    assert_eq!((counts.found_committed, counts.found_aborted), (2, 1), "{counts:?}");
    assert_eq!(counts.outcomes_unknown, 0, "{counts:?}");
    assert_eq!(snapshot.peers[1].transactions, <_>::default(), "nothing was interrupted there");
    let rows: Vec<_> = snapshot.to_string().lines().skip(4).map(str::to_owned).collect();
    assert!(rows[0].starts_with("peer   retries  over budget  in doubt"), "{snapshot}");
    assert!(rows[1].starts_with("peer0        1            0         3"), "{snapshot}");
}

/// The server still has the session, which holds the lock of the token.
fn ledger_waits_for_a_commit_that_is_still_on_its_way<K: Kind>() {
    let server = K::start(1).pop().expect("one server was started");
    let proxy = CuttingProxy::start(server.port());
    let (pool, _) = behind_proxy(&proxy, &[&server]);
    let mut conn = pool.get().expect("both peers are up");
    proxy.cut_at("COMMIT", Cut::Delayed);
    let mut runs = 0;
    let is_over = AtomicBool::new(false);
    let outcome = thread::scope(|scope| {
        scope.spawn(|| {
            wait_until("the COMMIT is sent", PATIENCE, || !proxy.is_pending());
            wait_until("the resolution waits", PATIENCE, || {
                server.waits_for_a_lock() || is_over.load(Ordering::Relaxed)
            });
            proxy.release();
        });
        let ends = EndsThreads(&is_over);
        let outcome = conn.transaction_with_retry(|conn| {
            runs += 1;
            mark(conn, 1)
        });
        drop(ends);
        outcome
    });
    assert_eq!((outcome, runs), (Outcome::Committed(()), 1));
    assert_eq!(server.marks(), 1);
}

/// Two servers that are not equivalent. One cannot tell what the other has committed.
fn server_with_another_history_decides_nothing<K: Kind>() {
    let mut servers = K::start(2);
    let (other, server) =
        (servers.pop().expect("two servers"), servers.pop().expect("two servers"));
    let proxy = CuttingProxy::start(server.port());
    let (pool, peers) = behind_proxy(&proxy, &[&other]);
    let (own, _) = pool_of(manager_of::<K::Client>([server.url()]), 1);
    let mut conn = own.get().expect("the peer is up");
    conn.batch_execute("CREATE TABLE marks (id INT PRIMARY KEY)").expect("a new database");
    conn.batch_execute(&Ledger::table("ledger").create_table()).expect("a new database");
    let mut conn = pool.get().expect("both peers are up");
    let policy = conn.retry_policy().deadline(Duration::from_millis(500));
    proxy.cut_at("COMMIT", Cut::BeforeAnswer);
    let outcome = policy.transaction(&mut conn, |conn| mark(conn, 1));
    // The peer is up again after a check, so the resolution may find the server itself.
    let is_unknown = match outcome {
        Outcome::Unknown(doubt) => {
            assert_eq!(doubt.reason(), DoubtReason::OtherHistory);
            true
        }
        outcome => {
            assert_eq!(outcome, Outcome::Committed(()));
            false
        }
    };
    let counts = peers.snapshot().peers[0].transactions;
    assert_eq!(
        (counts.outcomes_unknown, counts.found_committed),
        if is_unknown { (1, 0) } else { (0, 1) }
    );
    assert_eq!((server.marks(), other.marks()), (1, 0), "the closure was not run again");
}

fn transaction_that_a_statement_has_ended_is_not_called_committed<K: Kind>() {
    let scene = Scene::<K>::new(1, Balance::PerCheckout);
    let mut conn = scene.pool.get().expect("the peer is up");
    let mut runs = 0;
    let outcome = conn.transaction_with_retry(|conn| {
        runs += 1;
        mark(conn, 1)?;
        conn.batch_execute("COMMIT; BEGIN")?;
        mark(conn, 2)
    });
    let Outcome::Unknown(doubt) = outcome else { panic!("{outcome:?}") };
    assert_eq!((doubt.reason(), runs), (DoubtReason::EndedEarly, 1));
    assert_eq!(scene.server.marks(), 1, "a part of it is saved");
    let outcome = conn.transaction_with_retry(|conn| {
        mark(conn, 3)?;
        conn.batch_execute("COMMIT")?;
        Err::<(), _>(Error::NotFound)
    });
    let Outcome::Unknown(doubt) = outcome else { panic!("an error is not enough: {outcome:?}") };
    assert_eq!(doubt.reason(), DoubtReason::EndedEarly);
    assert_eq!(scene.server.marks(), 2, "a part of it is saved");
}

fn nested_transaction_that_is_left_open_is_rolled_back<K: Kind>() {
    type Manager<K> = <Conn<K> as Connection>::TransactionManager;
    let scene = Scene::<K>::new(1, Balance::PerCheckout);
    let mut conn = scene.pool.get().expect("the peer is up");
    let outcome = conn.transaction_with_retry(|conn| {
        Manager::<K>::begin_transaction(conn)?;
        mark(conn, 1)
    });
    assert_eq!(outcome, Outcome::Aborted(Error::AlreadyInTransaction));
    assert_eq!(scene.server.marks(), 0);
    let outcome = conn.transaction_with_retry(|conn| mark(conn, 1));
    assert_eq!(outcome, Outcome::Committed(()), "no transaction is open any more");
}

fn commit_that_saves_nothing_is_not_called_committed<K: Kind>() {
    let scene = Scene::<K>::new(1, Balance::PerCheckout);
    let mut conn = scene.pool.get().expect("the peer is up");
    let outcome = outcome_of(&mut conn, |conn| {
        conn.transaction(|conn| {
            mark(conn, 1)?;
            mark(conn, 1).expect_err("the mark is there");
            Ok::<_, Error>(())
        })
    });
    // After an error PostgreSQL saves nothing of the transaction, and answers its COMMIT with success.
    assert_eq!(outcome.is_committed(), scene.server.marks() == 1, "{outcome:?}");
}

fn isolation_level_is_that_of_the_policy<K: Kind>() {
    let scene = Scene::<K>::new(1, Balance::PerCheckout);
    let mut conn = scene.pool.get().expect("the peer is up");
    let policy = RetryPolicy::new().isolation(Isolation::Serializable).read_only(true);
    let outcome = policy.transaction(&mut conn, |conn| mark(conn, 1));
    let Outcome::Aborted(Error::DatabaseError(_, information)) = outcome else {
        panic!("a READ ONLY transaction saves nothing: {outcome:?}");
    };
    let message = information.message().to_lowercase();
    assert!(message.contains("read only") || message.contains("read-only"), "{message}");
    let outcome = conn.transaction_with_retry(|conn| mark(conn, 1));
    assert_eq!(outcome, Outcome::Committed(()), "the policy was that of one transaction");
}

/// Asserts that a table is refused as a ledger whose statement was changed in this way, and nothing is saved.
fn is_no_ledger<K: Kind>(change: impl FnOnce(String) -> String, flaw: &str) {
    let scene = Scene::<K>::new(1, Balance::PerCheckout);
    let mut conn = scene.pool.get().expect("the peer is up");
    let ledger = Ledger::table("ledger");
    conn.batch_execute(&change(ledger.create_table())).expect("a new table");
    let outcome = RetryPolicy::new().ledger(ledger).transaction(&mut conn, |conn| mark(conn, 1));
    let Outcome::Aborted(error) = outcome else { panic!("{outcome:?}") };
    assert!(error.to_string().contains(flaw), "{error}");
    assert_eq!(scene.server.marks(), 0);
}

#[cfg(feature = "mysql")]
mod on_mariadb {
    use std::sync::Barrier;

    use diesel::prelude::*;
    use support::mariadb::MariaDb;

    use super::*;

    /// Its rows would stay although the transaction was rolled back.
    #[test]
    fn table_without_transactions_is_no_ledger() {
        is_no_ledger::<MariaDb>(
            |create| create + " ENGINE=MyISAM",
            "its engine has no transactions",
        );
    }

    #[test]
    fn statement_that_commits_by_itself_is_noticed() {
        let scene = Scene::<MariaDb>::new(1, Balance::PerCheckout);
        let mut conn = scene.pool.get().expect("the peer is up");
        let outcome = conn.transaction_with_retry(|conn| {
            mark(conn, 1)?;
            conn.batch_execute("CREATE TABLE others (id INT)")
        });
        let Outcome::Unknown(doubt) = outcome else { panic!("{outcome:?}") };
        assert_eq!(doubt.reason(), DoubtReason::EndedEarly);
        assert_eq!(scene.server.marks(), 1, "CREATE TABLE has committed the transaction");
    }

    /// Updates two rows, in opposite orders in two threads, so that one of them is the victim of a deadlock in its
    /// first run. `on_error` makes the result of a failed update, and `at_the_end` that of the closure.
    /// The transaction survives such an error, so something else has ended it.
    #[test]
    fn lock_timeout_after_the_end_of_the_transaction_is_not_run_again() {
        let scene = Scene::<MariaDb>::new(1, Balance::PerCheckout);
        let mut conn = scene.pool.get().expect("the peer is up");
        let mut runs = 0;
        let outcome = conn.transaction_with_retry(|conn| {
            runs += 1;
            mark(conn, runs)?;
            conn.batch_execute("CREATE TABLE IF NOT EXISTS others (id INT)")?;
            conn.batch_execute(MariaDb::lock_timeout())
        });
        let Outcome::Unknown(doubt) = outcome else { panic!("{outcome:?}") };
        assert_eq!((doubt.reason(), runs), (DoubtReason::EndedEarly, 1));
        assert_eq!(scene.server.marks(), 1);
    }

    fn in_opposite_orders(
        scene: &Scene<MariaDb>,
        on_error: fn(Error) -> QueryResult<()>,
        at_the_end: fn(()) -> QueryResult<()>,
    ) -> [Outcome<(), Error>; 2] {
        let mut conn = scene.pool.get().expect("the peer is up");
        conn.batch_execute("INSERT INTO marks VALUES (1), (2)").expect("the table is empty");
        drop(conn);
        let barrier = Barrier::new(2);
        let update = |ids: [u32; 2]| {
            let mut conn = scene.pool.get().expect("the pool has two connections");
            let mut runs = 0;
            let update = |conn: &mut Conn<MariaDb>, id: u32| {
                diesel::sql_query(format!("UPDATE marks SET id = id WHERE id = {id}"))
                    .execute(conn)
                    .map(drop)
            };
            conn.transaction_with_retry(|conn| {
                runs += 1;
                // `SELECT .. FOR UPDATE` locks the row even if nothing changes.
                conn.batch_execute(&format!(
                    "SELECT * FROM marks WHERE id = {} FOR UPDATE",
                    ids[0]
                ))?;
                if runs == 1 {
                    barrier.wait();
                }
                update(conn, ids[1]).or_else(on_error)?;
                mark(conn, 10 * ids[0]).and_then(at_the_end)
            })
        };
        thread::scope(|scope| {
            let threads = [[1, 2], [2, 1]].map(|ids| scope.spawn(move || update(ids)));
            threads.map(|thread| thread.join().expect("the thread ends"))
        })
    }

    #[test]
    fn victim_of_a_deadlock_is_run_again() {
        let scene = Scene::<MariaDb>::new(2, Balance::PerCheckout);
        let outcomes = in_opposite_orders(&scene, Err, Ok);
        assert_eq!(outcomes, [Outcome::Committed(()), Outcome::Committed(())]);
        assert_eq!(scene.server.marks(), 4);
    }

    /// As below, and the closure fails in the end. It must not be run again.
    #[test]
    fn work_that_goes_on_after_a_deadlock_and_fails_is_in_doubt() {
        let scene = Scene::<MariaDb>::new(2, Balance::PerCheckout);
        let mut outcomes = in_opposite_orders(&scene, |_| Ok(()), |()| Err(Error::NotFound));
        outcomes.sort_by_key(|outcome| matches!(outcome, Outcome::Aborted(_)));
        let [Outcome::Unknown(doubt), Outcome::Aborted(Error::NotFound)] = outcomes else {
            panic!("one is the victim: {outcomes:?}");
        };
        assert_eq!(doubt.reason(), DoubtReason::EndedEarly);
        assert_eq!(scene.server.marks(), 3, "what the victim did after the deadlock is saved");
    }

    /// The server has rolled back the victim's transaction, and what follows is saved by itself.
    #[test]
    fn deadlock_that_the_closure_hides_is_not_called_committed() {
        let scene = Scene::<MariaDb>::new(2, Balance::PerCheckout);
        let mut outcomes = in_opposite_orders(&scene, |_| Ok(()), Ok);
        outcomes.sort_by_key(Outcome::is_committed);
        let [Outcome::Unknown(doubt), Outcome::Committed(())] = outcomes else {
            panic!("one is the victim: {outcomes:?}");
        };
        assert_eq!(doubt.reason(), DoubtReason::EndedEarly);
    }
}

#[cfg(feature = "postgres")]
mod on_postgres {
    use diesel::pg::PgRowByRowLoadingMode;
    use diesel::prelude::*;
    use support::postgres::Postgres;

    use super::*;

    const LOSE: &str = "SELECT pg_terminate_backend(pg_backend_pid())";

    #[test]
    fn right_that_is_missing_is_named() {
        let scene = Scene::<Postgres>::new(1, Balance::PerCheckout);
        let ledger = Ledger::table("ledger");
        scene.server.sql_in("app", &ledger.create_table());
        let mut conn = scene.pool.get().expect("the peer is up");
        let policy = RetryPolicy::new().ledger(ledger);
        let outcome = policy.transaction(&mut conn, |conn| mark(conn, 1));
        let Outcome::Aborted(error) = outcome else { panic!("{outcome:?}") };
        let expected =
            "cannot be a ledger: permission denied for table ledger; the user needs the rights";
        assert!(error.to_string().contains(expected), "{error}");
    }

    /// It is empty after a crash of the server.
    #[test]
    fn table_that_is_not_logged_is_no_ledger() {
        let unlogged = |create: String| create.replace("CREATE TABLE", "CREATE UNLOGGED TABLE");
        is_no_ledger::<Postgres>(unlogged, "it is not a logged table");
    }

    /// Then each token could be there twice: that of the transaction, and that of the resolution.
    #[test]
    fn table_whose_token_is_not_unique_is_no_ledger() {
        is_no_ledger::<Postgres>(|create| create.replace("PRIMARY KEY", ""), "is not unique");
    }

    /// The token goes to the table that was found suitable, wherever the closure looks for tables.
    #[test]
    fn closure_may_change_where_its_session_looks_for_tables() {
        let server = Postgres::start();
        let proxy = CuttingProxy::start(server.port());
        let (pool, _) = behind_proxy(&proxy, &[&server]);
        let mut conn = pool.get().expect("both peers are up");
        conn.batch_execute(
            "CREATE SCHEMA tenant; CREATE TABLE tenant.ledger (LIKE ledger INCLUDING ALL)",
        )
        .expect("a new schema");
        proxy.cut_at("COMMIT", Cut::BeforeAnswer);
        let mut runs = 0;
        let outcome = conn.transaction_with_retry(|conn| {
            runs += 1;
            mark(conn, 1)?;
            conn.batch_execute("SET LOCAL search_path TO tenant")
        });
        assert_eq!((outcome, runs), (Outcome::Committed(()), 1));
    }

    /// A conflict has rolled the rest back, and another run would repeat the part that is saved.
    #[test]
    fn conflict_after_the_end_of_the_transaction_is_not_run_again() {
        let conflict = "DO $$ BEGIN RAISE EXCEPTION 'in the way' USING ERRCODE = '40001'; END $$";
        for (ends, runs_expected, marks_expected) in
            [("SELECT 1", 2, 1), ("COMMIT", 1, 1), ("COMMIT; BEGIN", 1, 1)]
        {
            let scene = Scene::<Postgres>::new(1, Balance::PerCheckout);
            let mut conn = scene.pool.get().expect("the peer is up");
            let mut runs = 0;
            let outcome = conn.transaction_with_retry(|conn| {
                runs += 1;
                mark(conn, 1)?;
                conn.batch_execute(ends)?;
                if runs == 1 { conn.batch_execute(conflict) } else { Ok(()) }
            });
            assert_eq!(runs, runs_expected, "{ends}: {outcome:?}");
            assert_eq!(scene.server.marks(), marks_expected, "{ends}: {outcome:?}");
            match outcome {
                Outcome::Unknown(doubt) => assert_eq!(doubt.reason(), DoubtReason::EndedEarly),
                outcome => assert_eq!((outcome, ends), (Outcome::Committed(()), "SELECT 1")),
            }
        }
    }

    /// diesel tells the end of such a query twice: as a failure, and when the cursor is dropped.
    #[test]
    fn conflict_between_two_rows_is_run_again() {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = diesel::sql_types::Integer)]
            #[expect(dead_code, reason = "only the error matters")]
            id: i32,
        }

        let scene = Scene::<Postgres>::new(1, Balance::PerCheckout);
        let mut conn = scene.pool.get().expect("the peer is up");
        conn.batch_execute(
            "CREATE SEQUENCE tries; CREATE FUNCTION row_of(id INT) RETURNS INT LANGUAGE plpgsql AS $$ BEGIN \
             IF id = 9 AND nextval('tries') < 3 THEN RAISE serialization_failure; END IF; RETURN id; END $$",
        )
        .expect("a new database");
        let load = |conn: &mut Conn<Postgres>| {
            let query = diesel::sql_query("SELECT row_of(id) AS id FROM generate_series(1, 9) id");
            let rows = query.load_iter::<Row, PgRowByRowLoadingMode>(conn)?;
            rows.collect::<QueryResult<Vec<_>>>().map(|rows| rows.len())
        };
        assert_eq!(conn.read_with_retry(load), Ok(9));
        conn.batch_execute("SELECT setval('tries', 1, false)").expect("the sequence exists");
        assert_eq!(conn.transaction_with_retry(load), Outcome::Committed(9));
    }

    /// diesel does not count a transaction that a text has begun.
    #[test]
    fn transaction_that_a_text_has_begun_does_not_stay_open() {
        let scene = Scene::<Postgres>::new(1, Balance::PerCheckout);
        let mut conn = scene.pool.get().expect("the peer is up");
        let outcome = conn.transaction_with_retry(|conn| {
            conn.batch_execute("COMMIT")?;
            conn.batch_execute("BEGIN")
        });
        assert!(matches!(outcome, Outcome::Unknown(_)), "{outcome:?}");
        mark(&mut conn, 1).expect("no transaction has failed");
        drop(conn);
        assert_eq!(scene.server.marks(), 1);
    }

    #[test]
    fn transaction_that_a_text_has_ended_is_not_open_at_the_next_checkout() {
        let scene = Scene::<Postgres>::new(1, Balance::PerCheckout);
        let mut conn = scene.pool.get().expect("the peer is up");
        <Conn<Postgres> as Connection>::TransactionManager::begin_transaction(&mut conn)
            .expect("the connection works");
        conn.batch_execute("ROLLBACK").expect("the connection works");
        drop(conn);
        let mut conn = scene.pool.get().expect("the peer is up");
        conn.batch_execute(LOSE).expect_err("the session has ended");
        assert_eq!(conn.transaction_with_retry(|conn| mark(conn, 1)), Outcome::Committed(()));
    }

    /// What the closure does on another connection would be saved, and the transaction of the caller would not.
    #[test]
    fn transaction_within_a_lost_transaction_is_refused() {
        let scene = Scene::<Postgres>::new(1, Balance::PerCheckout);
        let mut conn = scene.pool.get().expect("the peer is up");
        let within = |conn: &mut Conn<Postgres>| {
            conn.batch_execute(LOSE).expect_err("the session has ended");
            let inner = conn.transaction_with_retry(|conn| mark(conn, 1));
            assert_eq!(inner, Outcome::Aborted(Error::AlreadyInTransaction));
            let read = conn.read_with_retry(|conn| mark(conn, 1));
            read.expect_err("the connection is not changed within a transaction");
        };
        conn.transaction(|conn| {
            within(conn);
            Ok::<_, Error>(())
        })
        .expect_err("the connection is lost");
        let mut runs = 0;
        let outcome = conn.transaction_with_retry(|conn| {
            runs += 1;
            if runs == 1 {
                within(conn);
            }
            mark(conn, 2)
        });
        assert_eq!((outcome, runs), (Outcome::Committed(()), 2));
        assert_eq!(scene.server.marks(), 1);
    }

    /// PostgreSQL answers the COMMIT of a failed transaction with success, and saves nothing.
    #[test]
    fn error_that_the_closure_hides_is_not_called_committed() {
        let scene = Scene::<Postgres>::new(1, Balance::PerCheckout);
        let mut conn = scene.pool.get().expect("the peer is up");
        let mut runs = 0;
        let outcome = conn.transaction_with_retry(|conn| {
            runs += 1;
            mark(conn, 1)?;
            conn.batch_execute("SELECT 1/0").expect_err("a division by zero");
            Ok::<_, Error>(())
        });
        assert!(matches!(outcome, Outcome::Aborted(Error::DatabaseError(..))), "{outcome:?}");
        assert_eq!((runs, scene.server.marks()), (1, 0));
    }

    /// Many threads, so that the time of the test adds little to the budget.
    #[test]
    fn transactions_that_are_not_run_again_for_lack_of_budget_are_counted() {
        let server = Postgres::start();
        let (pool, peers) = pool_of(manager_of::<diesel::PgConnection>([server.url()]), 8);
        let runs = std::sync::atomic::AtomicU64::new(0);
        let work = || {
            let mut conn = pool.get().expect("the peer is up");
            let policy = conn.retry_policy().max_attempts(2);
            for _ in 0..40 {
                let outcome = policy.transaction(&mut conn, |conn| {
                    runs.fetch_add(1, Ordering::Relaxed);
                    conn.batch_execute("DO $$ BEGIN RAISE serialization_failure; END $$")
                });
                assert!(matches!(outcome, Outcome::Aborted(_)), "{outcome:?}");
            }
        };
        thread::scope(|scope| (0..8).for_each(|_| drop(scope.spawn(work))));
        let counts = peers.snapshot().peers[0].transactions;
        assert!(counts.retries >= 100, "so many are allowed at once: {counts:?}");
        assert_eq!(320 + counts.retries, runs.into_inner(), "{counts:?}");
        assert!(counts.retries_refused > 0, "{counts:?}");
        assert_eq!(counts.retries + counts.retries_refused, 320, "{counts:?}");
    }

    #[test]
    fn constraint_that_the_commit_examines_leaves_no_doubt() {
        let scene = Scene::<Postgres>::new(1, Balance::PerCheckout);
        let mut conn = scene.pool.get().expect("the peer is up");
        conn.batch_execute(
            "CREATE TABLE later (id INT REFERENCES marks DEFERRABLE INITIALLY DEFERRED)",
        )
        .expect("the table is new");
        let outcome =
            conn.transaction_with_retry(|conn| conn.batch_execute("INSERT INTO later VALUES (5)"));
        let Outcome::Aborted(Error::DatabaseError(kind, _)) = outcome else {
            panic!("{outcome:?}")
        };
        assert!(matches!(kind, DatabaseErrorKind::ForeignKeyViolation), "{kind:?}");
    }
}

/// While no peer can be reached, the checkout waits, for longer than the retry budget would last.
#[cfg(feature = "mysql")]
#[test]
fn transaction_waits_for_a_peer_while_all_are_down() {
    use support::mariadb::MariaDb;

    let mut scene = Scene::<MariaDb>::new(1, Balance::PerCheckout);
    let pool = scene.pool.clone();
    let is_killed = std::sync::Barrier::new(2);
    let outcome = thread::scope(|scope| {
        let work = scope.spawn(|| {
            let mut conn = pool.get().expect("the peer is up");
            is_killed.wait();
            is_killed.wait();
            conn.transaction_with_retry(|conn| mark(conn, 1))
        });
        is_killed.wait();
        scene.server.kill();
        is_killed.wait();
        assert!(!within(Duration::from_secs(3), || work.is_finished()), "the checkout waits");
        scene.server.restart();
        work.join().expect("the thread ends")
    });
    assert_eq!(outcome, Outcome::Committed(()));
    assert_eq!(scene.server.marks(), 1);
}

/// A peer whose machine dies in the middle of transactions of many threads: no thread sees an error.
#[cfg(feature = "mysql")]
#[test]
fn no_thread_sees_an_error_when_a_peer_is_killed() {
    use std::sync::atomic::AtomicUsize;

    use support::mariadb::MariaDb;

    let mut servers = <MariaDb as support::backend::Backend>::start(3);
    for server in &servers {
        server.sql("CREATE TABLE app.marks (id INT PRIMARY KEY AUTO_INCREMENT)");
    }
    let manager = manager_of::<diesel::MysqlConnection>(servers.iter().map(MariaDb::url))
        .check_interval(Duration::from_secs(1));
    let (pool, _) = pool_of(manager, 9);
    let (is_over, committed) = (AtomicBool::new(false), AtomicUsize::new(0));
    let ends = EndsThreads(&is_over);
    let work = || {
        while !is_over.load(Ordering::Relaxed) {
            let mut conn = pool.get().expect("a peer is up");
            let outcome = RetryPolicy::new().idempotent(true).transaction(&mut conn, |conn| {
                conn.batch_execute("INSERT INTO marks VALUES (); DO SLEEP(0.002)")
            });
            assert_eq!(outcome, Outcome::Committed(()));
            committed.fetch_add(1, Ordering::Relaxed);
        }
    };
    let goes_on = || {
        let goal = committed.load(Ordering::Relaxed) + 500;
        wait_until("the work goes on", PATIENCE, || committed.load(Ordering::Relaxed) > goal);
    };
    thread::scope(|scope| {
        (0..8).for_each(|_| drop(scope.spawn(work)));
        for server in &mut servers[..2] {
            goes_on();
            server.kill();
            goes_on();
            server.restart();
        }
        drop(ends);
    });
}

//! PostgreSQL's transaction ids as the ledger: what they tell, and that an id which is used again tells nothing.

#![cfg(all(target_os = "linux", feature = "postgres"))]

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::r2d2::Pool;
use diesel::result::Error;
use diesel_peers::{
    Doubt, DoubtReason, Isolation, Ledger, Outcome, PeerManager, Peers, RetryPolicy, Strategy,
    Verdict,
};
use support::backend::{PATIENCE, manager_of, pool_of};
use support::cutting_proxy::{Cut, CuttingProxy};
use support::postgres::{self, Postgres};
use support::process::signal;
use support::wait_until;

use crate::orphaned_session::sessions_ended;
use crate::transactions::{Kind, LOST_ANSWERS, mark, resolves_lost_answer};

const SOON: Duration = Duration::from_millis(300);

/// A server with the table `marks`.
fn server() -> Postgres {
    let server = Postgres::start();
    // An id is used again after a crash if nothing of its transaction was written.
    server.sql("ALTER SYSTEM SET wal_writer_delay = '10s'");
    server.sql("SELECT pg_reload_conf()");
    server.sql_in("app", "CREATE TABLE marks (id INT PRIMARY KEY); GRANT ALL ON marks TO app");
    server
}

fn pool(urls: Vec<String>, deadline: Duration) -> Pool<PeerManager<PgConnection>> {
    pool_with_handle(urls, deadline).0
}

/// A pool of one connection with this ledger. The first peer serves as long as it is up.
fn pool_with_handle(
    urls: Vec<String>,
    deadline: Duration,
) -> (Pool<PeerManager<PgConnection>>, Peers) {
    let tiers = 1..urls.len();
    let mut manager = manager_of::<PgConnection>(urls)
        .strategy(Strategy::Ordered)
        .ledger(Ledger::Xid)
        .retry_deadline(deadline);
    for tier in tiers {
        manager = manager.tier(format!("peer{tier}"), tier.try_into().expect("few peers"));
    }
    pool_of(manager, 1)
}

/// Runs a transaction whose COMMIT does not reach the server, with no peer that could resolve it. Returns the doubt.
fn doubt(server: &Postgres, proxy: &CuttingProxy, cut: Cut) -> Doubt {
    let pool = pool(vec![postgres::url(proxy.port())], SOON);
    let mut conn = pool.get().expect("the peer is up");
    proxy.refuse_connections();
    proxy.cut_at("COMMIT", cut);
    let outcome = conn.transaction_with_retry(|conn| mark(conn, 1));
    let Outcome::Unknown(doubt) = outcome else { panic!("{outcome:?}") };
    assert_eq!(doubt.reason(), DoubtReason::CommitUnanswered);
    assert!(doubt.xid().is_some() && doubt.table().is_none(), "{doubt:?}");
    assert_eq!(server.marks(), 0);
    doubt
}

/// Returns the verdict, which comes at once if there is one.
fn resolve(server: &Postgres, doubt: &Doubt) -> Verdict {
    doubt.resolve(&mut pool(vec![server.url()], PATIENCE).get().expect("the peer is up"))
}

/// Returns what is said when no verdict comes.
fn resolve_soon(server: &Postgres, doubt: &Doubt) -> Verdict {
    doubt.resolve(&mut pool(vec![server.url()], SOON).get().expect("the peer is up"))
}

fn unknown(verdict: Verdict) -> DoubtReason {
    let Verdict::Unknown(doubt) = verdict else { panic!("{verdict:?}") };
    doubt.reason()
}

/// Kills the process of a session. The server ends all others and recovers, and does not start anew itself.
fn crash(server: &Postgres) {
    let started = || server.sql("SELECT pg_postmaster_start_time()");
    let before = started();
    let statistics = |conn: &mut PgConnection| {
        let began = diesel::dsl::sql::<diesel::sql_types::Text>(
            "pg_stat_get_bgwriter_stat_reset_time()::text",
        );
        diesel::select(began).get_result::<String>(conn).ok()
    };
    let mut victim = PgConnection::establish(&server.url()).expect("the server is up");
    let before_statistics = statistics(&mut victim).expect("the server is up");
    let pid = diesel::dsl::sql::<diesel::sql_types::Integer>("pg_backend_pid()");
    let pid: i32 = diesel::select(pid).get_result(&mut victim).expect("the server is up");
    signal("KILL", &[pid.unsigned_abs()]);
    wait_until("the server has recovered", PATIENCE, || {
        let conn = PgConnection::establish(&server.url());
        conn.ok()
            .and_then(|mut conn| statistics(&mut conn))
            .is_some_and(|began| began != before_statistics)
    });
    assert_eq!(started(), before);
}

/// Begins transactions until one has this id, and returns its session.
fn stranger_with(server: &Postgres, xid: u64) -> PgConnection {
    let mut stranger = PgConnection::establish(&server.url()).expect("the server is up");
    loop {
        let id = diesel::dsl::sql::<diesel::sql_types::Text>("pg_current_xact_id()::text");
        stranger.batch_execute("BEGIN").expect("the server is up");
        let id: String = diesel::select(id).get_result(&mut stranger).expect("the server is up");
        let id: u64 = id.parse().expect("a number");
        if id == xid {
            return stranger;
        }
        assert!(id < xid, "the id {xid} is not used again: the next one is {id}");
        stranger.batch_execute("COMMIT").expect("the server is up");
    }
}

#[test]
fn commit_whose_answer_is_lost_is_resolved() {
    let server = server();
    let proxy = CuttingProxy::start(server.port());
    let urls = vec![postgres::url(proxy.port()), server.url()];
    for (id, lost) in (1..).zip(LOST_ANSWERS) {
        let pool = pool(urls.clone(), PATIENCE);
        let mut conn = pool.get().expect("both peers are up");
        resolves_lost_answer(&mut conn, &server, &proxy, id, lost);
    }
}

/// The server still has the session.
#[test]
fn commit_that_is_still_on_its_way_never_comes() {
    for isolation in [None, Some(Isolation::Serializable)] {
        let server = server();
        let proxy = CuttingProxy::start(server.port());
        let (pool, peers) =
            pool_with_handle(vec![postgres::url(proxy.port()), server.url()], PATIENCE);
        let mut conn = pool.get().expect("both peers are up");
        proxy.cut_at("COMMIT", Cut::Delayed);
        let mut runs = 0;
        let mut policy = conn.retry_policy();
        if let Some(isolation) = isolation {
            policy = policy.isolation(isolation);
        }
        let outcome = policy.transaction(&mut conn, |conn| {
            runs += 1;
            mark(conn, runs)
        });
        assert_eq!((outcome, runs), (Outcome::Committed(()), 2));
        assert_eq!(sessions_ended(&peers), 1);
        proxy.release();
        let first = server.sql_in("app", "SELECT count(*) FROM marks WHERE id = 1");
        assert_eq!((first.trim(), server.marks()), ("0", 1));
    }
}

#[test]
fn id_that_a_crash_gives_to_another_transaction_is_not_called_committed() {
    let server = server();
    let proxy = CuttingProxy::start(server.port());
    let doubt = doubt(&server, &proxy, Cut::Delayed);
    let xid = doubt.xid().expect("this is the ledger");
    crash(&server);
    let mut stranger = stranger_with(&server, xid);
    // It is not ours, so it is not ended.
    assert_eq!(unknown(resolve_soon(&server, &doubt)), DoubtReason::CommitUnanswered);
    stranger.batch_execute("INSERT INTO marks VALUES (2); COMMIT").expect("it was not ended");
    assert_eq!(unknown(resolve(&server, &doubt)), DoubtReason::OtherIncarnation);
    assert_eq!(server.marks(), 1, "that of the stranger");
}

#[test]
fn id_that_a_failover_gives_to_another_transaction_is_not_called_committed() {
    let mut server = server();
    let standby = server.start_synchronous_standby();
    let proxy = CuttingProxy::start(server.port());
    let doubt = doubt(&server, &proxy, Cut::Delayed);
    let xid = doubt.xid().expect("this is the ledger");
    assert_eq!(unknown(resolve_soon(&standby, &doubt)), DoubtReason::CommitUnanswered, "a standby");
    server.kill();
    standby.promote();
    let mut stranger = stranger_with(&standby, xid);
    assert_eq!(unknown(resolve_soon(&standby, &doubt)), DoubtReason::CommitUnanswered);
    stranger.batch_execute("INSERT INTO marks VALUES (2); COMMIT").expect("it was not ended");
    assert_eq!(unknown(resolve(&standby, &doubt)), DoubtReason::OtherIncarnation);
    assert_eq!(standby.marks(), 1, "that of the stranger");
}

#[test]
fn transaction_that_a_crash_has_lost_is_aborted() {
    let server = server();
    let proxy = CuttingProxy::start(server.port());
    let lost = doubt(&server, &proxy, Cut::Delayed);
    crash(&server);
    // The first one finds an id that is not used yet, and uses it up.
    for _ in 0..3 {
        assert_eq!(resolve(&server, &lost), Verdict::Aborted);
    }
}

/// The servers of the tests have the same data in the beginning, and so the same identifier.
#[cfg(feature = "serde")]
#[test]
fn server_with_another_identifier_decides_nothing() {
    let server = server();
    let proxy = CuttingProxy::start(server.port());
    let doubt = doubt(&server, &proxy, Cut::BeforeServer);
    let json = serde_json::to_value(&doubt).expect("a doubt can be written");
    let read = |json| serde_json::from_value::<Doubt>(json).expect("a doubt can be read");
    let mut of_other = json.clone();
    of_other["history"] = "1".into();
    assert_eq!(unknown(resolve_soon(&server, &read(of_other))), DoubtReason::OtherHistory);
    assert_eq!(resolve(&server, &read(json)), Verdict::Aborted);
}

#[cfg(feature = "sqlite")]
#[test]
fn other_databases_have_no_such_ledger() {
    let (pool, _) = pool_of(manager_of::<SqliteConnection>([":memory:".to_owned()]), 1);
    let mut conn = pool.get().expect("SQLite needs no server");
    let outcome = RetryPolicy::new().ledger(Ledger::Xid).transaction(&mut conn, |_| Ok(()));
    let Outcome::<(), Error>::Aborted(error) = outcome else { panic!("{outcome:?}") };
    assert!(error.to_string().contains("by transaction ids needs PostgreSQL"), "{error}");
}

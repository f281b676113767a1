//! Errors of the linked client library are classified as the right fault: the libraries of MariaDB and MySQL
//! have different texts. `--nocapture` shows the texts of the linked library.

#![cfg(all(target_os = "linux", feature = "mysql"))]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;

use diesel::connection::{Connection, SimpleConnection};
use diesel::prelude::*;
use diesel::sql_types::Integer;
use diesel::{IntoSql, MysqlConnection};
use diesel_peers::Fault;
use support::backend::PATIENCE;
use support::mariadb::{MariaDb, url_at};
use support::network::connect;
use support::port::free_port;
use support::{APP, wait_until};

/// Asserts that a login fails with an error of this fault.
#[track_caller]
fn login_fails(url: &str, what: &str, fault: Fault) {
    let error = MysqlConnection::establish(url).map(drop).expect_err(what);
    println!("login, {what}: {error}");
    assert_eq!(Fault::of_login(&error), fault, "{what}: {error}");
}

/// Asserts that a query has failed with an error of this fault.
#[track_caller]
fn fails(outcome: QueryResult<()>, what: &str, fault: Fault) {
    let error = outcome.expect_err(what);
    println!("query, {what}: {error}");
    assert_eq!(Fault::of(&error), fault, "{what}: {error}");
}

fn log_in(server: &MariaDb) -> MysqlConnection {
    MysqlConnection::establish(&server.url()).expect("the server is up")
}

/// Sends the query as text.
fn simple(conn: &mut MysqlConnection, query: &str) -> QueryResult<()> {
    conn.batch_execute(query)
}

/// Prepares the query and executes it.
fn prepared(conn: &mut MysqlConnection, query: &str) -> QueryResult<()> {
    diesel::sql_query(query).execute(conn).map(drop)
}

/// Executes a query whose prepared statement diesel caches.
fn cached(conn: &mut MysqlConnection) -> QueryResult<()> {
    diesel::select(1.into_sql::<Integer>()).execute(conn).map(drop)
}

#[test]
fn unreachable_server_is_classified_as_peer_down() {
    let unused = free_port();
    login_fails(&url_at("127.0.0.1", unused.number()), "refused", Fault::PeerDown);
    login_fails(&url_at("peer0.invalid", 3306), "no such host", Fault::PeerDown);
    let url = format!("mysql://{APP}@localhost/{APP}?unix_socket=/nowhere/socket");
    login_fails(&url, "no such socket", Fault::PeerDown);
    for (what, answer) in
        [("disconnects", &b""[..]), ("another protocol", b"HTTP/1.1 400 Bad Request\r\n\r\n")]
    {
        let port = serve_one(move |mut stream| drop(stream.write_all(answer)));
        login_fails(&url_at("127.0.0.1", port), what, Fault::PeerDown);
    }
}

#[test]
fn refused_login_is_classified_as_misconfigured() {
    let server = MariaDb::start();
    let url = server.url();
    let unknown = url.replacen(APP, "nobody", 1);
    login_fails(&unknown, "unknown user", Fault::Misconfigured);
    login_fails(&url.replace("s3cret", "wrong"), "wrong password", Fault::Misconfigured);
    let (address, _) = url.rsplit_once('/').expect("it names a database");
    login_fails(&format!("{address}/another"), "no access to the database", Fault::Misconfigured);
    server.sql(&format!("GRANT ALL ON *.* TO {APP}"));
    login_fails(&format!("{address}/another"), "unknown database", Fault::Misconfigured);
    server.sql(&format!("REVOKE ALL ON *.* FROM {APP}"));

    server.sql(&format!("ALTER USER {APP} ACCOUNT LOCK"));
    login_fails(&url, "account locked", Fault::Misconfigured);
    server.sql(&format!("ALTER USER {APP} ACCOUNT UNLOCK PASSWORD EXPIRE"));
    fails(simple(&mut log_in(&server), "SELECT 1"), "password expired", Fault::Misconfigured);
    server.sql("SET GLOBAL disconnect_on_expired_password = 1");
    login_fails(&url, "password expired", Fault::Misconfigured);
    server.sql(&format!("ALTER USER {APP} PASSWORD EXPIRE NEVER"));
    // MySQL's library does not support this authentication plugin.
    server.sql("INSTALL SONAME 'auth_ed25519'");
    server.sql("CREATE USER modern IDENTIFIED VIA ed25519 USING PASSWORD('s3cret-app')");
    server.sql(&format!("GRANT ALL ON {APP}.* TO modern"));
    let modern = url.replacen(APP, "modern", 1);
    match MysqlConnection::establish(&modern) {
        Ok(_) => println!("login, with ed25519: supported"),
        Err(_) => login_fails(&modern, "with ed25519", Fault::Misconfigured),
    }
    server.sql(&format!("RENAME USER {APP} TO {APP}@'192.0.2.1', modern TO modern@'192.0.2.1'"));
    login_fails(&url, "not from this host", Fault::Misconfigured);
}

#[test]
fn login_to_a_full_server_is_classified_as_peer_full() {
    let server = MariaDb::start();
    server.sql(&format!("ALTER USER {APP} WITH MAX_USER_CONNECTIONS 1"));
    let one = log_in(&server);
    login_fails(&server.url(), "the user's limit is reached", Fault::PeerFull);
    server.sql(&format!("ALTER USER {APP} WITH MAX_USER_CONNECTIONS 0"));
    server.sql("SET GLOBAL max_connections = 10");
    let all: Vec<_> =
        std::iter::from_fn(|| MysqlConnection::establish(&server.url()).ok()).collect();
    login_fails(&server.url(), "the server's limit is reached", Fault::PeerFull);
    drop((one, all));
}

#[test]
fn login_without_required_tls_is_classified_as_misconfigured() {
    let server = MariaDb::start_with_tls();
    let url = format!("{}?ssl_mode=disabled", server.url());
    login_fails(&url, "without TLS", Fault::Misconfigured);
}

/// A server that disconnects during the TLS handshake must not be taken for one with a wrong certificate.
#[test]
fn disconnect_during_the_tls_handshake_is_classified_as_peer_down() {
    let server = MariaDb::start_with_tls();
    let ca = server.folder().join("certificate.pem");
    for (what, begins) in [("after the request for TLS", false), ("after the client hello", true)] {
        for reads in [true, false] {
            let real = server.port();
            let port = serve_one(move |client| greet_and_disconnect(client, real, begins, reads));
            let url = url_at("127.0.0.1", port);
            let url = format!("{url}?ssl_mode=required&ssl_ca={}", ca.display());
            let what =
                format!("disconnects {what}, {}", if reads { "by a close" } else { "by a reset" });
            login_fails(&url, &what, Fault::PeerDown);
        }
    }
}

/// Starts a thread that serves one connection, and returns the port of its listener.
fn serve_one(serve: impl FnOnce(TcpStream) + Send + 'static) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let port = listener.local_addr().expect("the listener is bound").port();
    let thread = thread::Builder::new().name("answers".into());
    let thread = thread.spawn(move || serve(listener.accept().expect("a client connects").0));
    drop(thread.expect("a thread can be started"));
    port
}

/// Forwards the greeting of the server on port `real`, and disconnects when the client has requested TLS, or
/// has begun its handshake (`begins`). Unless the last message was read (`reads`), the client gets a reset.
fn greet_and_disconnect(mut client: TcpStream, real: u16, begins: bool, reads: bool) {
    let mut packet = [0; 4096];
    let mut server = connect(real, PATIENCE).expect("the server is up");
    let length = server.read(&mut packet).expect("the server sends a greeting");
    client.write_all(&packet[..length]).expect("the client is connected");
    // The request for TLS is a packet of 32 bytes in both libraries.
    let request = &mut [0; 36];
    if begins || reads {
        client.read_exact(request).expect("the client requests TLS");
    } else {
        client.peek(request).expect("the client requests TLS");
    }
    if begins {
        let hello = if reads { client.read(&mut packet) } else { client.peek(&mut packet) };
        hello.expect("the client begins the handshake");
    }
}

#[test]
fn ended_session_is_classified_as_connection_lost() {
    let server = MariaDb::start();
    let kill_all = || {
        server.sql(&format!("KILL USER {APP}"));
        wait_until("all sessions have ended", PATIENCE, || server.sessions() == 0);
    };
    let mut conns: Vec<_> = (0..3).map(|_| log_in(&server)).collect();
    cached(&mut conns[2]).expect("the server is up");
    kill_all();
    fails(simple(&mut conns[0], "SELECT 1"), "killed while idle", Fault::ConnectionLost);
    fails(
        prepared(&mut conns[1], "SELECT 1"),
        "killed while idle, prepared",
        Fault::ConnectionLost,
    );
    fails(cached(&mut conns[2]), "killed while idle, cached", Fault::ConnectionLost);
    for conn in &mut conns {
        fails(simple(conn, "SELECT 1"), "again", Fault::ConnectionLost);
        fails(prepared(conn, "SELECT 1"), "again, prepared", Fault::ConnectionLost);
        fails(cached(conn), "again, cached", Fault::ConnectionLost);
        fails(conn.begin_test_transaction(), "a transaction", Fault::ConnectionLost);
    }

    let mut conn = log_in(&server);
    simple(&mut conn, "SET wait_timeout = 1").expect("the server is up");
    wait_until("the server ends the idle session", PATIENCE, || server.sessions() == 0);
    fails(simple(&mut conn, "SELECT 1"), "idle beyond wait_timeout", Fault::ConnectionLost);

    let mut conn = log_in(&server);
    let long = format!("SELECT '{}'", "x".repeat(20 << 20));
    fails(simple(&mut conn, &long), "beyond max_allowed_packet", Fault::ConnectionLost);
}

/// A query that takes longer than a test.
const HANGS: &str = "SELECT SLEEP(100), 1";

fn wait_until_it_runs(server: &MariaDb) {
    let count =
        format!("SELECT COUNT(*) FROM information_schema.processlist WHERE info = '{HANGS}'");
    wait_until("the query runs", PATIENCE, || server.sql(&count).trim() == "1");
}

/// Asserts the fault of a running query when `end` happens, sent as text and prepared.
fn while_it_runs(server: &MariaDb, what: &str, fault: Fault, end: impl Fn()) {
    for (how, run) in [("as text", simple as fn(&mut _, &_) -> _), ("prepared", prepared)] {
        let mut conn = log_in(server);
        thread::scope(|scope| {
            let query = scope.spawn(move || run(&mut conn, HANGS));
            wait_until_it_runs(server);
            end();
            fails(
                query.join().expect("the thread does not panic"),
                &format!("{what} ({how})"),
                fault,
            );
        });
    }
}

#[test]
fn aborted_query_is_classified_by_its_cause() {
    let mut server = MariaDb::start();
    let id = format!("SELECT id FROM information_schema.processlist WHERE info = '{HANGS}'");
    let kill = |what: &str| server.sql(&format!("KILL {what} {}", server.sql(&id).trim()));
    while_it_runs(&server, "the session is killed", Fault::ConnectionLost, || {
        kill("CONNECTION");
    });
    while_it_runs(&server, "the query is killed", Fault::Query, || {
        kill("QUERY");
    });

    let mut conn = log_in(&server);
    let queries = [simple as fn(&mut _, &_) -> _, prepared];
    for run in queries {
        let limited = "SET STATEMENT max_statement_time = 0.1 FOR SELECT SLEEP(100)";
        fails(run(&mut conn, limited), "beyond max_statement_time", Fault::Query);
    }
    simple(&mut conn, "CREATE TABLE t (id INT PRIMARY KEY)").expect("the server is up");
    simple(&mut conn, "INSERT INTO t VALUES (1)").expect("the server is up");
    let mut holds = log_in(&server);
    simple(&mut holds, "BEGIN").expect("the server is up");
    simple(&mut holds, "UPDATE t SET id = 1").expect("the server is up");
    simple(&mut holds, "DELETE FROM t").expect("the server is up");
    simple(&mut conn, "SET innodb_lock_wait_timeout = 1").expect("the server is up");
    for run in queries {
        fails(run(&mut conn, "DELETE FROM t"), "beyond innodb_lock_wait_timeout", Fault::Retryable);
    }
    simple(&mut holds, "ROLLBACK").expect("the server is up");
    server.sql("SET GLOBAL read_only = ON");
    for run in queries {
        fails(run(&mut conn, "DELETE FROM t"), "the server is read-only", Fault::WrongRole);
    }

    let mut conn = log_in(&server);
    thread::scope(|scope| {
        let query = scope.spawn(move || simple(&mut conn, HANGS));
        wait_until_it_runs(&server);
        server.kill();
        fails(
            query.join().expect("the thread does not panic"),
            "the server is killed",
            Fault::ConnectionLost,
        );
    });
}

//! Code that was written for diesel's own connections and pools accepts a `PeerConnection` without a change.

use diesel::connection::{CacheSize, LoadConnection, WithMetadataLookup};
use diesel::migration::MigrationConnection;
use diesel::prelude::*;
use diesel::r2d2::{Pool, PooledConnection, R2D2Connection, TestCustomizer};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use diesel_peers::{PeerConnection, PeerManager};
use schema::notes;
use support::backend::{Backend, SqlitePath, build, manager_over};

mod schema {
    diesel::table! {
        notes (id) {
            id -> Integer,
            text -> VarChar,
        }
    }
}

#[derive(Debug, PartialEq, Eq, Queryable, Identifiable, AsChangeset)]
struct Note {
    id: i32,
    text: String,
}

fn pool_over<B: Backend>(peers: &[B], max_size: u32) -> Pool<PeerManager<B::Connection>> {
    let manager = build(manager_over(peers));
    Pool::builder().max_size(max_size).build(manager).expect("the peers are up")
}

/// The statement that creates the table, in the SQL of every backend.
const CREATE_NOTES: &str =
    "CREATE TABLE notes (id INTEGER NOT NULL PRIMARY KEY, text VARCHAR(100) NOT NULL)";

/// The same application code for each backend, with its connection as `&mut C`, `impl Connection` and
/// `PooledConnection`.
macro_rules! application {
    ($module:ident, $connection:ty, $backend:ty, $server:ty) => {
        mod $module {
            use super::*;

            fn add(conn: &mut $connection, id: i32, text: &str) -> QueryResult<usize> {
                diesel::insert_into(notes::table)
                    .values((notes::id.eq(id), notes::text.eq(text)))
                    .execute(conn)
            }

            fn rename(conn: &mut impl Connection<Backend = $backend>) -> QueryResult<usize> {
                diesel::update(notes::table).set(notes::text.eq("none")).execute(conn)
            }

            fn count(conn: &mut impl LoadConnection<Backend = $backend>) -> QueryResult<i64> {
                notes::table.count().get_result(conn)
            }

            fn all(
                conn: &mut PooledConnection<PeerManager<$connection>>,
            ) -> QueryResult<Vec<Note>> {
                notes::table.order(notes::id).load(conn)
            }

            #[test]
            fn application_code_accepts_a_peer_connection() {
                let peers = <$server as Backend>::start(1);
                let pool = pool_over(&peers, 2);
                let mut conn = pool.get().expect("the peer is up");
                assert_eq!(conn.peer(), "peer0");
                diesel::sql_query(CREATE_NOTES).execute(&mut conn).expect("a new table");
                conn.set_prepared_statement_cache_size(CacheSize::Disabled);
                conn.set_prepared_statement_cache_size(CacheSize::Unbounded);

                add(&mut conn, 1, "one").expect("through `&mut` the connection");
                assert_eq!(rename(&mut conn), Ok(1), "through `impl Connection`");
                assert_eq!(count(&mut conn), Ok(1), "through `impl LoadConnection`");
                let bare: &mut PeerConnection<$connection> = &mut conn;
                assert_eq!(count(bare), Ok(1), "through `PeerConnection`");
                let two = conn.transaction(|conn| {
                    add(conn, 2, "two")?;
                    conn.transaction(|conn| {
                        add(conn, 3, "three")?;
                        Err::<(), _>(diesel::result::Error::RollbackTransaction)
                    })
                    .expect_err("the savepoint is rolled back");
                    count(conn)
                });
                assert_eq!(two, Ok(2), "in nested transactions");
                let note = Note { id: 1, text: "uno".to_owned() };
                let saved: Note = note.save_changes(&mut *conn).expect("`save_changes` works");
                assert_eq!(saved, note);
                assert_eq!(all(&mut conn).expect("through the pooled connection").len(), 2);
                conn.ping().expect("`R2D2Connection` works");
                assert!(!R2D2Connection::is_broken(&mut *conn));
            }

            /// Compiles only if the traits that other crates require of diesel's connections are implemented.
            #[expect(dead_code, reason = "the function only has to compile")]
            fn implements_the_traits(conn: &mut PeerConnection<$connection>) {
                fn requires<C: MigrationConnection + R2D2Connection + LoadConnection>(_: &mut C) {}
                fn requires_helper<C: diesel::connection::MultiConnectionHelper>(_: &mut C) {}
                requires(conn);
                requires_helper(conn);
            }

            #[test]
            fn migrations_run_through_the_pool() {
                const MIGRATIONS: EmbeddedMigrations =
                    embed_migrations!("../examples/guestbook/migrations");
                let peers = <$server as Backend>::start(1);
                let pool = pool_over(&peers, 2);
                let mut conn = pool.get().expect("the peer is up");
                assert!(
                    conn.has_pending_migration(MIGRATIONS)
                        .expect("the table of migrations is readable")
                );
                conn.run_pending_migrations(MIGRATIONS).expect("the migrations succeed");
                assert!(
                    !conn
                        .has_pending_migration(MIGRATIONS)
                        .expect("the table of migrations is readable")
                );
            }

            #[test]
            fn test_transaction_is_rolled_back_with_its_pool() {
                let peers = <$server as Backend>::start(1);
                let pool = pool_over(&peers, 1);
                let mut conn = pool.get().expect("the peer is up");
                diesel::sql_query(CREATE_NOTES).execute(&mut conn).expect("a new table");
                drop((conn, pool));

                let manager = build(manager_over(&peers));
                let pool = Pool::builder()
                    .max_size(1)
                    .connection_customizer(Box::new(TestCustomizer))
                    .build(manager)
                    .expect("the peer is up");
                for rows in 0..3 {
                    let mut conn = pool.get().expect("the peer is up");
                    assert_eq!(
                        count(&mut conn),
                        Ok(rows),
                        "the test transaction sees its own rows"
                    );
                    add(&mut conn, i32::try_from(rows).unwrap(), "x").expect("a new row");
                }
                drop(pool);
                let pool = pool_over(&peers, 1);
                let mut conn = pool.get().expect("the peer is up");
                assert_eq!(count(&mut conn), Ok(0), "nothing was committed");
            }
        }
    };
}

application!(sqlite, SqliteConnection, diesel::sqlite::Sqlite, SqlitePath);
#[cfg(feature = "mysql")]
application!(mariadb, MysqlConnection, diesel::mysql::Mysql, support::mariadb::MariaDb);
#[cfg(feature = "postgres")]
application!(postgres, PgConnection, diesel::pg::Pg, support::postgres::Postgres);

/// Methods that only diesel's own connection of a backend has are reached through `Deref`.
#[test]
fn sqlite_connection_s_own_methods_are_reached() {
    fn lookup<C: WithMetadataLookup>(_: &mut C) {}

    let peers = SqlitePath::start(1);
    let mut conn = pool_over(&peers, 1).get().expect("the peer is up");
    let one = conn.immediate_transaction(|conn| {
        diesel::select(1.into_sql::<diesel::sql_types::Integer>()).get_result::<i32>(conn)
    });
    assert_eq!(one, Ok(1));
    lookup(&mut *conn);
}

#[cfg(feature = "postgres")]
#[test]
fn postgres_connection_s_own_methods_are_reached() {
    use diesel::ExecuteCopyFromDsl;
    use diesel::pg::{CopyFormat, GetPgMetadataCache};
    use std::io::Read;

    fn cache<C: GetPgMetadataCache>(_: &mut C) {}

    let peers = <support::postgres::Postgres as Backend>::start(1);
    let mut conn = pool_over(&peers, 1).get().expect("the peer is up");
    diesel::sql_query("CREATE TABLE notes (id INTEGER PRIMARY KEY, text VARCHAR NOT NULL)")
        .execute(&mut conn)
        .expect("a new table");
    conn.build_transaction()
        .serializable()
        .run(|conn| diesel::sql_query("INSERT INTO notes VALUES (1, 'one')").execute(conn))
        .expect("a serializable transaction");
    cache(&mut *conn);

    let copy = || {
        diesel::copy_from(notes::table).from_raw_data(notes::table, |sink| {
            sink.write_all(b"2\ttwo\n")
                .map_err(|error| diesel::result::Error::SerializationError(error.into()))
        })
    };
    let rows = || copy().with_format(CopyFormat::Text);
    assert_eq!(rows().execute(&mut *conn), Ok(1), "COPY FROM, on `PeerConnection` itself");
    diesel::delete(notes::table.find(2)).execute(&mut conn).expect("the row exists");
    assert_eq!(rows().execute(&mut **conn), Ok(1), "COPY FROM, on the connection inside");
    let mut out = String::new();
    diesel::copy_to(notes::table)
        .load_raw(&mut **conn)
        .expect("COPY TO, on the connection inside")
        .read_to_string(&mut out)
        .expect("the copied rows are text");
    assert_eq!(out, "1\tone\n2\ttwo\n");
}

#[cfg(feature = "mysql")]
mod multi_connection {
    use diesel::prelude::*;
    use support::backend::{
        Backend, PATIENCE, SOON, SqlitePath, links, manager_of, pool_of, state,
    };
    use support::wait_until;

    /// Two kinds of server behind one pool; the URL of a peer decides which of them it is.
    #[derive(diesel::MultiConnection)]
    pub(crate) enum AnyConnection {
        Mysql(MysqlConnection),
        Sqlite(SqliteConnection),
    }

    #[test]
    fn pool_of_a_multi_connection_enum_replaces_the_connection_of_a_killed_server() {
        let mut server = <support::mariadb::MariaDb as Backend>::start(1).swap_remove(0);
        let path = SqlitePath::start(1).swap_remove(0);
        let urls = [Backend::url(&server), path.url()];
        let (pool, peers) = pool_of(manager_of::<AnyConnection>(urls).check_interval(SOON), 2);
        wait_until("the pool is full", PATIENCE, || links(&peers) == [1, 1]);
        let mut both =
            [pool.get().expect("both peers are up"), pool.get().expect("both peers are up")];
        for conn in &mut both {
            diesel::sql_query("SELECT 1").execute(conn).expect("both peers are up");
        }
        server.kill();
        let on_mysql = both
            .iter_mut()
            .find(|conn| conn.peer() == "peer0")
            .expect("there is one connection to each peer");
        diesel::sql_query("SELECT 1").execute(on_mysql).expect_err("the server was killed");
        drop(both);
        wait_until("the peer is marked down", PATIENCE, || state(&peers, "peer0").is_marked_down());
        wait_until("the pool is full again", PATIENCE, || links(&peers) == [0, 2]);
    }
}

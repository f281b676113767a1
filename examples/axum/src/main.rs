//! A web service. axum is asynchronous, but the pool and diesel are not. So each request does all its database
//! work on a thread that may block, and no connection is held across an `await`. Nothing needs to be installed:
//!
//! ```sh
//! cargo run -p axum-example -- 127.0.0.1:3000
//! curl -X POST http://127.0.0.1:3000/visits
//! ```
//!
//! A status page for operators is at `/operator`.

mod operator;
#[path = "../../stand_in/mod.rs"]
mod stand_in;

use std::env;
use std::error::Error;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::r2d2::{Pool, PooledConnection};
use diesel_peers::PeerManager;
use diesel_peers::status_page::StatusPage;
use schema::visits;
use tokio::net::TcpListener;
use tokio::{signal, task};

type DbPool = Pool<PeerManager<SqliteConnection>>;
type DbConnection = PooledConnection<PeerManager<SqliteConnection>>;

/// The time after which a request without a connection is refused, so that requests do not pile up under load.
const CHECKOUT_TIMEOUT: Duration = Duration::from_secs(1);

mod schema {
    diesel::table! { visits (id) { id -> Integer, peer -> Text, } }
}

const TABLE: &str = "CREATE TABLE visits (id INTEGER PRIMARY KEY, peer TEXT NOT NULL)";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let servers = stand_in::OneFile::new()?;
    let manager = PeerManager::<SqliteConnection>::builder()
        .peer("db0", servers.peer("db0")?)
        .peer("db1", servers.peer("db1")?)
        // SQLite has one writer at a time: let each connection wait for its turn.
        .on_connect(|conn| conn.batch_execute("PRAGMA busy_timeout = 30000"))
        .build()?;
    let peers = manager.peers();
    // These calls block, but the service does not serve requests yet.
    let pool = Pool::builder().max_size(4).build(manager)?;
    pool.get()?.batch_execute(TABLE)?;

    let address = env::args().nth(1).unwrap_or_else(|| String::from("127.0.0.1:0"));
    let listener = TcpListener::bind(address).await?;
    println!("listening on {}", listener.local_addr()?);
    let app = Router::new().route("/visits", post(visit)).with_state(pool);
    // Everyone who can reach the page can use its buttons. A real service has to put it behind a login.
    let app = app.merge(operator::route("/operator", StatusPage::new().pool(peers).with_actions()));
    let interrupted = async { signal::ctrl_c().await.expect("the process can wait for signals") };
    axum::serve(listener, app).with_graceful_shutdown(interrupted).await?;
    Ok(())
}

async fn visit(State(pool): State<DbPool>) -> Result<String, StatusCode> {
    with_connection(pool, |conn| {
        let peer = conn.peer().to_owned();
        diesel::insert_into(visits::table).values(visits::peer.eq(&peer)).execute(conn)?;
        let count: i64 = visits::table.count().get_result(conn)?;
        Ok(format!("visit {count}, served by {peer}\n"))
    })
    .await
}

/// Runs the database work of one request on one connection.
async fn with_connection<T: Send + 'static>(
    pool: DbPool,
    work: impl FnOnce(&mut DbConnection) -> QueryResult<T> + Send + 'static,
) -> Result<T, StatusCode> {
    let done = task::spawn_blocking(move || {
        let mut conn = pool.get_timeout(CHECKOUT_TIMEOUT).map_err(|error| {
            eprintln!("no connection: {error}");
            StatusCode::SERVICE_UNAVAILABLE
        })?;
        work(&mut conn).map_err(|error| {
            eprintln!("{}: {error}", conn.peer());
            StatusCode::INTERNAL_SERVER_ERROR
        })
    });
    // `spawn_blocking` returns an error if `work` panics.
    done.await.unwrap_or(Err(StatusCode::INTERNAL_SERVER_ERROR))
}

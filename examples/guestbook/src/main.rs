//! A guest book: a small Rocket application whose database has three peers.
//!
//! Run it with `cargo run -p guestbook`, and visit <http://localhost:8000>.
//! Without configuration, the peers are three paths to one SQLite file in `guestbook-data`. With
//! `--features mysql`, the peers can be your own servers, configured in `Rocket.toml`
//!
//! ```toml
//! [default.databases.guestbook]
//! url = "mysql://app:secret@db0,db1,db2/guestbook"
//! ```
//!
//! or in the environment:
//!
//! ```sh
//! ROCKET_DATABASES='{guestbook={url="mysql://app:secret@db0,db1,db2/guestbook"}}'
//! ```
//!
//! A status page for operators is at `/operator`.

#![allow(
    missing_debug_implementations,
    unnameable_types,
    unreachable_pub,
    reason = "an application has no public interface"
)]

mod database;
mod entries;
mod origin;
mod page;
mod schema;

use std::error::Error;

use diesel::QueryResult;
use diesel_peers::rocket::Registry;
use diesel_peers::status_page::StatusPage;
use rocket::fairing::AdHoc;
use rocket::form::{Contextual, Form};
use rocket::http::Status;
use rocket::request::FlashMessage;
use rocket::response::content::RawCss;
use rocket::response::{Flash, Redirect};
use rocket::{Request, State, catch, catchers, error, get, post, routes};

use database::GuestBook;
use entries::Draft;
use origin::SameSite;
use page::Page;

#[rocket::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let rocket = rocket::custom(database::configuration()?)
        // Before the pool, which adds its peers to the registry.
        .attach(Registry::fairing())
        .manage(database::customize())
        .attach(GuestBook::fairing())
        .attach(AdHoc::try_on_ignite("Migrations", database::migrate))
        .mount("/", routes![list, write, peers, style])
        .register("/", catchers![failed]);
    // The status page shows more than visitors should see, and everyone who can reach it can use its buttons. A
    // real site has to put it behind a login.
    let rocket = rocket.mount("/operator", StatusPage::new().with_actions());
    rocket.launch().await?;
    Ok(())
}

/// Shows a page of entries, newest first.
#[get("/?<page>")]
async fn list(
    page: Option<u32>,
    notice: Option<FlashMessage<'_>>,
    book: GuestBook,
) -> Result<Option<Page>, Status> {
    let number = page.unwrap_or(1);
    // All queries of a request use one checkout, so that one peer answers them. If it dies, another one answers
    // all of them again.
    let answer = book.run(move |conn| {
        conn.read_with_retry(|conn| {
            let listing = entries::page(conn, number)?;
            QueryResult::Ok((listing, conn.peer().to_owned()))
        })
    });
    let (listing, peer) = answer.await.map_err(|error| {
        error!("cannot read the entries: {error}");
        Status::ServiceUnavailable
    })?;
    let notice = notice.as_ref().map(FlashMessage::message);
    Ok(listing.map(|listing| page::list(&listing, notice).served_by(peer)))
}

/// Stores an entry. If the form has a mistake or the entry cannot be stored, the response is the form as the
/// visitor has filled it in, so that no message has to be typed twice. (Hence the `Result` of the guard.)
///
/// The redirect to the list is another request, which another peer may answer. If replication has a delay, the
/// list may not show the new entry yet, so a notice confirms that it was stored. (On Galera, `on_connect` can set
/// `wsrep_sync_wait = 1`, with which a node waits until it has caught up.)
#[post("/", data = "<form>")]
async fn write(
    _same_site: SameSite,
    book: Result<GuestBook, ()>,
    form: Form<Contextual<'_, Draft>>,
) -> Result<Flash<Redirect>, Page> {
    let Contextual { value, context } = form.into_inner();
    let Some(draft) = value else { return Err(page::mistaken(&context)) };
    let Ok(book) = book else { return Err(page::not_stored(&context)) };
    let written = book.run(move |conn| entries::insert(conn, &draft)).await;
    written.map_err(|error| {
        error!("cannot store an entry: {error}");
        page::not_stored(&context)
    })?;
    Ok(Flash::success(Redirect::to("/"), "Thank you! Your entry is in the book."))
}

/// Shows the state of the peers. The reason why a peer is down is only in the log, not for visitors.
#[get("/peers")]
fn peers(registry: &State<Registry>) -> Option<Page> {
    registry.peers("guestbook").map(|peers| page::peers(&peers.snapshot()))
}

#[get("/style.css")]
fn style() -> RawCss<&'static str> {
    RawCss(include_str!("style.css"))
}

/// Shows an error page, also with status 503 when the pool has no connection.
#[catch(default)]
fn failed(status: Status, _request: &Request<'_>) -> Page {
    page::failed(status)
}

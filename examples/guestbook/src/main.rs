//! A guest book: a small Rocket application whose database is three peers.
//!
//! Run it with `cargo run -p guestbook`, and visit <http://localhost:8000>.
//! With nothing configured the peers are one SQLite file under three paths, in `guestbook-data`. With
//! `--features mysql` they can be servers of your own, which stand in `Rocket.toml`
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
//! There is a page for its operator, at `/operator`.

#![allow(
    missing_debug_implementations,
    unnameable_types,
    unreachable_pub,
    reason = "what is `pub` here is for the application's own modules"
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
use origin::OwnSite;
use page::Page;

#[rocket::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let rocket = rocket::custom(database::configuration()?)
        // First: the pool enters its peers there.
        .attach(Registry::fairing())
        .manage(database::customize())
        .attach(GuestBook::fairing())
        .attach(AdHoc::try_on_ignite("Migrations", database::migrate))
        .mount("/", routes![list, write, peers, style])
        .register("/", catchers![failed]);
    // For who runs this, with buttons that drain a peer: whoever reaches it can press them, and is told
    // what visitors are not. So `/operator` has to lie behind a login, which this example has not.
    let rocket = rocket.mount("/operator", StatusPage::new().with_actions());
    rocket.launch().await?;
    Ok(())
}

/// The entries, newest first.
#[get("/?<page>")]
async fn list(
    page: Option<u32>,
    notice: Option<FlashMessage<'_>>,
    book: GuestBook,
) -> Result<Option<Page>, Status> {
    let number = page.unwrap_or(1);
    // All queries of a request in one checkout, so that one peer answers them.
    let answer = book.run(move |conn| {
        let listing = entries::page(conn, number)?;
        QueryResult::Ok((listing, conn.peer().to_owned()))
    });
    let (listing, peer) = answer.await.map_err(|error| {
        error!("no list of entries: {error}");
        Status::ServiceUnavailable
    })?;
    let notice = notice.as_ref().map(FlashMessage::message);
    Ok(listing.map(|listing| page::list(&listing, notice).served_by(peer)))
}

/// Takes an entry. A form with a mistake comes back as it was filled in, and so does one that cannot
/// be stored (hence the `Result` of the guard): nobody has to type a message twice.
///
/// The list to which it redirects is another request, and as likely as not another peer answers it.
/// Where peers hand on what is written with a delay, the new entry may not be there yet. That is why
/// a notice says that it was taken. (Galera nodes wait until they have caught up when `on_connect`
/// sets `wsrep_sync_wait = 1`.)
#[post("/", data = "<form>")]
async fn write(
    _own: OwnSite,
    book: Result<GuestBook, ()>,
    form: Form<Contextual<'_, Draft>>,
) -> Result<Flash<Redirect>, Page> {
    let Contextual { value, context } = form.into_inner();
    let Some(draft) = value else { return Err(page::mistaken(&context)) };
    let Ok(book) = book else { return Err(page::not_stored(&context)) };
    let written = book.run(move |conn| entries::insert(conn, &draft)).await;
    written.map_err(|error| {
        error!("an entry was not stored: {error}");
        page::not_stored(&context)
    })?;
    Ok(Flash::success(Redirect::to("/"), "Thank you! Your entry is in the book."))
}

/// How the peers are. Why one is down stands in the log, and is no visitor's business.
#[get("/peers")]
fn peers(registry: &State<Registry>) -> Option<Page> {
    registry.peers("guestbook").map(|peers| page::peers(&peers.snapshot()))
}

#[get("/style.css")]
fn style() -> RawCss<&'static str> {
    RawCss(include_str!("style.css"))
}

/// Also what is answered when the pool has no connection to give, which is a 503.
#[catch(default)]
fn failed(status: Status, _request: &Request<'_>) -> Page {
    page::failed(status)
}

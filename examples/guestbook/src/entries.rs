//! The entries of the guest book: reading, validating and storing.

use std::hash::{DefaultHasher, Hash, Hasher};

use diesel::prelude::*;
use diesel::result::{DatabaseErrorKind, Error};
use diesel_peers::{Outcome, PeerConnection, TransactionError};
use rand::TryRng;
use rand::rngs::SysRng;
use rocket::form::{self, FromForm};
use rocket::time::OffsetDateTime;

use crate::database::Db;
use crate::schema::entries;

pub const PER_PAGE: u32 = 10;
/// The longest name, in characters. Browsers count some characters twice, so they never accept a longer text.
pub const NAME_LENGTH: usize = 60;
/// The longest message, in characters.
pub const MESSAGE_LENGTH: usize = 1000;

#[derive(Queryable, Selectable, Insertable)]
#[diesel(table_name = entries)]
pub struct Entry {
    pub id: i64,
    pub written_at: i64,
    pub name: String,
    pub message: String,
}

/// One page of the list.
pub struct Listing {
    pub entries: Vec<Entry>,
    pub number: u32,
    /// The number of pages.
    pub pages: u32,
    /// The number of entries on all pages.
    pub count: i64,
}

/// An entry as a visitor submits it.
#[derive(FromForm, Hash)]
pub struct Draft {
    /// A random number from the form.
    key: String,
    #[field(validate = is_filled(NAME_LENGTH))]
    name: String,
    #[field(validate = is_filled(MESSAGE_LENGTH))]
    message: String,
}

impl Draft {
    /// The id of the entry, which is the same if the same form is sent again.
    ///
    /// A connection may be lost after an entry was stored but before the response of the server arrived. Then
    /// the entry is inserted again, perhaps by another peer, and is still stored only once.
    fn id(&self) -> i64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        i64::from_ne_bytes(hasher.finish().to_ne_bytes())
    }
}

/// Returns the random key of a new form.
pub fn new_key() -> String {
    SysRng.try_next_u64().expect("the system has random numbers").to_string()
}

/// Returns page `number` of the list, newest entries first, or `None` if the page does not exist.
pub fn page(conn: &mut PeerConnection<Db>, number: u32) -> QueryResult<Option<Listing>> {
    let count: i64 = entries::table.count().get_result(conn)?;
    let pages = u32::try_from(count).unwrap_or(u32::MAX).div_ceil(PER_PAGE).max(1);
    if !(1..=pages).contains(&number) {
        return Ok(None);
    }
    let entries = entries::table
        .select(Entry::as_select())
        .order((entries::written_at.desc(), entries::id.desc()))
        .limit(PER_PAGE.into())
        .offset((i64::from(number) - 1) * i64::from(PER_PAGE))
        .load(conn)?;
    Ok(Some(Listing { entries, number, pages, count }))
}

/// Stores an entry. An entry that exists already is left unchanged. So this may be run again on another peer even if
/// the answer to the COMMIT was lost.
pub fn insert(conn: &mut PeerConnection<Db>, draft: &Draft) -> Result<(), TransactionError<Error>> {
    let milliseconds = OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000;
    let entry = Entry {
        id: draft.id(),
        written_at: i64::try_from(milliseconds).expect("the time fits in 64 bits"),
        name: tidy(&draft.name),
        message: tidy(&draft.message),
    };
    let policy = conn.retry_policy().idempotent(true);
    let outcome = policy.transaction(conn, |conn| {
        diesel::insert_into(entries::table).values(&entry).execute(conn).map(drop)
    });
    match outcome {
        Outcome::Aborted(Error::DatabaseError(DatabaseErrorKind::UniqueViolation, _)) => Ok(()),
        outcome => outcome.into_result(),
    }
}

/// Trims a text and normalizes its line ends, which browsers send as two characters.
fn tidy(text: &str) -> String {
    text.trim().replace("\r\n", "\n")
}

fn is_filled<'v>(text: &str, longest: usize) -> form::Result<'v, ()> {
    match tidy(text).chars().count() {
        0 => Err(form::Error::validation("Please write something here."))?,
        length if length > longest => Err(form::Error::validation(format!(
            "That is {length} characters; there is room for {longest}."
        )))?,
        _ => Ok(()),
    }
}

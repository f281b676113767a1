//! What is in the book, and what may be written into it.

use std::hash::{DefaultHasher, Hash, Hasher};

use diesel::prelude::*;
use diesel::result::{DatabaseErrorKind, Error};
use diesel_peers::PeerConnection;
use rand::TryRng;
use rand::rngs::SysRng;
use rocket::form::{self, FromForm};
use rocket::time::OffsetDateTime;

use crate::database::Db;
use crate::schema::entries;

pub const PER_PAGE: u32 = 10;
/// In characters. Browsers count some of them twice: what they let through fits.
pub const NAME_LENGTH: usize = 60;
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
    /// How many pages there are.
    pub pages: u32,
    /// How many entries there are on all pages.
    pub count: i64,
}

/// What a visitor sends.
#[derive(FromForm, Hash)]
pub struct Draft {
    /// Drawn by chance when the form is shown.
    key: String,
    #[field(validate = is_filled(NAME_LENGTH))]
    name: String,
    #[field(validate = is_filled(MESSAGE_LENGTH))]
    message: String,
}

impl Draft {
    /// The number of the entry: the same form, sent again, is the same entry.
    ///
    /// A connection may be lost when an entry is stored already and only the answer is missing. The
    /// visitor sends the form again, to another peer, and the entry is in the book once.
    fn id(&self) -> i64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        i64::from_ne_bytes(hasher.finish().to_ne_bytes())
    }
}

/// The key of a new form.
pub fn new_key() -> String {
    SysRng.try_next_u64().expect("the system has random numbers").to_string()
}

/// Page `number` of the list, newest entries first; `None` if there is no such page.
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

/// Stores an entry. One that is there already is left as it is.
pub fn insert(conn: &mut PeerConnection<Db>, draft: &Draft) -> QueryResult<()> {
    let milliseconds = OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000;
    let entry = Entry {
        id: draft.id(),
        written_at: i64::try_from(milliseconds).expect("some more million years"),
        name: tidy(&draft.name),
        message: tidy(&draft.message),
    };
    match diesel::insert_into(entries::table).values(&entry).execute(conn) {
        Err(Error::DatabaseError(DatabaseErrorKind::UniqueViolation, _)) => Ok(()),
        outcome => outcome.map(drop),
    }
}

/// A text without spaces around it. Browsers send each end of a line as two characters.
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

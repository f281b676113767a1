//! The pages as HTML. Every text that is not part of this file is escaped by [`escape`].

use std::borrow::Cow;
use std::time::Duration;

use diesel_peers::{PeerState, PeerStatus, Snapshot};
use rocket::Request;
use rocket::form::Context;
use rocket::http::{RawStr, Status};
use rocket::response::content::RawHtml;
use rocket::response::{self, Responder, Response};
use rocket::time::OffsetDateTime;

use crate::entries::{Entry, Listing, MESSAGE_LENGTH, NAME_LENGTH, new_key};

/// Allows no scripts and nothing from other sites, as a second protection in addition to escaping.
const POLICY: &str = "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'";

pub struct Page {
    status: Status,
    content: String,
    /// The peer whose answer the page shows.
    peer: Option<String>,
}

impl Page {
    fn new(status: Status, content: String) -> Self {
        Self { status, content, peer: None }
    }

    pub fn served_by(self, peer: String) -> Self {
        Self { peer: Some(peer), ..self }
    }

    fn html(&self) -> String {
        let peer = self
            .peer
            .as_deref()
            .map(|peer| format!("Served by <strong id=\"peer\">{}</strong> · ", escape(peer)));
        format!(
            r#"<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Guest book</title>
<link rel="stylesheet" href="/style.css">
<header><h1><a href="/">Guest book</a></h1></header>
<main>
{content}
</main>
<footer>{peer}<a href="/peers">All peers</a></footer>
</html>
"#,
            content = self.content,
            peer = peer.unwrap_or_default(),
        )
    }
}

impl<'r> Responder<'r, 'static> for Page {
    fn respond_to(self, request: &'r Request<'_>) -> response::Result<'static> {
        Response::build_from(RawHtml(self.html()).respond_to(request)?)
            .status(self.status)
            .raw_header("Content-Security-Policy", POLICY)
            .ok()
    }
}

/// A page of the list. The first page also has an empty form.
pub fn list(listing: &Listing, notice: Option<&str>) -> Page {
    let Listing { entries, number, pages, count } = listing;
    let notice = notice.map(|notice| notice_html(notice, "good")).unwrap_or_default();
    let form = if *number == 1 { form(&Context::default()) } else { String::new() };
    let heading = match count {
        0 => "Nobody has written yet. Be the first!".to_owned(),
        1 => "One entry".to_owned(),
        count => format!("{count} entries"),
    };
    let items: String = entries.iter().map(item).collect();
    let links = page_links(*number, *pages);
    let content = format!(
        "{notice}{form}<section>\n<h2>{heading}</h2>\n<ol>\n{items}</ol>\n{links}</section>"
    );
    Page::new(Status::Ok, content)
}

/// The form as the visitor has filled it in, with its mistakes.
pub fn mistaken(context: &Context<'_>) -> Page {
    let notice = notice_html("Your entry is not in the book yet. Please look at it again.", "bad");
    Page::new(context.status(), notice + &form(context))
}

/// The form as the visitor has filled it in, after an entry could not be stored or its storage is uncertain.
pub fn not_stored(context: &Context<'_>) -> Page {
    let notice = "The guest book cannot be reached just now. Please send your entry again in a \
                  moment; it will not be in the book twice.";
    Page::new(Status::ServiceUnavailable, notice_html(notice, "bad") + &form(context))
}

/// The state of the peers.
pub fn peers(snapshot: &Snapshot) -> Page {
    let rows: String = snapshot.peers.iter().map(row).collect();
    let content = format!(
        "<section>\n<h2>Peers</h2>\n<table>\n<thead><tr><th>Peer<th>State<th>For<th>Connections\
         </thead>\n<tbody>\n{rows}</tbody>\n</table>\n</section>"
    );
    Page::new(Status::Ok, content)
}

/// An error page. The cause is in the log.
pub fn failed(status: Status) -> Page {
    let (title, advice) = match status.code {
        403 => ("Not from here", "This form was not sent from our own page."),
        404 => ("Not found", "There is no such page."),
        503 => (
            "Please come back in a moment",
            "The guest book cannot be reached just now. Nothing is lost.",
        ),
        _ => ("That did not work", "Please try again in a moment."),
    };
    let content = format!(
        "<section>\n<h2>{title}</h2>\n<p>{advice}</p>\n\
         <p><a href=\"/\">Back to the guest book</a></p>\n</section>"
    );
    Page::new(status, content)
}

fn form(context: &Context<'_>) -> String {
    let typed = |name: &str| escape(context.field_value(name).unwrap_or_default()).into_owned();
    // The mistakes in a field, and the attributes with which the field refers to them.
    let mistakes = |name: &str| {
        let errors: Vec<_> = context.field_errors(name).map(ToString::to_string).collect();
        if errors.is_empty() {
            return (String::new(), String::new());
        }
        (
            format!(
                "<p class=\"mistake\" id=\"{name}-mistake\">{}</p>\n",
                escape(&errors.join(" "))
            ),
            format!(" aria-invalid=\"true\" aria-describedby=\"{name}-mistake\""),
        )
    };
    let (name_mistake, name_attributes) = mistakes("name");
    let (message_mistake, message_attributes) = mistakes("message");
    format!(
        r#"<form method="post" action="/">
<h2>Write something</h2>
<input type="hidden" name="key" value="{key}">
<label for="name">Your name</label>
<input id="name" name="name" value="{name}" maxlength="{NAME_LENGTH}" autocomplete="name" required{name_attributes}>
{name_mistake}<label for="message">Your message</label>
<textarea id="message" name="message" rows="4" maxlength="{MESSAGE_LENGTH}" required{message_attributes}>
{message}</textarea>
{message_mistake}<button>Sign the book</button>
</form>
"#,
        // A form that is shown again keeps its key.
        key = context.field_value("key").map_or_else(new_key, |key| escape(key).into_owned()),
        name = typed("name"),
        message = typed("message"),
    )
}

/// Links to the pages before and after this one.
fn page_links(number: u32, pages: u32) -> String {
    let link = |page: u32, rel: &str, title: &str| {
        if (1..=pages).contains(&page) {
            format!("<a rel=\"{rel}\" href=\"/?page={page}\">{title}</a>")
        } else {
            "<span></span>".to_owned()
        }
    };
    if pages == 1 {
        return String::new();
    }
    let newer = link(number - 1, "prev", "← Newer");
    let older = link(number + 1, "next", "Older →");
    format!("<nav aria-label=\"Pages\">{newer} Page {number} of {pages} {older}</nav>\n")
}

fn item(entry: &Entry) -> String {
    let (name, message) = (escape(&entry.name), escape(&entry.message));
    let date = date(entry.written_at).unwrap_or_default();
    format!("<li>\n<h3>{name}</h3> {date}\n<p>{message}</p>\n</li>\n")
}

fn date(milliseconds: i64) -> Option<String> {
    let date = OffsetDateTime::from_unix_timestamp(milliseconds / 1000).ok()?.date();
    let (year, month, day) = (date.year(), date.month(), date.day());
    Some(format!("<time datetime=\"{date}\">{day} {month} {year}</time>"))
}

#[expect(clippy::disallowed_methods, reason = "applications may read the clock")]
fn row(peer: &PeerStatus) -> String {
    let (class, state) = match peer.state {
        PeerState::Up => ("good", "up"),
        _ => ("bad", "down"),
    };
    format!(
        "<tr><th scope=\"row\">{}<td class=\"{class}\">{state}<td>{}<td>{}\n",
        escape(&peer.name),
        rough_duration(peer.since.elapsed()),
        peer.connections
    )
}

fn notice_html(notice: &str, class: &str) -> String {
    format!("<p class=\"notice {class}\" role=\"status\">{}</p>\n", escape(notice))
}

fn rough_duration(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ ..60 => format!("{seconds} s"),
        seconds @ ..3600 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}

fn escape(text: &str) -> Cow<'_, str> {
    RawStr::new(text).html_escape()
}

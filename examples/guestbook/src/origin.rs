//! Where a form was filled in.

use rocket::Request;
use rocket::http::Status;
use rocket::request::{FromRequest, Outcome};

/// A request that no other site has made the visitor's browser send.
///
/// The book knows no logins, so another site could not write in anybody's name, but it could have its
/// visitors write for it. Browsers say where a form comes from, and a page cannot change what they
/// say. What sends neither header is no browser, and sends what it likes anyway.
pub struct OwnSite;

#[rocket::async_trait]
impl<'r> FromRequest<'r> for OwnSite {
    type Error = ();

    async fn from_request(request: &'r Request<'_>) -> Outcome<Self, ()> {
        let header = |name| request.headers().get_one(name);
        let is_own = match (header("Sec-Fetch-Site"), header("Origin")) {
            (Some(site), _) => site == "same-origin",
            // Sent over plain HTTP, and by browsers of before 2023.
            (None, Some(origin)) => {
                origin.split_once("://").is_some_and(|(_, host)| Some(host) == header("Host"))
            }
            (None, None) => true,
        };
        if is_own { Outcome::Success(Self) } else { Outcome::Error((Status::Forbidden, ())) }
    }
}

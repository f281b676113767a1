//! A request guard against cross-site request forgery (CSRF).

use rocket::Request;
use rocket::http::Status;
use rocket::request::{FromRequest, Outcome};

/// Accepts only requests that no other site has made a visitor's browser send.
///
/// The guest book has no logins, so another site could not write in the name of a visitor, but it could make its
/// own visitors write entries. Browsers send the origin of a form in a header that a page cannot change. A client
/// that sends neither header is not a browser, and could send any header.
pub struct SameSite;

#[rocket::async_trait]
impl<'r> FromRequest<'r> for SameSite {
    type Error = ();

    async fn from_request(request: &'r Request<'_>) -> Outcome<Self, ()> {
        let header = |name| request.headers().get_one(name);
        let is_same = match (header("Sec-Fetch-Site"), header("Origin")) {
            (Some(site), _) => site == "same-origin",
            // Over plain HTTP, and from browsers before 2023, there is only this header.
            (None, Some(origin)) => {
                origin.split_once("://").is_some_and(|(_, host)| Some(host) == header("Host"))
            }
            (None, None) => true,
        };
        if is_same { Outcome::Success(Self) } else { Outcome::Error((Status::Forbidden, ())) }
    }
}

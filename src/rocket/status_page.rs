//! The status page as a Rocket route.

use std::io::Cursor;
use std::sync::Arc;

use rocket::data::{Data, ToByteUnit};
use rocket::http::{Method, Status};
use rocket::response::Response;
use rocket::route::{Handler, Outcome, Route};
use rocket::{Request, async_trait};

use super::registry::Registry;
use crate::peers::handle::Peers;
use crate::status_page::{MAX_FORM_BYTES, StatusPage};

/// The headers that the page leaves to Rocket's `Shield`, which sets them as the application configures it,
/// and logs a warning for each response that already has them. (The page sets its referrer policy in its
/// own HTML as well.)
const SHIELD_HEADERS: [&str; 2] = ["X-Content-Type-Options", "Referrer-Policy"];

/// Converts the page into routes: `.mount("/peers", StatusPage::new())`. The page shows every database of the
/// [`Registry`], by name, and the pools that were added to the page.
impl From<StatusPage> for Vec<Route> {
    fn from(page: StatusPage) -> Self {
        let post = page.has_actions().then_some(Method::Post);
        let page = Mounted(Arc::new(page));
        let route = |method| {
            let mut route = Route::new(method, "/", page.clone());
            route.name = Some("diesel_peers status page".into());
            route
        };
        [Method::Get].into_iter().chain(post).map(route).collect()
    }
}

#[derive(Clone)]
struct Mounted(Arc<StatusPage>);

#[async_trait]
impl Handler for Mounted {
    async fn handle<'r>(&self, request: &'r Request<'_>, data: Data<'r>) -> Outcome<'r> {
        // One byte more than allowed shows that the body is too long.
        let body = data.open((MAX_FORM_BYTES + 1).bytes()).into_bytes().await;
        let Ok(body) = body else { return Outcome::Error(Status::BadRequest) };
        // HTTP/2 has no header `Host`; Rocket returns its value all the same.
        let host = request.host().map(ToString::to_string);
        let header = |name: &str| match name {
            "Host" => host.as_deref(),
            name => request.headers().get_one(name),
        };
        let query = request.uri().query().map(|query| query.as_str());
        let pools = self.pools(request);
        let method = request.method().as_str();
        let page = self.0.respond_for_pools(pools, method, query, header, &body);

        let mut response = Response::new();
        response.set_status(Status::new(page.status));
        for (name, value) in page.headers {
            if !SHIELD_HEADERS.contains(&name) {
                response.set_raw_header(name, value);
            }
        }
        response.set_sized_body(page.body.len(), Cursor::new(page.body));
        Outcome::Success(response)
    }
}

impl Mounted {
    fn pools(&self, request: &Request<'_>) -> Vec<(String, Peers)> {
        let databases = request.rocket().state::<Registry>().map(Registry::all);
        let added =
            self.0.pools().iter().map(|peers| (peers.pool_name().to_owned(), peers.clone()));
        databases.unwrap_or_default().into_iter().chain(added).collect()
    }
}

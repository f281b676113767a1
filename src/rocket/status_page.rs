//! The status page as a route.

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

/// The headers that Rocket's `Shield` sets, to its own values or the application's, and warns about if a
/// response has them already. (The page's HTML contains its own referrer policy.)
const SHIELDED: [&str; 2] = ["X-Content-Type-Options", "Referrer-Policy"];

/// The routes of the page, for `.mount("/peers", StatusPage::new())`. The page shows every database of the
/// [`Registry`] by its name, and the pools that were added to it.
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
        // With one byte more than the limit the page can reject a body that is too long.
        let body = data.open((MAX_FORM_BYTES + 1).bytes()).into_bytes().await;
        let Ok(body) = body else { return Outcome::Error(Status::BadRequest) };
        // In HTTP/2 there is no header of this name.
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
            if !SHIELDED.contains(&name) {
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
        let added = self.0.pools().iter().map(|peers| (peers.snapshot().pool_name, peers.clone()));
        databases.unwrap_or_default().into_iter().chain(added).collect()
    }
}

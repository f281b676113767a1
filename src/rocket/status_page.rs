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
use crate::status_page::{LONGEST, StatusPage};

/// Rocket's `Shield` sets these, or what the application would have in their place, and warns of each
/// answer that has them already. (The page says by itself whom it tells where a link was.)
const SHIELDED: [&str; 2] = ["X-Content-Type-Options", "Referrer-Policy"];

/// To be mounted: `.mount("/peers", StatusPage::new())`. It shows every database of the [`Registry`], by
/// its name, and the pools that were given to it.
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
        // One byte more tells that there are too many.
        let body = data.open((LONGEST + 1).bytes()).into_bytes().await;
        let Ok(body) = body else { return Outcome::Error(Status::BadRequest) };
        // Under HTTP/2 there is no header of this name.
        let host = request.host().map(ToString::to_string);
        let header = |name: &str| match name {
            "Host" => host.as_deref(),
            name => request.headers().get_one(name),
        };
        let query = request.uri().query().map(|query| query.as_str());
        let pools = self.pools(request);
        let method = request.method().as_str();
        let answer = self.0.respond_of(pools, method, query, header, &body);

        let mut response = Response::new();
        response.set_status(Status::new(answer.status));
        for (name, value) in answer.headers {
            if !SHIELDED.contains(&name) {
                response.set_raw_header(name, value);
            }
        }
        response.set_sized_body(answer.body.len(), Cursor::new(answer.body));
        Outcome::Success(response)
    }
}

impl Mounted {
    fn pools(&self, request: &Request<'_>) -> Vec<(String, Peers)> {
        let databases = request.rocket().state::<Registry>().map(Registry::all);
        let given =
            self.0.pools().iter().map(|peers| (peers.pool_name().to_owned(), peers.clone()));
        databases.unwrap_or_default().into_iter().chain(given).collect()
    }
}

//! The status page in axum. It says of each answer which status and which headers it has: nothing may be
//! added by the framework, as a second `Content-Type` would be.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{RawQuery, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Method, Uri};
use axum::response::Response;
use axum::routing::any;
use diesel_peers::status_page::StatusPage;

pub(crate) fn route(path: &str, page: StatusPage) -> Router {
    Router::new().route(path, any(respond)).with_state(Arc::new(page))
}

async fn respond(
    State(page): State<Arc<StatusPage>>,
    method: Method,
    uri: Uri,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    // Under HTTP/2 the host is a part of the address.
    let host = |name: &str| uri.authority().filter(|_| name == "Host").map(Authority::as_str);
    let header = |name: &str| headers.get(name).and_then(|it| it.to_str().ok()).or(host(name));
    let answer = page.respond(method.as_str(), query.as_deref(), header, &body);
    let mut response = Response::builder().status(answer.status);
    for (name, value) in answer.headers {
        response = response.header(name, value);
    }
    response.body(Body::from(answer.body)).expect("the page's headers are those of HTTP")
}

//! The status page in axum.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{RawQuery, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Method, Response, Uri};
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
) -> Response<String> {
    // In HTTP/2 the host is a part of the address.
    let host = |name: &str| uri.authority().filter(|_| name == "Host").map(Authority::as_str);
    let header = |name: &str| headers.get(name).and_then(|it| it.to_str().ok()).or(host(name));
    page.respond(method.as_str(), query.as_deref(), header, &body).into()
}

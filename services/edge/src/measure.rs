//! Requests counted and timed by route: never by path, of which there are as many as callers care to invent.

use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::middleware::Next;
use axum::response::Response;
use telemetry::metrics::{REQUEST_SECONDS, REQUESTS};
use telemetry::traces;

/// The route of a path that has none.
const NO_ROUTE: &str = "none";

pub(crate) async fn measure(request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let response = next.run(request).await;
    let route = route.as_ref().map_or(NO_ROUTE, MatchedPath::as_str);
    let (status, took) = (response.status(), begun.elapsed());
    REQUESTS.with_label_values(&[route, status.as_str()]).inc();
    REQUEST_SECONDS.with_label_values(&[route]).observe(took.as_secs_f64());
    if traces::is_on() {
        tracing::Span::current().record("http.response.status_code", status.as_u16());
    }
    tracing::debug!(status = status.as_u16(), took_ms = took.as_secs_f64() * 1000.0, "answered");
    response
}

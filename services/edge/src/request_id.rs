//! `X-Request-Id`: the caller's, or a new one; in every answer and on everything that is logged for the request.

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue};
use telemetry::traces::{self, Remote, TRACEPARENT};
use tracing::Span;
use tracing::field::Empty;
use uuid::Uuid;

/// `X-Request-Id`
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest id that is taken from a caller, in characters.
pub const REQUEST_ID_CHARS_MAX: usize = 128;

/// The id of a request, and the span of what it logs.
pub(crate) fn identify(request: &Request) -> (HeaderValue, Span) {
    let id = request.headers().get(REQUEST_ID).filter(|id| is_fit(id.as_bytes())).cloned();
    let id = id.unwrap_or_else(new_id);
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let span = tracing::info_span!(
        "request",
        request_id = id.to_str().unwrap_or_default(),
        method = request.method().as_str(),
        route,
        trace_id = Empty,
        otel.kind = Empty,
        http.response.status_code = Empty,
    );
    let remote = request.headers().get(TRACEPARENT).and_then(|given| Remote::parse(given.as_bytes()));
    traces::adopt(&span, remote);
    (id, span)
}

/// Whether a caller's id is 1 to 128 characters of visible ASCII.
fn is_fit(id: &[u8]) -> bool {
    (1..=REQUEST_ID_CHARS_MAX).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
}

fn new_id() -> HeaderValue {
    HeaderValue::from_str(&Uuid::new_v4().to_string()).expect("a UUID is visible ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_short_visible_ids_are_taken() {
        assert!(is_fit(b"a") && is_fit(&[b'~'; 128]));
        for bad in [&b""[..], &[b'a'; 129], b"a b", "ä".as_bytes(), b"a\t"] {
            assert!(!is_fit(bad), "{bad:?}");
        }
    }
}

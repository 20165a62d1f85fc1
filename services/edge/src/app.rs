//! What is around all routes. From the outside in: the request id and its span, metrics, compression, the envelope of
//! what has no form of its own, the rate limit's headers, and the answer to paths that do not exist.

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use tower_http::CompressionLevel;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::SizeAbove;
use tracing::Instrument;

use crate::door::{self, Door};
use crate::envelope::{self, Problem, Style};
use crate::measure::measure;
use crate::request_id::{REQUEST_ID, identify};

/// The smallest body that is compressed, in bytes.
pub const COMPRESSED_BYTES_MIN: u64 = 512;

/// `router` — one service's routes or several merged — with all that is around it. An unknown path shows how the
/// account stands with `door`.
pub fn app(router: Router, door: &Door) -> Router {
    let compression = CompressionLayer::new()
        .gzip(true)
        .zstd(true)
        .quality(CompressionLevel::Fastest)
        .compress_when(SizeAbove::new(COMPRESSED_BYTES_MIN));
    router
        .fallback(async || Problem::UnknownPath)
        .layer(from_fn_with_state(door.clone(), complete))
        .layer(compression)
        .layer(from_fn(receive))
}

/// What comes before everything else. One layer does it all: each costs a request a few allocations.
async fn receive(mut request: Request, next: Next) -> Response {
    simplify_accept_encoding(&mut request);
    let (id, span) = identify(&request);
    let mut response = measure(request, next).instrument(span).await;
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// What an answer still lacks: the rate limit's headers, and the envelope of what has no form of its own.
async fn complete(State(door): State<Door>, request: Request, next: Next) -> Response {
    envelope::style(Style::Campaign, door::show_limit(State(door), request, next).await)
}

/// Leaves in `Accept-Encoding` only what we could do. Otherwise a caller that refuses everything else, uncompressed
/// included, would be answered 406 with the body that it did not want; like most servers we send it uncompressed (RFC
/// 9110, section 12.5.3 allows either).
fn simplify_accept_encoding(request: &mut Request) {
    if !request.headers().contains_key(header::ACCEPT_ENCODING) {
        return;
    }
    let known: Vec<&str> = request
        .headers()
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter(|accepted| is_known_encoding(accepted))
        .collect();
    let known = HeaderValue::from_str(&known.join(",")).ok().filter(|known| !known.is_empty());
    match known {
        Some(known) => {
            request.headers_mut().insert(header::ACCEPT_ENCODING, known);
        }
        None => {
            request.headers_mut().remove(header::ACCEPT_ENCODING);
        }
    }
}

/// Whether an item such as `gzip;q=0.5` names an encoding of ours, or prefers none.
fn is_known_encoding(item: &str) -> bool {
    let (name, weight) = item.split_once(';').unwrap_or((item, ""));
    match name.trim().to_ascii_lowercase().as_str() {
        "gzip" | "x-gzip" | "zstd" => true,
        "identity" => !weight.trim().trim_end_matches(['0', '.']).ends_with('='),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_encodings_are_negotiated() {
        for known in ["gzip", " GZIP ; q=0", "zstd;q=1.0", "identity", "identity;q=0.5"] {
            assert!(is_known_encoding(known), "{known}");
        }
        for other in ["br", "*", "*;q=0", "identity;q=0", "identity; q=0.000", "gzipped", ""] {
            assert!(!is_known_encoding(other), "{other}");
        }
    }
}

//! What a process shows to whoever operates it: `/metrics`, `/livez`, `/readyz`. Without keys: not for the public.

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::health::Health;
use crate::metrics;

/// The routes. They can be merged with more. `/livez` answers 200 for as long as the process runs.
pub fn router(health: Health) -> Router {
    Router::new()
        .route("/metrics", get(show_metrics))
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", get(show_readiness))
        .with_state(health)
}

/// All metrics in Prometheus' text format, version 0.0.4.
async fn show_metrics() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics::render())
}

/// `{"ready":false,"stopping":false,"checks":{"log":"ok","store":"no answer in time"}}`
async fn show_readiness(State(health): State<Health>) -> Response {
    let readiness = health.readiness();
    let checks: serde_json::Map<String, serde_json::Value> = readiness
        .checks
        .into_iter()
        .map(|(name, outcome)| (name.to_owned(), outcome.err().unwrap_or_else(|| "ok".to_owned()).into()))
        .collect();
    let body = serde_json::json!({
        "ready": readiness.is_ready,
        "stopping": readiness.is_stopping,
        "checks": checks,
    });
    let status = if readiness.is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, axum::Json(body)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shutdown::Shutdown;

    async fn body(response: Response) -> String {
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.expect("a body");
        String::from_utf8(bytes.to_vec()).expect("text")
    }

    #[tokio::test]
    async fn readiness_says_what_fails() {
        let health = Health::new(&Shutdown::new());
        health.check("log").pass();
        let store = health.check("store");
        store.fail("away");
        let response = show_readiness(State(health.clone())).await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        let expected = r#"{"ready":false,"stopping":false,"checks":{"log":"ok","store":"away"}}"#;
        assert_eq!(body(response).await, expected);
        store.pass();
        assert_eq!(show_readiness(State(health)).await.status(), StatusCode::OK);
    }

    #[tokio::test]
    async fn every_metric_is_shown_before_it_counts() {
        crate::metrics::TREE_MISMATCHES.inc();
        let shown = body(show_metrics().await.into_response()).await;
        assert!(shown.contains("# TYPE backstamp_tally_mismatches_total counter"), "{shown}");
    }
}

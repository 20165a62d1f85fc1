//! What stands before every route. In this order: the key (401), its permission (403), the rate limit (429); then the
//! handler, whose problems get the route's style, whose panics become 500, and whose time is limited. `OPTIONS` and
//! methods that a route has not are answered here.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequestParts, Request, State};
use axum::handler::Handler;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use futures::FutureExt;
use timeline::key::{KeyRecord, Permission};
use timeline::{AccountId, Timestamp};

use crate::envelope::{self, Problem, Style};
use crate::keys::{Denied, Keys};
use crate::limit::{self, Limiter};

/// How long a request may take, from its headers to the answer's.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Lets requests in to routes whose requests are counted together.
#[derive(Clone)]
pub struct Door {
    keys: Keys,
    limiter: Limiter,
    visible_until: Option<VisibleUntil>,
}

/// Until when everything that was published is visible; `None` while nobody knows.
pub type VisibleUntil = Arc<dyn Fn() -> Option<Timestamp> + Send + Sync>;

/// `X-Backstamp-Visible-Until`: the answer shows everything that was published until then.
pub const VISIBLE_UNTIL: HeaderName = HeaderName::from_static("x-backstamp-visible-until");

/// Who asks: a handler behind a door takes it as an argument.
#[derive(Clone, Debug)]
pub struct Access(Arc<KeyRecord>);

impl Door {
    /// A door that `keys` open, and that `limiter` counts.
    pub fn new(keys: Keys, limiter: Limiter) -> Door {
        Door { keys, limiter, visible_until: None }
    }

    /// The same door, whose routes say in every answer until when what was published is visible.
    pub fn showing(self, visible_until: VisibleUntil) -> Door {
        Door { visible_until: Some(visible_until), ..self }
    }

    /// What answers say of it now. To be asked before an answer reads anything.
    fn visible_until(&self) -> Option<HeaderValue> {
        let until = self.visible_until.as_ref()?()?;
        HeaderValue::from_str(&until.to_rfc3339_ms()).ok()
    }

    /// A route that is read: GET, HEAD and OPTIONS.
    pub fn reading<H, T, S>(&self, style: Style, permission: Permission, handler: H) -> MethodRouter<S>
    where
        H: Handler<T, S>,
        T: 'static,
        S: Clone + Send + Sync + 'static,
    {
        self.route(style, permission, "GET, HEAD, OPTIONS", get(handler))
    }

    /// A route that is written to: POST and OPTIONS.
    pub fn writing<H, T, S>(&self, style: Style, permission: Permission, handler: H) -> MethodRouter<S>
    where
        H: Handler<T, S>,
        T: 'static,
        S: Clone + Send + Sync + 'static,
    {
        self.route(style, permission, "POST, OPTIONS", post(handler))
    }

    fn route<S>(
        &self,
        style: Style,
        permission: Permission,
        allow: &'static str,
        methods: MethodRouter<S>,
    ) -> MethodRouter<S>
    where
        S: Clone + Send + Sync + 'static,
    {
        let guard = Guard { door: self.clone(), style, permission };
        let not_counted = MethodRouter::new()
            .options(async move || (StatusCode::NO_CONTENT, [(header::ALLOW, allow)]))
            .fallback(async move |method: Method| Problem::MethodNotAllowed { method, allow })
            .layer(from_fn_with_state(self.clone(), show_limit))
            .layer(from_fn_with_state(self.clone(), show_visible_until));
        methods.route_layer(from_fn_with_state(guard, admit)).merge(not_counted)
    }

    /// Shows the rate limit in `response` unless it is there: how the account stands, where `account` knows one.
    async fn show_limit(&self, response: &mut Response, account: impl Future<Output = Option<AccountId>>) {
        if response.headers().contains_key(limit::LIMIT) || self.limiter.standing(None).is_none() {
            return;
        }
        if let Some(standing) = self.limiter.standing(account.await.as_ref()) {
            standing.show(response.headers_mut());
        }
    }
}

impl Access {
    /// Whose data the key opens.
    pub fn account(&self) -> &AccountId {
        &self.0.account
    }
}

impl<S: Sync> FromRequestParts<S> for Access {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Access, Problem> {
        parts.extensions.get().cloned().ok_or(Problem::Internal)
    }
}

#[derive(Clone)]
struct Guard {
    door: Door,
    style: Style,
    permission: Permission,
}

async fn admit(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let visible_until = guard.door.visible_until();
    let mut response = let_in(guard, request, next).await;
    if let Some(until) = visible_until {
        response.headers_mut().insert(VISIBLE_UNTIL, until);
    }
    response
}

/// Shows until when everything is visible in answers to what is not let in.
async fn show_visible_until(State(door): State<Door>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    if let Some(until) = door.visible_until() {
        response.headers_mut().insert(VISIBLE_UNTIL, until);
    }
    response
}

async fn let_in(guard: Guard, mut request: Request, next: Next) -> Response {
    let Guard { door, style, permission } = guard;
    let key = match door.keys.authenticate(request.headers()).await {
        Ok(key) => key,
        Err(denied) => {
            let problem = match denied {
                Denied::Invalid => Problem::Unauthenticated,
                Denied::Unknown(error) => Problem::from(error),
            };
            let mut response = problem.render(style);
            door.show_limit(&mut response, async { None }).await;
            return response;
        }
    };
    if !key.permissions.contains(&permission) {
        let mut response = Problem::Forbidden(permission).render(style);
        door.show_limit(&mut response, async { Some(key.account.clone()) }).await;
        return response;
    }
    let (standing, mut response) = match door.limiter.count(&key.account) {
        Err(standing) => {
            let problem = Problem::RateLimited { retry_s: standing.reset_s };
            (Some(standing), problem.render(style))
        }
        Ok(standing) => {
            request.extensions_mut().insert(Access(key));
            (standing, envelope::style(style, answer(next.run(request)).await))
        }
    };
    if let Some(standing) = standing {
        standing.show(response.headers_mut());
    }
    response
}

/// What a handler answers; or what is answered in its place when it panics or takes too long.
pub(crate) async fn answer(handler: impl Future<Output = Response>) -> Response {
    match tokio::time::timeout(REQUEST_TIMEOUT, AssertUnwindSafe(handler).catch_unwind()).await {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => {
            // The panic hook says where.
            tracing::error!("a handler panicked");
            Problem::Internal.into_response()
        }
        Err(_) => {
            tracing::warn!("a request took too long");
            Problem::Unavailable.into_response()
        }
    }
}

/// Shows the rate limit in answers to what was not counted: OPTIONS, methods and paths that do not exist.
pub(crate) async fn show_limit(State(door): State<Door>, request: Request, next: Next) -> Response {
    if door.limiter.standing(None).is_none() {
        return next.run(request).await;
    }
    let given: HeaderMap = request
        .headers()
        .get_all(header::AUTHORIZATION)
        .iter()
        .map(|value| (header::AUTHORIZATION, value.clone()))
        .collect();
    let mut response = next.run(request).await;
    let account = async { door.keys.authenticate(&given).await.ok().map(|key| key.account.clone()) };
    door.show_limit(&mut response, account).await;
    response
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;

    use super::*;
    use crate::testing::{Answer, Bench, get, request, send};

    /// `/read` and `/write` of the campaign's style, `/contact`, `/panic` and `/away` of the contact's.
    fn app(bench: &Bench, limit: &str) -> Router {
        let (reads, writes) = (bench.door(limit), bench.door(limit));
        let read = Permission::CampaignsRead;
        let named = async |access: Access| access.account().to_string();
        let panics = async || -> &'static str { panic!("a bug") };
        let away = async || Problem::Unavailable;
        let router = Router::new()
            .route("/read", reads.reading(Style::Campaign, read, named))
            .route(
                "/write",
                writes.writing(Style::Campaign, Permission::EventsWrite, async || "x".repeat(2000)),
            )
            .route("/contact", reads.reading(Style::Contact, read, async || Problem::UnknownContact))
            .route("/panic", reads.reading(Style::Contact, read, panics))
            .route("/away", reads.reading(Style::Contact, read, away));
        crate::app(router, &reads)
    }

    fn limits(answer: &Answer) -> [&str; 3] {
        [limit::LIMIT, limit::REMAINING, limit::RESET].map(|name| answer.header(name))
    }

    async fn call(app: &Router, method: &str, uri: &str, key: &str) -> Answer {
        send(app, request(method, uri, key).body(Body::empty()).expect("a request")).await
    }

    #[tokio::test]
    async fn the_key_comes_first_then_the_permission_then_the_limit() {
        let bench = Bench::new();
        let reader = bench.key("acme", &[Permission::CampaignsRead]).await;
        let other = bench.key("acme", &[Permission::EventsWrite]).await;
        let app = app(&bench, "2/min");

        let answer = get(&app, "/read", "").await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (401, "invalid_key"));
        assert_eq!(answer.header("www-authenticate"), "Bearer");
        assert_eq!(limits(&answer), ["2", "2", "60"]);

        let answer = get(&app, "/read", &other).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (403, "insufficient_permissions"));
        assert_eq!(answer.json()["error"]["message"], "Missing `campaigns:read` permission");
        assert_eq!(limits(&answer), ["2", "2", "60"]);

        for remaining in ["1", "0"] {
            let answer = get(&app, "/read", &reader).await;
            assert_eq!((answer.status.as_u16(), answer.text()), (200, "acme"));
            assert_eq!(limits(&answer), ["2", remaining, "60"]);
        }
        bench.pass_ms(15_500);
        let answer = get(&app, "/contact", &reader).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (429, "RATE_LIMITED"));
        assert_eq!(limits(&answer), ["2", "0", "45"]);
        assert_eq!(answer.header("retry-after"), "45");
        // 403 goes before 429, and what is written is counted apart.
        assert_eq!(get(&app, "/read", &other).await.status, 403);
        assert_eq!(limits(&call(&app, "POST", "/write", &other).await), ["2", "1", "60"]);
        bench.pass_ms(44_500);
        assert_eq!(get(&app, "/contact", &reader).await.code(), "RESOURCE_NOT_FOUND");
    }

    #[tokio::test]
    async fn what_is_not_counted_shows_how_the_account_stands() {
        let bench = Bench::new();
        let key = bench.key("acme", &[Permission::CampaignsRead]).await;
        let app = app(&bench, "5/s");
        assert_eq!(limits(&get(&app, "/read", &key).await), ["5", "4", "1"]);
        for (method, uri, status, allow, code) in [
            ("OPTIONS", "/contact", 204, "GET, HEAD, OPTIONS", ""),
            ("OPTIONS", "/write", 204, "POST, OPTIONS", ""),
            ("POST", "/contact", 405, "GET, HEAD, OPTIONS", "method_not_allowed"),
            ("HEAD", "/write", 405, "POST, OPTIONS", ""),
            ("BREW", "/write", 405, "POST, OPTIONS", "method_not_allowed"),
            ("GET", "/nowhere", 404, "", "not_found"),
            ("OPTIONS", "/nowhere", 404, "", "not_found"),
        ] {
            for (key, remaining) in [(key.as_str(), "4"), ("", "5"), ("wbk_bad", "5")] {
                let answer = call(&app, method, uri, key).await;
                assert_eq!(answer.status, status, "{method} {uri}");
                assert_eq!(answer.header("allow"), allow, "{method} {uri}");
                // Writing is counted apart.
                let remaining = if uri == "/write" { "5" } else { remaining };
                assert_eq!(limits(&answer), ["5", remaining, "1"], "{method} {uri}");
                assert_eq!(answer.header("x-request-id").len(), 36, "{method} {uri}");
                if !code.is_empty() {
                    assert_eq!(answer.code(), code, "{method} {uri}");
                    assert_eq!(answer.header("content-type"), "application/json");
                }
            }
        }
    }

    #[tokio::test]
    async fn off_shows_nothing() {
        let bench = Bench::new();
        let key = bench.key("acme", &[Permission::CampaignsRead]).await;
        let app = app(&bench, "off");
        for (uri, key) in [("/read", key.as_str()), ("/read", ""), ("/nowhere", ""), ("/contact", &key)] {
            assert_eq!(limits(&get(&app, uri, key).await), ["", "", ""], "{uri}");
        }
    }

    #[tokio::test]
    async fn a_panic_and_a_store_that_is_away_have_the_routes_envelope() {
        let bench = Bench::new();
        let key = bench.key("acme", &[Permission::CampaignsRead]).await;
        let app = app(&bench, "10/min");
        let answer = get(&app, "/panic", &key).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (500, "INTERNAL_ERROR"));
        assert_eq!(limits(&answer), ["10", "9", "60"]);
        let answer = get(&app, "/away", &key).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "SERVICE_UNAVAILABLE"));
        assert_ne!(answer.header("retry-after"), "");
        bench.store.set_away(true);
        bench.pass_ms(60_000);
        let answer = get(&app, "/read", &key).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "unavailable"));
        assert_eq!(limits(&answer), ["10", "10", "60"]);
        assert_eq!(get(&app, "/nowhere", &key).await.status, 404);
    }

    #[tokio::test]
    async fn ids_are_the_callers_or_new() {
        let bench = Bench::new();
        let app = app(&bench, "off");
        for (given, kept) in
            [("abc-1", true), (&"x".repeat(128), true), (&"x".repeat(129), false), ("a b", false)]
        {
            let asked = request("GET", "/read", "").header("x-request-id", given);
            let answer = send(&app, asked.body(Body::empty()).expect("a request")).await;
            assert_eq!(answer.header("x-request-id") == given, kept, "{given}");
            assert!(!answer.header("x-request-id").is_empty());
        }
    }

    #[tokio::test]
    async fn head_is_get_without_its_body_and_compression_is_as_asked() {
        let bench = Bench::new();
        let key = bench.key("acme", &[Permission::CampaignsRead, Permission::EventsWrite]).await;
        let app = app(&bench, "off");
        let head = call(&app, "HEAD", "/read", &key).await;
        assert_eq!((head.status.as_u16(), head.text(), head.header("content-length")), (200, "", "4"));
        for (accepted, encoding) in [
            ("gzip", "gzip"),
            ("gzip, zstd, br", "zstd"),
            ("br;q=1.0, gzip;q=0.2", "gzip"),
            ("", ""),
            ("identity;q=0, *;q=0", ""),
            ("gzip;q=0", ""),
        ] {
            let asked = request("POST", "/write", &key).header("accept-encoding", accepted);
            let answer = send(&app, asked.body(Body::empty()).expect("a request")).await;
            assert_eq!(
                (answer.status.as_u16(), answer.header("content-encoding")),
                (200, encoding),
                "{accepted}"
            );
            assert_eq!(answer.body.len() < 2000, !encoding.is_empty(), "{accepted}");
        }
        let asked = request("GET", "/read", &key).header("accept-encoding", "gzip");
        let small = send(&app, asked.body(Body::empty()).expect("a request")).await;
        assert_eq!((small.text(), small.header("content-encoding")), ("acme", ""));
    }

    #[tokio::test]
    async fn requests_are_measured_by_route() {
        let bench = Bench::new();
        let app = app(&bench, "off");
        get(&app, "/nowhere/secret", "").await;
        get(&app, "/away?x=secret", "").await;
        let shown = String::from_utf8(telemetry::metrics::render()).expect("text");
        assert!(shown.contains(r#"backstamp_http_requests_total{route="/away",status="401"}"#), "{shown}");
        assert!(shown.contains(r#"backstamp_http_requests_total{route="none",status="404"}"#), "{shown}");
        assert!(!shown.contains("secret"));
    }
}

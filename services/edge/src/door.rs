//! What stands before every route. In this order: the key (401), its permission (403), the rate limit (429); then the handler, whose
//! problems get the route's style, whose panics become 500, and whose time is limited. `OPTIONS` and methods that a route has
//! not are answered here.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequestParts, Request, State};
use axum::handler::Handler;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use futures::FutureExt;
use timeline::AccountId;
use timeline::key::{KeyRecord, Permission};

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
}

/// Who asks: a handler behind a door takes it as an argument.
#[derive(Clone, Debug)]
pub struct Access(Arc<KeyRecord>);

impl Door {
    /// A door that `keys` open, and that `limiter` counts.
    pub fn new(keys: Keys, limiter: Limiter) -> Door {
        Door { keys, limiter }
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
        methods
            .route_layer(from_fn_with_state(guard, admit))
            .options(async move || (StatusCode::NO_CONTENT, [(header::ALLOW, allow)]))
            .fallback(async move |method: Method| Problem::MethodNotAllowed { method, allow })
            .layer(from_fn_with_state(self.clone(), show_limit))
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

async fn admit(State(guard): State<Guard>, mut request: Request, next: Next) -> Response {
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

//! What `keys` talks to in a running `dev`: three routes on the ops listener, opened by a token that only the owner of the data directory
//! can read.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, bail};
use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, post};
use axum::{Json, Router};
use rand::Rng;
use reqwest::Method;
use serde::de::DeserializeOwned;
use serde_json::json;
use subtle::ConstantTimeEq;

use crate::keys::{KeyStore, NewKey, ShownKey, token_path};

/// Writes a new token that only the owner can read.
pub(crate) fn write_token(data: &Path) -> anyhow::Result<String> {
    let path = token_path(data);
    let mut random = [0; 32];
    rand::rng().fill_bytes(&mut random);
    let token: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    // Made anew, so that its mode is ours whatever was there.
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot replace {}", path.display()));
        }
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    file.write_all(token.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(token)
}

/// The routes, for whoever has `token`.
pub(crate) fn router(keys: KeyStore, token: String) -> Router {
    Router::new()
        .route("/keys", post(create).get(list))
        .route("/keys/{id}", delete(revoke))
        .with_state(Admin { keys, token })
}

#[derive(Clone)]
struct Admin {
    keys: KeyStore,
    token: String,
}

impl Admin {
    fn admits(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes()).unwrap_or_default();
        let given = given.strip_prefix(b"Bearer ").unwrap_or_default();
        given.ct_eq(self.token.as_bytes()).into()
    }
}

async fn create(State(admin): State<Admin>, headers: HeaderMap, Json(new): Json<NewKey>) -> Response {
    if !admin.admits(&headers) {
        return refused();
    }
    match admin.keys.create(&new).await {
        Ok(key) => (StatusCode::CREATED, Json(key)).into_response(),
        Err(error) => failed(&error),
    }
}

async fn list(State(admin): State<Admin>, headers: HeaderMap) -> Response {
    if !admin.admits(&headers) {
        return refused();
    }
    match admin.keys.list().await {
        Ok(keys) => Json(keys).into_response(),
        Err(error) => failed(&error),
    }
}

async fn revoke(State(admin): State<Admin>, headers: HeaderMap, UrlPath(id): UrlPath<String>) -> Response {
    if !admin.admits(&headers) {
        return refused();
    }
    match admin.keys.revoke(&id).await {
        Ok(key) => Json(key).into_response(),
        Err(error) => failed(&error),
    }
}

fn refused() -> Response {
    (StatusCode::UNAUTHORIZED, Json(json!({ "error": "the token is not that of this dev" }))).into_response()
}

fn failed(error: &anyhow::Error) -> Response {
    tracing::error!(error = format!("{error:#}"), "a key could not be managed");
    (StatusCode::INTERNAL_SERVER_ERROR, Json(json!({ "error": format!("{error:#}") }))).into_response()
}

/// A running dev, seen from `keys`.
pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
    token: String,
}

impl Client {
    pub(crate) fn open(ops: SocketAddr, data: &Path) -> anyhow::Result<Client> {
        let path = token_path(data);
        let token = fs::read_to_string(&path).with_context(|| {
            format!("cannot read {}: is `backstamp dev` running, and BACKSTAMP_DATA its data directory? (For Scylla set BACKSTAMP_SCYLLA_NODES.)", path.display())
        })?;
        Ok(Client {
            http: reqwest::Client::builder().no_proxy().build()?,
            base: format!("http://{ops}/keys"),
            token,
        })
    }

    pub(crate) async fn create(&self, new: &NewKey) -> anyhow::Result<ShownKey> {
        self.ask(Method::POST, "", Some(new)).await
    }

    pub(crate) async fn list(&self) -> anyhow::Result<Vec<ShownKey>> {
        self.ask(Method::GET, "", None).await
    }

    pub(crate) async fn revoke(&self, id: &str) -> anyhow::Result<Option<ShownKey>> {
        if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Ok(None);
        }
        self.ask(Method::DELETE, &format!("/{id}"), None).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&NewKey>,
    ) -> anyhow::Result<T> {
        let mut request = self.http.request(method, format!("{}{path}", self.base)).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.with_context(|| {
            format!(
                "no `backstamp dev` answers at {}: set BACKSTAMP_OPS_LISTEN to its ops address",
                self.base
            )
        })?;
        let status = response.status();
        let answer: serde_json::Value = response.json().await.context("that is no `backstamp dev`")?;
        if !status.is_success() {
            bail!("{}", answer["error"].as_str().unwrap_or("the dev refused"));
        }
        Ok(serde_json::from_value(answer)?)
    }
}

//! A small HTTP client for what the tests do: read pages of both endpoints under either of their path
//! prefixes, and post events and references to the intake.
//!
//! It reports what was answered and judges nothing: an answer of any status is a [`Reply`]; only a
//! request that got no answer is an error.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Method, RequestBuilder};
use serde_json::Value;

use crate::history::{Record, Topic};
use crate::model::{Endpoint, Query};

const TIMEOUT: Duration = Duration::from_secs(30);
const REFUSALS_MAX: u32 = 100;
/// Well below the intake's limit for one body.
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The two paths of each endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefix {
    /// `/v1/campaigns/…` and `/contacts/…`.
    Short,
    /// `/functions/v1/api-gateway/v1/campaigns/…` and `/api/v1/contacts/…`.
    Long,
}

/// How several objects are put into one body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A JSON array.
    Array,
    /// One object a line.
    Ndjson,
    /// One object by itself; the body holds no other.
    Object,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body: JSON as it is, anything else as a string, nothing as `null`.
    pub body: Value,
}

/// How the intake received some records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Posted {
    /// Objects that were accepted.
    pub accepted: usize,
    /// Objects that were rejected.
    pub rejected: usize,
}

/// A client of one server.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: String,
}

impl Client {
    /// A client of the server at an address such as `http://127.0.0.1:8080`.
    ///
    /// # Errors
    ///
    /// If no client can be made.
    pub fn new(base: &str) -> Result<Self> {
        let http = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build()?;
        Ok(Self { http, base: base.trim_end_matches('/').to_owned() })
    }

    /// The path of an endpoint for a campaign's or contact's id.
    #[must_use]
    pub fn path(endpoint: Endpoint, prefix: Prefix, id: &str) -> String {
        let prefix = match (endpoint, prefix) {
            (Endpoint::Campaign, Prefix::Short) => "/v1/campaigns",
            (Endpoint::Campaign, Prefix::Long) => "/functions/v1/api-gateway/v1/campaigns",
            (Endpoint::Contact, Prefix::Short) => "/contacts",
            (Endpoint::Contact, Prefix::Long) => "/api/v1/contacts",
        };
        format!("{prefix}/{id}/events")
    }

    /// Any request to a path of the server, to be changed and sent by the caller.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base))
    }

    /// Reads one page.
    ///
    /// # Errors
    ///
    /// If there is no answer.
    pub async fn read(
        &self,
        endpoint: Endpoint,
        prefix: Prefix,
        id: &str,
        key: &str,
        query: &Query,
    ) -> Result<Reply> {
        let request = self.request(Method::GET, &Self::path(endpoint, prefix, id));
        send(request.bearer_auth(key).query(query.pairs())).await
    }

    /// Posts objects to `/v1/events` or `/v1/references` in one body.
    ///
    /// # Errors
    ///
    /// If there is no answer.
    pub async fn post(&self, topic: Topic, key: &str, objects: &[Vec<u8>], form: Form) -> Result<Reply> {
        let path = match topic {
            Topic::Events => "/v1/events",
            Topic::References => "/v1/references",
        };
        let (content_type, body) = match form {
            Form::Array => ("application/json", [b"[".as_slice(), &objects.join(&b','), b"]"].concat()),
            Form::Object => ("application/json", objects.concat()),
            Form::Ndjson => ("application/x-ndjson", [objects.join(&b'\n').as_slice(), b"\n"].concat()),
        };
        let request = self.request(Method::POST, path).bearer_auth(key).header("content-type", content_type);
        send(request.body(body)).await
    }

    /// Posts what can be posted of some records, in batches of at most `batch_max`, each account with
    /// its key. Records of one account and topic keep their order. A batch that is told to come back
    /// (429, 503) is posted again.
    ///
    /// # Errors
    ///
    /// If there is no answer, or one that is neither acceptance nor rejection.
    pub async fn post_records(
        &self,
        keys: &BTreeMap<String, String>,
        records: &[Record],
        batch_max: usize,
        form: Form,
    ) -> Result<Posted> {
        let mut posted = Posted::default();
        for ((topic, account), objects) in batches(records, batch_max) {
            let key = keys.get(account).with_context(|| format!("no key for account {account}"))?;
            let batch = self.post_batch(topic, key, &objects, form).await?;
            posted.accepted += batch.accepted;
            posted.rejected += batch.rejected;
        }
        Ok(posted)
    }

    /// The sum of a metric's samples that have `label`, such as `topic="mail.events"`; of all where it is empty. For a client
    /// of a service's ops address.
    ///
    /// # Errors
    ///
    /// If there is no answer.
    pub async fn metric(&self, name: &str, label: &str) -> Result<f64> {
        let reply = send(self.request(Method::GET, "/metrics")).await?;
        let shown = reply.body.as_str().context("metrics are text")?;
        let of_metric = shown.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])) && line.contains(label)
        });
        Ok(of_metric.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum())
    }

    async fn post_batch(&self, topic: Topic, key: &str, objects: &[Vec<u8>], form: Form) -> Result<Posted> {
        for _ in 0..REFUSALS_MAX {
            let reply = self.post(topic, key, objects, form).await?;
            match reply.status {
                202 => return accepted(&reply.body, objects.len()),
                // "400 when nothing was accepted."
                400 => return Ok(Posted { accepted: 0, rejected: objects.len() }),
                429 | 503 => tokio::time::sleep(reply.retry_after()).await,
                status => bail!("the intake answered {status}: {}", reply.body),
            }
        }
        bail!("the intake refused a batch {REFUSALS_MAX} times")
    }
}

impl Reply {
    /// How long the server asks to wait, from `Retry-After`; a second if it does not say.
    #[must_use]
    pub fn retry_after(&self) -> Duration {
        let seconds = self.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        Duration::from_secs(seconds.unwrap_or(1))
    }
}

/// Sends a request and reads the whole answer.
///
/// # Errors
///
/// If there is no answer.
pub async fn send(request: RequestBuilder) -> Result<Reply> {
    let response = request.send().await?;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let bytes = response.bytes().await?;
    let body = if bytes.is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()))
    };
    Ok(Reply { status, headers, body })
}

/// What the intake said of a batch, if it accounts for every object of it.
fn accepted(body: &Value, count: usize) -> Result<Posted> {
    let accepted = body["accepted"].as_u64().and_then(|accepted| usize::try_from(accepted).ok());
    let rejected = body["rejected"].as_array().map(Vec::len);
    match (accepted, rejected) {
        (Some(accepted), Some(rejected)) if accepted + rejected == count => Ok(Posted { accepted, rejected }),
        _ => bail!("the intake was sent {count} objects and answered {body}"),
    }
}

type Batch<'a> = ((Topic, &'a str), Vec<Vec<u8>>);

/// Cuts records into bodies of one topic and account each, bounded in number and bytes.
fn batches(records: &[Record], batch_max: usize) -> Vec<Batch<'_>> {
    let mut done = Vec::new();
    let mut open: BTreeMap<_, (usize, Vec<Vec<u8>>)> = BTreeMap::new();
    for record in records {
        let Some(body) = record.post_body() else { continue };
        let place = (record.topic, record.account.as_str());
        let (bytes, objects) = open.entry(place).or_default();
        *bytes += body.len();
        objects.push(body);
        if objects.len() >= batch_max || *bytes >= BATCH_BYTES_MAX {
            *bytes = 0;
            done.push((place, std::mem::take(objects)));
        }
    }
    let rest = open.into_iter().map(|(place, (_, objects))| (place, objects));
    done.extend(rest.filter(|(_, objects)| !objects.is_empty()));
    done
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_are_the_contracts() {
        let path = |endpoint, prefix| Client::path(endpoint, prefix, "x");
        assert_eq!(path(Endpoint::Campaign, Prefix::Short), "/v1/campaigns/x/events");
        assert_eq!(path(Endpoint::Campaign, Prefix::Long), "/functions/v1/api-gateway/v1/campaigns/x/events");
        assert_eq!(path(Endpoint::Contact, Prefix::Short), "/contacts/x/events");
        assert_eq!(path(Endpoint::Contact, Prefix::Long), "/api/v1/contacts/x/events");
    }

    #[test]
    fn batches_keep_order_and_leave_out_what_cannot_be_posted() {
        let event = |account: &str, n: u32| Record::event(&json!({ "account_id": account, "n": n }));
        let unpostable = Record { is_postable: false, ..event("a", 9) };
        let records = [event("a", 1), event("b", 1), unpostable, event("a", 2), event("a", 3)];
        let bodies = |account: &str| -> Vec<String> {
            let batches = batches(&records, 2).into_iter().filter(|((_, a), _)| *a == account);
            batches.map(|(_, objects)| String::from_utf8_lossy(&objects.join(&b'|')).into_owned()).collect()
        };
        assert_eq!(
            bodies("a"),
            [r#"{"account_id":"a","n":1}|{"account_id":"a","n":2}"#, r#"{"account_id":"a","n":3}"#]
        );
        assert_eq!(bodies("b").len(), 1);
    }
}

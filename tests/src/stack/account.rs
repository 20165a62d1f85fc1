//! A tenant of a stack: publishes as its mail senders do, reads as its API clients do.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures::stream::{self, StreamExt};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use uuid::Uuid;

use super::Stack;
use crate::client::{Client, Form, Prefix, Reply, send};
use crate::eventually;
use crate::history::{Record, Topic};
use crate::kafka::Topics;
use crate::model::Endpoint;

/// How long anything may take on a machine that has other things to do.
pub const PATIENCE: Duration = Duration::from_secs(60);

const EVENTS_AT_ONCE: usize = 64;
const EVENTS: &str = "mail.events";
const REFERENCES: &str = "mail.references";
const CAMPAIGN_EVENTS: &str = "mail.campaign-events";

/// A tenant, and a key of it.
pub struct Account<'a> {
    stack: &'a Stack,
    /// Its id.
    pub name: String,
    /// Its key.
    pub key: String,
    reads: Client,
    intake: Client,
}

impl<'a> Account<'a> {
    /// The account that `key` opens.
    ///
    /// Its connections belong to the runtime of the test that makes it.
    pub fn new(stack: &'a Stack, name: &str, key: &str) -> Self {
        let client = |url| Client::new(url).expect("a client can be made");
        Self {
            stack,
            name: name.to_owned(),
            key: key.to_owned(),
            reads: client(stack.url()),
            intake: client(stack.intake_url()),
        }
    }

    /// The same account with another key of it.
    pub async fn with_permissions(&self, permissions: &[&str]) -> Account<'a> {
        let key = self.stack.create_key(&self.name, permissions).await;
        Account::new(self.stack, &self.name, &key)
    }

    /// A request for a path of the endpoints, with the key.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.reads.request(method, path).bearer_auth(&self.key)
    }

    /// A request for a path of the intake, with the key.
    pub fn intake_request(&self, path: &str) -> RequestBuilder {
        self.intake.request(Method::POST, path).bearer_auth(&self.key)
    }

    /// GETs a path of the endpoints.
    pub async fn get(&self, path: &str) -> Reply {
        send(self.request(Method::GET, path)).await.expect("an answer")
    }

    /// A page of a campaign; `query` is what follows the `?`.
    pub async fn campaign(&self, id: &str, query: &str) -> Reply {
        self.get(&path(Endpoint::Campaign, id, query)).await
    }

    /// A page of a contact; `query` is what follows the `?`.
    pub async fn contact(&self, id: &str, query: &str) -> Reply {
        self.get(&path(Endpoint::Contact, id, query)).await
    }

    /// Posts a body to the intake as it is.
    pub async fn post(&self, path: &str, content_type: &str, body: impl Into<reqwest::Body>) -> Reply {
        let request = self.intake_request(path).header("content-type", content_type);
        send(request.body(body)).await.expect("an answer")
    }

    /// Publishes events the stack's own way: over HTTP, or to the topic. What names no account becomes this one's.
    pub async fn publish(&self, events: &[Value]) {
        let events = events.iter().map(|event| Record::event(&self.owned(event)));
        self.take(Topic::Events, events.collect()).await;
    }

    /// Publishes references; one that is `"deleted": true` is deleted.
    pub async fn refer(&self, references: &[Value]) {
        let references = references.iter().map(|reference| {
            let reference = self.owned(reference);
            let text = |name: &str| reference[name].as_str().unwrap_or_default();
            match reference["deleted"] {
                Value::Bool(true) => Record::reference_deletion(text("kind"), &self.name, text("id")),
                _ => Record::reference(&reference),
            }
        });
        self.take(Topic::References, references.collect()).await;
    }

    async fn take(&self, topic: Topic, records: Vec<Record>) {
        let Some(topics) = self.stack.topics() else {
            let bodies: Vec<_> = records.iter().filter_map(Record::post_body).collect();
            let reply = self.intake.post(topic, &self.key, &bodies, Form::Array).await.expect("an answer");
            assert_eq!(
                (reply.status, &reply.body["accepted"]),
                (202, &json!(bodies.len())),
                "{}",
                reply.body
            );
            return;
        };
        let name = if topic == Topic::Events { EVENTS } else { REFERENCES };
        let publish = |record: Record| async move {
            match (&record.key, &record.value) {
                (Some(key), None) => topics.publish_tombstone(name, key.as_bytes()).await,
                (key, value) => {
                    let value = value.as_deref().unwrap_or_default();
                    topics.publish(name, key.as_deref().map(str::as_bytes), value, None).await
                }
            }
        };
        // Names are taken in their order; events may come in any.
        let at_once = if topic == Topic::Events { EVENTS_AT_ONCE } else { 1 };
        stream::iter(records).map(publish).buffered(at_once).collect::<Vec<_>>().await;
    }

    fn owned(&self, fields: &Value) -> Value {
        let mut fields = fields.clone();
        if fields.get("account_id").is_none() {
            fields["account_id"] = json!(self.name);
        }
        fields
    }

    /// Returns once everything that was published before is projected.
    pub async fn settle(&self) {
        if let Some(topics) = self.stack.topics() {
            // What the first stage has done is in the topic of the second.
            for (topic, suffix) in [(REFERENCES, ".references"), (EVENTS, ""), (CAMPAIGN_EVENTS, ".own")] {
                let group = format!("{}{suffix}", self.stack.group());
                let ends = topics.ends(topic).await;
                eventually(PATIENCE, async || passed(topics, &group, topic, &ends).await).await;
            }
            return;
        }
        // What is behind the first of these is in a later batch, so that the second ends the batch of the first.
        for _ in 0..2 {
            let id = format!("settle_{}", Uuid::new_v4().simple());
            let contact = Uuid::new_v4().to_string();
            let now = chrono::Utc::now().to_rfc3339();
            self.publish(&[
                json!({ "id": id, "type": "open", "occurred_at": now, "contact_id": contact, "campaign_id": id }),
            ])
            .await;
            self.has_total(&path(Endpoint::Campaign, &id, ""), 1).await;
        }
    }

    /// Waits until a page's body is this one.
    #[track_caller]
    pub fn answers(&self, path: &str, body: &Value) -> impl Future<Output = Reply> {
        eventually(PATIENCE, async move || {
            let reply = self.get(path).await;
            ensure!(
                reply.status == 200 && reply.body == *body,
                "GET {path} answers {} {:#}, and expected is {body:#}",
                reply.status,
                reply.body
            );
            Ok(reply)
        })
    }

    /// Waits until a page has this total.
    #[track_caller]
    pub fn has_total(&self, path: &str, total: u64) -> impl Future<Output = Reply> {
        eventually(PATIENCE, async move || {
            let reply = self.get(path).await;
            ensure!(
                reply.status == 200 && total_of(&reply.body) == Some(total),
                "GET {path} answers {} {:#}, and the expected total is {total}",
                reply.status,
                reply.body
            );
            Ok(reply)
        })
    }

    /// Waits until a page has rows of these ids in this order, and as many in all.
    #[track_caller]
    pub fn has_rows(&self, path: &str, ids: &[&str]) -> impl Future<Output = Vec<Value>> {
        eventually(PATIENCE, async move || {
            let reply = self.get(path).await;
            let rows = rows_of(&reply.body).with_context(|| format!("GET {path} answers {}", reply.body))?;
            let shown: Vec<&str> = rows.iter().map(id_of).collect();
            let total = total_of(&reply.body);
            ensure!(
                shown == ids && total == Some(ids.len() as u64),
                "GET {path} shows {shown:?} of {total:?}, and expected are {ids:?}"
            );
            Ok(rows.clone())
        })
    }

    /// Waits until `campaign` has rows of these ids, without a filter.
    #[track_caller]
    pub fn campaign_has(&self, campaign: &str, ids: &[&str]) -> impl Future<Output = Vec<Value>> {
        let path = path(Endpoint::Campaign, campaign, "");
        let rows = async move { self.has_rows(&path, ids).await };
        Box::pin(rows)
    }

    /// Waits until `contact` has rows of these ids, without a filter; ids that are no UUIDs as they are shown.
    #[track_caller]
    pub fn contact_has(&self, contact: &str, ids: &[&str]) -> impl Future<Output = Vec<Value>> {
        let path = path(Endpoint::Contact, contact, "");
        let shown: Vec<String> = ids.iter().map(|id| shown_uuid(id)).collect();
        let rows = async move {
            let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
            self.has_rows(&path, &shown).await
        };
        Box::pin(rows)
    }
}

/// The short path of a timeline, with a query.
pub fn path(endpoint: Endpoint, id: &str, query: &str) -> String {
    let path = Client::path(endpoint, Prefix::Short, id);
    if query.is_empty() { path } else { format!("{path}?{query}") }
}

/// An event's id as the contact timeline shows it.
pub fn shown_uuid(id: &str) -> String {
    match Uuid::try_parse(id) {
        Ok(uuid) if id.len() == 36 => uuid.to_string(),
        _ => Uuid::new_v5(&Uuid::NAMESPACE_OID, id.as_bytes()).to_string(),
    }
}

fn rows_of(body: &Value) -> Option<&Vec<Value>> {
    body["data"]["events"].as_array().or_else(|| body["data"].as_array())
}

fn id_of(row: &Value) -> &str {
    row["id"].as_str().or_else(|| row["uuid"].as_str()).unwrap_or_default()
}

fn total_of(body: &Value) -> Option<u64> {
    body["meta"]["total"].as_u64().or_else(|| body["pagination"]["total"].as_u64())
}

async fn passed(topics: &Topics, group: &str, topic: &str, ends: &BTreeMap<i32, i64>) -> anyhow::Result<()> {
    let committed = topics.committed(group, topic).await;
    let left = ends.iter().find(|(partition, end)| committed.get(partition).unwrap_or(&0) < *end);
    ensure!(left.is_none(), "{topic} is committed up to {committed:?} of {ends:?}");
    Ok(())
}

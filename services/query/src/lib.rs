//! The two endpoints: a campaign's event stream and a contact's timeline.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`read`] | one page of a timeline and its exact total |
//! | [`trees`] | what of trees earlier pages have seen |
//! | `campaign_events`, `contact_events` | an endpoint each: parameters, handler, rows, tests |
//! | `params` | the parameters of a query |
//! | `links` | the `Link` header |
//! | `names` | what references say now |
//! | `known` | which campaigns and contacts exist |

mod campaign_events;
mod contact_events;
mod known;
mod links;
mod names;
mod params;
pub mod read;
#[cfg(test)]
mod testing;
pub mod trees;

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, Uri, header};
use axum::response::{IntoResponse, Response};
use edge::{Clock, Door, Problem, Style};
use event_store::EventStore;
use serde::Serialize;
use serde_json::value::RawValue;
use telemetry::metrics::{PAGES, ROWS_READ, ROWS_SERVED};
use timeline::key::Permission;
use timeline::time::DAY_MS;
use timeline::{TimelineId, Timestamp};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::known::Known;
use crate::names::Names;
use crate::params::Paging;
use crate::read::{Page, PageRequest, read_page_by};
use crate::trees::Trees;

/// Large answers that were made and are not sent yet take up to so many bytes. Beyond that a request for one is answered 503.
const ANSWERS_BYTES_MAX: usize = 64 << 20;
/// What an answer may have, in bytes, and not be a large one: twice what a page of 100 rows mostly has.
const ANSWER_BYTES_SMALL: usize = 64 << 10;
/// What a row takes in an answer, in bytes: room for so much is made at once.
const ROW_BYTES_TYPICAL: usize = 320;

/// All routes, behind `door`.
pub fn router(query: Arc<Query>, door: &Door) -> Router {
    let campaign = || door.reading(Style::Campaign, Permission::CampaignsRead, campaign_events::list);
    let contact = || door.reading(Style::Contact, Permission::ContactsRead, contact_events::list);
    Router::new()
        .route("/v1/campaigns/{id}/events", campaign())
        .route("/functions/v1/api-gateway/v1/campaigns/{id}/events", campaign())
        .route("/contacts/{uuid}/events", contact())
        .route("/api/v1/contacts/{uuid}/events", contact())
        .with_state(query)
}

/// What both endpoints read from.
pub struct Query {
    store: Arc<dyn EventStore>,
    clock: Clock,
    retention_days: u32,
    known: Known,
    names: Names,
    trees: Trees,
    answers: Answers,
}

impl Query {
    /// Reads from `store` what happened in the last `retention_days` days.
    pub fn new(store: Arc<dyn EventStore>, clock: Clock, retention_days: u32) -> Query {
        Query {
            known: Known::new(store.clone()),
            names: Names::new(store.clone(), clock.clone()),
            trees: Trees::default(),
            answers: Answers::within(ANSWERS_BYTES_MAX),
            store,
            clock,
            retention_days,
        }
    }

    /// The first millisecond that shows now. Rows and totals of one answer are cut at the same.
    fn oldest_shown(&self) -> Timestamp {
        (self.clock)().minus_ms(i64::from(self.retention_days) * DAY_MS)
    }

    /// Reads a page, and counts it for `endpoint`.
    async fn read(
        &self,
        endpoint: &'static str,
        timeline: &TimelineId,
        request: &PageRequest,
    ) -> Result<Page, Problem> {
        let page = read_page_by(&self.trees, self.store.as_ref(), timeline, request).await?;
        PAGES.with_label_values(&[endpoint, page.by]).inc();
        ROWS_READ.with_label_values(&[endpoint]).inc_by(page.rows_read);
        ROWS_SERVED.with_label_values(&[endpoint]).inc_by(page.rows.len() as u64);
        Ok(page)
    }
}

/// The room for large answers that are not sent yet: whoever reads slowly must not fill the memory. Small ones need none.
struct Answers(Arc<Semaphore>);

/// An answer, and the room that it takes for as long as somebody holds a part of it.
struct Answer {
    text: Vec<u8>,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Answer {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}

impl Answers {
    fn within(bytes: usize) -> Answers {
        Answers(Arc::new(Semaphore::new(bytes)))
    }

    fn hold(&self, text: Vec<u8>) -> Result<Bytes, Problem> {
        if text.len() <= ANSWER_BYTES_SMALL {
            return Ok(text.into());
        }
        let room = u32::try_from(text.len()).ok();
        let room = room.and_then(|bytes| self.0.clone().try_acquire_many_owned(bytes).ok());
        let Some(room) = room else {
            tracing::warn!("no room for another answer");
            return Err(Problem::Unavailable);
        };
        Ok(Bytes::from_owner(Answer { text, _room: room }))
    }
}

/// The answer `body`, one page of `rows` of `total` rows at `uri`.
fn answer(
    answers: &Answers,
    body: &impl Serialize,
    uri: &Uri,
    paging: Paging,
    rows: usize,
    total: u64,
) -> Result<Response, Problem> {
    let mut text = Vec::with_capacity(ROW_BYTES_TYPICAL * (rows + 1));
    serde_json::to_writer(&mut text, body).map_err(|error| {
        tracing::error!(%error, "a page could not be written");
        Problem::Internal
    })?;
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    if let Some(links) = links::links(uri, paging, total) {
        headers.insert(header::LINK, links);
    }
    Ok((headers, answers.hold(text)?).into_response())
}

/// A JSON object as it is stored, to be served as it is.
fn stored_object(text: &str) -> Result<&RawValue, Problem> {
    let object = serde_json::from_str::<&RawValue>(text).ok().filter(|object| object.get().starts_with('{'));
    object.ok_or_else(|| {
        tracing::error!("a stored row holds text that is no JSON object");
        Problem::Unavailable
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_answers_share_a_room_and_leave_it_once_they_are_sent() {
        let large = || vec![b'a'; ANSWER_BYTES_SMALL + 1];
        let answers = Answers::within(large().len());
        let held = answers.hold(large()).expect("there is room");
        let part = held.slice(2..3);
        drop(held);
        assert_eq!(answers.hold(large()), Err(Problem::Unavailable));
        assert_eq!(answers.hold(b"small".to_vec()).expect("it needs none"), "small");
        assert_eq!(part, "a");
        drop(part);
        assert_eq!(answers.hold(large()).expect("there is room"), large());
    }
}

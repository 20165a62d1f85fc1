//! *Place*: the first stage. Takes raw events as they come, in any partition and any order: decodes, filters, joins each with its
//! `send`, and says which rows go to which timelines. It drops no repeats: the owner of the timeline does.
//!
//! An event that needs a `send` not seen yet is put to wait, *then* looks once more; a `send` is written, *then* looks who waits. So
//! one of the two always finds the other, whatever runs beside; where both do, the owner drops the repeat. What an event
//! has by itself shows at once, the rest when its `send` comes.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::sync::Arc;

use event_log::Incoming;
use event_store::{EventStore, SendWrite, StoreError, WAITING_BYTES_MAX, Waiting, WaitingFrom};
use lru::LruCache;
use telemetry::metrics;
use timeline::event::decode_event;
use timeline::filter::ListManagementFilter;
use timeline::row::{PlacedRow, Placing, project};
use timeline::send::{SEND_KEPT_LONGER_MS, SendFacts, join, message_to_join};
use timeline::{AccountId, Event, EventType, Id, Refusal, TimelineId, Timestamp};

use crate::forgotten::Forgotten;
use crate::own::ROW_GRACE_MS;
use crate::retry::until_done;

/// Sends kept in memory, some 300 bytes each.
const SENDS_CACHED_MAX: NonZeroUsize = NonZeroUsize::new(50_000).expect("not zero");
/// Timelines known to be marked as known, some 150 bytes each.
const KNOWN_CACHED_MAX: NonZeroUsize = NonZeroUsize::new(20_000).expect("not zero");
/// Write stamps of sends count down from here (2^50 µs, the year 2005) by the millisecond of the broker's timestamp: of two sends of one
/// message the earlier record has the greater stamp, and no stamp lies in the future, which Scylla refuses.
const SEND_STAMP_BASE: i64 = 1 << 50;

/// A write stamp that no send has: what is written with it stays.
pub const SEND_STAMP_MAX: i64 = SEND_STAMP_BASE;

/// One message of `mail.events`.
#[derive(Clone, Copy, Debug)]
pub struct RawRecord<'a> {
    /// Its value.
    pub value: &'a [u8],
    /// The broker's timestamp.
    pub appended_at: Timestamp,
}

impl<'a> From<&'a Incoming> for RawRecord<'a> {
    fn from(record: &'a Incoming) -> RawRecord<'a> {
        RawRecord { value: record.value.as_deref().unwrap_or_default(), appended_at: record.appended_at }
    }
}

/// What a batch of messages comes to.
#[derive(Debug, Default)]
pub struct Placed {
    /// Rows on their way to their timelines, in the order of the messages.
    pub rows: Vec<PlacedRow>,
    /// Messages that are no events: their place in the batch, and why.
    pub refused: Vec<(usize, Refusal)>,
    /// Events that wait no longer once `rows` are safe: to be handed to [`finish_joined`].
    pub joined: Vec<Waiting>,
    /// Events that wait for the batch's sends and are too many to be placed at once: to be handed to [`Place::wake`] before the batch
    /// is committed.
    pub waiting: Vec<WaitingFrom>,
}

/// The first stage.
pub struct Place {
    store: Arc<dyn EventStore>,
    filter: ListManagementFilter,
    retention_ms: i64,
    sends: LruCache<(AccountId, Id), SendFacts>,
    known: LruCache<TimelineId, ()>,
    forgotten: Arc<Forgotten>,
}

/// An event on its way through the batch.
struct Arrived {
    event: Event,
    appended_at: Timestamp,
    /// Its place in the batch.
    index: usize,
}

impl Place {
    /// A first stage that keeps events for `retention_ms` milliseconds of event time.
    pub fn new(store: Arc<dyn EventStore>, filter: ListManagementFilter, retention_ms: i64) -> Place {
        Place {
            forgotten: Forgotten::new(store.clone()),
            store,
            filter,
            retention_ms,
            sends: LruCache::new(SENDS_CACHED_MAX),
            known: LruCache::new(KNOWN_CACHED_MAX),
        }
    }

    /// The same, knowing what others of the process know of contacts that were forgotten.
    #[must_use]
    pub fn with_forgotten(self, forgotten: Arc<Forgotten>) -> Place {
        Place { forgotten, ..self }
    }

    /// Works through a batch. Nothing of it may be committed before `rows` and the dead letters are safe. Tries without end.
    pub async fn work(&mut self, now: Timestamp, records: &[RawRecord<'_>]) -> Placed {
        self.forgotten.keep_fresh(now).await;
        let mut placed = Placed::default();
        let (mut arrived, mut dropped) = (Vec::new(), BTreeSet::new());
        for (index, record) in records.iter().enumerate() {
            match decode_event(record.value, record.appended_at) {
                Err(refusal) => {
                    count_outcome("dead_letter");
                    metrics::DEAD_LETTERS.with_label_values(&[refusal.code]).inc();
                    placed.refused.push((index, refusal));
                }
                Ok(event) => match self.reason_to_drop(&event, record.appended_at) {
                    Some(outcome) => {
                        count_outcome(outcome);
                        dropped.extend(timelines_of(&event));
                        // A late send still tells what its message was.
                        if event.event_type == EventType::Sent {
                            arrived.push(Arrived { event, appended_at: record.appended_at, index });
                        }
                    }
                    None => arrived.push(Arrived { event, appended_at: record.appended_at, index }),
                },
            }
        }
        // Rows of forgotten contacts are left out by their owners, who know for certain. Here no address of theirs is kept.
        for Arrived { event, .. } in &mut arrived {
            if self.is_forgotten(event) {
                event.email = None;
            }
        }
        self.mark_known(dropped).await;
        self.remember_sends(now, &arrived).await;
        let sent = arrived.iter().filter(|arrived| arrived.event.event_type == EventType::Sent);
        let sent: BTreeSet<(AccountId, Id)> =
            sent.filter_map(|arrived| message_key(&arrived.event)).collect();
        self.wake_into(now, sent.into_iter().map(WaitingFrom::all).collect(), &mut placed).await;
        arrived.retain(|arrived| !self.is_expired(&arrived.event, arrived.appended_at));
        self.place(now, records, &arrived, &mut placed).await;
        placed
    }

    /// Why a valid event shows nowhere. It depends on the record alone, so that a replay decides the same.
    fn reason_to_drop(&self, event: &Event, appended_at: Timestamp) -> Option<&'static str> {
        if self.filter.matches(event) {
            Some("list_management_click")
        } else if self.is_expired(event, appended_at) {
            Some("expired")
        } else {
            None
        }
    }

    fn is_forgotten(&self, event: &Event) -> bool {
        event.contact.is_some_and(|contact| self.forgotten.has(&event.account, contact))
    }

    fn is_expired(&self, event: &Event, appended_at: Timestamp) -> bool {
        event.at.plus_ms(self.retention_ms) < appended_at
    }

    /// Events that show nowhere still say that their campaign and contact exist; for the others the owner says it.
    async fn mark_known(&mut self, timelines: BTreeSet<TimelineId>) {
        let unknown: Vec<TimelineId> =
            timelines.into_iter().filter(|id| self.known.get(id).is_none()).collect();
        if !unknown.is_empty() {
            until_done("mark_known", || self.store.mark_known(&unknown)).await;
            for id in unknown {
                self.known.put(id, ());
            }
        }
    }

    /// Writes what the batch's sends know, before anyone looks for it.
    async fn remember_sends(&self, now: Timestamp, arrived: &[Arrived]) {
        let sends = arrived.iter().filter_map(|Arrived { event, appended_at, .. }| {
            let message = event.message.clone().filter(|_| event.event_type == EventType::Sent)?;
            let expires_at = event.at.plus_ms(self.retention_ms + SEND_KEPT_LONGER_MS);
            let stamp = SEND_STAMP_BASE - appended_at.0;
            Some(SendWrite {
                account: event.account.clone(),
                message,
                facts: SendFacts::of(event),
                stamp,
                expires_at,
            })
        });
        let sends: Vec<SendWrite> = sends.filter(|send| send.expires_at > now).collect();
        if !sends.is_empty() {
            until_done("write_sends", || self.store.write_sends(now, &sends)).await;
        }
    }

    /// Places events that waited for sends, as many as are placed at once. Tries without end.
    pub async fn wake(&mut self, now: Timestamp, from: Vec<WaitingFrom>) -> Placed {
        let mut placed = Placed::default();
        self.wake_into(now, from, &mut placed).await;
        placed
    }

    async fn wake_into(&mut self, now: Timestamp, from: Vec<WaitingFrom>, placed: &mut Placed) {
        if from.is_empty() {
            return;
        }
        let read = || self.store.read_waiting(&from, WAITING_BYTES_MAX);
        let (waiting, more) = until_done("read_waiting", read).await;
        placed.waiting = more;
        if waiting.is_empty() {
            return;
        }
        let messages: BTreeSet<_> = waiting.iter().map(waiting_key).collect();
        let facts = self.read_sends(messages).await;
        for waiting in waiting {
            let Some(facts) = facts.get(&waiting_key(&waiting)) else {
                continue;
            };
            match decode_event(&waiting.event, waiting.appended_at) {
                Ok(event) if event.at.plus_ms(self.retention_ms) >= now => {
                    // One that had nothing to show while it waited is counted now.
                    let showed = !project(&event, waiting.appended_at, Placing::Incomplete).is_empty();
                    let placing = if showed { Placing::Completed } else { Placing::Complete };
                    self.place_one(&join(&event, facts), waiting.appended_at, placing, placed).await;
                }
                Ok(event) => {
                    count_outcome("expired");
                    self.mark_known(timelines_of(&join(&event, facts)).collect()).await;
                }
                // It stays where it can be looked at.
                Err(refusal) => {
                    count_outcome("unreadable");
                    tracing::error!(
                        code = refusal.code,
                        message_id = waiting.message.as_str(),
                        occurred_at = waiting.at.0,
                        "an event that waited cannot be read any more"
                    );
                    continue;
                }
            }
            placed.joined.push(waiting);
        }
    }

    /// Places the batch's own events.
    async fn place(
        &mut self,
        now: Timestamp,
        records: &[RawRecord<'_>],
        arrived: &[Arrived],
        placed: &mut Placed,
    ) {
        let mut needed: BTreeSet<(AccountId, Id)> =
            arrived.iter().filter_map(|arrived| key_to_join(&arrived.event)).collect();
        let mut facts = BTreeMap::new();
        needed.retain(|key| match self.sends.get(key) {
            Some(known) => facts.insert(key.clone(), known.clone()).is_some(),
            None => true,
        });
        facts.extend(self.look(needed).await);
        let waiting: Vec<Waiting> = arrived
            .iter()
            .filter(|arrived| key_to_join(&arrived.event).is_some_and(|key| !facts.contains_key(&key)))
            // It would wait, address and all, for nothing.
            .filter(|arrived| !self.is_forgotten(&arrived.event))
            .filter_map(|Arrived { event, appended_at, index }| {
                Some(Waiting {
                    account: event.account.clone(),
                    message: event.message.clone()?,
                    at: event.at,
                    id: event.id.clone(),
                    event: records[*index].value.to_vec(),
                    appended_at: *appended_at,
                    expires_at: event.at.plus_ms(self.retention_ms + ROW_GRACE_MS),
                })
            })
            .collect();
        let mut found_late = BTreeMap::new();
        if !waiting.is_empty() {
            until_done("put_waiting", || self.store.put_waiting(now, &waiting)).await;
            // Its send may have come between the first look and now.
            found_late = self.look(waiting.iter().map(waiting_key).collect()).await;
            placed
                .joined
                .extend(waiting.into_iter().filter(|waiting| found_late.contains_key(&waiting_key(waiting))));
        }
        for Arrived { event, appended_at, .. } in arrived {
            let key = key_to_join(event);
            let (facts, late) = (
                key.as_ref().and_then(|key| facts.get(key)),
                key.as_ref().and_then(|key| found_late.get(key)),
            );
            match (key.is_some(), facts, late) {
                (false, ..) => self.place_one(event, *appended_at, Placing::Complete, placed).await,
                (true, Some(facts), _) => {
                    self.place_one(&join(event, facts), *appended_at, Placing::Complete, placed).await;
                }
                // A repeat of it may stand incomplete, and what waits for both is taken off the list with this one.
                (true, None, Some(facts)) => {
                    self.place_one(&join(event, facts), *appended_at, Placing::CompleteAfterWaiting, placed)
                        .await;
                }
                (true, None, None) => self.place_one(event, *appended_at, Placing::Incomplete, placed).await,
            }
        }
    }

    async fn place_one(
        &mut self,
        event: &Event,
        appended_at: Timestamp,
        placing: Placing,
        placed: &mut Placed,
    ) {
        let rows = project(event, appended_at, placing);
        if rows.is_empty() {
            count_outcome(if placing == Placing::Incomplete { "waiting_for_send" } else { "no_timeline" });
        }
        // Where the event has a row, the owner of the timeline marks it as known.
        let without_row =
            timelines_of(event).filter(|id| !rows.iter().any(|row| row.timeline == *id)).collect();
        self.mark_known(without_row).await;
        placed.rows.extend(rows);
    }

    /// What the sends of `messages` knew, kept in memory from now on.
    async fn look(&mut self, messages: BTreeSet<(AccountId, Id)>) -> BTreeMap<(AccountId, Id), SendFacts> {
        let found = self.read_sends(messages).await;
        for (key, facts) in &found {
            self.sends.put(key.clone(), facts.clone());
        }
        found
    }

    async fn read_sends(&self, messages: BTreeSet<(AccountId, Id)>) -> BTreeMap<(AccountId, Id), SendFacts> {
        if messages.is_empty() {
            return BTreeMap::new();
        }
        let messages: Vec<_> = messages.into_iter().collect();
        let found = until_done::<_, StoreError, _>("read_sends", || self.store.read_sends(&messages)).await;
        messages.into_iter().zip(found).filter_map(|(key, facts)| facts.map(|facts| (key, facts))).collect()
    }
}

/// Takes events off the list of the waiting once their rows are safe.
pub async fn finish_joined(store: &dyn EventStore, joined: &[Waiting]) {
    if !joined.is_empty() {
        metrics::JOINED.inc_by(joined.len() as u64);
        until_done("remove_waiting", || store.remove_waiting(joined)).await;
    }
}

fn message_key(event: &Event) -> Option<(AccountId, Id)> {
    event.message.clone().map(|message| (event.account.clone(), message))
}

fn waiting_key(waiting: &Waiting) -> (AccountId, Id) {
    (waiting.account.clone(), waiting.message.clone())
}

fn key_to_join(event: &Event) -> Option<(AccountId, Id)> {
    message_to_join(event).map(|message| (event.account.clone(), message.clone()))
}

fn timelines_of(event: &Event) -> impl Iterator<Item = TimelineId> {
    let campaign = event.campaign.as_ref().map(|campaign| TimelineId::campaign(&event.account, campaign));
    campaign.into_iter().chain(event.contact.map(|contact| TimelineId::contact(&event.account, contact)))
}

fn count_outcome(outcome: &str) {
    metrics::EVENTS.with_label_values(&[outcome]).inc();
}

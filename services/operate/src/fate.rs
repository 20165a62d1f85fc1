//! What became of a message of `mail.events`: the same rules as *place*'s, applied to what is stored now.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use event_store::{EventStore, StoreError, WAITING_BYTES_MAX, WaitingFrom};
use timeline::event::decode_event;
use timeline::filter::ListManagementFilter;
use timeline::row::{PlacedRow, Placing, project};
use timeline::send::{SendFacts, join, message_to_join};
use timeline::{AccountId, Event, Id, Refusal, Timestamp};
use uuid::Uuid;

/// What a message says, and what became of it.
#[derive(Clone, Debug)]
pub enum Fate {
    /// It is no event: a dead letter.
    Refused(Refusal),
    /// A list-management click: it shows nowhere.
    Filtered(Box<Event>),
    /// It was past retention when it came.
    Expired(Box<Event>),
    /// It has passed retention since.
    Gone(Box<Event>),
    /// Its contact was forgotten.
    Forgotten(Box<Event>),
    /// It shows, now or once its send comes.
    Shown(Box<Shown>),
}

/// An event that shows.
#[derive(Clone, Debug)]
pub struct Shown {
    /// As it came.
    pub event: Event,
    /// What its message's send knew, where it needs it and it came.
    pub facts: Option<SendFacts>,
    /// The message whose send it needs, if it does.
    pub needs: Option<Id>,
    /// Whether it waits for that send.
    pub waits: bool,
    /// The rows that should stand.
    pub rows: Vec<PlacedRow>,
}

/// Judges messages by the settings that `ingest` has.
pub struct Judge<'a> {
    /// Where sends and what waits for them are.
    pub store: &'a dyn EventStore,
    /// Which clicks are list management.
    pub filter: &'a ListManagementFilter,
    /// How long events are kept, in milliseconds.
    pub retention_ms: i64,
    /// The contacts that were forgotten.
    pub forgotten: &'a HashSet<(AccountId, Uuid)>,
}

impl Judge<'_> {
    /// What became of `messages` with their broker timestamps, in their order.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub async fn judge(
        &self,
        now: Timestamp,
        messages: &[(&[u8], Timestamp)],
    ) -> Result<Vec<Fate>, StoreError> {
        let mut fates = Vec::with_capacity(messages.len());
        let mut needed = BTreeSet::new();
        for (message, appended_at) in messages {
            let fate = match decode_event(message, *appended_at) {
                Err(refusal) => Fate::Refused(refusal),
                Ok(event) => self.of_event(now, event, *appended_at),
            };
            if let Fate::Shown(shown) = &fate {
                needed.extend(needed_by(shown));
            }
            fates.push(fate);
        }
        let needed: Vec<(AccountId, Id)> = needed.into_iter().collect();
        let found = self.store.read_sends(&needed).await?;
        let (known, unknown): (Vec<_>, Vec<_>) =
            needed.into_iter().zip(found).partition(|(_, facts)| facts.is_some());
        let facts: BTreeMap<(AccountId, Id), SendFacts> =
            known.into_iter().filter_map(|(key, facts)| Some((key, facts?))).collect();
        let unknown: Vec<(AccountId, Id)> = unknown.into_iter().map(|(key, _)| key).collect();
        let waiting: BTreeSet<(AccountId, Id, Timestamp, Id)> = match unknown.is_empty() {
            true => BTreeSet::new(),
            false => {
                let mut from: Vec<WaitingFrom> = unknown.into_iter().map(WaitingFrom::all).collect();
                let mut known = BTreeSet::new();
                while !from.is_empty() {
                    let (waiting, more) = self.store.read_waiting(&from, WAITING_BYTES_MAX).await?;
                    let keys =
                        waiting.into_iter().map(|event| (event.account, event.message, event.at, event.id));
                    known.extend(keys);
                    from = more;
                }
                known
            }
        };
        for (fate, (_, appended_at)) in fates.iter_mut().zip(messages) {
            let Fate::Shown(shown) = fate else { continue };
            let key = needed_by(shown);
            shown.facts = key.as_ref().and_then(|key| facts.get(key)).cloned();
            shown.rows = match (&shown.facts, &key) {
                (Some(facts), _) => project(&join(&shown.event, facts), *appended_at, Placing::Complete),
                (None, Some((account, message))) => {
                    let event = &shown.event;
                    shown.waits =
                        waiting.contains(&(account.clone(), message.clone(), event.at, event.id.clone()));
                    project(event, *appended_at, Placing::Incomplete)
                }
                (None, None) => project(&shown.event, *appended_at, Placing::Complete),
            };
            let contact =
                shown.event.contact.or_else(|| shown.facts.as_ref().and_then(|facts| facts.contact));
            if contact.is_some_and(|contact| self.forgotten.contains(&(shown.event.account.clone(), contact)))
            {
                *fate = Fate::Forgotten(Box::new(shown.event.clone()));
            }
        }
        Ok(fates)
    }

    fn of_event(&self, now: Timestamp, event: Event, appended_at: Timestamp) -> Fate {
        let ends_at = event.at.plus_ms(self.retention_ms);
        if self.filter.matches(&event) {
            Fate::Filtered(Box::new(event))
        } else if ends_at < appended_at {
            Fate::Expired(Box::new(event))
        } else if ends_at < now {
            Fate::Gone(Box::new(event))
        } else {
            let needs = message_to_join(&event).cloned();
            Fate::Shown(Box::new(Shown { event, facts: None, needs, waits: false, rows: Vec::new() }))
        }
    }
}

fn needed_by(shown: &Shown) -> Option<(AccountId, Id)> {
    shown.needs.clone().map(|message| (shown.event.account.clone(), message))
}

//! References: stored as they come, the later record winning.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::Arc;

use event_log::Incoming;
use event_store::{EventStore, ReferenceWrite};
use lru::LruCache;
use telemetry::metrics;
use timeline::reference::{Kind, Reference, ReferenceKey, decode_reference};
use timeline::{Refusal, TimelineId, Timestamp, id};
use uuid::Uuid;

use crate::forgotten::Forgotten;
use crate::retry::until_done;

/// One message of `mail.references`.
#[derive(Clone, Copy, Debug)]
pub struct RawReference<'a> {
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value; empty deletes.
    pub value: Option<&'a [u8]>,
    /// Its offset.
    pub offset: i64,
    /// The broker's timestamp.
    pub appended_at: Timestamp,
}

impl<'a> From<&'a Incoming> for RawReference<'a> {
    fn from(record: &'a Incoming) -> RawReference<'a> {
        RawReference {
            key: record.key.as_deref(),
            value: record.value.as_deref(),
            offset: record.offset,
            appended_at: record.appended_at,
        }
    }
}

/// The records that the references were stored from last, and the stamps that they were given, so that each beats the one before it.
#[derive(Debug)]
pub struct Stamps(LruCache<ReferenceKey, Last>);

/// Keys whose last stamp is remembered. One that was not changed for so many others comes in another millisecond.
const STAMPS_MAX: NonZeroUsize = NonZeroUsize::new(20_000).expect("not zero");

impl Default for Stamps {
    /// None was given yet.
    fn default() -> Stamps {
        Stamps(LruCache::new(STAMPS_MAX))
    }
}

#[derive(Debug)]
struct Last {
    offset: i64,
    stamp: i64,
}

/// Stores a batch; returns the messages that are no references. Tries without end.
pub async fn store_references(
    store: &Arc<dyn EventStore>,
    forgotten: &Forgotten,
    stamps: &mut Stamps,
    records: &[RawReference<'_>],
) -> Vec<(usize, Refusal)> {
    let (mut writes, mut known, mut refused) = (Vec::new(), BTreeSet::new(), Vec::new());
    for (index, record) in records.iter().enumerate() {
        match decode_reference(record.key, record.value) {
            Ok(mut reference) => {
                if contact_of(&reference)
                    .is_some_and(|contact| forgotten.has(&reference.key.account, contact))
                {
                    (reference.name, reference.email) = (None, None);
                }
                known.extend(timeline_of(&reference));
                // Records of one key come in order, mostly in different milliseconds; within one their offsets tell them apart,
                // but for those on either side of a multiple of 1000: each is to beat the one before it.
                let own = record.appended_at.0 * 1000 + record.offset.rem_euclid(1000);
                // One that is read again is no later than what was read before: it keeps its stamp, or whoever reads what
                // follows would be beaten by it.
                let before = stamps.0.get(&reference.key).filter(|last| last.offset < record.offset);
                let stamp = before.map_or(own, |last| own.max(last.stamp + 1));
                stamps.0.put(reference.key.clone(), Last { offset: record.offset, stamp });
                writes.push(ReferenceWrite { reference, stamp });
            }
            Err(refusal) => {
                metrics::REFERENCES.with_label_values(&["dead_letter"]).inc();
                metrics::DEAD_LETTERS.with_label_values(&[refusal.code]).inc();
                refused.push((index, refusal));
            }
        }
    }
    if !known.is_empty() {
        let known: Vec<TimelineId> = known.into_iter().collect();
        until_done("mark_known", || store.mark_known(&known)).await;
    }
    if !writes.is_empty() {
        until_done("write_references", || store.write_references(&writes)).await;
        metrics::REFERENCES.with_label_values(&["stored"]).inc_by(writes.len() as u64);
    }
    refused
}

/// The contact that a reference is about, if it is about one.
fn contact_of(reference: &Reference) -> Option<Uuid> {
    (reference.key.kind == Kind::Contact).then(|| id::parse_uuid(reference.key.id.as_str())).flatten()
}

/// A campaign or a contact exists once its reference was taken in; that it is deleted says nothing new.
fn timeline_of(reference: &Reference) -> Option<TimelineId> {
    if reference.deleted {
        return None;
    }
    let key = &reference.key;
    match key.kind {
        Kind::Campaign => Some(TimelineId::campaign(&key.account, &key.id)),
        Kind::Contact => contact_of(reference).map(|contact| TimelineId::contact(&key.account, contact)),
        Kind::Automation | Kind::List => None,
    }
}

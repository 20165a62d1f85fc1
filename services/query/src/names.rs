//! What references say now: names of campaigns, automations and lists, addresses of contacts. Laid over rows when
//! they are read, through a cache so short-lived that a renamed campaign shows within a second.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use edge::Clock;
use event_store::{EventStore, StoreError, StoredReference};
use lru::LruCache;
use timeline::reference::{Kind, ReferenceKey};
use timeline::{AccountId, Id, Timestamp};
use uuid::Uuid;

/// How long a reference is remembered, in milliseconds.
const FRESH_MS_MAX: i64 = 250;
/// How many references are remembered.
const REFERENCES_MAX: NonZeroUsize = NonZeroUsize::new(16_384).expect("not zero");
/// A reference of more text than this is not remembered, so that the cache is bounded in bytes too.
const REMEMBERED_BYTES_MAX: usize = 1024;

/// Looks references up.
pub(crate) struct Names {
    store: Arc<dyn EventStore>,
    clock: Clock,
    remembered: Mutex<LruCache<ReferenceKey, Remembered>>,
}

struct Remembered {
    reference: Option<Arc<StoredReference>>,
    since: Timestamp,
}

/// The references that one page needs. What is not there was never known.
#[derive(Debug, Default)]
pub(crate) struct PageNames(HashMap<ReferenceKey, Arc<StoredReference>>);

impl Names {
    /// Nothing is remembered yet.
    pub(crate) fn new(store: Arc<dyn EventStore>, clock: Clock) -> Names {
        Names { store, clock, remembered: Mutex::new(LruCache::new(REFERENCES_MAX)) }
    }

    /// The references of `keys`, those that are not remembered in one request to the store.
    pub(crate) async fn look_up(
        &self,
        keys: impl Iterator<Item = ReferenceKey>,
    ) -> Result<PageNames, StoreError> {
        let now = (self.clock)();
        let wanted: HashSet<ReferenceKey> = keys.collect();
        let mut found = PageNames::default();
        let mut missing = Vec::new();
        {
            let mut remembered = self.remembered();
            for key in wanted {
                match remembered.get(&key).filter(|held| (0..FRESH_MS_MAX).contains(&(now.0 - held.since.0)))
                {
                    Some(held) => found.insert(key, held.reference.clone()),
                    None => missing.push(key),
                }
            }
        }
        if missing.is_empty() {
            return Ok(found);
        }
        let read = self.store.read_references(&missing).await?;
        let mut remembered = self.remembered();
        for (key, reference) in missing.into_iter().zip(read) {
            let reference = reference.map(Arc::new);
            if reference.as_deref().map_or(0, text_bytes) <= REMEMBERED_BYTES_MAX {
                remembered.put(key.clone(), Remembered { reference: reference.clone(), since: now });
            }
            found.insert(key, reference);
        }
        Ok(found)
    }

    fn remembered(&self) -> MutexGuard<'_, LruCache<ReferenceKey, Remembered>> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PageNames {
    /// The current or last name.
    pub(crate) fn name(&self, key: &ReferenceKey) -> Option<&str> {
        self.0.get(key)?.name.as_deref()
    }

    /// The latest address.
    pub(crate) fn email(&self, key: &ReferenceKey) -> Option<&str> {
        self.0.get(key)?.email.as_deref()
    }

    fn insert(&mut self, key: ReferenceKey, reference: Option<Arc<StoredReference>>) {
        self.0.extend(reference.map(|reference| (key, reference)));
    }
}

/// The key of a reference.
pub(crate) fn key_of(account: &AccountId, kind: Kind, id: &Id) -> ReferenceKey {
    ReferenceKey { account: account.clone(), kind, id: id.clone() }
}

/// The key of a contact's reference.
pub(crate) fn contact_key(account: &AccountId, contact: Uuid) -> ReferenceKey {
    let id = Id::parse(&contact.to_string()).expect("a UUID is an id");
    ReferenceKey { account: account.clone(), kind: Kind::Contact, id }
}

fn text_bytes(reference: &StoredReference) -> usize {
    [&reference.name, &reference.email].into_iter().flatten().map(|text| text.len()).sum()
}

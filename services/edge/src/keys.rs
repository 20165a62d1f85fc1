//! API keys: who asks, and what the key may do.
//!
//! A key is looked up by its id in the store and its digest compared in constant time. What the store said, yes or no, is
//! remembered for seconds, by digest, in bounded caches; whether a key has expired is judged at each use. So a revoked key stops working
//! within 30 seconds everywhere, also while the store is away.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::http::{HeaderMap, header};
use event_store::{EventStore, StoreError};
use lru::LruCache;
use subtle::ConstantTimeEq;
use telemetry::metrics::KEY_LOOKUPS;
use timeline::key::{KeyRecord, digest_key, key_id};
use timeline::Timestamp;

use crate::Clock;

/// How long a look-up counts, in milliseconds.
pub const KEY_FRESH_MS_MAX: i64 = 10_000;
/// How long a key that was found goes on working while the store fails, in milliseconds since it was found. Below the 30
/// seconds within which a revoked key stops.
pub const KEY_STALE_MS_MAX: i64 = 25_000;
/// How many keys are remembered; as many again that are none.
pub const KEYS_MAX: NonZeroUsize = NonZeroUsize::new(16_384).expect("not zero");

/// Looks keys up. Clones share what they remember.
#[derive(Clone)]
pub struct Keys(Arc<Inner>);

struct Inner {
    store: Arc<dyn EventStore>,
    clock: Clock,
    // Apart, so that a flood of invented keys forgets no real one.
    found: Mutex<LruCache<[u8; 32], Found>>,
    unknown: Mutex<LruCache<[u8; 32], Timestamp>>,
}

#[derive(Clone)]
struct Found {
    record: Arc<KeyRecord>,
    since: Timestamp,
}

/// Why there is no access.
#[derive(Debug)]
pub enum Denied {
    /// No key, or one that is malformed, unknown, expired or revoked.
    Invalid,
    /// Nobody can tell: the store failed.
    Unknown(StoreError),
}

impl Keys {
    /// The keys of `store`.
    pub fn new(store: Arc<dyn EventStore>, clock: Clock) -> Keys {
        Keys(Arc::new(Inner {
            store,
            clock,
            found: Mutex::new(LruCache::new(KEYS_MAX)),
            unknown: Mutex::new(LruCache::new(KEYS_MAX)),
        }))
    }

    /// The key of a request, valid now.
    pub async fn authenticate(&self, headers: &HeaderMap) -> Result<Arc<KeyRecord>, Denied> {
        let digest = bearer(headers).and_then(digest_key).ok_or(Denied::Invalid)?;
        let record = self.0.look_up(&digest).await?.ok_or(Denied::Invalid)?;
        if record.is_valid((self.0.clock)()) { Ok(record) } else { Err(Denied::Invalid) }
    }
}

impl Inner {
    async fn look_up(&self, digest: &[u8; 32]) -> Result<Option<Arc<KeyRecord>>, Denied> {
        let since = (self.clock)();
        let held = lock(&self.found).get(digest).cloned();
        if let Some(found) = held.as_ref().filter(|found| is_within(found.since, since, KEY_FRESH_MS_MAX)) {
            KEY_LOOKUPS.with_label_values(&["cached"]).inc();
            return Ok(Some(found.record.clone()));
        }
        if lock(&self.unknown).get(digest).is_some_and(|at| is_within(*at, since, KEY_FRESH_MS_MAX)) {
            KEY_LOOKUPS.with_label_values(&["cached"]).inc();
            return Ok(None);
        }
        let read = self.store.read_key(&key_id(digest)).await;
        let outcome = match &read {
            Ok(Some(record)) if bool::from(record.digest.ct_eq(digest)) => "found",
            Ok(_) => "unknown",
            Err(_) => "failed",
        };
        KEY_LOOKUPS.with_label_values(&[outcome]).inc();
        match read {
            Ok(Some(record)) if outcome == "found" => {
                let record = Arc::new(record);
                lock(&self.found).put(*digest, Found { record: record.clone(), since });
                lock(&self.unknown).pop(digest);
                Ok(Some(record))
            }
            Ok(_) => {
                lock(&self.unknown).put(*digest, since);
                lock(&self.found).pop(digest);
                Ok(None)
            }
            Err(error) => {
                // The look-up may have taken its time: what counts is how old the answer is now.
                let now = (self.clock)();
                let held = held.filter(|found| is_within(found.since, now, KEY_STALE_MS_MAX));
                held.map(|found| Some(found.record)).ok_or(Denied::Unknown(error))
            }
        }
    }
}

/// The token of `Authorization: Bearer …` (RFC 6750, section 2.1). The scheme is in either case (RFC 9110, section 11.1).
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let (value, None) = (given.next()?, given.next()) else { return None };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("Bearer").then(|| token.trim_matches(' '))
}

/// Whether `now` is at most `ms_max` after `since`. A clock that was set back makes nothing last longer.
fn is_within(since: Timestamp, now: Timestamp, ms_max: i64) -> bool {
    (0..ms_max).contains(&now.0.saturating_sub(since.0))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

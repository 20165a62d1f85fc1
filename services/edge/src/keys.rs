//! API keys: who asks, and what the key may do.
//!
//! A key is looked up by its id in the store and its digest compared in constant time. What the store said, yes or
//! no, is remembered for seconds, by digest, in bounded caches; whether a key has expired is judged at each use. So a
//! revoked key stops working within 30 seconds everywhere, also while the store is away.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::http::{HeaderMap, header};
use event_store::{EventStore, StoreError};
use lru::LruCache;
use subtle::ConstantTimeEq;
use telemetry::metrics::KEY_LOOKUPS;
use timeline::Timestamp;
use timeline::key::{KeyRecord, digest_key, key_id};

use crate::Clock;

/// How long a look-up counts, in milliseconds.
pub const KEY_FRESH_MS_MAX: i64 = 10_000;
/// How long a key that was found goes on working while the store fails, in milliseconds since it was found. Below the
/// 30 seconds within which a revoked key stops.
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

/// The token of `Authorization: Bearer …` (RFC 6750, section 2.1). The scheme is in either case (RFC 9110, section
/// 11.1).
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

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use timeline::key::Permission;

    use super::*;
    use crate::testing::Bench;

    fn with(value: &str) -> HeaderMap {
        [(header::AUTHORIZATION, HeaderValue::from_str(value).expect("a value"))].into_iter().collect()
    }

    async fn outcome(keys: &Keys, authorization: &str) -> &'static str {
        match keys.authenticate(&with(authorization)).await {
            Ok(_) => "valid",
            Err(Denied::Invalid) => "invalid",
            Err(Denied::Unknown(_)) => "unknown",
        }
    }

    #[tokio::test]
    async fn a_key_is_found_whatever_the_case_of_its_scheme() {
        let bench = Bench::new();
        let key = bench.key("acme", &[Permission::CampaignsRead]).await;
        let keys = Keys::new(bench.store.clone(), bench.clock());
        for scheme in ["Bearer", "bearer", "BEARER", "Bearer "] {
            assert_eq!(outcome(&keys, &format!("{scheme} {key}")).await, "valid", "{scheme}");
        }
        for bad in [
            key.clone(),
            format!("Basic {key}"),
            format!("Bearer {key} x"),
            "Bearer".into(),
            "Bearer ".into(),
        ] {
            assert_eq!(outcome(&keys, &bad).await, "invalid", "{bad}");
        }
        let mut twice = with(&format!("Bearer {key}"));
        twice.append(header::AUTHORIZATION, HeaderValue::from_static("Bearer x"));
        assert!(keys.authenticate(&twice).await.is_err());
        assert!(keys.authenticate(&HeaderMap::new()).await.is_err());
    }

    #[tokio::test]
    async fn a_mistyped_key_needs_no_look_up_and_an_unknown_one_only_one() {
        let bench = Bench::new();
        let (key, record) = bench.make_key("acme", &[]);
        let keys = Keys::new(bench.store.clone(), bench.clock());
        assert_eq!(outcome(&keys, &format!("Bearer {}", key.replacen("00", "01", 1))).await, "invalid");
        assert_eq!(bench.store.requests(), 0);
        for _ in 0..2 {
            assert_eq!(outcome(&keys, &format!("Bearer {key}")).await, "invalid");
            assert_eq!(bench.store.requests(), 1);
        }
        bench.store.write_key(&record).await.expect("stored");
        assert_eq!(outcome(&keys, &format!("Bearer {key}")).await, "invalid");
        bench.pass_ms(KEY_FRESH_MS_MAX);
        assert_eq!(outcome(&keys, &format!("Bearer {key}")).await, "valid");
    }

    #[tokio::test]
    async fn a_key_ends_when_it_expires_and_soon_after_it_is_revoked() {
        let bench = Bench::new();
        let (key, mut record) = bench.make_key("acme", &[]);
        record.expires_at = Some(bench.now().plus_ms(5_000));
        bench.store.write_key(&record).await.expect("stored");
        let (keys, given) = (Keys::new(bench.store.clone(), bench.clock()), format!("Bearer {key}"));
        assert_eq!(outcome(&keys, &given).await, "valid");
        bench.pass_ms(5_000);
        assert_eq!(outcome(&keys, &given).await, "invalid");
        record.expires_at = None;
        bench.store.write_key(&record).await.expect("stored");
        bench.pass_ms(5_000);
        assert_eq!(outcome(&keys, &given).await, "valid");
        record.revoked_at = Some(bench.now());
        bench.store.write_key(&record).await.expect("stored");
        bench.pass_ms(KEY_FRESH_MS_MAX - 1);
        assert_eq!(outcome(&keys, &given).await, "valid");
        bench.pass_ms(1);
        assert_eq!(outcome(&keys, &given).await, "invalid");
    }

    #[tokio::test]
    async fn a_key_that_was_found_goes_on_for_a_while_without_the_store() {
        let bench = Bench::new();
        let given = format!("Bearer {}", bench.key("acme", &[]).await);
        let keys = Keys::new(bench.store.clone(), bench.clock());
        bench.store.set_away(true);
        assert_eq!(outcome(&keys, &given).await, "unknown");
        bench.store.set_away(false);
        assert_eq!(outcome(&keys, &given).await, "valid");
        bench.store.set_away(true);
        bench.pass_ms(KEY_STALE_MS_MAX - 1);
        assert_eq!(outcome(&keys, &given).await, "valid");
        bench.pass_ms(1);
        assert_eq!(outcome(&keys, &given).await, "unknown");
    }
}

//! What tests of HTTP surfaces need: a real store that can be made to fail, a clock that is set by hand, keys, and
//! calls without a network. Only with the feature `testing`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, Ordering};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use event_store::embedded::EmbeddedStore;
use event_store::{
    Columns, EventStore, Head, ReferenceWrite, RowGroup, SendWrite, Stage, StoreError, StoredReference,
    StoredRow, StoredTally, TallyWrite, Waiting, WaitingFrom,
};
use tempfile::TempDir;
use timeline::key::{KEY_RANDOM_BYTES, KeyRecord, Permission, digest_key, format_key, key_id};
use timeline::reference::ReferenceKey;
use timeline::row::RowKey;
use timeline::send::SendFacts;
use timeline::{AccountId, Id, Span, TimelineId, Timestamp, TypeSet};
use tower::ServiceExt;

use crate::{Clock, Door, Keys, Limiter, RateLimit};

/// A store, a clock and keys.
pub struct Bench {
    /// The store.
    pub store: Arc<SwitchedStore>,
    now: Arc<AtomicI64>,
    keys_made: AtomicU8,
    _directory: TempDir,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Vec<u8>,
}

impl Bench {
    /// An empty store; it is 2026-09-21T14:13:20Z.
    pub fn new() -> Bench {
        let directory = tempfile::tempdir().expect("a directory");
        let inner = EmbeddedStore::open(directory.path()).expect("a store");
        let store = SwitchedStore { inner, is_away: AtomicBool::new(false), requests: AtomicU64::new(0) };
        Bench {
            store: Arc::new(store),
            now: Arc::new(AtomicI64::new(1_790_000_000_000)),
            keys_made: AtomicU8::new(0),
            _directory: directory,
        }
    }

    /// What time it is.
    pub fn now(&self) -> Timestamp {
        Timestamp(self.now.load(Ordering::SeqCst))
    }

    /// Lets time pass.
    pub fn pass_ms(&self, ms: i64) {
        self.now.fetch_add(ms, Ordering::SeqCst);
    }

    /// The clock.
    pub fn clock(&self) -> Clock {
        let now = self.now.clone();
        Arc::new(move || Timestamp(now.load(Ordering::SeqCst)))
    }

    /// A door whose limit is `limit`.
    pub fn door(&self, limit: &str) -> Door {
        let keys = Keys::new(self.store.clone(), self.clock());
        Door::new(keys, Limiter::new(RateLimit::parse(limit).expect("a limit"), self.clock()))
    }

    /// A new key, not yet stored, and its record.
    pub fn make_key(&self, account: &str, permissions: &[Permission]) -> (String, KeyRecord) {
        let key = format_key(&[self.keys_made.fetch_add(1, Ordering::SeqCst); KEY_RANDOM_BYTES]);
        let digest = digest_key(&key).expect("a key");
        let record = KeyRecord {
            id: key_id(&digest),
            digest,
            account: AccountId::parse(account).expect("an account"),
            permissions: permissions.to_vec(),
            created_at: self.now(),
            expires_at: None,
            revoked_at: None,
        };
        (key, record)
    }

    /// A new key of `account`, which is in the store.
    pub async fn key(&self, account: &str, permissions: &[Permission]) -> String {
        let (key, record) = self.make_key(account, permissions);
        self.store.write_key(&record).await.expect("stored");
        key
    }
}

impl Default for Bench {
    fn default() -> Bench {
        Bench::new()
    }
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }

    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    /// A header as text; empty where there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }

    /// `error.code`; empty where there is none.
    pub fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }
}

/// A request with a key, or none where that is empty.
pub fn request(method: &str, uri: &str, key: &str) -> axum::http::request::Builder {
    let request = Request::builder().method(method).uri(uri);
    if key.is_empty() { request } else { request.header("authorization", format!("Bearer {key}")) }
}

/// Sends `request` to `app`.
pub async fn send(app: &Router, request: Request<Body>) -> Answer {
    let (head, body) = app.clone().oneshot(request).await.expect("an answer").into_parts();
    let body = axum::body::to_bytes(body, 64 << 20).await.expect("a body").to_vec();
    Answer { status: head.status, headers: head.headers, body }
}

/// Gets `uri` with a key.
pub async fn get(app: &Router, uri: &str, key: &str) -> Answer {
    send(app, request("GET", uri, key).body(Body::empty()).expect("a request")).await
}

/// An embedded store that can be made to fail.
pub struct SwitchedStore {
    inner: EmbeddedStore,
    is_away: AtomicBool,
    requests: AtomicU64,
}

impl SwitchedStore {
    /// Makes every request fail, or none.
    pub fn set_away(&self, is_away: bool) {
        self.is_away.store(is_away, Ordering::SeqCst);
    }

    /// How many requests there were.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }

    fn reach(&self) -> Result<(), StoreError> {
        self.requests.fetch_add(1, Ordering::SeqCst);
        if self.is_away.load(Ordering::SeqCst) { Err(StoreError::new("test", "away")) } else { Ok(()) }
    }
}

macro_rules! reach_first {
    ($(fn $name:ident($($arg:ident: $kind:ty),*) -> $out:ty;)*) => {
        #[async_trait::async_trait]
        impl EventStore for SwitchedStore {
            fn writes_unseen(&self) -> bool {
                self.inner.writes_unseen()
            }

            $(async fn $name(&self, $($arg: $kind),*) -> Result<$out, StoreError> {
                self.reach()?;
                self.inner.$name($($arg),*).await
            })*
        }
    };
}

reach_first! {
    fn write_rows(now: Timestamp, groups: &[RowGroup<'_>]) -> ();
    fn delete_rows(timeline: &TimelineId, part: u32, keys: &[RowKey], stamp: i64) -> ();
    fn read_rows(timeline: &TimelineId, part: u32, types: TypeSet, span: &Span, columns: Columns, limit: usize) -> Vec<StoredRow>;
    fn write_tallies(tallies: &[TallyWrite]) -> ();
    fn promise_trees(timelines: &[TimelineId]) -> ();
    fn read_heads(timelines: &[TimelineId]) -> Vec<Head>;
    fn read_tallies(timeline: &TimelineId, cells: &[u32]) -> Vec<Option<StoredTally>>;
    fn write_sends(now: Timestamp, sends: &[SendWrite]) -> ();
    fn read_sends(messages: &[(AccountId, Id)]) -> Vec<Option<SendFacts>>;
    fn put_waiting(now: Timestamp, waiting: &[Waiting]) -> ();
    fn read_waiting(from: &[WaitingFrom], bytes_max: usize) -> (Vec<Waiting>, Vec<WaitingFrom>);
    fn remove_waiting(waiting: &[Waiting]) -> ();
    fn write_references(references: &[ReferenceWrite]) -> ();
    fn read_references(keys: &[ReferenceKey]) -> Vec<Option<StoredReference>>;
    fn mark_known(timelines: &[TimelineId]) -> ();
    fn is_known(timeline: &TimelineId) -> bool;
    fn take_epoch(scope: &str) -> u64;
    fn read_epoch(scope: &str) -> u64;
    fn write_key(key: &KeyRecord) -> ();
    fn read_key(id: &str) -> Option<KeyRecord>;
    fn list_keys() -> Vec<KeyRecord>;
    fn write_progress(stage: Stage, done: &[(i32, Timestamp)]) -> ();
    fn read_progress(stage: Stage) -> Vec<(i32, Timestamp)>;
    fn check() -> ();
}

//! Where projections live: [`scylla`] in production, [`embedded`] in `backstamp dev`. Both keep [`EventStore`]'s promises;
//! one conformance suite ([`conformance`]) holds them to it.

pub mod conformance;
pub mod embedded;
pub mod scylla;
mod timing;

use std::fmt;

use futures::stream::{self, StreamExt, TryStreamExt};
use timeline::key::KeyRecord;
use timeline::reference::{Reference, ReferenceKey};
use timeline::row::RowKey;
use timeline::send::SendFacts;
use timeline::tally::FIRST_PART;
use timeline::{AccountId, Id, Span, TimelineId, Timestamp, TypeSet};
use uuid::Uuid;

/// Events that wait are read about this many bytes at a time: any number may wait for one send.
pub const WAITING_BYTES_MAX: usize = 4 << 20;
/// How many first parts are read at a time, where they are read one by one.
const FIRST_PARTS_READ_MAX: usize = 64;

/// A store of rows, tallies and the facts that ingest needs.
///
/// Every write is idempotent and *last write wins by its stamp*: of two writes of one cell the one with the greater stamp
/// stays, in whatever order they arrive; where stamps are equal one of the two stays. A write that was answered is seen by
/// every read that begins after it; one that failed may or may not have landed, now or later. Nothing here retries beyond a
/// single request: callers do.
#[async_trait::async_trait]
pub trait EventStore: Send + Sync + 'static {
    /// Writes rows. What has expired at `now` is left out; a row that is written disappears after its `expires_at`.
    async fn write_rows(&self, now: Timestamp, groups: &[RowGroup<'_>]) -> Result<(), StoreError>;

    /// Deletes rows: whatever was written of them with a stamp up to the one given.
    async fn delete_rows(
        &self,
        timeline: &TimelineId,
        part: u32,
        keys: &[RowKey],
        stamp: i64,
    ) -> Result<(), StoreError>;

    /// The rows of `types` in `span` of one part of a timeline, newest first (then by type). The caller knows
    /// from its tallies that they are few, and that the newest `limit` of them will do: more may come. `body` is empty where
    /// `columns` are only keys.
    async fn read_rows(
        &self,
        timeline: &TimelineId,
        part: u32,
        types: TypeSet,
        span: &Span,
        columns: Columns,
        limit: usize,
    ) -> Result<Vec<StoredRow>, StoreError>;

    /// The keys of all rows in the first part of each of `timelines`, in their order. They are few, but for what a crash
    /// has left before a tree was stored. A store that answers requests one by one is asked for many timelines at once.
    async fn read_first_parts(&self, timelines: &[TimelineId]) -> Result<Vec<Vec<StoredRow>>, StoreError> {
        let whole = Span::all();
        let read =
            |timeline| self.read_rows(timeline, FIRST_PART, TypeSet::ALL, &whole, Columns::Keys, usize::MAX);
        let reads: Vec<_> = timelines.iter().map(read).collect();
        stream::iter(reads).buffered(FIRST_PARTS_READ_MAX).try_collect().await
    }

    /// Writes cells of timelines' trees: of each timeline all or none of them visible at once.
    async fn write_tallies(&self, tallies: &[TallyWrite]) -> Result<(), StoreError>;

    /// Whether a row is written without a look at what stands there, so that to write a row once more costs less than to read whether it is
    /// there.
    fn writes_unseen(&self) -> bool;

    /// Remembers for ever that these timelines may come to have a tree. A store whose rows are not written unseen keeps nothing.
    async fn promise_trees(&self, _timelines: &[TimelineId]) -> Result<(), StoreError> {
        Ok(())
    }

    /// What whoever takes timelines over begins with, in their order.
    async fn read_heads(&self, timelines: &[TimelineId]) -> Result<Vec<Head>, StoreError>;

    /// The cells of one timeline's tree under `cells`, in their order.
    async fn read_tallies(
        &self,
        timeline: &TimelineId,
        cells: &[u32],
    ) -> Result<Vec<Option<StoredTally>>, StoreError>;

    /// Remembers what sends knew.
    async fn write_sends(&self, now: Timestamp, sends: &[SendWrite]) -> Result<(), StoreError>;

    /// What the sends of `messages` knew, in their order.
    async fn read_sends(&self, messages: &[(AccountId, Id)]) -> Result<Vec<Option<SendFacts>>, StoreError>;

    /// Puts events to wait for their send.
    async fn put_waiting(&self, now: Timestamp, waiting: &[Waiting]) -> Result<(), StoreError>;

    /// The events that wait for sends, in no particular order, until they are about `bytes_max` bytes; and from where on there may be more.
    async fn read_waiting(
        &self,
        from: &[WaitingFrom],
        bytes_max: usize,
    ) -> Result<(Vec<Waiting>, Vec<WaitingFrom>), StoreError>;

    /// Takes events off the list of the waiting.
    async fn remove_waiting(&self, waiting: &[Waiting]) -> Result<(), StoreError>;

    /// Writes references. An absent name or address stays what it was; `deleted` is written each time.
    async fn write_references(&self, references: &[ReferenceWrite]) -> Result<(), StoreError>;

    /// References by key, in their order.
    async fn read_references(
        &self,
        keys: &[ReferenceKey],
    ) -> Result<Vec<Option<StoredReference>>, StoreError>;

    /// Remembers for ever that these timelines exist.
    async fn mark_known(&self, timelines: &[TimelineId]) -> Result<(), StoreError>;

    /// Whether a timeline was ever marked as known.
    async fn is_known(&self, timeline: &TimelineId) -> Result<bool, StoreError>;

    /// A number greater than every one given before for `scope` (`{topic}/{partition}`), from 1.
    async fn take_epoch(&self, scope: &str) -> Result<u64, StoreError>;

    /// The greatest number that was given for `scope` before this was asked, or one after it; 0 where none was.
    async fn read_epoch(&self, scope: &str) -> Result<u64, StoreError>;

    /// Every contact that was forgotten, in no particular order. A store that cannot forget has none.
    async fn list_forgotten(&self) -> Result<Vec<(AccountId, Uuid)>, StoreError> {
        Ok(Vec::new())
    }

    /// Writes a key's record whole.
    async fn write_key(&self, key: &KeyRecord) -> Result<(), StoreError>;

    /// The key with that id.
    async fn read_key(&self, id: &str) -> Result<Option<KeyRecord>, StoreError>;

    /// Every key, in no particular order.
    async fn list_keys(&self) -> Result<Vec<KeyRecord>, StoreError>;

    /// Tells other processes until when everything of some partitions has passed a stage. Of two writes of one partition
    /// the later instant stays. A store that one process has for itself keeps nothing.
    async fn write_progress(&self, _stage: Stage, _done: &[(i32, Timestamp)]) -> Result<(), StoreError> {
        Ok(())
    }

    /// Until when everything of each partition has passed a stage, in no particular order; a partition that nobody told
    /// of is left out.
    async fn read_progress(&self, _stage: Stage) -> Result<Vec<(i32, Timestamp)>, StoreError> {
        Ok(Vec::new())
    }

    /// Whether the store answers and has the tables that this program needs.
    async fn check(&self) -> Result<(), StoreError>;
}

/// A stage of ingest whose progress is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The first, by partitions of `mail.events`.
    Place,
    /// The second, by partitions of the internal topic. What has passed it is visible.
    Own,
}

impl Stage {
    /// `place` or `own`.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Place => "place",
            Stage::Own => "own",
        }
    }
}

/// Which columns of a row are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Columns {
    /// Position and type only.
    Keys,
    /// Everything.
    All,
}

/// What whoever takes a timeline over begins with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Whether the timeline was ever marked as known.
    pub known: bool,
    /// Whether a tree was ever promised, where the store keeps that.
    pub promised: bool,
    /// What stands in cell 0, the root of its tree, where it is known: see [`Root::read`](timeline::tally::Root::read).
    pub root: Option<Vec<u8>>,
}

/// Rows for one part of one timeline.
#[derive(Clone, Debug)]
pub struct RowGroup<'a> {
    /// Whose history.
    pub timeline: &'a TimelineId,
    /// Which part of it: a timeline's rows are spread over parts, so that no partition of the store grows without bound.
    pub part: u32,
    /// The rows.
    pub rows: Vec<RowWrite>,
}

/// A row to write.
#[derive(Clone, Debug)]
pub struct RowWrite {
    /// Where it stands and what it is.
    pub key: RowKey,
    /// The write timestamp, in microseconds.
    pub stamp: i64,
    /// When the row may disappear.
    pub expires_at: Timestamp,
    /// The stored form of its [`timeline::RowBody`].
    pub body: Vec<u8>,
    /// Whether the writer knows that nothing stands there: a store that would have to look first need not.
    pub is_new: bool,
}

/// A row as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRow {
    /// Where it stands and what it is.
    pub key: RowKey,
    /// The stored form of its [`timeline::RowBody`].
    pub body: Vec<u8>,
}

/// The order in which rows are read: newest first, then by type.
fn newest_first(one: &StoredRow, other: &StoredRow) -> std::cmp::Ordering {
    let newest_first = other.key.position.cmp(&one.key.position);
    newest_first.then_with(|| one.key.event_type.cmp(&other.key.event_type))
}

/// A cell of a timeline's tree as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTally {
    /// The write timestamp: of what is written under the same there is but one.
    pub stamp: i64,
    /// What the cell holds.
    pub bytes: Vec<u8>,
}

/// Cells of one timeline's tree.
#[derive(Clone, Debug)]
pub struct TallyWrite {
    /// Whose tree.
    pub timeline: TimelineId,
    /// When they were counted: an owner's epoch and its counter, as a write timestamp.
    pub stamp: i64,
    /// How long they are kept, in seconds.
    pub ttl_s: u32,
    /// The cells by number: 0 is the root.
    pub cells: Vec<(u32, Vec<u8>)>,
}

/// What one send knew.
#[derive(Clone, Debug)]
pub struct SendWrite {
    /// The sender's account.
    pub account: AccountId,
    /// The message.
    pub message: Id,
    /// What it knew.
    pub facts: SendFacts,
    /// The write timestamp, greater for earlier records: of two sends of one message the earlier stays.
    pub stamp: i64,
    /// When the facts may be forgotten.
    pub expires_at: Timestamp,
}

/// An event that waits for its send. Known by account, message, `at` and id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The sender's account.
    pub account: AccountId,
    /// The message whose send it waits for.
    pub message: Id,
    /// When the event occurred.
    pub at: Timestamp,
    /// The event's id.
    pub id: Id,
    /// The raw event, as it came.
    pub event: Vec<u8>,
    /// The broker's timestamp of the record that brought it.
    pub appended_at: Timestamp,
    /// When it stops waiting.
    pub expires_at: Timestamp,
}

/// The events that wait for one send, from somewhere on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitingFrom {
    /// The sender's account.
    pub account: AccountId,
    /// The message whose send they wait for.
    pub message: Id,
    /// When the last one occurred that is known, and its id.
    pub after: Option<(Timestamp, Id)>,
}

impl WaitingFrom {
    /// All of them.
    pub fn all((account, message): (AccountId, Id)) -> WaitingFrom {
        WaitingFrom { account, message, after: None }
    }

    /// What is behind those of them that were `found`, in their order.
    #[must_use]
    pub fn behind(&self, found: &[Waiting]) -> WaitingFrom {
        let last = found.last().map(|last| (last.at, last.id.clone()));
        WaitingFrom { after: last.or_else(|| self.after.clone()), ..self.clone() }
    }
}

/// A reference to write.
#[derive(Clone, Debug)]
pub struct ReferenceWrite {
    /// What changes.
    pub reference: Reference,
    /// The write timestamp, in microseconds, greater for later records.
    pub stamp: i64,
}

/// A reference as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct StoredReference {
    /// The current or last name.
    pub name: Option<Box<str>>,
    /// The latest address.
    pub email: Option<Box<str>>,
    /// Whether it is deleted.
    pub deleted: bool,
}

/// A request to the store that failed: away, overloaded, timed out, or holding what we did not write.
#[derive(Debug, thiserror::Error)]
#[error("the store failed at {statement}")]
pub struct StoreError {
    /// Which statement: a short name, fit for a metric label.
    pub statement: &'static str,
    /// Why.
    #[source]
    pub cause: Box<dyn std::error::Error + Send + Sync>,
}

impl StoreError {
    /// A failure of `statement`.
    pub fn new(
        statement: &'static str,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> StoreError {
        StoreError { statement, cause: cause.into() }
    }

    /// The failure and its causes in one line, for a log. A cause is left out that its effect tells already.
    pub fn chain(&self) -> impl fmt::Display + '_ {
        struct Chain<'a>(&'a StoreError);
        impl fmt::Display for Chain<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut told = self.0.to_string();
                f.write_str(&told)?;
                let mut cause = std::error::Error::source(self.0);
                while let Some(error) = cause {
                    let message = error.to_string();
                    if !told.contains(&message) {
                        write!(f, ": {message}")?;
                        told = message;
                    }
                    cause = error.source();
                }
                Ok(())
            }
        }
        Chain(self)
    }
}

//! The store of `backstamp dev`: a directory of this process, on fjall. It keeps the same promises as the one in
//! production; where that has a time to live, this has [`EmbeddedStore::sweep`].
//!
//! Answered writes survive the end of the process, however it ends. They survive the end of the machine
//! once [`EmbeddedStore::persist`] was answered: all that was written before it goes to one journal, in order.
//!
//! | keyspace | keys | values |
//! | --- | --- | --- |
//! | `rows` | account, subject, part, type, time, event id | cell: a row's body |
//! | `tallies` | account, subject, cell | cell: its bytes |
//! | `sends` | `s`, account, message | cell: what the send knew |
//! | | `w`, account, message, time, event id | cell: a waiting event |
//! | `facts` | `r`, account, kind, id | a reference, each field with its write timestamp |
//! | | `k`, account, subject | nothing: the timeline is known |
//! | | `e`, scope | the last epoch |
//! | | `a`, id | an API key |
//! | | `o` | the committed offset |
//! | | `f` | the form that all this is in |
//!
//! A cell has a write timestamp and a life; deleted rows leave a mark for a while, so that earlier writes
//! that arrive later stay out.

mod cells;
mod keys;
mod records;
#[cfg(feature = "testing")]
pub mod stored;

use std::collections::HashMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use fjall::config::{CompressionPolicy, FilterPolicy, PartitioningPolicy, PinningPolicy};
use fjall::{
    CompressionType, Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode, Readable,
    Snapshot,
};
use timeline::key::KeyRecord;
use timeline::reference::ReferenceKey;
use timeline::row::RowKey;
use timeline::send::SendFacts;
use timeline::tally::ROOT_CELL;
use timeline::{AccountId, Id, Span, TimelineId, Timestamp, TypeSet};

use self::cells::{Cell, Life};
use crate::timing::timed;
use crate::{
    Columns, EventStore, Head, ReferenceWrite, RowGroup, SendWrite, StoreError, StoredReference, StoredRow,
    StoredTally, TallyWrite, Waiting, WaitingFrom, newest_first,
};

/// How much memory, and how long.
#[derive(Clone, Debug)]
pub struct EmbeddedConfig {
    /// The cache of blocks read from disk, in bytes: 24 MiB.
    pub cache_bytes: u64,
    /// Writes gathered in memory before they go to sorted files, in bytes: 32 MiB, half of it for rows.
    pub memtable_bytes: u64,
    /// Writes in memory, those that wait to go to files included, in bytes: 44 MiB. More wait for the files.
    pub unwritten_bytes_max: u64,
    /// The journal, in bytes of disk: 64 MiB, and no less. It is read again at the start.
    pub journal_bytes_max: u64,
    /// Threads that write and merge files in the background: 1. With more, the first hands every merge to the others and
    /// spins while they are at it, which here cost a tenth of the processor.
    pub worker_threads: usize,
    /// How long the mark of a deleted row is kept, from the first sweep that meets it: 10 days.
    pub deleted_kept: Duration,
}

impl Default for EmbeddedConfig {
    fn default() -> EmbeddedConfig {
        EmbeddedConfig {
            cache_bytes: 24 << 20,
            memtable_bytes: 32 << 20,
            unwritten_bytes_max: 44 << 20,
            journal_bytes_max: 64 << 20,
            worker_threads: 1,
            deleted_kept: Duration::from_secs(10 * 24 * 3600),
        }
    }
}

/// A store in a directory of this process.
#[derive(Clone)]
pub struct EmbeddedStore {
    tables: Arc<Tables>,
}

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Cells it looked at.
    pub seen: u64,
    /// Cells it removed, because their life was over.
    pub removed: u64,
}

/// The form of keys and values; another number for each that differs.
const FORMAT: u8 = 2;
/// How long a write waits for files to be written, and how often it looks.
const FILES_WAIT_MAX: Duration = Duration::from_secs(5);
const FILES_LOOK_EVERY: Duration = Duration::from_millis(5);
/// Keys that a step of a sweep looks at: some milliseconds of work.
const SWEEP_STEP_KEYS: usize = 10_000;

impl EmbeddedStore {
    /// Opens the store in `directory`, and makes it where there is none. Reads the journal again, so it blocks for a
    /// moment.
    /// Fails where another process holds the directory, and says so.
    pub fn open(directory: &Path) -> Result<EmbeddedStore, StoreError> {
        EmbeddedStore::open_with(directory, &EmbeddedConfig::default())
    }

    /// [`EmbeddedStore::open`] with other limits. Memory for writes is settled when a store is made.
    pub fn open_with(directory: &Path, config: &EmbeddedConfig) -> Result<EmbeddedStore, StoreError> {
        let tables = Tables::open(directory, config).map_err(|error| {
            let place = directory.display();
            StoreError::new(
                "open",
                match error {
                    fjall::Error::Locked => format!("another process holds the store in {place}"),
                    error => format!("the store in {place} cannot be opened: {error}"),
                },
            )
        })?;
        tables.check_format().map_err(|cause| StoreError::new("open", cause))?;
        Ok(EmbeddedStore { tables: Arc::new(tables) })
    }

    /// Removes what has expired at `now`: until then it is read. Goes through all cells, about a million a second, in steps
    /// that let other calls in between; once an hour is enough.
    pub async fn sweep(&self, now: Timestamp) -> Result<Swept, StoreError> {
        let mut swept = Swept::default();
        for keyspace in [&self.tables.rows, &self.tables.tallies, &self.tables.sends] {
            let mut after = None;
            loop {
                let keyspace = keyspace.clone();
                let step = self.run("sweep", move |tables| tables.sweep_step(&keyspace, after, now)).await?;
                swept.seen += step.0.seen;
                swept.removed += step.0.removed;
                after = step.1;
                if after.is_none() {
                    break;
                }
            }
        }
        Ok(swept)
    }

    /// The offset that was committed last; 0 where none was.
    pub async fn committed_offset(&self) -> Result<u64, StoreError> {
        self.read("committed_offset", |tables| tables.number(keys::COMMITTED_OFFSET)).await
    }

    /// Commits an offset. It is durable no sooner than everything that was written before it.
    pub async fn commit_offset(&self, offset: u64) -> Result<(), StoreError> {
        self.run("commit_offset", move |tables| {
            Ok(tables.facts.insert(keys::COMMITTED_OFFSET, records::encode_number(offset))?)
        })
        .await
    }

    /// Makes durable all that was written before; answered once the disk has it.
    pub async fn persist(&self) -> Result<(), StoreError> {
        self.run("persist", |tables| Ok(tables.database.persist(PersistMode::SyncData)?)).await
    }

    /// Does something that may wait for the disk, on a thread where that is no harm.
    async fn run<T: Send + 'static>(
        &self,
        statement: &'static str,
        work: impl FnOnce(&Tables) -> Result<T, Cause> + Send + 'static,
    ) -> Result<T, StoreError> {
        let tables = Arc::clone(&self.tables);
        timed(statement, async {
            let done = tokio::task::spawn_blocking(move || work(&tables)).await;
            let done = done.map_err(|gone| StoreError::new(statement, gone))?;
            done.map_err(|cause| StoreError::new(statement, cause))
        })
        .await
    }

    /// Reads something short, here and now; who does nothing else gives way to others now and then.
    async fn read<T>(
        &self,
        statement: &'static str,
        work: impl FnOnce(&Tables) -> Result<T, Cause>,
    ) -> Result<T, StoreError> {
        tokio::task::coop::consume_budget().await;
        timed(statement, async { work(&self.tables).map_err(|cause| StoreError::new(statement, cause)) })
            .await
    }
}

#[async_trait::async_trait]
impl EventStore for EmbeddedStore {
    async fn write_rows(&self, now: Timestamp, groups: &[RowGroup<'_>]) -> Result<(), StoreError> {
        let mut puts = Vec::with_capacity(groups.iter().map(|group| group.rows.len()).sum());
        for group in groups {
            let mut key = keys::part_of(group.timeline, group.part);
            let part_bytes = key.len();
            for row in group.rows.iter().filter(|row| now < row.expires_at) {
                let life = Life::Until(row.expires_at);
                keys::set_row(&mut key, part_bytes, &row.key);
                let cell = Cell { stamp: row.stamp, life, bytes: Some(&row.body) };
                puts.push(Put { key: key.as_slice().into(), cell: cell.encode(), is_new: row.is_new });
            }
        }
        self.run("write_rows", |tables| tables.put(&tables.rows, puts)).await
    }

    async fn delete_rows(
        &self,
        timeline: &TimelineId,
        part: u32,
        keys: &[RowKey],
        stamp: i64,
    ) -> Result<(), StoreError> {
        let mark = Cell { stamp, life: Life::Length(self.tables.deleted_kept_ms), bytes: None }.encode();
        let mut place = keys::part_of(timeline, part);
        let part_bytes = place.len();
        let puts = keys.iter().map(|key| {
            keys::set_row(&mut place, part_bytes, key);
            Put { key: place.as_slice().into(), cell: mark.clone(), is_new: false }
        });
        let puts = puts.collect();
        self.run("delete_rows", |tables| tables.put(&tables.rows, puts)).await
    }

    async fn read_rows(
        &self,
        timeline: &TimelineId,
        part: u32,
        types: TypeSet,
        span: &Span,
        columns: Columns,
        limit: usize,
    ) -> Result<Vec<StoredRow>, StoreError> {
        if span.is_empty() {
            return Ok(Vec::new());
        }
        self.read("read_rows", |tables| tables.read_rows(timeline, part, types, span, columns, limit)).await
    }

    async fn write_tallies(&self, tallies: &[TallyWrite]) -> Result<(), StoreError> {
        let mut puts = Vec::new();
        for TallyWrite { timeline, stamp, ttl_s, cells } in tallies {
            let life = Life::Length(i64::from((*ttl_s).max(1)) * 1000);
            puts.extend(cells.iter().map(|(cell, bytes)| {
                let put = Cell { stamp: *stamp, life, bytes: Some(bytes) };
                Put { key: keys::tally(timeline, *cell).into(), cell: put.encode(), is_new: false }
            }));
        }
        self.run("write_tallies", |tables| tables.put(&tables.tallies, puts)).await
    }

    fn writes_unseen(&self) -> bool {
        false
    }

    async fn read_heads(&self, timelines: &[TimelineId]) -> Result<Vec<Head>, StoreError> {
        let timelines = timelines.to_vec();
        self.run("read_heads", move |tables| {
            let snapshot = tables.database.snapshot();
            let read = |timeline: &TimelineId| {
                let known = snapshot.contains_key(&tables.facts, keys::known(timeline))?;
                let root = || read_cell(&snapshot, &tables.tallies, &keys::tally(timeline, ROOT_CELL));
                Ok(Head { known, promised: false, root: if known { root()? } else { None } })
            };
            timelines.iter().map(read).collect()
        })
        .await
    }

    async fn read_tallies(
        &self,
        timeline: &TimelineId,
        cells: &[u32],
    ) -> Result<Vec<Option<StoredTally>>, StoreError> {
        self.read("read_tallies", |tables| {
            // One instant for all cells, so that none of a batch is seen without the others.
            let snapshot = tables.database.snapshot();
            let mut key = keys::tally(timeline, ROOT_CELL);
            let read = |cell: &u32| {
                keys::set_cell(&mut key, *cell);
                let Some(stored) = snapshot.get(&tables.tallies, &key)? else { return Ok(None) };
                let Cell { stamp, bytes, .. } = Cell::decode(&stored)?;
                Ok(bytes.map(|bytes| StoredTally { stamp, bytes: bytes.to_vec() }))
            };
            cells.iter().map(read).collect()
        })
        .await
    }

    async fn write_sends(&self, now: Timestamp, sends: &[SendWrite]) -> Result<(), StoreError> {
        let puts = sends.iter().filter(|send| now < send.expires_at).map(|send| {
            let facts = send.facts.encode();
            let cell = Cell { stamp: send.stamp, life: Life::Until(send.expires_at), bytes: Some(&facts) };
            Put { key: keys::send(&send.account, &send.message).into(), cell: cell.encode(), is_new: false }
        });
        let puts = puts.collect();
        self.run("write_sends", |tables| tables.put(&tables.sends, puts)).await
    }

    async fn read_sends(&self, messages: &[(AccountId, Id)]) -> Result<Vec<Option<SendFacts>>, StoreError> {
        self.read("read_sends", |tables| {
            let snapshot = tables.database.snapshot();
            let read = |(account, message): &(AccountId, Id)| {
                let facts = read_cell(&snapshot, &tables.sends, &keys::send(account, message))?;
                Ok(facts.map(|facts| SendFacts::decode(&facts)).transpose()?)
            };
            messages.iter().map(read).collect()
        })
        .await
    }

    async fn put_waiting(&self, now: Timestamp, waiting: &[Waiting]) -> Result<(), StoreError> {
        let puts = waiting.iter().filter(|event| now < event.expires_at).map(|event| {
            let bytes = records::encode_waiting(event);
            let cell = Cell { stamp: 0, life: Life::Until(event.expires_at), bytes: Some(&bytes) };
            (keys::waiting(&event.account, &event.message, event.at, &event.id), cell.encode())
        });
        let puts: Vec<_> = puts.collect();
        self.run("put_waiting", |tables| {
            tables.change(|batch| {
                puts.into_iter().for_each(|(key, cell)| batch.insert(&tables.sends, key, cell));
                Ok(())
            })
        })
        .await
    }

    async fn read_waiting(
        &self,
        from: &[WaitingFrom],
        bytes_max: usize,
    ) -> Result<(Vec<Waiting>, Vec<WaitingFrom>), StoreError> {
        self.read("read_waiting", |tables| {
            let (mut found, mut more, mut bytes) = (Vec::<Waiting>::new(), Vec::new(), 0);
            for from in from {
                let WaitingFrom { account, message, .. } = from;
                let first = found.len();
                for item in tables.sends.range(keys::waiting_from(from)) {
                    if bytes >= bytes_max {
                        more.push(from.behind(&found[first..]));
                        break;
                    }
                    let stored = item.value()?;
                    if let Some(event) = Cell::decode(&stored)?.bytes {
                        let waiting = records::decode_waiting(account, message, event)?;
                        bytes += waiting.event.len();
                        found.push(waiting);
                    }
                }
            }
            Ok((found, more))
        })
        .await
    }

    async fn remove_waiting(&self, waiting: &[Waiting]) -> Result<(), StoreError> {
        let key = |event: &Waiting| keys::waiting(&event.account, &event.message, event.at, &event.id);
        let removed: Vec<_> = waiting.iter().map(key).collect();
        self.run("remove_waiting", |tables| {
            tables.change(|batch| {
                removed.into_iter().for_each(|key| batch.remove(&tables.sends, key));
                Ok(())
            })
        })
        .await
    }

    async fn write_references(&self, references: &[ReferenceWrite]) -> Result<(), StoreError> {
        let references = references.to_vec();
        self.run("write_references", move |tables| tables.write_references(&references)).await
    }

    async fn read_references(
        &self,
        keys: &[ReferenceKey],
    ) -> Result<Vec<Option<StoredReference>>, StoreError> {
        self.read("read_references", |tables| {
            let read = |key: &ReferenceKey| {
                let stored = tables.facts.get(keys::reference(key))?;
                Ok(stored
                    .map(|stored| records::ReferenceFields::decode(&stored))
                    .transpose()?
                    .map(Into::into))
            };
            keys.iter().map(read).collect()
        })
        .await
    }

    async fn mark_known(&self, timelines: &[TimelineId]) -> Result<(), StoreError> {
        let known: Vec<_> = timelines.iter().map(keys::known).collect();
        self.run("mark_known", |tables| {
            tables.change(|batch| {
                known.into_iter().for_each(|key| batch.insert(&tables.facts, key, []));
                Ok(())
            })
        })
        .await
    }

    async fn is_known(&self, timeline: &TimelineId) -> Result<bool, StoreError> {
        self.read("is_known", |tables| Ok(tables.facts.contains_key(keys::known(timeline))?)).await
    }

    async fn take_epoch(&self, scope: &str) -> Result<u64, StoreError> {
        let key = keys::epoch(scope);
        self.run("take_epoch", move |tables| {
            tables.change(|batch| {
                let epoch = tables.number(&key)? + 1;
                batch.insert(&tables.facts, key, records::encode_number(epoch));
                Ok(epoch)
            })
        })
        .await
    }

    async fn read_epoch(&self, scope: &str) -> Result<u64, StoreError> {
        self.read("read_epoch", |tables| tables.number(&keys::epoch(scope))).await
    }

    async fn write_key(&self, key: &KeyRecord) -> Result<(), StoreError> {
        let (place, record) = (keys::api_key(&key.id), records::encode_key(key));
        self.run("write_key", |tables| Ok(tables.facts.insert(place, record)?)).await
    }

    async fn read_key(&self, id: &str) -> Result<Option<KeyRecord>, StoreError> {
        self.read("read_key", |tables| {
            let stored = tables.facts.get(keys::api_key(id))?;
            Ok(stored.map(|stored| records::decode_key(&stored)).transpose()?)
        })
        .await
    }

    async fn list_keys(&self) -> Result<Vec<KeyRecord>, StoreError> {
        self.read("list_keys", |tables| {
            let stored = tables.facts.prefix(keys::api_key(""));
            stored.map(|item| Ok(records::decode_key(&item.value()?)?)).collect()
        })
        .await
    }

    async fn check(&self) -> Result<(), StoreError> {
        // Fails for good once a write to the disk has failed.
        self.run("check", |tables| Ok(tables.database.persist(PersistMode::Buffer)?)).await
    }
}

/// A cell to write.
struct Put {
    key: fjall::UserKey,
    cell: Vec<u8>,
    /// Nothing is there, so nobody needs to look.
    is_new: bool,
}

/// What a failure can be caused by.
type Cause = Box<dyn std::error::Error + Send + Sync>;

/// How what a keyspace holds is looked for.
#[derive(Clone, Copy)]
enum FoundBy {
    Range,
    Key,
}

/// The database.
struct Tables {
    database: Database,
    rows: Keyspace,
    tallies: Keyspace,
    sends: Keyspace,
    facts: Keyspace,
    /// Held from reading what is there to writing what beats it.
    writing: Mutex<()>,
    unwritten_bytes_max: u64,
    deleted_kept_ms: i64,
}

impl Tables {
    fn open(directory: &Path, config: &EmbeddedConfig) -> Result<Tables, fjall::Error> {
        let database = Database::builder(directory)
            .cache_size(config.cache_bytes)
            .max_journaling_size(config.journal_bytes_max.max(64 << 20))
            .worker_threads(config.worker_threads.max(1))
            .open()?;
        let keyspace = |name, sixteenths: u64, found_by: FoundBy| {
            let memtable_bytes = config.memtable_bytes / 16 * sixteenths;
            database.keyspace(name, || {
                // By default a quarter of a gigabyte stays uncompressed.
                let compression = CompressionPolicy::new([CompressionType::None, CompressionType::Lz4]);
                let options = KeyspaceCreateOptions::default()
                    .max_memtable_size(memtable_bytes)
                    .data_block_compression_policy(compression);
                match found_by {
                    // Filters say nothing of ranges. The index is read in small pieces, not a table's at once.
                    FoundBy::Range => options
                        .filter_policy(FilterPolicy::disabled())
                        .index_block_partitioning_policy(PartitioningPolicy::new([false, true])),
                    // Nearly all that is looked for is not there, and what tells so stays in memory.
                    FoundBy::Key => options
                        .filter_block_pinning_policy(PinningPolicy::all(true))
                        .index_block_pinning_policy(PinningPolicy::all(true)),
                }
            })
        };
        Ok(Tables {
            rows: keyspace("rows", 8, FoundBy::Range)?,
            tallies: keyspace("tallies", 3, FoundBy::Key)?,
            sends: keyspace("sends", 3, FoundBy::Key)?,
            facts: keyspace("facts", 2, FoundBy::Key)?,
            database,
            writing: Mutex::new(()),
            unwritten_bytes_max: config.unwritten_bytes_max,
            deleted_kept_ms: i64::try_from(config.deleted_kept.as_millis()).unwrap_or(i64::MAX),
        })
    }

    /// Fails where another version of this program has made the store in a form of its own.
    fn check_format(&self) -> Result<(), Cause> {
        match self.facts.get(keys::FORMAT)? {
            Some(format) if *format == [FORMAT] => Ok(()),
            None if self.facts.is_empty()? => Ok(self.facts.insert(keys::FORMAT, [FORMAT])?),
            _ => Err(
                "the store was made by another version of backstamp, in a form that this one does not read: \
                      start with an empty --data directory"
                    .into(),
            ),
        }
    }

    fn read_rows(
        &self,
        timeline: &TimelineId,
        part: u32,
        types: TypeSet,
        span: &Span,
        columns: Columns,
        limit: usize,
    ) -> Result<Vec<StoredRow>, Cause> {
        let snapshot = self.database.snapshot();
        let is_whole = types == TypeSet::ALL && *span == Span::all();
        let ranges = if is_whole {
            vec![keys::rows_of_part(timeline, part)]
        } else {
            types.iter().map(|event_type| keys::rows(timeline, part, event_type, span)).collect()
        };
        let part_bytes = keys::part_of(timeline, part).len();
        // Of each type no more than the limit is wanted; the types of a whole part come one behind the other.
        let range_limit = if is_whole { usize::MAX } else { limit };
        let mut rows = Vec::new();
        for range in ranges {
            let full = rows.len().saturating_add(range_limit);
            for item in snapshot.range(&self.rows, range) {
                let (key, stored) = item.into_inner()?;
                let Some(body) = Cell::decode(&stored)?.bytes else { continue };
                let key = keys::row_key(&key, part_bytes).ok_or("a row has a key that is none")?;
                let body = if columns == Columns::All { body.to_vec() } else { Vec::new() };
                rows.push(StoredRow { key, body });
                if rows.len() == full {
                    break;
                }
            }
        }
        // Each type came in order already, so this is a merge.
        rows.sort_by(newest_first);
        rows.truncate(limit);
        Ok(rows)
    }

    /// Writes the cells that beat what is there, all at once.
    fn put(&self, keyspace: &Keyspace, mut puts: Vec<Put>) -> Result<(), Cause> {
        puts.sort_by(|one, other| one.key.cmp(&other.key));
        let mut damaged = Ok(());
        puts.dedup_by(|later, earlier| {
            let same = later.key == earlier.key;
            if same {
                match beats(&later.cell, &earlier.cell) {
                    Ok(true) => std::mem::swap(later, earlier),
                    Ok(false) => {}
                    Err(error) => damaged = Err(error),
                }
            }
            same
        });
        damaged?;
        self.change(|batch| {
            for Put { key, cell, is_new } in puts {
                let there = if is_new { None } else { keyspace.get(&key)? };
                let wins = there.map_or(Ok(true), |there| beats(&cell, &there))?;
                if wins {
                    batch.insert(keyspace, key, cell);
                }
            }
            Ok(())
        })
    }

    fn write_references(&self, references: &[ReferenceWrite]) -> Result<(), Cause> {
        self.change(|batch| {
            let mut changed: HashMap<Vec<u8>, records::ReferenceFields> = HashMap::new();
            for ReferenceWrite { reference, stamp } in references {
                let key = keys::reference(&reference.key);
                let mut fields = match changed.remove(&key) {
                    Some(fields) => fields,
                    None => match self.facts.get(&key)? {
                        Some(stored) => records::ReferenceFields::decode(&stored)?,
                        None => records::ReferenceFields::default(),
                    },
                };
                fields.write(reference, *stamp);
                changed.insert(key, fields);
            }
            changed.into_iter().for_each(|(key, fields)| batch.insert(&self.facts, key, fields.encode()));
            Ok(())
        })
    }

    /// Looks at the next keys after one: removes what has expired at `now`, and begins the lives that were waiting for a
    /// time of day. Returns the key to go on after, unless it was the last.
    fn sweep_step(
        &self,
        keyspace: &Keyspace,
        after: Option<fjall::UserKey>,
        now: Timestamp,
    ) -> Result<(Swept, Option<fjall::UserKey>), Cause> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut swept = Swept::default();
        let (mut last, mut due) = (None, Vec::new());
        for item in keyspace.range((from, Bound::Unbounded)).take(SWEEP_STEP_KEYS) {
            let (key, stored) = item.into_inner()?;
            swept.seen += 1;
            if after_sweep(&stored, now)? != After::Same {
                due.push(key.clone());
            }
            last = Some(key);
        }
        self.change(|batch| {
            for key in due {
                // Looked at again: it may have been written since.
                let Some(stored) = keyspace.get(&key)? else { continue };
                match after_sweep(&stored, now)? {
                    After::Same => {}
                    After::Begun(cell) => batch.insert(keyspace, key, cell),
                    After::Gone => {
                        batch.remove(keyspace, key);
                        swept.removed += 1;
                    }
                }
            }
            Ok(())
        })?;
        let whole = swept.seen < SWEEP_STEP_KEYS as u64;
        Ok((swept, last.filter(|_| !whole)))
    }

    /// A number among the facts; 0 where there is none.
    fn number(&self, key: &[u8]) -> Result<u64, Cause> {
        self.facts.get(key)?.map_or(Ok(0), |stored| records::decode_number(&stored))
    }

    /// Makes a batch of what is there, and writes it all at once, with no other change in between.
    fn change<T>(&self, make: impl FnOnce(&mut OwnedWriteBatch) -> Result<T, Cause>) -> Result<T, Cause> {
        let _writing: MutexGuard<'_, ()> = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut batch = self.database.batch();
        let made = make(&mut batch)?;
        batch.commit()?;
        self.wait_for_files();
        Ok(made)
    }

    /// Waits while too much waits to go to files, [`FILES_WAIT_MAX`] at most. The database only bounds what was put aside to be
    /// written: what is being filled is put aside by the thread that also merges files, and grows for as long as a merge takes.
    fn wait_for_files(&self) {
        let begun = Instant::now();
        while self.database.write_buffer_size() > self.unwritten_bytes_max && begun.elapsed() < FILES_WAIT_MAX
        {
            thread::sleep(FILES_LOOK_EVERY);
        }
    }
}

/// The value in a cell; `None` where there is none or it is deleted.
fn read_cell(snapshot: &Snapshot, keyspace: &Keyspace, key: &[u8]) -> Result<Option<Vec<u8>>, Cause> {
    let Some(stored) = snapshot.get(keyspace, key)? else { return Ok(None) };
    Ok(Cell::decode(&stored)?.bytes.map(<[u8]>::to_vec))
}

fn beats(cell: &[u8], there: &[u8]) -> Result<bool, Cause> {
    Ok(Cell::decode(cell)?.beats(&Cell::decode(there)?))
}

/// What a sweep makes of a cell.
#[derive(PartialEq, Eq)]
enum After {
    Same,
    /// Its life has begun.
    Begun(Vec<u8>),
    /// Its life is over.
    Gone,
}

fn after_sweep(stored: &[u8], now: Timestamp) -> Result<After, Cause> {
    let cell = Cell::decode(stored)?;
    Ok(match cell.life {
        Life::Until(end) if now < end => After::Same,
        Life::Until(_) => After::Gone,
        Life::Length(length_ms) => {
            After::Begun(Cell { life: Life::Until(now.plus_ms(length_ms)), ..cell }.encode())
        }
    })
}

#[cfg(test)]
mod tests;

//! The store in production: ScyllaDB or Apache Cassandra 5, over CQL. What the tables are, and why, stands in
//! `schemas/cql`.
//!
//! | module | what it holds |
//! | --- | --- |
//! | `session` | where the cluster is and how it is talked to |
//! | `schema` | migrations, and the check that they were applied |
//! | `inspect` | what is missing or wrong, and how to mend it |
//! | `live` | which keyspace is live |
//! | `letters` | what an operator did with dead letters |
//! | `statements` | every statement, prepared once |
//! | `spans` | how a span of rows becomes a few selects |
//! | `batches` | how writes are put into batches |
//! | `results` | reading answers |

mod batches;
mod inspect;
mod letters;
mod live;
mod results;
mod schema;
mod session;
mod spans;
mod statements;

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ::scylla::client::session::Session;
use ::scylla::cluster::ClusterState;
use ::scylla::deserialize::row::DeserializeRow;
use ::scylla::errors::{DbError, ExecutionError, RequestAttemptError, WriteType};
use ::scylla::response::PagingState;
use ::scylla::response::query_result::{QueryResult, QueryRowsResult};
use ::scylla::serialize::row::SerializeRow;
use ::scylla::statement::batch::{Batch, BatchStatement, BatchType};
use ::scylla::value::MaybeUnset;
use futures::{StreamExt, TryStreamExt, stream};
use timeline::key::{KeyRecord, Permission};
use timeline::reference::ReferenceKey;
use timeline::row::RowKey;
use timeline::send::SendFacts;
use timeline::{AccountId, EventType, Id, Position, Span, Subject, TimelineId, Timestamp, TypeSet};
use tokio::sync::Semaphore;
use uuid::Uuid;

use self::batches::PartitionWrites;
use self::results::{Cause, first_row, rows, was_applied};
use self::spans::Slice;
use self::statements::{Statement, Statements};
use crate::timing::timed;
use crate::{
    Columns, EventStore, Head, ReferenceWrite, RowGroup, SendWrite, Stage, StoreError, StoredReference,
    StoredRow, StoredTally, TallyWrite, Waiting, WaitingFrom, newest_first,
};

pub use self::inspect::inspect;
pub use self::letters::{LetterMark, LetterState};
pub use self::live::{Live, read_live};
pub use self::schema::{Applied, SchemaError, apply_schema};
pub use self::session::ScyllaConfig;

/// How many requests one call makes at a time.
const CALL_REQUESTS_MAX: usize = 64;
/// The longest time to live that servers take, in seconds: 20 years.
const TTL_S_MAX: i64 = 20 * 365 * 24 * 3600;
/// How many cells one request reads: ScyllaDB refuses more than 100 keys in a relation.
const CELLS_READ_MAX: usize = 100;
/// The cell that says that a timeline exists, and the one that says that it may come to have a tree.
const KNOWN_CELL: i32 = -1;
const PROMISED_CELL: i32 = -2;
/// How many timelines one request reads from: each has a partition of its own, so that a request for one of them costs this
/// process and a node several times what the read does.
const TIMELINES_READ_MAX: usize = 32;
/// How long to try for an epoch that others take, too.
const EPOCH_WAIT_MAX: Duration = Duration::from_secs(30);
/// The longest pause between two tries, in milliseconds.
const EPOCH_PAUSE_MS_MAX: u64 = 50;

/// A store in ScyllaDB or Apache Cassandra.
pub struct ScyllaStore {
    session: Session,
    /// The keyspace that it was given.
    home: String,
    /// The one that was live, where its tables are.
    live: Live,
    statements: Statements,
    /// Bounds the requests that are under way.
    requests: Semaphore,
    /// The last write timestamp given to a waiting event or its removal, in microseconds.
    waiting_stamp: AtomicI64,
}

impl ScyllaStore {
    /// Connects to the keyspace that is live for those who are given `config`, and prepares every statement. Fails where the schema
    /// is not applied, and says so.
    pub async fn connect(config: &ScyllaConfig) -> Result<ScyllaStore, StoreError> {
        let session = session::open(config, config.request_timeout).await?;
        schema::check(&session, &config.keyspace).await?;
        let live = live::read(&session, &config.keyspace).await?;
        if live.keyspace == config.keyspace {
            return ScyllaStore::prepare(session, config, live).await;
        }
        let moved = ScyllaConfig { keyspace: live.keyspace.clone(), ..config.clone() };
        let store = ScyllaStore::connect_beside(&moved).await?;
        Ok(ScyllaStore { home: config.keyspace.clone(), live, ..store })
    }

    /// Connects to the keyspace of `config` itself, whichever is live.
    pub async fn connect_beside(config: &ScyllaConfig) -> Result<ScyllaStore, StoreError> {
        let session = session::open(config, config.request_timeout).await?;
        schema::check(&session, &config.keyspace).await?;
        ScyllaStore::prepare(session, config, Live::at_home(config.keyspace.clone())).await
    }

    async fn prepare(session: Session, config: &ScyllaConfig, live: Live) -> Result<ScyllaStore, StoreError> {
        let statements = Box::pin(Statements::prepare(&session, &live.keyspace)).await?;
        Ok(ScyllaStore {
            session,
            home: config.keyspace.clone(),
            live,
            statements,
            requests: Semaphore::new(config.requests_in_flight_max.max(1)),
            waiting_stamp: AtomicI64::new(i64::MIN),
        })
    }
}

#[async_trait::async_trait]
impl EventStore for ScyllaStore {
    async fn write_rows(&self, now: Timestamp, groups: &[RowGroup<'_>]) -> Result<(), StoreError> {
        let cluster = self.session.get_cluster_state();
        let subjects: Vec<String> = groups.iter().map(|group| group.timeline.subject.to_string()).collect();
        let partitions = groups.iter().zip(&subjects).map(|(group, subject)| {
            let (account, part) = (group.timeline.account.as_str(), group.part.cast_signed());
            let rows = group.rows.iter().filter_map(|row| {
                let ttl_s = ttl_s(now, row.expires_at)?;
                let RowKey { position, event_type } = &row.key;
                let (event_type, at, id) = (type_number(*event_type), position.at.0, &*position.id);
                let values = (
                    account,
                    subject.as_str(),
                    part,
                    event_type,
                    at,
                    id,
                    row.body.as_slice(),
                    ttl_s,
                    row.stamp,
                );
                Some((values, row.body.len() + id.len()))
            });
            let replicas = self.replicas(&cluster, "timeline_rows", &(account, subject.as_str(), part));
            PartitionWrites { replicas, rows: rows.collect() }
        });
        self.write(&self.statements.write_row, batches::plan(partitions)).await
    }

    async fn delete_rows(
        &self,
        timeline: &TimelineId,
        part: u32,
        keys: &[RowKey],
        stamp: i64,
    ) -> Result<(), StoreError> {
        let (account, subject) = (timeline.account.as_str(), timeline.subject.to_string());
        let rows = keys.iter().map(|key| {
            let (event_type, at, id) = (type_number(key.event_type), key.position.at.0, &*key.position.id);
            ((stamp, account, subject.as_str(), part.cast_signed(), event_type, at, id), id.len())
        });
        let writes = PartitionWrites { replicas: Vec::new(), rows: rows.collect() };
        self.write(&self.statements.delete_row, batches::plan([writes])).await
    }

    async fn read_rows(
        &self,
        timeline: &TimelineId,
        part: u32,
        types: TypeSet,
        span: &Span,
        columns: Columns,
        _limit: usize,
    ) -> Result<Vec<StoredRow>, StoreError> {
        if types.is_empty() {
            return Ok(Vec::new());
        }
        let (account, subject, part) =
            (timeline.account.as_str(), timeline.subject.to_string(), part.cast_signed());
        // Without relations on the clustering: those on every type cost the server more than the rows of a small timeline.
        let is_whole = types == TypeSet::ALL && *span == Span::all();
        let types: Vec<i8> = types.iter().map(type_number).collect();
        let (statements, decode): (_, Decode<StoredRow>) = match columns {
            Columns::Keys => (&self.statements.read_row_keys, decode_row_keys),
            Columns::All => (&self.statements.read_rows, decode_rows),
        };
        let (subject, types) = (subject.as_str(), types.as_slice());
        let read = |slice| async move {
            match slice {
                Slice::Times { first, last } => {
                    self.read(&statements.times, (account, subject, part, types, first, last), decode).await
                }
                Slice::IdsFrom { at, from } => {
                    self.read(&statements.ids_from, (account, subject, part, types, at, from), decode).await
                }
                Slice::IdsUntil { at, until } => {
                    self.read(&statements.ids_until, (account, subject, part, types, at, until), decode).await
                }
                Slice::Ids { at, from, until } => {
                    self.read(&statements.ids, (account, subject, part, types, at, from, until), decode).await
                }
            }
        };
        let mut rows = if is_whole {
            self.read(&statements.part, (account, subject, part), decode).await?
        } else {
            futures::future::try_join_all(spans::slices(span).into_iter().map(read)).await?.concat()
        };
        // Each type came in order already, so this is a merge.
        rows.sort_by(newest_first);
        Ok(rows)
    }

    async fn write_tallies(&self, tallies: &[TallyWrite]) -> Result<(), StoreError> {
        let writes = tallies.iter().filter(|tallies| !tallies.cells.is_empty()).map(|tallies| async move {
            let (account, subject) =
                (tallies.timeline.account.as_str(), tallies.timeline.subject.to_string());
            let ttl_s = i64::from(tallies.ttl_s).clamp(1, TTL_S_MAX) as i32;
            let cells = tallies.cells.iter().map(|(cell, bytes)| {
                (account, subject.as_str(), cell.cast_signed(), bytes.as_slice(), ttl_s, tallies.stamp)
            });
            // However many they are, one batch: of one partition, so one mutation.
            self.write_batch(&self.statements.write_tally, cells.collect()).await
        });
        each(writes.collect()).await.map(|_: Vec<()>| ())
    }

    fn writes_unseen(&self) -> bool {
        true
    }

    async fn promise_trees(&self, timelines: &[TimelineId]) -> Result<(), StoreError> {
        self.mark(PROMISED_CELL, timelines).await
    }

    async fn read_heads(&self, timelines: &[TimelineId]) -> Result<Vec<Head>, StoreError> {
        let mut heads = vec![Head::default(); timelines.len()];
        let cells = self.read_many(&self.statements.read_heads, timelines, decode_heads).await?;
        for (at, (cell, bytes)) in cells {
            match cell {
                KNOWN_CELL => heads[at].known = true,
                PROMISED_CELL => heads[at].promised = true,
                _ => heads[at].root = bytes,
            }
        }
        Ok(heads)
    }

    async fn read_first_parts(&self, timelines: &[TimelineId]) -> Result<Vec<Vec<StoredRow>>, StoreError> {
        let mut parts = vec![Vec::new(); timelines.len()];
        let keys = self.read_many(&self.statements.read_first_parts, timelines, decode_first_parts).await?;
        for (at, row) in keys {
            parts[at].push(row);
        }
        for rows in &mut parts {
            rows.sort_by(newest_first);
        }
        Ok(parts)
    }

    async fn read_tallies(
        &self,
        timeline: &TimelineId,
        cells: &[u32],
    ) -> Result<Vec<Option<StoredTally>>, StoreError> {
        let (account, subject) = (timeline.account.as_str(), timeline.subject.to_string());
        let mut wanted: Vec<i32> = cells.iter().map(|cell| cell.cast_signed()).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let subject = subject.as_str();
        let read = |chunk| self.read(&self.statements.read_tallies, (account, subject, chunk), decode_cells);
        let found: Vec<Vec<(u32, StoredTally)>> =
            each(wanted.chunks(CELLS_READ_MAX).map(read).collect()).await?;
        let found: HashMap<u32, StoredTally> = found.into_iter().flatten().collect();
        Ok(cells.iter().map(|cell| found.get(cell).cloned()).collect())
    }

    async fn write_sends(&self, now: Timestamp, sends: &[SendWrite]) -> Result<(), StoreError> {
        let cluster = self.session.get_cluster_state();
        let writes = sends.iter().filter_map(|send| {
            let (account, message) = (send.account.as_str(), send.message.as_str());
            let (ttl_s, facts) = (ttl_s(now, send.expires_at)?, send.facts.encode());
            let size = facts.len();
            let replicas = self.replicas(&cluster, "sends", &(account, message));
            Some(PartitionWrites {
                replicas,
                rows: vec![((account, message, facts, ttl_s, send.stamp), size)],
            })
        });
        self.write(&self.statements.write_send, batches::plan(writes)).await
    }

    async fn read_sends(&self, messages: &[(AccountId, Id)]) -> Result<Vec<Option<SendFacts>>, StoreError> {
        let read = messages.iter().map(|(account, message)| async move {
            let values = (account.as_str(), message.as_str());
            let facts: Option<(Vec<u8>,)> = self.read_one(&self.statements.read_send, values).await?;
            let facts = facts.map(|(facts,)| SendFacts::decode(&facts)).transpose();
            facts.map_err(|damaged| StoreError::new(self.statements.read_send.name, damaged))
        });
        each(read.collect()).await
    }

    async fn put_waiting(&self, now: Timestamp, waiting: &[Waiting]) -> Result<(), StoreError> {
        let cluster = self.session.get_cluster_state();
        let stamp = self.next_waiting_stamp(now.0.saturating_mul(1000));
        let writes = waiting.iter().filter_map(|event| {
            let (account, message) = (event.account.as_str(), event.message.as_str());
            let (at, id, raw) = (event.at.0, event.id.as_str(), event.event.as_slice());
            let (appended_at, expires_at) = (event.appended_at.0, event.expires_at.0);
            let ttl_s = ttl_s(now, event.expires_at)?;
            let values = (account, message, at, id, raw, appended_at, expires_at, ttl_s, stamp);
            let replicas = self.replicas(&cluster, "waiting", &(account, message));
            Some(PartitionWrites { replicas, rows: vec![(values, raw.len())] })
        });
        self.write(&self.statements.put_waiting, batches::plan(writes)).await
    }

    async fn read_waiting(
        &self,
        from: &[WaitingFrom],
        bytes_max: usize,
    ) -> Result<(Vec<Waiting>, Vec<WaitingFrom>), StoreError> {
        let bytes = &AtomicUsize::new(0);
        let read = from.iter().map(|from| async move {
            if bytes.load(Ordering::Relaxed) >= bytes_max {
                return Ok((Vec::new(), Some(from.clone())));
            }
            let WaitingFrom { account, message, after } = from;
            let (at, id) = after.as_ref().map_or((i64::MIN, ""), |(at, id)| (at.0, id.as_str()));
            let values = (account.as_str(), message.as_str(), at, id);
            let is_enough = |page: &[WaitingRow]| {
                let read: usize = page.iter().map(|row| row.event.len()).sum();
                bytes.fetch_add(read, Ordering::Relaxed) + read >= bytes_max
            };
            let statement = &self.statements.read_waiting;
            let (found, is_all) = self.read_until(statement, values, decode_waiting, is_enough).await?;
            let found: Vec<Waiting> = found.into_iter().map(|event| event.of(account, message)).collect();
            // A page may be empty with more behind it.
            let more = (!is_all).then(|| from.behind(&found));
            Ok((found, more))
        });
        let (found, more): (Vec<_>, Vec<_>) = each(read.collect()).await?.into_iter().unzip();
        Ok((found.into_iter().flatten().collect(), more.into_iter().flatten().collect()))
    }

    async fn remove_waiting(&self, waiting: &[Waiting]) -> Result<(), StoreError> {
        let cluster = self.session.get_cluster_state();
        let stamp = self.next_waiting_stamp(clock_us());
        let deletes = waiting.iter().map(|event| {
            let (account, message) = (event.account.as_str(), event.message.as_str());
            let values = (stamp, account, message, event.at.0, event.id.as_str());
            let replicas = self.replicas(&cluster, "waiting", &(account, message));
            PartitionWrites { replicas, rows: vec![(values, 0)] }
        });
        self.write(&self.statements.remove_waiting, batches::plan(deletes)).await
    }

    async fn write_references(&self, references: &[ReferenceWrite]) -> Result<(), StoreError> {
        let cluster = self.session.get_cluster_state();
        let writes = references.iter().map(|ReferenceWrite { reference, stamp }| {
            let (account, kind, id) =
                (reference.key.account.as_str(), reference.key.kind.name(), reference.key.id.as_str());
            let name = MaybeUnset::from_option(reference.name.as_deref());
            let email = MaybeUnset::from_option(reference.email.as_deref());
            let size = [&reference.name, &reference.email].into_iter().flatten().map(|text| text.len()).sum();
            let values = (account, kind, id, name, email, reference.deleted, *stamp);
            let replicas = self.replicas(&cluster, "refs", &(account, kind, id));
            PartitionWrites { replicas, rows: vec![(values, size)] }
        });
        self.write(&self.statements.write_reference, batches::plan(writes)).await
    }

    async fn read_references(
        &self,
        keys: &[ReferenceKey],
    ) -> Result<Vec<Option<StoredReference>>, StoreError> {
        let read = keys.iter().map(|key| async move {
            let values = (key.account.as_str(), key.kind.name(), key.id.as_str());
            let found: Option<(Option<Box<str>>, Option<Box<str>>, bool)> =
                self.read_one(&self.statements.read_reference, values).await?;
            Ok(found.map(|(name, email, deleted)| StoredReference { name, email, deleted }))
        });
        each(read.collect()).await
    }

    async fn mark_known(&self, timelines: &[TimelineId]) -> Result<(), StoreError> {
        self.mark(KNOWN_CELL, timelines).await
    }

    async fn is_known(&self, timeline: &TimelineId) -> Result<bool, StoreError> {
        let values = (timeline.account.as_str(), timeline.subject.to_string());
        let found: Option<(String,)> = self.read_one(&self.statements.is_known, values).await?;
        Ok(found.is_some())
    }

    async fn take_epoch(&self, scope: &str) -> Result<u64, StoreError> {
        let name = self.statements.update_epoch.name;
        let begun = Instant::now();
        while begun.elapsed() < EPOCH_WAIT_MAX {
            match self.try_epoch(scope).await {
                Ok(Some(epoch)) => return u64::try_from(epoch).map_err(|error| StoreError::new(name, error)),
                Ok(None) => {}
                // Others were in the way. If ours was applied all the same, its number is left out.
                Err(error) if is_contention(&error) => {}
                Err(error) => return Err(error),
            }
            // Different for each taker, so that they get out of each other's way.
            let pause_ms = Uuid::new_v4().as_u64_pair().0 % EPOCH_PAUSE_MS_MAX;
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        }
        Err(StoreError::new(name, format!("other takers were quicker for {} s", EPOCH_WAIT_MAX.as_secs())))
    }

    async fn read_epoch(&self, scope: &str) -> Result<u64, StoreError> {
        let held = self.held_epoch(scope).await?.unwrap_or(0);
        u64::try_from(held).map_err(|error| StoreError::new(self.statements.read_epoch.name, error))
    }

    async fn list_forgotten(&self) -> Result<Vec<(AccountId, Uuid)>, StoreError> {
        self.read(&self.statements.list_forgotten, (), decode_forgotten).await
    }

    async fn write_key(&self, key: &KeyRecord) -> Result<(), StoreError> {
        let permissions: Vec<&str> = key.permissions.iter().map(|permission| permission.name()).collect();
        let (expires_at, revoked_at) = (key.expires_at.map(|at| at.0), key.revoked_at.map(|at| at.0));
        let values = (
            &key.id,
            key.digest.as_slice(),
            key.account.as_str(),
            permissions,
            key.created_at.0,
            expires_at,
            revoked_at,
        );
        self.execute(&self.statements.write_key, values).await.map(|_| ())
    }

    async fn read_key(&self, id: &str) -> Result<Option<KeyRecord>, StoreError> {
        let key: Option<StoredKey> = self.read_one(&self.statements.read_key, (id,)).await?;
        let key = key.map(decode_key).transpose();
        key.map_err(|cause| StoreError::new(self.statements.read_key.name, cause))
    }

    async fn list_keys(&self) -> Result<Vec<KeyRecord>, StoreError> {
        self.read(&self.statements.list_keys, (), decode_keys).await
    }

    async fn write_progress(&self, stage: Stage, done: &[(i32, Timestamp)]) -> Result<(), StoreError> {
        if done.is_empty() {
            return Ok(());
        }
        let values = done
            .iter()
            .map(|(partition, until)| (stage.name(), *partition, until.0, until.0.saturating_mul(1000)));
        self.write_batch(&self.statements.write_progress, values.collect()).await
    }

    async fn read_progress(&self, stage: Stage) -> Result<Vec<(i32, Timestamp)>, StoreError> {
        self.read(&self.statements.read_progress, (stage.name(),), decode_progress).await
    }

    async fn check(&self) -> Result<(), StoreError> {
        timed("check", schema::check(&self.session, &self.live.keyspace)).await
    }
}

impl ScyllaStore {
    /// Every timeline that was ever marked as known or counted, in no particular order.
    pub async fn list_timelines(&self) -> Result<Vec<TimelineId>, StoreError> {
        self.read(&self.statements.list_timelines, (), decode_timelines).await
    }

    /// Writes into another keyspace what the log does not know: API keys and what was done with dead letters. What is newer there stays,
    /// and a key that was revoked in either is.
    pub async fn copy_keys_and_letters(&self, to: &ScyllaStore) -> Result<(), StoreError> {
        let there: HashMap<String, KeyRecord> =
            to.list_keys().await?.into_iter().map(|key| (key.id.clone(), key)).collect();
        let is_newer = |key: &KeyRecord| {
            there.get(&key.id).is_none_or(|there| there.revoked_at.is_none() && key.revoked_at.is_some())
        };
        let keys: Vec<KeyRecord> = self.list_keys().await?.into_iter().filter(is_newer).collect();
        each(keys.iter().map(|key| to.write_key(key)).collect()).await.map(|_: Vec<()>| ())?;
        let marks: Vec<(String, LetterMark)> = self.letter_marks().await?.into_iter().collect();
        let copy = |(place, mark): &(String, LetterMark)| {
            let (place, mark) = (place.clone(), *mark);
            async move {
                match to.mark_letter(&place, mark).await? {
                    Some(there) if there.at < mark.at => {
                        to.change_letter(&place, there, mark).await.map(|_| ())
                    }
                    _ => Ok(()),
                }
            }
        };
        each(marks.iter().map(copy).collect()).await.map(|_: Vec<()>| ())
    }

    /// Remembers for ever that a contact was forgotten.
    pub async fn forget(&self, account: &AccountId, contact: Uuid, at: Timestamp) -> Result<(), StoreError> {
        self.execute(&self.statements.forget, (account.as_str(), contact, at.0)).await.map(|_| ())
    }

    /// Takes name and address out of a reference: whatever was written of them with a stamp up to the one given.
    pub async fn erase_reference(&self, key: &ReferenceKey, stamp: i64) -> Result<(), StoreError> {
        let values = (stamp, key.account.as_str(), key.kind.name(), key.id.as_str());
        self.execute(&self.statements.erase_reference, values).await.map(|_| ())
    }

    /// The nodes that have a partition of `table`; none where there is no choice.
    fn replicas(&self, cluster: &ClusterState, table: &str, partition: &dyn SerializeRow) -> Vec<Uuid> {
        if cluster.get_nodes_info().len() < 2 {
            return Vec::new();
        }
        let Ok(token) = cluster.compute_token(&self.live.keyspace, table, partition) else {
            return Vec::new();
        };
        let replicas = cluster.get_token_endpoints(&self.live.keyspace, table, token);
        let mut replicas: Vec<Uuid> = replicas.into_iter().map(|(node, _)| node.host_id).collect();
        replicas.sort_unstable();
        replicas
    }

    /// A write timestamp for waiting events: the clock, but after every one given before, so that of a put and a
    /// removal in this process the later wins, however close they are.
    fn next_waiting_stamp(&self, clock_us: i64) -> i64 {
        let next = |last: i64| Some(clock_us.max(last.saturating_add(1)));
        let last = self.waiting_stamp.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        last.map_or(clock_us, |last| clock_us.max(last.saturating_add(1)))
    }

    /// Writes a cell of timelines that says by being there what it says, and for ever.
    async fn mark(&self, cell: i32, timelines: &[TimelineId]) -> Result<(), StoreError> {
        let cluster = self.session.get_cluster_state();
        let writes = timelines.iter().map(|timeline| {
            let (account, subject) = (timeline.account.as_str(), timeline.subject.to_string());
            let replicas = self.replicas(&cluster, "tallies", &(account, &subject));
            PartitionWrites { replicas, rows: vec![((account, subject, cell), 0)] }
        });
        self.write(&self.statements.mark, batches::plan(writes)).await
    }

    /// The epoch that was taken last, if any was.
    async fn held_epoch(&self, scope: &str) -> Result<Option<i64>, StoreError> {
        let held: Option<(i64,)> = self.read_one(&self.statements.read_epoch, (scope,)).await?;
        Ok(held.map(|(held,)| held))
    }

    /// Takes the epoch after the one that is there; `None` where another was quicker.
    async fn try_epoch(&self, scope: &str) -> Result<Option<i64>, StoreError> {
        let held = self.held_epoch(scope).await?;
        let (next, taken) = match held {
            None => (1, self.execute(&self.statements.insert_epoch, (scope, 1_i64)).await?),
            Some(held) => {
                let next = held + 1;
                (next, self.execute(&self.statements.update_epoch, (next, scope, held)).await?)
            }
        };
        let applied = was_applied(self.statements.update_epoch.name, taken)?;
        Ok(applied.then_some(next))
    }

    /// Executes batches of one statement, some at a time.
    async fn write<V>(&self, statement: &Statement, batches: Vec<Vec<V>>) -> Result<(), StoreError>
    where
        V: SerializeRow + Send + Sync,
    {
        let writes = batches.into_iter().map(|batch| self.write_batch(statement, batch));
        stream::iter(writes).buffer_unordered(CALL_REQUESTS_MAX).try_collect().await
    }

    /// Executes one batch of one statement.
    async fn write_batch<V>(&self, statement: &Statement, values: Vec<V>) -> Result<(), StoreError>
    where
        V: SerializeRow + Send + Sync,
    {
        if let [values] = values.as_slice() {
            return self.execute(statement, values).await.map(|_| ());
        }
        let statements = vec![BatchStatement::PreparedStatement(statement.prepared.clone()); values.len()];
        let mut batch = Batch::new_with_statements(BatchType::Unlogged, statements);
        batch.set_is_idempotent(true);
        self.request(statement.name, self.session.batch(&batch, values)).await.map(|_| ())
    }

    /// Reads at most one row.
    async fn read_one<R>(
        &self,
        statement: &Statement,
        values: impl SerializeRow,
    ) -> Result<Option<R>, StoreError>
    where
        R: for<'frame, 'metadata> DeserializeRow<'frame, 'metadata>,
    {
        first_row(statement.name, self.execute(statement, values).await?)
    }

    /// Reads all rows, page by page.
    async fn read<T>(
        &self,
        statement: &Statement,
        values: impl SerializeRow,
        decode: Decode<T>,
    ) -> Result<Vec<T>, StoreError> {
        self.read_until(statement, values, decode, |_| false).await.map(|(found, _)| found)
    }

    /// Reads rows, page by page, until one of them is enough; and whether they are all.
    async fn read_until<T>(
        &self,
        statement: &Statement,
        values: impl SerializeRow,
        decode: Decode<T>,
        is_enough: impl Fn(&[T]) -> bool,
    ) -> Result<(Vec<T>, bool), StoreError> {
        let mut found = Vec::new();
        let mut page = PagingState::start();
        loop {
            let request = self.session.execute_single_page(&statement.prepared, &values, page);
            let (result, next) = self.request(statement.name, request).await?;
            let read = found.len();
            let decoded = decode(&rows(statement.name, result)?, &mut found);
            decoded.map_err(|cause| StoreError::new(statement.name, cause))?;
            let is_enough = is_enough(&found[read..]);
            match next.into_paging_control_flow() {
                ControlFlow::Break(()) => return Ok((found, true)),
                ControlFlow::Continue(_) if is_enough => return Ok((found, false)),
                ControlFlow::Continue(next) => page = next,
            }
        }
    }

    /// Reads from many timelines, each given once, some in a request. What was read comes with its timeline's place in `timelines`.
    async fn read_many<T>(
        &self,
        statement: &Statement,
        timelines: &[TimelineId],
        decode: Decode<(String, T)>,
    ) -> Result<Vec<(usize, T)>, StoreError> {
        let mut by_account = BTreeMap::<&str, BTreeMap<String, usize>>::new();
        for (at, timeline) in timelines.iter().enumerate() {
            let places = by_account.entry(timeline.account.as_str()).or_default();
            places.insert(timeline.subject.to_string(), at);
        }
        let mut reads = Vec::new();
        for (account, places) in &by_account {
            let subjects: Vec<&str> = places.keys().map(String::as_str).collect();
            for chunk in subjects.chunks(TIMELINES_READ_MAX) {
                let values = (*account, chunk.to_vec());
                reads.push(async move {
                    let found = self.read(statement, values, decode).await?;
                    let placed = |(subject, value)| Some((*places.get(&subject)?, value));
                    Ok(found.into_iter().filter_map(placed).collect::<Vec<_>>())
                });
            }
        }
        Ok(each(reads).await?.into_iter().flatten().collect())
    }

    /// Executes a statement whose answer is short.
    async fn execute(
        &self,
        statement: &Statement,
        values: impl SerializeRow,
    ) -> Result<QueryResult, StoreError> {
        self.request(statement.name, self.session.execute_unpaged(&statement.prepared, values)).await
    }

    /// Makes a request when there is room for one.
    async fn request<T>(
        &self,
        name: &'static str,
        request: impl Future<Output = Result<T, ExecutionError>>,
    ) -> Result<T, StoreError> {
        let _room = self.requests.acquire().await.map_err(|closed| StoreError::new(name, closed))?;
        timed(name, async { Box::pin(request).await.map_err(|error| StoreError::new(name, error)) }).await
    }
}

/// Awaits requests, some at a time; their answers are in order.
async fn each<T>(requests: Vec<impl Future<Output = Result<T, StoreError>>>) -> Result<Vec<T>, StoreError> {
    stream::iter(requests).buffered(CALL_REQUESTS_MAX).try_collect().await
}

/// Whether a conditional write, or the read before it, failed because others were in its way.
fn is_contention(error: &StoreError) -> bool {
    let cause = error.cause.downcast_ref::<ExecutionError>();
    let Some(ExecutionError::LastAttemptError(RequestAttemptError::DbError(error, _))) = cause else {
        return false;
    };
    matches!(error, DbError::WriteTimeout { write_type: WriteType::Cas, .. } | DbError::ReadTimeout { .. })
}

/// What is left of a life, in whole seconds, rounded up; `None` where it is over. A time to live of 0 would mean for ever.
fn ttl_s(now: Timestamp, expires_at: Timestamp) -> Option<i32> {
    let left_ms = expires_at.0.saturating_sub(now.0);
    let left_s = left_ms.div_euclid(1000).saturating_add(i64::from(left_ms.rem_euclid(1000) > 0));
    (left_ms > 0).then(|| left_s.min(TTL_S_MAX) as i32)
}

/// The machine's clock, in microseconds: what servers stamp a write with that brings no timestamp.
fn clock_us() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX)
}

fn type_number(event_type: EventType) -> i8 {
    (event_type as u8).cast_signed()
}

/// Adds the rows of a page to those read before.
type Decode<T> = fn(&QueryRowsResult, &mut Vec<T>) -> Result<(), Cause>;

fn decode_rows(page: &QueryRowsResult, rows: &mut Vec<StoredRow>) -> Result<(), Cause> {
    rows.reserve(page.rows_num());
    for row in page.rows::<(i8, i64, &str, &[u8])>()? {
        let (event_type, at, id, body) = row?;
        rows.push(StoredRow { key: row_key(event_type, at, id)?, body: body.to_vec() });
    }
    Ok(())
}

fn decode_row_keys(page: &QueryRowsResult, rows: &mut Vec<StoredRow>) -> Result<(), Cause> {
    rows.reserve(page.rows_num());
    for row in page.rows::<(i8, i64, &str)>()? {
        let (event_type, at, id) = row?;
        rows.push(StoredRow { key: row_key(event_type, at, id)?, body: Vec::new() });
    }
    Ok(())
}

fn row_key(event_type: i8, at: i64, id: &str) -> Result<RowKey, Cause> {
    let event_type = EventType::from_number(event_type.cast_unsigned())
        .ok_or_else(|| format!("a row has the unknown type {event_type}"))?;
    Ok(RowKey { position: Position { at: Timestamp(at), id: id.into() }, event_type })
}

fn decode_cells(page: &QueryRowsResult, cells: &mut Vec<(u32, StoredTally)>) -> Result<(), Cause> {
    for row in page.rows::<(i32, Vec<u8>, i64)>()? {
        let (cell, bytes, stamp) = row?;
        cells.push((cell.cast_unsigned(), StoredTally { stamp, bytes }));
    }
    Ok(())
}

/// A cell of a timeline's tree; the one that says that the timeline exists has no bytes.
type HeadCell = (i32, Option<Vec<u8>>);

fn decode_heads(page: &QueryRowsResult, heads: &mut Vec<(String, HeadCell)>) -> Result<(), Cause> {
    for row in page.rows::<(String, i32, Option<Vec<u8>>)>()? {
        let (subject, cell, bytes) = row?;
        heads.push((subject, (cell, bytes)));
    }
    Ok(())
}

fn decode_first_parts(page: &QueryRowsResult, rows: &mut Vec<(String, StoredRow)>) -> Result<(), Cause> {
    for row in page.rows::<(String, i8, i64, &str)>()? {
        let (subject, event_type, at, id) = row?;
        rows.push((subject, StoredRow { key: row_key(event_type, at, id)?, body: Vec::new() }));
    }
    Ok(())
}

fn decode_timelines(page: &QueryRowsResult, timelines: &mut Vec<TimelineId>) -> Result<(), Cause> {
    for row in page.rows::<(&str, &str)>()? {
        let (account, subject) = row?;
        let unknown = || format!("a timeline has the unknown subject '{subject}'");
        let account = AccountId::parse(account).ok_or_else(unknown)?;
        timelines.push(TimelineId { account, subject: Subject::parse(subject).ok_or_else(unknown)? });
    }
    Ok(())
}

fn decode_forgotten(page: &QueryRowsResult, contacts: &mut Vec<(AccountId, Uuid)>) -> Result<(), Cause> {
    for row in page.rows::<(&str, Uuid)>()? {
        let (account, contact) = row?;
        let account = AccountId::parse(account).ok_or("a forgotten contact has an account that is none")?;
        contacts.push((account, contact));
    }
    Ok(())
}

/// A waiting event without the key of its partition.
struct WaitingRow {
    at: Timestamp,
    id: Id,
    event: Vec<u8>,
    appended_at: Timestamp,
    expires_at: Timestamp,
}

impl WaitingRow {
    fn of(self, account: &AccountId, message: &Id) -> Waiting {
        let WaitingRow { at, id, event, appended_at, expires_at } = self;
        Waiting { account: account.clone(), message: message.clone(), at, id, event, appended_at, expires_at }
    }
}

fn decode_waiting(page: &QueryRowsResult, waiting: &mut Vec<WaitingRow>) -> Result<(), Cause> {
    for row in page.rows::<(i64, &str, Vec<u8>, i64, i64)>()? {
        let (at, id, event, appended_at, expires_at) = row?;
        waiting.push(WaitingRow {
            at: Timestamp(at),
            id: Id::parse(id).ok_or("a waiting event has an id that is none")?,
            event,
            appended_at: Timestamp(appended_at),
            expires_at: Timestamp(expires_at),
        });
    }
    Ok(())
}

fn decode_progress(page: &QueryRowsResult, progress: &mut Vec<(i32, Timestamp)>) -> Result<(), Cause> {
    for row in page.rows::<(i32, i64)>()? {
        let (partition, until) = row?;
        progress.push((partition, Timestamp(until)));
    }
    Ok(())
}

/// Id, digest, account, permissions, and when it was made, expires, was revoked.
type StoredKey = (String, Vec<u8>, String, Vec<String>, i64, Option<i64>, Option<i64>);

fn decode_keys(page: &QueryRowsResult, keys: &mut Vec<KeyRecord>) -> Result<(), Cause> {
    for row in page.rows::<StoredKey>()? {
        keys.push(decode_key(row?)?);
    }
    Ok(())
}

fn decode_key(stored: StoredKey) -> Result<KeyRecord, Cause> {
    let (id, digest, account, permissions, created_at, expires_at, revoked_at) = stored;
    let digest = digest.try_into().map_err(|_| format!("key {id} has a digest of another length"))?;
    let account =
        AccountId::parse(&account).ok_or_else(|| format!("key {id} has an account that is none"))?;
    Ok(KeyRecord {
        id,
        digest,
        account,
        // A permission of a later version opens nothing here.
        permissions: permissions.iter().filter_map(|name| Permission::parse(name)).collect(),
        created_at: Timestamp(created_at),
        expires_at: expires_at.map(Timestamp),
        revoked_at: revoked_at.map(Timestamp),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_is_rounded_up_and_never_for_ever() {
        let ttl = |left_ms: i64| ttl_s(Timestamp(1_000_000), Timestamp(1_000_000 + left_ms));
        assert_eq!(ttl(1), Some(1));
        assert_eq!(ttl(1000), Some(1));
        assert_eq!(ttl(1001), Some(2));
        assert_eq!(ttl(0), None);
        assert_eq!(ttl(-5), None);
        assert_eq!(ttl_s(Timestamp(i64::MIN), Timestamp(i64::MAX)), Some(TTL_S_MAX as i32));
    }
}

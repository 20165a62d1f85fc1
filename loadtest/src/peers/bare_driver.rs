//! The bare driver: the mutations that `backstamp ingest` makes, written from memory as fast as the driver and the store go.
//!
//! Which those are is found out by running *place* and *own* over a store that only notes them down ([`Recorder`]), a batch of
//! [`PLACED_EVENTS`] at a time: rows of both timelines, cells of their tallies, marks that timelines exist. They are then written to the
//! tables of `schemas/cql` by prepared statements in unlogged batches, the best of some ways of batching, which are tried first
//! on a part of them.
//!
//! Left out is all the rest of the job: no Kafka, no JSON, no look whether a timeline is there or a row is a repeat, no promise of a tree, and no
//! wait for rows before their tallies are written. Cells of one batch go together, as with us.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, ensure};
use event_store::{
    Columns, EventStore, Head, ReferenceWrite, RowGroup, RowWrite, SendWrite, StoreError, StoredReference,
    StoredRow, StoredTally, TallyWrite, Waiting, WaitingFrom,
};
use futures::{TryStreamExt, stream};
use ingest::Clock;
use ingest::own::{OwnBatch, Owner, OwnerSettings};
use ingest::place::{Place, RawRecord};
use scylla::client::session::Session;
use scylla::serialize::row::SerializeRow;
use scylla::statement::batch::{Batch, BatchStatement, BatchType};
use scylla::statement::prepared::PreparedStatement;
use timeline::filter::ListManagementFilter;
use timeline::key::KeyRecord;
use timeline::reference::ReferenceKey;
use timeline::row::RowKey;
use timeline::send::SendFacts;
use timeline::tally::Sizes;
use timeline::time::DAY_MS;
use timeline::{AccountId, Id, Span, TimelineId, Timestamp, TypeSet};

use super::servers::{Servers, Stack};
use super::{Measured, table};
use crate::measure::Meter;
use crate::mix::Mix;
use crate::mix::json::Writer;
use crate::options::now_ms;

/// Events that *place* takes at a time.
const PLACED_EVENTS: u64 = 4000;
/// Partitions of the internal topic.
const PARTITIONS: u32 = event_log::CAMPAIGN_EVENTS_PARTITIONS.cast_unsigned();
const RETENTION_MS: i64 = 180 * DAY_MS;
/// From so many rows on a partition has batches of its own.
const ROWS_ALONE_MIN: usize = 20;
/// The most bytes in a batch.
const BATCH_BYTES_MAX: usize = 64 * 1024;
/// What a row takes beside its body.
const ROW_OVERHEAD_BYTES: usize = 128;
/// The share of the mutations that each way is tried with: one in so many.
const TRIED_ONE_IN: usize = 10;

/// Ways of batching, of which the best is taken: the first is our own.
const WAYS: [Way; 5] = [
    Way { rows_max: 100, partitions_max: 10, in_flight: 64 },
    Way { rows_max: 100, partitions_max: 10, in_flight: 256 },
    Way { rows_max: 100, partitions_max: 30, in_flight: 128 },
    Way { rows_max: 200, partitions_max: 20, in_flight: 64 },
    Way { rows_max: 50, partitions_max: 5, in_flight: 256 },
];

/// A way of batching.
#[derive(Clone, Copy, Debug)]
struct Way {
    /// The most rows in a batch.
    rows_max: usize,
    /// The most partitions in a batch, where they have few rows each.
    partitions_max: usize,
    /// Batches under way at a time.
    in_flight: usize,
}

/// Writes the mutations of a mix, which has an account, to tables of its own.
pub(crate) async fn flat_out(servers: &Servers, program: &Path, mix: &Mix) -> anyhow::Result<Measured> {
    let mutations = record(mix).await?;
    let (rows, written, cells) = (2 * mix.count(), mutations.rows(), mutations.cells());
    ensure!(rows_of(mix).contains(&written), "{written} rows would be written, not {:?}", rows_of(mix));
    let tried = mutations.part(TRIED_ONE_IN);
    let mut best: Option<(f64, Way)> = None;
    for way in WAYS {
        let stack = Stack::start(servers, program).await?;
        let statements = Statements::prepare(&servers.session, &stack.keyspace).await?;
        let begun = Instant::now();
        write(&servers.session, &statements, &tried, way).await?;
        let seconds = begun.elapsed().as_secs_f64();
        stack.remove().await?;
        if best.is_none_or(|(least, _)| seconds < least) {
            best = Some((seconds, way));
        }
    }
    let (_, way) = best.context("there are ways")?;

    let stack = Stack::start(servers, program).await?;
    let statements = Statements::prepare(&servers.session, &stack.keyspace).await?;
    servers.settle().await?;
    let mut meters = vec![Meter::start("bare driver", std::process::id())?];
    meters.extend(servers.meters()?);
    let begun = Instant::now();
    write(&servers.session, &statements, &mutations, way).await?;
    let seconds = begun.elapsed().as_secs_f64();
    let usage = meters.iter().map(Meter::read).collect::<Result<_, _>>()?;
    let timeline_rows = format!("{}.timeline_rows", stack.keyspace);
    let found = table::count_rows(&servers.session, &timeline_rows, "account_id, subject, part").await?;
    ensure!(found == rows, "{found} rows are in the table, not {rows}");
    stack.remove().await?;
    Ok(Measured {
        name: "bare driver".to_owned(),
        how: format!(
            "{written} rows and {cells} cells; batches of up to {} rows and {} partitions, {} at a time",
            way.rows_max, way.partitions_max, way.in_flight
        ),
        records: mix.arrivals(),
        seconds,
        rows,
        usage,
    })
}

/// Rows that a mix has written: two an event, and of repeats those that were published before what had come first.
fn rows_of(mix: &Mix) -> std::ops::RangeInclusive<u64> {
    2 * mix.count()..=2 * mix.arrivals()
}

/// What the batches of a load write, in their order.
#[derive(Debug, Default)]
struct Mutations(Vec<Mutation>);

/// Rows of one partition.
#[derive(Clone, Debug)]
struct Group {
    timeline: TimelineId,
    part: u32,
    rows: Vec<RowWrite>,
}

/// One call of a store.
#[derive(Clone, Debug)]
enum Mutation {
    Rows(Timestamp, Vec<Group>),
    Tallies(TallyWrite),
    Known(Vec<TimelineId>),
}

impl Mutations {
    fn rows(&self) -> u64 {
        let groups = self.0.iter().filter_map(|mutation| match mutation {
            Mutation::Rows(_, groups) => Some(groups),
            _ => None,
        });
        groups.flatten().map(|group| group.rows.len() as u64).sum()
    }

    fn cells(&self) -> u64 {
        let cells = self.0.iter().map(|mutation| match mutation {
            Mutation::Tallies(write) => write.cells.len() as u64,
            _ => 0,
        });
        cells.sum()
    }

    /// The first of them: one in so many.
    fn part(&self, one_in: usize) -> Mutations {
        Mutations(self.0[..self.0.len().div_ceil(one_in)].to_vec())
    }
}

/// Runs a mix through *place* and *own*, and notes down what they write.
async fn record(mix: &Mix) -> anyhow::Result<Mutations> {
    let recorder = Arc::new(Recorder::default());
    let store: Arc<dyn EventStore> = recorder.clone();
    let now = Timestamp(now_ms()?);
    let clock: Clock = Arc::new(move || now);
    let filter = ListManagementFilter::parse("").map_err(anyhow::Error::msg)?;
    let mut place = Place::new(store.clone(), filter, RETENTION_MS);
    // Nothing is forgotten, so nothing is ever read.
    let settings =
        OwnerSettings { retention_ms: RETENTION_MS, keys_held_max: usize::MAX / 2, sizes: Sizes::default() };
    let mut owner = Owner::new(store, "recorded", settings);
    let mut writer = Writer::new(mix);
    let mut first = 0;
    while first < mix.arrivals() {
        let end = (first + PLACED_EVENTS).min(mix.arrivals());
        let values: Vec<Vec<u8>> = (first..end)
            .map(|arrival| {
                let mut value = Vec::new();
                writer.write(&mix.arrival(arrival), &mut value);
                value
            })
            .collect();
        let records: Vec<RawRecord<'_>> =
            values.iter().map(|value| RawRecord { value, appended_at: now }).collect();
        let placed = place.work(now, &records).await;
        ensure!(placed.refused.is_empty(), "an event is refused: {:?}", placed.refused[0]);
        let mut batches: Vec<OwnBatch> = (0..PARTITIONS.cast_signed())
            .map(|partition| OwnBatch { partition, claim: 1, rows: Vec::new() })
            .collect();
        for row in placed.rows {
            batches[row.timeline.partition(PARTITIONS) as usize].rows.push(row);
        }
        owner.work(&clock, batches).await;
        first = end;
    }
    Ok(Mutations(std::mem::take(&mut *recorder.noted())))
}

/// Writes mutations, so many batches at a time.
async fn write(
    session: &Session,
    statements: &Statements,
    mutations: &Mutations,
    way: Way,
) -> anyhow::Result<()> {
    let batches = mutations.0.iter().flat_map(|mutation| match mutation {
        Mutation::Rows(now, groups) => batches_of_rows(*now, groups, way),
        Mutation::Tallies(write) => vec![Values::Cells(values_of_cells(write))],
        Mutation::Known(timelines) => timelines
            .chunks(way.partitions_max)
            .map(|chunk| Values::Known(chunk.iter().map(values_of_known).collect()))
            .collect(),
    });
    stream::iter(batches.map(anyhow::Ok))
        .try_for_each_concurrent(way.in_flight, async |values| match values {
            Values::Rows(values) => execute(session, &statements.row, values).await,
            Values::Cells(values) => execute(session, &statements.cell, values).await,
            Values::Known(values) => execute(session, &statements.known, values).await,
        })
        .await
}

/// The values of one batch.
enum Values<'a> {
    Rows(Vec<RowValues<'a>>),
    Cells(Vec<CellValues<'a>>),
    Known(Vec<(&'a str, String)>),
}

type RowValues<'a> = (&'a str, String, i32, i8, i64, &'a str, &'a [u8], i32, i64);
type CellValues<'a> = (&'a str, String, i32, &'a [u8], i32, i64);

fn values_of_rows(now: Timestamp, group: &Group) -> impl Iterator<Item = RowValues<'_>> {
    let (account, subject) = (group.timeline.account.as_str(), group.timeline.subject.to_string());
    group.rows.iter().map(move |row| {
        let RowKey { position, event_type } = &row.key;
        let ttl_s = ((row.expires_at.0 - now.0 + 999) / 1000) as i32;
        (
            account,
            subject.clone(),
            group.part.cast_signed(),
            (*event_type as u8).cast_signed(),
            position.at.0,
            &*position.id,
            row.body.as_slice(),
            ttl_s,
            row.stamp,
        )
    })
}

fn values_of_cells(write: &TallyWrite) -> Vec<CellValues<'_>> {
    let (account, subject) = (write.timeline.account.as_str(), write.timeline.subject.to_string());
    let cells = write.cells.iter().map(|(cell, bytes)| {
        (
            account,
            subject.clone(),
            cell.cast_signed(),
            bytes.as_slice(),
            write.ttl_s.cast_signed(),
            write.stamp,
        )
    });
    cells.collect()
}

fn values_of_known(timeline: &TimelineId) -> (&str, String) {
    (timeline.account.as_str(), timeline.subject.to_string())
}

/// Rows in batches: those of a partition together, partitions with few rows together with others of few.
fn batches_of_rows(now: Timestamp, groups: &[Group], way: Way) -> Vec<Values<'_>> {
    let (mut batches, mut shared, mut partitions, mut bytes) = (Vec::new(), Vec::new(), 0, 0);
    for group in groups {
        let rows: Vec<_> = values_of_rows(now, group).collect();
        let rows_bytes: usize = rows.iter().map(|row| row.6.len() + ROW_OVERHEAD_BYTES).sum();
        if rows.len() >= ROWS_ALONE_MIN {
            let row_bytes = rows_bytes.div_ceil(rows.len());
            let together = way.rows_max.min((BATCH_BYTES_MAX / row_bytes).max(1));
            batches.extend(rows.chunks(together).map(|rows| Values::Rows(rows.to_vec())));
            continue;
        }
        let is_full = partitions == way.partitions_max
            || shared.len() + rows.len() > way.rows_max
            || bytes + rows_bytes > BATCH_BYTES_MAX;
        if is_full && !shared.is_empty() {
            batches.push(Values::Rows(std::mem::take(&mut shared)));
            (partitions, bytes) = (0, 0);
        }
        shared.extend(rows);
        partitions += 1;
        bytes += rows_bytes;
    }
    if !shared.is_empty() {
        batches.push(Values::Rows(shared));
    }
    batches
}

async fn execute<V: SerializeRow>(
    session: &Session,
    statement: &PreparedStatement,
    values: Vec<V>,
) -> anyhow::Result<()> {
    if let [values] = values.as_slice() {
        session.execute_unpaged(statement, values).await?;
        return Ok(());
    }
    let statements = vec![BatchStatement::PreparedStatement(statement.clone()); values.len()];
    let mut batch = Batch::new_with_statements(BatchType::Unlogged, statements);
    batch.set_is_idempotent(true);
    session.batch(&batch, values).await?;
    Ok(())
}

struct Statements {
    row: PreparedStatement,
    cell: PreparedStatement,
    known: PreparedStatement,
}

impl Statements {
    async fn prepare(session: &Session, keyspace: &str) -> anyhow::Result<Statements> {
        let row = format!(
            "INSERT INTO {keyspace}.timeline_rows (account_id, subject, part, type, occurred_at, event_id, body)
             VALUES (?, ?, ?, ?, ?, ?, ?) USING TTL ? AND TIMESTAMP ?"
        );
        let cell = format!(
            "INSERT INTO {keyspace}.tallies (account_id, subject, cell, bytes) VALUES (?, ?, ?, ?)
             USING TTL ? AND TIMESTAMP ?"
        );
        let known = format!(
            "INSERT INTO {keyspace}.tallies (account_id, subject, cell) VALUES (?, ?, -1) USING TIMESTAMP 1"
        );
        Ok(Statements {
            row: session.prepare(row).await?,
            cell: session.prepare(cell).await?,
            known: session.prepare(known).await?,
        })
    }
}

/// A store that holds nothing, and notes down what is written to it.
#[derive(Default)]
struct Recorder {
    noted: Mutex<Vec<Mutation>>,
}

impl Recorder {
    fn noted(&self) -> std::sync::MutexGuard<'_, Vec<Mutation>> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait::async_trait]
impl EventStore for Recorder {
    async fn write_rows(&self, now: Timestamp, groups: &[RowGroup<'_>]) -> Result<(), StoreError> {
        let groups = groups.iter().map(|group| Group {
            timeline: group.timeline.clone(),
            part: group.part,
            rows: group.rows.clone(),
        });
        self.noted().push(Mutation::Rows(now, groups.collect()));
        Ok(())
    }

    async fn write_tallies(&self, tallies: &[TallyWrite]) -> Result<(), StoreError> {
        self.noted().extend(tallies.iter().cloned().map(Mutation::Tallies));
        Ok(())
    }

    // Nothing is there to be read, so all must be held.
    fn writes_unseen(&self) -> bool {
        false
    }

    async fn read_heads(&self, timelines: &[TimelineId]) -> Result<Vec<Head>, StoreError> {
        Ok(vec![Head::default(); timelines.len()])
    }

    async fn mark_known(&self, timelines: &[TimelineId]) -> Result<(), StoreError> {
        self.noted().push(Mutation::Known(timelines.to_vec()));
        Ok(())
    }

    async fn take_epoch(&self, _scope: &str) -> Result<u64, StoreError> {
        Ok(1)
    }

    async fn read_epoch(&self, _scope: &str) -> Result<u64, StoreError> {
        Ok(1)
    }

    // Nothing is there.

    async fn read_rows(
        &self,
        _timeline: &TimelineId,
        _part: u32,
        _types: TypeSet,
        _span: &Span,
        _columns: Columns,
        _limit: usize,
    ) -> Result<Vec<StoredRow>, StoreError> {
        Ok(Vec::new())
    }

    async fn read_tallies(
        &self,
        _timeline: &TimelineId,
        cells: &[u32],
    ) -> Result<Vec<Option<StoredTally>>, StoreError> {
        Ok(vec![None; cells.len()])
    }

    async fn read_sends(&self, messages: &[(AccountId, Id)]) -> Result<Vec<Option<SendFacts>>, StoreError> {
        Ok(vec![None; messages.len()])
    }

    async fn read_waiting(
        &self,
        _from: &[WaitingFrom],
        _bytes_max: usize,
    ) -> Result<(Vec<Waiting>, Vec<WaitingFrom>), StoreError> {
        Ok((Vec::new(), Vec::new()))
    }

    async fn read_references(
        &self,
        keys: &[ReferenceKey],
    ) -> Result<Vec<Option<StoredReference>>, StoreError> {
        Ok(vec![None; keys.len()])
    }

    async fn is_known(&self, _timeline: &TimelineId) -> Result<bool, StoreError> {
        Ok(false)
    }

    async fn read_key(&self, _id: &str) -> Result<Option<KeyRecord>, StoreError> {
        Ok(None)
    }

    async fn list_keys(&self) -> Result<Vec<KeyRecord>, StoreError> {
        Ok(Vec::new())
    }

    async fn check(&self) -> Result<(), StoreError> {
        Ok(())
    }

    // What a mix never comes to.

    async fn delete_rows(
        &self,
        _timeline: &TimelineId,
        _part: u32,
        _keys: &[RowKey],
        _stamp: i64,
    ) -> Result<(), StoreError> {
        Ok(())
    }

    async fn write_sends(&self, _now: Timestamp, _sends: &[SendWrite]) -> Result<(), StoreError> {
        Ok(())
    }

    async fn put_waiting(&self, _now: Timestamp, _waiting: &[Waiting]) -> Result<(), StoreError> {
        Ok(())
    }

    async fn remove_waiting(&self, _waiting: &[Waiting]) -> Result<(), StoreError> {
        Ok(())
    }

    async fn write_references(&self, _references: &[ReferenceWrite]) -> Result<(), StoreError> {
        Ok(())
    }

    async fn write_key(&self, _key: &KeyRecord) -> Result<(), StoreError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mix::Shape;

    const NOW_MS: i64 = 1_790_000_000_000;

    async fn recorded(shape: Shape, events: u64) -> (Mix, Mutations) {
        let now_ms = now_ms().expect("a clock").max(NOW_MS);
        let mut mix = Mix::new(shape, "cmp", events, now_ms, 1);
        mix.account = Some("acme".to_owned());
        let mutations = record(&mix).await.expect("it is recorded");
        (mix, mutations)
    }

    #[tokio::test]
    async fn what_is_recorded_has_every_row_and_a_tree_where_it_is_large() {
        let (mix, mutations) = recorded(Shape::Giant, 9000).await;
        assert!(rows_of(&mix).contains(&mutations.rows()));
        assert!(mutations.cells() >= 2);
        let (mix, mutations) = recorded(Shape::Small, 3000).await;
        assert!(rows_of(&mix).contains(&mutations.rows()));
        assert_eq!(mutations.cells(), 0);
    }

    #[tokio::test]
    async fn batches_hold_every_row_and_keep_their_limits() {
        let (mix, mutations) = recorded(Shape::Mixed, 9000).await;
        let way = Way { rows_max: 50, partitions_max: 7, in_flight: 1 };
        let mut rows = 0;
        for mutation in &mutations.0 {
            let Mutation::Rows(now, groups) = mutation else { continue };
            for batch in batches_of_rows(*now, groups, way) {
                let Values::Rows(batch) = batch else { panic!("rows are what was asked for") };
                assert!((1..=50).contains(&batch.len()));
                let mut partitions: Vec<_> = batch.iter().map(|row| (row.1.clone(), row.2)).collect();
                partitions.dedup();
                assert!(partitions.len() <= 7);
                rows += batch.len() as u64;
            }
        }
        assert!(rows_of(&mix).contains(&rows));
    }
}

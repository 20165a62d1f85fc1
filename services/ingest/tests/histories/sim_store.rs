//! A store whose every request takes a random time and may fail, before or after it was applied.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use event_store::{
    Columns, EventStore, Head, ReferenceWrite, RowGroup, SendWrite, StoreError, StoredReference, StoredRow,
    TallyWrite, Waiting,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use timeline::key::KeyRecord;
use timeline::reference::ReferenceKey;
use timeline::row::RowKey;
use timeline::send::SendFacts;
use timeline::tally::{Counts, Node, ROOT_CELL, Root, Sizes};
use timeline::{AccountId, Id, Span, TimelineId, Timestamp, TypeSet};
use tokio::time::sleep;
use uuid::Uuid;

use super::Fault;

pub(crate) struct SimStore {
    state: Mutex<State>,
    fault: Fault,
}

type StampedCells = BTreeMap<(TimelineId, u32), (i64, Vec<u8>)>;

struct State {
    rng: StdRng,
    failing: bool,
    rows: BTreeMap<(TimelineId, u32, RowKey), (i64, Vec<u8>)>,
    tallies: StampedCells,
    sends: BTreeMap<(AccountId, Id), (i64, SendFacts)>,
    waiting: BTreeMap<(AccountId, Id, i64, Id), Waiting>,
    epochs: BTreeMap<String, u64>,
    known: BTreeSet<TimelineId>,
    /// Up to which stamp rows were deleted.
    deleted: BTreeMap<(TimelineId, u32, RowKey), i64>,
    forgotten: Vec<(AccountId, Uuid)>,
}

/// What becomes of a request.
#[derive(PartialEq)]
enum Fate {
    Done,
    /// It fails; it may have been applied all the same.
    Failed {
        applied: bool,
    },
}

impl SimStore {
    pub(crate) fn new(seed: u64, fault: Fault) -> SimStore {
        let state = State {
            rng: StdRng::seed_from_u64(seed),
            failing: true,
            rows: BTreeMap::new(),
            tallies: BTreeMap::new(),
            sends: BTreeMap::new(),
            waiting: BTreeMap::new(),
            epochs: BTreeMap::new(),
            known: BTreeSet::new(),
            deleted: BTreeMap::new(),
            forgotten: Vec::new(),
        };
        SimStore { state: Mutex::new(state), fault }
    }

    pub(crate) fn set_failing(&self, failing: bool) {
        self.state.lock().unwrap().failing = failing;
    }

    /// Remembers that a contact was forgotten.
    pub(crate) fn forget(&self, account: &AccountId, contact: Uuid) {
        self.state.lock().unwrap().forgotten.push((account.clone(), contact));
    }

    /// Makes every number of every tree none, with the stamp that it has. Returns whose are wrong by that.
    pub(crate) fn spoil_tallies(&self) -> Vec<TimelineId> {
        let mut state = self.state.lock().unwrap();
        let mut spoiled = BTreeSet::new();
        for ((id, cell), (_, bytes)) in &mut state.tallies {
            if *cell == ROOT_CELL {
                let mut root = Root::decode(bytes).unwrap();
                for entry in &mut root.entries {
                    if entry.counts.all() > 0 {
                        spoiled.insert(id.clone());
                    }
                    entry.counts = Counts::default();
                }
                *bytes = root.encode();
            } else {
                let span = Node::decode(bytes).unwrap().span;
                *bytes = Node::of_rows(span, &[], &Sizes::default()).encode();
            }
        }
        spoiled.into_iter().collect()
    }

    /// Takes a random time, and draws what becomes of the request.
    async fn request(&self) -> Fate {
        let ms = {
            let rng = &mut self.state.lock().unwrap().rng;
            // Now and then one takes long enough to overlap whatever comes after it.
            if rng.random_bool(0.05) { rng.random_range(50..2000) } else { rng.random_range(1..20) }
        };
        sleep(Duration::from_millis(ms)).await;
        let mut state = self.state.lock().unwrap();
        if state.failing && state.rng.random_bool(0.04) {
            Fate::Failed { applied: state.rng.random() }
        } else {
            Fate::Done
        }
    }

    async fn write(&self, statement: &'static str, apply: impl FnOnce(&mut State)) -> Result<(), StoreError> {
        let fate = self.request().await;
        if fate != (Fate::Failed { applied: false }) {
            apply(&mut self.state.lock().unwrap());
        }
        if fate == Fate::Done { Ok(()) } else { Err(StoreError::new(statement, "simulated")) }
    }

    async fn read<T>(
        &self,
        statement: &'static str,
        read: impl FnOnce(&State) -> T,
    ) -> Result<T, StoreError> {
        match self.request().await {
            Fate::Done => Ok(read(&self.state.lock().unwrap())),
            Fate::Failed { .. } => Err(StoreError::new(statement, "simulated")),
        }
    }
}

#[async_trait]
impl EventStore for SimStore {
    async fn write_rows(&self, _now: Timestamp, groups: &[RowGroup<'_>]) -> Result<(), StoreError> {
        for group in groups {
            for row in &group.rows {
                self.write("write_rows", |state| {
                    let cell = (group.timeline.clone(), group.part, row.key.clone());
                    if state.deleted.get(&cell).is_some_and(|deleted| row.stamp <= *deleted) {
                        return;
                    }
                    let cell = state.rows.entry(cell);
                    let held = cell.or_insert((i64::MIN, Vec::new()));
                    if row.stamp > held.0 {
                        *held = (row.stamp, row.body.clone());
                    }
                })
                .await?;
            }
        }
        Ok(())
    }

    async fn delete_rows(
        &self,
        timeline: &TimelineId,
        part: u32,
        keys: &[RowKey],
        stamp: i64,
    ) -> Result<(), StoreError> {
        self.write("delete_rows", |state| {
            for key in keys {
                let cell = (timeline.clone(), part, key.clone());
                if state.rows.get(&cell).is_some_and(|held| held.0 <= stamp) {
                    state.rows.remove(&cell);
                }
                let deleted = state.deleted.entry(cell).or_insert(stamp);
                *deleted = stamp.max(*deleted);
            }
        })
        .await
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
        let missed = self.fault == Fault::MemoryOnly && columns == Columns::Keys && *span != Span::all();
        self.read("read_rows", |state| {
            let inside = state.rows.iter().filter(|((id, at, key), _)| {
                id == timeline
                    && *at == part
                    && types.contains(key.event_type)
                    && span.contains(&key.position)
            });
            let mut rows: Vec<StoredRow> = inside
                .map(|((_, _, key), (_, body))| StoredRow { key: key.clone(), body: body.clone() })
                .collect();
            rows.sort_by(|one, next| {
                next.key.position.cmp(&one.key.position).then(one.key.event_type.cmp(&next.key.event_type))
            });
            if missed { Vec::new() } else { rows }
        })
        .await
    }

    async fn list_forgotten(&self) -> Result<Vec<(AccountId, Uuid)>, StoreError> {
        self.read("list_forgotten", |state| state.forgotten.clone()).await
    }

    async fn write_tallies(&self, tallies: &[TallyWrite]) -> Result<(), StoreError> {
        for tallies in tallies {
            self.write("write_tallies", |state| {
                for (cell, bytes) in &tallies.cells {
                    let held = state.tallies.entry((tallies.timeline.clone(), *cell));
                    let held = held.or_insert((i64::MIN, Vec::new()));
                    if tallies.stamp >= held.0 || self.fault == Fault::NoEpoch {
                        *held = (tallies.stamp, bytes.clone());
                    }
                }
            })
            .await?;
        }
        Ok(())
    }

    async fn read_heads(&self, timelines: &[TimelineId]) -> Result<Vec<Head>, StoreError> {
        let mut heads = Vec::new();
        for id in timelines {
            let known = self.is_known(id).await?;
            let root = self.read_tallies(id, &[ROOT_CELL]).await?.remove(0);
            heads.push(Head { known, root: root.filter(|_| known) });
        }
        Ok(heads)
    }

    async fn read_tallies(
        &self,
        timeline: &TimelineId,
        cells: &[u32],
    ) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        self.read("read_tallies", |state| {
            cells
                .iter()
                .map(|cell| state.tallies.get(&(timeline.clone(), *cell)).map(|(_, bytes)| bytes.clone()))
                .collect()
        })
        .await
    }

    async fn write_sends(&self, _now: Timestamp, sends: &[SendWrite]) -> Result<(), StoreError> {
        for send in sends {
            self.write("write_sends", |state| {
                let held = state.sends.entry((send.account.clone(), send.message.clone()));
                let held = held.or_insert_with(|| (i64::MIN, send.facts.clone()));
                if send.stamp > held.0 {
                    *held = (send.stamp, send.facts.clone());
                }
            })
            .await?;
        }
        Ok(())
    }

    async fn read_sends(&self, messages: &[(AccountId, Id)]) -> Result<Vec<Option<SendFacts>>, StoreError> {
        self.read("read_sends", |state| {
            messages.iter().map(|key| state.sends.get(key).map(|(_, facts)| facts.clone())).collect()
        })
        .await
    }

    async fn put_waiting(&self, _now: Timestamp, waiting: &[Waiting]) -> Result<(), StoreError> {
        for waiting in waiting {
            self.write("put_waiting", |state| {
                let key =
                    (waiting.account.clone(), waiting.message.clone(), waiting.at.0, waiting.id.clone());
                state.waiting.insert(key, waiting.clone());
            })
            .await?;
        }
        Ok(())
    }

    async fn read_waiting(&self, messages: &[(AccountId, Id)]) -> Result<Vec<Waiting>, StoreError> {
        self.read("read_waiting", |state| {
            let waits =
                |waiting: &&Waiting| messages.contains(&(waiting.account.clone(), waiting.message.clone()));
            state.waiting.values().filter(waits).cloned().collect()
        })
        .await
    }

    async fn remove_waiting(&self, waiting: &[Waiting]) -> Result<(), StoreError> {
        for waiting in waiting {
            self.write("remove_waiting", |state| {
                state.waiting.remove(&(
                    waiting.account.clone(),
                    waiting.message.clone(),
                    waiting.at.0,
                    waiting.id.clone(),
                ));
            })
            .await?;
        }
        Ok(())
    }

    async fn write_references(&self, _references: &[ReferenceWrite]) -> Result<(), StoreError> {
        Ok(())
    }

    async fn read_references(
        &self,
        keys: &[ReferenceKey],
    ) -> Result<Vec<Option<StoredReference>>, StoreError> {
        Ok(vec![None; keys.len()])
    }

    async fn mark_known(&self, timelines: &[TimelineId]) -> Result<(), StoreError> {
        self.write("mark_known", |state| state.known.extend(timelines.iter().cloned())).await
    }

    async fn is_known(&self, timeline: &TimelineId) -> Result<bool, StoreError> {
        self.read("is_known", |state| state.known.contains(timeline)).await
    }

    async fn take_epoch(&self, scope: &str) -> Result<u64, StoreError> {
        let mut taken = 0;
        self.write("take_epoch", |state| {
            let epoch = state.epochs.entry(scope.to_owned()).or_default();
            *epoch += 1;
            taken = *epoch;
        })
        .await?;
        Ok(taken)
    }

    async fn write_key(&self, _key: &KeyRecord) -> Result<(), StoreError> {
        Ok(())
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
}

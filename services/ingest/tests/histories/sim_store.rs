//! A store whose every request takes its own random time and may fail: nothing came of it, or it landed unheard, or it lands later.
//! As in the real ones, the write with the greater stamp stays, whatever comes last; and what has a life ends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use event_store::{
    Columns, EventStore, Head, ReferenceWrite, RowGroup, SendWrite, StoreError, StoredReference, StoredRow,
    StoredTally, TallyWrite, Waiting, WaitingFrom,
};
use ingest::own::ROW_GRACE_MS;
use timeline::key::KeyRecord;
use timeline::reference::ReferenceKey;
use timeline::row::RowKey;
use timeline::send::SendFacts;
use timeline::tally::{ROOT_CELL, Root};
use timeline::{AccountId, Id, Span, TimelineId, Timestamp, TypeSet};
use uuid::Uuid;

use super::RETENTION_MS;
use super::fault::Fault;
use super::sim::Sim;

/// How long a copy may be behind, where it may.
const BEHIND_MS: i64 = 1500;

/// The store as one process sees it.
pub(crate) struct SimStore {
    sim: Sim,
    state: Arc<Mutex<State>>,
    /// How far this process's clock is ahead.
    skew_ms: i64,
    /// What was known of sends before their events were put to wait, where it is believed.
    looked: Mutex<BTreeMap<Message, Option<SendFacts>>>,
    /// Whether rows are written that failed before.
    again: Mutex<bool>,
}

type Message = (AccountId, Id);

/// The last write of something, and how long it lives; without a value it is deleted.
struct Cell<T> {
    stamp: i64,
    written_at: Timestamp,
    until: Timestamp,
    value: Option<T>,
}

#[derive(Default)]
struct State {
    rows: BTreeMap<(TimelineId, u32, RowKey), Cell<Vec<u8>>>,
    tallies: BTreeMap<(TimelineId, u32), Cell<Vec<u8>>>,
    sends: BTreeMap<Message, Cell<SendFacts>>,
    waiting: BTreeMap<(Message, i64, Id), Cell<Waiting>>,
    references: BTreeMap<ReferenceKey, [Cell<Box<str>>; 3]>,
    known: BTreeSet<TimelineId>,
    promised: BTreeSet<TimelineId>,
    epochs: BTreeMap<String, u64>,
    forgotten: Vec<(AccountId, Uuid)>,
    /// Counts what arrives, where that is the stamp.
    arrived: i64,
}

/// Writes a cell, if nothing greater stands there.
fn put<K: Ord, T>(cells: &mut BTreeMap<K, Cell<T>>, key: K, cell: Cell<T>) {
    match cells.get_mut(&key) {
        Some(held) if cell.stamp > held.stamp => *held = cell,
        Some(_) => {}
        None => {
            cells.insert(key, cell);
        }
    }
}

impl<T> Cell<T> {
    fn alive(&self, now: Timestamp) -> Option<&T> {
        self.value.as_ref().filter(|_| now < self.until)
    }
}

impl SimStore {
    pub(crate) fn new(sim: &Sim) -> SimStore {
        SimStore::with(sim, Arc::default(), 0)
    }

    /// The same store, for a process whose clock is ahead by `skew_ms`.
    pub(crate) fn handle(&self, skew_ms: i64) -> SimStore {
        SimStore::with(&self.sim, self.state.clone(), skew_ms)
    }

    fn with(sim: &Sim, state: Arc<Mutex<State>>, skew_ms: i64) -> SimStore {
        SimStore { sim: sim.clone(), state, skew_ms, looked: Mutex::default(), again: Mutex::new(false) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Remembers that a contact was forgotten.
    pub(crate) fn forget(&self, account: &AccountId, contact: Uuid) {
        self.state().forgotten.push((account.clone(), contact));
    }

    /// The positions and types of all rows that live.
    pub(crate) fn living_rows(&self) -> Vec<(TimelineId, RowKey)> {
        let now = self.sim.now();
        let state = self.state();
        let living = state.rows.iter().filter(|(_, cell)| cell.alive(now).is_some());
        living.map(|((id, _, key), _)| (id.clone(), key.clone())).collect()
    }

    /// The ids of events that wait.
    pub(crate) fn waiting_ids(&self) -> BTreeSet<String> {
        let now = self.sim.now();
        let state = self.state();
        let waiting = state.waiting.iter().filter(|(_, cell)| cell.alive(now).is_some());
        waiting.map(|((_, _, id), _)| id.to_string()).collect()
    }

    /// A request that changes the store.
    async fn write(
        &self,
        statement: &'static str,
        apply: impl FnOnce(&mut State) + Send + 'static,
    ) -> Result<(), StoreError> {
        let state = self.state.clone();
        if self.sim.write(move || apply(&mut state.lock().unwrap())).await {
            Ok(())
        } else {
            Err(StoreError::new(statement, "simulated"))
        }
    }

    /// Now and then the process stands still. For what a promise is for, more often than a request takes long.
    async fn stall(&self) {
        if self.sim.chance(0.3) {
            self.sim.pause(50..2000).await;
        }
    }

    async fn read<T>(
        &self,
        statement: &'static str,
        read: impl FnOnce(&State, Timestamp) -> T,
    ) -> Result<T, StoreError> {
        if self.sim.read().await {
            Ok(read(&self.state(), self.sim.now()))
        } else {
            Err(StoreError::new(statement, "simulated"))
        }
    }

    /// A cell that the caller's clock says to live until `expires_at`: the store is told how long.
    fn cell<T>(&self, now: Timestamp, stamp: i64, expires_at: Timestamp, value: Option<T>) -> Cell<T> {
        let written_at = self.sim.now();
        Cell { stamp, written_at, until: written_at.plus_ms(expires_at.0 - now.0), value }
    }
}

#[async_trait]
impl EventStore for SimStore {
    async fn write_rows(&self, now: Timestamp, groups: &[RowGroup<'_>]) -> Result<(), StoreError> {
        let fault = self.sim.fault;
        let is_again = std::mem::take(&mut *self.again.lock().unwrap());
        let mut cells = Vec::new();
        for group in groups {
            for row in group.rows.iter().filter(|row| now < row.expires_at) {
                let expires_at = match fault {
                    Fault::LifeFromNow => now.plus_ms(RETENTION_MS + ROW_GRACE_MS),
                    _ => row.expires_at,
                };
                let key = (group.timeline.clone(), group.part, row.key.clone());
                cells.push((key, self.cell(now, row.stamp, expires_at, Some(row.body.clone()))));
            }
        }
        if is_again && fault == Fault::RetryDropsRow {
            cells.pop();
        }
        for (key, cell) in cells {
            let written = self.write("write_rows", move |state| put(&mut state.rows, key, cell)).await;
            if written.is_err() && fault != Fault::CountBeforeAcknowledged {
                *self.again.lock().unwrap() = true;
                return written;
            }
        }
        Ok(())
    }

    async fn list_forgotten(&self) -> Result<Vec<(AccountId, Uuid)>, StoreError> {
        self.read("list_forgotten", |state, _| state.forgotten.clone()).await
    }

    async fn delete_rows(
        &self,
        timeline: &TimelineId,
        part: u32,
        keys: &[RowKey],
        stamp: i64,
    ) -> Result<(), StoreError> {
        for key in keys {
            let key = (timeline.clone(), part, key.clone());
            let (written_at, until) = (self.sim.now(), Timestamp(i64::MAX));
            let deletes = move |state: &mut State| {
                // Of a write and a deletion with one stamp the deletion stays.
                let cell = Cell { stamp, written_at, until, value: None };
                match state.rows.get_mut(&key) {
                    Some(held) if held.stamp <= stamp => *held = cell,
                    Some(_) => {}
                    None => {
                        state.rows.insert(key, cell);
                    }
                }
            };
            self.write("delete_rows", deletes).await?;
        }
        Ok(())
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
        let is_count = columns == Columns::Keys && *span != Span::all();
        let fault = Some(self.sim.fault).filter(|_| is_count);
        self.read("read_rows", |state, now| {
            let inside = state.rows.iter().filter(|((id, at, key), cell)| {
                id == timeline
                    && *at == part
                    && types.contains(key.event_type)
                    && span.contains(&key.position)
                    && fault != Some(Fault::MemoryOnly)
                    && (fault != Some(Fault::StaleCount) || cell.written_at.plus_ms(BEHIND_MS) < now)
            });
            let living = inside.filter_map(|((_, _, key), cell)| {
                Some(StoredRow { key: key.clone(), body: cell.alive(now)?.clone() })
            });
            let mut rows: Vec<StoredRow> = living.collect();
            rows.sort_by(|one, next| {
                next.key.position.cmp(&one.key.position).then(one.key.event_type.cmp(&next.key.event_type))
            });
            rows
        })
        .await
    }

    async fn write_tallies(&self, tallies: &[TallyWrite]) -> Result<(), StoreError> {
        let fault = self.sim.fault;
        for TallyWrite { timeline, stamp, ttl_s, cells } in tallies.iter().cloned() {
            let now = self.sim.now();
            let until = now.plus_ms(i64::from(ttl_s) * 1000);
            let clock = now.plus_ms(self.skew_ms).0;
            let writes = move |state: &mut State| {
                state.arrived += 1;
                let stamp = match fault {
                    Fault::NoEpoch => state.arrived,
                    Fault::StampWhenSent => (stamp >> 26 << 26) + state.arrived,
                    Fault::StampFromClock => clock,
                    _ => stamp,
                };
                for (cell, bytes) in cells {
                    if fault == Fault::TreelessUnsaid && bytes == Root::NONE {
                        continue;
                    }
                    let written = Cell { stamp, written_at: now, until, value: Some(bytes) };
                    put(&mut state.tallies, (timeline.clone(), cell), written);
                }
            };
            self.write("write_tallies", writes).await?;
        }
        Ok(())
    }

    async fn read_heads(&self, timelines: &[TimelineId]) -> Result<Vec<Head>, StoreError> {
        let mut heads = Vec::new();
        for id in timelines {
            let known = self.is_known(id).await?;
            let is_read = self.sim.fault != Fault::PromiseUnread;
            let promised = self.read("read_heads", |state, _| is_read && state.promised.contains(id)).await?;
            let root = self.read_tallies(id, &[ROOT_CELL]).await?.remove(0);
            heads.push(Head { known, promised, root: root.filter(|_| known).map(|root| root.bytes) });
        }
        Ok(heads)
    }

    async fn read_tallies(
        &self,
        timeline: &TimelineId,
        cells: &[u32],
    ) -> Result<Vec<Option<StoredTally>>, StoreError> {
        self.read("read_tallies", |state, now| {
            let cell = |cell: &u32| {
                let stored = state.tallies.get(&(timeline.clone(), *cell))?;
                // To a reader a node then looks as it did whenever it saw it.
                let is_undated = self.sim.fault == Fault::SeenIsTrusted && *cell != ROOT_CELL;
                let stamp = if is_undated { 0 } else { stored.stamp };
                Some(StoredTally { stamp, bytes: stored.alive(now)?.clone() })
            };
            cells.iter().map(cell).collect()
        })
        .await
    }

    async fn write_sends(&self, now: Timestamp, sends: &[SendWrite]) -> Result<(), StoreError> {
        for send in sends {
            let key = (send.account.clone(), send.message.clone());
            let cell = self.cell(now, send.stamp, send.expires_at, Some(send.facts.clone()));
            self.write("write_sends", move |state| put(&mut state.sends, key, cell)).await?;
        }
        Ok(())
    }

    async fn read_sends(&self, messages: &[Message]) -> Result<Vec<Option<SendFacts>>, StoreError> {
        let looked = std::mem::take(&mut *self.looked.lock().unwrap());
        self.read("read_sends", |state, now| {
            let facts = |key: &Message| match looked.get(key) {
                Some(looked) => looked.clone(),
                None => state.sends.get(key)?.alive(now).cloned(),
            };
            messages.iter().map(facts).collect()
        })
        .await
    }

    async fn put_waiting(&self, now: Timestamp, waiting: &[Waiting]) -> Result<(), StoreError> {
        for waiting in waiting {
            let message = (waiting.account.clone(), waiting.message.clone());
            if self.sim.fault == Fault::LookThenWait {
                let facts = self.state().sends.get(&message).and_then(|cell| cell.value.clone());
                self.looked.lock().unwrap().entry(message.clone()).or_insert(facts);
            }
            let key = (message, waiting.at.0, waiting.id.clone());
            let stamp = self.sim.now().0;
            let cell = self.cell(now, stamp, waiting.expires_at, Some(waiting.clone()));
            self.write("put_waiting", move |state| put(&mut state.waiting, key, cell)).await?;
        }
        Ok(())
    }

    async fn read_waiting(
        &self,
        from: &[WaitingFrom],
        _bytes_max: usize,
    ) -> Result<(Vec<Waiting>, Vec<WaitingFrom>), StoreError> {
        // Few at a time: there are few.
        let (mut found, mut more) = (Vec::new(), Vec::new());
        self.read("read_waiting", |state, now| {
            for from in from {
                let message = (from.account.clone(), from.message.clone());
                let first = found.len();
                let waits = |((of, at, id), cell): (&(Message, i64, Id), &Cell<Waiting>)| {
                    let is_behind =
                        from.after.as_ref().is_none_or(|after| *after < (Timestamp(*at), id.clone()));
                    if *of == message && is_behind { cell.alive(now).cloned() } else { None }
                };
                for waiting in state.waiting.iter().filter_map(waits) {
                    if found.len() == 2 {
                        more.push(from.behind(&found[first..]));
                        break;
                    }
                    found.push(waiting);
                }
            }
        })
        .await?;
        Ok((found, more))
    }

    async fn remove_waiting(&self, waiting: &[Waiting]) -> Result<(), StoreError> {
        for waiting in waiting {
            let key = ((waiting.account.clone(), waiting.message.clone()), waiting.at.0, waiting.id.clone());
            let now = self.sim.now();
            // A deletion beats a write of the same instant.
            let cell = Cell { stamp: now.0 + 1, written_at: now, until: Timestamp(i64::MAX), value: None };
            self.write("remove_waiting", move |state| put(&mut state.waiting, key, cell)).await?;
        }
        Ok(())
    }

    async fn write_references(&self, references: &[ReferenceWrite]) -> Result<(), StoreError> {
        for ReferenceWrite { reference, stamp } in references.iter().cloned() {
            let (written_at, until) = (self.sim.now(), Timestamp(i64::MAX));
            let writes = move |state: &mut State| {
                let empty = || Cell { stamp: i64::MIN, written_at, until, value: None };
                let fields =
                    state.references.entry(reference.key).or_insert_with(|| [empty(), empty(), empty()]);
                let deleted = Some(Box::from(if reference.deleted { "yes" } else { "no" }));
                for (field, value) in fields.iter_mut().zip([reference.name, reference.email, deleted]) {
                    if value.is_some() && stamp > field.stamp {
                        *field = Cell { stamp, written_at, until, value };
                    }
                }
            };
            self.write("write_references", writes).await?;
        }
        Ok(())
    }

    async fn read_references(
        &self,
        keys: &[ReferenceKey],
    ) -> Result<Vec<Option<StoredReference>>, StoreError> {
        self.read("read_references", |state, _| {
            let stored = |key: &ReferenceKey| {
                let [name, email, deleted] = state.references.get(key)?;
                Some(StoredReference {
                    name: name.value.clone(),
                    email: email.value.clone(),
                    deleted: deleted.value.as_deref() == Some("yes"),
                })
            };
            keys.iter().map(stored).collect()
        })
        .await
    }

    fn writes_unseen(&self) -> bool {
        self.sim.writes_unseen
    }

    async fn promise_trees(&self, timelines: &[TimelineId]) -> Result<(), StoreError> {
        self.stall().await;
        for id in timelines.iter().cloned() {
            let promises = |state: &mut State| {
                state.promised.insert(id);
            };
            if self.sim.fault == Fault::PromiseUnacknowledged {
                let (sim, state) = (self.sim.clone(), self.state.clone());
                tokio::spawn(async move {
                    sim.pause(50..3000).await;
                    promises(&mut state.lock().unwrap());
                });
                continue;
            }
            self.write("promise_trees", promises).await?;
        }
        Ok(())
    }

    async fn mark_known(&self, timelines: &[TimelineId]) -> Result<(), StoreError> {
        for id in timelines.iter().cloned() {
            self.write("mark_known", move |state| {
                state.known.insert(id);
            })
            .await?;
        }
        Ok(())
    }

    async fn is_known(&self, timeline: &TimelineId) -> Result<bool, StoreError> {
        self.read("is_known", |state, _| state.known.contains(timeline)).await
    }

    async fn take_epoch(&self, scope: &str) -> Result<u64, StoreError> {
        let taken = Arc::new(Mutex::new(0));
        let (given, scope) = (taken.clone(), scope.to_owned());
        let takes = move |state: &mut State| {
            let epoch = state.epochs.entry(scope).or_default();
            *epoch += 1;
            *given.lock().unwrap() = *epoch;
        };
        self.write("take_epoch", takes).await?;
        let taken = *taken.lock().unwrap();
        Ok(taken)
    }

    async fn read_epoch(&self, scope: &str) -> Result<u64, StoreError> {
        let is_read = self.sim.fault != Fault::EpochUnread;
        let epoch = |state: &State, _| state.epochs.get(scope).copied().filter(|_| is_read).unwrap_or(0);
        let read = self.read("read_epoch", epoch).await;
        self.stall().await;
        read
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

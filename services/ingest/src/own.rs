//! *Own*: the second stage. Whoever holds a partition of the internal topic alone writes the rows and tallies of its timelines.
//!
//! For each batch: take the touched timelines over (once, then they are held), count the touched leaves by their rows, write the
//! rows that are new, and once those are acknowledged count them, and write the numbers as absolute values under a stamp
//! that no earlier owner can exceed. Only then may the caller commit the batch's offsets. See [`timeline::tally`] for why this is exact.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use event_store::{Columns, EventStore, RowGroup, RowWrite, StoreError, TallyWrite};
use futures::stream::{self, StreamExt, TryStreamExt};
use telemetry::metrics;
use timeline::row::{PlacedRow, RowKey};
use timeline::tally::{FIRST_PART, LeafRead, Node, NodeRead, ROOT_CELL, Root, Sizes, Tree};
use timeline::time::DAY_MS;
use timeline::{Position, Span, TimelineId, Timestamp, TypeSet};

use crate::retry::until_done;

/// How many requests for different timelines are under way at once.
const STORE_REQUESTS_MAX: usize = 64;
/// How long a row outlives its retention, in milliseconds: the query cuts first.
pub const ROW_GRACE_MS: i64 = DAY_MS;
/// Write stamps that an epoch leases: 2^26.
const EPOCH_STAMPS: i64 = 1 << 26;
/// A partition is taken over anew before its stamps run out; no batch needs as many.
const STAMPS_LEFT_MIN: i64 = 1 << 20;
/// What a timeline that is held costs beside its keys, in keys.
const TIMELINE_COST_KEYS: usize = 8;
/// How often memory is looked at.
const FORGET_EVERY_BATCHES: u64 = 16;

/// How an owner is set up.
#[derive(Clone, Copy, Debug)]
pub struct OwnerSettings {
    /// How long rows are kept, in milliseconds of event time.
    pub retention_ms: i64,
    /// Row keys held in memory, some 100 bytes each; beyond it timelines that were not touched lately are forgotten, and counted
    /// again when next touched.
    pub keys_held_max: usize,
    /// The sizes at which trees grow.
    pub sizes: Sizes,
}

/// Rows of one partition, in their order, and the claim under which they were read.
#[derive(Debug)]
pub struct OwnBatch {
    /// The partition of the internal topic.
    pub partition: i32,
    /// The number of its assignment: where it changes, the partition is taken over anew.
    pub claim: u64,
    /// The rows.
    pub rows: Vec<PlacedRow>,
}

/// The owner of some partitions' timelines.
pub struct Owner {
    store: Arc<dyn EventStore>,
    settings: OwnerSettings,
    /// Names the log whose partitions these are: epochs are counted apart.
    scope: String,
    partitions: HashMap<i32, Partition>,
    batch: u64,
}

/// A partition that is held.
struct Partition {
    claim: u64,
    /// The last stamp that was used, and the last one leased.
    stamp: i64,
    stamps_end: i64,
    timelines: HashMap<TimelineId, Held>,
}

/// A timeline that is held.
struct Held {
    tree: Tree,
    /// Whether the tree is stored. One of few rows is not: its timeline is read whole.
    stored: bool,
    /// The batch that last touched it.
    used: u64,
}

/// A timeline of the batch in work.
struct Touched {
    partition: i32,
    id: TimelineId,
    held: Held,
    rows: Vec<PlacedRow>,
}

type ByTimeline = BTreeMap<(i32, TimelineId), Vec<PlacedRow>>;

/// What a batch came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owned {
    /// Events whose counting row was new.
    pub projected: u64,
    /// Events whose counting row was there.
    pub duplicate: u64,
    /// Events past retention by now.
    pub expired: u64,
}

impl Owner {
    /// The owner of nothing yet. `scope` names the topic.
    pub fn new(store: Arc<dyn EventStore>, scope: impl Into<String>, settings: OwnerSettings) -> Owner {
        Owner { store, settings, scope: scope.into(), partitions: HashMap::new(), batch: 0 }
    }

    /// Lets go of what is no longer ours.
    pub fn keep_only(&mut self, claims: &HashMap<i32, u64>) {
        self.partitions.retain(|partition, held| claims.get(partition) == Some(&held.claim));
    }

    /// Writes and counts a batch; returns when all of it is acknowledged. Tries without end. A partition that was not taken over under
    /// its claim is so first.
    pub async fn work(&mut self, now: Timestamp, batches: Vec<OwnBatch>) -> Owned {
        self.batch += 1;
        let new = batches.iter().map(|batch| (batch.partition, batch.claim));
        let new: Vec<(i32, u64)> = new.filter(|(partition, claim)| !self.holds(*partition, *claim)).collect();
        self.take_over(&new).await;
        let mut owned = Owned::default();
        let (by_timeline, of_expired) = self.group(now, batches, &mut owned);
        if !of_expired.is_empty() {
            let of_expired: Vec<TimelineId> = of_expired.into_iter().collect();
            until_done("mark_known", || self.store.mark_known(&of_expired)).await;
        }
        let mut touched = self.touch(by_timeline).await;

        let (mut groups, mut new) = (Vec::new(), Vec::new());
        for timeline in &mut touched {
            new.push(self.sort_out(timeline, &mut groups, &mut owned));
        }
        if !groups.is_empty() {
            until_done("write_rows", || self.store.write_rows(now, &groups)).await;
        }
        // Acknowledged: now they count.
        let mut writes = Vec::new();
        for (timeline, keys) in touched.iter_mut().zip(new) {
            timeline.held.tree.insert(keys);
            writes.extend(self.tallies_of(now, timeline));
        }
        stream::iter(&writes)
            .for_each_concurrent(STORE_REQUESTS_MAX, |write| {
                until_done("write_tallies", || self.store.write_tallies(write))
            })
            .await;

        for Touched { partition, id, held, .. } in touched {
            if let Some(partition) = self.partitions.get_mut(&partition) {
                partition.timelines.insert(id, held);
            }
        }
        self.forget();
        for (outcome, count) in
            [("projected", owned.projected), ("duplicate", owned.duplicate), ("expired", owned.expired)]
        {
            metrics::EVENTS.with_label_values(&[outcome]).inc_by(count);
        }
        owned
    }

    /// Whether a partition was taken over under `claim`, and has stamps left.
    pub fn holds(&self, partition: i32, claim: u64) -> bool {
        let held = self.partitions.get(&partition).filter(|held| held.claim == claim);
        held.is_some_and(|held| held.stamps_end - held.stamp > STAMPS_LEFT_MIN)
    }

    /// Takes partitions over, each under its claim: an epoch of its own, and nothing held yet. Whoever shares the log with others must
    /// then make sure that the claims are still current, and not work under those that are not: else an owner that was stopped
    /// between its claim and its epoch would outrank its successor.
    pub async fn take_over(&mut self, claims: &[(i32, u64)]) {
        let epochs: Vec<i64> = stream::iter(claims.to_vec())
            .map(|(partition, _)| self.take_epoch(partition))
            .buffered(STORE_REQUESTS_MAX)
            .collect()
            .await;
        for ((partition, claim), epoch) in claims.iter().zip(epochs) {
            tracing::info!(partition, epoch, "took a partition over");
            let stamp = epoch * EPOCH_STAMPS;
            let held = Partition {
                claim: *claim,
                stamp,
                stamps_end: stamp + EPOCH_STAMPS - 1,
                timelines: HashMap::new(),
            };
            self.partitions.insert(*partition, held);
        }
    }

    async fn take_epoch(&self, partition: i32) -> i64 {
        let scope = format!("{}/{partition}", self.scope);
        let epoch = until_done("take_epoch", || self.store.take_epoch(&scope)).await;
        i64::try_from(epoch).unwrap_or(i64::MAX / EPOCH_STAMPS)
    }

    /// The rows by timeline, less what has expired; and the timelines of what has, which exist all the same.
    fn group(
        &self,
        now: Timestamp,
        batches: Vec<OwnBatch>,
        owned: &mut Owned,
    ) -> (ByTimeline, BTreeSet<TimelineId>) {
        let (mut by_timeline, mut of_expired) = (ByTimeline::new(), BTreeSet::new());
        for OwnBatch { partition, rows, .. } in batches {
            for row in rows {
                if row.key.position.at.plus_ms(self.settings.retention_ms) < now {
                    owned.expired += u64::from(row.counts);
                    of_expired.insert(row.timeline);
                } else {
                    by_timeline.entry((partition, row.timeline.clone())).or_default().push(row);
                }
            }
        }
        (by_timeline, of_expired)
    }

    /// Brings the batch's timelines in, with every node and leaf that its rows fall in. They leave their partition's map meanwhile.
    async fn touch(&mut self, by_timeline: ByTimeline) -> Vec<Touched> {
        for (partition, id, held) in until_done("load", || self.load(&by_timeline)).await {
            if let Some(partition) = self.partitions.get_mut(&partition) {
                partition.timelines.insert(id, held);
            }
        }
        let mut touched = Vec::with_capacity(by_timeline.len());
        for ((partition, id), rows) in by_timeline {
            let held =
                self.partitions.get_mut(&partition).and_then(|partition| partition.timelines.remove(&id));
            if let Some(mut held) = held {
                held.used = self.batch;
                touched.push(Touched { partition, id, held, rows });
            }
        }
        stream::iter(touched)
            .map(|timeline| self.count_touched(timeline))
            .buffered(STORE_REQUESTS_MAX)
            .collect()
            .await
    }

    /// Timelines of the batch that are not held yet: by their stored tree, else, being small, by all their rows.
    async fn load(&self, batch: &ByTimeline) -> Result<Vec<(i32, TimelineId, Held)>, StoreError> {
        let held = |partition: &i32, id| {
            self.partitions.get(partition).is_some_and(|partition| partition.timelines.contains_key(id))
        };
        let missing: Vec<(i32, TimelineId)> =
            batch.keys().filter(|(partition, id)| !held(partition, id)).cloned().collect();
        let loaded: Vec<(i32, TimelineId, Held, bool)> = stream::iter(missing)
            .map(|(partition, id)| async move {
                let root = self.store.read_tallies(&id, &[ROOT_CELL]).await?.pop().flatten();
                let (tree, stored, new) = match root {
                    Some(root) => {
                        let root =
                            Root::decode(&root).map_err(|damaged| StoreError::new("decode", damaged))?;
                        (Tree::take_over(root, self.settings.sizes), true, false)
                    }
                    None => {
                        let rows = self.count_rows(&id, &Span::all(), &[FIRST_PART]).await?;
                        let new = rows.is_empty();
                        (Tree::build(rows, self.settings.sizes), false, new)
                    }
                };
                Ok::<_, StoreError>((partition, id, Held { tree, stored, used: self.batch }, new))
            })
            .buffer_unordered(STORE_REQUESTS_MAX)
            .try_collect()
            .await?;
        let new: Vec<TimelineId> =
            loaded.iter().filter(|(.., new)| *new).map(|(_, id, ..)| id.clone()).collect();
        if !new.is_empty() {
            self.store.mark_known(&new).await?;
        }
        Ok(loaded.into_iter().map(|(partition, id, held, _)| (partition, id, held)).collect())
    }

    /// Brings in the nodes and counts the leaves that `rows` fall in.
    async fn count_touched(&self, mut touched: Touched) -> Touched {
        let Touched { id, held, rows, .. } = &mut touched;
        let positions = || rows.iter().map(|row| &row.key.position);
        let nodes = held.tree.missing_nodes(positions());
        if !nodes.is_empty() {
            let cells: Vec<u32> = nodes.iter().map(|read| read.cell).collect();
            let stored = until_done("read_tallies", || self.store.read_tallies(id, &cells)).await;
            for (read, stored) in nodes.iter().zip(stored) {
                self.put_node(id, &mut held.tree, read, stored).await;
            }
        }
        let leaves = held.tree.missing_leaves(positions(), self.batch);
        metrics::TREES.with_label_values(&["leaf_loaded"]).inc_by(leaves.len() as u64);
        let counted: Vec<(LeafRead, Vec<RowKey>)> = stream::iter(leaves)
            .map(|leaf| async {
                let rows = until_done("count_leaf", || self.count_rows(id, &leaf.span, &leaf.parts)).await;
                (leaf, rows)
            })
            .buffered(STORE_REQUESTS_MAX)
            .collect()
            .await;
        for (leaf, rows) in counted {
            held.tree.put_leaf(&leaf, rows);
        }
        touched
    }

    async fn put_node(&self, id: &TimelineId, tree: &mut Tree, read: &NodeRead, stored: Option<Vec<u8>>) {
        if let Some(node) = stored.and_then(|stored| Node::decode(&stored).ok())
            && tree.put_stored(read, node)
        {
            return;
        }
        metrics::TREES.with_label_values(&["node_rebuilt"]).inc();
        tracing::warn!(
            cell = read.cell,
            "a node does not cover what its root says: counting it from its rows"
        );
        let rows = until_done("count_node", || self.count_rows(id, &read.span, &read.parts)).await;
        tree.put_counted(read, &rows);
    }

    /// The keys of all rows in `span`, oldest first, each position once. Where an event came under two types before its timeline
    /// was held, one of them stays.
    async fn count_rows(
        &self,
        id: &TimelineId,
        span: &Span,
        parts: &[u32],
    ) -> Result<Vec<RowKey>, StoreError> {
        let mut rows = BTreeMap::<Position, RowKey>::new();
        for part in parts {
            let mut losers = Vec::new();
            for row in self.store.read_rows(id, *part, TypeSet::ALL, span, Columns::Keys).await? {
                match rows.get(&row.key.position) {
                    Some(kept) if kept.event_type != row.key.event_type => losers.push(row.key),
                    Some(_) => {}
                    None => {
                        rows.insert(row.key.position.clone(), row.key);
                    }
                }
            }
            for key in losers {
                self.store
                    .delete_rows(id, *part, std::slice::from_ref(&key), (key.position.at.0 + 1) * 1000)
                    .await?;
            }
        }
        Ok(rows.into_values().collect())
    }

    /// Tells new rows from repeats; puts what must be written into `groups`, and returns the keys to count.
    fn sort_out(&self, touched: &mut Touched, groups: &mut Vec<RowGroup>, owned: &mut Owned) -> Vec<RowKey> {
        let Touched { id, held, rows, .. } = touched;
        let mut new = BTreeMap::<Position, RowKey>::new();
        let mut by_part = BTreeMap::<u32, Vec<RowWrite>>::new();
        for row in std::mem::take(rows) {
            let seen = held
                .tree
                .find(&row.key.position)
                .or_else(|| new.get(&row.key.position).map(|key| key.event_type));
            if row.counts {
                *(if seen.is_some() { &mut owned.duplicate } else { &mut owned.projected }) += 1;
            }
            match seen {
                None => {
                    new.insert(row.key.position.clone(), row.key.clone());
                }
                Some(seen) if row.completes && seen == row.key.event_type => {}
                Some(_) => continue,
            }
            let expires_at = row.key.position.at.plus_ms(self.settings.retention_ms + ROW_GRACE_MS);
            let part = held.tree.part_for(&row.key.position);
            by_part.entry(part).or_default().push(RowWrite {
                key: row.key,
                stamp: row.stamp,
                expires_at,
                body: row.body,
            });
        }
        groups.extend(by_part.into_iter().map(|(part, rows)| RowGroup { timeline: id.clone(), part, rows }));
        new.into_values().collect()
    }

    /// The cells of a timeline that changed, stamped now that they are counted; none for one that needs no tree yet.
    fn tallies_of(&mut self, now: Timestamp, touched: &mut Touched) -> Option<TallyWrite> {
        let Touched { partition, id, held, .. } = touched;
        let splits = held.tree.take_splits();
        if !held.stored && held.tree.rows() <= self.settings.sizes.scan_rows_max as u64 {
            return None;
        }
        for (change, count) in [
            ("built", u64::from(!held.stored)),
            ("leaf_split", splits.leaves),
            ("node_split", splits.nodes),
            ("part_added", splits.parts),
        ] {
            metrics::TREES.with_label_values(&[change]).inc_by(count);
        }
        held.stored = true;
        held.tree.drop_expired(now.minus_ms(self.settings.retention_ms + ROW_GRACE_MS));
        let cells = held.tree.take_dirty();
        if cells.is_empty() {
            return None;
        }
        let partition = self.partitions.get_mut(partition)?;
        partition.stamp += 1;
        Some(TallyWrite { timeline: id.clone(), stamp: partition.stamp, ttl_s: self.tally_ttl_s(), cells })
    }

    /// A cell must outlive every row that it counts; rows may be a day ahead when they are written.
    fn tally_ttl_s(&self) -> u32 {
        u32::try_from((self.settings.retention_ms + ROW_GRACE_MS + 2 * DAY_MS) / 1000).unwrap_or(u32::MAX)
    }

    /// Keeps memory bounded, looking every few batches: forgets first the timelines, then the nodes, that were not touched lately.
    fn forget(&mut self) {
        if !self.batch.is_multiple_of(FORGET_EVERY_BATCHES) {
            return;
        }
        let cost = |held: &Held| held.tree.rows_held() + TIMELINE_COST_KEYS;
        let mut costs: Vec<(u64, usize)> = self
            .partitions
            .values()
            .flat_map(|partition| partition.timelines.values())
            .map(|held| (held.used, cost(held)))
            .collect();
        let mut sum: usize = costs.iter().map(|(_, cost)| cost).sum();
        if sum <= self.settings.keys_held_max {
            return;
        }
        costs.sort_unstable();
        let mut keep_from = 0;
        for (used, cost) in costs {
            if sum <= self.settings.keys_held_max / 4 * 3 {
                break;
            }
            sum -= cost;
            keep_from = used + 1;
        }
        for partition in self.partitions.values_mut() {
            partition.timelines.retain(|_, held| held.used >= keep_from.min(self.batch));
            for held in partition.timelines.values_mut().filter(|held| held.stored) {
                held.tree.forget_before(keep_from.min(self.batch));
            }
        }
    }
}

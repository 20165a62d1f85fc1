//! How a timeline's tree grows: the real [`Tree`], fed as its owner feeds it, in campaigns of growing size.
//!
//! A campaign's rows come in the order of their times, give or take seconds: the blast within an hour, then what its readers do. A
//! backfill's come in any order. Keys are made on the fly, and nodes that were not touched lately are forgotten, as the owner does;
//! so a campaign of ten million rows is a matter of seconds. A larger one is told from the largest that was grown: every level
//! but the root has a bounded size, so there are as many more nodes as there are more rows, and the root has an entry for each. Grown
//! all the same (`--grown-rows-max 100M`, minutes), a hundred million rows had a root of 113,457 bytes where 113,040 were
//! told, 6322 nodes where 7280 were, and a fullest part of 286,194 rows where 151,391 were.

use std::collections::{HashMap, HashSet};

use anyhow::{Context, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;
use timeline::row::RowKey;
use timeline::tally::{Node, ROOT_CELL, Root, Sizes, Tree};
use timeline::time::DAY_MS;
use timeline::{EventType, Position, Timestamp, TypeSet};

/// Rows of the timeline that come in one batch while it grows. The shape of the tree does not depend on it.
const BATCH_ROWS: usize = 2000;
/// How many batches a node is held that was not touched.
const HELD_BATCHES: u64 = 60;
/// How much later than its time a row may come.
const LATE_MS_MAX: i64 = 5000;
/// The blast, its share of the rows, and the mean time until a reader does something.
const BLAST_MS: f64 = 3_600_000.0;
const BLAST_SHARE: f64 = 0.67;
const REACTION_MS: f64 = 6.0 * 3_600_000.0;
/// Batches of each size whose writes are looked at, and pages whose reads are.
const SAMPLES: u64 = 40;
const PAGE_ROWS: u64 = 100;

/// In which order a timeline's rows come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Order {
    /// That of their times, give or take seconds.
    AsItHappens,
    /// Any.
    Backfill,
}

/// A tree that has grown.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Growth {
    pub(crate) rows: u64,
    pub(crate) order: Order,
    /// Whether it was grown; otherwise it is told from a smaller one.
    pub(crate) simulated: bool,
    pub(crate) nodes: f64,
    pub(crate) parts: f64,
    /// Rows of the fullest part, which is one partition of the store.
    pub(crate) part_rows_max: u64,
    pub(crate) leaf_rows: f64,
    pub(crate) node_bytes: f64,
    pub(crate) root_bytes: f64,
    /// What a batch with so many rows of the timeline writes of the tree.
    pub(crate) writes: Vec<BatchWrite>,
    /// What a page of a hundred rows reads, in the mean over pages anywhere.
    pub(crate) page_cells: f64,
    pub(crate) page_row_reads: f64,
    pub(crate) page_row_reads_max: u64,
}

/// What a batch writes.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct BatchWrite {
    pub(crate) rows: usize,
    pub(crate) cells: f64,
    pub(crate) bytes: f64,
}

impl Growth {
    /// Grows a timeline of `rows` rows.
    pub(crate) fn of(rows: u64, order: Order, seed: u64) -> anyhow::Result<Growth> {
        let mut grower = Grower::new(order, seed);
        while grower.made < rows {
            grower.batch(BATCH_ROWS.min(usize::try_from(rows - grower.made)?), rows)?;
        }
        grower.look(rows)
    }

    /// What a batch of about `rows` rows writes.
    pub(crate) fn write_of(&self, rows: f64) -> BatchWrite {
        let near = self.writes.iter().min_by(|one, other| {
            let far = |write: &BatchWrite| (write.rows as f64 / rows).ln().abs();
            far(one).total_cmp(&far(other))
        });
        near.copied().unwrap_or(BatchWrite { rows: 0, cells: 0.0, bytes: 0.0 })
    }

    /// The tree of `rows` rows, told from this one.
    pub(crate) fn scaled_to(&self, rows: u64) -> Growth {
        let factor = rows as f64 / self.rows as f64;
        let root_bytes = self.root_bytes * factor;
        let more = root_bytes - self.root_bytes;
        let write = |write: &BatchWrite| BatchWrite { bytes: write.bytes + more, ..*write };
        Growth {
            rows,
            simulated: false,
            nodes: self.nodes * factor,
            parts: self.parts * factor,
            root_bytes,
            writes: self.writes.iter().map(write).collect(),
            ..self.clone()
        }
    }
}

struct Grower {
    tree: Tree,
    /// The cells as they are stored.
    cells: HashMap<u32, Vec<u8>>,
    part_rows: HashMap<u32, u64>,
    order: Order,
    rng: StdRng,
    batch: u64,
    made: u64,
}

impl Grower {
    fn new(order: Order, seed: u64) -> Grower {
        Grower {
            tree: Tree::build(Vec::new(), Sizes::default()),
            cells: HashMap::new(),
            part_rows: HashMap::new(),
            order,
            rng: StdRng::seed_from_u64(seed),
            batch: 0,
            made: 0,
        }
    }

    /// The next `count` rows of a timeline that will have `of`; returns how many cells and bytes were written.
    fn batch(&mut self, count: usize, of: u64) -> anyhow::Result<(usize, usize)> {
        self.batch += 1;
        let mut keys: Vec<RowKey> = (0..count).map(|_| self.key(of)).collect();
        keys.sort_unstable();
        keys.dedup_by(|one, next| one.position == next.position);
        let positions = || keys.iter().map(|key| &key.position);
        ensure!(self.tree.missing_nodes(positions()).is_empty(), "a row came later than nodes are held");
        let missing = self.tree.missing_leaves(positions(), self.batch);
        ensure!(missing.is_empty(), "a row came later than leaves are held");
        for key in &keys {
            *self.part_rows.entry(self.tree.part_for(&key.position)).or_default() += 1;
        }
        self.tree.insert(keys);
        let written = self.tree.take_dirty();
        let bytes = written.iter().map(|(_, cell)| cell.len()).sum();
        let cells = written.len();
        self.cells.extend(written);
        if self.order == Order::AsItHappens && self.batch.is_multiple_of(8) {
            self.tree.forget_before(self.batch.saturating_sub(HELD_BATCHES));
        }
        Ok((cells, bytes))
    }

    fn key(&mut self, of: u64) -> RowKey {
        let share = self.made as f64 / of as f64;
        self.made += 1;
        let in_blast = share < BLAST_SHARE;
        let at_ms = match self.order {
            Order::Backfill => self.rng.random_range(0..30 * DAY_MS),
            Order::AsItHappens if in_blast => (share / BLAST_SHARE * BLAST_MS) as i64,
            Order::AsItHappens => {
                let left = (1.0 - (share - BLAST_SHARE) / (1.0 - BLAST_SHARE)).max(1e-9);
                (BLAST_MS - left.ln() * REACTION_MS) as i64
            }
        };
        let event_type = match self.rng.random_range(0..100) {
            0..50 if in_blast => EventType::Sent,
            0..97 if in_blast => EventType::Delivered,
            _ if in_blast => EventType::Bounced,
            0..75 => EventType::Opened,
            75..94 => EventType::Clicked,
            94..98 => EventType::Unsubscribed,
            98 => EventType::Replied,
            _ => EventType::Complained,
        };
        let at = Timestamp(1_790_000_000_000 + at_ms - self.rng.random_range(0..LATE_MS_MAX));
        let id = format!("{:016x}", self.rng.random::<u64>()).into();
        RowKey { position: Position { at, id }, event_type }
    }

    /// What the tree has become.
    fn look(mut self, rows: u64) -> anyhow::Result<Growth> {
        let root = Root::decode(self.cells.get(&ROOT_CELL).context("a tree has a root")?)?;
        let nodes = self.nodes(&root)?;
        let leaves: usize = nodes.iter().map(|node| node.leaves.len()).sum();
        let node_bytes: usize = root.entries.iter().map(|entry| self.cells[&entry.cell].len()).sum();
        let parts: HashSet<u32> = root.entries.iter().flat_map(|entry| entry.parts.iter().copied()).collect();
        let (mut page_cells, mut page_row_reads, mut page_row_reads_max) = (0, 0, 0);
        for _ in 0..SAMPLES {
            let offset = self.rng.random_range(0..rows.saturating_sub(PAGE_ROWS).max(1));
            let (cells, row_reads) = page_reads(&root, &nodes, offset);
            page_cells += cells;
            page_row_reads += row_reads;
            page_row_reads_max = page_row_reads_max.max(row_reads);
        }
        let mut growth = Growth {
            rows,
            order: self.order,
            simulated: true,
            nodes: root.entries.len() as f64,
            parts: parts.len() as f64,
            part_rows_max: self.part_rows.values().copied().max().unwrap_or_default(),
            leaf_rows: rows as f64 / leaves as f64,
            node_bytes: node_bytes as f64 / nodes.len() as f64,
            root_bytes: self.cells[&ROOT_CELL].len() as f64,
            writes: Vec::new(),
            page_cells: page_cells as f64 / SAMPLES as f64,
            page_row_reads: page_row_reads as f64 / SAMPLES as f64,
            page_row_reads_max,
        };
        for rows_a_batch in [1, 100, 1000] {
            let (mut cells, mut bytes) = (0, 0);
            for _ in 0..SAMPLES {
                // As late in its life as it was, so that the tail goes on.
                self.made = rows - 1;
                let (more_cells, more_bytes) = self.batch(rows_a_batch, rows)?;
                cells += more_cells;
                bytes += more_bytes;
            }
            let mean = |sum: usize| sum as f64 / SAMPLES as f64;
            growth.writes.push(BatchWrite { rows: rows_a_batch, cells: mean(cells), bytes: mean(bytes) });
        }
        Ok(growth)
    }

    fn nodes(&self, root: &Root) -> anyhow::Result<Vec<Node>> {
        let node = |cell| Ok(Node::decode(self.cells.get(cell).context("an entry has a node")?)?);
        root.entries.iter().map(|entry| node(&entry.cell)).collect()
    }
}

/// How many cells (the root among them) and stretches of parts the page behind `offset` rows reads: whole nodes are passed over by the
/// root, those that the page begins or ends in are read, and leaves of the same parts are read as one. As `query` does it.
fn page_reads(root: &Root, nodes: &[Node], offset: u64) -> (u64, u64) {
    let (mut cells, mut row_reads) = (1, 0);
    let (mut skip, mut missing) = (offset, PAGE_ROWS);
    let mut parts_before: Option<&[u32]> = None;
    for (entry, node) in root.entries.iter().zip(nodes).rev() {
        if missing == 0 {
            break;
        }
        if entry.counts.all() <= skip {
            skip -= entry.counts.all();
            continue;
        }
        cells += 1;
        for leaf in node.leaves.iter().rev() {
            let held = leaf.counts.matching(TypeSet::ALL);
            if held <= skip || missing == 0 {
                skip -= held.min(skip);
                continue;
            }
            missing -= missing.min(held - skip);
            skip = 0;
            if parts_before != Some(entry.parts.as_slice()) {
                row_reads += entry.parts.len() as u64;
                parts_before = Some(&entry.parts);
            }
        }
    }
    (cells, row_reads)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_reads_few_cells_and_one_part_however_large_the_campaign_is() {
        for rows in [10_000, 300_000] {
            let growth = Growth::of(rows, Order::AsItHappens, 1).expect("grows");
            assert!(growth.page_cells <= 2.3 && growth.page_row_reads <= 1.3, "{growth:?}");
            assert!(growth.part_rows_max < 250_000, "{growth:?}");
        }
    }

    #[test]
    fn a_larger_tree_is_told_from_a_smaller_one() {
        let small = Growth::of(200_000, Order::AsItHappens, 1).expect("grows");
        let (told, grown) =
            (small.scaled_to(800_000), Growth::of(800_000, Order::AsItHappens, 1).expect("grows"));
        assert!((0.8..1.25).contains(&(told.root_bytes / grown.root_bytes)), "{told:?} {grown:?}");
        assert!((0.8..1.25).contains(&(told.nodes / grown.nodes)), "{told:?} {grown:?}");
    }
}

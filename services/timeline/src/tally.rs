//! The counted tree beside a timeline's rows: how a total is exact and any page costs what the first costs.
//!
//! Three levels, whatever the size. *Leaves* cut the timeline at positions — time, then id, so that even a million events of
//! one millisecond fall apart — into stretches of at most [`LEAF_ROWS_MAX`] rows. A *node* holds up to [`NODE_LEAVES_MAX`]
//! leaves with their numbers, the *root* all nodes with theirs. A total is the sum of the root's entries and of two ragged ends;
//! a page is found by walking root, node, leaf.
//!
//! Rules that exactness rests on (the simulated histories of `ingest` show what happens without them):
//!
//! * A leaf's number is the number of its rows, a node's the sum of its leaves', an entry's the sum of its node's. None is ever
//!   added to: whoever takes a timeline over counts a leaf's rows when it first touches the leaf.
//! * Rows are acknowledged before they are counted, counted before the cells are written, and cells before the offset.
//! * All cells that a batch changes are written at once, with one stamp, greater than every stamp of earlier owners.
//! * Nodes only shrink, by splitting at a position; the cell of a node says what stretch it covers. Where an earlier owner's
//!   late write left a node that does not cover what the root says, the node is counted anew from its rows.
//!
//! A timeline's rows are spread over *parts*, so that no partition of the store grows without bound. An entry names the parts that
//! its rows may stand in; new rows go to the last of them. Rows never move.

use std::collections::BTreeSet;

use smallvec::{SmallVec, smallvec};

use crate::codec::{Damaged, Reader, Writer};
use crate::event::{EventType, TypeSet};
use crate::row::{Position, RowKey, Span};
use crate::time::Timestamp;

/// Rows a leaf holds before it is split.
pub const LEAF_ROWS_MAX: usize = 128;
/// Leaves a node holds before it is split.
pub const NODE_LEAVES_MAX: usize = 256;
/// Rows of a timeline without a tree, beyond which it gets one.
pub const SCAN_ROWS_MAX: usize = 128;
/// Rows a part takes before a new one is begun.
pub const PART_ROWS_MAX: u64 = 100_000;
/// Rows of a contact's timeline, from which on they stand once more by campaign.
pub const PAIR_ROWS_MIN: u64 = 1_024;

/// Rows that are written, in the mean, to a timeline that nobody has counted before it is read whole, to tell whether it is to have a tree.
pub const UNREAD_ROWS: u64 = 16;

/// The cell of the root.
pub const ROOT_CELL: u32 = 0;
/// The part of a timeline without a tree.
pub const FIRST_PART: u32 = 0;

/// The sizes at which the tree grows; smaller in tests, which may leave out one of its rules, too.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the constants of the same names say it")]
pub struct Sizes {
    pub leaf_rows_max: usize,
    pub node_leaves_max: usize,
    pub scan_rows_max: usize,
    pub part_rows_max: u64,
    pub pair_rows_min: u64,
    pub unread_rows: u64,
    pub without: Option<Rule>,
}

/// A rule that a simulated history leaves out, to prove that it finds what comes of that. Nothing else ever does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// A leaf's number is counted from its rows when it is first touched, not taken as it is stored.
    LeavesAreCounted,
    /// A node's number is the sum of its leaves, not its own, added to.
    NodesAreSums,
    /// What a batch touches is held until its rows are counted.
    TouchedIsHeld,
}

impl Default for Sizes {
    fn default() -> Sizes {
        Sizes {
            leaf_rows_max: LEAF_ROWS_MAX,
            node_leaves_max: NODE_LEAVES_MAX,
            scan_rows_max: SCAN_ROWS_MAX,
            part_rows_max: PART_ROWS_MAX,
            pair_rows_min: PAIR_ROWS_MIN,
            unread_rows: UNREAD_ROWS,
            without: None,
        }
    }
}

/// Numbers of rows, by type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Counts([u32; EventType::ALL.len()]);

impl Counts {
    /// The numbers of `keys`.
    pub fn of<'a>(keys: impl IntoIterator<Item = &'a RowKey>) -> Counts {
        let mut counts = Counts::default();
        for key in keys {
            counts.0[key.event_type as usize] += 1;
        }
        counts
    }

    /// How many rows of `types`.
    pub fn matching(&self, types: TypeSet) -> u64 {
        // Without a branch: this runs for every entry of a root.
        let counts = self.0.iter().zip(EventType::ALL);
        counts.map(|(count, event_type)| u64::from(*count) * u64::from(types.contains(event_type))).sum()
    }

    /// How many rows.
    pub fn all(&self) -> u64 {
        self.matching(TypeSet::ALL)
    }

    /// The types of `types` that have rows.
    pub fn present(&self, types: TypeSet) -> TypeSet {
        types
            .iter()
            .filter(|event_type| self.0[*event_type as usize] > 0)
            .fold(TypeSet::default(), TypeSet::with)
    }

    fn sum<'a>(counts: impl Iterator<Item = &'a Counts>) -> Counts {
        counts.fold(Counts::default(), |mut sum, counts| {
            for (total, count) in sum.0.iter_mut().zip(counts.0) {
                *total += count;
            }
            sum
        })
    }

    /// Whether the numbers of `counts` can be added up.
    fn can_sum<'a>(counts: impl Iterator<Item = &'a Counts>) -> bool {
        let mut sum = [0_u32; EventType::ALL.len()];
        counts.flat_map(|counts| counts.0.into_iter().enumerate()).all(|(at, count)| {
            let added = sum[at].checked_add(count);
            sum[at] = added.unwrap_or(0);
            added.is_some()
        })
    }

    fn encode(&self, out: &mut Writer) {
        let present =
            self.0.iter().enumerate().fold(0, |bits, (at, count)| bits | u64::from(*count > 0) << at);
        out.number(present);
        for count in self.0.iter().filter(|count| **count > 0) {
            out.number(u64::from(*count));
        }
    }

    fn decode(bytes: &mut Reader<'_>) -> Result<Counts, Damaged> {
        let mut left: u16 = bytes.small()?;
        let mut counts = Counts::default();
        while left != 0 {
            let at = left.trailing_zeros() as usize;
            *counts.0.get_mut(at).ok_or_else(|| bytes.damaged())? = bytes.small()?;
            left &= left - 1;
        }
        Ok(counts)
    }
}

/// A stretch of rows and their numbers: from `from` to the next leaf's.
#[derive(Clone, Debug, PartialEq)]
pub struct Leaf {
    /// Its first position.
    pub from: Position,
    /// Its rows.
    pub counts: Counts,
}

/// A stretch of leaves.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What it covers.
    pub span: Span,
    /// Its leaves, oldest first; the first begins where the node does.
    pub leaves: Vec<Leaf>,
}

/// Parts of a timeline; nearly always one.
pub type Parts = SmallVec<[u32; 2]>;

/// A node as the root knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its first position.
    pub from: Position,
    /// The cell that holds the node.
    pub cell: u32,
    /// Where its rows may stand; new ones go to the last.
    pub parts: Parts,
    /// Its rows.
    pub counts: Counts,
}

/// The root of a timeline's tree.
#[derive(Clone, Debug, PartialEq)]
pub struct Root {
    /// The nodes, oldest first; the first begins at [`Position::min`].
    pub entries: Vec<Entry>,
    /// The next node's cell.
    next_cell: u32,
    /// The next part.
    next_part: u32,
    /// No row is older.
    pub oldest: Timestamp,
    /// No row is newer.
    pub newest: Timestamp,
    /// Whether the rows stand once more by campaign: see [`crate::Subject::ContactCampaign`].
    pub paired: bool,
}

/// What a leaf or an entry takes at least, in bytes: little enough that a guess by it is seldom too low.
const CUT_BYTES_MIN: usize = 12;

/// Cells and parts are never as many.
const NUMBER_MAX: u32 = 1 << 31;

const NODE_VERSION: u8 = 1;
const ROOT_VERSION: u8 = 2;

impl Node {
    /// The node of `rows`, which are sorted, over `span`.
    pub fn of_rows(span: Span, rows: &[RowKey], sizes: &Sizes) -> Node {
        let mut node =
            Node { leaves: vec![Leaf { from: span.from.clone(), counts: Counts::of(rows) }], span };
        node.split_leaf(0, rows, true, sizes);
        node
    }

    /// The sum of its leaves.
    pub fn counts(&self) -> Counts {
        Counts::sum(self.leaves.iter().map(|leaf| &leaf.counts))
    }

    /// Which leaf `position`, which the node covers, falls in.
    pub fn leaf_at(&self, position: &Position) -> usize {
        self.leaves.partition_point(|leaf| leaf.from <= *position) - 1
    }

    /// What leaf `at` covers.
    pub fn leaf_span(&self, at: usize) -> Span {
        let until = self.leaves.get(at + 1).map_or(&self.span.until, |next| &next.from);
        Span { from: self.leaves[at].from.clone(), until: until.clone() }
    }

    /// Cuts leaf `at`, whose rows are `rows` (sorted), into leaves that are small enough; `growing` ones, which new rows go
    /// behind, are filled, others halved. Returns how many rows each of the new leaves has.
    fn split_leaf(&mut self, at: usize, rows: &[RowKey], growing: bool, sizes: &Sizes) -> Vec<usize> {
        let max = sizes.leaf_rows_max;
        if rows.len() <= max {
            return vec![rows.len()];
        }
        let piece = if growing { max } else { rows.len().div_ceil(rows.len().div_ceil(max * 3 / 4)) };
        let pieces: Vec<&[RowKey]> = rows.chunks(piece).collect();
        let mut from = self.leaves[at].from.clone();
        let mut leaves = Vec::with_capacity(pieces.len());
        for (index, piece) in pieces.iter().enumerate() {
            let next = pieces
                .get(index + 1)
                .map(|next| cut_between(&piece[piece.len() - 1].position, &next[0].position));
            leaves.push(Leaf { from, counts: Counts::of(*piece) });
            from = next.unwrap_or_else(Position::max);
        }
        self.leaves.splice(at..=at, leaves);
        pieces.iter().map(|piece| piece.len()).collect()
    }

    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new(NODE_VERSION);
        self.span.from.encode(&mut out);
        self.span.until.encode(&mut out);
        let mut before = 0;
        for leaf in &self.leaves {
            encode_cut(&leaf.from, &mut before, &mut out);
            leaf.counts.encode(&mut out);
        }
        out.finish()
    }

    /// Reads the stored form.
    pub fn decode(stored: &[u8]) -> Result<Node, Damaged> {
        let mut bytes = Reader::new(stored, NODE_VERSION, "tally node")?;
        let span = Span { from: Position::decode(&mut bytes)?, until: Position::decode(&mut bytes)? };
        let (mut leaves, mut before) = (Vec::with_capacity(stored.len() / CUT_BYTES_MIN), 0);
        while !bytes.is_at_end() {
            leaves.push(Leaf {
                from: decode_cut(&mut before, &mut bytes)?,
                counts: Counts::decode(&mut bytes)?,
            });
        }
        let sound = leaves.first().is_some_and(|first| first.from == span.from)
            && leaves.is_sorted_by(|one, next| one.from < next.from)
            && leaves.last().is_some_and(|last| last.from < span.until)
            && Counts::can_sum(leaves.iter().map(|leaf| &leaf.counts));
        if sound { Ok(Node { span, leaves }) } else { Err(bytes.damaged()) }
    }
}

impl Root {
    /// The root of a tree of one node, in the first part, over everything.
    fn new(counts: Counts, oldest: Timestamp, newest: Timestamp) -> Root {
        let entry =
            Entry { from: Position::min(), cell: ROOT_CELL + 1, parts: smallvec![FIRST_PART], counts };
        Root {
            entries: vec![entry],
            next_cell: ROOT_CELL + 2,
            next_part: FIRST_PART + 1,
            oldest,
            newest,
            paired: false,
        }
    }

    /// What the cell of the root holds where an owner has said that there is no tree.
    pub const NONE: &[u8] = &[];

    /// What the cell of the root says.
    pub fn read(stored: &[u8]) -> Result<Option<Root>, Damaged> {
        if stored == Root::NONE { Ok(None) } else { Root::decode(stored).map(Some) }
    }

    /// Which entry `position` falls in.
    pub fn entry_at(&self, position: &Position) -> usize {
        self.entries.partition_point(|entry| entry.from <= *position) - 1
    }

    /// What entry `at` covers.
    pub fn entry_span(&self, at: usize) -> Span {
        let until = self.entries.get(at + 1).map_or_else(Position::max, |next| next.from.clone());
        Span { from: self.entries[at].from.clone(), until }
    }

    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new(ROOT_VERSION);
        out.number(u64::from(self.next_cell));
        out.number(u64::from(self.next_part));
        out.signed(self.oldest.0);
        out.signed(self.newest.0);
        out.byte(u8::from(self.paired));
        let mut before = 0;
        for entry in &self.entries {
            encode_cut(&entry.from, &mut before, &mut out);
            out.number(u64::from(entry.cell));
            out.number(entry.parts.len() as u64);
            for part in &entry.parts {
                out.number(u64::from(*part));
            }
            entry.counts.encode(&mut out);
        }
        out.finish()
    }

    /// Reads the stored form.
    pub fn decode(stored: &[u8]) -> Result<Root, Damaged> {
        let mut bytes = Reader::new(stored, ROOT_VERSION, "tally root")?;
        let (next_cell, next_part): (u32, u32) = (bytes.small()?, bytes.small()?);
        let (oldest, newest) = (Timestamp(bytes.signed()?), Timestamp(bytes.signed()?));
        let paired = bytes.byte()? != 0;
        let (mut entries, mut before) = (Vec::<Entry>::with_capacity(stored.len() / CUT_BYTES_MIN), 0);
        while !bytes.is_at_end() {
            let (from, cell) = (decode_cut(&mut before, &mut bytes)?, bytes.small()?);
            let mut parts = Parts::new();
            for _ in 0..bytes.number()? {
                parts.push(bytes.small()?);
            }
            entries.push(Entry { from, cell, parts, counts: Counts::decode(&mut bytes)? });
        }
        let sound = entries.first().is_some_and(|first| first.from == Position::min())
            && entries.is_sorted_by(|one, next| one.from < next.from)
            && next_cell.max(next_part) < NUMBER_MAX
            && are_distinct(entries.iter().map(|entry| entry.cell))
            && entries.iter().all(|entry| {
                let are_known = entry.parts.iter().all(|part| *part < next_part);
                !entry.parts.is_empty() && are_known && (ROOT_CELL + 1..next_cell).contains(&entry.cell)
            });
        if sound {
            Ok(Root { entries, next_cell, next_part, oldest, newest, paired })
        } else {
            Err(bytes.damaged())
        }
    }
}

fn are_distinct(cells: impl Iterator<Item = u32>) -> bool {
    let mut cells: SmallVec<[u32; 64]> = cells.collect();
    cells.sort_unstable();
    cells.is_sorted_by(|one, next| one < next)
}

/// A cut's time as the distance from the cut before it, and its id.
fn encode_cut(cut: &Position, before: &mut i64, out: &mut Writer) {
    out.signed(cut.at.0.wrapping_sub(*before));
    out.bytes(cut.id.as_bytes());
    *before = cut.at.0;
}

fn decode_cut(before: &mut i64, bytes: &mut Reader<'_>) -> Result<Position, Damaged> {
    *before = before.wrapping_add(bytes.signed()?);
    Ok(Position { at: Timestamp(*before), id: bytes.text()?.into() })
}

/// The shortest position after `one` and not after `next`.
fn cut_between(one: &Position, next: &Position) -> Position {
    if one.at < next.at {
        return Position::at_start_of(next.at);
    }
    let common = one.id.bytes().zip(next.id.bytes()).take_while(|(a, b)| a == b).count();
    // Ids are ASCII; what comes back damaged need not be.
    let end = next.id.ceil_char_boundary(common + 1);
    Position { at: next.at, id: next.id[..end].into() }
}

/// A timeline's tree in the hands of its owner: the root, and of nodes and leaves what was touched lately.
#[derive(Debug)]
pub struct Tree {
    root: Root,
    nodes: Vec<(u32, OwnedNode)>,
    sizes: Sizes,
    splits: Splits,
    /// Whether the root must be written though no node changed.
    root_is_dirty: bool,
}

#[derive(Debug)]
struct OwnedNode {
    node: Node,
    /// The rows of each leaf, where they were counted by this owner and are held.
    rows: Vec<Option<LeafRows>>,
    /// Whether the cell must be written: its numbers changed, or this owner has not written them yet.
    dirty: bool,
    /// The batch that last touched it.
    used: u64,
}

/// The rows of a leaf.
#[derive(Clone, Debug)]
struct LeafRows {
    /// Sorted by position.
    keys: Vec<RowKey>,
    /// The batch that last touched it.
    used: u64,
}

/// What grew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Splits {
    /// Whether the tree is new.
    pub built: bool,
    /// Leaves that were cut.
    pub leaves: u64,
    /// Nodes that were cut.
    pub nodes: u64,
    /// Parts that were begun.
    pub parts: u64,
}

/// A leaf whose rows must be counted before its stretch is written to.
#[derive(Clone, Debug, PartialEq)]
pub struct LeafRead {
    /// The node's cell.
    pub cell: u32,
    /// What the leaf covers.
    pub span: Span,
    /// Where its rows may stand.
    pub parts: Parts,
}

/// A node that must be read before its stretch is written to.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeRead {
    /// The node's cell.
    pub cell: u32,
    /// What the root says it covers.
    pub span: Span,
    /// Where its rows may stand.
    pub parts: Parts,
}

impl Tree {
    /// The tree of a timeline that has grown: all its `rows`, sorted, stand in the first part.
    pub fn build(rows: Vec<RowKey>, sizes: Sizes) -> Tree {
        let oldest = rows.first().map_or(Timestamp(i64::MAX), |row| row.position.at);
        let newest = rows.last().map_or(Timestamp(i64::MIN), |row| row.position.at);
        let root = Root::new(Counts::of(&rows), oldest, newest);
        let node = Node {
            span: Span::all(),
            leaves: vec![Leaf { from: Position::min(), counts: Counts::of(&rows) }],
        };
        let owned =
            OwnedNode { node, rows: vec![Some(LeafRows { keys: rows, used: 0 })], dirty: true, used: 0 };
        let splits = Splits { built: true, ..Splits::default() };
        let nodes = vec![(root.entries[0].cell, owned)];
        let mut tree = Tree { root, nodes, sizes, splits, root_is_dirty: false };
        tree.settle();
        tree
    }

    /// The tree as an earlier owner left it.
    pub fn take_over(root: Root, sizes: Sizes) -> Tree {
        Tree { root, nodes: Vec::new(), sizes, splits: Splits::default(), root_is_dirty: false }
    }

    /// The root.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// Marks the nodes that `positions` fall in as touched by `batch`. Returns whether a node or the rows of a leaf are not here yet.
    pub fn touch<'a>(&mut self, positions: impl Iterator<Item = &'a Position>, batch: u64) -> bool {
        let mut is_missing = false;
        for position in positions {
            let cell = self.root.entries[self.root.entry_at(position)].cell;
            let Some(owned) = self.node_mut(cell) else {
                is_missing = true;
                continue;
            };
            owned.used = batch;
            match &mut owned.rows[owned.node.leaf_at(position)] {
                Some(leaf) => leaf.used = batch,
                None => is_missing = true,
            }
        }
        is_missing
    }

    /// The nodes that `positions` fall in and that are not here yet.
    pub fn missing_nodes<'a>(&self, positions: impl Iterator<Item = &'a Position>) -> Vec<NodeRead> {
        let entries: BTreeSet<usize> = positions.map(|position| self.root.entry_at(position)).collect();
        let missing = entries.into_iter().filter(|at| self.node(self.root.entries[*at].cell).is_none());
        missing
            .map(|at| NodeRead {
                cell: self.root.entries[at].cell,
                span: self.root.entry_span(at),
                parts: self.root.entries[at].parts.clone(),
            })
            .collect()
    }

    /// Every node, to be counted anew.
    pub fn all_nodes(&self) -> Vec<NodeRead> {
        let read = |at: usize| NodeRead {
            cell: self.root.entries[at].cell,
            span: self.root.entry_span(at),
            parts: self.root.entries[at].parts.clone(),
        };
        (0..self.root.entries.len()).map(read).collect()
    }

    /// Puts a node in as it was stored, if it covers what the root says. Otherwise it is to be counted anew: [`Tree::put_counted`].
    pub fn put_stored(&mut self, read: &NodeRead, node: Node) -> bool {
        if node.span != read.span {
            return false;
        }
        let rows = vec![None; node.leaves.len()];
        self.put(read.cell, OwnedNode { node, rows, dirty: true, used: 0 });
        true
    }

    /// Puts a node in by its rows, sorted.
    pub fn put_counted(&mut self, read: &NodeRead, rows: &[RowKey]) {
        self.widen(rows);
        let node = Node::of_rows(read.span.clone(), rows, &self.sizes);
        let rows = vec![None; node.leaves.len()];
        self.put(read.cell, OwnedNode { node, rows, dirty: true, used: 0 });
        self.settle();
    }

    /// The leaves that `positions` fall in and whose rows were not counted yet; their nodes are here.
    pub fn missing_leaves<'a>(
        &mut self,
        positions: impl Iterator<Item = &'a Position>,
        batch: u64,
    ) -> Vec<LeafRead> {
        let mut missing = Vec::new();
        let mut seen = BTreeSet::new();
        for position in positions {
            let entry = &self.root.entries[self.root.entry_at(position)];
            let (cell, parts) = (entry.cell, entry.parts.clone());
            let Some(owned) = self.node_mut(cell) else { continue };
            owned.used = batch;
            let at = owned.node.leaf_at(position);
            match &mut owned.rows[at] {
                Some(leaf) => leaf.used = batch,
                None if seen.insert((cell, at)) => {
                    missing.push(LeafRead { cell, span: owned.node.leaf_span(at), parts });
                }
                None => {}
            }
        }
        missing
    }

    /// Counts a leaf: `rows` are all its rows, sorted, each position once.
    pub fn put_leaf(&mut self, read: &LeafRead, rows: Vec<RowKey>) {
        self.widen(&rows);
        let without = self.sizes.without;
        let Some(owned) = self.node_mut(read.cell) else { return };
        let at = owned.node.leaf_at(&read.span.from);
        if without != Some(Rule::LeavesAreCounted) {
            owned.node.leaves[at].counts = Counts::of(&rows);
        }
        owned.rows[at] = Some(LeafRows { keys: rows, used: owned.used });
        owned.dirty = true;
    }

    /// The type of the row at `position`, if there is one; its leaf was counted.
    pub fn find(&self, position: &Position) -> Option<EventType> {
        let owned = self.node(self.root.entries[self.root.entry_at(position)].cell)?;
        let keys = &owned.rows[owned.node.leaf_at(position)].as_ref()?.keys;
        keys.binary_search_by(|row| row.position.cmp(position)).ok().map(|at| keys[at].event_type)
    }

    /// The part that a new row at `position` goes to.
    pub fn part_for(&self, position: &Position) -> u32 {
        let parts = &self.root.entries[self.root.entry_at(position)].parts;
        parts.last().copied().unwrap_or(FIRST_PART)
    }

    /// Counts new rows, which are acknowledged, at positions that had none, in leaves that were counted.
    pub fn insert(&mut self, keys: Vec<RowKey>) {
        self.widen(&keys);
        if self.sizes.without == Some(Rule::TouchedIsHeld) {
            self.forget_before(u64::MAX);
        }
        for key in keys {
            let entry_at = self.root.entry_at(&key.position);
            if self.sizes.without == Some(Rule::NodesAreSums) {
                self.root.entries[entry_at].counts.0[key.event_type as usize] += 1;
            }
            let cell = self.root.entries[entry_at].cell;
            let Some(owned) = self.node_mut(cell) else { continue };
            let at = owned.node.leaf_at(&key.position);
            let Some(LeafRows { keys, .. }) = &mut owned.rows[at] else { continue };
            if let Err(place) = keys.binary_search_by(|row| row.position.cmp(&key.position)) {
                owned.node.leaves[at].counts.0[key.event_type as usize] += 1;
                keys.insert(place, key);
                owned.dirty = true;
            }
        }
        self.settle();
    }

    /// Takes rows out that no longer stand, from leaves that were counted.
    pub fn remove(&mut self, positions: &[Position]) {
        for position in positions {
            let cell = self.root.entries[self.root.entry_at(position)].cell;
            let Some(owned) = self.node_mut(cell) else { continue };
            let at = owned.node.leaf_at(position);
            let Some(LeafRows { keys, .. }) = &mut owned.rows[at] else { continue };
            if let Ok(place) = keys.binary_search_by(|row| row.position.cmp(position)) {
                let gone = keys.remove(place);
                owned.node.leaves[at].counts.0[gone.event_type as usize] -= 1;
                owned.dirty = true;
            }
        }
        self.settle();
    }

    /// The parts that a row at `position` may stand in.
    pub fn parts_at(&self, position: &Position) -> Parts {
        self.root.entries[self.root.entry_at(position)].parts.clone()
    }

    /// The part that is begun next: no row of this owner's was written there.
    pub fn next_part(&self) -> u32 {
        self.root.next_part
    }

    /// Every row that was seen lies between oldest and newest, whoever wrote it.
    fn widen(&mut self, rows: &[RowKey]) {
        for row in rows {
            self.root.oldest = self.root.oldest.min(row.position.at);
            self.root.newest = self.root.newest.max(row.position.at);
        }
    }

    /// The cells to write, the root among them, each said once; nothing where nothing changed.
    pub fn take_dirty(&mut self) -> Vec<(u32, Vec<u8>)> {
        let mut cells = Vec::new();
        for (cell, owned) in &mut self.nodes {
            if std::mem::take(&mut owned.dirty) {
                cells.push((*cell, owned.node.encode()));
            }
        }
        if std::mem::take(&mut self.root_is_dirty) || !cells.is_empty() {
            cells.push((ROOT_CELL, self.root.encode()));
        }
        cells
    }

    /// Says in the root that the rows stand once more by campaign.
    pub fn set_paired(&mut self) {
        self.root.paired = true;
        self.root_is_dirty = true;
    }

    /// What grew since this was last asked.
    pub fn take_splits(&mut self) -> Splits {
        std::mem::take(&mut self.splits)
    }

    /// How many rows the timeline has.
    pub fn rows(&self) -> u64 {
        self.root.entries.iter().map(|entry| entry.counts.all()).sum()
    }

    /// The leaves whose keys are held in memory: the batch that last touched each, and how many keys it has.
    pub fn held(&self) -> impl Iterator<Item = (u64, usize)> {
        self.nodes
            .iter()
            .flat_map(|(_, owned)| &owned.rows)
            .flatten()
            .map(|leaf| (leaf.used, leaf.keys.len()))
    }

    /// Forgets nodes and the keys of leaves that no batch since `batch` has touched; nothing of them waits to be written.
    pub fn forget_before(&mut self, batch: u64) {
        self.nodes.retain(|(_, owned)| owned.dirty || owned.used >= batch);
        for (_, owned) in self.nodes.iter_mut().filter(|(_, owned)| !owned.dirty) {
            for rows in
                owned.rows.iter_mut().filter(|rows| rows.as_ref().is_some_and(|leaf| leaf.used < batch))
            {
                *rows = None;
            }
        }
    }

    /// Forgets nodes that have wholly expired: nothing before `cutoff` is ever asked for. The newest node stays, and so does
    /// everything while the first that remains is not in memory, since it must say itself that it now is the first.
    pub fn drop_expired(&mut self, cutoff: Timestamp) {
        let cutoff = Position::at_start_of(cutoff);
        let expired = self.root.entries.iter().skip(1).take_while(|next| next.from <= cutoff).count();
        let Some(owned) =
            self.root.entries.get(expired).map(|entry| entry.cell).and_then(|cell| self.node_mut(cell))
        else {
            return;
        };
        if expired == 0 {
            return;
        }
        owned.node.span.from = Position::min();
        owned.node.leaves[0].from = Position::min();
        owned.rows[0] = None;
        owned.dirty = true;
        let gone: Vec<u32> = self.root.entries.drain(..expired).map(|entry| entry.cell).collect();
        self.nodes.retain(|(cell, _)| !gone.contains(cell));
        self.root.entries[0].from = Position::min();
    }

    fn node(&self, cell: u32) -> Option<&OwnedNode> {
        self.nodes.binary_search_by_key(&cell, |(cell, _)| *cell).ok().map(|at| &self.nodes[at].1)
    }

    fn node_mut(&mut self, cell: u32) -> Option<&mut OwnedNode> {
        self.nodes.binary_search_by_key(&cell, |(cell, _)| *cell).ok().map(|at| &mut self.nodes[at].1)
    }

    fn put(&mut self, cell: u32, owned: OwnedNode) {
        match self.nodes.binary_search_by_key(&cell, |(cell, _)| *cell) {
            Ok(at) => self.nodes[at].1 = owned,
            Err(at) => self.nodes.insert(at, (cell, owned)),
        }
    }

    /// Splits what has grown too large, and carries every sum up.
    fn settle(&mut self) {
        let newest_cell = self.root.entries[self.root.entries.len() - 1].cell;
        let sizes = self.sizes;
        for (cell, owned) in self.nodes.iter_mut().filter(|(_, owned)| owned.dirty) {
            let mut at = 0;
            while at < owned.rows.len() {
                let growing = *cell == newest_cell && at + 1 == owned.rows.len();
                let pieces = match &owned.rows[at] {
                    Some(leaf) if leaf.keys.len() > sizes.leaf_rows_max => {
                        owned.node.split_leaf(at, &leaf.keys, growing, &sizes)
                    }
                    _ => {
                        at += 1;
                        continue;
                    }
                };
                self.splits.leaves += 1;
                let Some(LeafRows { mut keys, used }) = owned.rows[at].take() else { continue };
                let mut cut = Vec::with_capacity(pieces.len());
                for piece in pieces.iter().rev() {
                    let mut piece = keys.split_off(keys.len() - piece);
                    // The first would keep the room of all: of a batch's rows that came to the newest leaf, say.
                    piece.shrink_to_fit();
                    cut.push(Some(LeafRows { keys: piece, used }));
                }
                cut.reverse();
                at += cut.len();
                owned.rows.splice(at - cut.len()..=at - cut.len(), cut);
            }
        }
        let grown: Vec<u32> = self
            .nodes
            .iter()
            .filter(|(_, owned)| owned.node.leaves.len() > sizes.node_leaves_max)
            .map(|(cell, _)| *cell)
            .collect();
        for cell in grown {
            self.split_node(cell);
        }
        if sizes.without == Some(Rule::NodesAreSums) {
            return;
        }
        for at in 0..self.root.entries.len() {
            if let Some(owned) = self.node(self.root.entries[at].cell).filter(|owned| owned.dirty) {
                let counts = owned.node.counts();
                self.root.entries[at].counts = counts;
            }
        }
    }

    /// Cuts a node into nodes that are small enough. The oldest keeps its cell.
    fn split_node(&mut self, cell: u32) {
        let Some(entry_at) = self.root.entries.iter().position(|entry| entry.cell == cell) else { return };
        let growing = entry_at + 1 == self.root.entries.len();
        let max = self.sizes.node_leaves_max;
        let next_cell = self.root.next_cell;
        let Some(owned) = self.node_mut(cell) else { return };
        let count = owned.node.leaves.len();
        let piece = if growing { max } else { count.div_ceil(count.div_ceil(max * 3 / 4)) };
        let until = std::mem::replace(&mut owned.node.span.until, Position::max());
        let mut leaves = std::mem::take(&mut owned.node.leaves);
        let mut rows = std::mem::take(&mut owned.rows);
        let used = owned.used;
        let mut pieces = Vec::new();
        while !leaves.is_empty() {
            let cut = (leaves.len() - 1) / piece * piece;
            pieces.push((leaves.split_off(cut), rows.split_off(cut)));
        }
        pieces.reverse();
        let piece_count = pieces.len();
        let cuts: Vec<Position> =
            pieces.iter().skip(1).map(|(leaves, _)| leaves[0].from.clone()).chain([until]).collect();
        let parts = self.root.entries[entry_at].parts.clone();
        for (index, ((leaves, rows), until)) in pieces.into_iter().zip(cuts).enumerate() {
            let from = leaves[0].from.clone();
            let node = Node { span: Span { from: from.clone(), until }, leaves };
            let counts = node.counts();
            let piece_cell = if index == 0 { cell } else { next_cell + index as u32 - 1 };
            self.put(piece_cell, OwnedNode { node, rows, dirty: true, used });
            let entry = Entry { from, cell: piece_cell, parts: parts.clone(), counts };
            if index == 0 {
                self.root.entries[entry_at] = entry;
            } else {
                self.root.entries.insert(entry_at + index, entry);
                self.root.next_cell = piece_cell + 1;
                self.splits.nodes += 1;
            }
        }
        self.begin_part_if_full(entry_at, piece_count, growing);
    }

    /// Where the part of the `count` entries from `first` on is full, their new rows go to a part of their own; of a growing
    /// timeline only those newer than every row so far, so that its parts follow one another and a page needs one of them.
    fn begin_part_if_full(&mut self, first: usize, count: usize, growing: bool) {
        let part = self.root.entries[first].parts.last().copied();
        let in_part = self.root.entries.iter().filter(|entry| entry.parts.last().copied() == part);
        if in_part.map(|entry| entry.counts.all()).sum::<u64>() < self.sizes.part_rows_max {
            return;
        }
        let next_part = self.root.next_part;
        let end = Position::at_start_of(self.root.newest.plus_ms(1));
        let last = &self.root.entries[self.root.entries.len() - 1];
        if growing && last.from < end {
            let cell = self.root.next_cell;
            let last_cell = last.cell;
            let node = Node {
                span: Span { from: end.clone(), until: Position::max() },
                leaves: vec![Leaf { from: end.clone(), counts: Counts::default() }],
            };
            if let Some(owned) = self.node_mut(last_cell) {
                owned.node.span.until = end.clone();
                owned.dirty = true;
            }
            // Its only leaf was counted: no row of this owner's is newer, and what an earlier owner wrote there comes again.
            let rows = vec![Some(LeafRows { keys: Vec::new(), used: u64::MAX })];
            self.put(cell, OwnedNode { node, rows, dirty: true, used: u64::MAX });
            self.root.entries.push(Entry {
                from: end,
                cell,
                parts: smallvec![next_part],
                counts: Counts::default(),
            });
            self.root.next_cell = cell + 1;
        } else {
            for entry in &mut self.root.entries[first..first + count] {
                entry.parts.push(next_part);
            }
        }
        self.root.next_part = next_part + 1;
        self.splits.parts += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const SMALL: Sizes = Sizes {
        leaf_rows_max: 4,
        node_leaves_max: 3,
        scan_rows_max: 2,
        part_rows_max: 20,
        pair_rows_min: 10,
        unread_rows: 4,
        without: None,
    };

    fn key(at: i64, id: &str, event_type: EventType) -> RowKey {
        RowKey { position: Position { at: Timestamp(at), id: id.into() }, event_type }
    }

    /// Plays an owner: a store of rows by part, cells by number.
    #[derive(Default)]
    struct Store {
        rows: BTreeMap<(Position, u32), EventType>,
        cells: BTreeMap<u32, Vec<u8>>,
    }

    impl Store {
        fn rows_of(&self, span: &Span, parts: &[u32]) -> Vec<RowKey> {
            let mut keys: Vec<RowKey> = self
                .rows
                .iter()
                .filter(|((position, part), _)| span.contains(position) && parts.contains(part))
                .map(|((position, _), event_type)| RowKey {
                    position: position.clone(),
                    event_type: *event_type,
                })
                .collect();
            keys.dedup_by(|one, next| one.position == next.position);
            keys
        }

        fn write(&mut self, tree: &mut Tree, batch: Vec<RowKey>, number: u64) {
            let positions = || batch.iter().map(|key| &key.position);
            for read in tree.missing_nodes(positions()) {
                let stored = Node::decode(&self.cells[&read.cell]).expect("sound");
                if !tree.put_stored(&read, stored) {
                    tree.put_counted(&read, &self.rows_of(&read.span, &read.parts));
                }
            }
            for read in tree.missing_leaves(positions(), number) {
                tree.put_leaf(&read, self.rows_of(&read.span, &read.parts));
            }
            let mut new: Vec<RowKey> =
                batch.into_iter().filter(|key| tree.find(&key.position).is_none()).collect();
            new.sort();
            new.dedup_by(|one, next| one.position == next.position);
            for key in &new {
                self.rows.insert((key.position.clone(), tree.part_for(&key.position)), key.event_type);
            }
            tree.insert(new);
            self.cells.extend(tree.take_dirty());
        }

        fn check(&self) {
            let root = Root::decode(&self.cells[&ROOT_CELL]).expect("sound");
            for (at, entry) in root.entries.iter().enumerate() {
                let node = Node::decode(&self.cells[&entry.cell]).expect("sound");
                assert_eq!(node.span, root.entry_span(at), "an entry's node covers its stretch");
                assert_eq!(node.counts(), entry.counts, "an entry is the sum of its node");
                assert!(node.leaves.len() <= SMALL.node_leaves_max);
                for leaf in 0..node.leaves.len() {
                    let rows = self.rows_of(&node.leaf_span(leaf), &entry.parts);
                    assert_eq!(
                        Counts::of(&rows),
                        node.leaves[leaf].counts,
                        "a leaf is the number of its rows"
                    );
                    assert!(rows.len() <= SMALL.leaf_rows_max);
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        #[test]
        fn numbers_are_those_of_the_rows_at_every_level(
            batches in proptest::collection::vec(proptest::collection::vec((0_i64..40, "[ab]{1,3}", 0_usize..15), 1..12), 1..30),
            growing in any::<bool>(),
            forget in any::<bool>(),
        ) {
            let mut store = Store::default();
            let mut tree = Tree::build(Vec::new(), SMALL);
            store.cells.extend(tree.take_dirty());
            let mut want = BTreeSet::new();
            for (number, batch) in batches.into_iter().enumerate() {
                let shift = if growing { i64::try_from(number).expect("small") * 20 } else { 0 };
                let batch: Vec<RowKey> = batch.into_iter().map(|(at, id, of)| key(at + shift, &id, EventType::ALL[of])).collect();
                want.extend(batch.iter().map(|key| key.position.clone()));
                store.write(&mut tree, batch, number as u64);
                store.check();
                if forget && number % 3 == 0 {
                    tree.forget_before(number as u64);
                }
                if number % 7 == 6 {
                    tree = Tree::take_over(Root::decode(&store.cells[&ROOT_CELL]).expect("sound"), SMALL);
                }
            }
            let root = Root::decode(&store.cells[&ROOT_CELL]).expect("sound");
            let total: u64 = root.entries.iter().map(|entry| entry.counts.matching(TypeSet::ALL)).sum();
            prop_assert_eq!(total, want.len() as u64);
        }

        #[test]
        fn stored_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Node::decode(&bytes);
            let _ = Root::decode(&bytes);
        }
    }

    #[test]
    fn a_growing_timeline_has_one_part_at_a_time() {
        let mut store = Store::default();
        let mut tree = Tree::build(Vec::new(), SMALL);
        for number in 0..200 {
            let batch = (0..5).map(|at| key(number * 5 + at, "e", EventType::Opened)).collect();
            store.write(&mut tree, batch, number.cast_unsigned());
        }
        store.check();
        assert!(tree.root().entries.iter().all(|entry| entry.parts.len() == 1));
        let parts: BTreeSet<u32> =
            tree.root().entries.iter().flat_map(|entry| entry.parts.to_vec()).collect();
        assert!(parts.len() > 10, "{parts:?}");
    }

    #[test]
    fn a_node_that_does_not_cover_its_stretch_is_counted_anew() {
        let mut store = Store::default();
        let mut tree = Tree::build(Vec::new(), SMALL);
        store.write(&mut tree, (0..10).map(|at| key(at, "e", EventType::Opened)).collect(), 0);
        let root = Root::decode(&store.cells[&ROOT_CELL]).expect("sound");
        // An earlier owner's split comes late: its half of the first node overwrites the whole.
        let cell = root.entries[0].cell;
        let mut half = Node::decode(&store.cells[&cell]).expect("sound");
        half.leaves.truncate(1);
        half.span.until = Position::at_start_of(Timestamp(2));
        store.cells.insert(cell, half.encode());
        let mut tree = Tree::take_over(root, SMALL);
        store.write(&mut tree, vec![key(1, "f", EventType::Clicked)], 1);
        store.check();
    }
}

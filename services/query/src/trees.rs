//! What of trees earlier pages have seen, so that a page reads the cells that it needs in one request, and decodes those that
//! are as they were no more than once.
//!
//! Nothing is answered from here: every page reads its cells from the store, and what is kept of one stands for it only
//! where the store says that its write timestamp is still the same.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use event_store::StoredTally;
use lru::LruCache;
use timeline::codec::Damaged;
use timeline::row::RowKey;
use timeline::tally::{Node, Root};
use timeline::{Position, TimelineId};

/// How many timelines are remembered.
const TIMELINES_MAX: NonZeroUsize = NonZeroUsize::new(4_096).expect("not zero");
/// Entries of roots, leaves of nodes and keys of leaves that are remembered, all in all: some 100 bytes each.
const WEIGHT_MAX: usize = 100_000;
/// Nodes of one timeline that are remembered.
const NODES_MAX: usize = 8;
/// Leaves of one timeline whose keys are remembered.
const LEAVES_MAX: usize = 8;

/// A cell as it was written at an instant.
#[derive(Debug)]
pub(crate) struct Version<T> {
    /// Its write timestamp.
    pub(crate) stamp: i64,
    /// What it says.
    pub(crate) value: Arc<T>,
}

impl<T> Clone for Version<T> {
    fn clone(&self) -> Version<T> {
        Version { stamp: self.stamp, value: self.value.clone() }
    }
}

/// Which leaf, of a node that was written at an instant: with what is counted in the node its write timestamp changes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LeafVersion {
    /// The cell of its node.
    pub(crate) cell: u32,
    /// The write timestamp of that.
    pub(crate) stamp: i64,
    /// Its first position.
    pub(crate) from: Position,
}

/// What was seen of one tree; what was used last comes first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) root: Option<Version<Root>>,
    nodes: Vec<(u32, Version<Node>)>,
    leaves: Vec<(LeafVersion, LeafKeys)>,
}

/// Keys of a leaf.
#[derive(Clone, Debug)]
pub(crate) struct LeafKeys {
    /// They are all of the leaf's that are here or behind.
    pub(crate) from: Position,
    pub(crate) keys: Arc<[RowKey]>,
}

impl Seen {
    /// What a cell says: what was seen of it, where it is still that.
    pub(crate) fn read<T>(
        seen: Option<&Version<T>>,
        stored: &StoredTally,
        decode: impl FnOnce(&[u8]) -> Result<T, Damaged>,
    ) -> Result<Version<T>, Damaged> {
        if let Some(seen) = seen.filter(|seen| seen.stamp == stored.stamp) {
            return Ok(seen.clone());
        }
        Ok(Version { stamp: stored.stamp, value: Arc::new(decode(&stored.bytes)?) })
    }

    /// The node in a cell, as it was seen last.
    pub(crate) fn node(&self, cell: u32) -> Option<&Version<Node>> {
        self.nodes.iter().find(|(seen, _)| *seen == cell).map(|(_, node)| node)
    }

    /// The keys of a leaf, of which those before `from` are not asked for.
    pub(crate) fn leaf(&self, leaf: &LeafVersion, from: &Position) -> Option<&LeafKeys> {
        let (_, keys) = self.leaves.iter().find(|(seen, _)| seen == leaf)?;
        (keys.from <= *from).then_some(keys)
    }

    /// Remembers a node.
    pub(crate) fn put_node(&mut self, cell: u32, node: Version<Node>) {
        put_first(&mut self.nodes, cell, node, NODES_MAX);
    }

    /// Remembers the keys of a leaf, all that its node counts.
    pub(crate) fn put_leaf(&mut self, leaf: LeafVersion, keys: LeafKeys) {
        put_first(&mut self.leaves, leaf, keys, LEAVES_MAX);
    }

    fn weight(&self) -> usize {
        let root = self.root.as_ref().map_or(0, |root| root.value.entries.len());
        let nodes = self.nodes.iter().map(|(_, node)| node.value.leaves.len());
        root + nodes.chain(self.leaves.iter().map(|(_, leaf)| leaf.keys.len())).sum::<usize>()
    }
}

/// Puts a value before those of all other keys; with it no more than `max` stay.
fn put_first<K: PartialEq, V>(list: &mut Vec<(K, V)>, key: K, value: V, max: usize) {
    list.retain(|(other, _)| *other != key);
    list.truncate(max - 1);
    list.insert(0, (key, value));
}

/// The trees that were seen lately.
#[derive(Debug)]
pub struct Trees {
    seen: Mutex<Remembered>,
}

#[derive(Debug)]
struct Remembered {
    trees: LruCache<TimelineId, Seen>,
    weight: usize,
}

impl Default for Trees {
    /// None was seen yet.
    fn default() -> Trees {
        Trees { seen: Mutex::new(Remembered { trees: LruCache::new(TIMELINES_MAX), weight: 0 }) }
    }
}

impl Trees {
    /// What was seen of a timeline's tree.
    pub(crate) fn of(&self, timeline: &TimelineId) -> Seen {
        self.remembered().trees.get(timeline).cloned().unwrap_or_default()
    }

    /// Remembers it, and forgets what was not asked for for the longest time where it becomes too much.
    pub(crate) fn put(&self, timeline: &TimelineId, seen: Seen) {
        let mut remembered = self.remembered();
        remembered.weight += seen.weight();
        let replaced = remembered.trees.push(timeline.clone(), seen);
        remembered.weight -= replaced.map_or(0, |(_, seen)| seen.weight());
        while remembered.weight > WEIGHT_MAX
            && let Some((_, forgotten)) = remembered.trees.pop_lru()
        {
            remembered.weight -= forgotten.weight();
        }
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, Remembered> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

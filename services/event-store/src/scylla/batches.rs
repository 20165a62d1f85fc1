//! How writes are put into batches.
//!
//! Rows of one partition go together: a batch of one partition is one mutation, which costs the servers a fraction of
//! what its rows would one by one. Partitions with few rows share a batch (writing a row or three to each of many contacts
//! was 1.5 to 1.8 times as fast, on one Cassandra node), but only with partitions on the same replicas, so that
//! whichever node coordinates owns them all. Batches are unlogged: each write is idempotent, and a batch that half landed
//! is written again.

use std::collections::HashMap;

use uuid::Uuid;

/// The most rows in a batch.
pub(super) const ROWS_MAX: usize = 100;
/// The most bytes in a batch of one partition, unless one row alone has more.
pub(super) const BYTES_MAX: usize = 64 * 1024;
/// The most partitions in a batch: Cassandra warns of more.
pub(super) const PARTITIONS_MAX: usize = 10;
/// The most bytes in a batch of several partitions. Cassandra warns of more than 5 KiB by default, in its log and in ours (and
/// refuses more than 50, ScyllaDB more than 1 MiB), and larger ones, of more partitions too, were measured to be no faster. A
/// batch of one partition neither limits.
pub(super) const SHARED_BYTES_MAX: usize = 5 * 1024;
/// From so many rows on a partition has a batch of its own.
const ROWS_ALONE_MIN: usize = 20;
/// What a row takes beside its own bytes: keys, lengths, timestamps.
const ROW_OVERHEAD_BYTES: usize = 128;

/// Writes of one partition.
pub(super) struct PartitionWrites<V> {
    /// The nodes that have the partition, in order; empty where that makes no difference.
    pub(super) replicas: Vec<Uuid>,
    /// The values of each row, and how many bytes its largest ones have.
    pub(super) rows: Vec<(V, usize)>,
}

/// Puts writes into batches, each within the limits above.
pub(super) fn plan<V>(partitions: impl IntoIterator<Item = PartitionWrites<V>>) -> Vec<Vec<V>> {
    let mut batches = Vec::new();
    let mut shared: HashMap<Vec<Uuid>, Batch<V>> = HashMap::new();
    for partition in partitions {
        let mut chunk = Batch::empty();
        for (row, bytes) in partition.rows {
            let bytes = bytes + ROW_OVERHEAD_BYTES;
            if !chunk.has_room(1, bytes, BYTES_MAX) {
                batches.push(std::mem::replace(&mut chunk, Batch::empty()).rows);
            }
            chunk.rows.push(row);
            chunk.bytes += bytes;
        }
        if chunk.rows.is_empty() {
            continue;
        }
        if chunk.rows.len() >= ROWS_ALONE_MIN || chunk.bytes > SHARED_BYTES_MAX {
            batches.push(chunk.rows);
            continue;
        }
        let open = shared.entry(partition.replicas).or_insert_with(Batch::empty);
        if open.partitions == PARTITIONS_MAX
            || !open.has_room(chunk.rows.len(), chunk.bytes, SHARED_BYTES_MAX)
        {
            batches.push(std::mem::replace(open, Batch::empty()).rows);
        }
        open.partitions += 1;
        open.bytes += chunk.bytes;
        open.rows.append(&mut chunk.rows);
    }
    batches.extend(shared.into_values().map(|open| open.rows));
    batches
}

/// A batch being filled.
struct Batch<V> {
    rows: Vec<V>,
    bytes: usize,
    partitions: usize,
}

impl<V> Batch<V> {
    fn empty() -> Batch<V> {
        Batch { rows: Vec::new(), bytes: 0, partitions: 0 }
    }

    fn has_room(&self, rows: usize, bytes: usize, bytes_max: usize) -> bool {
        self.rows.is_empty() || (self.rows.len() + rows <= ROWS_MAX && self.bytes + bytes <= bytes_max)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_row_for_each_of_many_partitions_is_few_batches() {
        let partitions =
            (0..1000).map(|number| PartitionWrites { replicas: Vec::new(), rows: vec![(number, 300)] });
        assert_eq!(plan(partitions).len(), 100);
    }

    #[test]
    fn a_large_row_goes_alone() {
        let rows = vec![(0, 10), (1, 200_000), (2, 10)];
        let batches = plan([PartitionWrites { replicas: Vec::new(), rows }]);
        assert_eq!(batches, [vec![0], vec![1], vec![2]]);
    }

    proptest! {
        #[test]
        fn every_row_is_in_one_batch_and_limits_hold(
            partitions in proptest::collection::vec((0_u128..3, proptest::collection::vec(0_usize..70_000, 0..250)), 0..30),
        ) {
            let mut bytes = Vec::new();
            let writes: Vec<_> = partitions.iter().enumerate().map(|(at, (replica, rows))| PartitionWrites {
                replicas: vec![Uuid::from_u128(*replica)],
                rows: rows.iter().map(|size| {
                    bytes.push(*size + ROW_OVERHEAD_BYTES);
                    ((at, *replica, bytes.len() - 1), *size)
                }).collect(),
            }).collect();
            let batches = plan(writes);
            let mut seen: Vec<usize> = batches.iter().flatten().map(|row| row.2).collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..bytes.len()).collect::<Vec<_>>());
            for batch in &batches {
                let owners: BTreeSet<_> = batch.iter().map(|row| row.0).collect();
                let replicas: BTreeSet<_> = batch.iter().map(|row| row.1).collect();
                let size: usize = batch.iter().map(|row| bytes[row.2]).sum();
                let limit = if owners.len() > 1 { SHARED_BYTES_MAX } else { BYTES_MAX };
                prop_assert!(!batch.is_empty() && batch.len() <= ROWS_MAX && owners.len() <= PARTITIONS_MAX);
                prop_assert_eq!(replicas.len(), 1);
                prop_assert!(size <= limit || batch.len() == 1);
            }
        }
    }
}

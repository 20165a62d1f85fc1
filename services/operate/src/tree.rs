//! Whether a timeline's numbers are those of its rows, at every level.

use std::collections::BTreeSet;
use std::time::Duration;

use event_store::{Columns, EventStore, StoreError, StoredTally};
use timeline::row::RowKey;
use timeline::tally::{Counts, Entry, Node, ROOT_CELL, Root};
use timeline::{Span, TimelineId, Timestamp, TypeSet};

use crate::{Difference, Level};

/// How often a timeline that does not add up is looked at again, and how long to wait before that: its owner may be writing.
const TRIES: u32 = 6;
const TRY_PAUSE: Duration = Duration::from_millis(500);

/// What was found of one timeline.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TreeReport {
    /// What does not add up.
    pub differences: Vec<Difference>,
    /// Rows that were counted.
    pub rows: u64,
    /// Whether it was written to each time that it was looked at, so that nothing can be said.
    pub busy: bool,
}

/// Checks a timeline while its owner may be writing: what does not add up is looked at again, and told where it stays.
///
/// # Errors
///
/// When the store fails.
pub async fn check_at_rest(
    store: &dyn EventStore,
    id: &TimelineId,
    kept_since: Timestamp,
) -> Result<TreeReport, StoreError> {
    let mut tries = 0;
    loop {
        let before = root_of(store, id).await?;
        let report = check(store, id, kept_since).await?;
        if report.differences.is_empty() {
            return Ok(report);
        }
        tries += 1;
        if tries == TRIES {
            let busy = root_of(store, id).await? != before;
            let differences = if busy { Vec::new() } else { report.differences };
            return Ok(TreeReport { busy, differences, ..report });
        }
        tokio::time::sleep(TRY_PAUSE).await;
    }
}

/// Checks a timeline as it is this moment. One without a tree has no numbers that could be wrong. Of rows older than `kept_since` some are
/// gone, and their numbers stay until the owner comes by: they are not looked at.
///
/// # Errors
///
/// When the store fails.
pub async fn check(
    store: &dyn EventStore,
    id: &TimelineId,
    kept_since: Timestamp,
) -> Result<TreeReport, StoreError> {
    let mut report = TreeReport::default();
    let Some(root) = root_of(store, id).await? else { return Ok(report) };
    let root = match Root::read(&root.bytes) {
        Ok(Some(root)) => root,
        Ok(None) => return Ok(report),
        Err(_) => {
            report.add(id, Level::Damaged, "the root cannot be read".to_owned());
            return Ok(report);
        }
    };
    let is_whole = root.oldest >= kept_since;
    for (at, entry) in root.entries.iter().enumerate() {
        let kept_since = if is_whole { Timestamp(i64::MIN) } else { kept_since };
        check_node(store, id, entry, &root.entry_span(at), kept_since, &mut report).await?;
    }
    Ok(report)
}

async fn check_node(
    store: &dyn EventStore,
    id: &TimelineId,
    entry: &Entry,
    span: &Span,
    kept_since: Timestamp,
    report: &mut TreeReport,
) -> Result<(), StoreError> {
    let cell = entry.cell;
    let stored = store.read_tallies(id, &[cell]).await?.pop().flatten();
    let node = match stored.map(|stored| Node::decode(&stored.bytes)) {
        Some(Ok(node)) if node.span == *span => node,
        found => {
            let what = match found {
                None => "is missing",
                Some(Err(_)) => "cannot be read",
                Some(Ok(_)) => "does not cover what the root says",
            };
            report.add(id, Level::RootAndNode, format!("node {cell} {what}"));
            return Ok(());
        }
    };
    if node.counts() != entry.counts {
        let (root, leaves) = (entry.counts.all(), node.counts().all());
        report.add(
            id,
            Level::RootAndNode,
            format!("the root counts {root} rows in node {cell}, its leaves {leaves}"),
        );
    }
    let mut keys = BTreeSet::new();
    for part in &entry.parts {
        let rows = store.read_rows(id, *part, TypeSet::ALL, span, Columns::Keys, usize::MAX).await?;
        keys.extend(rows.into_iter().map(|row| row.key));
    }
    report.rows += keys.len() as u64;
    // Sorted by position, as the leaves are.
    let mut keys = keys.into_iter().peekable();
    for (at, leaf) in node.leaves.iter().enumerate() {
        let span = node.leaf_span(at);
        let mut held = Vec::<RowKey>::new();
        while let Some(key) = keys.next_if(|key| key.position < span.until) {
            held.push(key);
        }
        let counts = Counts::of(&held);
        if counts != leaf.counts && span.from.at >= kept_since {
            let from = span.from.at.to_rfc3339();
            report.add(
                id,
                Level::LeafAndRows,
                format!(
                    "leaf {at} of node {cell}, from {from}, counts {} rows and has {}",
                    leaf.counts.all(),
                    counts.all()
                ),
            );
        }
    }
    Ok(())
}

impl TreeReport {
    fn add(&mut self, id: &TimelineId, level: Level, what: String) {
        self.differences.push(Difference { timeline: Some(id.clone()), level, what });
    }
}

async fn root_of(store: &dyn EventStore, id: &TimelineId) -> Result<Option<StoredTally>, StoreError> {
    Ok(store.read_tallies(id, &[ROOT_CELL]).await?.pop().flatten())
}

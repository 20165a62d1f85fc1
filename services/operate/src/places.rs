//! Which of the rows that should stand do.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use event_store::{Columns, EventStore, Head, StoreError, StoredRow};
use futures::stream::{self, StreamExt, TryStreamExt};
use timeline::tally::Root;
use timeline::{Position, Span, TimelineId, TypeSet};

use crate::STORE_REQUESTS_MAX;

/// Of `wanted`, the positions where no row stands, by timeline.
///
/// # Errors
///
/// When the store fails, or a root cannot be read.
pub async fn missing(
    store: &dyn EventStore,
    wanted: BTreeMap<TimelineId, BTreeSet<Position>>,
) -> Result<BTreeMap<TimelineId, BTreeSet<Position>>, StoreError> {
    let ids: Vec<TimelineId> = wanted.keys().cloned().collect();
    let heads = store.read_heads(&ids).await?;
    let small: Vec<TimelineId> =
        ids.iter().zip(&heads).filter(|(_, head)| is_treeless(head)).map(|(id, _)| id.clone()).collect();
    let rows = store.read_first_parts(&small).await?;
    let mut held: HashMap<TimelineId, Vec<StoredRow>> = small.into_iter().zip(rows).collect();
    let (mut missing, mut reads) = (BTreeMap::new(), Vec::new());
    for ((id, mut positions), head) in wanted.into_iter().zip(heads) {
        let root = head.root.as_deref().map_or(Ok(None), Root::read);
        let Some(root) = root.map_err(|damaged| StoreError::new("decode", damaged))? else {
            for row in held.remove(&id).unwrap_or_default() {
                positions.remove(&row.key.position);
            }
            add(&mut missing, id, positions);
            continue;
        };
        for position in positions {
            let parts = root.entries[root.entry_at(&position)].parts.clone();
            reads.push((id.clone(), position, parts));
        }
    }
    let read: Vec<Option<(TimelineId, Position)>> = stream::iter(reads)
        .map(|(id, position, parts)| async move {
            for part in parts {
                let span = Span::only(&position);
                let rows = store.read_rows(&id, part, TypeSet::ALL, &span, Columns::Keys, 1).await?;
                if !rows.is_empty() {
                    return Ok::<_, StoreError>(None);
                }
            }
            Ok(Some((id, position)))
        })
        .buffer_unordered(STORE_REQUESTS_MAX)
        .try_collect()
        .await?;
    for (id, position) in read.into_iter().flatten() {
        add(&mut missing, id, [position].into());
    }
    Ok(missing)
}

/// Whether a timeline is read whole: it has no tree.
fn is_treeless(head: &Head) -> bool {
    head.root.as_deref().is_none_or(|root| root == Root::NONE)
}

fn add(
    missing: &mut BTreeMap<TimelineId, BTreeSet<Position>>,
    id: TimelineId,
    positions: BTreeSet<Position>,
) {
    if !positions.is_empty() {
        missing.entry(id).or_default().extend(positions);
    }
}

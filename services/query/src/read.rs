//! One page of a timeline and its exact total.
//!
//! A timeline with a tree is read by its numbers: the root, the nodes and leaves at the ends of the wanted stretch, then the
//! nodes on the way to the page, then the rows: a handful of small reads, whatever the size and the page. A timeline without one is
//! small and read whole. Where levels of the tree differ, as they may while its owner writes, the lower one is trusted.

use std::collections::HashMap;

use event_store::{Columns, EventStore, StoreError, StoredRow};
use futures::future::try_join_all;
use timeline::row::RowKey;
use timeline::tally::{Counts, FIRST_PART, Node, ROOT_CELL, Root, Sizes};
use timeline::{Id, Position, Row, RowBody, Span, TimelineId, TypeSet};

/// Rows of a contact that are looked at together when only those of one campaign are wanted.
const CAMPAIGN_SCAN_ROWS: u64 = 2_000;

/// What of a timeline is wanted.
#[derive(Clone, Debug)]
pub struct PageRequest {
    /// Rows of these types only.
    pub types: TypeSet,
    /// Rows of this stretch only: the retention cut is in it.
    pub span: Span,
    /// Rows of this campaign only; for a contact's timeline.
    pub campaign: Option<Id>,
    /// How many rows, newest first, come before the page.
    pub offset: u64,
    /// How many rows the page has at most.
    pub limit: usize,
}

/// A page and the number of all rows that match.
#[derive(Debug, Default, PartialEq)]
pub struct Page {
    /// Every row that matches, on all pages.
    pub total: u64,
    /// The page's rows, newest first.
    pub rows: Vec<Row>,
    /// How many rows and keys were read for it.
    pub rows_read: u64,
    /// How they were found: a label of `backstamp_pages_total`.
    pub by: &'static str,
}

/// Reads one page. Stored bytes that are damaged are a [`StoreError`] too.
pub async fn read_page(
    store: &dyn EventStore,
    timeline: &TimelineId,
    request: &PageRequest,
) -> Result<Page, StoreError> {
    let mut reader = Reader { store, timeline, nodes: HashMap::new(), rows_read: 0 };
    if request.types.is_empty() || request.span.is_empty() {
        return Ok(Page { by: "scan", ..Page::default() });
    }
    let root = store.read_tallies(timeline, &[ROOT_CELL]).await?.pop().flatten();
    let (by, (total, rows)) = match (root, &request.campaign) {
        (Some(root), None) => ("tree", reader.by_tree(decode(Root::decode(&root))?, request).await?),
        (None, None) => ("scan", reader.by_scan(request).await?),
        (Some(root), Some(campaign)) => {
            ("contact_scan", reader.of_campaign(decode(Root::decode(&root))?, campaign, request).await?)
        }
        (None, Some(campaign)) => {
            let rows = reader.all_rows(&request.span).await?;
            let mut page = CampaignPage::new(campaign, request);
            page.take(rows)?;
            ("contact_scan", (page.total, page.rows))
        }
    };
    Ok(Page { total, rows, rows_read: reader.rows_read, by })
}

/// A stretch of the timeline whose rows are counted.
#[derive(Clone, Debug)]
struct Segment {
    span: Span,
    parts: Vec<u32>,
    /// How many rows of it match.
    matching: u64,
    /// The types that have rows in it.
    present: TypeSet,
    /// The node's cell, where it can be taken apart into leaves.
    cell: Option<u32>,
}

struct Reader<'a> {
    store: &'a dyn EventStore,
    timeline: &'a TimelineId,
    nodes: HashMap<u32, Node>,
    rows_read: u64,
}

impl Reader<'_> {
    async fn by_tree(
        &mut self,
        mut root: Root,
        request: &PageRequest,
    ) -> Result<(u64, Vec<Row>), StoreError> {
        let segments = self.segments(&mut root, request).await?;
        let total = segments.iter().map(|segment| segment.matching).sum();
        let rows = self.page_of(&root, segments, request).await?;
        Ok((total, rows))
    }

    /// The wanted stretch as segments, oldest first: whole nodes, and at its ragged ends leaves and counted pieces of leaves.
    async fn segments(&mut self, root: &mut Root, request: &PageRequest) -> Result<Vec<Segment>, StoreError> {
        // Nothing is older or newer than the root says, so a bound beyond that is none.
        let mut wanted = request.span.clone();
        if wanted.from <= Position::at_start_of(root.oldest) {
            wanted.from = Position::min();
        }
        if wanted.until.at > root.newest {
            wanted.until = Position::max();
        }
        let inside = |span: &Span| !wanted.and(span).is_empty();
        let ragged: Vec<usize> = (0..root.entries.len())
            .filter(|at| inside(&root.entry_span(*at)) && !wanted.covers(&root.entry_span(*at)))
            .collect();
        self.load_nodes(root, &ragged).await?;
        let mut segments = Vec::new();
        for at in 0..root.entries.len() {
            let span = root.entry_span(at);
            if !inside(&span) {
                continue;
            }
            if wanted.covers(&span) {
                let entry = &root.entries[at];
                segments.push(segment(span, &entry.parts, &entry.counts, request.types, Some(entry.cell)));
                continue;
            }
            for leaf in self.leaves(root, at, request.types) {
                if inside(&leaf.span) {
                    segments.push(if wanted.covers(&leaf.span) {
                        leaf
                    } else {
                        self.counted_piece(&wanted, &leaf, request.types).await?
                    });
                }
            }
        }
        Ok(segments)
    }

    /// The part of a leaf that is wanted, its rows counted one by one.
    async fn counted_piece(
        &mut self,
        wanted: &Span,
        leaf: &Segment,
        types: TypeSet,
    ) -> Result<Segment, StoreError> {
        let span = wanted.and(&leaf.span);
        let keys = self.read_rows(&span, &leaf.parts, leaf.present, Columns::Keys).await?;
        let counts = Counts::of(keys.iter().map(|row| &row.key));
        Ok(segment(span, &leaf.parts, &counts, types, None))
    }

    /// The page's rows: walks the segments from the newest, past as many rows as come before the page.
    async fn page_of(
        &mut self,
        root: &Root,
        segments: Vec<Segment>,
        request: &PageRequest,
    ) -> Result<Vec<Row>, StoreError> {
        let mut stack = segments;
        let mut rows: Vec<StoredRow> = Vec::new();
        let mut skip = request.offset;
        while rows.len() < request.limit {
            // Segments that hold the rest of the page, if they hold what they say; if not, the next round goes on.
            let missing = (request.limit - rows.len()) as u64;
            let (mut reads, mut promised) = (Vec::<Segment>::new(), 0);
            while promised < skip + missing {
                let Some(segment) = stack.pop() else { break };
                if segment.matching == 0 {
                    continue;
                }
                if reads.is_empty() && segment.matching <= skip {
                    skip -= segment.matching;
                    continue;
                }
                // A node is read whole only where the page wants all its matching rows; else its leaves are looked at.
                let is_cut = (reads.is_empty() && skip > 0) || segment.matching > skip + missing - promised;
                match segment.cell.filter(|_| is_cut) {
                    Some(cell) => stack.extend(self.leaves_of_cell(root, cell, request.types).await?),
                    None => {
                        promised += segment.matching;
                        push_read(&mut reads, segment);
                    }
                }
            }
            if reads.is_empty() {
                break;
            }
            let read = self.read_segments(&reads).await?;
            let held = read.len() as u64;
            rows.extend(read.into_iter().skip(index(skip)).take(index(missing)));
            skip = skip.saturating_sub(held);
        }
        rows.into_iter().map(decode_row).collect()
    }

    /// A campaign's rows on a contact's timeline, which are counted by looking at each: a contact has few, and one that has a million
    /// is looked at piece by piece.
    async fn of_campaign(
        &mut self,
        mut root: Root,
        campaign: &Id,
        request: &PageRequest,
    ) -> Result<(u64, Vec<Row>), StoreError> {
        let mut stack = self.segments(&mut root, request).await?;
        let mut page = CampaignPage::new(campaign, request);
        while let Some(segment) = stack.pop() {
            match segment.cell.filter(|_| segment.matching > CAMPAIGN_SCAN_ROWS) {
                Some(cell) => stack.extend(self.leaves_of_cell(&root, cell, request.types).await?),
                None if segment.matching == 0 => {}
                None => page.take(self.read_segments(&[segment]).await?)?,
            }
        }
        Ok((page.total, page.rows))
    }

    /// A timeline without a tree: its keys are read, those of one event under two types told apart, and then the page's rows.
    async fn by_scan(&mut self, request: &PageRequest) -> Result<(u64, Vec<Row>), StoreError> {
        let mut keys = self.read_rows(&request.span, &[FIRST_PART], TypeSet::ALL, Columns::Keys).await?;
        keys.dedup_by(|next, kept| next.key.position == kept.key.position);
        keys.retain(|row| request.types.contains(row.key.event_type));
        let total = keys.len() as u64;
        let page = keys.get(index(request.offset)..).unwrap_or_default();
        let page: Vec<&RowKey> = page.iter().take(request.limit).map(|row| &row.key).collect();
        let (Some(newest), Some(oldest)) = (page.first(), page.last()) else {
            return Ok((total, Vec::new()));
        };
        let after_newest =
            Position { at: newest.position.at, id: format!("{}\0", newest.position.id).into() };
        let span = Span { from: oldest.position.clone(), until: after_newest };
        let rows = self.read_rows(&span, &[FIRST_PART], request.types, Columns::All).await?;
        let on_page = |row: &StoredRow| {
            page.binary_search_by(|key| row.key.position.cmp(&key.position))
                .is_ok_and(|at| *page[at] == row.key)
        };
        Ok((total, rows.into_iter().filter(on_page).map(decode_row).collect::<Result<_, _>>()?))
    }

    /// Every row of a timeline without a tree, newest first.
    async fn all_rows(&mut self, span: &Span) -> Result<Vec<StoredRow>, StoreError> {
        let mut rows = self.read_rows(span, &[FIRST_PART], TypeSet::ALL, Columns::All).await?;
        rows.dedup_by(|next, kept| next.key.position == kept.key.position);
        Ok(rows)
    }

    /// The leaves of a whole node, oldest first.
    async fn leaves_of_cell(
        &mut self,
        root: &Root,
        cell: u32,
        types: TypeSet,
    ) -> Result<Vec<Segment>, StoreError> {
        let at = root.entries.iter().position(|entry| entry.cell == cell).unwrap_or_default();
        if !self.nodes.contains_key(&cell) {
            self.load_nodes(&mut root.clone(), &[at]).await?;
        }
        Ok(self.leaves(root, at, types))
    }

    fn leaves(&self, root: &Root, at: usize, types: TypeSet) -> Vec<Segment> {
        let entry = &root.entries[at];
        let Some(node) = self.nodes.get(&entry.cell) else { return Vec::new() };
        let leaf =
            |leaf: usize| segment(node.leaf_span(leaf), &entry.parts, &node.leaves[leaf].counts, types, None);
        (0..node.leaves.len()).map(leaf).collect()
    }

    /// Reads nodes and lets the root's copy of their numbers follow them.
    async fn load_nodes(&mut self, root: &mut Root, entries: &[usize]) -> Result<(), StoreError> {
        if entries.is_empty() {
            return Ok(());
        }
        let cells: Vec<u32> = entries.iter().map(|at| root.entries[*at].cell).collect();
        let stored = self.store.read_tallies(self.timeline, &cells).await?;
        for (at, stored) in entries.iter().zip(stored) {
            let span = root.entry_span(*at);
            let node = stored
                .map(|stored| decode(Node::decode(&stored)))
                .transpose()?
                .filter(|node| node.span == span);
            let node = match node {
                Some(node) => node,
                None => self.count_node(root, *at).await?,
            };
            if node.counts() != root.entries[*at].counts {
                telemetry::metrics::TREE_MISMATCHES.inc();
                root.entries[*at].counts = node.counts();
            }
            self.nodes.insert(root.entries[*at].cell, node);
        }
        Ok(())
    }

    /// A node whose cell is not what the root says, as it is for a moment while its owner splits it, or until the owner of the
    /// timeline next touches it after an earlier one's late write: counted from its rows.
    async fn count_node(&mut self, root: &Root, at: usize) -> Result<Node, StoreError> {
        let span = root.entry_span(at);
        let rows = self.read_rows(&span, &root.entries[at].parts, TypeSet::ALL, Columns::Keys).await?;
        let keys: Vec<RowKey> = rows.into_iter().rev().map(|row| row.key).collect();
        Ok(Node::of_rows(span, &keys, &Sizes::default()))
    }

    async fn read_segments(&mut self, segments: &[Segment]) -> Result<Vec<StoredRow>, StoreError> {
        let read = |segment| read_parts(self.store, self.timeline, segment, Columns::All);
        let rows = try_join_all(segments.iter().map(read)).await?.concat();
        self.rows_read += rows.len() as u64;
        Ok(rows)
    }

    async fn read_rows(
        &mut self,
        span: &Span,
        parts: &[u32],
        types: TypeSet,
        columns: Columns,
    ) -> Result<Vec<StoredRow>, StoreError> {
        let segment =
            Segment { span: span.clone(), parts: parts.to_vec(), matching: 0, present: types, cell: None };
        let rows = read_parts(self.store, self.timeline, &segment, columns).await?;
        self.rows_read += rows.len() as u64;
        Ok(rows)
    }
}

/// The rows of a segment in all its parts, newest first. Where an event stands in two parts, the row of the greater rank is it.
async fn read_parts(
    store: &dyn EventStore,
    timeline: &TimelineId,
    segment: &Segment,
    columns: Columns,
) -> Result<Vec<StoredRow>, StoreError> {
    let read = |part: &u32| store.read_rows(timeline, *part, segment.present, &segment.span, columns);
    if let [part] = segment.parts.as_slice() {
        return read(part).await;
    }
    let mut rows = try_join_all(segment.parts.iter().map(read)).await?.concat();
    let rank = |row: &StoredRow| RowBody::rank_of(&row.body);
    rows.sort_by(|one, next| {
        next.key.position.cmp(&one.key.position).then_with(|| rank(next).cmp(&rank(one)))
    });
    rows.dedup_by(|next, kept| next.key.position == kept.key.position);
    Ok(rows)
}

/// Adds a segment that comes before the last of `reads`; one read does for both where they are in the same parts.
fn push_read(reads: &mut Vec<Segment>, segment: Segment) {
    match reads.last_mut() {
        Some(last) if last.parts == segment.parts => {
            last.span.from = segment.span.from;
            last.present = last.present.or(segment.present);
        }
        _ => reads.push(segment),
    }
}

fn segment(span: Span, parts: &[u32], counts: &Counts, types: TypeSet, cell: Option<u32>) -> Segment {
    Segment {
        span,
        parts: parts.to_vec(),
        matching: counts.matching(types),
        present: counts.present(types),
        cell,
    }
}

/// Counts the rows of one campaign and keeps those of a page.
struct CampaignPage<'a> {
    campaign: &'a Id,
    request: &'a PageRequest,
    total: u64,
    rows: Vec<Row>,
}

impl CampaignPage<'_> {
    fn new<'a>(campaign: &'a Id, request: &'a PageRequest) -> CampaignPage<'a> {
        CampaignPage { campaign, request, total: 0, rows: Vec::new() }
    }

    /// Takes the next rows, newest first.
    fn take(&mut self, rows: Vec<StoredRow>) -> Result<(), StoreError> {
        for row in rows.into_iter().filter(|row| self.request.types.contains(row.key.event_type)) {
            let row = decode_row(row)?;
            if row.body.campaign.as_ref() == Some(self.campaign) {
                if self.total >= self.request.offset && self.rows.len() < self.request.limit {
                    self.rows.push(row);
                }
                self.total += 1;
            }
        }
        Ok(())
    }
}

fn decode_row(row: StoredRow) -> Result<Row, StoreError> {
    Ok(Row { body: decode(RowBody::decode(&row.body))?, key: row.key })
}

fn decode<T>(decoded: Result<T, timeline::codec::Damaged>) -> Result<T, StoreError> {
    decoded.map_err(|damaged| StoreError::new("decode", damaged))
}

fn index(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

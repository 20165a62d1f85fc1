//! One page of a timeline and its exact total.
//!
//! A timeline with a tree is read by its numbers: the root, the nodes and leaves at the ends of the wanted stretch, then the
//! nodes on the way to the page, then the rows: a handful of small reads, whatever the size and the page. A timeline without one is
//! small and read whole. Where levels of the tree differ, as they may while its owner writes, the lower one is trusted.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use event_store::{Columns, EventStore, StoreError, StoredRow, StoredTally};
use futures::future::try_join_all;
use timeline::row::RowKey;
use timeline::tally::{Counts, Entry, FIRST_PART, Leaf, Node, Parts, ROOT_CELL, Root, Sizes};
use timeline::{EventType, Id, Position, Row, RowBody, Span, Subject, TimelineId, TypeSet};

use crate::trees::{LeafKeys, LeafVersion, Seen, Trees, Version};

/// Rows of a contact that are looked at together when only those of one campaign are wanted. They are read with all that they hold.
const CAMPAIGN_SCAN_ROWS: u64 = 512;

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

/// Reads one page, by one who reads no other. Stored bytes that are damaged are a [`StoreError`] too.
pub async fn read_page(
    store: &dyn EventStore,
    timeline: &TimelineId,
    request: &PageRequest,
) -> Result<Page, StoreError> {
    read(None, store, timeline, request).await
}

/// [`read_page`], where `trees` remembers what pages before it have seen.
pub async fn read_page_by(
    trees: &Trees,
    store: &dyn EventStore,
    timeline: &TimelineId,
    request: &PageRequest,
) -> Result<Page, StoreError> {
    read(Some(trees), store, timeline, request).await
}

async fn read(
    trees: Option<&Trees>,
    store: &dyn EventStore,
    timeline: &TimelineId,
    request: &PageRequest,
) -> Result<Page, StoreError> {
    if request.types.is_empty() || request.span.is_empty() {
        return Ok(Page { by: "scan", ..Page::default() });
    }
    let seen = trees.map(|trees| trees.of(timeline)).unwrap_or_default();
    let mut reader = Reader::new(store, timeline, seen);
    let root = reader.root(request).await?;
    let (by, (total, rows)) = match (root, &request.campaign) {
        (Some(root), None) => ("tree", reader.by_tree(root, request).await?),
        (None, None) => ("scan", reader.by_scan(request).await?),
        (Some(root), Some(campaign)) if root.paired => {
            reader.remember(trees);
            return Box::pin(read_paired(trees, store, timeline, campaign, request)).await;
        }
        (Some(root), Some(campaign)) => ("contact_scan", reader.of_campaign(root, campaign, request).await?),
        (None, Some(campaign)) => {
            let rows = reader.all_rows(&request.span).await?;
            let mut page = CampaignPage::new(campaign, request);
            page.take(rows)?;
            ("contact_scan", (page.total, page.rows))
        }
    };
    reader.remember(trees);
    Ok(Page { total, rows, rows_read: reader.rows_read, by })
}

/// A page of a contact's events of one campaign, which have a timeline of their own because the contact's is long.
async fn read_paired(
    trees: Option<&Trees>,
    store: &dyn EventStore,
    timeline: &TimelineId,
    campaign: &Id,
    request: &PageRequest,
) -> Result<Page, StoreError> {
    let Subject::Contact(contact) = timeline.subject else {
        return Err(StoreError::new(
            "decode",
            "a timeline that is no contact's says that it stands by campaign",
        ));
    };
    let pair = TimelineId::contact_campaign(&timeline.account, contact, campaign);
    read(trees, store, &pair, &PageRequest { campaign: None, ..request.clone() }).await
}

/// A stretch of a timeline that has a tree: its rows are counted.
#[derive(Clone, Copy, Debug)]
enum Stretch {
    /// A whole node, by its entry in the root.
    Node(usize),
    /// A whole leaf of an entry's node.
    Leaf(usize, usize),
    /// A part of a leaf, by its place among the reader's pieces.
    Piece(usize),
}

/// A part of a leaf that is wanted: its rows were counted one by one.
struct Piece {
    entry: usize,
    span: Span,
    counts: Counts,
    /// Its rows, where the page wants them for certain, newest first.
    rows: Option<Vec<StoredRow>>,
}

/// Rows to read: a span of some parts.
struct Segment {
    span: Span,
    parts: Parts,
    types: TypeSet,
}

/// Where rows of a page come from.
enum Source {
    Read(Segment),
    Held(Vec<StoredRow>),
}

/// What of a tree is wanted: from one entry of the root to another, whole but at its ragged ends.
struct Wanted {
    span: Span,
    entries: RangeInclusive<usize>,
    /// Those of the first and the last entry that are wanted in part.
    ragged: Vec<usize>,
}

impl Wanted {
    /// `None` where nothing is. Nothing is older or newer than the root says, so a bound beyond that is none.
    fn of(root: &Root, span: &Span) -> Option<Wanted> {
        let mut span = span.clone();
        if span.from <= Position::at_start_of(root.oldest) {
            span.from = Position::min();
        }
        if span.until.at > root.newest {
            span.until = Position::max();
        }
        Wanted::within(root, span)
    }

    /// [`Wanted::of`], whatever the root says is the oldest and the newest.
    fn within(root: &Root, span: Span) -> Option<Wanted> {
        if span.is_empty() {
            return None;
        }
        let first = root.entry_at(&span.from);
        let last = root.entries.partition_point(|entry| entry.from < span.until) - 1;
        let ends = if first == last { vec![first] } else { vec![first, last] };
        let ragged = ends.into_iter().filter(|at| !span.covers(&root.entry_span(*at))).collect();
        Some(Wanted { span, entries: first..=last, ragged })
    }
}

struct Reader<'a> {
    store: &'a dyn EventStore,
    timeline: &'a TimelineId,
    /// What pages before this one have seen, and this one.
    seen: Seen,
    /// Cells that were read with the root.
    read: HashMap<u32, Option<StoredTally>>,
    nodes: HashMap<u32, ReadNode>,
    pieces: Vec<Piece>,
    rows_read: u64,
}

/// A node of the page's tree.
struct ReadNode {
    node: Arc<Node>,
    /// Its write timestamp; `None` where it was counted from its rows.
    stamp: Option<i64>,
}

impl Reader<'_> {
    fn new<'a>(store: &'a dyn EventStore, timeline: &'a TimelineId, seen: Seen) -> Reader<'a> {
        let (read, nodes) = (HashMap::new(), HashMap::new());
        Reader { store, timeline, seen, read, nodes, pieces: Vec::new(), rows_read: 0 }
    }

    /// Hands on what was seen.
    fn remember(&mut self, trees: Option<&Trees>) {
        if let Some(trees) = trees.filter(|_| self.seen.root.is_some()) {
            trees.put(self.timeline, std::mem::take(&mut self.seen));
        }
    }

    /// The root of the timeline's tree, if it has one; and with it the nodes that the page will need if the tree is still what
    /// it was.
    async fn root(&mut self, request: &PageRequest) -> Result<Option<Arc<Root>>, StoreError> {
        let mut cells = vec![ROOT_CELL];
        cells.extend(self.likely_nodes(request));
        let stored = self.store.read_tallies(self.timeline, &cells).await?;
        self.read = cells.into_iter().zip(stored).collect();
        let seen = self.seen.root.take();
        let Some(stored) = self.read.remove(&ROOT_CELL).flatten().filter(|root| root.bytes != Root::NONE)
        else {
            return Ok(None);
        };
        let root = decode(Seen::read(seen.as_ref(), &stored, Root::decode))?;
        self.seen.root = Some(root.clone());
        Ok(Some(root.value))
    }

    /// The cells of the nodes that a page would be read by, were the tree as it was seen last: those of ragged ends, and those that
    /// the page begins and ends in.
    fn likely_nodes(&self, request: &PageRequest) -> Vec<u32> {
        let Some(Version { value: root, .. }) = &self.seen.root else { return Vec::new() };
        if root.paired && request.campaign.is_some() {
            return Vec::new();
        }
        let Some(Wanted { entries, ragged, .. }) = Wanted::of(root, &request.span) else {
            return Vec::new();
        };
        let mut cells: Vec<u32> = ragged.iter().map(|at| root.entries[*at].cell).collect();
        if request.campaign.is_some() {
            return cells;
        }
        let (mut skip, mut missing) = (request.offset, request.limit as u64);
        for at in entries.rev() {
            let entry = &root.entries[at];
            let node = self.seen.node(entry.cell).filter(|_| ragged.contains(&at));
            let matching = match node {
                Some(node) => self.likely_rows(entry.cell, node, &request.span, request.types),
                None => entry.counts.matching(request.types),
            };
            if matching <= skip {
                skip -= matching;
                continue;
            }
            if (skip > 0 || matching > missing) && !cells.contains(&entry.cell) {
                cells.push(entry.cell);
            }
            missing = missing.saturating_sub(matching - skip);
            skip = 0;
            if missing == 0 {
                break;
            }
        }
        cells
    }

    /// How many rows of a node that was seen are in `span`, which it is not wholly in: nearly.
    fn likely_rows(
        &self,
        cell: u32,
        Version { stamp, value: node }: &Version<Node>,
        span: &Span,
        types: TypeSet,
    ) -> u64 {
        let begin = node.leaves.partition_point(|leaf| leaf.from <= span.from).saturating_sub(1);
        let end = node.leaves.partition_point(|leaf| leaf.from < span.until);
        let leaves = (begin..end).map(|at| {
            let Leaf { from, counts } = &node.leaves[at];
            let is_cut = at == begin || at + 1 == end;
            let seen = is_cut.then(|| {
                let leaf = LeafVersion { cell, stamp: *stamp, from: from.clone() };
                self.seen.leaf(&leaf, from.max(&span.from)).map(|leaf| counts_in(span, leaf.keys.iter()))
            });
            seen.flatten().as_ref().unwrap_or(counts).matching(types)
        });
        leaves.sum()
    }

    async fn by_tree(
        &mut self,
        mut root: Arc<Root>,
        request: &PageRequest,
    ) -> Result<(u64, Vec<Row>), StoreError> {
        let stretches = self.stretches(&mut root, request).await?;
        let matching = |stretch: &Stretch| self.counts(&root, *stretch).matching(request.types);
        let total = stretches.iter().map(matching).sum::<u64>();
        // There may be more than are counted yet.
        let limit = request.limit.min(index(total.saturating_sub(request.offset)));
        let rows = self.page_of(&root, stretches, request, limit).await?;
        Ok((total, rows))
    }

    /// What is wanted, oldest first: whole nodes, and at its ragged ends leaves and counted pieces of leaves.
    async fn stretches(
        &mut self,
        root: &mut Arc<Root>,
        request: &PageRequest,
    ) -> Result<Vec<Stretch>, StoreError> {
        let Some(mut wanted) = Wanted::of(root, &request.span) else { return Ok(Vec::new()) };
        if !self.load_nodes(root, &wanted.ragged).await? {
            // A node that is not what the root says may count what is older than the root knows of: an earlier owner's late write, of what
            // its successor left out as expired.
            let Some(all) = Wanted::within(root, request.span.clone()) else { return Ok(Vec::new()) };
            wanted = all;
            self.load_nodes(root, &wanted.ragged).await?;
        }
        let mut stretches = Vec::with_capacity(wanted.entries.clone().count());
        let mut uncounted = Vec::new();
        for entry in wanted.entries {
            if !wanted.ragged.contains(&entry) {
                stretches.push(Stretch::Node(entry));
                continue;
            }
            for leaf in 0..self.leaf_count(root, entry) {
                let span = self.leaf_span(root, entry, leaf);
                if wanted.span.covers(&span) {
                    stretches.push(Stretch::Leaf(entry, leaf));
                    continue;
                }
                // What lies beyond the root's bounds may hold what is not counted yet.
                let part = request.span.and(&span);
                if !part.is_empty() {
                    // The newest piece is on the first page.
                    let is_on_page = request.offset == 0 && wanted.span.until <= span.until;
                    stretches.push(Stretch::Piece(uncounted.len()));
                    uncounted.push((entry, leaf, part, is_on_page));
                }
            }
        }
        self.pieces = self.count_pieces(root, uncounted).await?;
        Ok(stretches)
    }

    /// Counts parts of leaves, each given by entry, leaf, span, and whether it is on the page: its rows are held then. Of another the
    /// keys of the whole leaf are read, and remembered where they are what its node counts, no more and no less.
    async fn count_pieces(
        &mut self,
        root: &Root,
        pieces: Vec<(usize, usize, Span, bool)>,
    ) -> Result<Vec<Piece>, StoreError> {
        let reader = &*self;
        let counted = pieces.into_iter().map(|(entry, leaf, span, is_on_page)| async move {
            let leaf_span = reader.leaf_span(root, entry, leaf);
            let Entry { cell, parts, .. } = &root.entries[entry];
            let (cell, from) = (*cell, leaf_span.from.clone());
            let version = reader.nodes[&cell].stamp.map(|stamp| LeafVersion { cell, stamp, from });
            let seen = version
                .as_ref()
                .and_then(|leaf| Some((leaf.clone(), reader.seen.leaf(leaf, &span.from)?.clone())));
            if let Some((_, leaf)) = &seen {
                let counts = counts_in(&span, leaf.keys.iter());
                return Ok((Piece { entry, span, counts, rows: None }, seen, 0));
            }
            let in_leaf = reader.counts(root, Stretch::Leaf(entry, leaf));
            let mut read = span.clone();
            if !is_on_page {
                read.until = leaf_span.until;
                // The oldest leaf begins before all that has expired, of which there may be much.
                if leaf_span.from > Position::min() {
                    read.from = leaf_span.from;
                }
            }
            let columns = if is_on_page { Columns::All } else { Columns::Keys };
            let types = in_leaf.present(TypeSet::ALL);
            let from = read.from.clone();
            let segment = Segment { span: read, parts: parts.clone(), types };
            let rows = read_parts(reader.store, reader.timeline, &segment, columns, usize::MAX).await?;
            let counts = counts_in(&span, rows.iter().map(|row| &row.key));
            let rows_read = rows.len() as u64;
            if is_on_page {
                return Ok((Piece { entry, span, counts, rows: Some(rows) }, None, rows_read));
            }
            let keys: Arc<[RowKey]> = rows.into_iter().map(|row| row.key).collect();
            let is_all = Counts::of(&*keys) == *in_leaf;
            let seen = version.filter(|_| is_all).map(|leaf| (leaf, LeafKeys { from, keys }));
            Ok::<_, StoreError>((Piece { entry, span, counts, rows: None }, seen, rows_read))
        });
        let counted = try_join_all(counted).await?;
        let mut pieces = Vec::with_capacity(counted.len());
        for (piece, seen, rows_read) in counted {
            self.rows_read += rows_read;
            if let Some((leaf, keys)) = seen {
                self.seen.put_leaf(leaf, keys);
            }
            pieces.push(piece);
        }
        Ok(pieces)
    }

    /// The page's rows: walks the stretches from the newest, past as many rows as come before the page.
    async fn page_of(
        &mut self,
        root: &Arc<Root>,
        stretches: Vec<Stretch>,
        request: &PageRequest,
        limit: usize,
    ) -> Result<Vec<Row>, StoreError> {
        let mut stack = stretches;
        let mut rows: Vec<StoredRow> = Vec::new();
        let mut skip = request.offset;
        while rows.len() < limit && !stack.is_empty() {
            // Stretches that hold the rest of the page, if they hold what they say; if not, the next round goes on.
            let missing = (limit - rows.len()) as u64;
            let (mut sources, mut promised) = (Vec::<Source>::new(), 0);
            while promised < skip + missing {
                let Some(stretch) = stack.pop() else { break };
                let matching = self.counts(root, stretch).matching(request.types);
                if matching == 0 {
                    continue;
                }
                if sources.is_empty() && matching <= skip {
                    skip -= matching;
                    continue;
                }
                // A node is read whole only where the page wants all its matching rows; else its leaves are looked at.
                let is_cut = (sources.is_empty() && skip > 0) || matching > skip + missing - promised;
                match stretch {
                    Stretch::Node(entry) if is_cut => stack.extend(self.leaves_of(root, entry).await?),
                    _ => {
                        promised += matching;
                        self.push_source(&mut sources, root, stretch, request);
                    }
                }
            }
            let read = self.read_sources(sources, index(skip + missing)).await?;
            let held = read.len() as u64;
            rows.extend(read.into_iter().skip(index(skip)).take(index(missing)));
            skip = skip.saturating_sub(held);
        }
        rows.into_iter().map(decode_row).collect()
    }

    /// A campaign's rows on a contact's timeline, which are counted by looking at each, piece by piece: there are few, or the
    /// timeline would stand by campaign.
    async fn of_campaign(
        &mut self,
        mut root: Arc<Root>,
        campaign: &Id,
        request: &PageRequest,
    ) -> Result<(u64, Vec<Row>), StoreError> {
        let mut stack = self.stretches(&mut root, request).await?;
        let mut page = CampaignPage::new(campaign, request);
        while let Some(stretch) = stack.pop() {
            let matching = self.counts(&root, stretch).matching(request.types);
            match stretch {
                _ if matching == 0 => {}
                Stretch::Node(entry) if matching > CAMPAIGN_SCAN_ROWS => {
                    stack.extend(self.leaves_of(&root, entry).await?);
                }
                _ => {
                    let mut sources = Vec::new();
                    self.push_source(&mut sources, &root, stretch, request);
                    page.take(self.read_sources(sources, usize::MAX).await?)?;
                }
            }
        }
        Ok((page.total, page.rows))
    }

    /// A timeline without a tree: it is small, and read whole.
    async fn by_scan(&mut self, request: &PageRequest) -> Result<(u64, Vec<Row>), StoreError> {
        let mut rows = self.all_rows(&request.span).await?;
        rows.retain(|row| request.types.contains(row.key.event_type));
        let total = rows.len() as u64;
        let page = rows.into_iter().skip(index(request.offset)).take(request.limit);
        Ok((total, page.map(decode_row).collect::<Result<_, _>>()?))
    }

    /// Every row in `span` of a timeline without a tree, newest first; of one event under two types the one that came first.
    async fn all_rows(&mut self, span: &Span) -> Result<Vec<StoredRow>, StoreError> {
        let whole =
            Segment { span: Span::all(), parts: Parts::from_elem(FIRST_PART, 1), types: TypeSet::ALL };
        let mut rows = self.read(&whole, Columns::All, usize::MAX).await?;
        rows.dedup_by(|next, kept| {
            let same = next.key.position == kept.key.position;
            // A mark stands where a row was taken out, whatever else stands there.
            let is_mark = |row: &StoredRow| row.key.event_type == EventType::Erased;
            let comes_first = RowBody::earliness_of(&next.body) > RowBody::earliness_of(&kept.body);
            if same && !is_mark(kept) && (is_mark(next) || comes_first) {
                std::mem::swap(next, kept);
            }
            same
        });
        rows.retain(|row| span.contains(&row.key.position));
        Ok(rows)
    }

    /// The leaves of a whole node, oldest first.
    async fn leaves_of(
        &mut self,
        root: &Arc<Root>,
        entry: usize,
    ) -> Result<impl Iterator<Item = Stretch> + use<>, StoreError> {
        self.load_nodes(&mut root.clone(), &[entry]).await?;
        Ok((0..self.leaf_count(root, entry)).map(move |leaf| Stretch::Leaf(entry, leaf)))
    }

    fn leaf_count(&self, root: &Root, entry: usize) -> usize {
        self.nodes.get(&root.entries[entry].cell).map_or(0, |read| read.node.leaves.len())
    }

    fn leaf_span(&self, root: &Root, entry: usize, leaf: usize) -> Span {
        self.nodes[&root.entries[entry].cell].node.leaf_span(leaf)
    }

    /// The numbers of a stretch.
    fn counts<'a>(&'a self, root: &'a Root, stretch: Stretch) -> &'a Counts {
        match stretch {
            Stretch::Node(entry) => &root.entries[entry].counts,
            Stretch::Leaf(entry, leaf) => &self.nodes[&root.entries[entry].cell].node.leaves[leaf].counts,
            Stretch::Piece(piece) => &self.pieces[piece].counts,
        }
    }

    /// Adds a stretch that comes before the last of `sources`, as far as it is asked for: beyond the root's bounds there may be what is not
    /// counted yet, or what an earlier owner wrote late. One read does for both where they are in the same parts.
    fn push_source(
        &mut self,
        sources: &mut Vec<Source>,
        root: &Root,
        stretch: Stretch,
        request: &PageRequest,
    ) {
        let types = request.types;
        let counted = self.counts(root, stretch).present(types);
        let (entry, span) = match stretch {
            Stretch::Node(entry) => (entry, root.entry_span(entry)),
            Stretch::Leaf(entry, leaf) => (entry, self.leaf_span(root, entry, leaf)),
            Stretch::Piece(piece) => {
                let piece = &mut self.pieces[piece];
                if let Some(mut rows) = piece.rows.take() {
                    rows.retain(|row| types.contains(row.key.event_type));
                    sources.push(Source::Held(rows));
                    return;
                }
                (piece.entry, piece.span.clone())
            }
        };
        let (parts, span) = (&root.entries[entry].parts, span.and(&request.span));
        if span.is_empty() {
            return;
        }
        match sources.last_mut() {
            Some(Source::Read(last)) if last.parts == *parts => {
                last.span.from = span.from;
                last.types = last.types.or(counted);
            }
            _ => sources.push(Source::Read(Segment { span, parts: parts.clone(), types: counted })),
        }
    }

    /// Reads nodes that were not read yet, and lets the root's copy of their numbers follow them. Whether they were what the root said.
    async fn load_nodes(&mut self, root: &mut Arc<Root>, entries: &[usize]) -> Result<bool, StoreError> {
        let mut are_as_said = true;
        let mut missing = entries.to_vec();
        missing.retain(|at| !self.nodes.contains_key(&root.entries[*at].cell));
        let cells = missing.iter().map(|at| root.entries[*at].cell);
        let unread: Vec<u32> = cells.filter(|cell| !self.read.contains_key(cell)).collect();
        if !unread.is_empty() {
            let stored = self.store.read_tallies(self.timeline, &unread).await?;
            self.read.extend(unread.into_iter().zip(stored));
        }
        for at in missing {
            let (cell, span) = (root.entries[at].cell, root.entry_span(at));
            let stored = self.read.remove(&cell).flatten();
            let version =
                stored.map(|stored| decode(Seen::read(self.seen.node(cell), &stored, Node::decode)));
            let read = match version.transpose()?.filter(|version| version.value.span == span) {
                Some(version) => {
                    self.seen.put_node(cell, version.clone());
                    ReadNode { node: version.value, stamp: Some(version.stamp) }
                }
                None => ReadNode { node: Arc::new(self.count_node(root, at).await?), stamp: None },
            };
            let counts = read.node.counts();
            if counts != root.entries[at].counts {
                telemetry::metrics::TREE_MISMATCHES.inc();
                are_as_said = false;
                Arc::make_mut(root).entries[at].counts = counts;
            }
            self.nodes.insert(cell, read);
        }
        Ok(are_as_said)
    }

    /// A node whose cell is not what the root says, as it is for a moment while its owner splits it, or until the owner of the
    /// timeline next touches it after an earlier one's late write: counted from its rows.
    async fn count_node(&mut self, root: &Root, at: usize) -> Result<Node, StoreError> {
        let span = root.entry_span(at);
        let whole =
            Segment { span: span.clone(), parts: root.entries[at].parts.clone(), types: TypeSet::ALL };
        let rows = self.read(&whole, Columns::Keys, usize::MAX).await?;
        let keys: Vec<RowKey> = rows.into_iter().rev().map(|row| row.key).collect();
        Ok(Node::of_rows(span, &keys, &Sizes::default()))
    }

    /// The rows of `sources`, each newest first, one behind the other; of each the first `limit` will do.
    async fn read_sources(
        &mut self,
        sources: Vec<Source>,
        limit: usize,
    ) -> Result<Vec<StoredRow>, StoreError> {
        let (store, timeline) = (self.store, self.timeline);
        let reads = sources.into_iter().map(|source| async move {
            match source {
                Source::Read(segment) => {
                    let rows = read_parts(store, timeline, &segment, Columns::All, limit).await?;
                    Ok::<_, StoreError>((rows.len(), rows))
                }
                Source::Held(rows) => Ok((0, rows)),
            }
        });
        let read: Vec<(usize, Vec<StoredRow>)> = try_join_all(reads).await?;
        self.rows_read += read.iter().map(|(count, _)| *count as u64).sum::<u64>();
        Ok(read.into_iter().flat_map(|(_, rows)| rows).collect())
    }

    async fn read(
        &mut self,
        segment: &Segment,
        columns: Columns,
        limit: usize,
    ) -> Result<Vec<StoredRow>, StoreError> {
        let rows = read_parts(self.store, self.timeline, segment, columns, limit).await?;
        self.rows_read += rows.len() as u64;
        Ok(rows)
    }
}

/// The numbers of the keys in `span`.
fn counts_in<'a>(span: &Span, keys: impl Iterator<Item = &'a RowKey>) -> Counts {
    Counts::of(keys.filter(|key| span.contains(&key.position)))
}

/// The rows of a segment in all its parts, newest first. Where an event stands in two parts, the row of the greater rank is it.
async fn read_parts(
    store: &dyn EventStore,
    timeline: &TimelineId,
    segment: &Segment,
    columns: Columns,
    limit: usize,
) -> Result<Vec<StoredRow>, StoreError> {
    let read =
        |part: u32, limit| store.read_rows(timeline, part, segment.types, &segment.span, columns, limit);
    if let [part] = *segment.parts {
        return read(part, limit).await;
    }
    // What is limited in each part could lack rows in the middle of the whole.
    let parts = segment.parts.iter().map(|part| read(*part, usize::MAX));
    let mut rows = try_join_all(parts).await?.concat();
    let rank = |row: &StoredRow| RowBody::rank_of(&row.body);
    rows.sort_by(|one, next| {
        next.key.position.cmp(&one.key.position).then_with(|| rank(next).cmp(&rank(one)))
    });
    rows.dedup_by(|next, kept| next.key.position == kept.key.position);
    Ok(rows)
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

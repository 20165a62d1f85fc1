//! *Own*: the second stage. Whoever holds a partition of the internal topic alone writes the rows and tallies of its timelines.
//!
//! For each batch: take the touched timelines over (once, then they are held), count the touched leaves by their rows, write the
//! rows that are new, and once those are acknowledged count them, and write the numbers as absolute values under a stamp
//! that no earlier owner can exceed. Only then may the caller commit the batch's offsets. See [`timeline::tally`] for why this is exact.
//!
//! A small timeline has no numbers: whoever asks for it reads it whole. Where the store takes a row without looking what stands there, its owner
//! need not read it either, only write; a repeat writes the same row once more. It reads such a timeline, to tell whether it is
//! to have a tree, when it has written as many rows as could make it large, and of those that it knows no number of, by chance.
//!
//! None of the trees that earlier owners write late may be taken for that of a timeline that has none. So whoever has built a timeline's first
//! tree promises it, and then, before it writes it, looks whether it still is the last to have taken the partition over. Whoever comes
//! after that finds the promise, and where it finds no tree with it says so in the cell of the root, under its stamp, which outranks the
//! late one. Where it finds no promise none is to come.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;

use event_store::{
    Columns, EventStore, Head, RowGroup, RowWrite, StoreError, StoredRow, StoredTally, TallyWrite,
};
use futures::stream::{self, StreamExt};
use telemetry::metrics;
use timeline::row::{PlacedRow, RowKey, stored_stamp};
use timeline::tally::{FIRST_PART, LeafRead, Node, NodeRead, Parts, ROOT_CELL, Root, Sizes, Tree};
use timeline::time::DAY_MS;
use timeline::{EventType, Id, Order, Position, RowBody, Span, Subject, TimelineId, Timestamp, TypeSet};
use uuid::Uuid;

use crate::Clock;
use crate::forgotten::Forgotten;
use crate::recent::{Digester, Recent};
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
/// A contact's history that is longer than this before it first stands by campaign is left as it is: it would not fit in memory.
const PAIR_ROWS_MAX: u64 = 65_536;
/// Rows that a batch reads to place them again by campaign, and bytes of them: contacts beyond that come with the next
/// batch that touches them. One contact may be over.
const PAIR_ROWS_A_BATCH: u64 = 16_384;
const PAIR_BYTES_A_BATCH: usize = 16 << 20;
/// Parts that an earlier owner may have begun that its successor has not: those of the batch whose numbers came too late, and those of what it
/// goes on with.
const PARTS_AHEAD: u32 = 4;
/// How often memory is looked at.
const FORGET_EVERY_BATCHES: u64 = 4;
/// Small timelines that are remembered at least, some 30 bytes each.
pub const SMALL_HELD: usize = 400_000;
/// Rows of small timelines that are remembered at least, to tell a repeat that comes soon; one that comes later is written again.
const SMALL_ROWS_HELD: usize = 200_000;

/// How an owner is set up.
#[derive(Clone, Copy, Debug)]
pub struct OwnerSettings {
    /// How long rows are kept, in milliseconds of event time.
    pub retention_ms: i64,
    /// Row keys held in memory, some 50 bytes each, or 100 where ids are longer than 23 characters; beyond it what was not touched lately is forgotten, and counted
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
    digester: Digester,
    /// Small timelines that are not read, by claim and id.
    small: Recent<Bound>,
    /// Their rows, by claim, timeline and position.
    small_rows: Recent<Seen>,
    forgotten: Arc<Forgotten>,
    /// Timelines whose first tree was built and is not written yet, with their partitions.
    built: Vec<(i32, TimelineId)>,
    /// Rows of contacts that are to be taken out by order.
    orders: Vec<(TimelineId, Uuid, RowKey)>,
}

/// What was written of an event.
#[derive(Clone, Copy, Debug)]
struct Seen {
    event_type: EventType,
    /// See [`RowBody::rank`].
    rank: u16,
}

/// How many rows a small timeline has at most, where that is known.
#[derive(Clone, Copy, Debug)]
struct Bound {
    /// As many as were written since it was new or read whole; or, where that never was, since it was taken over.
    rows: u32,
    is_counted: bool,
}

/// A partition that is held.
struct Partition {
    claim: u64,
    /// The last stamp that was used, and the last one leased.
    stamp: i64,
    stamps_end: i64,
    /// Whether somebody has taken it over since. Nothing more is held then, and the next batch takes it over anew, if it is still ours.
    is_outranked: bool,
    timelines: HashMap<TimelineId, Held>,
}

/// A timeline that is held.
struct Held {
    keys: Keys,
    /// The batch that last touched it.
    used: u64,
}

/// The keys of a timeline's rows, as far as they are held.
enum Keys {
    /// None: the timeline is small, has no stored tree, and is not read.
    Unread(Bound),
    /// All of them, sorted by position: the timeline is small, has no stored tree, and is read whole.
    Few(Vec<RowKey>),
    /// Those of the leaves that were touched lately.
    Tree(Box<Tree>),
}

/// A timeline of the batch in work, with its rows in their order.
struct Touched {
    partition: i32,
    id: TimelineId,
    held: Held,
    rows: Vec<PlacedRow>,
    /// Whether with this batch all its rows will stand once more by campaign.
    pairs: bool,
}

/// What comes of a batch's rows of one timeline.
#[derive(Default)]
struct Sorted {
    /// The keys to count once they are written.
    new: Vec<RowKey>,
    /// What is to be written of which events, each once.
    written: Vec<(Position, Seen)>,
    /// What is to be written, by part.
    by_part: Vec<(u32, Vec<RowWrite>)>,
}

/// See [`RowBody::rank`].
fn rank_of(row: &PlacedRow) -> u16 {
    u16::try_from(row.stamp - stored_stamp(row.key.position.at, 0)).unwrap_or_default()
}

/// Rows of one timeline.
struct Group {
    partition: i32,
    id: TimelineId,
    rows: Vec<PlacedRow>,
}

/// Rows by timeline, in the order in which the timelines first came.
#[derive(Default)]
struct Groups {
    list: Vec<Group>,
    places: HashMap<TimelineId, usize>,
}

impl Groups {
    fn push(&mut self, partition: i32, row: PlacedRow) {
        if let Some(at) = self.places.get(&row.timeline) {
            self.list[*at].rows.push(row);
        } else {
            self.places.insert(row.timeline.clone(), self.list.len());
            self.list.push(Group { partition, id: row.timeline.clone(), rows: vec![row] });
        }
    }

    /// A row of which the key is all that matters.
    fn push_key(&mut self, partition: i32, timeline: TimelineId, key: RowKey) {
        let row = PlacedRow { timeline, key, stamp: 0, completes: false, counts: false, body: Vec::new() };
        self.push(partition, row);
    }
}

/// A row that is to be taken out, because of its contact.
struct Erasure {
    partition: i32,
    timeline: TimelineId,
    key: RowKey,
    reason: Reason,
}

/// Why a row is to be taken out.
#[derive(Default)]
struct Reason {
    contact: Uuid,
    /// The campaigns of a contact's row, as far as it came with them. Their owners are told of them by whoever does this.
    campaigns: BTreeSet<Id>,
    /// Whether it was ordered: then the owner of its campaign is told already.
    is_ordered: bool,
}

/// Why rows are to be taken out, by timeline and position.
type Reasons = HashMap<(TimelineId, Position), Reason>;

impl Reason {
    /// One more of the same row.
    fn add(&mut self, Reason { contact, campaigns, is_ordered }: Reason) {
        self.contact = contact;
        self.campaigns.extend(campaigns);
        self.is_ordered = is_ordered;
    }
}

/// A contact's row that is left out is in no list of its rows, while its other one may stand on its campaign since before the owner
/// there heard: that owner is to take it out.
fn order_to_campaign(
    timeline: &TimelineId,
    campaign: Option<&Id>,
    key: &RowKey,
    contact: Uuid,
) -> Option<(TimelineId, Uuid, RowKey)> {
    let shows = matches!(timeline.subject, Subject::Contact(_)) && TypeSet::CAMPAIGN.contains(key.event_type);
    Some((TimelineId::campaign(&timeline.account, campaign.filter(|_| shows)?), contact, key.clone()))
}

/// A row that stands, on its way once more.
fn placed_again(id: &TimelineId, StoredRow { key, body }: StoredRow, completes: bool) -> PlacedRow {
    let stamp = stored_stamp(key.position.at, RowBody::rank_of(&body));
    PlacedRow { timeline: id.clone(), key, stamp, completes, counts: false, body }
}

/// What epochs of a partition are counted by.
fn scope_of(scope: &str, partition: i32) -> String {
    format!("{scope}/{partition}")
}

/// A rank that no row exceeds.
const MARK_RANK: u16 = 999;

/// What stands in the place of a row that was taken out.
fn mark_at(position: Position) -> RowKey {
    RowKey { position, event_type: EventType::Erased }
}

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
        Owner {
            forgotten: Forgotten::new(store.clone()),
            built: Vec::new(),
            orders: Vec::new(),
            store,
            settings,
            scope: scope.into(),
            partitions: HashMap::new(),
            batch: 0,
            digester: Digester::default(),
            small: Recent::new(SMALL_HELD),
            small_rows: Recent::new(SMALL_ROWS_HELD),
        }
    }

    /// The same, knowing what others of the process know of contacts that were forgotten.
    #[must_use]
    pub fn with_forgotten(self, forgotten: Arc<Forgotten>) -> Owner {
        Owner { forgotten, ..self }
    }

    /// Lets go of what is no longer ours.
    pub fn keep_only(&mut self, claims: &HashMap<i32, u64>) {
        self.partitions.retain(|partition, held| claims.get(partition) == Some(&held.claim));
    }

    /// Lets go of these partitions.
    pub fn let_go(&mut self, partitions: &[i32]) {
        partitions.iter().for_each(|partition| drop(self.partitions.remove(partition)));
    }

    /// Writes and counts a batch; returns when all of it is acknowledged. Tries without end. A partition that was not taken over under
    /// its claim is so first.
    pub async fn work(&mut self, clock: &Clock, batches: Vec<OwnBatch>) -> Owned {
        let now = clock();
        self.batch += 1;
        let new = batches.iter().map(|batch| (batch.partition, batch.claim));
        // Not what was taken over by somebody else: whoever takes that back has to ask first whether it is ours.
        let new: Vec<(i32, u64)> =
            new.filter(|(partition, claim)| !self.has_taken(*partition, *claim)).collect();
        self.take_over(&new).await;
        let mut owned = Owned::default();
        let batches = self.without_forgotten(clock, batches).await;
        let (by_timeline, of_expired) = self.group(now, batches, &mut owned);
        if !of_expired.is_empty() {
            let of_expired: Vec<TimelineId> = of_expired.into_iter().collect();
            until_done("mark_known", || self.store.mark_known(&of_expired)).await;
        }
        let mut touched = self.touch(by_timeline).await;
        let pairs = self.pair(&mut touched).await;
        touched.extend(self.touch(pairs).await);

        let (mut groups, mut new) = (Vec::new(), Vec::with_capacity(touched.len()));
        for timeline in &mut touched {
            let Sorted { new: keys, written, by_part } = self.sort_out(timeline, &mut owned);
            new.push((keys, written));
            groups.push(by_part);
        }
        let groups: Vec<RowGroup<'_>> = touched
            .iter()
            .zip(groups)
            .flat_map(|(touched, parts)| {
                parts.into_iter().map(|(part, rows)| RowGroup { timeline: &touched.id, part, rows })
            })
            .collect();
        if !groups.is_empty() {
            // The time of each try: a row lives until its event expires, however long the store was away.
            until_done("write_rows", || self.store.write_rows(clock(), &groups)).await;
        }
        drop(groups);
        // Acknowledged: now they count.
        let (mut writes, mut last) = (Vec::new(), Vec::new());
        for (timeline, (keys, written)) in touched.iter_mut().zip(new) {
            self.remember_rows(timeline, &written);
            timeline.held.keys.insert(keys, &self.settings.sizes);
            // A root that says so comes behind the trees that it speaks of.
            if let (true, Keys::Tree(tree)) = (timeline.pairs, &mut timeline.held.keys) {
                tree.set_paired();
                last.extend(self.tallies_of(now, timeline));
                continue;
            }
            writes.extend(self.tallies_of(now, timeline));
        }
        for writes in [writes, last] {
            self.write_tallies(writes).await;
        }

        self.hold(touched);
        self.forget();
        for (outcome, count) in
            [("projected", owned.projected), ("duplicate", owned.duplicate), ("expired", owned.expired)]
        {
            metrics::EVENTS.with_label_values(&[outcome]).inc_by(count);
        }
        owned
    }

    /// The claim under which a partition is held.
    fn claim(&self, partition: i32) -> u64 {
        self.partitions.get(&partition).map_or(0, |partition| partition.claim)
    }

    /// Remembers what was written of events of a timeline that will not be read for the next.
    fn remember_rows(&mut self, touched: &Touched, written: &[(Position, Seen)]) {
        if matches!(touched.held.keys, Keys::Tree(_)) || !self.store.writes_unseen() {
            return;
        }
        let claim = self.claim(touched.partition);
        for (position, seen) in written {
            self.small_rows.put(self.digester.of((claim, &touched.id, position)), *seen);
        }
    }

    /// What owners of timelines are to do, each said once and a contact's rows of a timeline together: to be published before what was worked
    /// on is committed, and of the two steps the first before the second is begun. It goes to campaigns; the second is what this
    /// owner does itself once they are told.
    pub fn take_orders(&mut self) -> [Vec<Order>; 2] {
        let mut steps = [(); 2].map(|()| BTreeMap::<(TimelineId, Uuid), BTreeSet<RowKey>>::new());
        for (timeline, contact, key) in std::mem::take(&mut self.orders) {
            let step = usize::from(!matches!(timeline.subject, Subject::Campaign(_)));
            steps[step].entry((timeline, contact)).or_default().insert(key);
        }
        steps.map(|rows| {
            let orders =
                rows.iter().flat_map(|((timeline, contact), keys)| Order::erase(timeline, *contact, keys));
            orders.collect()
        })
    }

    /// Does what an operator asks of the owner of `partition`, which was taken over under its claim. Returns once it is acknowledged.
    pub async fn obey(&mut self, clock: &Clock, partition: i32, order: &Order) {
        match order {
            Order::Recount(id) => self.recount(clock, partition, id).await,
            Order::Forget { account, contact } => self.forgotten.add(account, *contact),
            Order::Erase { timeline, contact, keys } => {
                let erasures = keys.iter().map(|key| Erasure {
                    partition,
                    timeline: timeline.clone(),
                    key: key.clone(),
                    reason: Reason { contact: *contact, is_ordered: true, ..Reason::default() },
                });
                self.erase(clock, erasures.collect()).await;
            }
        }
    }

    /// The rows that are not of forgotten contacts. The others are taken out, should they stand or come yet: an earlier owner that
    /// has not heard may be writing them, and incomplete copies of their events do not tell whose they are.
    async fn without_forgotten(&mut self, clock: &Clock, mut batches: Vec<OwnBatch>) -> Vec<OwnBatch> {
        if self.forgotten.is_empty() {
            return batches;
        }
        let (mut erasures, mut events) = (Vec::new(), 0);
        for OwnBatch { partition, rows, .. } in &mut batches {
            for row in std::mem::take(rows) {
                match self.forgotten.whose(&row.timeline, &row.body) {
                    None => rows.push(row),
                    Some(contact) => {
                        events += u64::from(row.counts);
                        let campaign = RowBody::decode(&row.body).ok().and_then(|body| body.campaign);
                        let PlacedRow { timeline, key, .. } = row;
                        self.orders.extend(order_to_campaign(&timeline, campaign.as_ref(), &key, contact));
                        let campaigns = campaign.into_iter().collect();
                        let reason = Reason { contact, campaigns, is_ordered: false };
                        erasures.push(Erasure { partition: *partition, timeline, key, reason });
                    }
                }
            }
        }
        metrics::EVENTS.with_label_values(&["forgotten"]).inc_by(events);
        self.erase(clock, erasures).await;
        batches
    }

    /// Takes rows out of timelines that are owned. On a campaign each leaves a mark at its position, so that copies of its event which
    /// come later are told; a contact's whole timeline is left out anyway.
    ///
    /// A contact's row is the last that goes: by what stands there it is known where else its event does.
    async fn erase(&mut self, clock: &Clock, mut erasures: Vec<Erasure>) {
        let now = clock();
        // What has expired disappears by itself.
        erasures.retain(|of| of.key.position.at.plus_ms(self.settings.retention_ms) >= now);
        let (mut groups, mut reasons) = (Groups::default(), Reasons::new());
        for Erasure { partition, timeline, key, reason } in erasures {
            reasons.entry((timeline.clone(), key.position.clone())).or_default().add(reason);
            groups.push_key(partition, timeline, key);
        }
        let mut touched = self.touch_whole(groups.list).await;
        let mut pairs = Groups::default();
        for timeline in &mut touched {
            self.find_pairs(timeline, &reasons, &mut pairs).await;
        }
        self.erase_pairs(clock, pairs.list).await;
        self.erase_touched(clock, touched, &reasons).await;
    }

    /// Where a contact's rows that are to be taken out stand once more by campaign, or may come to: an earlier owner that has not heard may
    /// be placing them there, whatever is known here.
    ///
    /// What stands may be of a campaign that what came does not name (it waited for its send, or says something else), whose owner is not told
    /// yet. Such a row is not taken out now, but by an order that comes behind the one to that owner.
    async fn find_pairs(&mut self, touched: &mut Touched, reasons: &Reasons, pairs: &mut Groups) {
        let Touched { partition, id, held, rows, .. } = touched;
        let Subject::Contact(contact) = id.subject else { return };
        let (this, timeline, keys) = (&*self, &*id, &held.keys);
        let found: Vec<(PlacedRow, Option<(RowKey, Id)>)> = stream::iter(std::mem::take(rows))
            .map(|row| async move {
                let position = &row.key.position;
                let Some(seen) = keys.find(position) else { return (row, None) };
                let there = until_done("read_erased", || this.row_at(timeline, keys, position, seen)).await;
                let standing = there
                    .and_then(|StoredRow { key, body }| Some((key, RowBody::decode(&body).ok()?.campaign?)));
                (row, standing)
            })
            .buffered(STORE_REQUESTS_MAX)
            .collect()
            .await;
        let mut found_pairs = BTreeSet::new();
        for (row, standing) in found {
            let reason = &reasons[&(id.clone(), row.key.position.clone())];
            found_pairs.extend(reason.campaigns.iter().map(|campaign| (campaign.clone(), row.key.clone())));
            let told = |campaign| {
                TypeSet::CAMPAIGN.contains(row.key.event_type) && reason.campaigns.contains(campaign)
            };
            if let Some((key, campaign)) = &standing
                && let Some(order) = order_to_campaign(id, Some(campaign), key, contact)
                && !reason.is_ordered
                && !told(campaign)
            {
                self.orders.extend([order, (id.clone(), contact, key.clone())]);
                continue;
            }
            found_pairs.extend(standing.map(|(key, campaign)| (campaign, key)));
            rows.push(row);
        }
        for (campaign, key) in found_pairs {
            pairs.push_key(*partition, TimelineId::contact_campaign(&id.account, contact, &campaign), key);
        }
    }

    /// Takes rows out where they stand by campaign. A timeline that nobody has marked as known has none, and is not marked because of this:
    /// what an earlier owner may be writing there yet is deleted, and its numbers are said to be none.
    async fn erase_pairs(&mut self, clock: &Clock, pairs: Vec<Group>) {
        if pairs.is_empty() {
            return;
        }
        let ids: Vec<TimelineId> = pairs.iter().map(|group| group.id.clone()).collect();
        let heads = until_done("read_heads", || self.read_heads(&ids)).await;
        let is_known: HashMap<TimelineId, bool> =
            ids.into_iter().zip(heads.into_iter().map(|(head, _)| head.known)).collect();
        let (known, unknown): (Vec<Group>, Vec<Group>) =
            pairs.into_iter().partition(|group| is_known[&group.id]);
        let treeless: Vec<TallyWrite> =
            unknown.iter().filter_map(|Group { partition, id, .. }| self.no_tree(*partition, id)).collect();
        self.write_tallies(treeless).await;
        let parts = Keys::Few(Vec::new()).parts_ever();
        let rows = unknown
            .into_iter()
            .map(|group| (group.id, parts.clone(), group.rows.into_iter().map(|row| row.key).collect()));
        self.delete(rows.collect()).await;
        let touched = self.touch_whole(known).await;
        self.erase_touched(clock, touched, &Reasons::new()).await;
    }

    /// Takes the rows out that timelines were brought in for, and counts what is left.
    async fn erase_touched(&mut self, clock: &Clock, touched: Vec<Touched>, reasons: &Reasons) {
        let this = &*self;
        let (mut touched, erased): (Vec<Touched>, Vec<Vec<RowKey>>) = stream::iter(touched)
            .map(|timeline| async move {
                let keys = this.rows_to_erase(&timeline, reasons).await;
                (timeline, keys)
            })
            .buffered(STORE_REQUESTS_MAX)
            .unzip()
            .await;
        let rows = touched
            .iter()
            .zip(&erased)
            .map(|(timeline, keys)| (timeline.id.clone(), timeline.held.keys.parts_ever(), keys.clone()));
        self.delete(rows.collect()).await;
        let mut positions: Vec<Vec<Position>> = Vec::with_capacity(erased.len());
        for (timeline, keys) in touched.iter_mut().zip(erased) {
            let mut erased: Vec<Position> = keys.into_iter().map(|key| key.position).collect();
            erased.dedup();
            timeline.held.keys.remove(&erased);
            positions.push(erased);
        }
        // Now, for without them a timeline may have begun another part.
        self.mark(clock, &touched, &positions).await;
        let mut writes = Vec::new();
        for (timeline, positions) in touched.iter_mut().zip(positions) {
            if matches!(timeline.id.subject, Subject::Campaign(_)) {
                let seen = Seen { event_type: EventType::Erased, rank: MARK_RANK };
                let marked: Vec<(Position, Seen)> = positions.iter().map(|at| (at.clone(), seen)).collect();
                self.remember_rows(timeline, &marked);
                let marks: Vec<RowKey> = positions.into_iter().map(mark_at).collect();
                timeline.held.keys.insert(marks, &self.settings.sizes);
            }
            writes.extend(self.tallies_of(clock(), timeline));
        }
        self.write_tallies(writes).await;
        self.hold(touched);
    }

    /// Which keys to take out of a timeline whose leaves are here: those asked for, and what stands at their positions under another
    /// type. Not what was marked before, nor what another contact has there.
    async fn rows_to_erase(&self, touched: &Touched, reasons: &Reasons) -> Vec<RowKey> {
        let Touched { id, held, rows, .. } = touched;
        let is_campaign = matches!(id.subject, Subject::Campaign(_));
        let keys = rows.iter().map(|row| row.key.clone()).collect::<Vec<RowKey>>();
        let erased: Vec<Vec<RowKey>> = stream::iter(keys)
            .map(|key| async move {
                let position = &key.position;
                let Some(seen) = held.keys.find(position) else { return vec![key] };
                if seen == EventType::Erased {
                    return Vec::new();
                }
                if is_campaign {
                    let there =
                        until_done("read_erased", || self.row_at(id, &held.keys, position, seen)).await;
                    let contact = there.and_then(|row| RowBody::contact_of(&row.body));
                    let erased = reasons.get(&(id.clone(), position.clone())).map(|reason| reason.contact);
                    if contact.is_some_and(|contact| Some(contact) != erased) {
                        return Vec::new();
                    }
                }
                vec![RowKey { position: position.clone(), event_type: seen }, key]
            })
            .buffered(STORE_REQUESTS_MAX)
            .collect()
            .await;
        let erased: BTreeSet<RowKey> = erased.into_iter().flatten().collect();
        erased.into_iter().collect()
    }

    /// The row that stands at `position`: where an event stands in two parts, the row of the greater rank is it.
    async fn row_at(
        &self,
        id: &TimelineId,
        keys: &Keys,
        position: &Position,
        event_type: EventType,
    ) -> Result<Option<StoredRow>, StoreError> {
        let mut rows = Vec::new();
        for part in keys.parts_at(position) {
            let (types, span) = (TypeSet::of(&[event_type]), Span::only(position));
            rows.extend(self.store.read_rows(id, part, types, &span, Columns::All, 1).await?);
        }
        Ok(rows.into_iter().max_by_key(|row| RowBody::rank_of(&row.body)))
    }

    /// Deletes rows in each of the parts that they may stand in or be written to yet.
    async fn delete(&self, rows: Vec<(TimelineId, std::ops::Range<u32>, Vec<RowKey>)>) {
        let rows = rows.into_iter().flat_map(|(id, parts, keys)| {
            keys.into_iter().flat_map(move |key| {
                let id = id.clone();
                parts.clone().map(move |part| (id.clone(), part, key.clone()))
            })
        });
        let deletes = stream::iter(rows).map(|(id, part, key)| async move {
            let (keys, stamp) = (std::slice::from_ref(&key), (key.position.at.0 + 1) * 1000);
            until_done("erase_rows", || self.store.delete_rows(&id, part, keys, stamp)).await;
        });
        deletes.buffer_unordered(STORE_REQUESTS_MAX).collect::<Vec<()>>().await;
    }

    /// Marks the places of rows that were taken out of campaigns. After they are deleted: where there is a mark, nothing more is to be done.
    async fn mark(&self, clock: &Clock, touched: &[Touched], erased: &[Vec<Position>]) {
        let mut groups = Vec::<RowGroup<'_>>::new();
        for (Touched { id, held, .. }, positions) in touched.iter().zip(erased) {
            if !matches!(id.subject, Subject::Campaign(_)) {
                continue;
            }
            let mut by_part = BTreeMap::<u32, Vec<RowWrite>>::new();
            for position in positions {
                by_part.entry(held.keys.part_for(position)).or_default().push(RowWrite {
                    key: mark_at(position.clone()),
                    stamp: stored_stamp(position.at, MARK_RANK),
                    expires_at: position.at.plus_ms(self.settings.retention_ms + ROW_GRACE_MS),
                    body: RowBody { rank: MARK_RANK, ..RowBody::default() }.encode(),
                    is_new: false,
                });
            }
            groups.extend(by_part.into_iter().map(|(part, rows)| RowGroup { timeline: id, part, rows }));
        }
        if !groups.is_empty() {
            until_done("write_marks", || self.store.write_rows(clock(), &groups)).await;
        }
    }

    /// Counts a timeline's rows anew, and writes its whole tree.
    async fn recount(&mut self, clock: &Clock, partition: i32, id: &TimelineId) {
        tracing::info!(partition, "recounting a timeline");
        // What is held may be what is wrong: rows that the store has lost would be taken for repeats.
        let Some(owned) = self.partitions.get_mut(&partition) else { return };
        owned.timelines.remove(id);
        self.small.take(self.digester.of((owned.claim, id)));
        self.small_rows = Recent::new(SMALL_ROWS_HELD);
        let mut touched = self.touch_whole(vec![Group { partition, id: id.clone(), rows: Vec::new() }]).await;
        let mut writes = Vec::new();
        for timeline in &mut touched {
            match &mut timeline.held.keys {
                Keys::Tree(tree) => {
                    for read in tree.all_nodes() {
                        let rows =
                            until_done("count_node", || self.count_rows(id, &read.span, &read.parts)).await;
                        metrics::TREES.with_label_values(&["node_rebuilt"]).inc();
                        tree.put_counted(&read, &rows);
                    }
                }
                // A tree where they are many.
                keys => keys.insert(Vec::new(), &self.settings.sizes),
            }
            writes.extend(self.tallies_of(clock(), timeline));
        }
        self.write_tallies(writes).await;
        self.hold(touched);
    }

    /// Brings timelines in as [`Self::touch`] does, and reads the small ones whole.
    async fn touch_whole(&mut self, groups: Vec<Group>) -> Vec<Touched> {
        let mut touched = self.touch(groups).await;
        self.read_unread(&mut touched).await;
        touched
    }

    /// Writes cells of trees, if there are any. A timeline's first tree is left out where its partition was taken over meanwhile: without one
    /// it is read whole, as before.
    async fn write_tallies(&mut self, mut writes: Vec<TallyWrite>) {
        let built = std::mem::take(&mut self.built);
        if self.store.writes_unseen() && !built.is_empty() {
            let ids: Vec<TimelineId> = built.iter().map(|(_, id)| id.clone()).collect();
            until_done("promise_trees", || self.store.promise_trees(&ids)).await;
            let outranked =
                self.find_outranked(built.iter().map(|(partition, _)| *partition).collect()).await;
            let left_out: BTreeSet<&TimelineId> = built
                .iter()
                .filter(|(partition, _)| outranked.contains(partition))
                .map(|(_, id)| id)
                .collect();
            writes.retain(|write| !left_out.contains(&write.timeline));
        }
        if !writes.is_empty() {
            until_done("write_tallies", || self.store.write_tallies(&writes)).await;
        }
    }

    /// Which of `partitions` somebody has taken over since they were taken over here. Of those nothing more is held.
    async fn find_outranked(&mut self, partitions: BTreeSet<i32>) -> BTreeSet<i32> {
        let (store, scope) = (&self.store, &self.scope);
        let epochs: Vec<(i32, u64)> = stream::iter(partitions)
            .map(|partition| async move {
                let scope = scope_of(scope, partition);
                (partition, until_done("read_epoch", || store.read_epoch(&scope)).await)
            })
            .buffered(STORE_REQUESTS_MAX)
            .collect()
            .await;
        let mut outranked = BTreeSet::new();
        for (partition, epoch) in epochs {
            let Some(held) = self.partitions.get_mut(&partition) else { continue };
            if i64::try_from(epoch).unwrap_or(i64::MAX) > held.stamps_end / EPOCH_STAMPS {
                tracing::warn!(
                    partition,
                    epoch,
                    "the partition was taken over meanwhile: its new trees are left out"
                );
                metrics::TREES.with_label_values(&["outranked"]).inc();
                held.is_outranked = true;
                held.timelines.clear();
                outranked.insert(partition);
            }
        }
        outranked
    }

    /// Reads small timelines that need not have been read.
    async fn read_unread(&self, touched: &mut [Touched]) {
        let unread = touched.iter_mut().filter(|touched| matches!(touched.held.keys, Keys::Unread(_)));
        let mut unread: Vec<&mut Touched> = unread.collect();
        if unread.is_empty() {
            return;
        }
        let ids: Vec<TimelineId> = unread.iter().map(|touched| touched.id.clone()).collect();
        let read = until_done("read_small", || self.read_small(&ids)).await;
        for (touched, keys) in unread.iter_mut().zip(read) {
            touched.held.keys = Keys::Few(keys);
        }
    }

    /// Whether a partition was taken over under `claim`, has stamps left, and was not found to be taken over by somebody else since.
    pub fn holds(&self, partition: i32, claim: u64) -> bool {
        self.has_taken(partition, claim) && !self.partitions[&partition].is_outranked
    }

    fn has_taken(&self, partition: i32, claim: u64) -> bool {
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
                is_outranked: false,
                timelines: HashMap::new(),
            };
            self.partitions.insert(*partition, held);
        }
        // Behind this, whoever is forgotten is told of in the partition.
        if !claims.is_empty() {
            self.forgotten.read().await;
        }
    }

    async fn take_epoch(&self, partition: i32) -> i64 {
        let scope = scope_of(&self.scope, partition);
        let epoch = until_done("take_epoch", || self.store.take_epoch(&scope)).await;
        i64::try_from(epoch).unwrap_or(i64::MAX / EPOCH_STAMPS)
    }

    /// The rows by timeline, less what has expired; and the timelines of what has, which exist all the same.
    fn group(
        &self,
        now: Timestamp,
        batches: Vec<OwnBatch>,
        owned: &mut Owned,
    ) -> (Vec<Group>, BTreeSet<TimelineId>) {
        let (mut groups, mut of_expired) = (Groups::default(), BTreeSet::new());
        for OwnBatch { partition, rows, .. } in batches {
            for row in rows {
                if row.key.position.at.plus_ms(self.settings.retention_ms) < now {
                    owned.expired += u64::from(row.counts);
                    of_expired.insert(row.timeline);
                } else {
                    groups.push(partition, row);
                }
            }
        }
        (groups.list, of_expired)
    }

    /// Brings the batch's timelines in, with every node and leaf that its rows fall in. They leave their partition's map meanwhile.
    async fn touch(&mut self, groups: Vec<Group>) -> Vec<Touched> {
        let mut touched = Vec::with_capacity(groups.len());
        let mut missing = Vec::new();
        let bring_in = |Group { partition, id, rows }, keys| Touched {
            partition,
            id,
            held: Held { keys, used: 0 },
            rows,
            pairs: false,
        };
        for Group { partition, id, rows } in groups {
            let Some(owned) = self.partitions.get_mut(&partition) else { continue };
            if let Some(held) = owned.timelines.remove(&id) {
                touched.push(Touched { partition, id, held, rows, pairs: false });
            } else if let Some(bound) = self.small.take(self.digester.of((owned.claim, &id))) {
                touched.push(bring_in(Group { partition, id, rows }, Keys::Unread(bound)));
            } else {
                missing.push(Group { partition, id, rows });
            }
        }
        if !missing.is_empty() {
            let loaded = self.load(&missing).await;
            touched.extend(missing.into_iter().zip(loaded).map(|(group, keys)| bring_in(group, keys)));
        }
        self.read_where_due(&mut touched).await;
        let mut incomplete = Vec::new();
        for (at, Touched { held, rows, .. }) in touched.iter_mut().enumerate() {
            held.used = self.batch;
            if let Keys::Tree(tree) = &mut held.keys
                && tree.touch(rows.iter().map(|row| &row.key.position), self.batch)
            {
                incomplete.push(at);
            }
        }
        // From the last, so that the places of those before it stay.
        let taken: Vec<Touched> = incomplete.iter().rev().map(|at| touched.swap_remove(*at)).collect();
        let counted = stream::iter(taken)
            .map(|timeline| self.count_touched(timeline))
            .buffered(STORE_REQUESTS_MAX)
            .collect::<Vec<_>>()
            .await;
        touched.extend(counted);
        touched
    }

    /// Timelines that are not held yet, in their order: by their stored tree, else, being small, unread. One that nobody marked as known
    /// has no rows: whoever writes a row marks its timeline first.
    async fn load(&mut self, groups: &[Group]) -> Vec<Keys> {
        let ids: Vec<TimelineId> = groups.iter().map(|group| group.id.clone()).collect();
        let heads = until_done("read_heads", || self.read_heads(&ids)).await;
        let writes_unseen = self.store.writes_unseen();
        let mut loaded = Vec::with_capacity(groups.len());
        let (mut treeless, mut new) = (Vec::new(), Vec::new());
        for (Group { partition, id, .. }, (Head { known, promised, root: cell }, root)) in
            groups.iter().zip(heads)
        {
            let says_none = cell.is_some();
            if let Some(root) = root {
                loaded.push(Keys::Tree(Box::new(Tree::take_over(root, self.settings.sizes))));
                continue;
            }
            // An earlier owner that said that there is none may have gone on to write one, and before there were promises without one.
            if promised || says_none {
                treeless.extend(self.no_tree(*partition, id));
            }
            if !known {
                new.push(id.clone());
            }
            loaded.push(if known || writes_unseen {
                Keys::Unread(Bound { rows: 0, is_counted: !known })
            } else {
                Keys::Few(Vec::new())
            });
        }
        self.write_tallies(treeless).await;
        if !new.is_empty() {
            until_done("mark_known", || self.store.mark_known(&new)).await;
        }
        loaded
    }

    /// The heads of timelines, and the roots of those that have a tree.
    async fn read_heads(&self, ids: &[TimelineId]) -> Result<Vec<(Head, Option<Root>)>, StoreError> {
        let heads = self.store.read_heads(ids).await?;
        let read = |head: Head| {
            let root = head.root.as_deref().map_or(Ok(None), Root::read);
            root.map(|root| (head, root)).map_err(|damaged| StoreError::new("decode", damaged))
        };
        heads.into_iter().map(read).collect()
    }

    /// Reads small timelines whole: where the store looks at what stands there anyway, all of them; else those that the batch may make
    /// large, and by chance some of those that nobody has counted.
    async fn read_where_due(&self, touched: &mut [Touched]) {
        let mut due: Vec<&mut Touched> = touched.iter_mut().filter(|touched| self.is_due(touched)).collect();
        if due.is_empty() {
            return;
        }
        let ids: Vec<TimelineId> = due.iter().map(|touched| touched.id.clone()).collect();
        let read = until_done("read_small", || self.read_small(&ids)).await;
        for (touched, keys) in due.iter_mut().zip(read) {
            touched.held.keys = Keys::Few(keys);
        }
    }

    fn is_due(&self, touched: &Touched) -> bool {
        let Keys::Unread(bound) = touched.held.keys else { return false };
        if !self.store.writes_unseen() {
            return true;
        }
        let by_chance = || {
            // Chance that is a function of what came: a history can be run again.
            let number = BuildHasherDefault::<DefaultHasher>::default().hash_one((&touched.id, self.batch));
            number % self.settings.sizes.unread_rows.max(1) < touched.rows.len() as u64
        };
        let is_large = bound.rows as usize + touched.rows.len() > self.settings.sizes.scan_rows_max;
        is_large || (!bound.is_counted && by_chance())
    }

    /// The keys of small timelines, sorted.
    async fn read_small(&self, ids: &[TimelineId]) -> Result<Vec<Vec<RowKey>>, StoreError> {
        let mut read = Vec::with_capacity(ids.len());
        for (id, rows) in ids.iter().zip(self.store.read_first_parts(ids).await?) {
            let mut keys = BTreeMap::new();
            self.tell_apart(id, FIRST_PART, rows, &mut keys).await?;
            read.push(keys.into_values().collect());
        }
        Ok(read)
    }

    /// Holds what was touched: of what need not be read no keys.
    fn hold(&mut self, touched: Vec<Touched>) {
        for Touched { partition, id, held, .. } in touched {
            let partition = self.partitions.get_mut(&partition).filter(|partition| !partition.is_outranked);
            let Some(partition) = partition else { continue };
            let bound = match &held.keys {
                Keys::Unread(bound) => *bound,
                Keys::Few(keys) if self.store.writes_unseen() => {
                    Bound { rows: u32::try_from(keys.len()).unwrap_or(u32::MAX), is_counted: true }
                }
                Keys::Few(_) | Keys::Tree(_) => {
                    partition.timelines.insert(id, held);
                    continue;
                }
            };
            self.small.put(self.digester.of((partition.claim, &id)), bound);
        }
    }

    /// Brings in the nodes and counts the leaves that `rows` fall in.
    async fn count_touched(&self, mut touched: Touched) -> Touched {
        let Touched { id, held: Held { keys: Keys::Tree(tree), .. }, rows, .. } = &mut touched else {
            return touched;
        };
        let positions = || rows.iter().map(|row| &row.key.position);
        let nodes = tree.missing_nodes(positions());
        if !nodes.is_empty() {
            let cells: Vec<u32> = nodes.iter().map(|read| read.cell).collect();
            let stored = until_done("read_tallies", || self.store.read_tallies(id, &cells)).await;
            for (read, stored) in nodes.iter().zip(stored) {
                self.put_node(id, tree, read, stored).await;
            }
        }
        let leaves = tree.missing_leaves(positions(), self.batch);
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
            tree.put_leaf(&leaf, rows);
        }
        touched
    }

    async fn put_node(&self, id: &TimelineId, tree: &mut Tree, read: &NodeRead, stored: Option<StoredTally>) {
        if let Some(node) = stored.and_then(|stored| Node::decode(&stored.bytes).ok())
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

    /// The rows of contacts with long histories, once more by campaign: of a history that has just become long all that stand, and
    /// from then on those of each batch. In the place of a repeat, which the crash of an owner may have lost here alone, what stands.
    async fn pair(&self, touched: &mut [Touched]) -> Vec<Group> {
        let mut groups = Groups::default();
        let (mut rows_left, mut bytes_left) = (PAIR_ROWS_A_BATCH, PAIR_BYTES_A_BATCH);
        for Touched { partition, id, held, rows, pairs } in touched {
            let (Subject::Contact(contact), Keys::Tree(tree)) = (&id.subject, &held.keys) else { continue };
            let count = tree.rows();
            let is_due = !tree.root().paired
                && (self.settings.sizes.pair_rows_min..PAIR_ROWS_MAX).contains(&count)
                && (count <= rows_left || rows_left == PAIR_ROWS_A_BATCH)
                && bytes_left > 0;
            let mut paired = Vec::new();
            if is_due {
                *pairs = true;
                paired = until_done("read_pairs", || self.stored_rows(id, tree.root())).await;
                rows_left = rows_left.saturating_sub(count);
                bytes_left = bytes_left.saturating_sub(paired.iter().map(|row| row.body.len()).sum());
            } else if !tree.root().paired {
                continue;
            }
            let (mut new, mut known) = (BTreeSet::new(), BTreeSet::<RowKey>::new());
            for row in rows.iter() {
                let position = &row.key.position;
                match tree.find(position) {
                    _ if row.completes => paired.push(row.clone()),
                    None if new.insert(position) => paired.push(row.clone()),
                    Some(event_type) if !is_due => {
                        known.insert(RowKey { position: position.clone(), event_type });
                    }
                    None | Some(_) => {}
                }
            }
            let (id, keys) = (&*id, &held.keys);
            let standing: Vec<Option<StoredRow>> = stream::iter(known)
                .map(|key: RowKey| async move {
                    until_done("read_pairs", || self.row_at(id, keys, &key.position, key.event_type)).await
                })
                .buffered(STORE_REQUESTS_MAX)
                .collect()
                .await;
            paired.extend(standing.into_iter().flatten().map(|row| placed_again(id, row, false)));
            for row in paired {
                let Some(campaign) = RowBody::decode(&row.body).ok().and_then(|body| body.campaign) else {
                    continue;
                };
                let timeline = TimelineId::contact_campaign(&id.account, *contact, &campaign);
                groups.push(*partition, PlacedRow { timeline, counts: false, ..row });
            }
        }
        groups.list
    }

    /// All rows of a timeline, as if they were placed again.
    async fn stored_rows(&self, id: &TimelineId, root: &Root) -> Result<Vec<PlacedRow>, StoreError> {
        let parts: BTreeSet<u32> =
            root.entries.iter().flat_map(|entry| entry.parts.iter().copied()).collect();
        let mut placed = Vec::new();
        for part in parts {
            let rows =
                self.store.read_rows(id, part, TypeSet::ALL, &Span::all(), Columns::All, usize::MAX).await?;
            placed.extend(rows.into_iter().map(|row| placed_again(id, row, true)));
        }
        Ok(placed)
    }

    /// The keys of all rows in `span`, oldest first, each position once. Where an event came under two types before its timeline
    /// was held, one of them stays.
    async fn count_rows(
        &self,
        id: &TimelineId,
        span: &Span,
        parts: &[u32],
    ) -> Result<Vec<RowKey>, StoreError> {
        let mut keys = BTreeMap::new();
        for part in parts {
            let rows = self.store.read_rows(id, *part, TypeSet::ALL, span, Columns::Keys, usize::MAX).await?;
            self.tell_apart(id, *part, rows, &mut keys).await?;
        }
        Ok(keys.into_values().collect())
    }

    /// Adds the keys of a part's rows to those of the parts before it, each position once.
    async fn tell_apart(
        &self,
        id: &TimelineId,
        part: u32,
        rows: Vec<StoredRow>,
        keys: &mut BTreeMap<Position, RowKey>,
    ) -> Result<(), StoreError> {
        for StoredRow { key, .. } in rows {
            match keys.get_mut(&key.position) {
                Some(kept) if kept.event_type != key.event_type => {
                    // The place of a row that was taken out is not taken again.
                    let is_mark = |key: &RowKey| key.event_type == EventType::Erased;
                    let comes_first =
                        is_mark(&key) || (!is_mark(&*kept) && self.came_before(id, part, &key, kept).await?);
                    let loser = if comes_first { std::mem::replace(kept, key) } else { key };
                    let stamp = (loser.position.at.0 + 1) * 1000;
                    self.store.delete_rows(id, part, &[loser], stamp).await?;
                }
                Some(_) => {}
                None => {
                    keys.insert(key.position.clone(), key);
                }
            }
        }
        Ok(())
    }

    /// Whether of two rows of one event, which came under two types, the one came to the log before the other. One in another part did not.
    async fn came_before(
        &self,
        id: &TimelineId,
        part: u32,
        one: &RowKey,
        other: &RowKey,
    ) -> Result<bool, StoreError> {
        let types = TypeSet::default().with(one.event_type).with(other.event_type);
        let span = Span::only(&one.position);
        let rows = self.store.read_rows(id, part, types, &span, Columns::All, usize::MAX).await?;
        let earliness = |key: &RowKey| {
            let row = rows.iter().find(|row| row.key == *key);
            row.map(|row| RowBody::earliness_of(&row.body))
        };
        Ok(earliness(other).is_some_and(|other| earliness(one) > Some(other)))
    }

    /// Tells new rows from repeats.
    ///
    /// Of several copies of an event the earliest in the log stands, also where it comes last, so that a replay finds what stands as
    /// it would be: the store keeps the greatest stamp, whatever it is given. That is so while a timeline is small; in a tree, whose parts
    /// a copy might be added to, what is known stays.
    fn sort_out(&mut self, touched: &mut Touched, owned: &mut Owned) -> Sorted {
        let claim = self.claim(touched.partition);
        let Touched { id, held, rows, .. } = touched;
        let is_unread = matches!(held.keys, Keys::Unread(_));
        let is_tree = matches!(held.keys, Keys::Tree(_));
        let mut sorted = Sorted::default();
        // In the order of positions the repeats of a batch stand together, and stay in the order in which they came.
        rows.sort_by(|one, next| one.key.position.cmp(&next.key.position));
        for row in std::mem::take(rows) {
            let position = &row.key.position;
            let rank = rank_of(&row);
            let just_seen = sorted.written.last().filter(|(last, _)| last == position);
            // With the rank where it is known.
            let seen = match just_seen {
                Some((_, last)) => Some((last.event_type, Some(last.rank))),
                None if is_unread => {
                    let seen = self.small_rows.get(self.digester.of((claim, &*id, position)));
                    seen.map(|seen| (seen.event_type, Some(seen.rank)))
                }
                None => held.keys.find(position).map(|event_type| (event_type, None)),
            };
            if row.counts {
                *(if seen.is_some() { &mut owned.duplicate } else { &mut owned.projected }) += 1;
            }
            let is_new = match seen {
                None => true,
                Some((event_type, _)) if event_type != row.key.event_type => continue,
                Some((_, known)) => {
                    let may_be_earlier = !is_tree && known.is_none_or(|known| rank > known);
                    if !row.completes && !may_be_earlier {
                        continue;
                    }
                    false
                }
            };
            if is_new {
                sorted.new.push(row.key.clone());
            }
            let seen = Seen { event_type: row.key.event_type, rank };
            match sorted.written.last_mut().filter(|(last, _)| last == position) {
                Some((_, last)) => last.rank = last.rank.max(rank),
                None => sorted.written.push((position.clone(), seen)),
            }
            let expires_at = position.at.plus_ms(self.settings.retention_ms + ROW_GRACE_MS);
            let part = held.keys.part_for(position);
            let is_new = is_new && !is_unread;
            let write = RowWrite { key: row.key, stamp: row.stamp, expires_at, body: row.body, is_new };
            match sorted.by_part.iter_mut().find(|(of, _)| *of == part) {
                Some((_, writes)) => writes.push(write),
                None => sorted.by_part.push((part, vec![write])),
            }
        }
        sorted
    }

    /// The cells of a timeline that changed, stamped now that they are counted; none for one that needs no tree yet.
    fn tallies_of(&mut self, now: Timestamp, touched: &mut Touched) -> Option<TallyWrite> {
        let Touched { partition, id, held, .. } = touched;
        let Keys::Tree(tree) = &mut held.keys else { return None };
        let splits = tree.take_splits();
        if splits.built {
            self.built.push((*partition, id.clone()));
        }
        for (change, count) in [
            ("built", u64::from(splits.built)),
            ("leaf_split", splits.leaves),
            ("node_split", splits.nodes),
            ("part_added", splits.parts),
        ] {
            if count > 0 {
                metrics::TREES.with_label_values(&[change]).inc_by(count);
            }
        }
        tree.drop_expired(now.minus_ms(self.settings.retention_ms + ROW_GRACE_MS));
        let cells = tree.take_dirty();
        if cells.is_empty() {
            return None;
        }
        let stamp = self.next_stamp(*partition)?;
        Some(TallyWrite { timeline: id.clone(), stamp, ttl_s: self.tally_ttl_s(), cells })
    }

    /// That a timeline has no tree, stamped now.
    fn no_tree(&mut self, partition: i32, id: &TimelineId) -> Option<TallyWrite> {
        let (stamp, cells) = (self.next_stamp(partition)?, vec![(ROOT_CELL, Root::NONE.to_vec())]);
        Some(TallyWrite { timeline: id.clone(), stamp, ttl_s: self.tally_ttl_s(), cells })
    }

    /// The stamp of the next numbers of a partition.
    fn next_stamp(&mut self, partition: i32) -> Option<i64> {
        let partition = self.partitions.get_mut(&partition)?;
        partition.stamp += 1;
        Some(partition.stamp)
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
        let mut costs = Vec::<(u64, usize)>::new();
        for held in self.partitions.values().flat_map(|partition| partition.timelines.values()) {
            costs.push((held.used, TIMELINE_COST_KEYS));
            match &held.keys {
                Keys::Unread(_) => {}
                Keys::Few(keys) => costs.push((held.used, keys.len())),
                Keys::Tree(tree) => costs.extend(tree.held()),
            }
        }
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
            keep_from = used.saturating_add(1);
        }
        for partition in self.partitions.values_mut() {
            partition.timelines.retain(|_, held| held.used >= keep_from.min(self.batch));
            for held in partition.timelines.values_mut() {
                if let Keys::Tree(tree) = &mut held.keys {
                    tree.forget_before(keep_from.min(self.batch));
                }
            }
        }
    }
}

impl Keys {
    /// The type of the row at `position`, if there is one.
    fn find(&self, position: &Position) -> Option<EventType> {
        match self {
            Keys::Unread(_) => None,
            Keys::Few(keys) => {
                let at = keys.binary_search_by(|key| key.position.cmp(position)).ok()?;
                Some(keys[at].event_type)
            }
            Keys::Tree(tree) => tree.find(position),
        }
    }

    /// The part that a new row at `position` goes to.
    fn part_for(&self, position: &Position) -> u32 {
        match self {
            Keys::Unread(_) | Keys::Few(_) => FIRST_PART,
            Keys::Tree(tree) => tree.part_for(position),
        }
    }

    /// The parts that a row at `position` may stand in.
    fn parts_at(&self, position: &Position) -> Parts {
        match self {
            Keys::Unread(_) | Keys::Few(_) => Parts::from_elem(FIRST_PART, 1),
            Keys::Tree(tree) => tree.parts_at(position),
        }
    }

    /// Every part that any row may ever have been written to, or may be by an earlier owner that wakes up late.
    fn parts_ever(&self) -> std::ops::Range<u32> {
        let next = match self {
            Keys::Unread(_) | Keys::Few(_) => FIRST_PART + 1,
            Keys::Tree(tree) => tree.next_part(),
        };
        FIRST_PART..next + PARTS_AHEAD
    }

    /// Takes rows out that no longer stand.
    fn remove(&mut self, positions: &[Position]) {
        match self {
            Keys::Unread(_) => {}
            Keys::Few(keys) => keys.retain(|key| !positions.contains(&key.position)),
            Keys::Tree(tree) => tree.remove(positions),
        }
    }

    /// Counts new rows, which are acknowledged and sorted, at positions that had none. Few become a tree when they are too many.
    fn insert(&mut self, new: Vec<RowKey>, sizes: &Sizes) {
        match self {
            Keys::Unread(bound) => {
                bound.rows = bound.rows.saturating_add(u32::try_from(new.len()).unwrap_or(u32::MAX));
            }
            Keys::Few(keys) if keys.is_empty() => *keys = new,
            Keys::Few(keys) => {
                for key in new {
                    let at = keys.partition_point(|held| held.position < key.position);
                    keys.insert(at, key);
                }
            }
            Keys::Tree(tree) => tree.insert(new),
        }
        if let Keys::Few(keys) = self
            && keys.len() > sizes.scan_rows_max
        {
            *self = Keys::Tree(Box::new(Tree::build(std::mem::take(keys), *sizes)));
        }
    }
}

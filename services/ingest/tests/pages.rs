//! A large timeline as its owner leaves it in the embedded store: every page under every filter has the rows that a plain list has, the
//! total is exact, and however far the page, the rows that are read for it stay few.

#![expect(clippy::unwrap_used, reason = "a test may fail")]

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};

use event_store::embedded::EmbeddedStore;
use event_store::{EventStore, RowGroup, RowWrite};
use ingest::Clock;
use ingest::own::{OwnBatch, Owner, OwnerSettings};
use proptest::prelude::*;
use query::read::{PageRequest, read_page_by};
use query::trees::Trees;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use timeline::row::{PlacedRow, RowKey};
use timeline::tally::{FIRST_PART, LEAF_ROWS_MAX, Sizes};
use timeline::time::DAY_MS;
use timeline::{AccountId, EventType, Id, Position, RowBody, Span, TimelineId, Timestamp, TypeSet};
use tokio::runtime::Runtime;

const NOW: Timestamp = Timestamp(1_790_000_000_000);
const ROWS: usize = 60_000;

fn rows(rng: &mut StdRng, timeline: &TimelineId) -> Vec<PlacedRow> {
    let row = |number: usize, rng: &mut StdRng| {
        // A third in one millisecond, a third in a dense hour, the rest over months.
        let ago_ms = match rng.random_range(0..3) {
            0 => 40 * DAY_MS,
            1 => 30 * DAY_MS + rng.random_range(0..3_600_000),
            _ => rng.random_range(0..150 * DAY_MS),
        };
        let event_type = match rng.random_range(0..1000) {
            0 => EventType::Bounced,
            1..400 => EventType::Sent,
            400..800 => EventType::Delivered,
            _ => EventType::Opened,
        };
        let id = format!("{:08x}-{number}", rng.random::<u32>());
        PlacedRow {
            timeline: timeline.clone(),
            key: RowKey { position: Position { at: NOW.minus_ms(ago_ms), id: id.into() }, event_type },
            stamp: (NOW.0 - ago_ms) * 1000,
            completes: false,
            counts: true,
            body: RowBody::default().encode(),
        }
    };
    (0..ROWS).map(|number| row(number, rng)).collect()
}

#[tokio::test]
async fn every_page_is_exact_and_reads_few_rows() {
    let directory = tempfile::tempdir().unwrap();
    let store: Arc<dyn EventStore> = Arc::new(EmbeddedStore::open(directory.path()).unwrap());
    let timeline = TimelineId::campaign(&AccountId::parse("acme").unwrap(), &Id::parse("giant").unwrap());
    let mut rng = StdRng::seed_from_u64(7);
    let rows = rows(&mut rng, &timeline);
    let some_row = rows[0].clone();
    let settings =
        OwnerSettings { retention_ms: 180 * DAY_MS, keys_held_max: 20_000, sizes: Sizes::default() };
    let clock: Clock = Arc::new(|| NOW);
    let mut owner = Owner::new(store.clone(), "test", settings);
    for batch in rows.chunks(3000) {
        owner.work(&clock, vec![OwnBatch { partition: 0, claim: 0, rows: batch.to_vec() }]).await;
    }
    // Repeats, to an owner that has seen nothing, change nothing.
    let mut owner = Owner::new(store.clone(), "test", settings);
    let repeated = rows[10_000..13_000].to_vec();
    let owned = owner.work(&clock, vec![OwnBatch { partition: 0, claim: 1, rows: repeated }]).await;
    assert_eq!((owned.projected, owned.duplicate), (0, 3000));

    let mut keys: Vec<RowKey> = rows.into_iter().map(|row| row.key).collect();
    keys.sort_by(|one, next| next.position.cmp(&one.position));
    let some_time = |rng: &mut StdRng| match rng.random_range(0..4) {
        0 => NOW.minus_ms(40 * DAY_MS),
        1 => NOW.minus_ms(30 * DAY_MS - 1_800_000),
        _ => NOW.minus_ms(rng.random_range(0..150 * DAY_MS)),
    };
    let trees = Trees::default();
    for case in 0..400 {
        let types = match rng.random_range(0..4) {
            0 => TypeSet::of(&[EventType::Bounced]),
            1 => TypeSet::of(&[EventType::Sent, EventType::Bounced]),
            _ => TypeSet::ALL,
        };
        let span = match rng.random_range(0..3) {
            0 => {
                let (one, other) = (some_time(&mut rng), some_time(&mut rng));
                Span::of_times(one.min(other), one.max(other))
            }
            1 => Span::of_times(NOW.minus_ms(180 * DAY_MS), Timestamp(i64::MAX - 1)),
            _ => Span::all(),
        };
        let want: Vec<&RowKey> = keys
            .iter()
            .filter(|key| types.contains(key.event_type) && span.contains(&key.position))
            .collect();
        let limit = rng.random_range(1..=100);
        let pages = want.len() / limit + 1;
        let page = if case % 5 == 0 { pages - 1 } else { rng.random_range(0..=pages) };
        let offset = page * limit;
        let request = PageRequest { types, span, campaign: None, offset: offset as u64, limit };
        let read = read_page_by(&trees, store.as_ref(), &timeline, &request).await.unwrap();
        assert_eq!(read.total, want.len() as u64, "{request:?}");
        let page: Vec<&RowKey> = want.iter().skip(offset).take(limit).copied().collect();
        assert!(read.rows.iter().map(|row| &row.key).eq(page), "{request:?}");
        // Two ragged ends, the leaf that the page begins in, and the one it ends in.
        let few = (limit + 4 * LEAF_ROWS_MAX) as u64;
        assert!(read.rows_read <= few, "{} rows were read for {request:?}", read.rows_read);
    }

    // Much expires and has not been swept yet: a page that is cut where retention ends does not read it.
    let later = NOW.plus_ms(145 * DAY_MS);
    let clock: Clock = Arc::new(move || later);
    let newest = PlacedRow {
        key: RowKey { position: Position { at: later, id: "newest".into() }, event_type: EventType::Sent },
        ..some_row
    };
    let mut owner = Owner::new(store.clone(), "test", settings);
    owner.work(&clock, vec![OwnBatch { partition: 0, claim: 2, rows: vec![newest] }]).await;
    let cut = later.minus_ms(180 * DAY_MS);
    let kept = keys.iter().filter(|key| key.position.at >= cut).count() as u64 + 1;
    for offset in [0, 100, kept - 10] {
        let span = Span { from: Position::at_start_of(cut), until: Position::max() };
        let request = PageRequest { types: TypeSet::ALL, span, campaign: None, offset, limit: 10 };
        let read = read_page_by(&trees, store.as_ref(), &timeline, &request).await.unwrap();
        assert_eq!((read.total, read.rows.len()), (kept, 10));
        assert!(read.rows_read <= 10 + 4 * LEAF_ROWS_MAX as u64, "{} rows were read", read.rows_read);
    }
}

/// Trees that grow at once, so that timelines of a few dozen rows have several nodes and parts.
fn small() -> Sizes {
    Sizes {
        leaf_rows_max: 4,
        node_leaves_max: 3,
        scan_rows_max: 3,
        part_rows_max: 12,
        pair_rows_min: 1_000_000,
        ..Sizes::default()
    }
}

/// The store that all cases share, each with a timeline of its own.
struct Shared {
    runtime: Runtime,
    store: Arc<dyn EventStore>,
    timelines: AtomicU32,
    _directory: tempfile::TempDir,
}

static SHARED: LazyLock<Shared> = LazyLock::new(|| {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(EmbeddedStore::open(directory.path()).unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    Shared { runtime, store, timelines: AtomicU32::new(0), _directory: directory }
});

/// When, in milliseconds from the first; the event's id; its type.
type Happened = (i64, String, usize);

/// What is asked of a timeline: types, the first and the last millisecond, the page and how many rows it has.
type Asked = (u16, i64, i64, usize, usize);

/// The row of what came as number `number`: the earlier it came, the greater its rank.
fn placed(timeline: &TimelineId, number: usize, (at, id, event_type): &Happened) -> PlacedRow {
    let rank = 499 - number as u16;
    let at = Timestamp(NOW.0 - 1000 + at);
    PlacedRow {
        timeline: timeline.clone(),
        key: RowKey {
            position: Position { at, id: id.as_str().into() },
            event_type: EventType::ALL[*event_type],
        },
        stamp: at.0 * 1000 + i64::from(rank),
        completes: false,
        counts: true,
        body: RowBody { rank, campaign: Id::parse("c"), ..RowBody::default() }.encode(),
    }
}

async fn judge(batches: &[Vec<Happened>], uncounted: &[Happened], asked: &[Asked]) {
    let id = format!("c{}", SHARED.timelines.fetch_add(1, Ordering::Relaxed));
    let timeline = TimelineId::campaign(&AccountId::parse("acme").unwrap(), &Id::parse(&id).unwrap());
    let settings = OwnerSettings { retention_ms: 180 * DAY_MS, keys_held_max: 8, sizes: small() };
    let clock: Clock = Arc::new(|| NOW);
    let mut owner = Owner::new(SHARED.store.clone(), "cases", settings);
    let (mut want, mut numbers) = (Vec::<RowKey>::new(), 0..);
    let trees = Trees::default();
    for batch in batches {
        let numbered = batch.iter().zip(&mut numbers);
        let rows: Vec<PlacedRow> =
            numbered.map(|(happened, number)| placed(&timeline, number, happened)).collect();
        for row in &rows {
            // An event is known by its time and id; what it says of its type the second time changes nothing.
            if want.iter().all(|key| key.position != row.key.position) {
                want.push(row.key.clone());
            }
        }
        owner.work(&clock, vec![OwnBatch { partition: 0, claim: 0, rows }]).await;
        want.sort_by(|one, next| next.position.cmp(&one.position));
        judge_pages(&trees, &timeline, &want, asked).await;
    }
    let rows = uncounted.iter().zip(&mut numbers);
    let rows: Vec<PlacedRow> = rows.map(|(happened, number)| placed(&timeline, number, happened)).collect();
    let all: Vec<RowKey> = want.iter().cloned().chain(rows.iter().map(|row| row.key.clone())).collect();
    write_uncounted(rows).await;
    judge_uncounted(&trees, &timeline, [&want, &all], asked).await;
    judge_uncounted(&Trees::default(), &timeline, [&want, &all], asked).await;
}

/// Writes rows as an owner does that has not come to counting them.
async fn write_uncounted(rows: Vec<PlacedRow>) {
    for PlacedRow { timeline, key, stamp, body, .. } in rows {
        let expires_at = key.position.at.plus_ms(180 * DAY_MS);
        let rows = vec![RowWrite { key, stamp, expires_at, body, is_new: false }];
        let group = RowGroup { timeline: &timeline, part: FIRST_PART, rows };
        SHARED.store.write_rows(NOW, &[group]).await.unwrap();
    }
}

fn request_of((types, first, last, page, per_page): &Asked) -> PageRequest {
    let types =
        TypeSet::ALL.iter().filter(|of| types & 1 << *of as u16 != 0).fold(TypeSet::default(), TypeSet::with);
    let span = Span::of_times(Timestamp(NOW.0 - 1000 + first), Timestamp(NOW.0 - 1000 + last));
    PageRequest { types, span, campaign: None, offset: (page * per_page) as u64, limit: *per_page }
}

/// Where rows wait to be counted a page is full, and shows what was asked for and no more than its total, which lies between what is counted
/// and what there is.
async fn judge_uncounted(trees: &Trees, timeline: &TimelineId, keys: [&[RowKey]; 2], asked: &[Asked]) {
    for (asked, campaign) in asked.iter().flat_map(|asked| [(asked, None), (asked, Id::parse("c"))]) {
        let request = PageRequest { campaign, ..request_of(asked) };
        let matches =
            |key: &&RowKey| request.types.contains(key.event_type) && request.span.contains(&key.position);
        let [counted, all] = keys.map(|keys| keys.iter().filter(matches).count() as u64);
        let read = read_page_by(trees, SHARED.store.as_ref(), timeline, &request).await.unwrap();
        assert!((counted..=all).contains(&read.total), "{}, not {counted} to {all}: {request:?}", read.total);
        let left = read.total.saturating_sub(request.offset).min(request.limit as u64);
        assert_eq!(read.rows.len() as u64, left, "{request:?}");
        assert!(read.rows.iter().all(|row| matches(&&row.key)), "{request:?}");
    }
}

/// Each page asked for is what `want`, newest first, has of it; `trees` have seen what was there before.
async fn judge_pages(trees: &Trees, timeline: &TimelineId, want: &[RowKey], asked: &[Asked]) {
    for request in asked.iter().map(request_of) {
        let PageRequest { types, span, .. } = &request;
        let want = want.iter().filter(|key| types.contains(key.event_type) && span.contains(&key.position));
        let (total, offset) = (want.clone().count(), request.offset as usize);
        let read = read_page_by(trees, SHARED.store.as_ref(), timeline, &request).await.unwrap();
        assert_eq!(read.total, total as u64, "{request:?}");
        let page = want.skip(offset).take(request.limit);
        assert!(read.rows.iter().map(|row| &row.key).eq(page), "{request:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    /// Any rows, in any batches, with repeats among them: after each every page of any filter is that of a plain list, and so is its total;
    /// and behind all some that are not counted yet.
    #[test]
    fn every_page_of_any_timeline_is_that_of_a_plain_list(
        batches in proptest::collection::vec(proptest::collection::vec((0_i64..20, "[ab]{1,2}", 0_usize..15), 1..16), 1..5),
        uncounted in proptest::collection::vec((0_i64..20, "[cd]", 0_usize..15), 0..6),
        asked in proptest::collection::vec((any::<u16>(), -1_i64..21, -1_i64..21, 0_usize..8, 1_usize..10), 4),
    ) {
        SHARED.runtime.block_on(judge(&batches, &uncounted, &asked));
    }
}

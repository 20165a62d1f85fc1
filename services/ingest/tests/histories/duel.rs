//! Two owners of one timeline that has no tree yet: one is replaced and goes on with what it has begun, while its successor works. In whole
//! histories they seldom meet in the moment that a first tree takes; here in nearly every one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use ingest::Clock;
use ingest::own::{OwnBatch, Owner};
use query::read::{PageRequest, read_page};
use timeline::row::{PlacedRow, RowKey, stored_stamp};
use timeline::{AccountId, EventType, Id, Order, Position, RowBody, Span, TimelineId, TypeSet};
use tokio::time::sleep;

use super::fault::Fault;
use super::owner_settings;
use super::sim::{BEGIN, Sim};
use super::sim_store::SimStore;

/// Longer than it takes a request that failed to land.
const REST: Duration = Duration::from_secs(5);

/// The rows of one partition, in their order, and how far they are committed.
struct Log {
    rows: Vec<PlacedRow>,
    committed: AtomicUsize,
    /// Whether the first owner was replaced: it commits no more.
    is_replaced: AtomicBool,
}

/// Runs one; what does not hold at the end, and how many requests there were.
pub(crate) async fn run(seed: u64, fault: Fault) -> Result<u64, String> {
    // Only stores that take rows unseen have promises.
    let mut sim = Sim::new(seed, fault);
    sim.writes_unseen = true;
    let store = Arc::new(SimStore::new(&sim));
    let timeline = TimelineId::campaign(&AccountId::parse("acme").unwrap(), &Id::parse("c").unwrap());
    let rows = (0..4 + sim.random(0..8)).map(|number| row(&timeline, number)).collect();
    let log = Arc::new(Log { rows, committed: AtomicUsize::new(0), is_replaced: AtomicBool::new(false) });
    let first = tokio::spawn(own(sim.clone(), store.clone(), log.clone(), 1));
    sim.pause(0..600).await;
    log.is_replaced.store(true, Ordering::Relaxed);
    own(sim.clone(), store.clone(), log.clone(), 2).await;
    first.await.map_err(|panic| panic.to_string())?;
    sim.set_failing(false);
    sleep(REST).await;
    let request = PageRequest {
        types: TypeSet::ALL,
        span: Span::all(),
        campaign: None,
        offset: 0,
        limit: log.rows.len(),
    };
    let page = read_page(store.as_ref(), &timeline, &request).await.map_err(|error| error.to_string())?;
    let want = log.rows.len();
    if (page.total, page.rows.len()) != (want as u64, want) {
        return Err(format!("total {} and {} rows by {}, want {want}", page.total, page.rows.len(), page.by));
    }
    Ok(sim.requests())
}

fn row(timeline: &TimelineId, number: u64) -> PlacedRow {
    let position =
        Position { at: BEGIN.minus_ms(1000 * (number.cast_signed() % 4)), id: format!("e{number}").into() };
    PlacedRow {
        timeline: timeline.clone(),
        stamp: stored_stamp(position.at, 1),
        key: RowKey { position, event_type: EventType::Opened },
        completes: false,
        counts: true,
        body: RowBody { rank: 1, ..RowBody::default() }.encode(),
    }
}

/// Works through the log from where it is committed, batch by batch. The first, once it is replaced, ends with the batch that it is at.
async fn own(sim: Sim, store: Arc<SimStore>, log: Arc<Log>, claim: u64) {
    let mut owner = Owner::new(Arc::new(store.handle(0)), "sim", owner_settings(&sim));
    let time = sim.clone();
    let clock: Clock = Arc::new(move || time.now());
    let is_over = || claim == 1 && log.is_replaced.load(Ordering::Relaxed);
    loop {
        let at = log.committed.load(Ordering::Relaxed);
        let end = log.rows.len().min(at + 1 + sim.pick(5));
        if at == end || is_over() {
            return;
        }
        if !owner.holds(0, claim) {
            owner.take_over(&[(0, claim)]).await;
            // As the broker refuses a member that it has replaced.
            if is_over() {
                return;
            }
        }
        // In the same batch, and before its rows: it may build the tree that a batch before it did not.
        if sim.chance(0.2) {
            owner.obey(&clock, 0, &Order::Recount(log.rows[at].timeline.clone())).await;
        }
        owner.work(&clock, vec![OwnBatch { partition: 0, claim, rows: log.rows[at..end].to_vec() }]).await;
        if !is_over() {
            log.committed.store(end, Ordering::Relaxed);
        }
        sim.pause(0..50).await;
    }
}

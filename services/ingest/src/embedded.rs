//! Both stages, one behind the other, from the embedded log to the embedded store, as `backstamp dev` runs them.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use event_log::{EmbeddedLog, Incoming, Topic};
use event_store::EventStore;
use event_store::embedded::EmbeddedStore;
use telemetry::metrics;
use telemetry::shutdown::Shutdown;
use timeline::Timestamp;
use tokio::sync::mpsc;

use crate::forgotten::Forgotten;
use crate::kafka::{occurred, show_delay};
use crate::own::{OwnBatch, Owner};
use crate::place::{Place, Placed, RawRecord, finish_joined};
use crate::references::{RawReference, Stamps, store_references};
use crate::retry::{Failure, until_done};
use crate::{BatchTimer, Clock, IngestSettings, KEYS_HELD_MAX_EMBEDDED};

/// Records in a batch.
const RECORDS_MAX: usize = 4000;
/// Bytes in a batch.
const BYTES_MAX: usize = 4 << 20;
/// How often the store is synced and what it holds is trimmed from the log.
const PERSIST_EVERY: Duration = Duration::from_secs(5);
/// How often rows that have expired are deleted.
const SWEEP_EVERY: Duration = Duration::from_secs(3600);
/// The only partition.
const PARTITION: i32 = 0;

/// Batches that were placed and wait for the owner.
const PLACED_MAX: usize = 1;
/// How often it is looked until when everything is visible, whether anybody asks or not.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Until when everything that was published is visible.
pub struct Visible {
    log: Arc<EmbeddedLog>,
    clock: Clock,
    /// Everything below this offset is done.
    done: AtomicU64,
    until: AtomicI64,
}

impl Visible {
    /// Of `log`, of which everything below the offset `done` is done.
    pub fn new(log: Arc<EmbeddedLog>, clock: Clock, done: u64) -> Visible {
        Visible { log, clock, done: AtomicU64::new(done), until: AtomicI64::new(i64::MIN) }
    }

    /// Everything that was acknowledged until then is visible. `None` before the first record that waited at the start was looked at.
    pub fn until(&self) -> Option<Timestamp> {
        // In this order: what is acknowledged after the first line may be missing in the second.
        let now = (self.clock)();
        if self.done.load(Ordering::SeqCst) >= self.log.end_offset() {
            self.reach(now);
        }
        let until = self.until.load(Ordering::SeqCst);
        if until == i64::MIN {
            return None;
        }
        metrics::VISIBLE_UNTIL.with_label_values(&[] as &[&str]).set(until as f64 / 1000.0);
        Some(Timestamp(until))
    }

    fn reach(&self, until: Timestamp) {
        self.until.fetch_max(until.0, Ordering::SeqCst);
    }
}

/// Runs until `shutdown`, finishing what is in work. Whatever the log holds beyond the committed offset is done first, again if need be.
/// While the owner writes one batch, the next is placed: as on Kafka, where the two are apart altogether.
pub async fn run(
    log: Arc<EmbeddedLog>,
    store: Arc<EmbeddedStore>,
    settings: &IngestSettings,
    clock: Clock,
    visible: &Arc<Visible>,
    shutdown: &Shutdown,
) -> anyhow::Result<()> {
    let events: Arc<dyn EventStore> = store.clone();
    let place = Place::new(events.clone(), settings.filter.clone(), settings.retention_ms);
    let owner = Owner::new(events.clone(), "embedded", settings.owner(KEYS_HELD_MAX_EMBEDDED));
    let keeping =
        tokio::spawn(keep(log.clone(), store.clone(), clock.clone(), visible.clone(), shutdown.clone()));
    let offset = store.committed_offset().await?;
    let (placed, waiting) = mpsc::channel(PLACED_MAX);
    let owning = tokio::spawn(own_batches(store.clone(), owner, waiting, clock.clone(), visible.clone()));
    let placing = place_batches(&log, place, events, offset, &clock, shutdown, placed).await;
    // What was placed is still owned.
    let owned = owning.await;
    keeping.abort();
    store.persist().await?;
    owned??;
    placing
}

/// A batch on its way from the first stage to the second.
struct PlacedBatch {
    placed: Placed,
    /// The offset behind it.
    next: u64,
    first_at: Timestamp,
    last_at: Timestamp,
}

/// Reads batches and places them, until `shutdown`.
async fn place_batches(
    log: &Arc<EmbeddedLog>,
    mut place: Place,
    store: Arc<dyn EventStore>,
    mut offset: u64,
    clock: &Clock,
    shutdown: &Shutdown,
    done: mpsc::Sender<PlacedBatch>,
) -> anyhow::Result<()> {
    let mut stamps = Stamps::default();
    // Nobody is forgotten here: this store cannot.
    let forgotten = Forgotten::new(store.clone());
    loop {
        tokio::select! {
            biased;
            () = shutdown.begun() => return Ok(()),
            // The owner is gone only where it has failed, and it says why.
            () = done.closed() => return Ok(()),
            () = log.wait_beyond(offset) => {}
        }
        let records = tokio::task::spawn_blocking({
            let log = log.clone();
            move || log.read(offset, RECORDS_MAX, BYTES_MAX)
        });
        let records = records.await??;
        let (Some(first), Some(last)) = (records.first(), records.last()) else { continue };
        let (first_at, last_at) = (first.appended_at, last.appended_at);
        let behind = u64::try_from(last.offset)? + 1;
        let timer = BatchTimer::start("place", records.len());
        let mut placed = place_records(&mut place, &forgotten, &mut stamps, &store, &records, clock).await;
        timer.stop();
        loop {
            let waiting = std::mem::take(&mut placed.waiting);
            // Only with the last of it all of the batch is done.
            if waiting.is_empty() {
                offset = behind;
            }
            if done.send(PlacedBatch { placed, next: offset, first_at, last_at }).await.is_err() {
                return Ok(());
            }
            if offset == behind {
                break;
            }
            // What is left is done with the batch when it is read again.
            if shutdown.has_begun() {
                return Ok(());
            }
            placed = place.wake(clock(), waiting).await;
        }
    }
}

async fn place_records(
    place: &mut Place,
    forgotten: &Forgotten,
    stamps: &mut Stamps,
    store: &Arc<dyn EventStore>,
    records: &[Incoming],
    clock: &Clock,
) -> Placed {
    let of = |topic| records.iter().filter(move |record| record.topic == topic);
    let references: Vec<RawReference<'_>> = of(Topic::References).map(RawReference::from).collect();
    let refused_references = store_references(store, forgotten, stamps, &references).await;
    let events: Vec<RawRecord<'_>> = of(Topic::Events).map(RawRecord::from).collect();
    let placed = place.work(clock(), &events).await;
    // The intake lets nothing through that is refused here.
    for (_, refusal) in refused_references.iter().chain(&placed.refused) {
        tracing::error!(code = refusal.code, "a record of the embedded log is refused");
    }
    placed
}

/// Owns batches until no more come, and commits each.
async fn own_batches(
    store: Arc<EmbeddedStore>,
    mut owner: Owner,
    mut placed: mpsc::Receiver<PlacedBatch>,
    clock: Clock,
    visible: Arc<Visible>,
) -> anyhow::Result<()> {
    while let Some(PlacedBatch { placed, next, first_at, last_at }) = placed.recv().await {
        let timer = BatchTimer::start("own", placed.rows.len());
        visible.reach(first_at.minus_ms(1));
        let occurred = occurred(placed.rows.iter());
        owner.work(&clock, vec![OwnBatch { partition: PARTITION, claim: 0, rows: placed.rows }]).await;
        finish_joined(store.as_ref(), &placed.joined).await;
        until_done("commit", || store.commit_offset(next)).await;
        visible.done.store(next, Ordering::SeqCst);
        timer.stop();
        let now = clock();
        show_delay(now, &occurred, &[first_at]);
        let lag = i64::try_from(visible.log.end_offset().saturating_sub(next))?;
        metrics::LAG_MESSAGES.with_label_values(&["embedded", "0"]).set(lag);
        let age_s = if lag == 0 { 0 } else { (now.0 - last_at.0).max(0) / 1000 };
        metrics::LAG_SECONDS.with_label_values(&["embedded", "0"]).set(age_s);
    }
    Ok(())
}

/// Now and then makes the store durable and trims the log behind it, and deletes what has expired.
async fn keep(
    log: Arc<EmbeddedLog>,
    store: Arc<EmbeddedStore>,
    clock: Clock,
    visible: Arc<Visible>,
    shutdown: Shutdown,
) {
    let mut look = tokio::time::interval(LOOK_EVERY);
    let mut persist = tokio::time::interval(PERSIST_EVERY);
    let mut sweep = tokio::time::interval(SWEEP_EVERY);
    loop {
        tokio::select! {
            () = shutdown.begun() => return,
            _ = look.tick() => {
                // For whoever asks while something waits.
                let _ = visible.until();
            }
            _ = persist.tick() => {
                // What the store says it has done is durable before the log forgets it.
                let done = async {
                    let offset = store.committed_offset().await?;
                    store.persist().await?;
                    Ok::<_, event_store::StoreError>(offset)
                };
                match done.await {
                    Ok(offset) => {
                        let log = log.clone();
                        let trimmed = tokio::task::spawn_blocking(move || log.trim(offset)).await;
                        if let Ok(Err(error)) = trimmed {
                            tracing::error!(error = error.describe(), "the log cannot be trimmed");
                        }
                    }
                    Err(error) => tracing::error!(error = error.describe(), "the store cannot be synced"),
                }
            }
            _ = sweep.tick() => {
                if let Err(error) = store.sweep(clock()).await {
                    tracing::error!(error = error.describe(), "what has expired cannot be deleted");
                }
            }
        }
    }
}

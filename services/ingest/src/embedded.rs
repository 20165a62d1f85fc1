//! Both stages in one loop, from the embedded log to the embedded store, as `backstamp dev` runs them.

use std::sync::Arc;
use std::time::Duration;

use event_log::{EmbeddedLog, Incoming, Topic};
use event_store::EventStore;
use event_store::embedded::EmbeddedStore;
use telemetry::metrics;
use telemetry::shutdown::Shutdown;

use crate::kafka::show_delay;
use crate::own::{OwnBatch, Owner};
use crate::place::{Place, RawRecord};
use crate::references::{RawReference, Stamps, store_references};
use crate::retry::{Failure, until_done};
use crate::{BatchTimer, Clock, IngestSettings};

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

/// Runs until `shutdown`, finishing the batch in work. Whatever the log holds beyond the committed offset is done first, again if need be.
pub async fn run(
    log: Arc<EmbeddedLog>,
    store: Arc<EmbeddedStore>,
    settings: &IngestSettings,
    clock: Clock,
    shutdown: &Shutdown,
) -> anyhow::Result<()> {
    let events: Arc<dyn EventStore> = store.clone();
    let mut place = Place::new(events.clone(), settings.filter.clone(), settings.retention_ms);
    let mut owner = Owner::new(events.clone(), "embedded", settings.owner());
    let keeping = tokio::spawn(keep(log.clone(), store.clone(), clock.clone(), shutdown.clone()));
    let mut stamps = Stamps::default();
    let mut offset = store.committed_offset().await?;
    loop {
        tokio::select! {
            biased;
            () = shutdown.begun() => break,
            () = log.wait_beyond(offset) => {}
        }
        let records = tokio::task::spawn_blocking({
            let log = log.clone();
            move || log.read(offset, RECORDS_MAX, BYTES_MAX)
        });
        let records = records.await??;
        let Some(last) = records.last() else { continue };
        let next = u64::try_from(last.offset)? + 1;
        let timer = BatchTimer::start("own", records.len());
        work(&mut place, &mut owner, &mut stamps, &events, &records, &clock).await;
        until_done("commit", || store.commit_offset(next)).await;
        timer.stop();
        let now = clock();
        show_delay(now, &[records[0].appended_at]);
        let lag = i64::try_from(log.end_offset().saturating_sub(next))?;
        metrics::LAG_MESSAGES.with_label_values(&["embedded", "0"]).set(lag);
        let age_s = if lag == 0 { 0 } else { (now.0 - last.appended_at.0).max(0) / 1000 };
        metrics::LAG_SECONDS.with_label_values(&["embedded", "0"]).set(age_s);
        offset = next;
    }
    keeping.abort();
    store.persist().await?;
    Ok(())
}

async fn work(
    place: &mut Place,
    owner: &mut Owner,
    stamps: &mut Stamps,
    store: &Arc<dyn EventStore>,
    records: &[Incoming],
    clock: &Clock,
) {
    let of = |topic| records.iter().filter(move |record| record.topic == topic);
    let references: Vec<RawReference<'_>> = of(Topic::References).map(RawReference::from).collect();
    let refused_references = store_references(store, stamps, &references).await;
    let events: Vec<RawRecord<'_>> = of(Topic::Events).map(RawRecord::from).collect();
    let now = clock();
    let placed = place.work(now, &events).await;
    // The intake lets nothing through that is refused here.
    for (_, refusal) in refused_references.iter().chain(&placed.refused) {
        tracing::error!(code = refusal.code, "a record of the embedded log is refused");
    }
    owner.work(now, vec![OwnBatch { partition: PARTITION, claim: 0, rows: placed.rows }]).await;
    place.finish(&placed.joined).await;
}

/// Now and then makes the store durable and trims the log behind it, and deletes what has expired.
async fn keep(log: Arc<EmbeddedLog>, store: Arc<EmbeddedStore>, clock: Clock, shutdown: Shutdown) {
    let mut persist = tokio::time::interval(PERSIST_EVERY);
    let mut sweep = tokio::time::interval(SWEEP_EVERY);
    loop {
        tokio::select! {
            () = shutdown.begun() => return,
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

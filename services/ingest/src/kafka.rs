//! Place, own and references as members of Kafka consumer groups: one loop each.
//!
//! An offset is committed only when every earlier record of its partition is done: published, filtered, expired, put to wait or
//! dead-lettered by place; written and counted by own; stored by references.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_log::{
    Appender, Batch, BatchLimits, Claim, Consumer, Incoming, KafkaAppender, KafkaConfig, KafkaConsumer,
    LogError, Outgoing, Topic,
};
use event_store::{EventStore, Stage};
use telemetry::health::Health;
use telemetry::metrics;
use telemetry::shutdown::Shutdown;
use telemetry::traces;
use timeline::codec::Damaged;
use timeline::row::{PlacedRow, decode_placed, encode_placed};
use timeline::{Order, Refusal, Timestamp};
use tokio::task::JoinHandle;

use crate::forgotten::Forgotten;
use crate::own::{OwnBatch, Owner};
use crate::place::{Place, RawRecord, finish_joined};
use crate::progress::Progress;
use crate::references::{RawReference, Stamps, store_references};
use crate::retry::{Failure, until_done};
use crate::{Clock, IngestSettings, KEYS_HELD_MAX};

/// How long what is in work may take once the process was told to stop; then it is left to whoever takes over.
pub const DRAIN_MAX: Duration = Duration::from_secs(8);
/// How often readiness is looked at.
const CHECK_EVERY: Duration = Duration::from_secs(2);
/// How long to wait where the log cannot be read.
const READ_RETRY: Duration = Duration::from_secs(1);
/// How often topics are asked how long they keep their records.
const RETENTION_EVERY: Duration = Duration::from_secs(300);
/// Rows in one message of the internal topic take up to about this many bytes.
const PLACED_BYTES_MAX: usize = 256 * 1024;
/// The step that waits where the dead-letter topic cannot be written.
const PUBLISH_DEAD_LETTERS: &str = "publish_dead_letters";
/// Partitions of the internal topic. Part of the stored format.
const PARTITIONS: u32 = event_log::CAMPAIGN_EVENTS_PARTITIONS.cast_unsigned();

/// Each batch becomes a message for each of the 64 partitions that it has rows for: one that waits a moment for more makes far fewer of them,
/// and of the batches behind it.
const PLACE_LIMITS: BatchLimits =
    BatchLimits { records_max: 4000, bytes_max: 4 << 20, linger: Duration::from_millis(60) };
/// A message of the internal topic holds many rows, or few where little comes.
const OWN_LIMITS: BatchLimits =
    BatchLimits { records_max: 2000, bytes_max: 2 << 20, linger: Duration::from_millis(20) };

/// Runs until `shutdown`; what is in work then is finished first.
///
/// # Errors
///
/// Where Kafka's options do not hold, or a request is refused for good.
pub async fn run(
    kafka: &KafkaConfig,
    store: Arc<dyn EventStore>,
    settings: &IngestSettings,
    clock: Clock,
    health: &Health,
    shutdown: &Shutdown,
) -> Result<(), LogError> {
    let appender = Arc::new(KafkaAppender::new(kafka, &[Topic::CampaignEvents, Topic::DeadLetters])?);
    // A group a topic: one that rebalances does not stop the others.
    let worker = |topic, suffix| -> Result<Worker<KafkaConsumer>, LogError> {
        let kafka = KafkaConfig { group: format!("{}{suffix}", kafka.group), ..kafka.clone() };
        let consumer = KafkaConsumer::new(&kafka, topic)?;
        let told = match topic {
            Topic::Events => Some((Stage::Place, store.clone())),
            Topic::CampaignEvents => Some((Stage::Own, store.clone())),
            Topic::References | Topic::DeadLetters => None,
        };
        let progress = Progress::new(topic);
        let reporting = tokio::spawn(progress.clone().report(consumer.observer(), told, clock.clone()));
        Ok(Worker {
            topic,
            consumer,
            progress,
            reporting: Some(reporting),
            appender: appender.clone(),
            clock: clock.clone(),
            shutdown: shutdown.clone(),
            replay_per_second_max: settings.replay_per_second_max,
        })
    };
    let (placing, owning, referring) = (
        worker(Topic::Events, "")?,
        worker(Topic::CampaignEvents, ".own")?,
        worker(Topic::References, ".references")?,
    );
    let forgotten = Forgotten::new(store.clone());
    let place = Place::new(store.clone(), settings.filter.clone(), settings.retention_ms)
        .with_forgotten(forgotten.clone());
    let owner =
        Owner::new(store.clone(), kafka.name_of(Topic::CampaignEvents), settings.owner(KEYS_HELD_MAX))
            .with_forgotten(forgotten.clone());

    let checks = tokio::spawn(health.check("store").keep(CHECK_EVERY, "away, or its tables are missing", {
        let store = store.clone();
        async move || store.check().await.map_err(|error| error.describe())
    }));
    let log_checks =
        tokio::spawn(health.check("log").keep(CHECK_EVERY, "away, or its topics are missing", {
            let appender = appender.clone();
            async move || appender.check().await.map_err(|error| error.describe())
        }));
    let retention = tokio::spawn(show_retention(kafka.clone()));
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(placing.place(place, store.clone()));
    tasks.spawn(owning.own(owner));
    tasks.spawn(referring.references(store, forgotten));

    // One that ends ends all.
    let first = tokio::select! {
        () = shutdown.begun() => Ok(()),
        Some(ended) = tasks.join_next() => flatten(ended),
    };
    shutdown.begin();
    let drained = tokio::time::timeout(DRAIN_MAX, async {
        let mut all = first;
        while let Some(ended) = tasks.join_next().await {
            all = all.and(flatten(ended));
        }
        all
    });
    let outcome = drained.await.unwrap_or_else(|_| {
        tracing::warn!(
            seconds = DRAIN_MAX.as_secs(),
            "stopped in the middle of a batch: it is done again by whoever takes over"
        );
        Ok(())
    });
    tasks.shutdown().await;
    for check in [checks, log_checks, retention] {
        check.abort();
    }
    outcome
}

/// One loop's member of its group. Each loop runs until `shutdown`, and ends early only where the log refuses it for good.
#[expect(missing_docs, reason = "said in one line")]
pub struct Worker<C> {
    pub topic: Topic,
    pub consumer: C,
    /// How far it is.
    pub progress: Progress,
    /// What tells how far it is, and ends with it.
    pub reporting: Option<JoinHandle<()>>,
    pub appender: Arc<dyn Appender>,
    pub clock: Clock,
    pub shutdown: Shutdown,
    /// Where it rebuilds what others have projected already: how many records a second.
    pub replay_per_second_max: Option<NonZeroU32>,
}

impl<C: Consumer> Worker<C> {
    /// Places what the consumer reads, and passes the rows on to their owners.
    pub async fn place(self, mut place: Place, store: Arc<dyn EventStore>) -> Result<(), LogError> {
        // At a bounded rate no batch is of more than a second.
        let a_second = self.replay_per_second_max.and_then(|records| usize::try_from(records.get()).ok());
        let records_max = PLACE_LIMITS.records_max.min(a_second.unwrap_or(usize::MAX));
        let limits = BatchLimits { records_max, ..PLACE_LIMITS };
        while let Some(batch) = self.next_batch(limits).await? {
            let timer = BatchTimer::start("place", batch.records.len());
            let work = traces::Work::begin();
            let records: Vec<RawRecord<'_>> = batch.records.iter().map(RawRecord::from).collect();
            let mut placed = place.work((self.clock)(), &records).await;
            let oldest = batch.records.iter().map(|record| record.appended_at).min();
            let refused = std::mem::take(&mut placed.refused);
            let publish_rows = async {
                loop {
                    let rows = pack(placed.rows, oldest.unwrap_or(Timestamp(0)));
                    self.publish("publish_rows", rows).await;
                    finish_joined(store.as_ref(), &placed.joined).await;
                    if placed.waiting.is_empty() {
                        return;
                    }
                    placed = place.wake((self.clock)(), placed.waiting).await;
                }
            };
            // Apart: a topic that takes no letters does not have the rows of a batch published again and again.
            tokio::join!(
                publish_rows,
                self.publish(PUBLISH_DEAD_LETTERS, self.dead_letters(&batch.records, refused)),
            );
            self.commit(&batch, &HashSet::new()).await;
            let taken = timer.stop();
            work.end("place", batch.records.iter().filter_map(traced));
            self.pace(batch.records.len(), taken).await;
        }
        stop(self.reporting).await;
        self.consumer.close().await;
        Ok(())
    }

    /// Takes no less than its share of a second for a batch of a replay.
    async fn pace(&self, records: usize, taken: Duration) {
        if let Some(per_second) = self.replay_per_second_max {
            let share = Duration::from_secs_f64(records as f64 / f64::from(per_second.get()));
            tokio::select! {
                () = self.shutdown.begun() => {}
                () = tokio::time::sleep(share.saturating_sub(taken)) => {}
            }
        }
    }

    /// Owns what the consumer reads.
    pub async fn own(self, mut owner: Owner) -> Result<(), LogError> {
        while let Some(batch) = self.next_batch(OWN_LIMITS).await? {
            let lost = self.take_over(&mut owner, &batch).await;
            let mut by_partition = BTreeMap::<i32, Vec<PlacedRow>>::new();
            let (mut rows, mut published) = (0, Vec::new());
            for record in batch.records.iter().filter(|record| !lost.contains(&record.partition)) {
                let message = record.value.as_deref().unwrap_or_default();
                if Order::is_order(message) {
                    match Order::decode(message) {
                        // Before the batch's rows: a count finds those that stand, in whatever order they came.
                        Ok(order) => owner.obey(&self.clock, record.partition, &order).await,
                        Err(damaged) => self.put_aside(record, &damaged).await,
                    }
                    continue;
                }
                match decode_placed(message) {
                    Ok((placed, appended_at)) => {
                        rows += placed.len();
                        published.push(appended_at);
                        by_partition.entry(record.partition).or_default().extend(placed);
                    }
                    Err(damaged) => self.put_aside(record, &damaged).await,
                }
            }
            let timer = BatchTimer::start("own", rows);
            let occurred: Vec<Timestamp> = occurred(by_partition.values().flatten());
            let work = by_partition
                .into_iter()
                .filter_map(|(partition, rows)| {
                    batch.claims.get(&partition).map(|claim| OwnBatch { partition, claim: claim.0, rows })
                })
                .collect();
            owner.work(&self.clock, work).await;
            for orders in owner.take_orders() {
                self.publish("publish_orders", orders.iter().map(outgoing_order).collect()).await;
            }
            show_delay((self.clock)(), &occurred, &published);
            self.commit(&batch, &lost).await;
            timer.stop();
        }
        stop(self.reporting).await;
        self.consumer.close().await;
        Ok(())
    }

    /// Stores the references that the consumer reads.
    pub async fn references(
        self,
        store: Arc<dyn EventStore>,
        forgotten: Arc<Forgotten>,
    ) -> Result<(), LogError> {
        let mut stamps = Stamps::default();
        while let Some(batch) = self.next_batch(PLACE_LIMITS).await? {
            let records: Vec<RawReference<'_>> = batch.records.iter().map(RawReference::from).collect();
            forgotten.keep_fresh((self.clock)()).await;
            let refused = store_references(&store, &forgotten, &mut stamps, &records).await;
            self.publish(PUBLISH_DEAD_LETTERS, self.dead_letters(&batch.records, refused)).await;
            self.commit(&batch, &HashSet::new()).await;
        }
        stop(self.reporting).await;
        self.consumer.close().await;
        Ok(())
    }

    /// The next records, or `None` once the process is told to stop. Tries again while the log is away.
    async fn next_batch(&self, limits: BatchLimits) -> Result<Option<Batch>, LogError> {
        loop {
            let next = tokio::select! {
                biased;
                () = self.shutdown.begun() => return Ok(None),
                next = self.consumer.next_batch(limits) => next,
            };
            match next {
                Ok(batch) if batch.records.is_empty() => {}
                Ok(batch) => {
                    self.progress.begins(&batch);
                    return Ok(Some(batch));
                }
                Err(error) if error.may_pass() => {
                    tracing::warn!(
                        topic = self.topic.name(),
                        error = error.describe(),
                        "cannot read the log, trying again"
                    );
                    tokio::time::sleep(READ_RETRY).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes over what the batch's records are from. Returns the partitions that were lost before that was done: their records are left to
    /// whoever holds them now.
    async fn take_over(&self, owner: &mut Owner, batch: &Batch) -> HashSet<i32> {
        let claims: HashMap<i32, u64> =
            self.consumer.claims().into_iter().map(|(partition, claim)| (partition, claim.0)).collect();
        owner.keep_only(&claims);
        let mut first = BTreeMap::<i32, i64>::new();
        for record in &batch.records {
            first.entry(record.partition).or_insert(record.offset);
        }
        let claim_of =
            |(partition, offset)| batch.claims.get(&partition).map(|claim| (partition, *claim, offset));
        let asked: Vec<(i32, Claim, i64)> = first
            .into_iter()
            .filter_map(claim_of)
            .filter(|(partition, claim, _)| !owner.holds(*partition, claim.0))
            .collect();
        let new: Vec<(i32, u64)> = asked.iter().map(|(partition, claim, _)| (*partition, claim.0)).collect();
        owner.take_over(&new).await;
        // Commits what is committed already: the broker refuses a member that it has replaced.
        let outcome = until_done("confirm_claim", || self.consumer.commit(&asked)).await;
        // What was refused is not held, or the next batch would find that it is and go on under an epoch above its successor's.
        owner.let_go(&outcome.refused);
        outcome.refused.into_iter().collect()
    }

    /// Nobody but us writes the internal topic: what cannot be read of it is kept where it can be looked at.
    async fn put_aside(&self, record: &Incoming, damaged: &Damaged) {
        let refusal = Refusal::new(timeline::event::code::MALFORMED_JSON, damaged.to_string());
        self.publish(PUBLISH_DEAD_LETTERS, vec![dead_letter(record, &refusal)]).await;
    }

    /// What was refused, as dead letters; none where they are some already.
    fn dead_letters(&self, records: &[Incoming], refused: Vec<(usize, Refusal)>) -> Vec<Outgoing> {
        if self.replay_per_second_max.is_some() { Vec::new() } else { dead_letters(records, refused) }
    }

    async fn publish(&self, step: &'static str, outgoing: Vec<Outgoing>) {
        if !outgoing.is_empty() {
            until_done(step, || self.appender.append(outgoing.clone())).await;
        }
    }

    async fn commit(&self, batch: &Batch, lost: &HashSet<i32>) {
        let mut next = BTreeMap::<i32, i64>::new();
        for record in batch.records.iter().filter(|record| !lost.contains(&record.partition)) {
            next.insert(record.partition, record.offset + 1);
        }
        let offsets: Vec<(i32, Claim, i64)> = next
            .into_iter()
            .filter_map(|(partition, offset)| {
                batch.claims.get(&partition).map(|claim| (partition, *claim, offset))
            })
            .collect();
        let outcome = until_done("commit", || self.consumer.commit(&offsets)).await;
        let now = (self.clock)();
        for (partition, claim, offset) in offsets {
            if outcome.done.contains(&partition) {
                self.progress.done(partition, claim.0, offset, now);
            }
        }
    }
}

/// The trace of a record that belongs to one, and where it stands.
fn traced(record: &Incoming) -> Option<(&str, &'static str, i32, i64)> {
    let traceparent = record.traceparent.as_deref()?;
    Some((traceparent, record.topic.name(), record.partition, record.offset))
}

/// Stops a task, and waits until it has let go of everything.
async fn stop(task: Option<JoinHandle<()>>) {
    if let Some(task) = task {
        task.abort();
        // It was told to end.
        let _ = task.await;
    }
}

/// Shows how long the topics keep their records. Whoever may not ask shows nothing.
async fn show_retention(kafka: KafkaConfig) {
    let topics = [Topic::Events, Topic::CampaignEvents, Topic::References];
    loop {
        match event_log::read_retention(&kafka, &topics).await {
            Ok(retention) => {
                for (topic, ms) in retention {
                    metrics::TOPIC_RETENTION.with_label_values(&[topic.name()]).set(ms / 1000);
                }
            }
            Err(error) => {
                tracing::warn!(error = error.describe(), "topics do not tell how long they keep records");
            }
        }
        tokio::time::sleep(RETENTION_EVERY).await;
    }
}

/// When the events of rows occurred, each once.
pub(crate) fn occurred<'a>(rows: impl Iterator<Item = &'a PlacedRow>) -> Vec<Timestamp> {
    rows.filter(|row| row.counts).map(|row| row.key.position.at).collect()
}

/// Shows how long it took from when events occurred, and from when records were published, until now, when their rows are written.
pub(crate) fn show_delay(now: Timestamp, occurred: &[Timestamp], published: &[Timestamp]) {
    for (since, instants) in [("occurred", occurred), ("published", published)] {
        let delays = metrics::VISIBLE_SECONDS.with_label_values(&[since]);
        for at in instants {
            delays.observe((now.0 - at.0).max(0) as f64 / 1000.0);
        }
    }
}

/// Rows as messages of the internal topic: those of one partition together, in their order.
fn pack(rows: Vec<PlacedRow>, appended_at: Timestamp) -> Vec<Outgoing> {
    let mut by_partition = BTreeMap::<u32, Vec<PlacedRow>>::new();
    for row in rows {
        by_partition.entry(row.timeline.partition(PARTITIONS)).or_default().push(row);
    }
    let mut outgoing = Vec::new();
    for (partition, mut rows) in by_partition {
        while !rows.is_empty() {
            let mut bytes = 0;
            let fits = rows.iter().take_while(|row| {
                let fits = bytes == 0 || bytes + row.body.len() + 200 <= PLACED_BYTES_MAX;
                bytes += row.body.len() + 200;
                fits
            });
            let count = fits.count();
            let rest = rows.split_off(count);
            outgoing.push(Outgoing {
                partition: Some(partition.cast_signed()),
                ..Outgoing::new(Topic::CampaignEvents, None, Some(encode_placed(&rows, appended_at)))
            });
            rows = rest;
        }
    }
    outgoing
}

/// An order on its way to the owner of its timeline.
pub fn outgoing_order(order: &Order) -> Outgoing {
    Outgoing {
        partition: order.timeline().map(|timeline| timeline.partition(PARTITIONS).cast_signed()),
        ..Outgoing::new(Topic::CampaignEvents, None, Some(order.encode()))
    }
}

fn dead_letters(records: &[Incoming], refused: Vec<(usize, Refusal)>) -> Vec<Outgoing> {
    refused.into_iter().map(|(index, refusal)| dead_letter(&records[index], &refusal)).collect()
}

/// The record as it came, with what was wrong with it and where it stood.
fn dead_letter(record: &Incoming, refusal: &Refusal) -> Outgoing {
    let (topic, partition, offset) = (record.topic.name(), record.partition, record.offset);
    tracing::warn!(topic, partition, offset, code = refusal.code, "dead letter");
    let bytes = |bytes: &Option<bytes::Bytes>| bytes.as_ref().map(|bytes| bytes.to_vec());
    Outgoing {
        headers: vec![
            ("backstamp.code", refusal.code.to_owned()),
            ("backstamp.message", refusal.message.clone()),
            ("backstamp.topic", topic.to_owned()),
            ("backstamp.partition", partition.to_string()),
            ("backstamp.offset", offset.to_string()),
        ],
        ..Outgoing::new(Topic::DeadLetters, bytes(&record.key), bytes(&record.value))
    }
}

/// Measures one batch.
pub(crate) struct BatchTimer {
    stage: &'static str,
    started: Instant,
}

impl BatchTimer {
    pub(crate) fn start(stage: &'static str, records: usize) -> BatchTimer {
        metrics::BATCH_RECORDS.with_label_values(&[stage]).observe(records as f64);
        BatchTimer { stage, started: Instant::now() }
    }

    /// How long it took.
    pub(crate) fn stop(self) -> Duration {
        let taken = self.started.elapsed();
        metrics::BATCH_SECONDS.with_label_values(&[self.stage]).observe(taken.as_secs_f64());
        taken
    }
}

fn flatten(ended: Result<Result<(), LogError>, tokio::task::JoinError>) -> Result<(), LogError> {
    match ended {
        Ok(outcome) => outcome,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

impl Failure for LogError {
    fn describe(&self) -> String {
        self.chain()
    }
}

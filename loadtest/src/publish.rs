//! Events into Kafka, as their senders publish them: keyed by campaign.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use indicatif::ProgressBar;
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use rdkafka::producer::{DeliveryResult, ProducerContext};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::mix::Mix;
use crate::mix::json::Writer;
use crate::schedule::Schedule;

const FLUSH_TIMEOUT: Duration = Duration::from_secs(120);
/// Events that become due together, where there is a rate: a hundredth of a second's, at least one.
const DUE_PER_S: f64 = 100.0;
/// Those where there is none.
const DUE_FLAT_OUT: u64 = 1000;

/// What was published.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Published {
    /// Bytes of JSON.
    pub(crate) bytes: u64,
    /// How long it took until every broker had all of it.
    pub(crate) seconds: f64,
}

/// Publishes all of a mix to `topic`, at `per_s` events a second or as fast as the brokers take them.
///
/// # Errors
///
/// When one of the events does not arrive.
pub(crate) async fn publish(
    brokers: &str,
    topic: &str,
    mix: &Arc<Mix>,
    per_s: Option<f64>,
    bar: &ProgressBar,
) -> anyhow::Result<Published> {
    let producer: ThreadedProducer<Deliveries> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("acks", "all")
        .set("linger.ms", "5")
        .set("batch.size", "262144")
        .set("queue.buffering.max.messages", "200000")
        .create_with_context(Deliveries::default())
        .context("the producer's settings are right")?;
    let begun = Instant::now();
    let due_events = per_s.map_or(DUE_FLAT_OUT, |per_s| (per_s / DUE_PER_S).ceil() as u64);
    let schedule =
        Schedule::start(per_s.map(|per_s| per_s / due_events as f64), mix.arrivals().div_ceil(due_events));
    let mut writer = Writer::new(mix);
    let (mut value, mut bytes) = (Vec::new(), 0);
    while let Some(due) = schedule.next().await {
        let first = due.number * due_events;
        let end = (first + due_events).min(mix.arrivals());
        for arrival in first..end {
            let event = mix.arrival(arrival);
            value.clear();
            writer.write(&event, &mut value);
            bytes += value.len() as u64;
            let key = mix.campaign_id(event.campaign);
            let mut record = BaseRecord::to(topic).key(&key).payload(&value);
            while let Err((error, back)) = producer.send(record) {
                let is_full = matches!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull));
                ensure!(is_full, "an event cannot be published: {error}");
                tokio::time::sleep(Duration::from_millis(2)).await;
                record = back;
            }
        }
        bar.inc(end - first);
    }
    let producer = tokio::task::spawn_blocking(move || producer.flush(FLUSH_TIMEOUT).map(|()| producer));
    let producer = producer.await??;
    let arrived = producer.context().arrived.load(Ordering::Relaxed);
    ensure!(arrived == mix.arrivals(), "{arrived} of {} events arrived", mix.arrivals());
    Ok(Published { bytes, seconds: begun.elapsed().as_secs_f64() })
}

/// Counts what has arrived.
#[derive(Default)]
struct Deliveries {
    arrived: AtomicU64,
}

impl rdkafka::ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, outcome: &DeliveryResult<'_>, (): ()) {
        if outcome.is_ok() {
            self.arrived.fetch_add(1, Ordering::Relaxed);
        }
    }
}

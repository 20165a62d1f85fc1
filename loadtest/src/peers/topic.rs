//! Topics: made, filled, deleted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode;

use crate::mix::Mix;
use crate::mix::json::Writer;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const FLUSH_TIMEOUT: Duration = Duration::from_secs(120);
/// How long to wait where the producer's queue is full.
const FULL_PAUSE: Duration = Duration::from_millis(1);

/// Makes a topic.
pub(super) async fn create(bootstrap: &str, topic: &str, partitions: i32) -> anyhow::Result<()> {
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
    let outcomes = admin(bootstrap)?.create_topics([&new], &options()).await?;
    for outcome in outcomes {
        outcome.map_err(|(topic, code)| anyhow::anyhow!("{topic} cannot be made: {code}"))?;
    }
    Ok(())
}

/// Deletes topics; one that is not there is well.
pub(super) async fn delete(bootstrap: &str, topics: &[String]) -> anyhow::Result<()> {
    let names: Vec<&str> = topics.iter().map(String::as_str).collect();
    for outcome in admin(bootstrap)?.delete_topics(&names, &options()).await? {
        match outcome {
            Ok(_) | Err((_, RDKafkaErrorCode::UnknownTopicOrPartition)) => {}
            Err((topic, code)) => bail!("{topic} cannot be deleted: {code}"),
        }
    }
    Ok(())
}

/// A record as it is published.
pub(super) struct Outgoing {
    /// What decides on the partition.
    pub(super) key: String,
    /// Its value.
    pub(super) value: Vec<u8>,
}

/// Publishes to one topic.
pub(super) struct Publisher {
    producer: ThreadedProducer<Deliveries>,
    topic: String,
}

impl Publisher {
    /// A publisher to `topic`. It gathers records for `linger_ms` before it sends them.
    pub(super) fn new(bootstrap: &str, topic: &str, linger_ms: u32) -> anyhow::Result<Publisher> {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("acks", "all")
            .set("linger.ms", linger_ms.to_string())
            .set("batch.size", "500000")
            .create_with_context(Deliveries::default())?;
        Ok(Publisher { producer, topic: topic.to_owned() })
    }

    /// Publishes a record, to a partition where one is named. Blocks while the queue is full.
    pub(super) fn send(&self, record: &Outgoing, partition: Option<i32>) -> anyhow::Result<()> {
        loop {
            let mut next = BaseRecord::to(&self.topic).key(&record.key).payload(&record.value);
            next.partition = partition;
            match self.producer.send(next) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                    thread::sleep(FULL_PAUSE);
                }
                Err((error, _)) => return Err(error).context("Kafka takes no record"),
            }
        }
    }

    /// Waits until all is acknowledged.
    pub(super) fn finish(self) -> anyhow::Result<()> {
        self.producer.flush(FLUSH_TIMEOUT).context("Kafka does not acknowledge all")?;
        let failed = self.producer.context().failed.load(Ordering::Relaxed);
        ensure!(failed == 0, "Kafka did not take {failed} records");
        Ok(())
    }

    /// How many partitions the topic has.
    pub(super) fn partitions(&self) -> anyhow::Result<i32> {
        let end = Instant::now() + REQUEST_TIMEOUT;
        loop {
            let metadata = self.producer.client().fetch_metadata(Some(&self.topic), REQUEST_TIMEOUT)?;
            let partitions = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
            // One that was made this moment may not be told yet.
            if partitions > 0 {
                return Ok(i32::try_from(partitions)?);
            }
            ensure!(Instant::now() < end, "there is no topic {}", self.topic);
            thread::sleep(Duration::from_millis(100));
        }
    }
}

/// The records of a mix, in the form that who reads them wants.
pub(super) struct Records<'a> {
    mix: &'a Mix,
    writer: Writer<'a>,
    form: Form,
}

/// Rewrites an event as `mail.events` takes it.
pub(super) type Form = fn(&[u8]) -> anyhow::Result<Vec<u8>>;

impl<'a> Records<'a> {
    /// The records of `mix`.
    pub(super) fn new(mix: &'a Mix, form: Form) -> Records<'a> {
        Records { mix, writer: Writer::new(mix), form }
    }

    /// The record that is published as number `arrival`, keyed by its campaign.
    pub(super) fn get(&mut self, arrival: u64) -> anyhow::Result<Outgoing> {
        let event = self.mix.arrival(arrival);
        let mut value = Vec::new();
        self.writer.write(&event, &mut value);
        Ok(Outgoing { key: self.mix.campaign_id(event.campaign), value: (self.form)(&value)? })
    }
}

/// Publishes all of a mix, as fast as it goes. Blocks.
pub(super) fn fill(publisher: &Publisher, mix: &Mix, form: Form) -> anyhow::Result<()> {
    let mut records = Records::new(mix, form);
    for arrival in 0..mix.arrivals() {
        publisher.send(&records.get(arrival)?, None)?;
    }
    Ok(())
}

/// Counts the records that were not taken.
#[derive(Default)]
struct Deliveries {
    failed: AtomicU64,
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        self.failed.fetch_add(u64::from(result.is_err()), Ordering::Relaxed);
    }
}

fn admin(bootstrap: &str) -> anyhow::Result<AdminClient<DefaultClientContext>> {
    Ok(ClientConfig::new().set("bootstrap.servers", bootstrap).create()?)
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(REQUEST_TIMEOUT)).request_timeout(Some(REQUEST_TIMEOUT))
}

//! Topics as a test uses them: publish, read all, see how far a group is.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, StreamConsumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers, Message};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::time::timeout;

use crate::eventually;

/// A group for clients that belong to none: the library wants a name.
const NEVER_JOINED: &str = "never-joined";
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const READ_TIMEOUT: Duration = Duration::from_secs(120);

/// The topics of one Kafka whose names start with one prefix.
///
/// Every method takes a topic's name without the prefix, such as `mail.events`, and panics where Kafka refuses or
/// does not answer within 30 seconds.
pub struct Topics {
    bootstrap: String,
    prefix: String,
    producer: FutureProducer,
    /// Clients that ask for offsets, by the group that they ask for. To make one takes longer than to ask.
    askers: Mutex<BTreeMap<String, Arc<BaseConsumer>>>,
}

/// A message as it lies in a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The partition that holds it.
    pub partition: i32,
    /// Its place in the partition.
    pub offset: i64,
    /// The broker's or the producer's time, as the topic has it, in milliseconds since 1970.
    pub timestamp_ms: Option<i64>,
    /// The key; a missing one is not an empty one.
    pub key: Option<Vec<u8>>,
    /// The value; a missing one is not an empty one.
    pub payload: Option<Vec<u8>>,
    /// The headers in their order. Names may repeat.
    pub headers: Vec<(String, Vec<u8>)>,
}

impl Record {
    /// The first header of this name, if it is there and text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(header, _)| header == name)?;
        std::str::from_utf8(value).ok()
    }

    /// The payload as JSON.
    ///
    /// # Panics
    ///
    /// When it is missing or no JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(self.payload.as_deref().expect("a payload")).expect("a payload of JSON")
    }
}

impl Topics {
    /// Topics of the Kafka at `bootstrap`; see [`servers::Kafka::topics`](crate::servers::Kafka::topics).
    ///
    /// # Panics
    ///
    /// Where no client can be made.
    pub fn new(bootstrap: &str, prefix: &str) -> Self {
        let mut config = client(bootstrap);
        // A test waits for one message at a time, mostly.
        config.set("acks", "all").set("linger.ms", "0").set("enable.idempotence", "true");
        let producer = config.create().expect("a producer's settings are right");
        let askers = Mutex::default();
        Self { bootstrap: bootstrap.to_owned(), prefix: prefix.to_owned(), producer, askers }
    }

    /// The whole name of a topic.
    pub fn name(&self, topic: &str) -> String {
        format!("{}{topic}", self.prefix)
    }

    /// What the program needs in its environment to use these topics.
    pub fn environment(&self) -> [(&'static str, &str); 2] {
        [("BACKSTAMP_KAFKA_BROKERS", &self.bootstrap), ("BACKSTAMP_TOPIC_PREFIX", &self.prefix)]
    }

    /// Creates a topic with the node's own settings. `backstamp schema apply` creates those of the contract with theirs.
    pub async fn create(&self, topic: &str, partitions: i32) {
        let name = self.name(topic);
        let new = NewTopic::new(&name, partitions, TopicReplication::Fixed(1));
        let outcomes = self.admin().create_topics([&new], &options()).await.expect("Kafka answers");
        outcomes.into_iter().collect::<Result<Vec<_>, _>>().expect("Kafka creates a topic");
    }

    /// Gives a topic more partitions: `partitions` is the new number of them.
    pub async fn grow(&self, topic: &str, partitions: usize) {
        let name = self.name(topic);
        let new = NewPartitions::new(&name, partitions);
        let outcomes = self.admin().create_partitions([&new], &options()).await.expect("Kafka answers");
        outcomes.into_iter().collect::<Result<Vec<_>, _>>().expect("Kafka adds partitions");
    }

    /// Gives a topic these settings, and takes away all others that it was given.
    pub async fn set(&self, topic: &str, settings: &[(&str, &str)]) {
        let name = self.name(topic);
        let change = AlterConfig::new(ResourceSpecifier::Topic(&name));
        let change = settings.iter().fold(change, |change, (setting, value)| change.set(setting, value));
        let outcomes = self.admin().alter_configs([&change], &options()).await.expect("Kafka answers");
        outcomes.into_iter().collect::<Result<Vec<_>, _>>().expect("Kafka takes a setting");
    }

    /// Deletes the records of a partition below `offset`, as retention does.
    pub async fn delete_records(&self, topic: &str, partition: i32, offset: i64) {
        let mut below = TopicPartitionList::new();
        below.add_partition_offset(&self.name(topic), partition, Offset::Offset(offset)).expect("an offset");
        self.admin().delete_records(&below, &options()).await.expect("Kafka deletes records");
    }

    /// Deletes topics; one that is not there is well.
    pub async fn delete(&self, topics: &[&str]) {
        let names: Vec<String> = topics.iter().map(|topic| self.name(topic)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        for outcome in self.admin().delete_topics(&names, &options()).await.expect("Kafka answers") {
            match outcome {
                Ok(_) | Err((_, RDKafkaErrorCode::UnknownTopicOrPartition)) => {}
                Err((topic, code)) => panic!("Kafka does not delete {topic}: {code}"),
            }
        }
    }

    /// Removes what lies before these offsets, as retention does.
    pub async fn remove_before(&self, topic: &str, offsets: &BTreeMap<i32, i64>) {
        let mut list = TopicPartitionList::new();
        for (&partition, &offset) in offsets {
            let offset = Offset::Offset(offset);
            list.add_partition_offset(&self.name(topic), partition, offset).expect("an offset");
        }
        let removed = self.admin().delete_records(&list, &options()).await.expect("Kafka answers");
        by_partition(&removed).expect("Kafka removes records");
    }

    /// Sets the largest message that a topic takes, in bytes. Other settings of the topic become the node's own.
    pub async fn set_message_bytes_max(&self, topic: &str, bytes: usize) {
        let (name, bytes) = (self.name(topic), bytes.to_string());
        let change = AlterConfig::new(ResourceSpecifier::Topic(&name)).set("max.message.bytes", &bytes);
        let outcomes = self.admin().alter_configs([&change], &options()).await.expect("Kafka answers");
        outcomes.into_iter().collect::<Result<Vec<_>, _>>().expect("Kafka changes a topic");
    }

    /// Publishes one message and waits until every in-sync replica has it. Returns its partition and offset.
    ///
    /// Without a `partition` the key decides, and without a key chance does.
    pub async fn publish(
        &self,
        topic: &str,
        key: Option<&[u8]>,
        payload: &[u8],
        partition: Option<i32>,
    ) -> (i32, i64) {
        self.send(topic, key, Some(payload), partition).await
    }

    /// Publishes a tombstone: the key, and no payload.
    pub async fn publish_tombstone(&self, topic: &str, key: &[u8]) -> (i32, i64) {
        self.send(topic, Some(key), None, None).await
    }

    async fn send(
        &self,
        topic: &str,
        key: Option<&[u8]>,
        payload: Option<&[u8]>,
        partition: Option<i32>,
    ) -> (i32, i64) {
        let name = self.name(topic);
        let record = FutureRecord::<[u8], [u8]> { key, payload, partition, ..FutureRecord::to(&name) };
        match self.producer.send(record, REQUEST_TIMEOUT).await {
            Ok(delivery) => (delivery.partition, delivery.offset),
            Err((error, _)) => panic!("Kafka does not take a message for {name}: {error}"),
        }
    }

    /// All that lies in a topic now, up to the end that each partition has when this is called; by partition,
    /// then by offset.
    pub async fn consume_all(&self, topic: &str) -> Vec<Record> {
        let name = self.name(topic);
        let mut left = self.bounds(topic).await;
        left.retain(|_, (start, end)| start < end);
        let mut assignment = TopicPartitionList::new();
        for (&partition, &(start, _)) in &left {
            // A number: to look up "the beginning" would take the library half a second.
            assignment.add_partition_offset(&name, partition, Offset::Offset(start)).expect("an offset");
        }
        let mut config = client(&self.bootstrap);
        config.set("group.id", NEVER_JOINED).set("auto.offset.reset", "earliest");
        config.set("enable.auto.commit", "false").set("fetch.wait.max.ms", "10");
        // Compaction and transactions leave gaps, so that the last offset may not come: an end of the partition does.
        config.set("enable.partition.eof", "true");
        let consumer: StreamConsumer = config.create().expect("a consumer's settings are right");
        consumer.assign(&assignment).expect("partitions can be assigned");

        let mut records = Vec::new();
        while !left.is_empty() {
            match timeout(READ_TIMEOUT, consumer.recv()).await.expect("Kafka sends what it holds") {
                Ok(message) => {
                    let Some(&(_, end)) = left.get(&message.partition()) else { continue };
                    if message.offset() < end {
                        records.push(to_record(&message));
                    }
                    if message.offset() + 1 >= end {
                        left.remove(&message.partition());
                    }
                }
                Err(KafkaError::PartitionEOF(partition)) => {
                    left.remove(&partition);
                }
                Err(error) => panic!("{name} cannot be read: {error}"),
            }
        }
        records.sort_by_key(|record| (record.partition, record.offset));
        records
    }

    /// The offset after the last message, by partition.
    pub async fn ends(&self, topic: &str) -> BTreeMap<i32, i64> {
        self.bounds(topic).await.into_iter().map(|(partition, (_, end))| (partition, end)).collect()
    }

    /// The offsets that a consumer group has committed, by partition; those without one are left out.
    pub async fn committed(&self, group: &str, topic: &str) -> BTreeMap<i32, i64> {
        let bounds = self.bounds(topic).await;
        self.committed_in(group, topic, bounds.keys().copied()).await
    }

    /// How many offsets a consumer group has still to commit, over all partitions. 0: it is done with the topic.
    pub async fn lag(&self, group: &str, topic: &str) -> i64 {
        let bounds = self.bounds(topic).await;
        let committed = self.committed_in(group, topic, bounds.keys().copied()).await;
        bounds.iter().map(|(partition, (start, end))| end - committed.get(partition).unwrap_or(start)).sum()
    }

    /// Commits an offset in the name of a group that has no members.
    pub async fn commit(&self, group: &str, topic: &str, partition: i32, offset: i64) {
        let mut wanted = TopicPartitionList::new();
        wanted.add_partition_offset(&self.name(topic), partition, Offset::Offset(offset)).expect("an offset");
        let answer = self.ask(group, move |consumer| consumer.commit(&wanted, CommitMode::Sync)).await;
        answer.expect("Kafka takes a commit");
    }

    async fn committed_in(
        &self,
        group: &str,
        topic: &str,
        partitions: impl Iterator<Item = i32>,
    ) -> BTreeMap<i32, i64> {
        let mut wanted = TopicPartitionList::new();
        for partition in partitions {
            wanted.add_partition(&self.name(topic), partition);
        }
        let answer = self.ask(group, move |consumer| consumer.committed_offsets(wanted, REQUEST_TIMEOUT));
        let committed = answer.await.and_then(|list| by_partition(&list));
        committed.expect("Kafka tells what a group has committed")
    }

    /// The first offset and the one after the last, by partition.
    ///
    /// A topic that was created this moment may have no leaders yet, hence the repeats.
    async fn bounds(&self, topic: &str) -> BTreeMap<i32, (i64, i64)> {
        let name = self.name(topic);
        eventually(REQUEST_TIMEOUT, async || {
            let name = name.clone();
            let bounds = self.ask(NEVER_JOINED, move |consumer| bounds(consumer, &name)).await;
            bounds.with_context(|| format!("Kafka does not tell the offsets of {topic}"))
        })
        .await
    }

    /// Runs a question that blocks, where it may.
    async fn ask<T: Send + 'static>(
        &self,
        group: &str,
        question: impl FnOnce(&BaseConsumer) -> Result<T, KafkaError> + Send + 'static,
    ) -> Result<T, KafkaError> {
        let asker = self.asker(group)?;
        tokio::task::spawn_blocking(move || question(&asker)).await.expect("a question does not panic")
    }

    fn asker(&self, group: &str) -> Result<Arc<BaseConsumer>, KafkaError> {
        let mut askers = self.askers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(asker) = askers.get(group) {
            return Ok(Arc::clone(asker));
        }
        let asker = Arc::new(client(&self.bootstrap).set("group.id", group).create()?);
        askers.insert(group.to_owned(), Arc::clone(&asker));
        Ok(asker)
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        client(&self.bootstrap).create().expect("an admin client's settings are right")
    }
}

fn client(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap);
    config
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(REQUEST_TIMEOUT)).request_timeout(Some(REQUEST_TIMEOUT))
}

fn bounds(consumer: &BaseConsumer, name: &str) -> Result<BTreeMap<i32, (i64, i64)>, KafkaError> {
    let metadata = consumer.fetch_metadata(Some(name), REQUEST_TIMEOUT)?;
    let topic = &metadata.topics()[0];
    if let Some(code) = topic.error() {
        return Err(KafkaError::MetadataFetch(code.into()));
    }
    // The protocol takes the two ends in the place of a time: one request for all partitions.
    let offsets_at = |end: Offset| {
        let mut wanted = TopicPartitionList::new();
        for partition in topic.partitions() {
            wanted.add_partition_offset(name, partition.id(), end)?;
        }
        by_partition(&consumer.offsets_for_times(wanted, REQUEST_TIMEOUT)?)
    };
    let ends = offsets_at(Offset::End)?;
    let starts = offsets_at(Offset::Beginning)?;
    let both = |(partition, start)| ends.get(&partition).map(|&end| (partition, (start, end)));
    let bounds: BTreeMap<_, _> = starts.into_iter().filter_map(both).collect();
    if bounds.len() < topic.partitions().len() {
        return Err(KafkaError::MetadataFetch(RDKafkaErrorCode::Partial));
    }
    Ok(bounds)
}

/// The offsets of a list; a partition without one is left out.
fn by_partition(list: &TopicPartitionList) -> Result<BTreeMap<i32, i64>, KafkaError> {
    let mut offsets = BTreeMap::new();
    for element in list.elements() {
        element.error()?;
        if let Offset::Offset(offset) = element.offset() {
            offsets.insert(element.partition(), offset);
        }
    }
    Ok(offsets)
}

fn to_record(message: &impl Message) -> Record {
    let header = |header: rdkafka::message::Header<'_, &[u8]>| {
        (header.key.to_owned(), header.value.unwrap_or_default().to_owned())
    };
    Record {
        partition: message.partition(),
        offset: message.offset(),
        timestamp_ms: message.timestamp().to_millis(),
        key: message.key().map(<[u8]>::to_vec),
        payload: message.payload().map(<[u8]>::to_vec),
        headers: message.headers().map_or_else(Vec::new, |headers| headers.iter().map(header).collect()),
    }
}

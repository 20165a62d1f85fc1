//! The whole on real servers: tables and topics of its own, as many `ingest` and `query` as wanted, and a sender.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::ensure;
use futures::stream::{self, StreamExt};
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use crate::client::Client;
use crate::history::{Record, Topic};
use crate::kafka::{self, Topics};
use crate::program::{Program, Running};
use crate::{eventually, servers, unique_name};

/// The topics of the contract.
pub const EVENTS: &str = "mail.events";
/// The same.
pub const REFERENCES: &str = "mail.references";
/// The same.
pub const CAMPAIGN_EVENTS: &str = "mail.campaign-events";
/// The same.
pub const DEAD: &str = "mail.events.dead";

/// A member that was killed is missed after 3 seconds; new partitions are seen after one.
pub const CLASSIC: &str =
    "session.timeout.ms=3000,heartbeat.interval.ms=500,topic.metadata.refresh.interval.ms=1000";
/// The same in the new group protocol (KIP-848), where the times are the node's.
pub const KIP_848: &str = "group.protocol=consumer,topic.metadata.refresh.interval.ms=1000";

/// How long what was published may take to be done with. Far more than it needs: only what hangs runs into it.
const PATIENCE: Duration = Duration::from_secs(240);
const IN_FLIGHT_MAX: usize = 200;
/// What a sender publishes at a time while something is done to the rest.
const LOAD_RECORDS: usize = 40;
const LOAD_PAUSE: Duration = Duration::from_millis(40);

/// Where the servers of a deployment are: as the tests reach them, and as the program is told, which may be a proxy.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// Kafka's for the tests.
    pub kafka: String,
    /// Kafka's for the program.
    pub kafka_of_program: String,
    /// The CQL store's for the tests.
    pub store: String,
    /// The CQL store's for the program.
    pub store_of_program: String,
}

impl Addresses {
    /// Both alike.
    #[must_use]
    pub fn direct(kafka: &str, store: &str) -> Self {
        Self {
            kafka: kafka.to_owned(),
            kafka_of_program: kafka.to_owned(),
            store: store.to_owned(),
            store_of_program: store.to_owned(),
        }
    }

    /// The servers that all tests of a binary share.
    pub async fn shared() -> Self {
        let (kafka, cassandra) = tokio::join!(servers::kafka(), servers::cassandra());
        Self::direct(&kafka.bootstrap, &cassandra.contact)
    }
}

/// Tables and topics that nobody else uses.
pub struct Deployment {
    /// Its topics.
    pub topics: Topics,
    /// Where its servers are.
    pub addresses: Addresses,
    /// Its keyspace.
    pub keyspace: String,
    /// The consumer group of its ingests.
    pub group: String,
    /// The `BACKSTAMP_KAFKA_OPTIONS` of its processes.
    pub kafka_options: String,
}

/// Something that lies in the log.
pub type Logged = (Topic, kafka::Record);

impl Deployment {
    /// Applies the schema to a new keyspace and to new topics, on the servers that all share.
    pub async fn new() -> Self {
        Self::at(Addresses::shared().await, CLASSIC).await
    }

    /// The same on these servers, with these options for Kafka's clients.
    ///
    /// # Panics
    ///
    /// Where the schema cannot be applied.
    pub async fn at(addresses: Addresses, kafka_options: &str) -> Self {
        let name = unique_name("model");
        let deployment = Self {
            topics: Topics::new(&addresses.kafka, &format!("{name}.")),
            addresses,
            keyspace: name.clone(),
            group: name,
            kafka_options: kafka_options.to_owned(),
        };
        deployment.apply_schema().await;
        deployment
    }

    /// Creates what is missing of tables and topics.
    ///
    /// # Panics
    ///
    /// Where that cannot be done.
    pub async fn apply_schema(&self) {
        let output = Program::run(&["schema", "apply"], &self.environment()).await;
        assert!(output.status.success(), "{output}");
    }

    /// Deletes a topic and creates it again, empty.
    ///
    /// # Panics
    ///
    /// Where that cannot be done.
    pub async fn create_again(&self, topic: &str) {
        self.topics.delete(&[topic]).await;
        // It may be there for a moment yet.
        eventually(PATIENCE, async || {
            let output = Program::run(&["schema", "apply", "--json"], &self.environment()).await;
            assert!(output.status.success(), "{output}");
            ensure!(
                output.stdout.contains(&format!("[\"{}\"]", self.topics.name(topic))),
                "not created: {output}"
            );
            Ok(())
        })
        .await;
    }

    /// What tells tools where the deployment is.
    pub fn environment(&self) -> Vec<(&str, &str)> {
        self.environment_at(&self.addresses.kafka, &self.addresses.store)
    }

    fn environment_at<'a>(&'a self, kafka: &'a str, store: &'a str) -> Vec<(&'a str, &'a str)> {
        let [_, prefix] = self.topics.environment();
        vec![
            ("BACKSTAMP_KAFKA_BROKERS", kafka),
            prefix,
            ("BACKSTAMP_KAFKA_OPTIONS", &self.kafka_options),
            ("BACKSTAMP_SCYLLA_NODES", store),
            ("BACKSTAMP_KEYSPACE", &self.keyspace),
            ("BACKSTAMP_GROUP", &self.group),
            ("BACKSTAMP_RATE_LIMIT", "off"),
        ]
    }

    /// Starts a service.
    pub async fn start(&self, service: &str) -> Running {
        let Addresses { kafka_of_program, store_of_program, .. } = &self.addresses;
        Program::start(&[service], &self.environment_at(kafka_of_program, store_of_program)).await
    }

    /// Starts one more `ingest`.
    pub async fn ingest(&self) -> Running {
        self.start("ingest").await
    }

    /// Starts a `query`, with a client of it.
    ///
    /// # Panics
    ///
    /// Where it does not start.
    pub async fn query(&self) -> (Running, Client) {
        let query = self.start("query").await;
        let client = Client::new(query.url()).expect("a client can be made");
        (query, client)
    }

    /// Publishes records: references in their order, events in almost any order, under any key, in any of the partitions that there
    /// are now.
    pub async fn publish(&self, records: &[Record], rng: &mut StdRng) {
        // A new producer: one that is there does not see at once that a topic has grown.
        Sender::new(self).await.publish(records, rng).await;
    }

    /// Publishes records one small batch after the other while `faults` happen: again from the start where they are published before that
    /// is over, as a sender may; the rest of them when it is.
    pub async fn under_load<T>(
        &self,
        records: &[Record],
        rng: &mut StdRng,
        faults: impl Future<Output = T>,
    ) -> T {
        let sender = Sender::new(self).await;
        let is_over = AtomicBool::new(false);
        let publish = async {
            let mut batches = records.chunks(LOAD_RECORDS);
            while !is_over.load(Ordering::Relaxed) {
                match batches.next() {
                    Some(batch) => sender.publish(batch, rng).await,
                    None => {
                        let from = rng.random_range(0..records.len());
                        let until = (from + LOAD_RECORDS).min(records.len());
                        sender.publish(&records[from..until], rng).await;
                    }
                }
                tokio::time::sleep(LOAD_PAUSE).await;
            }
            for batch in batches {
                sender.publish(batch, rng).await;
            }
        };
        let faults = async {
            let outcome = faults.await;
            is_over.store(true, Ordering::Relaxed);
            outcome
        };
        tokio::join!(publish, faults).1
    }

    /// How many records were published so far, flawed ones and repeats included.
    ///
    /// # Panics
    ///
    /// Where Kafka does not answer.
    pub async fn published(&self) -> usize {
        let mut count = 0;
        for topic in [EVENTS, REFERENCES] {
            count += self.topics.ends(topic).await.values().sum::<i64>();
        }
        usize::try_from(count).expect("offsets are not negative")
    }

    /// Waits until so many records were published.
    pub async fn wait_until_published(&self, count: usize) {
        eventually(PATIENCE, async || {
            let published = self.published().await;
            ensure!(published >= count, "only {published} of {count} records are published");
            Ok(())
        })
        .await;
    }

    /// How much the ingests have committed so far: records of all topics.
    pub async fn committed(&self) -> i64 {
        let mut committed = 0;
        for (suffix, topic) in LOGS {
            committed +=
                self.topics.committed(&format!("{}{suffix}", self.group), topic).await.values().sum::<i64>();
        }
        committed
    }

    /// Waits until the ingests have committed more than now.
    pub async fn wait_for_progress(&self) {
        let before = self.committed().await;
        eventually(PATIENCE, async || {
            ensure!(self.committed().await > before, "nothing more is committed than {before}");
            Ok(())
        })
        .await;
    }

    /// What the ingests have not done yet: records of all topics.
    pub async fn lag(&self) -> i64 {
        let mut lag = 0;
        for (suffix, topic) in LOGS {
            lag += self.topics.lag(&format!("{}{suffix}", self.group), topic).await;
        }
        lag
    }

    /// Waits until the ingests have done all that was published so far.
    pub async fn wait_until_done(&self) {
        for (suffix, topic) in LOGS {
            let group = format!("{}{suffix}", self.group);
            eventually(PATIENCE, async || {
                let lag = self.topics.lag(&group, topic).await;
                ensure!(lag == 0, "{lag} records of {topic} are not done");
                Ok(())
            })
            .await;
        }
    }

    /// All that lies in the log now: each topic's in the order of partitions and offsets.
    pub async fn log(&self) -> Vec<Logged> {
        let mut log = Vec::new();
        for (topic, name) in [(Topic::References, REFERENCES), (Topic::Events, EVENTS)] {
            log.extend(self.topics.consume_all(name).await.into_iter().map(|record| (topic, record)));
        }
        log
    }

    /// Removes tables and topics from servers that go on.
    pub async fn remove(self) {
        self.topics.delete(&[EVENTS, REFERENCES, CAMPAIGN_EVENTS, DEAD]).await;
        let drop = format!("DROP KEYSPACE IF EXISTS {}", self.keyspace);
        let session = servers::session(&self.addresses.store).await;
        session.query_unpaged(drop, ()).await.expect("the node drops a keyspace");
    }
}

/// Topics with what is appended to the group's name for them, in this order: the first two fill the log of the third.
const LOGS: [(&str, &str); 3] = [("", EVENTS), (".references", REFERENCES), (".own", CAMPAIGN_EVENTS)];

/// Publishes.
struct Sender {
    topics: Topics,
    partitions: Vec<i32>,
}

impl Sender {
    async fn new(deployment: &Deployment) -> Self {
        let topics = Topics::new(&deployment.addresses.kafka, &deployment.topics.name(""));
        let partitions = topics.ends(EVENTS).await.into_keys().collect();
        Self { topics, partitions }
    }

    async fn publish(&self, records: &[Record], rng: &mut StdRng) {
        let Self { topics, partitions } = self;
        let (events, references): (Vec<&Record>, Vec<&Record>) =
            records.iter().partition(|record| record.topic == Topic::Events);
        let placed: Vec<(&Record, Option<String>, Option<i32>)> = events
            .into_iter()
            .map(|record| (record, any_key(record, rng), any_partition(partitions, rng)))
            .collect();
        let publish_events = stream::iter(&placed)
            .map(async |(record, key, partition)| {
                let value = record.value.as_deref().unwrap_or_default();
                topics.publish(EVENTS, key.as_deref().map(str::as_bytes), value, *partition).await
            })
            .buffer_unordered(IN_FLIGHT_MAX)
            .for_each(async |_| ());
        let publish_references = async {
            for record in references {
                let key = record.key.as_deref().expect("a reference has a key").as_bytes();
                match &record.value {
                    Some(value) => topics.publish(REFERENCES, Some(key), value, None).await,
                    None => topics.publish_tombstone(REFERENCES, key).await,
                };
            }
        };
        tokio::join!(publish_events, publish_references);
    }
}

/// The recommended key, another one, or none.
fn any_key(record: &Record, rng: &mut StdRng) -> Option<String> {
    match rng.random_range(0..4) {
        0 => None,
        1 => Some(format!("any-{}", rng.random_range(0..50))),
        _ => record.key.clone(),
    }
}

/// Mostly the key's choice.
fn any_partition(partitions: &[i32], rng: &mut StdRng) -> Option<i32> {
    if rng.random_bool(0.3) { partitions.choose(rng).copied() } else { None }
}

/// How often each value lies in the log, white space around it left out.
pub fn count_values(log: &[Logged]) -> BTreeMap<&[u8], usize> {
    let mut counts = BTreeMap::new();
    for (_, record) in log {
        *counts.entry(record.payload.as_deref().unwrap_or_default().trim_ascii()).or_default() += 1;
    }
    counts
}

//! A log whose groups rebalance at any time: its consumers and appenders are those of the real pipeline.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use event_log::{
    Appender, Batch, BatchLimits, CAMPAIGN_EVENTS_PARTITIONS, Claim, CommitOutcome, Consumer, Incoming,
    LogError, Outgoing, Topic,
};
use timeline::Timestamp;

use super::fault::Fault;
use super::sim::Sim;

/// The topics that groups read.
pub(crate) const READ: [Topic; 3] = [Topic::Events, Topic::CampaignEvents, Topic::References];
/// Partitions of the events' topic.
pub(crate) const EVENTS_PARTITIONS: usize = 3;

/// A log.
#[derive(Clone)]
pub(crate) struct Broker {
    sim: Sim,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    topics: HashMap<Topic, Vec<Partition>>,
    dead: Vec<Outgoing>,
    last_claim: u64,
}

#[derive(Default)]
struct Partition {
    records: Vec<Record>,
    committed: usize,
    /// The claim under which commits are taken.
    claim: u64,
}

#[derive(Clone)]
struct Record {
    key: Option<Bytes>,
    value: Option<Bytes>,
    appended_at: Timestamp,
}

/// What a member of a group believes that it holds.
#[derive(Clone, Default)]
pub(crate) struct View(Arc<Mutex<Held>>);

#[derive(Default)]
struct Held {
    claims: BTreeMap<i32, Claim>,
    positions: BTreeMap<i32, usize>,
}

impl View {
    /// Ends what is believed of a partition.
    pub(crate) fn revoke(&self, partition: i32) {
        let mut held = self.0.lock().unwrap();
        held.claims.remove(&partition);
        held.positions.remove(&partition);
    }

    /// Whether a partition is believed to be held.
    pub(crate) fn holds(&self, partition: i32) -> bool {
        self.0.lock().unwrap().claims.contains_key(&partition)
    }
}

impl Broker {
    /// Topics without records.
    pub(crate) fn new(sim: &Sim) -> Broker {
        let broker = Broker { sim: sim.clone(), state: Arc::default() };
        READ.into_iter().for_each(|topic| broker.create(topic));
        broker
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// How many partitions a topic has.
    pub(crate) fn partitions(topic: Topic) -> usize {
        match topic {
            Topic::Events => EVENTS_PARTITIONS,
            Topic::CampaignEvents => usize::try_from(CAMPAIGN_EVENTS_PARTITIONS).unwrap(),
            Topic::References | Topic::DeadLetters => 1,
        }
    }

    /// Creates a topic, or creates it anew: its records are gone, and offsets begin again.
    pub(crate) fn create(&self, topic: Topic) {
        let partitions = (0..Broker::partitions(topic)).map(|_| Partition::default()).collect();
        self.state().topics.insert(topic, partitions);
    }

    /// A sender's record.
    pub(crate) fn publish(&self, topic: Topic, partition: usize, key: Option<&str>, value: &[u8]) {
        let key = key.map(|key| Bytes::copy_from_slice(key.as_bytes()));
        let record = Record { key, value: Some(Bytes::copy_from_slice(value)), appended_at: self.sim.now() };
        self.state().topics.get_mut(&topic).unwrap()[partition].records.push(record);
    }

    /// Whether all records of a topic are committed.
    pub(crate) fn is_done(&self, topic: Topic) -> bool {
        self.state().topics[&topic].iter().all(|partition| partition.committed >= partition.records.len())
    }

    /// How many records each partition of a topic has.
    pub(crate) fn ends(&self, topic: Topic) -> Vec<usize> {
        self.state().topics[&topic].iter().map(|partition| partition.records.len()).collect()
    }

    /// Whether so many records are committed, or were when the topic was made anew.
    pub(crate) fn has_passed(&self, topic: Topic, ends: &[usize]) -> bool {
        let state = self.state();
        let mut partitions = state.topics[&topic].iter().zip(ends);
        partitions.all(|(partition, end)| partition.committed >= *end || partition.records.len() < *end)
    }

    /// Has a partition read again from its beginning by whoever is given it next.
    pub(crate) fn rewind(&self, topic: Topic, partition: i32) {
        self.state().partition(topic, partition).committed = 0;
    }

    /// Gives a partition to a member, under a new claim.
    pub(crate) fn assign(&self, topic: Topic, partition: i32, view: &View) {
        let mut state = self.state();
        state.last_claim += 1;
        let claim = state.last_claim;
        let given = state.partition(topic, partition);
        given.claim = claim;
        let mut held = view.0.lock().unwrap();
        held.claims.insert(partition, Claim(claim));
        held.positions.insert(partition, given.committed);
    }

    /// What was appended to the dead letters.
    pub(crate) fn dead(&self) -> Vec<Outgoing> {
        self.state().dead.clone()
    }
}

impl State {
    fn partition(&mut self, topic: Topic, partition: i32) -> &mut Partition {
        &mut self.topics.get_mut(&topic).unwrap()[usize::try_from(partition).unwrap()]
    }

    fn append(&mut self, record: Outgoing, at: Timestamp) {
        if record.topic == Topic::DeadLetters {
            self.dead.push(record);
            return;
        }
        let partition = self.partition(record.topic, record.partition.unwrap());
        let bytes = |bytes: Option<Vec<u8>>| bytes.map(Bytes::from);
        partition.records.push(Record {
            key: bytes(record.key),
            value: bytes(record.value),
            appended_at: at,
        });
    }
}

/// A member of the group that reads `topic`.
pub(crate) struct SimConsumer {
    broker: Broker,
    topic: Topic,
    view: View,
    /// What was read and not handed out, where what was read is committed.
    ahead: Mutex<Option<Batch>>,
}

impl SimConsumer {
    pub(crate) fn new(broker: &Broker, topic: Topic, view: View) -> SimConsumer {
        SimConsumer { broker: broker.clone(), topic, view, ahead: Mutex::default() }
    }

    /// Some of the records that come next.
    fn take(&self) -> Option<Batch> {
        let mut budget = usize::try_from(self.broker.sim.random(1..8)).unwrap();
        let mut state = self.broker.state();
        let mut held = self.view.0.lock().unwrap();
        let mut batch = Batch {
            records: Vec::new(),
            claims: held.claims.iter().map(|(partition, claim)| (*partition, *claim)).collect(),
        };
        for (partition, position) in &mut held.positions {
            let records = &state.partition(self.topic, *partition).records;
            let next = records.iter().enumerate().skip(*position).take(budget);
            batch.records.extend(next.map(|(offset, record)| Incoming {
                topic: self.topic,
                partition: *partition,
                offset: i64::try_from(offset).unwrap(),
                key: record.key.clone(),
                value: record.value.clone(),
                appended_at: record.appended_at,
                traceparent: None,
            }));
            let taken = records.len().saturating_sub(*position).min(budget);
            *position += taken;
            budget -= taken;
        }
        Some(batch).filter(|batch| !batch.records.is_empty())
    }

    /// What the broker says to offsets.
    fn settle(&self, offsets: &[(i32, Claim, i64)]) -> CommitOutcome {
        let fault = self.broker.sim.fault;
        let mut state = self.broker.state();
        let mut outcome = CommitOutcome::default();
        for (partition, claim, offset) in offsets {
            let held = state.partition(self.topic, *partition);
            let offset = usize::try_from(*offset).unwrap();
            let says_nothing = offset == held.committed && fault == Fault::LateEpoch;
            if held.claim == claim.0 || fault == Fault::CommitAfterRevoke || says_nothing {
                held.committed = offset.min(held.records.len());
                outcome.done.push(*partition);
            } else {
                outcome.refused.push(*partition);
            }
        }
        outcome
    }

    fn positions_of(&self, offsets: &[(i32, Claim, i64)]) -> Vec<(i32, Claim, i64)> {
        let held = self.view.0.lock().unwrap();
        let position = |partition, done| {
            held.positions.get(partition).map_or(done, |position| i64::try_from(*position).unwrap())
        };
        offsets.iter().map(|(at, claim, done)| (*at, *claim, position(at, *done))).collect()
    }
}

#[async_trait]
impl Consumer for SimConsumer {
    async fn next_batch(&self, _limits: BatchLimits) -> Result<Batch, LogError> {
        loop {
            self.broker.sim.pause(1..30).await;
            if !self.broker.sim.read().await {
                return Err(away("read"));
            }
            let fault = self.broker.sim.fault;
            let mut batch = self.take();
            if fault == Fault::CommitWhatWasRead {
                batch = std::mem::replace(&mut *self.ahead.lock().unwrap(), batch);
            }
            let Some(batch) = batch else { continue };
            if fault == Fault::CommitFirst {
                let next = batch.records.iter().map(|record| (record.partition, record.offset + 1));
                let next: BTreeMap<i32, i64> = next.collect();
                let of = |(partition, offset)| (partition, batch.claims[&partition], offset);
                self.settle(&next.into_iter().map(of).collect::<Vec<_>>());
            }
            return Ok(batch);
        }
    }

    fn claims(&self) -> HashMap<i32, Claim> {
        self.view.0.lock().unwrap().claims.iter().map(|(partition, claim)| (*partition, *claim)).collect()
    }

    async fn commit(&self, offsets: &[(i32, Claim, i64)]) -> Result<CommitOutcome, LogError> {
        let offsets = match self.broker.sim.fault {
            Fault::CommitWhatWasRead => self.positions_of(offsets),
            _ => offsets.to_vec(),
        };
        let outcome = Arc::new(Mutex::new(CommitOutcome::default()));
        let (said, again) = (outcome.clone(), SimConsumer::new(&self.broker, self.topic, self.view.clone()));
        let heard = self.broker.sim.write(move || *said.lock().unwrap() = again.settle(&offsets)).await;
        if heard { Ok(outcome.lock().unwrap().clone()) } else { Err(away("commit")) }
    }

    async fn close(self) {}
}

/// Appends for one member of the group that places.
pub(crate) struct SimAppender {
    pub(crate) broker: Broker,
    /// Which member that is.
    pub(crate) member: u64,
}

#[async_trait]
impl Appender for SimAppender {
    async fn append(&self, records: Vec<Outgoing>) -> Result<(), LogError> {
        let sim = &self.broker.sim;
        for mut record in records {
            if sim.fault == Fault::OwnerByPartition && record.topic == Topic::CampaignEvents {
                record.partition = Some(i32::try_from(self.member % 64).unwrap());
            }
            let broker = self.broker.clone();
            let heard = sim
                .write(move || {
                    let now = broker.sim.now();
                    broker.state().append(record, now);
                })
                .await;
            if !heard && sim.fault != Fault::AppendUnacknowledged {
                return Err(away("append"));
            }
        }
        Ok(())
    }

    async fn check(&self) -> Result<(), LogError> {
        Ok(())
    }
}

fn away(operation: &'static str) -> LogError {
    LogError::Away { operation, source: "simulated".into() }
}

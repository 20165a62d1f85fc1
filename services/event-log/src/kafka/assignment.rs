//! Which partitions this process holds, and under which claim.
//!
//! Each partition that is assigned gets a [`Claim`] and a queue of its own, so that what was fetched under
//! one claim is never handed out under another:
//!
//! - A queue is split off before librdkafka is told to fetch, and let go of before it is told to stop.
//!   librdkafka raises the partition's version as it stops, and drops what was fetched under an older one when
//!   it is taken from the queue.
//! - Records are taken from queues only with the state locked, and a revoke removes the partition, and its
//!   records that were read but not handed out, under the same lock.
//!
//! The broker accepts commits of a member of the present generation, for any partition. What keeps a commit
//! of a revoked claim from being sent is the gate: a commit looks at the claims and waits for the broker's
//! answer with the gate held, and a revoke takes the gate before it returns to librdkafka, which lets go of
//! the partition only then. Nobody else is given the partition before.
//!
//! A member that was lost, whose partitions others may have before it is told, is turned away by the broker:
//! what it sends bears a member or a generation that is not the group's. librdkafka empties its member id and
//! keeps its generation, and with one that is not negative a broker takes no commit of a stranger, not even
//! when the group is empty. Only when told that its generation has passed it makes that -1, and marks its
//! assignment as lost in the same step, which a commit looks at.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::statistics::{self, Statistics};
use telemetry::metrics::{LOG_RESTARTS, OFFSETS_LOST, REBALANCES};
use telemetry::traces::{self, TRACEPARENT};
use timeline::Timestamp;
use tokio::sync::Notify;

use super::client::{ClientLog, is_permanent, locked};
use crate::consumer::{BatchLimits, Claim};
use crate::error::LogError;
use crate::record::{Incoming, Topic};

/// A claim that is not used yet.
fn new_claim() -> Claim {
    static LAST: AtomicU64 = AtomicU64::new(0);
    Claim(LAST.fetch_add(1, Ordering::Relaxed) + 1)
}

/// The partitions of one topic that this process holds.
pub(super) struct Assignment {
    topic: Topic,
    state: Mutex<State>,
    gate: Mutex<()>,
    /// Told when there is something new: records, an assignment, a failure.
    news: Arc<Notify>,
}

#[derive(Default)]
struct State {
    held: BTreeMap<i32, Held>,
    /// Records that were read and not handed out; all are of partitions that are held.
    read: Vec<Incoming>,
    read_bytes: usize,
    /// The partition that is read first next time.
    turn: i32,
    /// Whether partitions came or went since the last batch.
    changed: bool,
    /// To be told once.
    failure: Option<LogError>,
    /// To be told for ever.
    broken: Option<String>,
    /// Offsets that were left out between two records: compaction does that, and retention.
    gaps: Vec<Gap>,
}

struct Held {
    claim: Claim,
    queue: PartitionQueue<Group>,
    /// What was read ends here. Nothing is read before it is known where that starts.
    position: Option<i64>,
    /// When the last record that was read was appended.
    read_until: Timestamp,
    /// Whether a record was read under this claim.
    has_read: bool,
    /// Where fetching goes on, as of the last statistics, if nothing that was fetched waited to be read.
    fetched_to: Option<i64>,
    /// The same, if it was so twice in a row: the first may speak of an assignment before this one.
    read_to: Option<i64>,
}

/// Offsets of a partition that did not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gap {
    partition: i32,
    from: i64,
    to: i64,
}

/// What the broker says of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    /// The offset that the group has committed last, if any.
    pub(super) committed: Option<i64>,
    /// The first offset that is there.
    pub(super) start: i64,
    /// The one after the last.
    pub(super) end: i64,
}

/// How far a partition that is held was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The claim under which it is held.
    pub claim: Claim,
    /// The offset behind the last record that was read; `None` where none was.
    pub behind_last: Option<i64>,
    /// There is no record between that and this offset: transactions leave marks in the log that nobody is handed.
    pub no_record_below: Option<i64>,
}

/// What [`Assignment::read`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing new.
    Nothing,
    /// No records, but partitions came or went.
    Change,
    /// Records, and room for more.
    Some,
    /// As much as the limits allow.
    Full,
}

/// Records taken from one partition before it is the next one's turn.
const TURN_RECORDS: usize = 64;

impl Assignment {
    pub(super) fn new(topic: Topic) -> Assignment {
        Assignment { topic, state: Mutex::default(), gate: Mutex::default(), news: Arc::default() }
    }

    /// Waits for news. None is missed that comes between [`read`](Assignment::read) and this.
    pub(super) async fn news(&self) {
        self.news.notified().await;
    }

    /// Takes records from the queues, up to the limits, those that were read before included. Partitions take
    /// turns.
    pub(super) fn read(&self, limits: &BatchLimits) -> Result<Found, LogError> {
        let mut state = locked(&self.state);
        state.fail()?;
        let mut order: Vec<i32> = state.held.keys().copied().collect();
        let first = order.partition_point(|partition| *partition < state.turn);
        order.rotate_left(first);
        let mut taken = true;
        while taken {
            taken = false;
            for partition in &order {
                if state.is_full(limits) {
                    state.turn = *partition;
                    return Ok(Found::Full);
                }
                taken |= state.read_turn(self.topic, *partition, limits);
            }
        }
        if !state.read.is_empty() {
            return Ok(if state.is_full(limits) { Found::Full } else { Found::Some });
        }
        state.fail()?;
        Ok(if state.changed { Found::Change } else { Found::Nothing })
    }

    /// Hands out what was read, with the claims that it was read under.
    pub(super) fn take(&self) -> (Vec<Incoming>, HashMap<i32, Claim>) {
        let mut state = locked(&self.state);
        state.changed = false;
        state.read_bytes = 0;
        (std::mem::take(&mut state.read), state.claims())
    }

    /// What is held right now.
    pub(super) fn claims(&self) -> HashMap<i32, Claim> {
        locked(&self.state).claims()
    }

    /// How far each partition that is held was read.
    pub(super) fn positions(&self) -> HashMap<i32, Position> {
        let position = |held: &Held| Position {
            claim: held.claim,
            behind_last: held.position.filter(|_| held.has_read),
            no_record_below: held.read_to,
        };
        locked(&self.state).held.iter().map(|(partition, held)| (*partition, position(held))).collect()
    }

    /// Passes the gate. While it is held, no claim that is current ends.
    pub(super) fn pass_gate(&self) -> MutexGuard<'_, ()> {
        locked(&self.gate)
    }

    /// The partitions of which it is to be asked how they stand: those that were just assigned, and those with gaps.
    pub(super) fn questions(&self) -> Vec<i32> {
        let state = locked(&self.state);
        let new =
            state.held.iter().filter(|(_, held)| held.position.is_none()).map(|(partition, _)| *partition);
        let mut partitions: Vec<i32> = new.chain(state.gaps.iter().map(|gap| gap.partition)).collect();
        partitions.sort_unstable();
        partitions.dedup();
        partitions
    }

    /// Takes the answers to [`questions`](Assignment::questions). The log leaves out what its retention has removed, and begins anew
    /// where its topic was created again, without a word: here both are told.
    pub(super) fn answers(&self, standings: &HashMap<i32, Standing>) {
        let mut state = locked(&self.state);
        for (partition, standing) in standings {
            let Some(held) = state.held.get_mut(partition).filter(|held| held.position.is_none()) else {
                continue;
            };
            let Standing { committed, start, end } = *standing;
            held.position = Some(match committed {
                Some(committed) if committed > end => {
                    tell_restart(self.topic, *partition, committed);
                    start
                }
                Some(committed) => {
                    self.tell_lost(Gap { partition: *partition, from: committed, to: start });
                    committed.max(start)
                }
                None => start,
            });
        }
        state.gaps.retain(|gap| {
            let standing = standings.get(&gap.partition);
            if let Some(standing) = standing {
                self.tell_lost(Gap { to: gap.to.min(standing.start), ..*gap });
            }
            standing.is_none()
        });
        drop(state);
        self.news.notify_one();
    }

    fn tell_lost(&self, Gap { partition, from, to }: Gap) {
        let Some(records) =
            to.checked_sub(from).and_then(|lost| u64::try_from(lost).ok()).filter(|lost| *lost > 0)
        else {
            return;
        };
        let topic = self.topic.name();
        OFFSETS_LOST.with_label_values(&[topic, &partition.to_string()]).inc_by(records);
        tracing::error!(
            topic,
            partition,
            from,
            to,
            records,
            "the log had removed records before they were read"
        );
    }

    fn grant(&self, queues: Vec<(i32, PartitionQueue<Group>)>) {
        let count = queues.len();
        let mut state = locked(&self.state);
        for (partition, mut queue) in queues {
            let news = Arc::clone(&self.news);
            queue.set_nonempty_callback(move || news.notify_one());
            let claim = new_claim();
            tracing::info!(topic = self.topic.name(), partition, claim = claim.0, "partition assigned");
            let held = Held {
                claim,
                queue,
                position: None,
                read_until: Timestamp(i64::MIN),
                has_read: false,
                fetched_to: None,
                read_to: None,
            };
            state.held.insert(partition, held);
            // There from the start: absent is not 0.
            for told in [&OFFSETS_LOST, &LOG_RESTARTS] {
                told.with_label_values(&[self.topic.name(), &partition.to_string()]).inc_by(0);
            }
        }
        state.changed = true;
        drop(state);
        self.count("assigned", count);
        self.news.notify_one();
    }

    /// Ends the claims of `partitions`, of all where it is `None`. Once this has returned, no commit of
    /// theirs can be sent.
    pub(super) fn revoke(&self, partitions: Option<&[i32]>, kind: &'static str) {
        let mut state = locked(&self.state);
        let State { held, read, read_bytes, gaps, .. } = &mut *state;
        let gone: BTreeMap<i32, Held> = match partitions {
            None => std::mem::take(held),
            Some(partitions) => {
                partitions.iter().filter_map(|partition| held.remove_entry(partition)).collect()
            }
        };
        read.retain(|record| held.contains_key(&record.partition));
        *read_bytes = read.iter().map(Incoming::size).sum();
        // A partition that is held by somebody else may begin anew before it is asked for.
        gaps.retain(|gap| held.contains_key(&gap.partition));
        state.changed |= !gone.is_empty();
        drop(state);
        // A commit that found the claims current is answered before it leaves the gate; one that comes later
        // does not find them.
        drop(self.pass_gate());
        for (partition, held) in &gone {
            tracing::info!(topic = self.topic.name(), partition, claim = held.claim.0, "partition {kind}");
        }
        self.count(kind, gone.len());
        self.news.notify_one();
    }

    /// The next batch fails with it, if it is worth telling: the rest librdkafka deals with by itself.
    pub(super) fn report(&self, error: KafkaError) {
        if let KafkaError::MessageConsumptionFatal(_) = error {
            return self.break_off(error.to_string());
        }
        if let Some(failure) = told(error) {
            locked(&self.state).failure = Some(failure);
            self.news.notify_one();
        }
    }

    /// Every batch from now on fails, and every commit is refused.
    pub(super) fn break_off(&self, reason: String) {
        tracing::error!(topic = self.topic.name(), "kafka consumer failed for good: {reason}");
        self.revoke(None, "lost");
        locked(&self.state).broken = Some(reason);
        self.news.notify_one();
    }

    fn update_read(&self, topic: &statistics::Topic) {
        let mut state = locked(&self.state);
        for partition in topic.partitions.values() {
            let Some(held) = state.held.get_mut(&partition.partition) else { continue };
            let is_read = partition.fetch_state == "active" && partition.fetchq_cnt == 0;
            let fetched_to = Some(partition.next_offset).filter(|offset| is_read && *offset >= 0);
            held.read_to = fetched_to.filter(|_| fetched_to == held.fetched_to);
            held.fetched_to = fetched_to;
        }
    }

    fn count(&self, kind: &str, partitions: usize) {
        REBALANCES.with_label_values(&[self.topic.name(), kind]).inc_by(partitions as u64);
    }
}

impl State {
    fn claims(&self) -> HashMap<i32, Claim> {
        self.held.iter().map(|(partition, held)| (*partition, held.claim)).collect()
    }

    fn is_full(&self, limits: &BatchLimits) -> bool {
        self.read.len() >= limits.records_max.max(1) || self.read_bytes >= limits.bytes_max.max(1)
    }

    /// Takes some records of one partition; whether there was anything.
    fn read_turn(&mut self, topic: Topic, partition: i32, limits: &BatchLimits) -> bool {
        let mut taken = false;
        for _ in 0..TURN_RECORDS {
            if self.is_full(limits) {
                break;
            }
            let Some(held) = self.held.get_mut(&partition) else { break };
            let Some(position) = held.position else { break };
            match held.queue.poll(Duration::ZERO) {
                None => break,
                Some(Ok(message)) => {
                    taken = true;
                    let record = incoming(topic, &message);
                    // librdkafka may fetch a record again around a rebalance. Of a log that begins anew every record is younger
                    // than those of the old one.
                    if record.offset < position && record.appended_at <= held.read_until {
                        continue;
                    }
                    if record.offset < position {
                        tell_restart(topic, partition, position);
                    } else if record.offset > position {
                        self.gaps.push(Gap { partition, from: position, to: record.offset });
                    }
                    held.position = Some(record.offset + 1);
                    held.has_read = true;
                    held.read_until = held.read_until.max(record.appended_at);
                    self.read_bytes += record.size();
                    self.read.push(record);
                }
                Some(Err(error)) => {
                    taken = true;
                    self.failure = told(error).or(self.failure.take());
                }
            }
        }
        taken
    }

    fn fail(&mut self) -> Result<(), LogError> {
        if let Some(reason) = &self.broken {
            return Err(LogError::refused("consume", reason.clone()));
        }
        self.failure.take().map_or(Ok(()), Err)
    }
}

/// A partition's log has begun anew: its topic was deleted and created again.
fn tell_restart(topic: Topic, partition: i32, position: i64) {
    let topic = topic.name();
    LOG_RESTARTS.with_label_values(&[topic, &partition.to_string()]).inc();
    tracing::error!(topic, partition, position, "the log begins anew: its topic was created again");
}

pub(super) fn incoming(topic: Topic, message: &BorrowedMessage<'_>) -> Incoming {
    Incoming {
        topic,
        partition: message.partition(),
        offset: message.offset(),
        key: message.key().map(bytes::Bytes::copy_from_slice),
        value: message.payload().map(bytes::Bytes::copy_from_slice),
        appended_at: Timestamp(message.timestamp().to_millis().unwrap_or(0)),
        traceparent: if traces::is_on() { traceparent(message) } else { None },
    }
}

fn traceparent(message: &BorrowedMessage<'_>) -> Option<Box<str>> {
    let header = message.headers()?.iter().find(|header| header.key == TRACEPARENT)?;
    std::str::from_utf8(header.value?).ok().map(Into::into)
}

/// What the reader is told; what is left out passes by itself, and is in the log.
fn told(error: KafkaError) -> Option<LogError> {
    match error.rdkafka_error_code()? {
        RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic => {
            Some(LogError::away("consume", error))
        }
        code if is_permanent(code) => Some(LogError::refused("consume", error)),
        _ => None,
    }
}

/// What librdkafka calls back, on the thread that polls.
pub(super) struct Group {
    topic_name: String,
    assignment: Arc<Assignment>,
    log: ClientLog,
    /// Set once there is one. Weak, for the consumer owns this.
    consumer: OnceLock<Weak<BaseConsumer<Group>>>,
}

impl Group {
    pub(super) fn new(topic_name: String, assignment: Arc<Assignment>) -> Group {
        Group { topic_name, assignment, log: ClientLog::new("consumer"), consumer: OnceLock::new() }
    }

    pub(super) fn set_consumer(&self, consumer: &Arc<BaseConsumer<Group>>) {
        // It is set once, by whoever made both.
        let _ = self.consumer.set(Arc::downgrade(consumer));
    }

    fn assigned(&self, partitions: &[i32]) {
        let Some(consumer) = self.consumer.get().and_then(Weak::upgrade) else { return };
        let split = |partition: &i32| {
            consumer.split_partition_queue(&self.topic_name, *partition).map(|queue| (*partition, queue))
        };
        match partitions.iter().map(split).collect() {
            Some(queues) => self.assignment.grant(queues),
            None => self.assignment.break_off("a partition that was assigned has no queue".to_owned()),
        }
    }
}

impl ConsumerContext for Group {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Group>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(partitions) => self.assigned(&numbers(partitions)),
            Rebalance::Revoke(partitions) => {
                let kind = if consumer.assignment_lost() { "lost" } else { "revoked" };
                self.assignment.revoke(Some(&numbers(partitions)), kind);
            }
            // librdkafka then takes all of them away.
            Rebalance::Error(_) => self.assignment.revoke(None, "lost"),
        }
    }
}

fn numbers(partitions: &TopicPartitionList) -> Vec<i32> {
    partitions.elements().iter().map(|partition| partition.partition()).collect()
}

impl ClientContext for Group {
    fn log(&self, level: RDKafkaLogLevel, kind: &str, message: &str) {
        self.log.line(level, kind, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.log.error(&error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        if let Some(topic) = statistics.topics.get(&self.topic_name) {
            self.assignment.update_read(topic);
        }
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::config::FromClientConfigAndContext;

    use super::*;

    /// A consumer that never reaches a broker, and holds what it is told to.
    fn consumer(assignment: &Arc<Assignment>) -> Arc<BaseConsumer<Group>> {
        let group = Group::new("topic".to_owned(), Arc::clone(assignment));
        let mut config = rdkafka::ClientConfig::new();
        config.set("group.id", "group").set("bootstrap.servers", "127.0.0.1:1");
        let consumer = BaseConsumer::from_config_and_context(&config, group).expect("valid settings");
        let consumer = Arc::new(consumer);
        consumer.context().set_consumer(&consumer);
        consumer
    }

    #[test]
    fn a_revoke_ends_claims_at_once_and_returns_after_the_commit_under_way() {
        let assignment = Arc::new(Assignment::new(Topic::Events));
        let consumer = consumer(&assignment);
        consumer.context().assigned(&[0, 1]);
        let before = assignment.claims();
        assert!(before.len() == 2 && before[&0] != before[&1]);

        let order = Mutex::new(Vec::new());
        let gate = assignment.pass_gate();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                assignment.revoke(Some(&[0]), "revoked");
                locked(&order).push("revoked");
            });
            while assignment.claims().contains_key(&0) {
                std::thread::yield_now();
            }
            // It could return now, if it did not wait.
            (0..10_000).for_each(|_| std::thread::yield_now());
            locked(&order).push("committed");
            drop(gate);
        });
        assert_eq!(*locked(&order), ["committed", "revoked"]);

        assert_eq!(assignment.claims(), HashMap::from([(1, before[&1])]));
        consumer.context().assigned(&[0]);
        assert!(assignment.claims()[&0] > before[&0].max(before[&1]));
        // The queues hold the consumer, which holds the assignment.
        assignment.revoke(None, "revoked");
    }

    #[test]
    fn a_consumer_that_has_failed_for_good_says_so_for_ever() {
        let assignment = Arc::new(Assignment::new(Topic::Events));
        let limits = BatchLimits { records_max: 1, bytes_max: 1, linger: Duration::ZERO };
        assignment.report(KafkaError::MessageConsumption(RDKafkaErrorCode::AllBrokersDown));
        assert_eq!(assignment.read(&limits).ok(), Some(Found::Nothing), "that passes");
        assignment.report(KafkaError::MessageConsumption(RDKafkaErrorCode::UnknownTopicOrPartition));
        assert!(assignment.read(&limits).is_err_and(|error| error.may_pass()));
        assert_eq!(assignment.read(&limits).ok(), Some(Found::Nothing), "told once");
        assignment.report(KafkaError::MessageConsumptionFatal(RDKafkaErrorCode::FencedInstanceId));
        for _ in 0..2 {
            assert!(assignment.read(&limits).is_err_and(|error| !error.may_pass()));
        }
    }
}

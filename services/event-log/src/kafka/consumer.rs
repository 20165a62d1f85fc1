//! Records in from Kafka.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};
use telemetry::metrics::COMMITS;
use tokio::sync::Mutex;
use tokio::time::{self, timeout_at};

use super::assignment::{Assignment, Found, Group, Position, Standing};
use super::client::{METADATA_TIMEOUT, check_topics, client_error, request_error};
use super::config::KafkaConfig;
use crate::consumer::{Batch, BatchLimits, Claim, CommitOutcome, Consumer};
use crate::error::LogError;
use crate::record::Topic;

/// Reads one topic as a member of a consumer group.
///
/// A thread of its own serves the group: rebalances go on, and claims end, whether or not anybody asks for a
/// batch. So a store that is down for an hour costs no partition; what is fetched and not asked for is
/// bounded. A member that was lost all the same (its process was stopped, the network was gone) joins again
/// by itself, under new claims.
///
/// Dropping it leaves the group in the background; [`close`](Consumer::close) waits for that.
pub struct KafkaConsumer {
    member: Member,
    thread: ServingThread,
    /// Batches go to one caller at a time; when the last one did.
    reader: Mutex<Option<time::Instant>>,
}

const POLL: Duration = Duration::from_millis(100);
/// How long to wait for a commit that is under way.
const LAST_HOLDER_TIMEOUT: Duration = Duration::from_secs(10);
const LAST_HOLDER_PAUSE: Duration = Duration::from_millis(5);
/// How long a broker may take to say how partitions stand, and how long to wait before it is asked again.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
const ASK_RETRY: Duration = Duration::from_millis(500);

impl KafkaConsumer {
    /// Looks at how far the log and this member are, beside whoever reads. To be dropped before
    /// [`close`](Consumer::close), which waits for it.
    pub fn observer(&self) -> Observer {
        Observer { member: self.member.clone() }
    }

    /// Joins the group. Returns before it has: the first batch tells what is assigned.
    ///
    /// # Errors
    ///
    /// When the options do not hold.
    pub fn new(config: &KafkaConfig, topic: Topic) -> Result<KafkaConsumer, LogError> {
        let settings = config.consumer().map_err(|error| LogError::refused("connect", error))?;
        let topic_name = config.name_of(topic);
        let assignment = Arc::new(Assignment::new(topic));
        let group = Group::new(topic_name.clone(), Arc::clone(&assignment));
        let consumer =
            Arc::new(BaseConsumer::from_config_and_context(&settings, group).map_err(client_error)?);
        consumer.context().set_consumer(&consumer);
        consumer.subscribe(&[&topic_name]).map_err(client_error)?;

        let config = Arc::new(config.clone());
        let member = Member { config, topic, topic_name, consumer, assignment };
        let thread =
            ServingThread::start(member.clone()).map_err(|error| LogError::away("connect", error))?;
        Ok(KafkaConsumer { member, thread, reader: Mutex::new(None) })
    }

    /// Whether the brokers answer and the topic is there: for readiness.
    ///
    /// # Errors
    ///
    /// Says what is missing.
    pub async fn check(&self) -> Result<(), LogError> {
        let member = self.member.clone();
        tokio::task::spawn_blocking(move || check_topics(member.consumer.client(), &[member.topic_name]))
            .await
            .unwrap_or_else(|error| Err(LogError::away("check", error)))
    }
}

#[async_trait]
impl Consumer for KafkaConsumer {
    async fn next_batch(&self, limits: BatchLimits) -> Result<Batch, LogError> {
        let mut last = self.reader.lock().await;
        let assignment = &self.member.assignment;
        let mut found = assignment.read(&limits)?;
        while found == Found::Nothing {
            assignment.news().await;
            found = assignment.read(&limits)?;
        }
        let end = last.map_or_else(time::Instant::now, |last| last + limits.linger);
        while found == Found::Some && timeout_at(end, assignment.news()).await.is_ok() {
            found = assignment.read(&limits)?;
        }
        let (records, claims) = assignment.take();
        *last = Some(time::Instant::now());
        Ok(Batch { records, claims })
    }

    fn claims(&self) -> HashMap<i32, Claim> {
        self.member.assignment.claims()
    }

    async fn commit(&self, offsets: &[(i32, Claim, i64)]) -> Result<CommitOutcome, LogError> {
        if offsets.is_empty() {
            return Ok(CommitOutcome::default());
        }
        let (member, offsets) = (self.member.clone(), offsets.to_vec());
        tokio::task::spawn_blocking(move || member.commit(&offsets))
            .await
            .unwrap_or_else(|error| Err(LogError::away("commit", error)))
    }

    async fn close(self) {
        let KafkaConsumer { member, thread, .. } = self;
        // The thread waits to be the last who has it.
        drop(member);
        // It ends in any case; a panic of its has been shown.
        let _ = tokio::task::spawn_blocking(move || thread.join()).await;
    }
}

/// Tells how far the log and a member of a group are.
#[derive(Clone)]
pub struct Observer {
    member: Member,
}

impl Observer {
    /// How far each partition that is held was read.
    pub fn positions(&self) -> HashMap<i32, Position> {
        self.member.assignment.positions()
    }

    /// Where each of `partitions` ends: the offset behind everything that was acknowledged before this was called.
    ///
    /// # Errors
    ///
    /// When one could not be asked.
    pub async fn ends(&self, partitions: Vec<i32>) -> Result<HashMap<i32, i64>, LogError> {
        self.ask(move |member| member.edges(&partitions, Offset::End)).await
    }

    /// Where the group goes on in each of `partitions`: at what was committed, else at the oldest record.
    ///
    /// # Errors
    ///
    /// When one could not be asked.
    pub async fn starts(&self, partitions: Vec<i32>) -> Result<HashMap<i32, i64>, LogError> {
        self.ask(move |member| member.starts(&partitions)).await
    }

    /// How many partitions another topic of the same installation has; 0 where it is not there.
    ///
    /// # Errors
    ///
    /// When the brokers could not be asked.
    pub async fn partitions_of(&self, topic: Topic) -> Result<i32, LogError> {
        self.ask(move |member| {
            let name = member.config.name_of(topic);
            let metadata = member.consumer.fetch_metadata(Some(&name), METADATA_TIMEOUT)?;
            let partitions = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
            Ok(i32::try_from(partitions).unwrap_or(i32::MAX))
        })
        .await
    }

    async fn ask<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Member) -> Result<T, KafkaError> + Send + 'static,
    ) -> Result<T, LogError> {
        let member = self.member.clone();
        let asked = tokio::task::spawn_blocking(move || ask(&member)).await;
        let asked = asked.map_err(|error| LogError::away("offsets", error))?;
        asked.map_err(|error| request_error("offsets", error))
    }
}

/// The thread that serves the group. It is told to leave when this is dropped.
struct ServingThread {
    closing: Arc<AtomicBool>,
    handle: Option<JoinHandle<()>>,
}

impl ServingThread {
    fn start(member: Member) -> io::Result<ServingThread> {
        let closing = Arc::new(AtomicBool::new(false));
        let name = format!("kafka {}", member.topic.name());
        let handle = thread::Builder::new().name(name).spawn({
            let closing = Arc::clone(&closing);
            move || member.serve(&closing)
        })?;
        Ok(ServingThread { closing, handle: Some(handle) })
    }

    fn join(mut self) -> thread::Result<()> {
        self.closing.store(true, Ordering::Relaxed);
        self.handle.take().map_or(Ok(()), JoinHandle::join)
    }
}

impl Drop for ServingThread {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::Relaxed);
    }
}

/// A member of the group, for those who share it: the thread that serves it, commits, the reader.
#[derive(Clone)]
struct Member {
    config: Arc<KafkaConfig>,
    topic: Topic,
    topic_name: String,
    consumer: Arc<BaseConsumer<Group>>,
    assignment: Arc<Assignment>,
}

impl Member {
    /// Serves the group until `closing`, then leaves it.
    fn serve(self, closing: &AtomicBool) {
        let mut ask_from = Instant::now();
        while !closing.load(Ordering::Relaxed) {
            self.poll();
            if Instant::now() >= ask_from && self.ask().is_err() {
                ask_from = Instant::now() + ASK_RETRY;
            }
        }
        // Lets go of the queues, too, which hold the client. The last who has it closes it, and that takes a
        // while.
        self.assignment.revoke(None, "revoked");
        let end = Instant::now() + LAST_HOLDER_TIMEOUT;
        while Arc::strong_count(&self.consumer) > 1 && Instant::now() < end {
            thread::sleep(LAST_HOLDER_PAUSE);
        }
    }

    /// Serves what has come up: rebalances, errors, statistics. Records come through their partitions'
    /// queues.
    fn poll(&self) {
        match self.consumer.poll(POLL) {
            None => {}
            Some(Err(error)) => self.assignment.report(error),
            // To drop it would be to skip it.
            Some(Ok(_)) => self.assignment.break_off("a record came past its partition's queue".to_owned()),
        }
    }

    /// Asks the broker how partitions stand that were just assigned, or of which some records did not come.
    fn ask(&self) -> Result<(), LogError> {
        let partitions = self.assignment.questions();
        if partitions.is_empty() {
            return Ok(());
        }
        let standings = self.standings(&partitions).map_err(|error| {
            let topic = self.topic.name();
            tracing::warn!(topic, %error, "the broker does not say how partitions stand, trying again");
            request_error("ask", error)
        })?;
        self.assignment.answers(&standings);
        if standings.len() < partitions.len() {
            // Those without a leader; the others are read meanwhile.
            return Err(LogError::away("ask", "some partitions do not say how they stand"));
        }
        Ok(())
    }

    fn standings(&self, partitions: &[i32]) -> Result<HashMap<i32, Standing>, KafkaError> {
        // What was committed comes first: it is not beyond an end that is asked for later.
        let committed = self.committed(partitions)?;
        let (starts, ends) =
            (self.edges(partitions, Offset::Beginning)?, self.edges(partitions, Offset::End)?);
        let standing = |(partition, committed): (&i32, &Option<i64>)| {
            let standing = Standing {
                committed: *committed,
                start: *starts.get(partition)?,
                end: *ends.get(partition)?,
            };
            Some((*partition, standing))
        };
        Ok(committed.iter().filter_map(standing).collect())
    }

    /// What the group has committed of partitions, if anything; those that could not be asked are left out.
    fn committed(&self, partitions: &[i32]) -> Result<HashMap<i32, Option<i64>>, KafkaError> {
        let asked = self.list(partitions, Offset::Invalid)?;
        Ok(by_partition(&self.consumer.committed_offsets(asked, ASK_TIMEOUT)?))
    }

    /// Where partitions begin or end; those that could not be asked are left out. The protocol takes the two ends of a log in the
    /// place of a time: one request to each broker.
    fn edges(&self, partitions: &[i32], edge: Offset) -> Result<HashMap<i32, i64>, KafkaError> {
        if partitions.is_empty() {
            return Ok(HashMap::new());
        }
        let found = self.consumer.offsets_for_times(self.list(partitions, edge)?, ASK_TIMEOUT)?;
        let found = by_partition(&found).into_iter();
        Ok(found.filter_map(|(partition, offset)| Some((partition, offset?))).collect())
    }

    fn list(&self, partitions: &[i32], offset: Offset) -> Result<TopicPartitionList, KafkaError> {
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for partition in partitions {
            list.add_partition_offset(&self.topic_name, *partition, offset)?;
        }
        Ok(list)
    }

    fn commit(&self, offsets: &[(i32, Claim, i64)]) -> Result<CommitOutcome, LogError> {
        let gate = self.assignment.pass_gate();
        let claims = self.assignment.claims();
        // The broker knows a member that was lost no more, so it would not take these either.
        let lost = self.consumer.assignment_lost();
        let mut list = TopicPartitionList::with_capacity(offsets.len());
        let mut outcome = CommitOutcome::default();
        for (partition, claim, offset) in offsets {
            if lost || claims.get(partition) != Some(claim) {
                outcome.refused.push(*partition);
            } else {
                outcome.done.push(*partition);
                list.add_partition_offset(&self.topic_name, *partition, Offset::Offset(*offset))
                    .map_err(|error| request_error("commit", error))?;
            }
        }
        let committed = match outcome.done.len() {
            0 => Ok(()),
            _ => self.consumer.commit(&list, CommitMode::Sync),
        };
        drop(gate);

        self.count("refused", outcome.refused.len());
        match committed {
            Ok(()) => self.count("done", outcome.done.len()),
            Err(error) if says_lost(&error) => {
                self.count("refused", outcome.done.len());
                outcome.refused.append(&mut outcome.done);
            }
            Err(error) => {
                self.count("failed", outcome.done.len());
                return Err(request_error("commit", error));
            }
        }
        Ok(outcome)
    }

    /// Where the group goes on in partitions: at what was committed, else at the oldest record.
    fn starts(&self, partitions: &[i32]) -> Result<HashMap<i32, i64>, KafkaError> {
        if partitions.is_empty() {
            return Ok(HashMap::new());
        }
        let committed = self.committed(partitions)?;
        let none = committed.iter().filter(|(_, offset)| offset.is_none()).map(|(partition, _)| *partition);
        let mut starts = self.edges(&none.collect::<Vec<_>>(), Offset::Beginning)?;
        starts.extend(committed.iter().filter_map(|(partition, offset)| Some((*partition, (*offset)?))));
        Ok(starts)
    }

    fn count(&self, outcome: &str, partitions: usize) {
        COMMITS.with_label_values(&[self.topic.name(), outcome]).inc_by(partitions as u64);
    }
}

/// The offsets of a list, if there are any. A partition that could not be asked is left out: it must not hold up the others.
fn by_partition(list: &TopicPartitionList) -> HashMap<i32, Option<i64>> {
    let elements = list.elements();
    let asked = elements.iter().filter(|element| element.error().is_ok());
    let offset = |offset| if let Offset::Offset(offset) = offset { Some(offset) } else { None };
    asked.map(|element| (element.partition(), offset(element.offset()))).collect()
}

/// Whether the broker says that this member is none any more: its claims are about to end. A generation that
/// has passed is no such sign: it comes in the middle of a rebalance, too, which the claims may survive.
fn says_lost(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::UnknownMemberId
                | RDKafkaErrorCode::FencedInstanceId
                | RDKafkaErrorCode::AssignmentLost
        )
    )
}

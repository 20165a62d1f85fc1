//! Reading a stretch of a topic once, from its beginning or an instant up to where it ends now: for an operator's tools, beside
//! whatever group reads it. Nothing is committed.

use std::collections::{BTreeMap, HashMap};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Headers, Message};
use rdkafka::{Offset, TopicPartitionList};
use timeline::Timestamp;
use tokio::sync::mpsc;

use super::assignment::incoming;
use super::client::{Asking, ClientLog, TopicError, client_error, request_error};
use super::config::KafkaConfig;
use crate::error::LogError;
use crate::record::{Incoming, Topic};

/// Records that wait for whoever scans.
const WAITING_MAX: usize = 4096;
const POLL: Duration = Duration::from_millis(100);
/// How long the brokers may send nothing before the scan fails.
const SILENCE_MAX: Duration = Duration::from_secs(60);
const QUESTION_TIMEOUT: Duration = Duration::from_secs(30);

/// A stretch of a topic, by the broker's timestamps, both ends inclusive; `None` is all that there is in that direction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stretch {
    /// Records from here on.
    pub since: Option<Timestamp>,
    /// Records up to here.
    pub until: Option<Timestamp>,
}

/// A record with its headers. One whose value is no text is left out.
#[derive(Clone, Debug)]
pub struct Scanned {
    /// The record.
    pub record: Incoming,
    /// Its headers, in their order.
    pub headers: Vec<(String, String)>,
}

impl Scanned {
    /// The first header called `name`.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }
}

/// A scan that is under way. Dropping it ends it.
pub struct Scan {
    records: mpsc::Receiver<Result<Scanned, LogError>>,
    total: u64,
    read: u64,
}

impl Scan {
    /// Begins to read `stretch` of `topic`.
    ///
    /// # Errors
    ///
    /// When the topic is missing, or the brokers do not answer.
    pub async fn begin(config: &KafkaConfig, topic: Topic, stretch: Stretch) -> Result<Scan, LogError> {
        let asker = Asker::new(config)?;
        let name = config.name_of(topic);
        let found = blocking(move || {
            let bounds = asker.bounds(&name, stretch)?;
            Ok((asker, name, bounds))
        });
        let (asker, name, bounds) = found.await?;
        let total = bounds.values().map(|(start, end)| end.abs_diff(*start)).sum();
        let (sender, records) = mpsc::channel(WAITING_MAX);
        let read = move || {
            if let Err(error) = asker.read(topic, &name, bounds, &sender) {
                // Nobody may be there to hear it any more.
                let _ = sender.blocking_send(Err(error));
            }
        };
        thread::Builder::new()
            .name("kafka scan".to_owned())
            .spawn(read)
            .map_err(|error| LogError::away("scan", error))?;
        Ok(Scan { records, total, read: 0 })
    }

    /// The next records, up to `max`, those of one partition in their order; none at the end.
    ///
    /// # Errors
    ///
    /// When the brokers fall silent, or refuse.
    pub async fn next(&mut self, max: usize) -> Result<Vec<Scanned>, LogError> {
        let mut waiting = Vec::new();
        self.records.recv_many(&mut waiting, max).await;
        self.read += waiting.len() as u64;
        waiting.into_iter().collect()
    }

    /// Offsets in the stretch; records may be fewer, as compaction leaves some out.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Records read so far.
    pub fn read(&self) -> u64 {
        self.read
    }
}

/// The offsets of the first record and behind the last one of a topic now, by partition.
///
/// # Errors
///
/// When the topic is missing, or the brokers do not answer.
pub async fn bounds(config: &KafkaConfig, topic: Topic) -> Result<BTreeMap<i32, (i64, i64)>, LogError> {
    let asker = Asker::new(config)?;
    let name = config.name_of(topic);
    let bounds = blocking(move || asker.bounds(&name, Stretch::default())).await?;
    Ok(bounds.into_iter().collect())
}

/// What `config.group` has committed of a topic, by partition; partitions of which it has committed nothing are left out.
///
/// # Errors
///
/// When the topic is missing, or the brokers do not answer.
pub async fn committed(config: &KafkaConfig, topic: Topic) -> Result<BTreeMap<i32, i64>, LogError> {
    let asker = Asker::new(config)?;
    let name = config.name_of(topic);
    blocking(move || {
        let wanted = asker.list(&name, |_| Offset::Invalid)?;
        let list = asker.client.committed_offsets(wanted, QUESTION_TIMEOUT);
        offsets(&list.map_err(|error| request_error("committed", error))?)
    })
    .await
}

pub(super) async fn blocking<T: Send + 'static>(
    question: impl FnOnce() -> Result<T, LogError> + Send + 'static,
) -> Result<T, LogError> {
    tokio::task::spawn_blocking(question).await.unwrap_or_else(|error| Err(LogError::away("scan", error)))
}

/// A client that reads partitions of its own choice.
pub(super) struct Asker {
    pub(super) client: BaseConsumer<Asking>,
}

impl Asker {
    pub(super) fn new(config: &KafkaConfig) -> Result<Asker, LogError> {
        let settings = config.scanner().map_err(|error| LogError::refused("connect", error))?;
        let client = BaseConsumer::from_config_and_context(&settings, Asking(ClientLog::new("scan")));
        Ok(Asker { client: client.map_err(client_error)? })
    }

    /// Every partition of a topic, at the offset that `at` says. Blocks.
    pub(super) fn list(
        &self,
        name: &str,
        at: impl Fn(i32) -> Offset,
    ) -> Result<TopicPartitionList, LogError> {
        let metadata = self.client.fetch_metadata(Some(name), QUESTION_TIMEOUT);
        let metadata = metadata.map_err(|error| request_error("scan", error))?;
        let missing = |code: RDKafkaErrorCode| {
            let source = KafkaError::MetadataFetch(code);
            LogError::refused("scan", TopicError { topic: name.to_owned(), source })
        };
        let topic = metadata.topics().first().ok_or_else(|| missing(RDKafkaErrorCode::UnknownTopic))?;
        if let Some(code) = topic.error() {
            return Err(missing(code.into()));
        }
        let mut list = TopicPartitionList::with_capacity(topic.partitions().len());
        for partition in topic.partitions() {
            let added = list.add_partition_offset(name, partition.id(), at(partition.id()));
            added.map_err(|error| request_error("scan", error))?;
        }
        Ok(list)
    }

    /// The first offset of the stretch and the one behind it, by partition. Blocks.
    fn bounds(&self, name: &str, stretch: Stretch) -> Result<HashMap<i32, (i64, i64)>, LogError> {
        // The protocol takes the two ends in the place of a time.
        let at = |offset: Offset| self.offsets_at(name, offset);
        let (starts, ends) = (at(Offset::Beginning)?, at(Offset::End)?);
        // Where no record is as late, the answer is the end, or none.
        let from = stretch.since.map(|since| at(Offset::Offset(since.0.max(0)))).transpose()?;
        let to = stretch.until.map(|until| at(Offset::Offset(until.plus_ms(1).0.max(0)))).transpose()?;
        let within = |found: &Option<BTreeMap<i32, i64>>, partition, otherwise, none| match found {
            None => otherwise,
            Some(found) => found.get(partition).copied().unwrap_or(none),
        };
        let mut bounds = HashMap::new();
        for (partition, start) in &starts {
            let Some(end) = ends.get(partition) else { continue };
            let first = within(&from, partition, *start, *end).clamp(*start, (*end).max(*start));
            let behind = within(&to, partition, *end, *end).clamp(first, (*end).max(first));
            bounds.insert(*partition, (first, behind));
        }
        Ok(bounds)
    }

    /// The first offset of each partition at or after an instant, given as an offset; partitions without one are left out. Blocks.
    pub(super) fn offsets_at(&self, name: &str, at: Offset) -> Result<BTreeMap<i32, i64>, LogError> {
        let wanted = self.list(name, |_| at)?;
        let found = self.client.offsets_for_times(wanted, QUESTION_TIMEOUT);
        offsets(&found.map_err(|error| request_error("scan", error))?)
    }

    /// Hands on the records within `bounds`. Blocks; ends early where nobody takes them.
    fn read(
        &self,
        topic: Topic,
        name: &str,
        mut left: HashMap<i32, (i64, i64)>,
        to: &mpsc::Sender<Result<Scanned, LogError>>,
    ) -> Result<(), LogError> {
        left.retain(|_, (start, end)| start < end);
        let mut wanted = TopicPartitionList::new();
        for (partition, (start, _)) in &left {
            let added = wanted.add_partition_offset(name, *partition, Offset::Offset(*start));
            added.map_err(|error| request_error("scan", error))?;
        }
        self.client.assign(&wanted).map_err(|error| request_error("scan", error))?;
        let mut heard = Instant::now();
        while !left.is_empty() && !to.is_closed() {
            match self.client.poll(POLL) {
                None if heard.elapsed() > SILENCE_MAX => {
                    let silence = format!("nothing came for {} s", SILENCE_MAX.as_secs());
                    return Err(LogError::away("scan", silence));
                }
                None => {}
                // A transaction's end or compaction may take the last offsets: no record comes for them.
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    heard = Instant::now();
                    left.remove(&partition);
                }
                Some(Err(error)) => {
                    let error = request_error("scan", error);
                    if !error.may_pass() {
                        return Err(error);
                    }
                    tracing::debug!(%error, "a scan goes on after an error");
                }
                Some(Ok(message)) => {
                    heard = Instant::now();
                    let Some((_, end)) = left.get(&message.partition()).copied() else { continue };
                    if message.offset() < end {
                        let scanned =
                            Scanned { record: incoming(topic, &message), headers: headers(&message) };
                        if to.blocking_send(Ok(scanned)).is_err() {
                            return Ok(());
                        }
                        // Whoever takes them may be slow.
                        heard = Instant::now();
                    }
                    if message.offset() + 1 >= end {
                        left.remove(&message.partition());
                    }
                }
            }
        }
        Ok(())
    }
}

fn offsets(list: &TopicPartitionList) -> Result<BTreeMap<i32, i64>, LogError> {
    let mut offsets = BTreeMap::new();
    for element in list.elements() {
        element.error().map_err(|error| request_error("scan", error))?;
        if let Offset::Offset(offset) = element.offset() {
            offsets.insert(element.partition(), offset);
        }
    }
    Ok(offsets)
}

fn headers(message: &impl Message) -> Vec<(String, String)> {
    let text = |header: rdkafka::message::Header<'_, &[u8]>| {
        let value = std::str::from_utf8(header.value?).ok()?;
        Some((header.key.to_owned(), value.to_owned()))
    };
    message.headers().map_or_else(Vec::new, |headers| headers.iter().filter_map(text).collect())
}

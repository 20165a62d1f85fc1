//! Records out to Kafka.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::client::{ClientLog, check_topics, client_error, locked, request_error};
use super::config::KafkaConfig;
use crate::appender::Appender;
use crate::error::LogError;
use crate::record::{Outgoing, Topic};

/// Appends to Kafka: idempotent, acknowledged by all in-sync replicas.
///
/// At most 64 MiB or 100,000 records wait in the client; whoever has more waits for room.
pub struct KafkaAppender {
    config: ClientConfig,
    /// Tells the names of topics.
    names: KafkaConfig,
    checked: Vec<String>,
    /// Replaced when it has failed for good.
    client: Mutex<Arc<Client>>,
}

type Client = ThreadedProducer<Deliveries>;

/// How long to wait for room in the client's queue, and how often to look.
const ROOM_TIMEOUT: Duration = Duration::from_secs(30);
const ROOM_PAUSE: Duration = Duration::from_millis(5);

impl KafkaAppender {
    /// An appender; it connects by itself, and keeps at it. `checked` are the topics that must be there for
    /// [`check`](Appender::check) to pass.
    ///
    /// # Errors
    ///
    /// When the options do not hold.
    pub fn new(config: &KafkaConfig, checked: &[Topic]) -> Result<KafkaAppender, LogError> {
        let settings = config.producer().map_err(|error| LogError::refused("connect", error))?;
        Ok(KafkaAppender {
            client: Mutex::new(Arc::new(connect(&settings)?)),
            config: settings,
            checked: checked.iter().map(|topic| config.name_of(*topic)).collect(),
            names: config.clone(),
        })
    }

    /// The client; a new one where the last has failed for good. An idempotent producer does when the broker
    /// forgot what it sent: no record is lost by it, each of its calls has been told.
    fn client(&self) -> Result<Arc<Client>, LogError> {
        let mut client = locked(&self.client);
        if let Some((code, reason)) = client.client().fatal_error() {
            tracing::warn!(%code, "kafka client failed for good and is replaced: {reason}");
            *client = Arc::new(connect(&self.config)?);
        }
        Ok(Arc::clone(&client))
    }

    /// Hands a record to the client, once there is room.
    async fn enqueue(&self, client: &Client, record: &Outgoing, call: &Arc<Call>) -> Result<(), LogError> {
        let topic = self.names.name_of(record.topic);
        let give_up = Instant::now() + ROOM_TIMEOUT;
        loop {
            let message = BaseRecord {
                topic: &topic,
                partition: record.partition,
                payload: record.value.as_deref(),
                key: record.key.as_deref(),
                timestamp: None,
                headers: headers(record),
                delivery_opaque: Arc::clone(call),
            };
            match client.send(message).map_err(|(error, _)| error) {
                Ok(()) => return Ok(()),
                Err(KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull))
                    if Instant::now() < give_up =>
                {
                    sleep(ROOM_PAUSE).await;
                }
                Err(error) => return Err(request_error("append", error)),
            }
        }
    }
}

#[async_trait]
impl Appender for KafkaAppender {
    async fn append(&self, records: Vec<Outgoing>) -> Result<(), LogError> {
        if records.is_empty() {
            return Ok(());
        }
        let client = self.client()?;
        let call = Arc::new(Call::new(records.len()));
        for record in &records {
            self.enqueue(&client, record, &call).await?;
        }
        call.reported().await
    }

    async fn check(&self) -> Result<(), LogError> {
        let (client, topics) = (self.client()?, self.checked.clone());
        tokio::task::spawn_blocking(move || check_topics(client.client(), &topics))
            .await
            .unwrap_or_else(|error| Err(LogError::away("check", error)))
    }
}

fn connect(settings: &ClientConfig) -> Result<Client, LogError> {
    Client::from_config_and_context(settings, Deliveries(ClientLog::new("appender"))).map_err(client_error)
}

fn headers(record: &Outgoing) -> Option<OwnedHeaders> {
    (!record.headers.is_empty()).then(|| {
        let headers = OwnedHeaders::new_with_capacity(record.headers.len());
        record
            .headers
            .iter()
            .fold(headers, |headers, (key, value)| headers.insert(Header { key, value: Some(value) }))
    })
}

/// The records of one call that have no delivery report yet.
struct Call {
    unreported: AtomicUsize,
    failure: Mutex<Option<KafkaError>>,
    done: Notify,
}

impl Call {
    fn new(records: usize) -> Call {
        Call { unreported: AtomicUsize::new(records), failure: Mutex::new(None), done: Notify::new() }
    }

    fn report(&self, failure: Option<&KafkaError>) {
        if let Some(failure) = failure {
            locked(&self.failure).get_or_insert_with(|| failure.clone());
        }
        if self.unreported.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.done.notify_one();
        }
    }

    /// Waits for all reports; the first failure, if there is one.
    async fn reported(&self) -> Result<(), LogError> {
        while self.unreported.load(Ordering::Acquire) > 0 {
            self.done.notified().await;
        }
        match locked(&self.failure).take() {
            Some(failure) => Err(request_error("append", failure)),
            None => Ok(()),
        }
    }
}

/// Takes the delivery reports, on the client's thread.
struct Deliveries(ClientLog);

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, kind: &str, message: &str) {
        self.0.line(level, kind, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.error(&error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Arc<Call>;

    fn delivery(&self, result: &DeliveryResult<'_>, call: Arc<Call>) {
        call.report(result.as_ref().err().map(|(error, _)| error));
    }
}

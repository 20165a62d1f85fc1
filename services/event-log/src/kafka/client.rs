//! What the clients of Kafka have in common: their log lines and their errors.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::{Client, ClientContext};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::config::OptionsError;
use crate::error::LogError;

/// How long a broker may take to answer a question about topics.
pub(super) const METADATA_TIMEOUT: Duration = Duration::from_secs(5);

/// Writes a client's log lines, each kind once in a while: librdkafka repeats itself with every attempt to
/// connect.
pub(super) struct ClientLog {
    client: &'static str,
    written: Mutex<HashMap<String, Written>>,
}

struct Written {
    at: Instant,
    left_out: u64,
}

const REPEATED_AFTER: Duration = Duration::from_secs(60);
/// Kinds remembered. There are fewer; a bound all the same.
const KINDS_MAX: usize = 256;

impl ClientLog {
    pub(super) fn new(client: &'static str) -> ClientLog {
        ClientLog { client, written: Mutex::default() }
    }

    /// A line of librdkafka's own log.
    pub(super) fn line(&self, level: RDKafkaLogLevel, kind: &str, message: &str) {
        let client = self.client;
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error
            | RDKafkaLogLevel::Warning => {
                if let Some(left_out) = self.admit(kind) {
                    tracing::warn!(client, kind, left_out, "kafka client: {message}");
                }
            }
            _ => tracing::debug!(client, kind, "kafka client: {message}"),
        }
    }

    /// An error that the client met, and deals with by itself.
    pub(super) fn error(&self, error: &KafkaError, reason: &str) {
        if let Some(left_out) = self.admit(&error.to_string()) {
            tracing::warn!(client = self.client, %error, left_out, "kafka client: {reason}");
        }
    }

    /// Whether a line of this kind is due, and how many were left out since the last.
    fn admit(&self, kind: &str) -> Option<u64> {
        let now = Instant::now();
        let mut written = locked(&self.written);
        if let Some(last) = written.get_mut(kind) {
            if now.duration_since(last.at) < REPEATED_AFTER {
                last.left_out += 1;
                return None;
            }
            last.at = now;
            return Some(std::mem::take(&mut last.left_out));
        }
        if written.len() >= KINDS_MAX {
            written.clear();
        }
        written.insert(kind.to_owned(), Written { at: now, left_out: 0 });
        Some(0)
    }
}

/// The context of a client that only asks.
pub(super) struct Asking(pub(super) ClientLog);

impl ClientContext for Asking {
    fn log(&self, level: RDKafkaLogLevel, kind: &str, message: &str) {
        self.0.line(level, kind, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.error(&error, reason);
    }
}

impl ConsumerContext for Asking {}

/// A client could not be made: says which setting is to blame, and never its value.
pub(super) fn client_error(error: KafkaError) -> LogError {
    let cause = match error {
        KafkaError::ClientConfig(_, _, name, _) => OptionsError::Unknown(name),
        KafkaError::ClientCreation(reason) => OptionsError::Client(reason),
        other => return LogError::away("connect", other),
    };
    LogError::refused("connect", cause)
}

/// Sorts an error by whether the same request may succeed later.
pub(super) fn request_error(operation: &'static str, error: KafkaError) -> LogError {
    match error.rdkafka_error_code() {
        Some(code) if is_permanent(code) => LogError::refused(operation, error),
        _ => LogError::away(operation, error),
    }
}

/// Whether a request that failed like this fails again until somebody changes the request, the cluster or the
/// rights.
pub(super) fn is_permanent(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::MessageSizeTooLarge
            | RDKafkaErrorCode::InvalidMessageSize
            | RDKafkaErrorCode::InvalidMessage
            | RDKafkaErrorCode::InvalidRecord
            | RDKafkaErrorCode::InvalidTopic
            | RDKafkaErrorCode::InvalidPartitions
            | RDKafkaErrorCode::InvalidReplicationFactor
            | RDKafkaErrorCode::InvalidConfig
            | RDKafkaErrorCode::PolicyViolation
            | RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::GroupAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed
    )
}

/// Whether the brokers answer and know `topics`. Blocks up to [`METADATA_TIMEOUT`] each.
pub(super) fn check_topics<C: ClientContext>(client: &Client<C>, topics: &[String]) -> Result<(), LogError> {
    for topic in topics {
        let metadata = client
            .fetch_metadata(Some(topic), METADATA_TIMEOUT)
            .map_err(|error| request_error("check", error))?;
        if let Some(error) = metadata.topics().iter().find_map(|topic| topic.error()) {
            let error = KafkaError::MetadataFetch(error.into());
            return Err(LogError::away("check", TopicError { topic: topic.clone(), source: error }));
        }
    }
    Ok(())
}

/// A topic is not there, or not to be used.
#[derive(Debug, thiserror::Error)]
#[error("topic {topic}")]
pub(super) struct TopicError {
    pub(super) topic: String,
    pub(super) source: KafkaError,
}

/// Locks a mutex whose data is whole after every statement, so that another thread's panic does not matter.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_line_is_left_out_and_another_is_not() {
        let log = ClientLog::new("test");
        assert_eq!(log.admit("FAIL"), Some(0));
        assert_eq!(log.admit("FAIL"), None);
        assert_eq!(log.admit("MAXPOLL"), Some(0));
    }

    #[test]
    fn a_setting_that_is_refused_shows_its_name_only() {
        let mut config = rdkafka::ClientConfig::new();
        config.set("sasl.mechanism.secret", "hunter2");
        let made: Result<rdkafka::consumer::BaseConsumer, _> = config.create();
        let error = client_error(made.err().expect("no such setting"));
        let shown = format!("{error:?}");
        assert!(shown.contains("sasl.mechanism.secret") && !shown.contains("hunter2"), "{shown}");
        assert!(!error.may_pass());
    }
}

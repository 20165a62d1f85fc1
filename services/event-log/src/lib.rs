//! Where events come from: Kafka, and an embedded log.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`record`] | the topics, and records on their way in and out |
//! | [`kafka`] | Kafka: configuration, topics, appender, consumer. Nothing outside of it knows rdkafka |
//! | [`embedded`] | a log in one directory, for a program that runs alone |
//!
//! Both logs take records through [`Appender`]. They are read in their own ways: partitions of Kafka come and
//! go, and what was read carries the [`Claim`] it was read under; the embedded log is read by record number.

mod appender;
pub mod embedded;
mod error;
pub mod kafka;
pub mod record;

pub use appender::Appender;
pub use embedded::{EmbeddedLog, EmbeddedOptions};
pub use error::{Cause, LogError};
pub use kafka::{Batch, BatchLimits, Claim, CommitOutcome, KafkaAppender, KafkaConfig, KafkaConsumer};
pub use kafka::{
    CAMPAIGN_EVENTS_PARTITIONS, OptionsError, TopicSettings, TopicsReport, ensure_topics, parse_options,
};
pub use kafka::{Observer, Position, read_retention};
pub use record::{Incoming, Outgoing, Topic};

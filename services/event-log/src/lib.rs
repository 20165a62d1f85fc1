//! Where events come from: Kafka, and an embedded log.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`record`] | the topics, and records on their way in and out |
//! | [`kafka`] | Kafka: configuration, topics, appender, consumer. Nothing outside of it knows rdkafka |
//! | [`embedded`] | a log in one directory, for a program that runs alone |
//!
//! Both logs take records through [`Appender`]. They are read in their own ways: partitions of Kafka come and
//! go, and what a [`Consumer`] reads carries the [`Claim`] it was read under; the embedded log is read by record
//! number.

mod appender;
mod consumer;
pub mod embedded;
mod error;
pub mod kafka;
pub mod record;

pub use appender::Appender;
pub use consumer::{Batch, BatchLimits, Claim, CommitOutcome, Consumer};
pub use embedded::{EmbeddedLog, EmbeddedOptions};
pub use error::{Cause, LogError};
pub use kafka::{
    CAMPAIGN_EVENTS_PARTITIONS, KafkaAppender, KafkaConfig, KafkaConsumer, OptionsError, TopicSettings,
    TopicsReport, ensure_topics, parse_options,
};
pub use kafka::{Observer, Position, Scan, Scanned, Stretch, bounds, committed, inspect, read_retention};
pub use record::{Incoming, Outgoing, Topic};

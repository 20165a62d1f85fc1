//! Kafka.
//!
//! | module | what it holds |
//! | --- | --- |
//! | `config` | addresses, group, what is passed through to librdkafka |
//! | `topics` | creates the topics that are missing, looks over those that are there |
//! | `appender` | records out, acknowledged by all in-sync replicas |
//! | `consumer` | records in, batch by batch, and commits |
//! | `assignment` | which partitions are held, under which claim; the gate that commits pass |
//! | `scan` | a stretch of a topic read once, beside its group; offsets and commits |
//! | `inspect` | what is missing or wrong, and how to mend it |
//! | `client` | what the clients have in common: log lines, errors |

mod appender;
mod assignment;
mod client;
mod config;
mod consumer;
mod inspect;
mod scan;
mod topics;

pub use appender::KafkaAppender;
pub use assignment::Position;
pub use config::{KafkaConfig, OptionsError, parse_options};
pub use consumer::{KafkaConsumer, Observer};
pub use inspect::inspect;
pub use scan::{Scan, Scanned, Stretch, bounds, committed};
pub use topics::{CAMPAIGN_EVENTS_PARTITIONS, TopicSettings, TopicsReport, ensure_topics, read_retention};

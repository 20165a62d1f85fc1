//! Appending to the event log.

use async_trait::async_trait;

use crate::error::LogError;
use crate::record::Outgoing;

/// What takes records in: Kafka or the embedded log.
#[async_trait]
pub trait Appender: Send + Sync {
    /// Appends `records`, those of one partition in their order, and returns once every one is durable:
    /// acknowledged by all in-sync replicas, or fsynced.
    ///
    /// # Errors
    ///
    /// None, some or all of the records may be there then, and may yet come. The same holds for a call that
    /// is dropped before it returned. To append them again is safe where repeats are, which is everywhere in
    /// Backstamp.
    async fn append(&self, records: Vec<Outgoing>) -> Result<(), LogError>;

    /// Whether records could be appended now: for readiness.
    ///
    /// # Errors
    ///
    /// Says what is missing.
    async fn check(&self) -> Result<(), LogError>;
}
